//! A recipe from the disk, checked.

use std::path::Path;

use mdl_lang::diag::{Diagnostic, Sources};
use mdl_lang::spec::{self, Program};
use mdl_lang::syntax::ast::FileId;

use crate::args::Common;
use crate::world::Disk;

/// A recipe that was read, and what is wrong with it.
pub(crate) struct Loaded {
    pub(crate) sources: Sources,
    pub(crate) main: FileId,
    pub(crate) program: Program,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// The recipe's `arg`s, as far as the file can be read; for `--help`.
pub(crate) fn recipe_args(path: &Path) -> Vec<spec::Arg> {
    let Ok(bytes) = std::fs::read(path) else { return Vec::new() };
    let mut sources = Sources::new();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let main = sources.add(path.display().to_string(), text.clone());
    let (file, _) = mdl_lang::syntax::parse(main, &text);
    mdl_lang::stage::args_of(&file, &sources)
}

/// Reads and checks a recipe. `Err` when the file itself cannot be read.
pub(crate) fn check(common: &Common, cache: Option<&Path>) -> Result<Loaded, String> {
    let path = &common.recipe;
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut sources = Sources::new();
    let name = path.display().to_string();
    // The first file of a compilation.
    let main = FileId(0);
    match mdl_lang::syntax::decode(main, bytes.clone()) {
        Ok(text) => sources.add(name, text),
        Err(diagnostic) => {
            sources.add(name, String::from_utf8_lossy(&bytes).into_owned());
            return Ok(Loaded { sources, main, program: Program::default(), diagnostics: vec![diagnostic] });
        }
    };
    let world = Disk::new(common.base(), cache.map(Path::to_path_buf));
    let (program, diagnostics) = mdl_lang::stage::check(&mut sources, main, &common.given, &world);
    Ok(Loaded { sources, main, program, diagnostics })
}
