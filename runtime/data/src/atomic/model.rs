//! A disk in memory that can fail, be killed or lose power at any system call: the tests of everything that writes
//! safely run on it.
//!
//! Every file and folder has two faces: what a running program sees, and what is durable. `sync` on a file makes its
//! bytes durable, `sync_dir` on a folder the names in it. After a stop the disk can be looked at in three ways
//! ([`View`]): real file systems lie between them.

use super::{Disk, Sink};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path};

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Never,
    /// Operation number `at` (from 0) fails, as on a full disk; a write stores half of its bytes first.
    Error {
        at: usize,
    },
    /// Nothing from operation number `at` on happens; a write stores half of its bytes first.
    Stop {
        at: usize,
    },
}

/// What is found after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The process was killed: all that it did is there.
    Killed,
    /// The power went: only what was flushed is there.
    PowerCut,
    /// The power went after the names were written and before the bytes were.
    PowerCutNamesFirst,
}

impl View {
    pub const ALL: [View; 3] = [View::Killed, View::PowerCut, View::PowerCutNamesFirst];
}

#[derive(Clone)]
enum Node {
    File { seen: Vec<u8>, durable: Vec<u8> },
    Folder { seen: BTreeMap<String, usize>, durable: BTreeMap<String, usize> },
}

struct State {
    nodes: Vec<Node>,
    n_ops: usize,
    fault: Fault,
}

/// The disk. Node 0 is its root; paths are taken from there.
pub struct ModelDisk {
    state: RefCell<State>,
}

impl Default for ModelDisk {
    fn default() -> ModelDisk {
        ModelDisk::new()
    }
}

impl ModelDisk {
    pub fn new() -> ModelDisk {
        let root = Node::Folder { seen: BTreeMap::new(), durable: BTreeMap::new() };
        ModelDisk { state: RefCell::new(State { nodes: vec![root], n_ops: 0, fault: Fault::Never }) }
    }

    /// A copy of the disk with a fault and its count of operations at 0.
    pub fn with_fault(&self, fault: Fault) -> ModelDisk {
        let nodes = self.state.borrow().nodes.clone();
        ModelDisk { state: RefCell::new(State { nodes, n_ops: 0, fault }) }
    }

    /// Operations done since the fault was set.
    pub fn n_ops(&self) -> usize {
        self.state.borrow().n_ops
    }

    /// Writes what is found under `path` into a real folder.
    pub fn materialize(&self, view: View, path: &Path, into: &Path) -> io::Result<()> {
        let state = self.state.borrow();
        fs::create_dir_all(into)?;
        let mut node = Some(0);
        for step in steps(path) {
            node = node.and_then(|at| names_of(&state.nodes[at], view).and_then(|names| names.get(&step).copied()));
        }
        node.map_or(Ok(()), |at| copy_out(&state.nodes, at, view, into))
    }
}

fn names_of(node: &Node, view: View) -> Option<&BTreeMap<String, usize>> {
    match node {
        Node::Folder { seen, durable } => Some(if view == View::PowerCut { durable } else { seen }),
        Node::File { .. } => None,
    }
}

fn copy_out(nodes: &[Node], at: usize, view: View, into: &Path) -> io::Result<()> {
    let Some(names) = names_of(&nodes[at], view) else { return Ok(()) };
    for (name, &child) in names {
        let place = into.join(name);
        match &nodes[child] {
            Node::File { seen, durable } => {
                fs::write(place, if view == View::Killed { seen } else { durable })?;
            }
            Node::Folder { .. } => {
                fs::create_dir_all(&place)?;
                copy_out(nodes, child, view, &place)?;
            }
        }
    }
    Ok(())
}

fn steps(path: &Path) -> Vec<String> {
    let normal = |c: Component<'_>| match c {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    };
    path.components().filter_map(normal).collect()
}

impl State {
    fn find(&self, path: &Path) -> Option<usize> {
        steps(path).iter().try_fold(0, |at, step| names_of(&self.nodes[at], View::Killed)?.get(step).copied())
    }

    fn found(&self, path: &Path) -> io::Result<usize> {
        self.find(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// The folder that holds `path` and the last step of it.
    fn place(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = steps(path).pop().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok((self.found(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn names(&mut self, at: usize) -> io::Result<&mut BTreeMap<String, usize>> {
        match &mut self.nodes[at] {
            Node::Folder { seen, .. } => Ok(seen),
            Node::File { .. } => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    /// Counts an operation, and says whether it happens.
    fn tick(&mut self) -> io::Result<()> {
        let now = self.n_ops;
        self.n_ops += 1;
        match self.fault {
            Fault::Error { at } if now == at => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Fault::Stop { at } if now >= at => Err(io::Error::other("stopped")),
            Fault::Never | Fault::Error { .. } | Fault::Stop { .. } => Ok(()),
        }
    }
}

struct OpenFile<'a> {
    disk: &'a ModelDisk,
    node: usize,
}

impl Write for OpenFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state.borrow_mut();
        let now = state.n_ops;
        let done = state.tick();
        // A stopped machine stores nothing more; the write that it falls on stores half.
        let n = match (&done, state.fault) {
            (Ok(()), _) => bytes.len(),
            (Err(_), Fault::Error { at } | Fault::Stop { at }) if at == now => bytes.len() / 2,
            (Err(_), _) => 0,
        };
        if let Node::File { seen, .. } = &mut state.nodes[self.node] {
            seen.extend_from_slice(&bytes[..n]);
        }
        done.map(|()| n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for OpenFile<'_> {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state.borrow_mut();
        state.tick()?;
        if let Node::File { seen, durable } = &mut state.nodes[self.node] {
            durable.clone_from(seen);
        }
        Ok(())
    }
}

impl Disk for ModelDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink + '_>> {
        let mut state = self.state.borrow_mut();
        state.tick()?;
        let (folder, name) = state.place(path)?;
        let node = state.nodes.len();
        state.nodes.push(Node::File { seen: Vec::new(), durable: Vec::new() });
        state.names(folder)?.insert(name, node);
        Ok(Box::new(OpenFile { disk: self, node }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if state.find(path).is_some() {
            return Ok(());
        }
        state.tick()?;
        let mut at = 0;
        for step in steps(path) {
            at = match state.names(at)?.get(&step) {
                Some(&child) => child,
                None => {
                    let child = state.nodes.len();
                    state.nodes.push(Node::Folder { seen: BTreeMap::new(), durable: BTreeMap::new() });
                    state.names(at)?.insert(step, child);
                    child
                }
            };
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.tick()?;
        let node = state.found(from)?;
        if let Some(there) = state.find(to)
            && names_of(&state.nodes[there], View::Killed).is_some_and(|names| !names.is_empty())
        {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        let (old_folder, old_name) = state.place(from)?;
        let (new_folder, new_name) = state.place(to)?;
        state.names(old_folder)?.remove(&old_name);
        state.names(new_folder)?.insert(new_name, node);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.tick()?;
        let at = state.found(path)?;
        if let Node::Folder { seen, durable } = &mut state.nodes[at] {
            durable.clone_from(seen);
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.tick()?;
        let (folder, name) = state.place(path)?;
        state.names(folder)?.remove(&name).map(|_| ()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// One system call per file, as on a real disk: a stop may fall between them.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for name in self.names(path)? {
            let inside = path.join(name);
            let is_folder = {
                let state = self.state.borrow();
                state.find(&inside).is_some_and(|at| names_of(&state.nodes[at], View::Killed).is_some())
            };
            if is_folder { self.remove_dir_all(&inside)? } else { self.remove_file(&inside)? }
        }
        self.remove_file(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.state.borrow().find(path).is_some()
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state.borrow();
        let at = state.found(path)?;
        names_of(&state.nodes[at], View::Killed)
            .map(|names| names.keys().cloned().collect())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotADirectory))
    }
}
