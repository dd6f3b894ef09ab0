//! What the tests of this crate share: specs in few words, scratch folders, real data where it lies beside the checkout.

use mdl_graph::{Axis, Span};
use mdl_lang::spec::{DataSpec, Form, Part, Share, Source, Split, Tokenizer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that is removed when the test ends.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static N: AtomicU32 = AtomicU32::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mdl-data-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).expect("a scratch folder");
        Scratch(path)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Scratch {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("inside")).expect("a folder");
        fs::write(path, bytes).expect("a file");
        self
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file of the data that lies beside the checkout, where it does.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    path.exists().then_some(path)
}

pub(crate) fn spec(source: Source) -> DataSpec {
    let split = Split { parts: Vec::new(), stratify: false };
    DataSpec {
        sources: vec![source],
        tokenizer: Some(Tokenizer::Chars),
        template: None,
        split,
        form: window(8),
        order: None,
        seed: 1,
    }
}

pub(crate) fn window(size: u64) -> Form {
    Form::Window { axis: Axis::new("t", size) }
}

pub(crate) fn pad(size: u64) -> Form {
    Form::Pad { axis: Axis::new("t", size) }
}

pub(crate) fn shares(parts: &[(&str, f64)]) -> Split {
    let part = |&(name, share): &(&str, f64)| Part { name: name.to_string(), share: Share::Fraction(share) };
    Split { parts: parts.iter().map(part).collect(), stratify: false }
}

pub(crate) fn files(parts: &[(&str, Source)]) -> Split {
    let part =
        |(name, source): &(&str, Source)| Part { name: name.to_string(), share: Share::Sources(vec![source.clone()]) };
    Split { parts: parts.iter().map(part).collect(), stratify: false }
}

pub(crate) fn nowhere() -> Span {
    Span::default()
}

pub(crate) fn text(path: &str) -> Source {
    Source::Text { path: path.to_string(), span: nowhere() }
}

pub(crate) fn jsonl(path: &str, text: &str, label: Option<&str>) -> Source {
    let (path, text, label) = (path.to_string(), text.to_string(), label.map(str::to_string));
    Source::Jsonl { path, text, label, span: nowhere() }
}

pub(crate) fn csv(path: &str, header: bool, delimiter: char, text: &str, label: Option<&str>) -> Source {
    let (path, text, label) = (path.to_string(), text.to_string(), label.map(str::to_string));
    Source::Csv { path, text, label, header, delimiter, span: nowhere() }
}

pub(crate) fn lines(path: &str) -> Source {
    Source::Lines { path: path.to_string(), span: nowhere() }
}

pub(crate) fn idx(images: &str, labels: &str) -> Source {
    Source::Idx { images: images.to_string(), labels: labels.to_string(), span: nowhere() }
}

pub(crate) fn addition(digits: u32) -> Source {
    Source::Addition { digits, span: nowhere() }
}

pub(crate) fn random_tokens(vocab: u64, count: u64) -> Source {
    Source::RandomTokens { vocab, count, span: nowhere() }
}

pub(crate) fn chats(path: &str) -> Source {
    let columns = mdl_lang::spec::ChatColumns::default();
    Source::Chat { path: path.to_string(), format: None, columns, long: mdl_lang::spec::Long::Cut, span: nowhere() }
}

pub(crate) fn pack(size: u64) -> Form {
    Form::Pack { axis: Axis::new("t", size) }
}
