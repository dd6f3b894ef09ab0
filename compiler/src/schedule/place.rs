//! Offsets in the arena: buffers whose lifetimes meet do not overlap, and the whole is small.
//!
//! Greedy: the largest buffer first, each at the lowest gap that holds it (Pisarchyk and Lee 2020, arXiv:2001.03288). The order of
//! first use is tried too, and the smaller of the two results is taken.

use crate::plan::ALIGN_BYTES;

/// A buffer is live from `first` to `last`, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) bytes: u64,
    pub(super) first: usize,
    pub(super) last: usize,
}

pub(super) struct Placed {
    pub(super) offsets: Vec<u64>,
    /// Of the whole arena.
    pub(super) bytes: u64,
    /// The most bytes live at once: no placement needs less.
    pub(super) bound: u64,
    /// When that is.
    pub(super) peak_tick: usize,
}

pub(super) fn place(spans: &[Span]) -> Placed {
    let (bound, peak_tick) = most_live(spans);
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(spans[*at].bytes), spans[*at].first, *at));
    let by_size = greedy(spans, &order);
    order.sort_by_key(|at| (spans[*at].first, std::cmp::Reverse(spans[*at].bytes), *at));
    let by_time = greedy(spans, &order);
    let (offsets, bytes) = if by_time.1 < by_size.1 { by_time } else { by_size };
    Placed { offsets, bytes, bound, peak_tick }
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN_BYTES)
}

fn greedy(spans: &[Span], order: &[usize]) -> (Vec<u64>, u64) {
    let mut offsets = vec![0; spans.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(spans.len());
    let mut total = 0;
    for at in order {
        let span = &spans[*at];
        if span.bytes == 0 {
            continue;
        }
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .filter(|other| spans[**other].first <= span.last && span.first <= spans[**other].last)
            .map(|other| (offsets[*other], offsets[*other] + aligned(spans[*other].bytes)))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset + aligned(span.bytes) {
                break;
            }
            offset = offset.max(end);
        }
        offsets[*at] = offset;
        total = total.max(offset + aligned(span.bytes));
        placed.push(*at);
    }
    (offsets, total)
}

fn most_live(spans: &[Span]) -> (u64, usize) {
    let mut events: Vec<(usize, bool, u64)> = Vec::with_capacity(spans.len() * 2);
    for span in spans {
        events.push((span.first, true, span.bytes));
        events.push((span.last + 1, false, span.bytes));
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
    (most, tick)
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
                    Span { bytes: draw(4000), first, last: first + draw(12) as usize }
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
}
