//! Positions along an axis: `x[t = -1]`, `x[t = 0..10]`, `table[vocab = ids]`.

use mdl_graph::{Name, Op};

use super::Elaborator;
use super::graphs::Feed;
use super::scope::plain;
use super::value::{Env, Eval, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{Expr, Span};

impl Elaborator<'_> {
    pub(super) fn eval_index(&mut self, env: &Env, expr: &Expr) -> Eval<Value> {
        self.eval(env, expr)
    }

    /// `x[t = -1]`, `x[t = 0..10]`, `table[vocab = ids]`. `None`: a field of a record without the axis.
    pub(super) fn index_axis(
        &mut self,
        tensor: &Tensor,
        names: &[Name],
        index: &Value,
        expr: &Expr,
        span: Span,
        is_record: bool,
    ) -> Eval<Option<Tensor>> {
        let [name] = names else {
            return Err(self.error(Code::E0217, "an index takes one axis", span, "a pack"));
        };
        let Some(size) = self.axes(tensor).size(name) else {
            if is_record {
                return Ok(None);
            }
            let has = self.show_axes(&self.axes(tensor).clone());
            let message = format!("there is no axis `{}` in {has}", plain(name));
            let names: Vec<String> = self.axes(tensor).names().map(plain).collect();
            let diagnostic = Diagnostic::error(Code::E0203, message).label(span, "indexed here");
            return Err(self.fail(match crate::diag::nearest(name.as_str(), names.iter().map(String::as_str)) {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => diagnostic,
            }));
        };
        let signed = size as i64;
        if let Value::Range { start, end } = index {
            let at = |bound: i64| if bound < 0 { bound + signed } else { bound };
            let (start, end) = (at(start.unwrap_or(0)), at(end.unwrap_or(signed)));
            if start < 0 || end > signed || start > end {
                let message = format!("positions {start} to {end} of `{}`, which has {size}", plain(name));
                return Err(self.error(Code::E0215, message, expr.span, "outside"));
            }
            return self.slice(tensor, name, start as u64, (end - start) as u64, 1, span).map(Some);
        }
        if !matches!(index, Value::Tensor(_) | Value::Stored(_))
            && let Some(at) = index.as_int()
        {
            let place = if at < 0 { at + signed } else { at };
            if place < 0 || place >= signed {
                let message = format!("position {at} of `{}`, which has {size}", plain(name));
                return Err(self.error(Code::E0215, message, expr.span, "outside"));
            }
            let cut = self.slice(tensor, name, place as u64, 1, 1, span)?;
            return self.squeeze(&cut, name, span).map(Some);
        }
        let operand = self.operand(index, expr.span, "an index")?;
        let index = self.tensor_of(&operand, expr.span)?;
        if !self.dtype(&index).is_int() {
            let message = format!("an index is an integer, not {}", self.dtype(&index));
            let help = "`int(x)` rounds toward zero; a mask chooses with `where`";
            return Err(self.error_help(
                Code::E0207,
                message,
                expr.span,
                format!("this is {}", self.dtype(&index)),
                help,
            ));
        }
        self.gather(tensor, name, &index, span).map(Some)
    }

    pub(super) fn slice(
        &mut self,
        x: &Tensor,
        name: &Name,
        start: u64,
        len: u64,
        step: i64,
        span: Span,
    ) -> Eval<Tensor> {
        if step == 1 && start == 0 && self.axes(x).size(name) == Some(len) {
            return Ok(x.clone());
        }
        self.emit(Op::Slice { axis: name.clone(), start, len, step }, &[x], span)
    }

    pub(super) fn gather(&mut self, table: &Tensor, axis: &Name, index: &Tensor, span: Span) -> Eval<Tensor> {
        let mut left = self.axes(table).clone();
        left.remove(axis);
        if let Err(name) = left.union(&self.axes(index).clone()) {
            let (a, b) = (left.size(&name).unwrap_or(0), self.axes(index).size(&name).unwrap_or(0));
            let message = format!("axis `{}` is {a} in what is indexed and {b} in the index", plain(&name));
            return Err(self.error(Code::E0204, message, span, "shared axes are matched"));
        }
        self.check_bound(table, axis, index, span)?;
        self.emit(Op::Gather { axis: axis.clone() }, &[table, index], span)
    }

    /// Refuses a position that a field of the batch gives and the axis does not have: it would read nothing but zeros.
    fn check_bound(&mut self, table: &Tensor, axis: &Name, index: &Tensor, span: Span) -> Eval<()> {
        let Some((field, bound)) = self.bound_of(index) else { return Ok(()) };
        match self.axes(table).size(axis) {
            Some(size) if size < bound => {
                let message = format!(
                    "`{field}` of the batch goes up to {}, and `{}` has {size} positions",
                    bound - 1,
                    plain(axis)
                );
                let help = "give the axis the size that the data has: `plays.vocab`, `reviews.classes`";
                Err(self.error_help(Code::E0215, message, span, "read beyond the end here", help))
            }
            _ => Ok(()),
        }
    }

    /// The field of the batch that a tensor is, and the number that its values are below.
    fn bound_of(&self, tensor: &Tensor) -> Option<(String, u64)> {
        let mut at = self.levels.iter().position(|level| level.id == tensor.level)?;
        let mut node = tensor.node;
        loop {
            let graph = &self.levels[at].graph;
            node = match graph.op(node) {
                Op::Input(input) if at == 0 => {
                    let name = graph.inputs()[input.0 as usize].name.as_str();
                    return self.bounds.get(name).map(|bound| (name.to_string(), *bound));
                }
                Op::Input(input) => match self.levels[at].feeds[input.0 as usize] {
                    Feed::Scan(outer) | Feed::Free(outer) => {
                        at -= 1;
                        outer
                    }
                    Feed::Carry(_) => return None,
                },
                Op::Rename(_) | Op::Expand(_) | Op::Slice { .. } | Op::Split { .. } | Op::Merge { .. } | Op::Detach => {
                    graph.args(node)[0]
                }
                _ => return None,
            };
        }
    }
}
