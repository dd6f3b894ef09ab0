//! Several documents in one row, so that hardly a position is empty.
//!
//! Documents never share a row by chance: the longest go first, each into the row that it leaves the least room in (best fit,
//! decreasing; Johnson, 1974), equal ones in the order of their files. So the rows depend on the documents alone, and what is drawn
//! in an epoch is the order of rows.

use super::TextRows;
use std::collections::BTreeMap;

/// A document, or a piece of one, in a row: its ids are read, and those behind them by one place are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which of the documents.
    pub(crate) document: u32,
    /// Where in it the piece begins.
    pub(crate) start: u32,
    /// How many positions it takes: one less than ids, the last of which is only ever a next one.
    pub(crate) len: u32,
}

/// Rows of pieces, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bins {
    pieces: Vec<Piece>,
    /// Where each row ends in `pieces`.
    ends: Vec<u64>,
}

impl Bins {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn row(&self, row: usize) -> &[Piece] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.pieces[start as usize..self.ends[row] as usize]
    }

    /// Positions that hold something.
    pub(crate) fn n_filled(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }
}

/// Packs documents into rows of `size` positions. A longer one is cut into pieces, or where `splits` is false cut off.
pub(crate) fn pack(rows: &TextRows, size: usize, splits: bool) -> Bins {
    let mut pieces = Vec::new();
    for document in 0..rows.ends.len() {
        let n = rows.row(document).len().saturating_sub(1);
        let n = if splits { n } else { n.min(size) };
        let place =
            |start: usize| Piece { document: document as u32, start: start as u32, len: size.min(n - start) as u32 };
        pieces.extend((0..n).step_by(size).map(place));
    }
    // Stable: equal ones stay in order.
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len));
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    // The rows by the room that they have left; of equal ones the latest.
    let mut open: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for piece in pieces {
        let fitting = open.range_mut(piece.len..).next();
        let (row, room) = match fitting.and_then(|(room, rows)| Some((rows.pop()?, *room))) {
            Some((row, room)) => {
                if open.get(&room).is_some_and(Vec::is_empty) {
                    open.remove(&room);
                }
                (row, room)
            }
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, size as u32)
            }
        };
        rows[row].push(piece);
        if room > piece.len {
            open.entry(room - piece.len).or_default().push(row);
        }
    }
    let mut bins = Bins::default();
    for row in rows {
        bins.pieces.extend(row);
        bins.ends.push(bins.pieces.len() as u64);
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn documents(lens: &[usize]) -> TextRows {
        let mut rows = TextRows::new(256);
        for len in lens {
            rows.ids.extend(&vec![0; *len]);
            rows.ends.push(rows.ids.len() as u64);
        }
        rows
    }

    #[test]
    fn each_goes_where_it_fits_best() {
        let bins = pack(&documents(&[3, 8, 5, 4, 1, 4]), 8, true);
        let rows: Vec<Vec<u32>> =
            (0..bins.len()).map(|row| bins.row(row).iter().map(|p| p.document).collect()).collect();
        // 7, then 4 + 3, then 3 + 2; the document of one id has nothing to learn.
        assert_eq!(rows, [vec![1], vec![2, 3], vec![5, 0]]);
        assert_eq!(bins.n_filled(), 19);
    }

    proptest! {
        /// Every position of every document is there once, no row is too long, and no two rows could be one.
        #[test]
        fn nothing_is_lost(lens in prop::collection::vec(0usize..40, 0..60), size in 1usize..20, splits: bool) {
            let bins = pack(&documents(&lens), size, splits);
            let mut seen: Vec<Vec<bool>> = lens.iter().map(|len| vec![false; len.saturating_sub(1)]).collect();
            let mut filled = Vec::new();
            for row in 0..bins.len() {
                filled.push(bins.row(row).iter().map(|piece| piece.len as usize).sum::<usize>());
                for piece in bins.row(row) {
                    for at in piece.start..piece.start + piece.len {
                        prop_assert!(!std::mem::replace(&mut seen[piece.document as usize][at as usize], true));
                    }
                }
            }
            prop_assert!(filled.iter().all(|n| *n > 0 && *n <= size));
            for places in &seen {
                let n = if splits { places.len() } else { places.len().min(size) };
                prop_assert!(places.iter().enumerate().all(|(at, seen)| *seen == (at < n)));
            }
            filled.sort_unstable();
            prop_assert!(filled.len() < 2 || filled[0] + filled[1] > size);
        }
    }
}
