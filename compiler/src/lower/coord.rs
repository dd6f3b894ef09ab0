//! Positions as functions of a kernel's dimensions: what views do to the coordinates at which a value is read.
//!
//! A [`Coord`] is a sum of dimensions, of floors and remainders of affine forms, and of values computed in the kernel. Views
//! compose on it; what has no such form gives `None`, and the caller stores the value in between.

use mdl_graph::NodeId;

use crate::kernel::{Dim, Index, ValId};

/// `base + Σ coef · dim`, dimensions in order, no coefficient 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Affine {
    pub(crate) base: i64,
    pub(crate) terms: Vec<(Dim, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Dim(Dim),
    /// `floor(of / div) mod modulo`; no modulus when it is 0. Not a plain dimension.
    Floor {
        of: Affine,
        div: u64,
        modulo: u64,
    },
    /// The index that a `Gather` reads, which counts from 0 to `size`; outside of it the gather gives 0.
    Value {
        val: ValId,
        size: u64,
        gather: NodeId,
    },
}

/// `base + Σ coef · part`, parts in order, no coefficient 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Coord {
    pub(crate) base: i64,
    pub(crate) parts: Vec<(Part, i64)>,
}

impl Affine {
    /// Least and greatest value.
    fn range(&self, extents: &[u64]) -> (i64, i64) {
        let (mut lo, mut hi) = (self.base, self.base);
        for (dim, coef) in &self.terms {
            let reach = coef.saturating_mul(extents[dim.0 as usize].max(1) as i64 - 1);
            if reach < 0 { lo = lo.saturating_add(reach) } else { hi = hi.saturating_add(reach) }
        }
        (lo, hi)
    }
}

impl Part {
    fn range(&self, extents: &[u64]) -> (i64, i64) {
        match self {
            Part::Dim(dim) => (0, extents[dim.0 as usize].max(1) as i64 - 1),
            Part::Value { size, .. } => (0, (*size).max(1) as i64 - 1),
            Part::Floor { of, div, modulo } => {
                let (lo, hi) = of.range(extents);
                let (lo, hi) = (lo.div_euclid(*div as i64), hi.div_euclid(*div as i64));
                let modulo = *modulo as i64;
                if modulo == 0 {
                    (lo, hi)
                } else if lo.div_euclid(modulo) == hi.div_euclid(modulo) {
                    (lo.rem_euclid(modulo), hi.rem_euclid(modulo))
                } else {
                    (0, modulo - 1)
                }
            }
        }
    }
}

impl Coord {
    pub(crate) fn constant(base: i64) -> Coord {
        Coord { base, parts: Vec::new() }
    }

    pub(crate) fn dim(dim: Dim) -> Coord {
        Coord { base: 0, parts: vec![(Part::Dim(dim), 1)] }
    }

    pub(crate) fn of(part: Part) -> Coord {
        Coord { base: 0, parts: vec![(part, 1)] }
    }

    /// `self + coef · other`.
    pub(crate) fn plus(mut self, other: &Coord, coef: i64) -> Coord {
        self.base += coef * other.base;
        for (part, by) in &other.parts {
            match self.parts.binary_search_by(|(present, _)| present.cmp(part)) {
                Ok(at) => self.parts[at].1 += coef * by,
                Err(at) => self.parts.insert(at, (part.clone(), coef * by)),
            }
        }
        self.parts.retain(|(_, by)| *by != 0);
        self
    }

    pub(crate) fn shift(mut self, by: i64) -> Coord {
        self.base += by;
        self
    }

    pub(crate) fn range(&self, extents: &[u64]) -> (i64, i64) {
        let (mut lo, mut hi) = (self.base, self.base);
        for (part, coef) in &self.parts {
            let (from, to) = part.range(extents);
            let ends = [from.saturating_mul(*coef), to.saturating_mul(*coef)];
            lo = lo.saturating_add(ends[0].min(ends[1]));
            hi = hi.saturating_add(ends[0].max(ends[1]));
        }
        (lo, hi)
    }

    fn affine(&self) -> Option<Affine> {
        let mut terms = Vec::with_capacity(self.parts.len());
        for (part, coef) in &self.parts {
            let Part::Dim(dim) = part else { return None };
            terms.push((*dim, *coef));
        }
        Some(Affine { base: self.base, terms })
    }

    /// The parts whose coefficients `n` divides, and the rest with the base.
    fn divide(&self, n: i64) -> (Coord, Coord) {
        let (whole, rest): (Vec<_>, Vec<_>) = self.parts.iter().cloned().partition(|(_, coef)| coef % n == 0);
        let carry = self.base.div_euclid(n);
        (Coord { base: carry * n, parts: whole }, Coord { base: self.base - carry * n, parts: rest })
    }

    fn scaled_down(&self, n: i64) -> Coord {
        Coord { base: self.base / n, parts: self.parts.iter().map(|(part, coef)| (part.clone(), coef / n)).collect() }
    }

    /// `floor(self / n)`.
    pub(crate) fn floor_div(&self, n: u64, extents: &[u64]) -> Option<Coord> {
        let step = n.max(1) as i64;
        if step == 1 {
            return Some(self.clone());
        }
        let (whole, rest) = self.divide(step);
        let (lo, hi) = rest.range(extents);
        let whole = whole.scaled_down(step);
        if lo >= 0 && hi < step {
            return Some(whole);
        }
        if let Some(of) = rest.affine() {
            return Some(whole.plus(&Coord::of(Part::Floor { of, div: n, modulo: 0 }), 1));
        }
        match rest.parts.as_slice() {
            [(Part::Floor { of, div, modulo }, 1)] if rest.base == 0 && (*modulo == 0 || modulo % n == 0) => {
                let part = Part::Floor { of: of.clone(), div: div.checked_mul(n)?, modulo: modulo / n };
                Some(whole.plus(&Coord::of(part), 1))
            }
            _ => None,
        }
    }

    /// `self mod n`, not negative.
    pub(crate) fn modulo(&self, n: u64, extents: &[u64]) -> Option<Coord> {
        let step = n.max(1) as i64;
        if step == 1 {
            return Some(Coord::constant(0));
        }
        let (_, rest) = self.divide(step);
        let (lo, hi) = rest.range(extents);
        if lo >= 0 && hi < step {
            return Some(rest);
        }
        if let Some(of) = rest.affine() {
            return Some(Coord::of(Part::Floor { of, div: 1, modulo: n }));
        }
        match rest.parts.as_slice() {
            [(Part::Floor { of, div, modulo }, 1)] if rest.base == 0 && (*modulo == 0 || modulo % n == 0) => {
                Some(Coord::of(Part::Floor { of: of.clone(), div: *div, modulo: n }))
            }
            _ => None,
        }
    }

    /// Quotients and remainders of the same thing put together again: `n·floor(x / n) + x mod n` is `x`.
    pub(crate) fn rejoined(mut self) -> Coord {
        'again: loop {
            for (part, coef) in &self.parts {
                let Part::Floor { of, div, modulo } = part else { continue };
                if *modulo == 0 {
                    continue;
                }
                // floor(of / div) mod modulo, and modulo times floor(of / (div · modulo)) beside it.
                let partner = self.parts.iter().find_map(|(other, other_coef)| match other {
                    Part::Floor { of: same, div: wide, modulo: outer }
                        if same == of && *wide == div * modulo && *other_coef == coef * *modulo as i64 =>
                    {
                        Some((other.clone(), *other_coef, *outer))
                    }
                    _ => None,
                });
                let Some((other, other_coef, outer)) = partner else { continue };
                let joined = if *div == 1 && outer == 0 {
                    let parts = of.terms.iter().map(|(dim, coef)| (Part::Dim(*dim), *coef)).collect();
                    Coord { base: of.base, parts }
                } else {
                    Coord::of(Part::Floor { of: of.clone(), div: *div, modulo: modulo * outer })
                };
                let (part, coef) = (part.clone(), *coef);
                self = self.plus(&Coord::of(part), -coef).plus(&Coord::of(other), -other_coef).plus(&joined, coef);
                continue 'again;
            }
            return self;
        }
    }

    /// As one index expression of the kernel IR, if it is one.
    pub(crate) fn index(&self) -> Option<Index> {
        if let Some(affine) = self.affine() {
            return Some(Index::affine(affine.base, affine.terms));
        }
        match self.parts.as_slice() {
            [(Part::Floor { of, div, modulo }, 1)] => {
                Some(Index { base: of.base, terms: of.terms.clone(), div: *div, modulo: *modulo, plus: self.base })
            }
            _ => None,
        }
    }
}

impl Part {
    /// As an index expression; a value is none.
    pub(crate) fn index(&self) -> Option<Index> {
        Coord::of(self.clone()).index()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: [u64; 2] = [6, 20];

    fn d(at: u32) -> Coord {
        Coord::dim(Dim(at))
    }

    #[test]
    fn a_split_after_a_merge_is_the_identity() {
        let merged = Coord::default().plus(&d(0), 20).plus(&d(1), 1);
        assert_eq!(merged.floor_div(20, &EXTENTS), Some(d(0)));
        assert_eq!(merged.modulo(20, &EXTENTS), Some(d(1)));
    }

    #[test]
    fn quotient_and_remainder_rejoin() {
        let (high, low) = (d(1).floor_div(5, &EXTENTS).unwrap(), d(1).modulo(5, &EXTENTS).unwrap());
        assert_eq!(Coord::default().plus(&high, 15).plus(&low, 3).rejoined(), Coord::default().plus(&d(1), 3));
        let mid = d(1).floor_div(2, &EXTENTS).unwrap().modulo(2, &EXTENTS).unwrap();
        let (outer, low) = (d(1).floor_div(4, &EXTENTS).unwrap(), d(1).modulo(2, &EXTENTS).unwrap());
        assert_eq!(Coord::default().plus(&outer, 4).plus(&mid, 2).plus(&low, 1).rejoined(), d(1));
    }

    #[test]
    fn every_form_equals_plain_arithmetic() {
        let forms = [
            d(1),
            d(1).shift(-3),
            Coord::default().plus(&d(0), 7).plus(&d(1), 2),
            d(1).floor_div(3, &EXTENTS).unwrap(),
        ];
        for form in forms {
            for n in [2u64, 3, 4, 7] {
                let results = [(form.floor_div(n, &EXTENTS), true), (form.modulo(n, &EXTENTS), false)];
                for (result, is_quotient) in results {
                    let Some(result) = result else { continue };
                    for (i, j) in (0..6u64).flat_map(|i| (0..20u64).map(move |j| (i, j))) {
                        let at = |coord: &Coord| -> i64 {
                            coord.base
                                + coord
                                    .parts
                                    .iter()
                                    .map(|(part, coef)| coef * part.index().unwrap().at(&[i, j]))
                                    .sum::<i64>()
                        };
                        let (x, n) = (at(&form), n as i64);
                        let expected = if is_quotient { x.div_euclid(n) } else { x.rem_euclid(n) };
                        assert_eq!(at(&result), expected, "{form:?} by {n} at {i}, {j}");
                    }
                }
            }
        }
    }
}
