//! `mdlc explain E0204`: the page of a code; `mdlc explain train`: the manual of a kind of block.

use clap::ArgMatches;
use mdl_lang::stage;

use super::{fail, given};
use crate::exit;
use crate::progress::print_line;

pub(super) fn explain(matches: &ArgMatches) -> u8 {
    let what: String = given(matches, "WHAT");
    let page = mdl_lang::diag::explain(&what).map(str::to_owned).or_else(|| stage::manual(&what.to_lowercase()));
    match page {
        Some(page) => {
            print_line(page.trim_end());
            0
        }
        None => {
            let kinds: Vec<&str> = stage::kinds().iter().filter(|kind| !kind.later).map(|kind| kind.name).collect();
            let known = kinds.join(", ");
            fail(&format!("there is no error code or kind of block {what}; codes look like E0204, kinds are {known}"));
            exit::USAGE
        }
    }
}
