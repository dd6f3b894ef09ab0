//! `mdlc explain E0204`.

use clap::ArgMatches;

use super::{fail, given};
use crate::exit;
use crate::progress::print_line;

pub(super) fn explain(matches: &ArgMatches) -> u8 {
    let code: String = given(matches, "CODE");
    match mdl_lang::diag::explain(&code.to_uppercase()) {
        Some(page) => {
            print_line(page.trim_end());
            0
        }
        None => {
            fail(&format!("there is no error code {code}; codes look like E0204"));
            exit::USAGE
        }
    }
}
