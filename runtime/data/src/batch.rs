//! Batches as a function of the step alone, written straight into the caller's memory.
//!
//! Nothing is drawn and remembered: item `i` of a run is place `i mod n` of epoch `i div n`, and each epoch has a
//! permutation of its own. A run that resumes at step 1000 sees what an unbroken one would see there. Filling a batch
//! allocates nothing.
//!
//! An epoch over a running text covers it once, in windows side by side whose first one begins at a place drawn for the
//! epoch: so every token is a target once per epoch, and windows do not fall on the same borders every time.
//!
//! An evaluation averages the means of batches by [`Filled::n_counted`], and that is exact. Windows at the end are filled
//! up with positions whose mask is false. Rows that do not fill the last batch come in several batches, each with a
//! number of rows that divides the size of a batch, and each row equally often: 40 rows left in batches of 64 are 32
//! twice, then 8 eight times. So the mean of such a batch is the mean of its rows, without a mask for rows.

use crate::dataset::pack::{Piece, pack};
use crate::dataset::{Content, Ids, Part, TextRows};
use crate::permutation::{Permutation, mix};
use crate::problem::{MISMATCH, Problem, WINDOW};
use crate::source::Sounds;
use mdl_graph::Axis;
use mdl_lang::spec::{Curriculum, Field, Form};
use std::ops::Range;
use std::sync::Arc;

/// The order in which items are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// For training: endless, every epoch in an order of its own.
    Shuffled,
    /// For evaluation: from the first to the last, each counted once.
    InOrder,
}

/// Where one field of a batch is written. One per field of the facts, in their order.
#[derive(Debug)]
pub enum FieldSlice<'a> {
    I32(&'a mut [i32]),
    F32(&'a mut [f32]),
    /// 0 or 1.
    Bool(&'a mut [u8]),
    /// A field that the program does not read.
    Skip,
}

/// How much of a batch is real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Different rows with data. The others are repeated, or zeros with a mask that is false.
    pub n_rows: usize,
    /// What the mean of the batch is over: the rows of pictures, of sounds and of texts with a label, else the positions whose mask
    /// is true, those of repeated rows once.
    pub n_counted: usize,
}

/// Serves the batches of one part of a dataset. Cheap to clone, and free to go to another thread.
#[derive(Clone, Debug)]
pub struct Batcher {
    part: Arc<Part>,
    fields: Vec<FieldPlace>,
    n_positions: usize,
    batch: usize,
    order: Order,
    seed: u64,
    easy: Option<Arc<Easy>>,
}

/// The rows from the easiest to the hardest, and how soon all of them are served.
///
/// At step `s` of `over` rows are drawn from a share `sqrt(from² + (1 - from²) · s / over)` of them (Platanios et al., 2019,
/// arXiv:1903.09848, equation 7), with repetition; afterwards epochs are as without.
#[derive(Debug)]
struct Easy {
    places: Vec<u32>,
    over: u64,
    from: f64,
}

impl Easy {
    fn new(order: &Curriculum, rows: &TextRows) -> Easy {
        let of = |place: u32| {
            let label = rows.labels.as_ref().map_or(0, |labels| labels[place as usize]);
            order.by.of(rows.row(place as usize).len() as f64, f64::from(label))
        };
        let mut places: Vec<(f64, u32)> = (0..rows.ends.len() as u32).map(|place| (of(place), place)).collect();
        places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Easy { places: places.into_iter().map(|(_, place)| place).collect(), over: order.over, from: order.from }
    }

    /// The row of an item; `None` once all rows are served alike.
    fn place(&self, item: u64, batch: usize, seed: u64) -> Option<u64> {
        let step = item / batch as u64;
        if step >= self.over || self.places.is_empty() {
            return None;
        }
        let squared = self.from * self.from;
        let share = (squared + (1.0 - squared) * step as f64 / self.over as f64).sqrt();
        let n = ((share * self.places.len() as f64).ceil() as u64).clamp(1, self.places.len() as u64);
        Some(u64::from(self.places[(mix(seed, EASY_KEY, item) % n) as usize]))
    }
}

/// A field, and how far apart in the buffer the neighbours along `batch` and along each axis of the field are.
#[derive(Clone, Debug)]
struct FieldPlace {
    name: FieldName,
    axes: Vec<(String, usize)>,
    strides: Vec<usize>,
    n: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldName {
    Ids,
    Next,
    Mask,
    /// Of a packed row: which of its documents a position is of, -1 behind the last.
    Document,
    /// Of a packed row: the position in its document.
    Position,
    /// Of chats: which answer the next token is of, counted from the last as 1; 0 for what others say, -1 behind the end.
    Turn,
    Label,
    Image,
    Sound,
}

/// Keys the order of training apart from the split.
const ORDER_KEY: u64 = 0x6f_7264_6572;
const OFFSET_KEY: u64 = 0x6f66_6673_6574;
const EASY_KEY: u64 = 0x6561_7379;

impl Batcher {
    pub(crate) fn new(
        part: Arc<Part>,
        form: &Form,
        fields: &[Field],
        batch: usize,
        order: Order,
        seed: u64,
    ) -> Result<Batcher, Problem> {
        let n_positions = match form {
            Form::Window { axis } | Form::Pad { axis } | Form::Pack { axis } => axis.size as usize,
            Form::Rows => 1,
        };
        let (needed, n) = (n_positions + 1, part.content.n_tokens());
        if order == Order::Shuffled && n.is_some_and(|n| n < needed) {
            let message = format!("a window of {n_positions} needs {needed} tokens, and {} has fewer", part.name);
            return Err(Problem::new(WINDOW, message));
        }
        if batch == 0 {
            return Err(Problem::new(MISMATCH, "a batch of 0 rows holds nothing"));
        }
        let mut places = Vec::new();
        for field in fields {
            let name = match field.name.as_str() {
                "ids" => FieldName::Ids,
                "next" => FieldName::Next,
                "mask" => FieldName::Mask,
                "document" => FieldName::Document,
                "position" => FieldName::Position,
                "turn" => FieldName::Turn,
                "label" => FieldName::Label,
                "image" => FieldName::Image,
                "sound" => FieldName::Sound,
                other => return Err(Problem::new(MISMATCH, format!("no batch has a field `{other}`"))),
            };
            let mut axes = vec![("batch".to_string(), batch)];
            axes.extend(field.axes.iter().map(|axis| (axis.name.to_string(), axis.size as usize)));
            let (strides, n) = row_major(&axes, |i| i);
            places.push(FieldPlace { name, axes, strides, n });
        }
        Ok(Batcher { part, fields: places, n_positions, batch, order, seed, easy: None })
    }

    /// The same with easy rows first, where it trains.
    pub(crate) fn easy_first(mut self, order: Option<&Curriculum>) -> Batcher {
        if let (Some(order), Order::Shuffled, Content::Rows(rows)) = (order, self.order, &self.part.content) {
            self.easy = Some(Arc::new(Easy::new(order, rows)));
        }
        self
    }

    /// Says in which order of axes a field lies in the buffers, outermost first; without it, `batch` and then the axes
    /// of the facts. False when these are not the field's axes.
    pub fn set_layout(&mut self, field_idx: usize, axes: &[&str]) -> bool {
        let Some(field) = self.fields.get_mut(field_idx) else { return false };
        let places: Vec<usize> =
            axes.iter().filter_map(|name| field.axes.iter().position(|(axis, _)| axis == name)).collect();
        let mut sorted = places.clone();
        sorted.sort_unstable();
        if axes.len() != field.axes.len() || !sorted.into_iter().eq(0..field.axes.len()) {
            return false;
        }
        field.strides = row_major(&field.axes, |i| places[i]).0;
        true
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    /// How many items one pass goes over: windows, rows or pictures.
    pub fn n_items(&self) -> u64 {
        match (&self.part.content, self.order) {
            (Content::Stream(ids), Order::Shuffled) => n_windows(ids.len(), self.n_positions),
            (content, _) => content.n_items(self.n_positions),
        }
    }

    /// How many batches one pass takes; shuffled, the last may reach into the next epoch.
    pub fn n_batches(&self) -> u64 {
        let (n, batch) = (self.n_items(), self.batch as u64);
        if self.order == Order::Shuffled || matches!(self.part.content, Content::Stream(_)) {
            return n.div_ceil(batch);
        }
        let (mut left, mut n_pieces) = (self.batch_left(n), 0);
        while left > 0 {
            left -= largest_divisor(self.batch, left);
            n_pieces += 1;
        }
        n / batch + n_pieces
    }

    /// Writes the batch of a step; steps count from 0. In order, steps past the end give no rows.
    ///
    /// Panics when the buffers are not those of the facts' fields: the plan that made them is at fault, not the data.
    pub fn fill(&self, step: u64, buffers: &mut [FieldSlice<'_>]) -> Filled {
        assert_eq!(buffers.len(), self.fields.len(), "one buffer per field of the data");
        match &self.part.content {
            Content::Stream(ids) => self.fill_windows(ids, step, buffers),
            content => self.fill_rows(content, step, buffers),
        }
    }

    fn fill_windows(&self, ids: &Ids, step: u64, buffers: &mut [FieldSlice<'_>]) -> Filled {
        let mut filled = Filled::default();
        for row in 0..self.batch {
            match self.window(ids, step * self.batch as u64 + row as u64, row, buffers) {
                Some(n) => {
                    filled.n_rows += 1;
                    filled.n_counted += n;
                }
                None => self.clear(row, buffers),
            }
        }
        filled
    }

    fn fill_rows(&self, content: &Content, step: u64, buffers: &mut [FieldSlice<'_>]) -> Filled {
        let n = content.n_items(self.n_positions);
        let (first, n_rows) = match self.order {
            Order::Shuffled => (step * self.batch as u64, self.batch),
            Order::InOrder => self.piece(step, n),
        };
        let mut filled = Filled { n_rows, n_counted: 0 };
        for row in 0..self.batch {
            if n_rows == 0 {
                self.clear(row, buffers);
                continue;
            }
            let item = first + (row % n_rows) as u64;
            let place = match self.order {
                Order::InOrder => item,
                Order::Shuffled => self.place(item, n),
            };
            let n_counted = match content {
                Content::Rows(rows) => self.text_row(rows, place as usize, row, buffers),
                Content::Packed(rows, bins) => self.pieces(rows, bins.row(place as usize), row, buffers),
                Content::Pictures { .. } => self.picture(place as usize, row, buffers),
                Content::Sounds { .. } => self.sound(place as usize, row, buffers),
                Content::Stream(_) => 0,
            };
            if row < n_rows {
                filled.n_counted += n_counted;
            }
        }
        filled
    }

    /// The first item of a batch in order, and how many different ones it has.
    fn piece(&self, step: u64, n: u64) -> (u64, usize) {
        let (batch, n_full) = (self.batch as u64, n / self.batch as u64);
        if step < n_full {
            return (step * batch, self.batch);
        }
        let (mut first, mut left) = (n_full * batch, self.batch_left(n));
        for _ in n_full..step {
            let taken = largest_divisor(self.batch, left);
            first += taken as u64;
            left -= taken;
            if left == 0 {
                break;
            }
        }
        (first, largest_divisor(self.batch, left))
    }

    /// How many items do not fill a batch.
    fn batch_left(&self, n: u64) -> usize {
        (n % self.batch as u64) as usize
    }

    fn place(&self, item: u64, n: u64) -> u64 {
        if let Some(place) = self.easy.as_ref().and_then(|easy| easy.place(item, self.batch, self.seed)) {
            return place;
        }
        Permutation::new(n, mix(self.seed, ORDER_KEY, item / n)).at(item % n)
    }

    fn window(&self, ids: &Ids, item: u64, row: usize, buffers: &mut [FieldSlice<'_>]) -> Option<usize> {
        let size = self.n_positions;
        let start = match self.order {
            Order::InOrder => {
                let start = item.checked_mul(size as u64).and_then(|start| usize::try_from(start).ok())?;
                (start + 1 < ids.len()).then_some(start)?
            }
            Order::Shuffled => {
                let n = n_windows(ids.len(), size);
                let offset = mix(self.seed, OFFSET_KEY, item / n) % n_offsets(ids.len(), size);
                (offset + self.place(item, n) * size as u64) as usize
            }
        };
        let n_real = size.min(ids.len() - 1 - start);
        for (field, buffer) in self.fields.iter().zip(buffers) {
            match (field.name, buffer) {
                (FieldName::Ids, FieldSlice::I32(out)) => field.ids(out, row, ids, start, n_real, size),
                (FieldName::Next, FieldSlice::I32(out)) => field.ids(out, row, ids, start + 1, n_real, size),
                (FieldName::Mask, FieldSlice::Bool(out)) => field.mask(out, row, 0..n_real, size),
                (_, FieldSlice::Skip) => {}
                (name, _) => panic!("the buffer of {name:?} has another type"),
            }
        }
        Some(n_real)
    }

    fn text_row(&self, rows: &TextRows, place: usize, row: usize, buffers: &mut [FieldSlice<'_>]) -> usize {
        let size = self.n_positions;
        let Range { start, end } = rows.row(place);
        let n = end - start;
        // The position of a token is that of the one before it.
        let whole = Piece { document: place as u32, start: 0, len: n.saturating_sub(1).min(size) as u32 };
        let mut n_counted = 0;
        for (field, buffer) in self.fields.iter().zip(buffers) {
            match (field.name, buffer) {
                (FieldName::Ids, FieldSlice::I32(out)) => field.ids(out, row, &rows.ids, start, n.min(size), size),
                (FieldName::Next, FieldSlice::I32(out)) => {
                    field.ids(out, row, &rows.ids, start + 1, whole.len as usize, size);
                }
                // With a label, the mask says which tokens are there; without, which have a next one that is to be learned.
                (FieldName::Mask, FieldSlice::Bool(out)) if rows.labels.is_some() => {
                    field.mask(out, row, 0..n.min(size), size);
                }
                (FieldName::Mask, FieldSlice::Bool(out)) => {
                    field.mask(out, row, 0..0, size);
                    learned(rows, whole, |_, places| field.put(out, row, places, 1));
                }
                (FieldName::Turn, FieldSlice::I32(out)) => {
                    field.put(out, row, 0..size, -1);
                    field.turns(out, row, rows, whole, 0);
                }
                (FieldName::Label, FieldSlice::I32(out)) => {
                    field.label(out, row, rows.labels.as_ref().map_or(0, |labels| labels[place]));
                }
                (_, FieldSlice::Skip) => {}
                (name, _) => panic!("the buffer of {name:?} has another type"),
            }
        }
        learned(rows, whole, |_, places| n_counted += places.len());
        if rows.labels.is_some() { 1 } else { n_counted }
    }

    /// A packed row.
    fn pieces(&self, rows: &TextRows, pieces: &[Piece], row: usize, buffers: &mut [FieldSlice<'_>]) -> usize {
        let size = self.n_positions;
        let n_filled: usize = pieces.iter().map(|piece| piece.len as usize).sum();
        // Each piece with its number and its first position in the row.
        let placed = pieces.iter().scan(0, |next, piece| {
            let at = *next;
            *next += piece.len as usize;
            Some((*piece, at))
        });
        let placed = (0..).zip(placed).map(|(nth, (piece, at)): (i32, _)| (nth, piece, at));
        let mut n_counted = 0;
        for (field, buffer) in self.fields.iter().zip(buffers) {
            match (field.name, buffer) {
                (FieldName::Mask, FieldSlice::Bool(out)) => {
                    field.mask(out, row, 0..0, size);
                    for (_, piece, at) in placed.clone() {
                        learned(rows, piece, |_, places| field.put(out, row, places.start + at..places.end + at, 1));
                    }
                }
                (FieldName::Label | FieldName::Image | FieldName::Sound, _) => {}
                (name, FieldSlice::I32(out)) => {
                    let behind = if matches!(name, FieldName::Document | FieldName::Turn) { -1 } else { 0 };
                    field.put(out, row, n_filled..size, behind);
                    for (nth, piece, at) in placed.clone() {
                        let (places, len) = (at..at + piece.len as usize, piece.len as usize);
                        let first = rows.row(piece.document as usize).start + piece.start as usize;
                        match name {
                            FieldName::Ids => field.ids_at(out, row, &rows.ids, first..first + len, at),
                            FieldName::Next => field.ids_at(out, row, &rows.ids, first + 1..first + 1 + len, at),
                            FieldName::Document => field.put(out, row, places, nth),
                            FieldName::Position => field.count(out, row, places),
                            FieldName::Turn => field.turns(out, row, rows, piece, at),
                            FieldName::Mask | FieldName::Label | FieldName::Image | FieldName::Sound => {}
                        }
                    }
                    if name == FieldName::Position {
                        field.count(out, row, n_filled..size);
                    }
                }
                (_, FieldSlice::Skip) => {}
                (name, _) => panic!("the buffer of {name:?} has another type"),
            }
        }
        for piece in pieces {
            learned(rows, *piece, |_, places| n_counted += places.len());
        }
        n_counted
    }

    fn picture(&self, place: usize, row: usize, buffers: &mut [FieldSlice<'_>]) -> usize {
        let Content::Pictures { rows, columns, channels, pixels, labels } = &self.part.content else { return 0 };
        let n = rows * columns * channels;
        let pixels = &pixels[place * n..(place + 1) * n];
        for (field, buffer) in self.fields.iter().zip(buffers) {
            match (field.name, buffer) {
                (FieldName::Image, FieldSlice::F32(out)) => field.image(out, row, pixels, [*rows, *columns, *channels]),
                (FieldName::Label, FieldSlice::I32(out)) => field.label(out, row, labels[place]),
                (_, FieldSlice::Skip) => {}
                (name, _) => panic!("the buffer of {name:?} has another type"),
            }
        }
        1
    }

    fn sound(&self, place: usize, row: usize, buffers: &mut [FieldSlice<'_>]) -> usize {
        let Content::Sounds { samples, ends, labels } = &self.part.content else { return 0 };
        let (size, samples) = (self.n_positions, &samples[Sounds::place(ends, place)]);
        let samples = &samples[..samples.len().min(size)];
        for (field, buffer) in self.fields.iter().zip(buffers) {
            match (field.name, buffer) {
                (FieldName::Sound, FieldSlice::F32(out)) => field.samples(out, row, samples, size),
                (FieldName::Mask, FieldSlice::Bool(out)) => field.mask(out, row, 0..samples.len(), size),
                (FieldName::Label, FieldSlice::I32(out)) => field.label(out, row, labels[place]),
                (_, FieldSlice::Skip) => {}
                (name, _) => panic!("the buffer of {name:?} has another type"),
            }
        }
        1
    }

    /// A row without data.
    fn clear(&self, row: usize, buffers: &mut [FieldSlice<'_>]) {
        for (field, buffer) in self.fields.iter().zip(buffers) {
            match buffer {
                FieldSlice::I32(out) => field.each(row, |at| out[at] = 0),
                FieldSlice::F32(out) => field.each(row, |at| out[at] = 0.0),
                FieldSlice::Bool(out) => field.each(row, |at| out[at] = 0),
                FieldSlice::Skip => {}
            }
        }
    }
}

/// Calls `each` with the positions of a piece whose next token is learned, as ranges from the piece's first on, and with the number
/// of the answer, counted from the last of the document as 1.
fn learned(rows: &TextRows, piece: Piece, mut each: impl FnMut(i32, Range<usize>)) {
    let spans = rows.spans_of(piece.document as usize);
    for (nth, span) in spans.iter().enumerate() {
        // The position before a token tells it; the first token of all nobody tells.
        let start = span.start.max(1) - 1;
        let from = start.max(piece.start) - piece.start;
        let to = span.end.saturating_sub(1).saturating_sub(piece.start).min(piece.len);
        if from < to {
            each((spans.len() - nth) as i32, from as usize..to as usize);
        }
    }
}

/// The largest divisor of `n` that is at most `most`; 0 when `most` is.
fn largest_divisor(n: usize, most: usize) -> usize {
    (1..=most).rev().find(|&d| n.is_multiple_of(d)).unwrap_or(0)
}

/// Strides of a buffer whose axes lie in the order `order(0)`, `order(1)`, …, outermost first; and its size.
fn row_major(axes: &[(String, usize)], order: impl Fn(usize) -> usize) -> (Vec<usize>, usize) {
    let mut strides = vec![0; axes.len()];
    let mut n = 1;
    for place in (0..axes.len()).rev() {
        strides[order(place)] = n;
        n *= axes[order(place)].1;
    }
    (strides, n)
}

/// Where the first window of an epoch may begin, so that at least one fits.
fn n_offsets(n_tokens: usize, size: usize) -> u64 {
    size.min(n_tokens - size) as u64
}

/// How many windows fit behind each other, wherever the first one begins.
fn n_windows(n_tokens: usize, size: usize) -> u64 {
    if n_tokens <= size {
        return 0;
    }
    (n_tokens as u64 - n_offsets(n_tokens, size)) / size as u64
}

/// How many windows an evaluation cuts a stream into, the last one possibly shorter.
pub(crate) fn n_cut(n_tokens: usize, size: usize) -> u64 {
    n_tokens.saturating_sub(1).div_ceil(size.max(1)) as u64
}

impl Content {
    fn n_tokens(&self) -> Option<usize> {
        match self {
            Content::Stream(ids) => Some(ids.len()),
            Content::Rows(_) | Content::Packed(..) | Content::Pictures { .. } | Content::Sounds { .. } => None,
        }
    }

    /// How many items an evaluation goes over.
    fn n_items(&self, size: usize) -> u64 {
        match self {
            Content::Stream(ids) => n_cut(ids.len(), size),
            Content::Rows(rows) => rows.ends.len() as u64,
            Content::Packed(_, bins) => bins.len() as u64,
            Content::Pictures { rows, columns, channels, pixels, .. } => {
                (pixels.len() / (rows * columns * channels)) as u64
            }
            Content::Sounds { ends, .. } => ends.len() as u64,
        }
    }

    pub(crate) fn n_in_order(&self, form: &Form) -> u64 {
        match form {
            Form::Window { axis } | Form::Pad { axis } | Form::Pack { axis } => self.n_items(axis.size as usize),
            Form::Rows => self.n_items(1),
        }
    }

    /// Rows of an axis with several documents each.
    pub(crate) fn packed(rows: TextRows, axis: &Axis, splits: bool) -> Content {
        let bins = pack(&rows, axis.size as usize, splits);
        Content::Packed(rows, bins)
    }
}

impl FieldPlace {
    fn check(&self, n: usize) {
        assert_eq!(n, self.n, "the buffer of {:?} must hold {:?}", self.name, self.axes);
    }

    /// Calls `put` with the place of every value of a row.
    fn each(&self, row: usize, mut put: impl FnMut(usize)) {
        let size = |axis: usize| self.axes.get(axis).map_or(1, |(_, size)| *size);
        let stride = |axis: usize| self.strides.get(axis).copied().unwrap_or(0);
        let start = row * self.strides[0];
        for i in 0..size(1) {
            for j in 0..size(2) {
                for k in 0..size(3) {
                    put(start + i * stride(1) + j * stride(2) + k * stride(3));
                }
            }
        }
    }

    /// Samples, then zeros.
    fn samples(&self, out: &mut [f32], row: usize, samples: &[f32], size: usize) {
        self.check(out.len());
        let (first, stride) = (row * self.strides[0], self.strides[1]);
        samples.iter().enumerate().for_each(|(i, &sample)| out[first + i * stride] = sample);
        (samples.len()..size).for_each(|i| out[first + i * stride] = 0.0);
    }

    fn label(&self, out: &mut [i32], row: usize, label: i32) {
        self.check(out.len());
        out[row * self.strides[0]] = label;
    }

    /// Ids from `start` on, `n_real` of them, then zeros.
    fn ids(&self, out: &mut [i32], row: usize, ids: &Ids, start: usize, n_real: usize, size: usize) {
        self.check(out.len());
        let (first, stride) = (row * self.strides[0], self.strides[1]);
        match ids {
            Ids::U8(ids) => put_ids(out, first, stride, &ids[start..start + n_real]),
            Ids::U16(ids) => put_ids(out, first, stride, &ids[start..start + n_real]),
            Ids::U32(ids) => {
                for (i, &id) in ids[start..start + n_real].iter().enumerate() {
                    // Vocabularies are far below 2^31.
                    out[first + i * stride] = id as i32;
                }
            }
        }
        (n_real..size).for_each(|i| out[first + i * stride] = 0);
    }

    /// Ids from position `at` on.
    fn ids_at(&self, out: &mut [i32], row: usize, ids: &Ids, places: Range<usize>, at: usize) {
        self.check(out.len());
        let (first, stride) = (row * self.strides[0] + at * self.strides[1], self.strides[1]);
        match ids {
            Ids::U8(ids) => put_ids(out, first, stride, &ids[places]),
            Ids::U16(ids) => put_ids(out, first, stride, &ids[places]),
            Ids::U32(ids) => (0..).zip(&ids[places]).for_each(|(i, &id)| out[first + i * stride] = id as i32),
        }
    }

    /// One value at many positions of a row.
    fn put<T: Copy>(&self, out: &mut [T], row: usize, places: Range<usize>, value: T) {
        self.check(out.len());
        let (first, stride) = (row * self.strides[0], self.strides[1]);
        places.for_each(|i| out[first + i * stride] = value);
    }

    /// 0, 1, 2, … from the first of these positions on.
    fn count(&self, out: &mut [i32], row: usize, places: Range<usize>) {
        self.check(out.len());
        let (first, stride) = (row * self.strides[0], self.strides[1]);
        places.zip(0..).for_each(|(i, n)| out[first + i * stride] = n);
    }

    /// Of which answer each next token of a piece is that begins at position `at`.
    fn turns(&self, out: &mut [i32], row: usize, rows: &TextRows, piece: Piece, at: usize) {
        self.put(out, row, at..at + piece.len as usize, 0);
        learned(rows, piece, |answer, places| self.put(out, row, places.start + at..places.end + at, answer));
    }

    fn mask(&self, out: &mut [u8], row: usize, counted: Range<usize>, size: usize) {
        self.check(out.len());
        let (first, stride) = (row * self.strides[0], self.strides[1]);
        (0..size).for_each(|i| out[first + i * stride] = u8::from(counted.contains(&i)));
    }

    /// Bytes 0..=255 as numbers 0..=1.
    fn image(&self, out: &mut [f32], row: usize, pixels: &[u8], [rows, columns, channels]: [usize; 3]) {
        self.check(out.len());
        let value = |pixel: u8| f32::from(pixel) / 255.0;
        let start = row * self.strides[0];
        if self.strides[1..] == [columns * channels, channels, 1] {
            for (out, &pixel) in out[start..start + pixels.len()].iter_mut().zip(pixels) {
                *out = value(pixel);
            }
            return;
        }
        for r in 0..rows {
            for c in 0..columns {
                for ch in 0..channels {
                    let at = start + r * self.strides[1] + c * self.strides[2] + ch * self.strides[3];
                    out[at] = value(pixels[(r * columns + c) * channels + ch]);
                }
            }
        }
    }
}

fn put_ids<T: Copy + Into<i32>>(out: &mut [i32], first: usize, stride: usize, ids: &[T]) {
    for (i, &id) in ids.iter().enumerate() {
        out[first + i * stride] = id.into();
    }
}

#[cfg(test)]
mod tests;
