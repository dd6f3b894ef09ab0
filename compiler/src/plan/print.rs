//! The text of a plan, stable for golden tests: states, slots, kernels, then one step per line.

use std::fmt::{self, Write};

use super::{Arg, Base, KernelId, Plan, Port, SlotId, Step};
use mdl_graph::Axis;

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k{}", self.0)
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Base::Arena => f.write_str("arena"),
            Base::State(state) => write!(f, "state {state}"),
        }
    }
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.slot)?;
        if self.offset != 0 {
            write!(f, "{:+}", self.offset)?;
        }
        for step in &self.moves {
            write!(f, "{:+}·i{}", step.stride, step.depth)?;
        }
        Ok(())
    }
}

fn axes(axes: &[Axis]) -> String {
    axes.iter().map(Axis::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}[{}] {}", self.name, self.dtype, axes(&self.axes), self.slot)
    }
}

impl Plan {
    /// The steps alone, as in the plan's text.
    pub fn steps_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_steps(&mut text, &self.steps, 0);
        text
    }

    fn write_steps(&self, f: &mut dyn Write, steps: &[Step], depth: usize) -> fmt::Result {
        let pad = "  ".repeat(depth);
        for step in steps {
            match step {
                Step::Launch { kernel, args } => {
                    let args = args.iter().map(Arg::to_string).collect::<Vec<_>>().join(", ");
                    writeln!(f, "{pad}{kernel} {}({args})", self.kernel(*kernel).name)?;
                }
                Step::Copy { from, to, bytes } => writeln!(f, "{pad}copy {from} to {to}, {bytes} bytes")?,
                Step::Loop { count, reverse, until, body } => {
                    write!(f, "{pad}loop i{depth} of {count}{}", if *reverse { " reverse" } else { "" })?;
                    if let Some(until) = until {
                        write!(f, " until {until}")?;
                    }
                    writeln!(f, " {{")?;
                    self.write_steps(f, body, depth + 1)?;
                    writeln!(f, "{pad}}}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "arena {} bytes", self.arena_bytes)?;
        for (i, state) in self.states.iter().enumerate() {
            writeln!(f, "state {i} {}: {}[{}], {} bytes", state.name, state.dtype, axes(&state.axes), state.bytes)?;
        }
        for (i, slot) in self.slots.iter().enumerate() {
            let id = SlotId(i as u32);
            writeln!(
                f,
                "{id} {} at {} + {}, {} bytes, {}",
                slot.name, slot.base, slot.offset, slot.bytes, slot.category
            )?;
        }
        for port in &self.io.inputs {
            writeln!(f, "in {port}")?;
        }
        for port in &self.io.outputs {
            writeln!(f, "out {port}")?;
        }
        for (i, kernel) in self.kernels.iter().enumerate() {
            write!(f, "{}: {kernel}", KernelId(i as u32))?;
        }
        self.write_steps(f, &self.steps, 0)
    }
}
