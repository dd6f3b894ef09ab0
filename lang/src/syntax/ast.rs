//! The syntax tree of a `.mdl` file: what the parser gives and the checker reads.
//!
//! Every node carries its `Span`. Nothing is resolved here: a name is text, a bracket is a list of axis items, and what
//! either means is the checker's business. Three things are left open on purpose, because only meaning can settle them:
//! `depths[i]` is an `AxisItemKind::Axis` even when `depths` turns out to be a list; a type that is one name (`f32`,
//! `Int`, `Linear`) is `TypeKind::Name` whether it is a dtype or not; and a stage of any kind with any field is a `Stage`.
//! Comments and parentheses are not kept (the formatter works on tokens); doc comments are.

use serde::Serialize;

pub use mdl_graph::{FileId, Span};

/// An identifier. A twin keeps its primes in the text: `t'`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Name {
    pub text: String,
    pub span: Span,
}

/// A string literal with its escapes resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Str {
    pub text: String,
    pub span: Span,
}

/// One `.mdl` file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct File {
    pub id: FileId,
    /// The `//!` lines, joined by newlines; empty if there are none.
    pub docs: String,
    pub items: Vec<Item>,
}

/// What stands at the outer level of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// The `///` lines above it, joined by newlines; empty if there are none.
    pub docs: String,
    pub kind: ItemKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ItemKind {
    Use(Use),
    Arg(ArgDecl),
    /// `axis t = 256, width = 384`
    Axis(Vec<AxisDecl>),
    Names(Names),
    Layer(Layer),
    Fn(FnDef),
    Optimizer(Optimizer),
    Stage(Stage),
    /// `model gpt = expr`
    Model {
        name: Name,
        value: Expr,
    },
    /// An item with a syntax error, already reported; whoever looks up its name should stay silent.
    Broken {
        name: Option<Name>,
    },
}

impl Item {
    /// The name that the item gives to something, if it is one name.
    pub fn name(&self) -> Option<&Name> {
        match &self.kind {
            ItemKind::Arg(arg) => Some(&arg.name),
            ItemKind::Layer(layer) => Some(&layer.name),
            ItemKind::Fn(def) => Some(&def.name),
            ItemKind::Optimizer(optimizer) => Some(&optimizer.name),
            ItemKind::Stage(stage) => stage.name.as_ref(),
            ItemKind::Model { name, .. } => Some(name),
            ItemKind::Broken { name } => name.as_ref(),
            // `names` has a space of its own: that of the layers.
            ItemKind::Use(_) | ItemKind::Axis(_) | ItemKind::Names(_) => None,
        }
    }
}

/// `use std.models.Gpt`, `use "blocks.mdl" (Block)`, `use "https://…/rope.mdl" sha256:…`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Use {
    pub from: UseFrom,
    /// The digest that pins an address, without `sha256:`.
    pub sha256: Option<Name>,
    /// The names in parentheses; `None` takes everything that the file defines.
    pub names: Option<Vec<Name>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum UseFrom {
    /// `std.models.Gpt`: at least one step.
    Path(Vec<Name>),
    /// A path relative to the file, or an address.
    File(Str),
}

/// `arg steps: Int = 5_000`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArgDecl {
    pub name: Name,
    pub ty: Option<Type>,
    pub default: Option<Expr>,
}

/// One `key = width / heads` of an `axis` line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxisDecl {
    pub name: Name,
    pub size: Expr,
    pub span: Span,
}

/// `names llama { path = "name in the file" [order of axes] }`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Names {
    pub name: Name,
    pub rows: Vec<NamesRow>,
}

/// `q.w, k.w = "c_attn" [width, (head, key) | (head, key)]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamesRow {
    /// One path per weight that the tensor in the file holds; each is at least one step: a member, a position in a list,
    /// or `{i}`, every position. `_` alone is what a file may have besides.
    pub paths: Vec<Vec<Name>>,
    pub tensor: Str,
    /// Per dimension of the tensor: its parts (split by `|`), each a list of axes merged into it; of `1`, none.
    pub order: Option<Vec<Vec<Vec<AxisRef>>>>,
    pub span: Span,
}

/// `layer X[a, b: 4 * a -> ..to](params) { members }`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    pub name: Name,
    /// Items are `Axis` or `Bind` (an axis with a default size).
    pub header: Option<Axes>,
    pub params: Vec<Param>,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    pub docs: String,
    pub kind: MemberKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum MemberKind {
    Axis(Vec<AxisDecl>),
    /// `weight w: [..from -> ..to] = init if bias`, one or several after commas.
    Weight(Vec<Stored>),
    /// `state m = zeros(), v = zeros()`
    State(Vec<Stored>),
    /// `skip = Conv2d[from -> to](taps: 1) if stride > 1`
    Let {
        name: Name,
        value: Expr,
        condition: Option<Expr>,
    },
    Require(Require),
    Fn(FnDef),
}

/// One weight or one state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stored {
    pub name: Name,
    pub ty: Option<Type>,
    pub init: Expr,
    pub condition: Option<Expr>,
    pub span: Span,
}

/// `optimizer name(params) for [..from -> ..to] { members }`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    pub name: Name,
    pub params: Vec<Param>,
    /// The weights that it takes; `None` takes all.
    pub target: Option<Axes>,
    pub members: Vec<Member>,
}

/// `fn name[header](params)(params) -> type = body`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FnDef {
    pub name: Name,
    pub header: Option<Axes>,
    /// One list, or two: the first makes the function, the second is the call.
    pub params: Vec<Vec<Param>>,
    pub result: Option<Type>,
    pub body: Expr,
}

/// A parameter of a function, a layer, an optimizer or a lambda.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Param {
    pub pattern: Pattern,
    pub ty: Option<Type>,
    pub default: Option<Expr>,
    pub span: Span,
}

/// `train base { field = expr … }`; `parallel { … }` has no name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    pub kind: Name,
    pub name: Option<Name>,
    pub fields: Vec<Field>,
    /// Without braces, `parallel = auto(devices: 64)`: then `fields` is empty.
    pub value: Option<Expr>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    pub name: Name,
    pub value: Expr,
    pub span: Span,
}

/// A type as written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Type {
    pub kind: TypeKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum TypeKind {
    /// `Int`, `Float`, `Schedule`, `Layer`, `Linear`, and a dtype alone: `f32`.
    Name(Name),
    /// `f32[batch, t]`, `[.., ..over]`, `int[..]`, `q8(block: 256)`, `q8(block: 256)[..from -> ..to]`
    Tensor { dtype: Option<Dtype>, axes: Option<Axes> },
    /// `Int?`
    Optional(Box<Type>),
    /// `[Int]`: one name in brackets that begins with a capital and has more than one letter.
    List(Box<Type>),
    /// `([.., t, vocab], [.., answer])`
    Tuple(Vec<Type>),
    /// `(loss: f32, accuracy: f32)`
    Record(Vec<(Name, Type)>),
}

/// `f32`, `int`, `q8(block: 256)`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dtype {
    pub name: Name,
    /// Empty without parentheses.
    pub args: Vec<Arg>,
    pub span: Span,
}

/// What square brackets after something hold: `[a, b -> c]`, `[t as s]`, `[t = -1]`, `[t: s]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Axes {
    /// What stands left of the arrow; `None` without an arrow.
    pub from: Option<Vec<AxisItem>>,
    /// What stands right of the arrow, or everything without one.
    pub items: Vec<AxisItem>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxisItem {
    pub kind: AxisItemKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum AxisItemKind {
    /// `t`, `t'`, `..from`, `..`, `base.width`; also a list indexed by a name, `depths[i]`.
    Axis(AxisRef),
    /// `t as s`, `width as (head: 6, key)`, `(head, key) as width`, `row as (row, i: 3)`, `t as spot: 4`
    Rename { from: Side, to: Side },
    /// `t = -1`, `t = spot`, `t = 0..10`: the value may be `ExprKind::Range`.
    Index { axis: AxisRef, value: Expr },
    /// `head: 6`, `t: s`, `s: t'`, `vocab: plays.vocab`, `hidden: 4 * width`
    Bind { axis: AxisRef, value: Expr },
    /// `depths[0]`, `rows[..128]`: an index into a list or a dataset; may be `ExprKind::Range`.
    Value(Expr),
}

/// One side of `as`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    pub parts: Vec<Part>,
    /// Written `(a, b)`, so also `(a)` differs from `a`.
    pub is_group: bool,
    pub span: Span,
}

/// One axis of a side; a size only stands right of `as`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub axis: AxisRef,
    pub size: Option<Expr>,
}

/// An axis as named in brackets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxisRef {
    /// `..from`, `..base.to`; with an empty `path`, `..`: whatever else there is.
    pub is_pack: bool,
    /// The steps of the name, `base.width`; the last may be a twin's, `t'` (primes are in the text).
    pub path: Vec<Name>,
    pub span: Span,
}

impl AxisRef {
    /// `..` alone.
    pub fn is_rest(&self) -> bool {
        self.is_pack && self.path.is_empty()
    }

    /// The name, when it is one step and no pack.
    pub fn as_name(&self) -> Option<&Name> {
        match self.path.as_slice() {
            [name] if !self.is_pack => Some(name),
            _ => None,
        }
    }

    /// As written: `..base.from`, `t'`.
    pub fn text(&self) -> String {
        let steps: Vec<&str> = self.path.iter().map(|step| step.text.as_str()).collect();
        format!("{}{}", if self.is_pack { ".." } else { "" }, steps.join("."))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expr {
    pub kind: ExprKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ExprKind {
    /// `5_000`, `4M`
    Int(i64),
    /// `1e-3`, `0.5`
    Float(f64),
    /// `16GiB`, `250ms`, `90%`, `4M tokens`
    Quantity {
        /// In the unit's base: bytes, seconds, a fraction (90% is 0.9), a count.
        value: f64,
        unit: Unit,
    },
    Str(String),
    Bool(bool),
    /// `none`
    None,
    /// `training`: a compile-time `Bool`.
    Training,
    /// `_` as an argument: left open.
    Hole,
    /// A name, also a twin's, `t'`.
    Name(String),
    /// `(a, b)`; `()` is the empty one. One expression in parentheses is that expression.
    Tuple(Vec<Expr>),
    /// `(a: 1, ..r)`
    Record(Vec<RecordPart>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `[f(i) for i in 0..4 if i != 2]`
    Comprehension {
        element: Box<Expr>,
        pattern: Pattern,
        source: Box<Expr>,
        condition: Option<Box<Expr>>,
    },
    /// `0..4`, `2..`, `..128`
    Range {
        start: Option<Box<Expr>>,
        end: Option<Box<Expr>>,
    },
    /// `fn(x, (a, b)) = body`
    Lambda {
        params: Vec<Param>,
        body: Box<Expr>,
    },
    /// `{ let … expr }`
    Block(Block),
    /// `if a { … } else if b { … } else { … }`
    If {
        branches: Vec<Branch>,
        otherwise: Option<Block>,
    },
    Unary {
        op: UnaryOp,
        value: Box<Expr>,
    },
    /// `op_span` is that of the operator.
    Binary {
        op: BinaryOp,
        op_span: Span,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    /// `base[axes]`: a slice, a rename, a gather, an index into a list, or a function with its axes given.
    Bracket {
        base: Box<Expr>,
        axes: Axes,
    },
    /// `callee(args)`; a trailing lambda is the last argument.
    Call {
        callee: Box<Expr>,
        args: Vec<Arg>,
    },
    /// `base.name`
    Member {
        base: Box<Expr>,
        name: Name,
    },
    /// `repeat[layer] body`, `each[expert] body`
    Copies {
        kind: CopiesKind,
        axes: Axes,
        body: Box<Expr>,
    },
    /// `value at "pattern"`
    At {
        value: Box<Expr>,
        pattern: Box<Expr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Unit {
    Percent,
    Bytes,
    Seconds,
    /// `tokens`, `steps`, `epochs`, …
    Count(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum CopiesKind {
    /// One after another.
    Repeat,
    /// Side by side.
    Each,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RecordPart {
    Field {
        name: Name,
        value: Expr,
    },
    /// `..r`
    Spread(Expr),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Branch {
    pub condition: Expr,
    pub body: Block,
}

/// `{ statements… value }`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Block {
    pub statements: Vec<Statement>,
    pub value: Box<Expr>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statement {
    pub kind: StatementKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum StatementKind {
    /// `let (a, b): type = value`
    Let {
        pattern: Pattern,
        ty: Option<Type>,
        value: Expr,
    },
    /// `next m = value`
    Next {
        name: Name,
        value: Expr,
    },
    /// `loss balance = value`
    Loss {
        name: Name,
        value: Expr,
    },
    /// `axis z = noise`
    Axis(Vec<AxisDecl>),
    Require(Require),
}

/// `require rate < 1, "some must be left"`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Require {
    pub condition: Expr,
    /// Why: what the diagnostic says when the condition does not hold.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pattern {
    pub kind: PatternKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PatternKind {
    Name(String),
    /// `_`
    Wildcard,
    Tuple(Vec<Pattern>),
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Arg {
    pub kind: ArgKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ArgKind {
    Positional(Expr),
    Named {
        name: Name,
        value: Expr,
    },
    /// `..r`: the fields of a record as named arguments.
    Spread(Expr),
    /// `fn(h, x) = …` after the parentheses.
    Trailing(Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum UnaryOp {
    Neg,
    Not,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum BinaryOp {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Pow,
}

impl BinaryOp {
    /// As written in a recipe.
    pub fn text(self) -> &'static str {
        match self {
            Self::Or => "or",
            Self::And => "and",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::In => "in",
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Rem => "%",
            Self::Pow => "^",
        }
    }
}
