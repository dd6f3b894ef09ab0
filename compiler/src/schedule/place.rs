//! Offsets in the arena: buffers whose lifetimes meet do not overlap, and the whole is small.
//!
//! Greedy: the largest buffer first, each at the lowest gap that holds it (Pisarchyk and Lee 2020, arXiv:2001.03288). The order of
//! first use is tried too, and pairs of what leaves with what comes in its stead; the smallest result is taken.
//!
//! What a loop stacks comes to life slice by slice, and what it scans is done with slice by slice. So the gradients that a backward loop
//! stacks may move into what the forward loop saved as that is read: lifetimes are those of slices, offsets those of whole buffers.

use crate::plan::ALIGN_BYTES;

/// A loop that touches one slice of a buffer in each pass. Ticks include all that the loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stairs {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) count: u64,
    pub(super) reverse: bool,
}

/// Loops of more passes are not looked into: the time that placing takes grows with the square.
pub(super) const MOST_SLICES: u64 = 64;

impl Stairs {
    /// The pass that touches a slice.
    fn pass(self, slice: u64) -> u64 {
        if self.reverse { self.count - 1 - slice } else { slice }
    }
}

/// A buffer is live from `first` to `last`, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) bytes: u64,
    pub(super) first: usize,
    pub(super) last: usize,
    /// The loop that makes it; its first tick is `first`.
    pub(super) comes: Option<Stairs>,
    /// The loop that reads it last; its last tick is `last`.
    pub(super) goes: Option<Stairs>,
}

/// Part of the life of a slice: some ticks and, within one loop, some of its passes.
#[derive(Clone, Copy, Debug)]
struct Life {
    first: usize,
    last: usize,
    /// The loop, its first and its last pass.
    passes: Option<(Stairs, u64, u64)>,
}

impl Life {
    fn meets(&self, other: &Life) -> bool {
        let passes = match (&self.passes, &other.passes) {
            (Some((a, a_first, a_last)), Some((b, b_first, b_last))) if (a.first, a.last) == (b.first, b.last) => {
                a_first <= b_last && b_first <= a_last
            }
            _ => true,
        };
        passes && self.first <= other.last && other.first <= self.last
    }
}

impl Span {
    /// The number of slices that live and die on their own.
    fn slices(&self) -> u64 {
        let count = self.comes.or(self.goes).map_or(1, |stairs| stairs.count);
        let agree = self.comes.iter().chain(&self.goes).all(|stairs| stairs.count == count);
        if agree && count > 0 && self.bytes.is_multiple_of(count) { count } else { 1 }
    }

    fn lives(&self, slices: u64, slice: u64) -> [Option<Life>; 3] {
        let (comes, goes) = if slices > 1 { (self.comes, self.goes) } else { (None, None) };
        let first = comes.map_or(self.first, |stairs| stairs.last + 1);
        let last = goes.map_or(self.last, |stairs| stairs.first.saturating_sub(1));
        [
            comes.map(|stairs| Life {
                first: self.first,
                last: stairs.last,
                passes: Some((stairs, stairs.pass(slice), stairs.count - 1)),
            }),
            (first <= last).then_some(Life { first, last, passes: None }),
            goes.map(|stairs| Life {
                first: stairs.first,
                last: self.last,
                passes: Some((stairs, 0, stairs.pass(slice))),
            }),
        ]
    }
}

pub(super) struct Placed {
    pub(super) offsets: Vec<u64>,
    /// Of the whole arena.
    pub(super) bytes: u64,
    /// The most bytes live at once: no placement needs less.
    pub(super) bound: u64,
    /// The bytes of each buffer that are live then.
    pub(super) live: Vec<u64>,
}

pub(super) fn place(spans: &[Span]) -> Placed {
    let live = most_live(spans);
    let bound = live.iter().sum();
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(spans[*at].bytes), spans[*at].first, *at));
    let by_size = greedy(spans, &order);
    let by_pairs = [false, true].map(|larger| greedy(spans, &paired(spans, &order, larger)));
    order.sort_by_key(|at| (spans[*at].first, std::cmp::Reverse(spans[*at].bytes), *at));
    let by_time = greedy(spans, &order);
    let mut best = by_size;
    for other in by_pairs.into_iter().chain([by_time]) {
        if other.1 < best.1 {
            best = other;
        }
    }
    let (offsets, bytes) = best;
    Placed { offsets, bytes, bound, live }
}

/// This order, but right after what a loop is done with slice by slice comes what that loop makes so, the largest that has room there or
/// the smallest that is `larger` (then nothing that loops make so comes sooner): before the next buffer closes the gap that the two need
/// at one end.
fn paired(spans: &[Span], order: &[usize], larger: bool) -> Vec<usize> {
    let is_late = |at: &usize| larger && spans[*at].comes.is_some() && spans[*at].goes.is_none();
    let (late, mut left): (Vec<usize>, Vec<usize>) = order.iter().copied().partition(is_late);
    left.extend(late);
    let mut paired = Vec::with_capacity(order.len());
    while !left.is_empty() {
        let host = left.remove(0);
        paired.push(host);
        let Some(goes) = spans[host].goes else { continue };
        let comes = |at: &usize| {
            let loops = spans[*at].comes.is_some_and(|comes| (comes.first, comes.last) == (goes.first, goes.last));
            loops && (larger == (spans[*at].bytes > spans[host].bytes))
        };
        let guest = if larger { left.iter().rposition(comes) } else { left.iter().position(comes) };
        if let Some(guest) = guest {
            paired.push(left.remove(guest));
        }
    }
    paired
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN_BYTES)
}

fn greedy(spans: &[Span], order: &[usize]) -> (Vec<u64>, u64) {
    let lives: Vec<Vec<[Option<Life>; 3]>> = spans
        .iter()
        .map(|span| {
            let slices = span.slices();
            (0..slices).map(|slice| span.lives(slices, slice)).collect()
        })
        .collect();
    let mut offsets = vec![0; spans.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(spans.len());
    let mut total = 0;
    for at in order {
        let span = &spans[*at];
        if span.bytes == 0 {
            continue;
        }
        // Where it may not begin: strictly between these.
        let mut taken: Vec<(i64, i64)> = Vec::new();
        for other in placed.iter().copied() {
            if spans[other].first > span.last || span.first > spans[other].last {
                continue;
            }
            let (own, theirs) = (&lives[*at], &lives[other]);
            let (size, their_size) = (span.bytes / own.len() as u64, spans[other].bytes / theirs.len() as u64);
            for (i, own) in own.iter().enumerate() {
                // The slices of a run leave one gap.
                let mut run: Option<(u64, u64)> = None;
                for (j, theirs) in theirs.iter().enumerate() {
                    let meet = own.iter().flatten().any(|life| theirs.iter().flatten().any(|other| life.meets(other)));
                    let (start, end) = (j as u64 * their_size, (j as u64 + 1) * their_size);
                    match (&mut run, meet) {
                        (Some((_, to)), true) => *to = end,
                        (None, true) => run = Some((start, end)),
                        (Some(done), false) => {
                            taken.push(between(*done, offsets[other], i as u64, size));
                            run = None;
                        }
                        (None, false) => {}
                    }
                }
                taken.extend(run.map(|run| between(run, offsets[other], i as u64, size)));
            }
        }
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset as i64 {
                break;
            }
            if end > offset as i64 {
                offset = aligned(end as u64);
            }
        }
        offsets[*at] = offset;
        total = total.max(offset + aligned(span.bytes));
        placed.push(*at);
    }
    (offsets, total)
}

/// The offsets at which slice `at` of this size would meet the bytes `run` of a buffer: strictly between the two.
fn between(run: (u64, u64), offset: u64, at: u64, size: u64) -> (i64, i64) {
    let (start, end) = ((offset + run.0) as i64, (offset + run.1) as i64);
    (start - (at as i64 + 1) * size as i64, end - at as i64 * size as i64)
}

/// The bytes of each buffer that are live when the most are.
fn most_live(spans: &[Span]) -> Vec<u64> {
    // Within a loop, what moves with its passes is counted pass by pass.
    let mut loops: Vec<(Stairs, Vec<u64>)> = Vec::new();
    let mut events: Vec<(usize, bool, u64)> = Vec::with_capacity(spans.len() * 2);
    let mut live_for = |first: usize, last: usize, bytes: u64| {
        events.push((first, true, bytes));
        events.push((last + 1, false, bytes));
    };
    for span in spans {
        let slices = span.slices();
        for slice in 0..slices {
            for life in span.lives(slices, slice).iter().flatten() {
                let Some((stairs, first, last)) = life.passes else {
                    live_for(life.first, life.last, span.bytes / slices);
                    continue;
                };
                let known =
                    loops.iter().position(|(other, _)| (other.first, other.last) == (stairs.first, stairs.last));
                let at = known.unwrap_or_else(|| {
                    loops.push((stairs, vec![0; stairs.count as usize]));
                    loops.len() - 1
                });
                for pass in &mut loops[at].1[first as usize..=last as usize] {
                    *pass += span.bytes / slices;
                }
            }
        }
    }
    let mut fullest: Vec<(Stairs, u64)> = Vec::new();
    for (stairs, passes) in &loops {
        let most = passes.iter().copied().enumerate().max_by_key(|(pass, bytes)| (*bytes, *pass)).unwrap_or((0, 0));
        live_for(stairs.first, stairs.last, most.1);
        fullest.push((*stairs, most.0 as u64));
    }
    // What ends at a tick ends before what begins there.
    events.sort_unstable();
    let (mut live, mut most, mut tick) = (0u64, 0u64, 0);
    for (at, begins, bytes) in events {
        if begins {
            live += bytes;
            if live > most {
                (most, tick) = (live, at);
            }
        } else {
            live -= bytes;
        }
    }
    let is_live = |life: &Life| {
        let in_pass = life.passes.is_none_or(|(stairs, first, last)| {
            let pass = fullest.iter().find(|(other, _)| (other.first, other.last) == (stairs.first, stairs.last));
            pass.is_some_and(|(_, pass)| (first..=last).contains(pass))
        });
        in_pass && life.first <= tick && tick <= life.last
    };
    let live_slices = |span: &Span| {
        let slices = span.slices();
        let live = (0..slices).filter(|slice| span.lives(slices, *slice).iter().flatten().any(is_live)).count();
        live as u64 * (span.bytes / slices)
    };
    spans.iter().map(live_slices).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from a linear congruential generator: the same on every machine.
    fn draws(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        }
    }

    #[test]
    fn live_buffers_never_overlap_and_the_whole_stays_near_the_bound() {
        for seed in 0..40 {
            let mut draw = draws(seed);
            let spans: Vec<Span> = (0..60)
                .map(|_| {
                    let first = draw(50) as usize;
                    let last = first + draw(12) as usize;
                    Span { bytes: draw(4000), first, last, comes: None, goes: None }
                })
                .collect();
            let placed = place(&spans);
            for (i, a) in spans.iter().enumerate() {
                for (j, b) in spans.iter().enumerate().skip(i + 1) {
                    let meet = a.first <= b.last && b.first <= a.last && a.bytes > 0 && b.bytes > 0;
                    let (x, y) = (placed.offsets[i], placed.offsets[j]);
                    assert!(!meet || x + a.bytes <= y || y + b.bytes <= x, "seed {seed}: {i} and {j}");
                }
                assert!(placed.offsets[i] + a.bytes <= placed.bytes);
            }
            assert!(placed.bytes >= placed.bound);
            assert!(placed.bytes as f64 <= placed.bound as f64 * 1.35 + 64.0 * 60.0, "seed {seed}");
        }
    }

    /// What a forward loop stacks, and the gradients that the backward loop stacks while it reads that: they share the memory but
    /// for a slice.
    #[test]
    fn gradients_move_in_as_what_was_saved_is_read() {
        let (forward, backward) = (Stairs { first: 1, last: 5, count: 12, reverse: false }, (9, 20));
        let back = Stairs { first: backward.0, last: backward.1, count: 12, reverse: true };
        let saved = Span { bytes: 12 * 640, first: 1, last: 20, comes: Some(forward), goes: Some(back) };
        let gradient = |slice: u64| Span { bytes: 12 * slice, first: 9, last: 30, comes: Some(back), goes: None };
        for slice in [64, 640, 1280] {
            let spans = [saved, gradient(slice)];
            let placed = place(&spans);
            assert_eq!(placed.bytes, (12 * 640 + slice).max(12 * slice + 640), "{slice}: {:?}", placed.offsets);
            // Pass by pass: what is saved up to here and the gradients from here on are apart.
            for at in 0..12 {
                let saved_end = placed.offsets[0] + (at + 1) * 640;
                assert!(saved_end <= placed.offsets[1] + at * slice, "{slice}, slice {at}");
            }
            assert!(placed.bytes >= placed.bound);
        }
        // Two loops that have nothing to do with each other share nothing slice by slice.
        let other = Stairs { first: 8, last: 19, count: 12, reverse: true };
        let spans = [saved, Span { first: 8, comes: Some(other), ..gradient(640) }];
        assert_eq!(place(&spans).bytes, 2 * 12 * 640);
    }
}
