//! Axes: names with sizes, and the sets of them that types are made of.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::{fmt, ptr};

use rustc_hash::FxHashSet;
use serde::{Deserialize, Deserializer, Serialize};
use smallvec::SmallVec;

/// The name of an axis, an input or an output. Free to clone and to compare for equality; ordered as text.
///
/// There is one text for all names that are equal, and it stays for as long as the process: recipes have few names, and graphs copy
/// and compare them more often than anything else, from several threads at once.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Name(&'static str);

/// The text of every name that there is.
static TEXTS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

thread_local! {
    /// Those that this thread has asked for.
    static KNOWN: RefCell<FxHashSet<&'static str>> = RefCell::default();
}

/// The one text that is equal to this one.
fn shared(text: &str) -> &'static str {
    if let Some(known) = KNOWN.with_borrow(|known| known.get(text).copied()) {
        return known;
    }
    // A set is whole between its calls, whatever became of the thread that held it.
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = texts.get(text).copied().unwrap_or_else(|| {
        let own: &'static str = Box::leak(Box::from(text));
        texts.insert(own);
        own
    });
    drop(texts);
    KNOWN.with_borrow_mut(|known| known.insert(found));
    found
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        ptr::eq(self.0, other.0)
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        ptr::hash(self.0.as_ptr(), state);
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        if self == other { Ordering::Equal } else { self.0.cmp(other.0) }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
        String::deserialize(from).map(Name::from)
    }
}

impl Name {
    pub fn as_str(&self) -> &str {
        self.0
    }

    /// The twin of this axis: `t` gives `t'`.
    pub fn twin(&self) -> Name {
        Name::from(format!("{}'", self.0))
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Name {
        Name(shared(text))
    }
}

impl From<String> for Name {
    fn from(text: String) -> Name {
        Name(shared(&text))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An axis is its name and its size: a slice keeps the name and has another size. Printed `t:1024`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Axis {
    pub name: Name,
    pub size: u64,
}

impl Axis {
    pub fn new(name: impl Into<Name>, size: u64) -> Axis {
        Axis { name: name.into(), size }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.size)
    }
}

/// A set of axes, no name twice, kept in the order of their names so that equal sets are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AxisSet(SmallVec<[Axis; 4]>);

impl AxisSet {
    pub fn new() -> AxisSet {
        AxisSet::default()
    }

    /// The set of these axes. `None` when two of one name differ in size.
    pub fn of(axes: impl IntoIterator<Item = Axis>) -> Option<AxisSet> {
        let mut set = AxisSet::new();
        for axis in axes {
            match set.get(&axis.name) {
                Some(present) if present.size == axis.size => {}
                Some(_) => return None,
                None => set.insert(axis),
            }
        }
        Some(set)
    }

    /// Adds an axis whose name is not in the set, or replaces the one of that name.
    pub fn insert(&mut self, axis: Axis) {
        match self.0.binary_search_by(|present| present.name.cmp(&axis.name)) {
            Ok(at) => self.0[at] = axis,
            Err(at) => self.0.insert(at, axis),
        }
    }

    pub fn remove(&mut self, name: &Name) -> Option<Axis> {
        let at = self.0.binary_search_by(|axis| axis.name.cmp(name)).ok()?;
        Some(self.0.remove(at))
    }

    pub fn get(&self, name: &Name) -> Option<&Axis> {
        let at = self.0.binary_search_by(|axis| axis.name.cmp(name)).ok()?;
        Some(&self.0[at])
    }

    pub fn contains(&self, name: &Name) -> bool {
        self.get(name).is_some()
    }

    pub fn size(&self, name: &Name) -> Option<u64> {
        self.get(name).map(|axis| axis.size)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Axis> {
        self.0.iter()
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|axis| &axis.name)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of elements; 1 for the empty set.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|axis| axis.size).product()
    }

    /// All axes of both. `Err` is the first name that has two sizes.
    pub fn union(&self, other: &AxisSet) -> Result<AxisSet, Name> {
        let mut all = self.clone();
        all.extend(other)?;
        Ok(all)
    }

    /// Adds the axes of another set. `Err` is the first name that has two sizes.
    pub fn extend(&mut self, other: &AxisSet) -> Result<(), Name> {
        for axis in other.iter() {
            match self.0.binary_search_by(|present| present.name.cmp(&axis.name)) {
                Ok(at) if self.0[at].size != axis.size => return Err(axis.name.clone()),
                Ok(_) => {}
                Err(at) => self.0.insert(at, axis.clone()),
            }
        }
        Ok(())
    }

    /// The axes of `self` whose names are not in `other`.
    pub fn minus(&self, other: &AxisSet) -> AxisSet {
        AxisSet(self.0.iter().filter(|axis| !other.contains(&axis.name)).cloned().collect())
    }

    /// The axes of `self` whose names are in `other` too.
    pub fn common(&self, other: &AxisSet) -> AxisSet {
        AxisSet(self.0.iter().filter(|axis| other.contains(&axis.name)).cloned().collect())
    }

    pub fn is_subset(&self, other: &AxisSet) -> bool {
        self.0.iter().all(|axis| other.get(&axis.name) == Some(axis))
    }
}

impl fmt::Display for AxisSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, axis) in self.iter().enumerate() {
            write!(f, "{}{axis}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
