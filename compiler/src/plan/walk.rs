//! Runs the steps of a plan: loops, moving addresses, flags; the machine does the work. Nothing is allocated during a walk.

use super::{Arg, Base, KernelId, Plan, Step};

/// What executes launches and copies. Addresses are a base and a byte offset from it.
pub trait Machine {
    type Error;

    /// `args` are the addresses of the kernel's `bufs`, in order.
    fn launch(&mut self, kernel: KernelId, args: &[Place]) -> Result<(), Self::Error>;

    fn copy(&mut self, from: Place, to: Place, bytes: u64) -> Result<(), Self::Error>;

    /// The `bool` at a place: all that was launched before is done when this returns.
    fn flag(&mut self, at: Place) -> Result<bool, Self::Error>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub base: Base,
    pub offset: u64,
}

/// The scratch of a walk: make it once, walk once per step.
#[derive(Clone, Debug)]
pub struct Walker {
    positions: Vec<u64>,
    places: Vec<Place>,
}

impl Walker {
    pub fn new(plan: &Plan) -> Walker {
        let (depth, args) = extent(&plan.steps);
        Walker { positions: Vec::with_capacity(depth), places: Vec::with_capacity(args) }
    }

    /// Runs all steps once.
    pub fn walk<M: Machine>(&mut self, plan: &Plan, machine: &mut M) -> Result<(), M::Error> {
        self.positions.clear();
        self.steps(plan, &plan.steps, machine)
    }

    fn steps<M: Machine>(&mut self, plan: &Plan, steps: &[Step], machine: &mut M) -> Result<(), M::Error> {
        for step in steps {
            match step {
                Step::Launch { kernel, args } => {
                    self.places.clear();
                    for arg in args {
                        let place = self.place(plan, arg);
                        self.places.push(place);
                    }
                    machine.launch(*kernel, &self.places)?;
                }
                Step::Copy { from, to, bytes } => {
                    machine.copy(self.place(plan, from), self.place(plan, to), *bytes)?;
                }
                Step::Loop { count, reverse, until, body } => {
                    let depth = self.positions.len();
                    self.positions.push(0);
                    for i in 0..*count {
                        self.positions[depth] = if *reverse { count - 1 - i } else { i };
                        self.steps(plan, body, machine)?;
                        if let Some(flag) = until
                            && machine.flag(self.place(plan, flag))?
                        {
                            break;
                        }
                    }
                    self.positions.pop();
                }
            }
        }
        Ok(())
    }

    fn place(&self, plan: &Plan, arg: &Arg) -> Place {
        let slot = plan.slot(arg.slot);
        let moved: i64 = arg.moves.iter().map(|step| step.stride * self.positions[step.depth as usize] as i64).sum();
        Place { base: slot.base, offset: (slot.offset as i64 + arg.offset + moved) as u64 }
    }
}

/// The greatest depth of loops and number of arguments.
fn extent(steps: &[Step]) -> (usize, usize) {
    let mut most = (0, 0);
    for step in steps {
        let (depth, args) = match step {
            Step::Launch { args, .. } => (0, args.len()),
            Step::Copy { .. } => (0, 0),
            Step::Loop { body, .. } => {
                let (depth, args) = extent(body);
                (depth + 1, args)
            }
        };
        most = (most.0.max(depth), most.1.max(args));
    }
    most
}
