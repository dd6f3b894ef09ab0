//! The table of diagnostic codes: one row each, with its title; the page is `docs/errors/<code>.md`.
//!
//! E01xx syntax · E02xx names, axes, shapes, dtypes · E03xx stages, fields, units · E04xx imports and arguments ·
//! E05xx data · E06xx weights, checkpoints, memory · E07xx not in this version. A code is never reused.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($code:ident: $title:literal;)+) => {
        /// What kind of mistake a diagnostic reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $title] $code,)+ }

        impl Code {
            /// Every code, in order.
            pub const ALL: &[Code] = &[$(Code::$code,)+];

            /// `E0204`
            pub fn text(self) -> &'static str {
                match self { $(Code::$code => stringify!($code),)+ }
            }

            /// What the code means, in one line.
            pub fn title(self) -> &'static str {
                match self { $(Code::$code => $title,)+ }
            }

            /// The whole page of the code.
            pub fn page(self) -> &'static str {
                match self {
                    $(Code::$code => include_str!(concat!("../../../docs/errors/", stringify!($code), ".md")),)+
                }
            }
        }
    };
}

codes! {
    E0101: "something else was expected here";
    E0102: "a bracket is not closed";
    E0103: "a bracket closes nothing";
    E0104: "a string is not closed";
    E0105: "brackets or operators are nested too deeply";
    E0106: "the file is not UTF-8 text";
    E0107: "a character that the language does not use";
    E0108: "a number or unit that cannot be read";
    E0109: "a block does not end with the value that it gives";
    E0110: "a value in a block is not used";
    E0111: "an unknown escape in a string";
    E0112: "this does not open an item";
    E0113: "a reserved word is used as a name";
    E0114: "comparisons cannot be chained";
    E0115: "the same name is given twice";
    E0116: "positional arguments come before named ones";
    E0117: "the file is too large to be a recipe";
    E0201: "a name that is not known here";
    E0202: "an axis that is not in scope";
    E0203: "a tensor lacks an axis";
    E0204: "an axis has two sizes";
    E0205: "an elementwise operation would make an outer product";
    E0206: "axes that a declared type does not name";
    E0207: "a tensor of another dtype than is needed";
    E0208: "arguments or axes that do not fit a call";
    E0209: "a value of another kind than is needed";
    E0210: "an operation on tensors that has no meaning";
    E0211: "a number that cannot be a size";
    E0212: "an axis would be there twice";
    E0213: "a value must be known at compile time";
    E0214: "something needs or calls itself";
    E0215: "a position outside of what is there";
    E0216: "a member or field that does not exist";
    E0217: "brackets or a call where they have no meaning";
    E0218: "a value changes its form on its way around a loop";
    E0219: "a loop uses a whole tensor of which it gets one position";
    E0220: "a state or a loss where it cannot be";
    E0221: "a stage where a value is needed";
    E0222: "a name is defined twice";
    E0223: "a model that cannot be decoded step by step";
    E0224: "a value that the function or layer does not take";
    E0301: "a field that the block does not have";
    E0302: "a field that the block needs is missing";
    E0303: "a value of another kind than the field takes";
    E0304: "a value in another unit than the field takes";
    E0305: "something is given twice";
    E0306: "a value outside of its range";
    E0307: "a kind of block that does not exist";
    E0308: "fields that do not go together";
    E0309: "a function that the field does not know";
    E0310: "arguments that do not fit a function of a field";
    E0311: "a block or a part that does not exist";
    E0312: "a pattern of paths that cannot be read or matches nothing";
    E0313: "a weight that no optimizer takes";
    E0314: "an objective that gives no loss";
    E0315: "a metric that does not exist or is no number";
    E0316: "a block without a name";
    E0317: "a model that cannot be trained";
    E0318: "a step that cannot be cut into pieces";
    E0401: "an import that cannot be found";
    E0402: "a file imports itself";
    E0403: "a file of values that cannot be read";
    E0404: "a setting that the library refuses";
    E0405: "a folder of weights that cannot be read";
    E0406: "weights that do not fit the model";
    E0407: "names that do not fit their layer";
    E0408: "an adapter that the files of PEFT cannot hold";
    E0409: "an adapter that cannot be folded into its layer";
    E0411: "an argument that the recipe does not have";
    E0412: "an argument whose value cannot be read";
    E0413: "an argument that must be given";
    E0414: "an argument of a type that no command line can give";
    E0501: "a data file that cannot be read";
    E0502: "data that is not UTF-8 text";
    E0503: "data without a single token, row or image";
    E0504: "a column that the data does not have";
    E0505: "a row of data that cannot be read";
    E0506: "a label that is missing or that a part lacks";
    E0507: "a data file that is cut off or is not what its name says";
    E0508: "a window that is longer than the text";
    E0509: "a split that leaves a part empty";
    E0510: "a tokenizer that cannot be loaded or trained";
    E0511: "a character that the vocabulary does not have";
    E0512: "data whose fields do not go together";
    E0513: "prepared data that cannot be written";
    E0514: "a chat template that is missing or cannot be used";
    E0515: "a chat that its template cannot spell";
    E0516: "an answer whose end is never learned";
    E0517: "a token that begins a text stands there twice";
    E0518: "a row that is cut before anything of it is learned";
    E0601: "a checkpoint that is damaged or of another model";
    E0602: "a step that needs more memory than it may use";
    E0701: "a kind of block that this version does not have";
    E0702: "a field that this version does not have";
    E0703: "a function of a field that this version does not have";
    E0704: "a use of a feature that this version does not have";
    E0705: "a computation that this version cannot compile";
}

/// The page of a code such as `E0204` (in any case), if there is one.
pub fn explain(code: &str) -> Option<&'static str> {
    Code::ALL.iter().find(|known| known.text().eq_ignore_ascii_case(code.trim())).map(|known| known.page())
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}
