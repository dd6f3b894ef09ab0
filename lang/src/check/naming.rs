//! What files of weights call a model's weights: its `names`, and those of the layers in it.
//!
//! In: a built layer. Out: rows, each the weights that one tensor of a file holds, with the names that the tensor may have and
//! its order of axes. A row of a `names` block may lead to a layer, whose own `names` follow after a dot; so a model's file says
//! only what the model itself is made of. Nothing is compared with a file here: that is `weights.rs`.

use std::rc::Rc;

use mdl_graph::Name;

use super::Elaborator;
use super::value::{Eval, Layer, LayerKind, Stop, StoredId, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{self, AxisRef, Span};

/// Everything that a model's `names` say.
#[derive(Default)]
pub(super) struct Naming {
    pub(super) rows: Vec<Row>,
    /// What files may have besides.
    pub(super) besides: Vec<Template>,
}

/// One tensor of a file, or one for each index of copies.
pub(super) struct Row {
    /// The weights in it, several where one of its dimensions is cut by `|`, and the layer that each is of.
    pub(super) held: Vec<(StoredId, Layer)>,
    /// What it may be called, likeliest first.
    pub(super) names: Vec<Template>,
    pub(super) order: Option<Vec<Vec<Vec<AxisRef>>>>,
    pub(super) span: Span,
}

/// A name with places for numbers: `h.{layer}.attn.c_attn.weight`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `{layer}`, `{2 * layer + 1}`: an index times one number and another number more.
    Hole {
        name: String,
        times: u64,
        more: u64,
    },
}

/// The sizes of axes that a name may count with.
type Sizes<'s> = &'s dyn Fn(&str) -> Option<u64>;

/// A sum in braces: numbers, `size[dense]`, and one index with or without a factor.
fn hole(text: &str, sizes: Sizes<'_>) -> Option<Part> {
    let number = |text: &str| {
        let axis = text.strip_prefix("size[").and_then(|text| text.strip_suffix(']'));
        axis.map_or_else(|| text.parse().ok(), |axis| sizes(axis.trim()))
    };
    let (mut index, mut more) = (None, 0u64);
    for term in text.split('+').map(str::trim) {
        if let Some(number) = number(term) {
            more = more.checked_add(number)?;
            continue;
        }
        let (times, name) = match term.split_once('*') {
            Some((a, b)) => match (number(a.trim()), number(b.trim())) {
                (Some(times), None) => (times, b.trim()),
                (None, Some(times)) => (times, a.trim()),
                _ => return None,
            },
            None => (1, term),
        };
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        if !is_name || index.replace((name.to_string(), times)).is_some() {
            return None;
        }
    }
    let (name, times) = index?;
    Some(Part::Hole { name, times, more })
}

impl Template {
    /// All ways to read a name in which `[…]` may be left out; with it first.
    pub(super) fn parse(text: &str, sizes: Sizes<'_>) -> Result<Vec<Template>, &'static str> {
        let mut out = vec![Template::default()];
        let mut rest = text;
        while let Some(at) = rest.find(['[', '{', ']', '}']) {
            let (before, after) = rest.split_at(at);
            out.iter_mut().for_each(|template| template.push_text(before));
            let (close, message) = match &after[..1] {
                "[" => (']', "`[` is not closed by `]`"),
                "{" => ('}', "`{` is not closed by `}`"),
                _ => return Err("this closes nothing"),
            };
            // What stands in braces has brackets of its own.
            let mut in_braces = false;
            let end = after.char_indices().find(|(_, c)| {
                in_braces = close == ']' && (in_braces || *c == '{') && *c != '}';
                !in_braces && *c == close
            });
            let Some((end, _)) = end else { return Err(message) };
            let inside = &after[1..end];
            if close == '}' {
                let Some(hole) = hole(inside, sizes) else {
                    return Err("in braces stands an index, such as `layer`, `layer + 1` or `layer + size[dense]`");
                };
                out.iter_mut().for_each(|template| template.0.push(hole.clone()));
            } else {
                let inner = Template::parse(inside, sizes)?;
                let with = inner.iter().flat_map(|inner| out.iter().map(|template| template.then(inner)));
                out = with.chain(out.iter().cloned()).collect();
            }
            rest = &after[end + 1..];
        }
        out.iter_mut().for_each(|template| template.push_text(rest));
        Ok(out)
    }

    fn push_text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Part::Text(before)) => before.push_str(text),
            _ if text.is_empty() => {}
            _ => self.0.push(Part::Text(text.to_string())),
        }
    }

    fn then(&self, other: &Template) -> Template {
        let mut out = self.clone();
        for part in &other.0 {
            match part {
                Part::Text(text) => out.push_text(text),
                hole @ Part::Hole { .. } => out.0.push(hole.clone()),
            }
        }
        out
    }

    /// With numbers in the places that are bound.
    pub(super) fn fill(&self, bound: &[(String, u64)]) -> Template {
        let mut out = Template::default();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_text(text),
                Part::Hole { name, times, more } => match bound.iter().find(|(known, _)| known == name) {
                    Some((_, number)) => out.push_text(&(times * number + more).to_string()),
                    None => out.0.push(part.clone()),
                },
            }
        }
        out
    }

    /// The name without its last step: that of the layer.
    pub(super) fn parent(&self) -> Option<Template> {
        let mut parts = self.0.clone();
        let Some(Part::Text(last)) = parts.last_mut() else { return None };
        let (before, _) = last.rsplit_once('.')?;
        *last = before.to_string();
        Some(Template(parts))
    }

    pub(super) fn holes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Hole { name, .. } => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    pub(super) fn text(&self) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Hole { name, .. } => format!("{{{name}}}"),
        });
        parts.collect()
    }

    /// Whether it is this name, with some number in each place.
    pub(super) fn matches(&self, name: &str) -> bool {
        fn go(parts: &[Part], name: &str) -> bool {
            match parts {
                [] => name.is_empty(),
                [Part::Text(text), rest @ ..] => name.strip_prefix(text.as_str()).is_some_and(|name| go(rest, name)),
                [Part::Hole { .. }, rest @ ..] => {
                    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
                    (1..=digits).rev().any(|n| go(rest, &name[n..]))
                }
            }
        }
        go(&self.0, name)
    }
}

/// What a path leads to.
enum Target {
    Layer(Layer),
    Stored(StoredId, Layer),
    /// What a condition has left out.
    Absent,
}

/// Numbers of `{i}` in a path.
type Bound = Vec<(String, u64)>;

impl Elaborator<'_> {
    /// The rows of a model; `names` in the place of those that its layer has.
    pub(super) fn naming(&mut self, layer: &Layer, names: Option<Rc<ast::Names>>, span: Span) -> Eval<Naming> {
        let mut naming = Naming::default();
        let names = match names {
            Some(names) => names,
            None => self.names_of(layer, span)?,
        };
        self.name_layer(layer, &names, &[Template::default()], &mut naming)?;
        Ok(naming)
    }

    pub(super) fn names_of(&mut self, layer: &Layer, span: Span) -> Eval<Rc<ast::Names>> {
        let Some(code) = layer.data.code.clone() else { return Err(Stop) };
        let name = &code.ast.name.text;
        if let Some(names) = self.files[code.file].names.get(name) {
            return Ok(names.clone());
        }
        let message = format!("the layer `{name}` has no `names`, so what files call its weights is not known");
        let help = format!("add `names {name} {{ … }}` beside the layer, or say its weights one by one");
        Err(self.error_help(Code::E0407, message, span, "leads to this layer", help))
    }

    fn name_layer(&mut self, layer: &Layer, names: &ast::Names, prefixes: &[Template], out: &mut Naming) -> Eval<()> {
        for row in &names.rows {
            let sizes = |axis: &str| layer.data.env.frame.axes.borrow().get(&Name::from(axis)).copied();
            let own = match Template::parse(&row.tensor.text, &sizes) {
                Ok(own) => own,
                Err(message) => {
                    return Err(self.error(Code::E0407, message, row.tensor.span, "a name in files"));
                }
            };
            let all: Vec<Template> =
                own.iter().flat_map(|own| prefixes.iter().map(|prefix| prefix.then(own))).collect();
            let Some((first, others)) = row.paths.split_first() else { continue };
            if let [step] = first.as_slice()
                && step.text == "_"
            {
                out.besides.extend(all);
                continue;
            }
            let at = Value::Layer(layer.clone());
            for (bound, target) in self.targets(&at, layer, first, &Vec::new())? {
                let texts: Vec<Template> = all.iter().map(|template| template.fill(&bound)).collect();
                match target {
                    Target::Absent => {}
                    Target::Layer(inner) => {
                        if row.order.is_some() || !others.is_empty() {
                            let message = "a row that leads to a layer is one path and has no order of axes";
                            let help = "the layer's own `names` say how its weights lie";
                            return Err(self.error_help(Code::E0407, message, row.span, "leads to a layer", help));
                        }
                        let inner_names = self.names_of(&inner, row.span)?;
                        let dot = Template(vec![Part::Text(".".to_string())]);
                        let texts: Vec<Template> = texts.iter().map(|text| text.then(&dot)).collect();
                        self.name_layer(&inner, &inner_names, &texts, out)?;
                    }
                    Target::Stored(id, owner) => {
                        let mut held = vec![(id, owner)];
                        for path in others {
                            match self.targets(&at, layer, path, &bound)?.pop() {
                                Some((_, Target::Stored(id, owner))) => held.push((id, owner)),
                                _ => {
                                    let span = path.first().map_or(row.span, |step| step.span);
                                    let message = "the weights of one tensor must be there together";
                                    return Err(self.error(
                                        Code::E0407,
                                        message,
                                        span,
                                        "this is no weight of the model",
                                    ));
                                }
                            }
                        }
                        out.rows.push(Row { held, names: texts, order: row.order.clone(), span: row.span });
                    }
                }
            }
        }
        Ok(())
    }

    /// What the steps of a path lead to from a value; `owner` is the layer that the value is a member of.
    fn targets(
        &mut self,
        value: &Value,
        owner: &Layer,
        steps: &[ast::Name],
        bound: &Bound,
    ) -> Eval<Vec<(Bound, Target)>> {
        let target = match value {
            Value::None => return Ok(vec![(bound.clone(), Target::Absent)]),
            Value::Layer(layer) => {
                // Copies are one layer, whose weights are stacked; what an adapter has brought is in files of its own.
                let mut layer = layer.clone();
                loop {
                    layer = match (&layer.data.kind, &layer.data.adapts) {
                        (LayerKind::Copies(_, inner), _) => Layer { outer: layer.outer.clone(), ..inner.clone() },
                        (LayerKind::Plain, Some((base, _))) => base.clone(),
                        (LayerKind::Plain, None) => break,
                    };
                }
                let Some((step, rest)) = steps.split_first() else {
                    return Ok(vec![(bound.clone(), Target::Layer(layer))]);
                };
                let member = layer.data.members.iter().find(|(name, _)| **name == *step.text);
                let Some((_, member)) = member.cloned() else { return Err(self.no_member(&layer, step)) };
                return self.targets(&member, &layer, rest, bound);
            }
            Value::List(items) => {
                let Some((step, rest)) = steps.split_first() else {
                    let span = owner.data.code.as_ref().map_or(Span::default(), |code| code.ast.name.span);
                    return Err(self.error(Code::E0407, "a row leads to a list of layers", span, "say which: `{i}`"));
                };
                if let Some(name) = step.text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
                    let mut all = Vec::new();
                    for (i, item) in items.iter().enumerate() {
                        let known = bound.iter().find(|(known, _)| known == name);
                        if known.is_some_and(|(_, number)| *number != i as u64) {
                            continue;
                        }
                        let mut bound = bound.clone();
                        if known.is_none() {
                            bound.push((name.to_string(), i as u64));
                        }
                        all.extend(self.targets(item, owner, rest, &bound)?);
                    }
                    return Ok(all);
                }
                match step.text.parse::<usize>().ok().map(|at| items.get(at)) {
                    Some(Some(item)) => return self.targets(item, owner, rest, bound),
                    // A list may be shorter than the longest that the names are written for.
                    Some(None) => return Ok(vec![(bound.clone(), Target::Absent)]),
                    None => return Err(self.no_member(owner, step)),
                }
            }
            Value::Stored(id) => Target::Stored(*id, owner.clone()),
            _ => {
                let span = steps.first().map_or(Span::default(), |step| step.span);
                let message = format!("a row of `names` leads to a weight or a layer, not to {}", value.kind());
                return Err(self.error(Code::E0407, message, span, "this step"));
            }
        };
        match steps.first() {
            None => Ok(vec![(bound.clone(), target)]),
            Some(step) => {
                Err(self.error(Code::E0407, "a path goes on behind a weight", step.span, "there is nothing in it"))
            }
        }
    }

    fn no_member(&mut self, layer: &Layer, step: &ast::Name) -> Stop {
        let name = layer.data.code.as_ref().map_or("", |code| &code.ast.name.text);
        let diagnostic = Diagnostic::error(Code::E0407, format!("the layer `{name}` has no `{}`", step.text))
            .label(step.span, "not a member");
        let known: Vec<&str> = layer.data.members.iter().map(|(name, _)| &**name).collect();
        let near = nearest(&step.text, known.iter().copied());
        self.fail(match near {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic.help(format!("it has {}", known.join(", "))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn parts_in_brackets_may_be_left_out() {
        let none = |_: &str| None;
        let texts = |text: &str| -> Vec<String> {
            Template::parse(text, &none).unwrap_or_default().iter().map(Template::text).collect()
        };
        assert_eq!(texts("[transformer.]h.{layer}"), ["transformer.h.{layer}", "h.{layer}"]);
        assert_eq!(texts("a"), ["a"]);
        for wrong in ["[a", "a]", "{a", "{}", "{a b}", "{a + b}", "{size[x]}"] {
            assert!(Template::parse(wrong, &none).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_takes_a_whole_number() {
        let none = |_: &str| None;
        let template = &Template::parse("h.{layer}.attn.bias", &none).unwrap_or_default()[0];
        assert!(template.matches("h.12.attn.bias"));
        assert!(!template.matches("h..attn.bias") && !template.matches("h.1.attn.bias2"));
        assert_eq!(template.fill(&[("layer".to_string(), 3)]).text(), "h.3.attn.bias");
        let sizes = |axis: &str| (axis == "dense").then_some(4);
        let filled =
            |text: &str| Template::parse(text, &sizes).unwrap_or_default()[0].fill(&[("layer".to_string(), 3)]).text();
        assert_eq!(filled("[h.{layer + size[dense]}].w"), "h.7.w");
        assert_eq!(filled("h.{2 * layer + 1}.w"), "h.7.w");
    }
}
