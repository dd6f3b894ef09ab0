//! What must hold of a plan: kernels are sound, every access stays in its slot, nothing is read that was not written before by
//! the slot that it is read from. The last runs the steps with all their positions, on intervals instead of bytes.

use std::collections::BTreeMap;
use std::fmt;

use mdl_graph::InputKind;

use super::{ALIGN_BYTES, Arg, Base, KernelId, Place, Plan, SlotId, Step};
use crate::kernel::{Buf, BufId, Role};

/// A broken invariant, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError(pub String);

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PlanError {}

macro_rules! ensure {
    ($condition:expr, $($arg:tt)*) => { if !$condition { return Err(PlanError(format!($($arg)*))); } };
}

/// Which slot wrote each byte of the arena last: `start -> (end, slot)`, without overlaps.
#[derive(Default)]
struct Owners(BTreeMap<u64, (u64, SlotId)>);

impl Owners {
    fn write(&mut self, start: u64, end: u64, slot: SlotId) {
        if start >= end {
            return;
        }
        let touched: Vec<(u64, u64, SlotId)> = self
            .0
            .range(..end)
            .rev()
            .take_while(|(_, (to, _))| *to > start)
            .map(|(from, (to, owner))| (*from, *to, *owner))
            .collect();
        for (from, to, owner) in touched {
            self.0.remove(&from);
            if from < start {
                self.0.insert(from, (start, owner));
            }
            if to > end {
                self.0.insert(end, (to, owner));
            }
        }
        self.0.insert(start, (end, slot));
    }

    fn is_owned(&self, start: u64, end: u64, slot: SlotId) -> bool {
        let mut at = start;
        while at < end {
            match self.0.range(..=at).next_back() {
                Some((_, (to, owner))) if *to > at && *owner == slot => at = *to,
                _ => return false,
            }
        }
        true
    }
}

struct Check<'a> {
    plan: &'a Plan,
    owners: Owners,
    positions: Vec<u64>,
}

impl Plan {
    pub fn verify(&self) -> Result<(), PlanError> {
        for (i, kernel) in self.kernels.iter().enumerate() {
            kernel.verify().map_err(|error| PlanError(format!("{}: {error}", KernelId(i as u32))))?;
        }
        for (i, slot) in self.slots.iter().enumerate() {
            let limit = match slot.base {
                Base::Arena => self.arena_bytes,
                Base::State(state) => match self.states.get(state as usize) {
                    Some(state) => state.bytes,
                    None => return Err(PlanError(format!("slot {i} lies in no state"))),
                },
            };
            ensure!(slot.offset.is_multiple_of(ALIGN_BYTES), "slot {i} is not aligned");
            ensure!(slot.offset + slot.bytes <= limit, "slot {i} leaves its {limit} bytes");
        }
        let mut check = Check { plan: self, owners: Owners::default(), positions: Vec::new() };
        for port in &self.io.inputs {
            let slot = self.slot(port.slot);
            ensure!(port.size_bytes() <= slot.bytes, "input {} is larger than its slot", port.name);
            if slot.base == Base::Arena {
                ensure!(port.kind != Some(InputKind::Weight), "weight {} lies in the arena", port.name);
                check.owners.write(slot.offset, slot.offset + slot.bytes, port.slot);
            }
        }
        check.steps(&self.steps)?;
        for port in &self.io.outputs {
            let slot = self.slot(port.slot);
            let owned = slot.base != Base::Arena
                || check.owners.is_owned(slot.offset, slot.offset + port.size_bytes(), port.slot);
            ensure!(owned, "output {} was overwritten or never written", port.name);
        }
        Ok(())
    }
}

impl Check<'_> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), PlanError> {
        for step in steps {
            match step {
                Step::Launch { kernel, args } => self.launch(*kernel, args)?,
                Step::Copy { from, to, bytes } => {
                    let what = || format!("copy {from} to {to}");
                    self.read(from, *bytes, &what)?;
                    self.write(to, *bytes, &what)?;
                }
                Step::Loop { count, reverse, until, body } => {
                    let depth = self.positions.len();
                    self.positions.push(0);
                    for i in 0..*count {
                        self.positions[depth] = if *reverse { count - 1 - i } else { i };
                        self.steps(body)?;
                        if let Some(flag) = until {
                            self.read(flag, 1, &|| "the end of a loop".to_string())?;
                        }
                    }
                    self.positions.pop();
                }
            }
        }
        Ok(())
    }

    fn launch(&mut self, id: KernelId, args: &[Arg]) -> Result<(), PlanError> {
        let Some(kernel) = self.plan.kernels.get(id.0 as usize) else {
            return Err(PlanError(format!("there is no kernel {id}")));
        };
        ensure!(kernel.bufs.len() == args.len(), "{id} has {} buffers and is given {}", kernel.bufs.len(), args.len());
        let bytes = |buf: &Buf| buf.len * buf.dtype.size_bytes();
        let what = |buf: &Buf| format!("{id} {}, {}", kernel.name, buf.name);
        for (buf, arg) in kernel.bufs.iter().zip(args) {
            ensure!(self.plan.slot(arg.slot).dtype == buf.dtype, "{}: another dtype than {arg}", what(buf));
            if buf.role != Role::Write {
                self.read(arg, bytes(buf), &|| what(buf))?;
            }
        }
        for (buf, arg) in kernel.bufs.iter().zip(args) {
            if buf.role != Role::Read {
                self.write(arg, bytes(buf), &|| what(buf))?;
            }
        }
        // Memory that is written and given twice must be the very same, as elementwise kernels in place have it, and nothing in it
        // may be of use to two points of the grid.
        for (i, (buf, arg)) in kernel.bufs.iter().zip(args).enumerate() {
            for (j, (other, other_arg)) in kernel.bufs.iter().zip(args).enumerate().skip(i + 1) {
                if buf.role == Role::Read && other.role == Role::Read {
                    continue;
                }
                let (a, b) = (self.place(arg), self.place(other_arg));
                let apart = a.base != b.base
                    || a.offset + bytes(buf) <= b.offset
                    || b.offset + bytes(other) <= a.offset
                    || buf.len == 0
                    || other.len == 0;
                let same = a == b && bytes(buf) == bytes(other) && (buf.role == Role::Read || other.role == Role::Read);
                ensure!(apart || same, "{}: overlaps {}", what(buf), other.name);
                if !apart {
                    let (read, write) = if buf.role == Role::Read { (i, j) } else { (j, i) };
                    let (from, to) = (BufId(read as u32), BufId(write as u32));
                    let is_safe = kernel.may_overwrite(from, to) && kernel.reads_first(from, to);
                    ensure!(is_safe, "{}: is read at one point and written at another, {}", what(buf), other.name);
                }
            }
        }
        Ok(())
    }

    fn place(&self, arg: &Arg) -> Place {
        let slot = self.plan.slot(arg.slot);
        let moved: i64 = arg.moves.iter().map(|step| step.stride * self.positions[step.depth as usize] as i64).sum();
        Place { base: slot.base, offset: (slot.offset as i64 + arg.offset + moved) as u64 }
    }

    fn span(&self, arg: &Arg, bytes: u64, what: &dyn Fn() -> String) -> Result<Place, PlanError> {
        let (slot, place) = (self.plan.slot(arg.slot), self.place(arg));
        let inside = place.offset >= slot.offset && place.offset + bytes <= slot.offset + slot.bytes;
        ensure!(bytes == 0 || inside, "{}: {arg} leaves its slot at {:?}", what(), self.positions);
        Ok(place)
    }

    fn read(&self, arg: &Arg, bytes: u64, what: &dyn Fn() -> String) -> Result<(), PlanError> {
        let place = self.span(arg, bytes, what)?;
        let owned = place.base != Base::Arena || self.owners.is_owned(place.offset, place.offset + bytes, arg.slot);
        ensure!(owned, "{}: reads {arg}, which is not written, at {:?}", what(), self.positions);
        Ok(())
    }

    fn write(&mut self, arg: &Arg, bytes: u64, what: &dyn Fn() -> String) -> Result<(), PlanError> {
        let place = self.span(arg, bytes, what)?;
        if place.base == Base::Arena {
            self.owners.write(place.offset, place.offset + bytes, arg.slot);
        }
        Ok(())
    }
}
