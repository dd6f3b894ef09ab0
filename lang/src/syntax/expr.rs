//! From pest's pairs to expressions: literals, precedence, calls, brackets.
//!
//! The grammar gives an expression as a flat list of terms and operators; the climb over precedences is here. Low to
//! high: `at`, `or`, `and`, `not`, comparisons and `in` (not chained), `..`, `+ -`, `* / %`, unary `-`, `^` (from the
//! right, so `-x ^ 2` is `-(x ^ 2)`).

use pest::iterators::Pair;

use super::ast::{
    Arg, ArgKind, BinaryOp, Block, Branch, CopiesKind, Expr, ExprKind, Pattern, PatternKind, RecordPart, Require, Span,
    Statement, StatementKind, UnaryOp,
};
use super::build::{Build, Parts, Rule};
use crate::diag::{Code, Diagnostic};

/// How deep the tree of one expression may be: chains of operators count, since every pass recurses over them.
const MAX_DEPTH: usize = 512;

/// One piece of a flat expression.
enum Piece<'i> {
    Prefix(UnaryOp, Span),
    Operand(Pair<'i, Rule>),
    /// An operator of two operands; `..` may lack the left or the right one.
    Infix(Infix, Span),
}

#[derive(Clone, Copy, PartialEq)]
enum Infix {
    At,
    Range,
    Op(BinaryOp),
}

impl Infix {
    /// Binding power, left and right; a left power below the right one binds from the left.
    fn powers(self) -> (u8, u8) {
        match self {
            Infix::At => (1, 2),
            Infix::Op(BinaryOp::Or) => (3, 4),
            Infix::Op(BinaryOp::And) => (5, 6),
            Infix::Op(
                BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge | BinaryOp::In,
            ) => (9, 10),
            Infix::Range => (11, 12),
            Infix::Op(BinaryOp::Add | BinaryOp::Sub) => (13, 14),
            Infix::Op(BinaryOp::Mul | BinaryOp::Div | BinaryOp::Rem) => (15, 16),
            Infix::Op(BinaryOp::Pow) => (20, 19),
        }
    }
}

/// What `not` and unary `-` take as their operand.
fn prefix_power(op: UnaryOp) -> u8 {
    match op {
        UnaryOp::Not => 7,
        UnaryOp::Neg => 17,
    }
}

impl Build<'_> {
    pub(super) fn expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut pieces = Vec::new();
        for part in pair.into_inner() {
            let part_span = self.span(&part);
            match part.as_rule() {
                Rule::range_start | Rule::range_end => pieces.push(Piece::Infix(Infix::Range, part_span)),
                Rule::binop => pieces.push(Piece::Infix(infix(part.as_str()), part_span)),
                _ => self.term(part, &mut pieces),
            }
        }
        let n_ops = pieces.iter().filter(|piece| !matches!(piece, Piece::Operand(_))).count();
        self.deeper(n_ops, span, |build| {
            let mut pieces = pieces.into_iter().peekable();
            build.climb(&mut pieces, 0)
        })
    }

    /// A `term` on its own, as after the `..` of a record.
    fn term_expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut pieces = Vec::new();
        self.term(pair, &mut pieces);
        let n_ops = pieces.len() - 1;
        self.deeper(n_ops, span, |build| build.climb(&mut pieces.into_iter().peekable(), 0))
    }

    fn term<'i>(&self, pair: Pair<'i, Rule>, pieces: &mut Vec<Piece<'i>>) {
        for part in pair.into_inner() {
            if part.as_rule() == Rule::prefix {
                let op = if part.as_str() == "not" { UnaryOp::Not } else { UnaryOp::Neg };
                pieces.push(Piece::Prefix(op, self.span(&part)));
            } else {
                pieces.push(Piece::Operand(part));
            }
        }
    }

    /// Runs `make` with `n` more levels; over the cap it reports once and gives a stand-in (the item is broken then).
    fn deeper(&mut self, n: usize, span: Span, make: impl FnOnce(&mut Self) -> Expr) -> Expr {
        if self.depth + n > MAX_DEPTH {
            if !self.is_too_deep {
                self.is_too_deep = true;
                let message = format!("an expression is more than {MAX_DEPTH} operations deep");
                self.report(
                    Diagnostic::error(Code::E0105, message)
                        .label(span, "in here")
                        .help("split it with `let`; a long sum may be a `sum` over a list or an axis"),
                );
            }
            return Expr { kind: ExprKind::Hole, span };
        }
        self.depth += n;
        let made = make(self);
        self.depth -= n;
        made
    }

    fn climb<'i, I>(&mut self, pieces: &mut std::iter::Peekable<I>, min: u8) -> Expr
    where
        I: Iterator<Item = Piece<'i>>,
    {
        let mut left = match pieces.next() {
            Some(Piece::Operand(pair)) => self.chain(pair),
            Some(Piece::Prefix(op, span)) => {
                let value = self.climb(pieces, prefix_power(op));
                let span = span.to(value.span);
                Expr { kind: ExprKind::Unary { op, value: Box::new(value) }, span }
            }
            // `..end`
            Some(Piece::Infix(Infix::Range, span)) => {
                let end = self.climb(pieces, Infix::Range.powers().1);
                let span = span.to(end.span);
                Expr { kind: ExprKind::Range { start: None, end: Some(Box::new(end)) }, span }
            }
            Some(Piece::Infix(..)) | None => {
                panic!("bug in mdlc: the grammar lets no expression begin with an operator")
            }
        };
        // Comparisons and ranges do not chain: remember what was just made at this level.
        let mut just_made: Option<Infix> = None;
        while let Some(Piece::Infix(op, op_span)) = pieces.peek() {
            let (op, op_span) = (*op, *op_span);
            let (left_power, right_power) = op.powers();
            if left_power < min {
                break;
            }
            if let Some(made) = just_made
                && made.powers() == op.powers()
                && left_power == 9
            {
                self.chained_comparison(op_span, left.span);
            }
            pieces.next();
            just_made = Some(op);
            if op == Infix::Range && !matches!(pieces.peek(), Some(Piece::Operand(_) | Piece::Prefix(..))) {
                let span = left.span.to(op_span);
                left = Expr { kind: ExprKind::Range { start: Some(Box::new(left)), end: None }, span };
                continue;
            }
            let right = self.climb(pieces, right_power);
            let span = left.span.to(right.span);
            let (left_box, right) = (Box::new(left), Box::new(right));
            let kind = match op {
                Infix::At => ExprKind::At { value: left_box, pattern: right },
                Infix::Range => ExprKind::Range { start: Some(left_box), end: Some(right) },
                Infix::Op(op) => ExprKind::Binary { op, op_span, left: left_box, right },
            };
            left = Expr { kind, span };
        }
        left
    }

    fn chained_comparison(&mut self, op_span: Span, left: Span) {
        self.report(
            Diagnostic::error(Code::E0114, "comparisons cannot be chained")
                .label(op_span, "a second comparison")
                .label(left, "of what is already `true` or `false`")
                .help("join two comparisons with `and`: `a < b and b < c`"),
        );
    }

    /// A primary with its brackets, calls and members.
    fn chain(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let start = self.span(&pair);
        let mut parts = pair.into_inner();
        let Some(primary) = parts.next() else { panic!("bug in mdlc: the grammar promises a value here") };
        let tails: Vec<Pair<'_, Rule>> = parts.collect();
        self.deeper(tails.len(), start, |build| {
            let mut value = build.primary(primary);
            for tail in tails {
                let span = value.span.to(build.span(&tail));
                let base = Box::new(value);
                let kind = match tail.as_rule() {
                    Rule::axes => ExprKind::Bracket { base, axes: build.axes(tail) },
                    Rule::call => ExprKind::Call { callee: base, args: build.call(tail) },
                    _ => ExprKind::Member { base, name: build.name(Parts::new(tail).need(Rule::field_name)) },
                };
                value = Expr { kind, span };
            }
            value
        })
    }

    fn primary(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::quantity => self.number(pair),
            Rule::string => ExprKind::Str(self.string(pair).text),
            Rule::bool => ExprKind::Bool(pair.as_str() == "true"),
            Rule::none => ExprKind::None,
            Rule::training => ExprKind::Training,
            Rule::hole => ExprKind::Hole,
            Rule::name => ExprKind::Name(pair.as_str().to_owned()),
            Rule::copies => return self.nested(span, |build| build.copies(pair)),
            Rule::paren => return self.nested(span, |build| build.paren(pair)),
            Rule::list => return self.nested(span, |build| build.list(pair)),
            Rule::lambda => return self.nested(span, |build| build.lambda(pair)),
            Rule::block => {
                return self.nested(span, |build| Expr { kind: ExprKind::Block(build.block(pair)), span });
            }
            Rule::if_expr => return self.nested(span, |build| build.if_expr(pair)),
            rule => panic!("bug in mdlc: {rule:?} is not an expression"),
        };
        Expr { kind, span }
    }

    fn nested(&mut self, span: Span, make: impl FnOnce(&mut Self) -> Expr) -> Expr {
        self.deeper(1, span, make)
    }

    fn copies(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut parts = Parts::new(pair);
        let word = parts.need(Rule::copies_word);
        let word_span = self.span(&word);
        let axes_pair = parts.need(Rule::axes);
        let axes_span = self.span(&axes_pair);
        let axes = self.axes(axes_pair);
        match parts.accept(Rule::copied) {
            Some(copied) => {
                let kind = if word.as_str() == "repeat" { CopiesKind::Repeat } else { CopiesKind::Each };
                let body = Box::new(self.chain(Parts::new(copied).need(Rule::chain)));
                Expr { kind: ExprKind::Copies { kind, axes, body }, span }
            }
            // A variable that happens to be called `each`, in brackets.
            None => {
                let base = Box::new(Expr { kind: ExprKind::Name(word.as_str().to_owned()), span: word_span });
                Expr { kind: ExprKind::Bracket { base, axes }, span: word_span.to(axes_span) }
            }
        }
    }

    /// A group, a tuple or a record.
    fn paren(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let has_comma = pair.clone().into_inner().any(|part| part.as_rule() == Rule::comma);
        let mut args: Vec<Arg> = self.args(pair);
        let is_record = args.iter().any(|arg| !matches!(arg.kind, ArgKind::Positional(_)));
        if !is_record && args.len() == 1 && !has_comma {
            // Parentheses leave no trace but the span, so that a label underlines what the user sees as one thing.
            return match args.remove(0).kind {
                ArgKind::Positional(value) => Expr { span, ..value },
                kind => panic!("bug in mdlc: {kind:?} in a group"),
            };
        }
        if !is_record {
            let values = args.into_iter().filter_map(|arg| match arg.kind {
                ArgKind::Positional(value) => Some(value),
                ArgKind::Named { .. } | ArgKind::Spread(_) | ArgKind::Trailing(_) => None,
            });
            return Expr { kind: ExprKind::Tuple(values.collect()), span };
        }
        let mut record = Vec::new();
        for arg in args {
            match arg.kind {
                ArgKind::Named { name, value } => record.push(RecordPart::Field { name, value }),
                ArgKind::Spread(value) => record.push(RecordPart::Spread(value)),
                ArgKind::Positional(_) | ArgKind::Trailing(_) => self.report(
                    Diagnostic::error(Code::E0101, "a field of a record has no name")
                        .label(arg.span, "expected `name: value`")
                        .help("a record is `(a: 1, b: 2)`, a tuple `(1, 2)`; they do not mix"),
                ),
            }
        }
        self.refuse_twice(
            "field",
            record.iter().filter_map(|part| match part {
                RecordPart::Field { name, .. } => Some(name),
                RecordPart::Spread(_) => None,
            }),
        );
        Expr { kind: ExprKind::Record(record), span }
    }

    fn list(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut parts = Parts::new(pair);
        let mut elements = Vec::new();
        while let Some(element) = parts.accept(Rule::expr) {
            elements.push(self.expr(element));
        }
        let Some(comprehension) = parts.accept(Rule::comprehension) else {
            return Expr { kind: ExprKind::List(elements), span };
        };
        let Some(element) = elements.pop() else { panic!("bug in mdlc: a comprehension without an element") };
        let mut parts = Parts::new(comprehension);
        let pattern = self.pattern(parts.need(Rule::pattern));
        let source = Box::new(self.expr(parts.need(Rule::expr)));
        let condition = parts.accept(Rule::expr).map(|condition| Box::new(self.expr(condition)));
        Expr { kind: ExprKind::Comprehension { element: Box::new(element), pattern, source, condition }, span }
    }

    fn lambda(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut parts = Parts::new(pair);
        let params = self.params(parts.need(Rule::params));
        let body = Box::new(self.expr(parts.need(Rule::expr)));
        Expr { kind: ExprKind::Lambda { params, body }, span }
    }

    fn if_expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut parts = Parts::new(pair);
        let mut branches = Vec::new();
        while let Some(branch) = parts.accept(Rule::branch) {
            let mut parts = Parts::new(branch);
            let condition = self.expr(parts.need(Rule::expr));
            let body = self.block(parts.need(Rule::block));
            branches.push(Branch { condition, body });
        }
        let otherwise = parts.accept(Rule::block).map(|block| self.block(block));
        Expr { kind: ExprKind::If { branches, otherwise }, span }
    }

    pub(super) fn block(&mut self, pair: Pair<'_, Rule>) -> Block {
        let span = self.span(&pair);
        let mut statements = Vec::new();
        let mut value: Option<Expr> = None;
        for statement in Parts::new(pair) {
            if let Some(unused) = value.take() {
                self.unused(&unused, &statement);
            }
            let span = self.span(&statement);
            let inner = Parts::new(statement).any();
            match inner.as_rule() {
                Rule::expr => value = Some(self.expr(inner)),
                rule => statements.push(Statement { kind: self.statement(rule, inner), span }),
            }
        }
        let value = value.unwrap_or_else(|| {
            let end = Span { start: span.end - 1, ..span };
            let mut diagnostic = Diagnostic::error(Code::E0109, "a block does not end with the value that it gives")
                .label(end, "expected an expression before this `}`");
            if let Some(last) = statements.last() {
                diagnostic = diagnostic.label(last.span, "this gives no value");
            }
            self.report(diagnostic.help("name the result on the last line"));
            Expr { kind: ExprKind::Hole, span: end }
        });
        Block { statements, value: Box::new(value), span }
    }

    fn unused(&mut self, value: &Expr, next: &Pair<'_, Rule>) {
        let help = if next.as_str().starts_with('-') {
            "an operator does not begin a line: end the line before with it, or put the whole in parentheses"
        } else {
            "only the last line of a block is its value; keep this one with `let name = …`"
        };
        self.report(
            Diagnostic::error(Code::E0110, "a value in a block is not used")
                .label(value.span, "computed and forgotten")
                .help(help),
        );
    }

    fn statement(&mut self, rule: Rule, pair: Pair<'_, Rule>) -> StatementKind {
        if rule == Rule::axis_stmt {
            return StatementKind::Axis(self.axis_decls(Parts::new(pair)));
        }
        if rule == Rule::require_stmt {
            return StatementKind::Require(self.require(pair));
        }
        let mut parts = Parts::new(pair);
        if rule == Rule::let_stmt {
            let pattern = self.pattern(parts.need(Rule::pattern));
            let ty = parts.accept(Rule::ty).map(|ty| self.ty(ty));
            return StatementKind::Let { pattern, ty, value: self.expr(parts.need(Rule::expr)) };
        }
        let name = self.name(parts.need(Rule::ident));
        let value = self.expr(parts.need(Rule::expr));
        if rule == Rule::next_stmt { StatementKind::Next { name, value } } else { StatementKind::Loss { name, value } }
    }

    pub(super) fn require(&mut self, pair: Pair<'_, Rule>) -> Require {
        let mut parts = Parts::new(pair);
        let condition = self.expr(parts.need(Rule::expr));
        Require { condition, reason: self.string(parts.need(Rule::string)).text }
    }

    pub(super) fn pattern(&mut self, pair: Pair<'_, Rule>) -> Pattern {
        let span = self.span(&pair);
        let is_group = pair.as_str().starts_with('(');
        let mut inner: Vec<Pair<'_, Rule>> = Parts::new(pair).collect();
        let kind = match inner.first().map(|first| first.as_rule()) {
            Some(Rule::hole) => PatternKind::Wildcard,
            Some(Rule::ident) if !is_group => PatternKind::Name(inner.remove(0).as_str().to_owned()),
            _ => PatternKind::Tuple(inner.into_iter().map(|part| self.pattern(part)).collect()),
        };
        Pattern { kind, span }
    }

    fn call(&mut self, pair: Pair<'_, Rule>) -> Vec<Arg> {
        let lambda = pair.clone().into_inner().find(|part| part.as_rule() == Rule::lambda);
        let mut args = self.args(pair);
        let is_named = |arg: &Arg| matches!(arg.kind, ArgKind::Named { .. });
        if let Some(named) = args.iter().position(is_named)
            && let Some(late) = args[named..].iter().find(|arg| matches!(arg.kind, ArgKind::Positional(_)))
        {
            self.report(
                Diagnostic::error(Code::E0116, "a positional argument after a named one")
                    .label(late.span, "which parameter is this for?")
                    .label(args[named].span, "named here")
                    .help("name it, `name: value`, or move it to the front"),
            );
        }
        self.refuse_twice(
            "argument",
            args.iter().filter_map(|arg| match &arg.kind {
                ArgKind::Named { name, .. } => Some(name),
                ArgKind::Positional(_) | ArgKind::Spread(_) | ArgKind::Trailing(_) => None,
            }),
        );
        if let Some(lambda) = lambda {
            let span = self.span(&lambda);
            let value = self.nested(span, |build| build.lambda(lambda));
            args.push(Arg { kind: ArgKind::Trailing(value), span });
        }
        args
    }

    /// The `arg`s among the parts of a call, a group or a dtype.
    pub(super) fn args(&mut self, pair: Pair<'_, Rule>) -> Vec<Arg> {
        let mut args = Vec::new();
        for arg in pair.into_inner().filter(|part| part.as_rule() == Rule::arg) {
            let span = self.span(&arg);
            let inner = Parts::new(arg).any();
            let kind = match inner.as_rule() {
                Rule::spread => ArgKind::Spread(self.term_expr(Parts::new(inner).need(Rule::term))),
                Rule::named => {
                    let mut parts = Parts::new(inner);
                    let name = self.name(parts.need(Rule::ident));
                    ArgKind::Named { name, value: self.expr(parts.need(Rule::expr)) }
                }
                _ => ArgKind::Positional(self.expr(inner)),
            };
            args.push(Arg { kind, span });
        }
        args
    }
}

fn infix(text: &str) -> Infix {
    Infix::Op(match text {
        "at" => return Infix::At,
        ".." => return Infix::Range,
        "or" => BinaryOp::Or,
        "and" => BinaryOp::And,
        "==" => BinaryOp::Eq,
        "!=" => BinaryOp::Ne,
        "<" => BinaryOp::Lt,
        "<=" => BinaryOp::Le,
        ">" => BinaryOp::Gt,
        ">=" => BinaryOp::Ge,
        "in" => BinaryOp::In,
        "+" => BinaryOp::Add,
        "-" => BinaryOp::Sub,
        "*" => BinaryOp::Mul,
        "/" => BinaryOp::Div,
        "%" => BinaryOp::Rem,
        "^" => BinaryOp::Pow,
        _ => panic!("bug in mdlc: `{text}` is not an operator"),
    })
}
