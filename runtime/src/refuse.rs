//! What the compiler refuses, as diagnostics: a step is planned when the recipe is known to be right, and may still be too large for
//! its budget, or of a kind that cannot be cut into pieces.

use mdl_compiler::budget::StepError;
use mdl_graph::Span;
use mdl_lang::diag::{Code, Diagnostic};
use mdl_lang::spec::TrainSpec;

/// What to tell about a stage whose step has no plan. `stage` is the place of its name.
pub fn refused(spec: &TrainSpec, stage: Span, error: &StepError) -> Diagnostic {
    let place = |span: Option<Span>| span.filter(|span| *span != Span::default()).unwrap_or(stage);
    match error {
        StepError::Memory { budget_bytes, least_bytes } => Diagnostic::error(
            Code::E0602,
            format!("a step needs {} at least, and `memory` allows {}", size(*least_bytes), size(*budget_bytes)),
        )
        .label(place(spec.memory.map(|memory| memory.span)), "the most that it may use")
        .help("allow that much, or take a smaller `batch`, or cut it with `micro`"),
        StepError::Pass(error) => Diagnostic::error(Code::E0318, error.message.clone())
            .label(place(Some(error.span)), format!("`micro = {}` cannot cut this", spec.micro))
            .help("leave `micro` out, or save memory with `memory`"),
        StepError::Plan(error, span) => Diagnostic::error(Code::E0705, error.message.clone())
            .label(place(*span), "no kernel computes this")
            .help("write it in another way, and please report it with the recipe"),
    }
}

/// As `memory` takes it, rounded up: what is said to be enough is enough.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..0x100_0000 => format!("{}KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{}MiB", bytes.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!([size(0), size(1025), size(16 << 20), size((32 << 20) + 1)], ["0B", "2KiB", "16MiB", "33MiB"]);
    }
}
