//! Values with tensors inside: changed one by one, or taken apart for a loop and put together again.

use std::rc::Rc;

use mdl_graph::Name;

use super::Elaborator;
use super::value::{Args, Eval, Stop, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::Span;

/// The tensors of a value, and how to put it together again.
pub(super) enum Tree {
    Leaf,
    Whole(Value),
    Tuple(Vec<Tree>),
    List(Vec<Tree>),
    Record(Vec<(Rc<str>, Tree)>),
}

impl Elaborator<'_> {
    /// A value with each tensor in it changed.
    pub(super) fn each_tensor(
        &mut self,
        value: &Value,
        change: &mut dyn FnMut(&mut Self, &Tensor) -> Eval<Tensor>,
    ) -> Eval<Value> {
        Ok(match value {
            Value::Tensor(tensor) => Value::Tensor(change(self, tensor)?),
            Value::Stored(id) => {
                let tensor = self.fetch(*id)?;
                Value::Tensor(change(self, &tensor)?)
            }
            Value::Tuple(items) | Value::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items.iter() {
                    out.push(self.each_tensor(item, change)?);
                }
                if matches!(value, Value::Tuple(_)) { Value::tuple(out) } else { Value::list(out) }
            }
            Value::Record(fields) => {
                let mut out = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    out.push((name.clone(), self.each_tensor(field, change)?));
                }
                Value::Record(Rc::new(out))
            }
            other => other.clone(),
        })
    }

    pub(super) fn rename_args(&mut self, args: &Args, pairs: &[(Name, Name)], span: Span) -> Eval<Args> {
        let mut out = args.clone();
        for (value, _) in &mut out.positional {
            *value = self.each_tensor(value, &mut |elab, tensor| elab.rename(tensor, pairs, span))?;
        }
        for (_, value, _) in &mut out.named {
            *value = self.each_tensor(value, &mut |elab, tensor| elab.rename(tensor, pairs, span))?;
        }
        Ok(out)
    }

    /// The tensors of a value; numbers become tensors.
    pub(super) fn flatten(&mut self, value: &Value, span: Span) -> Eval<(Tree, Vec<Tensor>)> {
        let mut tensors = Vec::new();
        let tree = self.flatten_into(value, span, &mut tensors)?;
        Ok((tree, tensors))
    }

    fn flatten_into(&mut self, value: &Value, span: Span, out: &mut Vec<Tensor>) -> Eval<Tree> {
        Ok(match value {
            Value::Error => return Err(Stop),
            Value::Tuple(items) | Value::List(items) => {
                let mut trees = Vec::with_capacity(items.len());
                for item in items.iter() {
                    trees.push(self.flatten_into(item, span, out)?);
                }
                if matches!(value, Value::Tuple(_)) { Tree::Tuple(trees) } else { Tree::List(trees) }
            }
            Value::Record(fields) => {
                let mut trees = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    trees.push((name.clone(), self.flatten_into(field, span, out)?));
                }
                Tree::Record(trees)
            }
            Value::Bool(_) | Value::Tensor(_) | Value::Stored(_) => {
                let operand = self.operand(value, span, "a loop")?;
                out.push(self.tensor_of(&operand, span)?);
                Tree::Leaf
            }
            other if other.as_float().is_some() => {
                let operand = self.operand(value, span, "a loop")?;
                out.push(self.tensor_of(&operand, span)?);
                Tree::Leaf
            }
            other => Tree::Whole(other.clone()),
        })
    }

    /// The tensors of a value that must be built as another one was.
    pub(super) fn flatten_like(&mut self, tree: &Tree, value: &Value, span: Span) -> Eval<(Tree, Vec<Tensor>)> {
        let (own, tensors) = self.flatten(value, span)?;
        if !same_tree(tree, &own) {
            let message = format!("a loop begins with {} and goes on with {}", tree_words(tree), tree_words(&own));
            return Err(self.error(Code::E0218, message, span, "what goes around must come back in the same form"));
        }
        Ok((own, tensors))
    }

    pub(super) fn take_named(&mut self, args: &mut Args, name: &str) -> Option<(Value, Span)> {
        let at = args.named.iter().position(|(known, ..)| &**known == name)?;
        let (_, value, span) = args.named.remove(at);
        Some((value, span))
    }

    pub(super) fn no_more_named(&mut self, args: &Args, what: &str) -> Eval<()> {
        match args.named.first() {
            None => Ok(()),
            Some((name, _, span)) => {
                Err(self.error(Code::E0208, format!("`{what}` has no parameter `{name}`"), *span, "not known"))
            }
        }
    }
}

pub(super) fn unflatten(tree: &Tree, tensors: &mut dyn Iterator<Item = Tensor>) -> Value {
    match tree {
        Tree::Leaf => tensors.next().map_or(Value::Error, Value::Tensor),
        Tree::Whole(value) => value.clone(),
        Tree::Tuple(parts) => Value::tuple(parts.iter().map(|part| unflatten(part, tensors)).collect()),
        Tree::List(parts) => Value::list(parts.iter().map(|part| unflatten(part, tensors)).collect()),
        Tree::Record(fields) => {
            Value::Record(Rc::new(fields.iter().map(|(name, part)| (name.clone(), unflatten(part, tensors))).collect()))
        }
    }
}

fn same_tree(a: &Tree, b: &Tree) -> bool {
    match (a, b) {
        (Tree::Leaf, Tree::Leaf) | (Tree::Whole(_), Tree::Whole(_)) => true,
        (Tree::Tuple(a), Tree::Tuple(b)) | (Tree::List(a), Tree::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_tree(a, b))
        }
        (Tree::Record(a), Tree::Record(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((x, a), (y, b))| x == y && same_tree(a, b))
        }
        _ => false,
    }
}

fn tree_words(tree: &Tree) -> String {
    match tree {
        Tree::Leaf => "one value".to_string(),
        Tree::Whole(_) => "a value that is no tensor".to_string(),
        Tree::Tuple(parts) => format!("a tuple of {}", parts.len()),
        Tree::List(parts) => format!("a list of {}", parts.len()),
        Tree::Record(fields) => {
            format!("a record of {}", fields.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(", "))
        }
    }
}
