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
