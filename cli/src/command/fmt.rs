//! `mdlc fmt FILES`: one way to lay out a recipe.

use std::io::Write;
use std::path::PathBuf;

use clap::ArgMatches;
use mdl_lang::diag::Sources;

use super::fail;
use crate::progress::print_line;
use crate::{exit, paint};

pub(super) fn fmt(matches: &ArgMatches, color: bool) -> u8 {
    let check = matches.get_flag("check");
    let mut code = 0;
    for path in matches.get_many::<PathBuf>("FILES").into_iter().flatten() {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                fail(&format!("cannot read {}: {error}", path.display()));
                code = exit::WRONG;
                continue;
            }
        };
        match mdl_lang::syntax::format(&text) {
            Ok(formatted) if formatted == text => {}
            Ok(_) if check => {
                print_line(&format!("{} would change", path.display()));
                code = exit::WRONG;
            }
            Ok(formatted) => {
                if let Err(error) = mdl_data::atomic::write_atomic(path, |to| to.write_all(formatted.as_bytes())) {
                    fail(&format!("cannot write {}: {error}", path.display()));
                    code = exit::FAILED;
                }
            }
            Err(diagnostics) => {
                let mut sources = Sources::new();
                sources.add(path.display().to_string(), text);
                let _ = write!(std::io::stderr(), "{}", paint::paint(&diagnostics, &sources, color));
                code = exit::WRONG;
            }
        }
    }
    code
}
