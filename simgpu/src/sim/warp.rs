//! How a warp runs: the fragment with the lowest program counter first, so that lanes meet again where branches join; fragments wait
//! at instructions that need lanes which are not there yet.

use super::memory::lanes;
use super::{Block, Flow, Fragment, Instr, NONE, Warp};

/// Why a warp stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Done,
    Barrier,
    Fault,
}

impl Warp {
    /// At the first instruction, all lanes together.
    pub(crate) fn start(&mut self, limit: u64) {
        self.stop_at = self.n_instr.saturating_add(limit);
        self.live = self.exist;
        self.fragments.clear();
        self.fragments.push(Fragment { pc: 0, mask: self.exist, waits: false });
        self.at_barrier = None;
        self.fault = None;
        self.carry = 0;
        self.copies.clear();
        self.phase += 1;
        self.local.fill(0xff);
    }

    pub(crate) fn pass_barrier(&mut self) {
        if let Some(pc) = self.at_barrier.take() {
            self.phase += 1;
            self.fragments.clear();
            self.fragments.push(Fragment { pc: pc + 1, mask: self.live, waits: false });
        }
    }

    fn merge(&mut self) {
        if self.fragments.len() < 2 {
            return;
        }
        let mut k = 0;
        while k < self.fragments.len() {
            let mut j = k + 1;
            while j < self.fragments.len() {
                if self.fragments[j].pc == self.fragments[k].pc {
                    self.fragments[k].mask |= self.fragments[j].mask;
                    self.fragments[k].waits = false;
                    self.fragments.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            k += 1;
        }
    }

    /// Runs until all lanes exited or stand at one barrier of the block.
    pub(crate) fn run(&mut self, b: &mut Block<'_>) -> Stop {
        let kernel = b.launch.kernel;
        let code: &[Instr] = &kernel.code;
        'choose: loop {
            self.merge();
            let Some(k) =
                (0..self.fragments.len()).filter(|&k| !self.fragments[k].waits).min_by_key(|&k| self.fragments[k].pc)
            else {
                if self.fragments.is_empty() {
                    return Stop::Done;
                }
                match self.all_wait(code) {
                    Some(stop) => return stop,
                    None => continue 'choose,
                }
            };
            let Fragment { mut pc, mask: mut active, .. } = self.fragments[k];
            // Where the next fragment stands: this one stops there, to run on together.
            let join = (0..self.fragments.len())
                .filter(|&j| j != k && self.fragments[j].pc > pc)
                .map(|j| self.fragments[j].pc)
                .min()
                .unwrap_or(u32::MAX);
            loop {
                let i = &code[pc as usize];
                let guarded = if i.guard == NONE {
                    active
                } else {
                    let p = self.preds[i.guard as usize];
                    active & if i.not { !p } else { p }
                };
                self.n_instr += 1;
                self.n_lanes += u64::from(guarded.count_ones());
                match i.flow {
                    Flow::Plain => {
                        if guarded != 0 {
                            self.mask = guarded;
                            (i.op)(self, b, i);
                        }
                        pc += 1;
                    }
                    Flow::Mem => {
                        if guarded != 0 {
                            self.mask = guarded;
                            (i.op)(self, b, i);
                            if self.fault.is_some() {
                                self.pc = pc;
                                return Stop::Fault;
                            }
                        }
                        pc += 1;
                    }
                    Flow::Bra => {
                        let rest = active & !guarded;
                        if self.n_instr > self.stop_at {
                            self.pc = pc;
                            let limit = b.launch.checks.limit;
                            self.fail(lane_of(active), format!("no end after {limit} instructions of a warp"));
                            return Stop::Fault;
                        }
                        if rest == 0 {
                            pc = i.target;
                        } else if guarded == 0 {
                            pc += 1;
                        } else {
                            self.fragments[k] = Fragment { pc: pc + 1, mask: rest, waits: false };
                            self.fragments.push(Fragment { pc: i.target, mask: guarded, waits: false });
                            continue 'choose;
                        }
                    }
                    Flow::BraTable => {
                        let choice = *self.get::<u32>(i.s[0]);
                        self.fragments.swap_remove(k);
                        for lane in lanes(active) {
                            let to = if guarded >> lane & 1 == 0 {
                                pc + 1
                            } else if let Some(&to) = i.list.get(choice[lane] as usize) {
                                to
                            } else {
                                self.pc = pc;
                                self.fail(lane, format!("branch to target {} of {}", choice[lane], i.list.len()));
                                return Stop::Fault;
                            };
                            self.fragments.push(Fragment { pc: to, mask: 1 << lane, waits: false });
                        }
                        continue 'choose;
                    }
                    Flow::Exit => {
                        self.live &= !guarded;
                        active &= !guarded;
                        if active == 0 {
                            self.fragments.swap_remove(k);
                            continue 'choose;
                        }
                        pc += 1;
                        self.fragments[k].mask = active;
                    }
                    Flow::Trap => {
                        if guarded != 0 {
                            self.pc = pc;
                            self.fail(lane_of(guarded), "trap".to_owned());
                            return Stop::Fault;
                        }
                        pc += 1;
                    }
                    Flow::Fence => {
                        if guarded != 0 {
                            b.launch.fence(b);
                        }
                        pc += 1;
                    }
                    Flow::Together | Flow::WarpBarrier | Flow::Barrier => {
                        if guarded != active {
                            // Lanes that do not take part go on alone.
                            self.fragments[k] = Fragment { pc: pc + 1, mask: active & !guarded, waits: false };
                            if guarded != 0 {
                                self.fragments.push(Fragment { pc, mask: guarded, waits: true });
                            }
                            continue 'choose;
                        }
                        let alone = self.fragments.len() == 1;
                        if i.flow == Flow::Barrier && alone && active == self.live {
                            self.fragments[k].pc = pc;
                            self.at_barrier = Some(pc);
                            return Stop::Barrier;
                        }
                        if i.flow != Flow::Barrier && self.ready(i, active, active) {
                            match self.together(b, i, pc, active) {
                                Some(stop) => return stop,
                                None => pc += 1,
                            }
                        } else {
                            self.fragments[k] = Fragment { pc, mask: active, waits: true };
                            continue 'choose;
                        }
                    }
                }
                if pc >= join {
                    self.fragments[k] = Fragment { pc, mask: active, waits: false };
                    continue 'choose;
                }
                debug_assert_eq!(self.fragments[k].mask, active);
            }
        }
    }

    /// The lanes that an instruction asks for, of those that exist.
    fn asked(&mut self, i: &Instr, lane: usize) -> u32 {
        let members = if i.s[3] == NONE { !0 } else { self.get::<u32>(i.s[3])[lane] };
        members & self.exist
    }

    /// Whether all lanes that those of `here` ask for are among `there`.
    fn ready(&mut self, i: &Instr, here: u32, there: u32) -> bool {
        lanes(here).all(|lane| self.asked(i, lane) & !there == 0)
    }

    fn together(&mut self, b: &mut Block<'_>, i: &Instr, pc: u32, active: u32) -> Option<Stop> {
        self.pc = pc;
        for lane in lanes(active) {
            if self.asked(i, lane) >> lane & 1 == 0 {
                self.fail(lane, "the lane is not in its own member mask".to_owned());
                return Some(Stop::Fault);
            }
        }
        self.mask = active;
        (i.op)(self, b, i);
        if i.flow == Flow::WarpBarrier {
            self.phase += 1;
        }
        self.fault.is_some().then_some(Stop::Fault)
    }

    /// Every fragment waits: runs what is complete by now, or says why nothing ever will be.
    fn all_wait(&mut self, code: &[Instr]) -> Option<Stop> {
        // Warp barriers of one mask may stand at several places.
        let mut at_warp_barrier = 0;
        for f in &self.fragments {
            if code[f.pc as usize].flow == Flow::WarpBarrier {
                at_warp_barrier |= f.mask;
            }
        }
        for k in 0..self.fragments.len() {
            let Fragment { pc, mask, .. } = self.fragments[k];
            let i = &code[pc as usize];
            if i.flow == Flow::WarpBarrier && self.ready(i, mask, at_warp_barrier) {
                let lane = lane_of(mask);
                let asked = self.asked(i, lane);
                let mut passed = false;
                for f in &mut self.fragments {
                    if f.mask & asked != 0 && code[f.pc as usize].flow == Flow::WarpBarrier {
                        f.pc += 1;
                        f.waits = false;
                        passed = true;
                    }
                }
                if passed {
                    self.phase += 1;
                    return None;
                }
            }
        }
        let Fragment { pc, mask, .. } = self.fragments[0];
        let i = &code[pc as usize];
        if i.flow == Flow::Barrier && self.fragments.len() == 1 && mask == self.live {
            self.at_barrier = Some(pc);
            return Some(Stop::Barrier);
        }
        self.pc = pc;
        let lane = lane_of(mask);
        let missing = if i.flow == Flow::Barrier { self.live & !mask } else { self.asked(i, lane) & !mask };
        let away = lane_of(missing);
        let name = if i.flow == Flow::Barrier { "a barrier of the block" } else { "a warp-wide instruction" };
        let what = match self.fragments.iter().find(|f| f.mask >> away & 1 != 0) {
            Some(f) => format!(
                "{name} in divergent code: lanes {mask:08x} wait for lane {away}, which waits at PTX line {}",
                code[f.pc as usize].line
            ),
            None => format!("{name} in divergent code: lanes {mask:08x} wait for lane {away}, which has exited"),
        };
        self.fail(lane, what);
        Some(Stop::Fault)
    }
}

fn lane_of(mask: u32) -> usize {
    mask.trailing_zeros() as usize & 31
}
