// SPDX-License-Identifier: Apache-2.0
//! A volume on which a simulation decides what fails, when the process dies, and what a power cut leaves.
//!
//! Files lie in a real directory, as the running process sees them. Beside it, the simulation keeps what is certainly
//! on the disk: names whose directory was synced, and bytes whose file was. All other changes are pending. A power
//! cut keeps some of them: either those up to a moment, as an ordered journal does, or any.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::io::Errno;

use super::Change;

mod disk;
mod random;

use disk::{Disk, find, half, rebuild, record};
pub(crate) use random::Random;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Volume>>> = const { RefCell::new(None) };
}

/// The volume of the simulation that runs on this thread.
pub(crate) fn current() -> Option<Rc<Volume>> {
    CURRENT.with_borrow(Clone::clone)
}

/// A step of the process that changes no file: the process may die there, and the step may fail.
pub(crate) fn event(what: &str) -> Result<(), Errno> {
    current().map_or(Ok(()), |volume| volume.event(what))
}

/// The panic payload where a simulated process dies.
#[derive(Debug)]
pub(crate) struct Death;

/// How changes fail for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// One in this many fails with an I/O error.
    Io(u64),
    /// Every change that needs room fails.
    NoSpace,
    /// Every change fails.
    ReadOnly,
}

/// What a power cut keeps of the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Everything up to some moment.
    Prefix,
    /// Any of it.
    Any,
}

/// The simulated volume; see the module.
#[derive(Debug)]
pub(crate) struct Volume {
    root: PathBuf,
    random: RefCell<Random>,
    disk: RefCell<Disk>,
    /// Change times of files, counted in changes.
    changed: RefCell<BTreeMap<u64, i128>>,
    count: Cell<u64>,
    dies_at: Cell<Option<u64>>,
    fault: Cell<Option<Fault>>,
    /// Whether another process acts now: it neither fails nor dies.
    is_other: Cell<bool>,
    free: Cell<u64>,
    trace: RefCell<Vec<String>>,
    /// Paths that a running worker uses: nobody else may touch anything below them.
    busy: RefCell<BTreeSet<PathBuf>>,
    violation: RefCell<Option<String>>,
    /// Files that may not be moved.
    immovable: RefCell<BTreeSet<u64>>,
}

/// Ends the simulation on this thread when it is dropped.
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

impl Volume {
    /// The volume of everything below `root`, all of which is on the disk.
    pub(crate) fn new(root: &Path, seed: u64) -> Rc<Self> {
        let volume = Rc::new(Self {
            root: root.to_owned(),
            random: RefCell::new(Random::new(seed)),
            disk: RefCell::default(),
            changed: RefCell::default(),
            count: Cell::new(0),
            dies_at: Cell::new(None),
            fault: Cell::new(None),
            is_other: Cell::new(false),
            free: Cell::new(1 << 40),
            trace: RefCell::default(),
            busy: RefCell::default(),
            violation: RefCell::default(),
            immovable: RefCell::default(),
        });
        volume.settle();
        volume
    }

    /// Makes it the volume of this thread.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        CURRENT.set(Some(Rc::clone(self)));
        Entered
    }

    pub(crate) fn fail(&self, fault: Option<Fault>) {
        self.fault.set(fault);
    }

    /// Lets the process die at the event with this number, counted from now.
    pub(crate) fn die_in(&self, events: Option<u64>) {
        self.dies_at.set(events.map(|events| self.count.get() + events));
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.get()
    }

    pub(crate) fn set_free(&self, bytes: u64) {
        self.free.set(bytes);
    }

    pub(crate) fn changed_at(&self, inode: u64) -> i128 {
        self.changed.borrow().get(&inode).copied().unwrap_or_default()
    }

    /// Runs `act` as another process.
    pub(crate) fn other<T>(&self, act: impl FnOnce() -> T) -> T {
        let before = self.is_other.replace(true);
        let done = act();
        self.is_other.set(before);
        done
    }

    /// A file may not be moved any more by the process, or may again.
    pub(crate) fn set_immovable(&self, inode: u64, is_immovable: bool) {
        let mut immovable = self.immovable.borrow_mut();
        if if is_immovable { immovable.insert(inode) } else { immovable.remove(&inode) } {
            drop(immovable);
            self.touched(inode);
        }
    }

    /// All may be moved again.
    pub(crate) fn release(&self) {
        let immovable = self.immovable.borrow().clone();
        for inode in immovable {
            self.set_immovable(inode, false);
        }
    }

    /// Records that a file was written to or its mode changed.
    pub(crate) fn touched(&self, inode: u64) {
        let now = i128::try_from(self.trace.borrow().len()).expect("a length");
        self.changed.borrow_mut().insert(inode, now);
    }

    pub(crate) fn note(&self, line: String) {
        self.trace.borrow_mut().push(line);
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.borrow().clone()
    }

    /// Records that a worker begins or ends to use what lies below.
    pub(crate) fn set_busy(&self, below: &Path, is_busy: bool) {
        let mut busy = self.busy.borrow_mut();
        if is_busy {
            busy.insert(below.to_owned());
        } else {
            busy.remove(below);
        }
    }

    /// The first violation of an invariant, if any.
    pub(crate) fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    fn event(&self, what: &str) -> Result<(), Errno> {
        if self.is_other.get() {
            return Ok(());
        }
        self.note(what.to_owned());
        self.count.set(self.count.get() + 1);
        if self.dies_at.get() == Some(self.count.get()) {
            self.dies_at.set(None);
            self.note("dies".to_owned());
            std::panic::resume_unwind(Box::new(Death));
        }
        match self.fault.get() {
            Some(Fault::ReadOnly) => Err(Errno::ROFS),
            Some(Fault::Io(times)) if self.random.borrow_mut().once_in(times) => Err(Errno::IO),
            Some(Fault::NoSpace) if what.starts_with("Write") || what.starts_with("Create") || what == "ledger" => {
                Err(Errno::NOSPC)
            }
            _ => Ok(()),
        }
    }

    /// Makes a change, unless it is to fail, and records it.
    pub(crate) fn through<T, E: From<Errno>>(
        &self,
        change: &Change,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let change = Self::plain(change);
        if let Err(errno) = self.event(&self.text(&change)) {
            self.note(format!("fails: {errno}"));
            return Err(errno.into());
        }
        self.watch(&change);
        let inode = match &change {
            Change::Rename { from, .. } | Change::Link { from, .. } => inode_of(from),
            _ => None,
        };
        if !self.is_other.get() && inode.is_some_and(|inode| self.immovable.borrow().contains(&inode)) {
            self.note("fails: it may not be moved".to_owned());
            return Err(Errno::PERM.into());
        }
        let replaced = match &change {
            Change::Rename { to, .. } => inode_of(to),
            _ => None,
        };
        let done = act()?;
        let mut disk = self.disk.borrow_mut();
        match &change {
            Change::Rename { from, to } => {
                // Renaming one name of a file to another name of it does nothing.
                if replaced.is_none() || replaced != inode {
                    disk.pend([half(to, inode), half(from, None)]);
                }
            }
            Change::Link { to, .. } => disk.pend([half(to, inode)]),
            Change::Remove(path) => disk.pend([half(path, None)]),
            Change::CreateDir(path) | Change::CreateFile(path) => {
                let made = inode_of(path);
                if let (Change::CreateDir(_), Some(made)) = (&change, made) {
                    disk.names.insert(made, BTreeMap::new());
                }
                disk.pend([half(path, made)]);
            }
            Change::Write(_) => {}
            Change::SyncFile(path) => {
                if let (Some(inode), Ok(bytes)) = (inode_of(path), fs::read(path)) {
                    disk.bytes.insert(inode, bytes);
                }
            }
            Change::SyncDir(path) => {
                if let Ok(dir) = fs::metadata(path) {
                    disk.sync(dir.ino(), self.is_other.get());
                }
            }
        }
        if let Some(inode) = inode {
            self.touched(inode);
        }
        Ok(done)
    }

    /// The change with paths through descriptors replaced by the present paths.
    fn plain(change: &Change) -> Change {
        let plain = |path: &PathBuf| {
            let Ok(rest) = path.strip_prefix("/proc/self/fd") else { return path.clone() };
            let mut parts = rest.components();
            let Some(at) = parts.next() else { return path.clone() };
            let dir = fs::read_link(Path::new("/proc/self/fd").join(at)).unwrap_or_default();
            let beneath = parts.as_path();
            if beneath.as_os_str().is_empty() { dir } else { dir.join(beneath) }
        };
        match change {
            Change::Rename { from, to } => Change::Rename { from: plain(from), to: plain(to) },
            Change::Link { from, to } => Change::Link { from: plain(from), to: plain(to) },
            Change::Remove(path) => Change::Remove(plain(path)),
            Change::CreateDir(path) => Change::CreateDir(plain(path)),
            Change::CreateFile(path) => Change::CreateFile(plain(path)),
            Change::Write(path) => Change::Write(plain(path)),
            Change::SyncFile(path) => Change::SyncFile(plain(path)),
            Change::SyncDir(path) => Change::SyncDir(plain(path)),
        }
    }

    fn text(&self, change: &Change) -> String {
        let root = format!("{}/", self.root.display());
        format!("{change:?}").replace(&root, "")
    }

    /// Records a violation where a change touches what a worker uses.
    fn watch(&self, change: &Change) {
        if self.is_other.get() {
            return;
        }
        let paths: Vec<&PathBuf> = match change {
            Change::Rename { from, to } | Change::Link { from, to } => vec![from, to],
            Change::Remove(path) => vec![path],
            _ => vec![],
        };
        for busy in self.busy.borrow().iter() {
            if paths.iter().any(|path| path.starts_with(busy) && !is_record(path)) {
                let told = format!("a worker is at {}: {}", busy.display(), self.text(change));
                self.violation.borrow_mut().get_or_insert(told);
            }
        }
    }

    /// Syncs everything.
    pub(crate) fn settle(&self) {
        let mut disk = self.disk.borrow_mut();
        *disk = Disk::default();
        record(&self.root, &mut disk);
    }

    /// Cuts the power and restores it: afterwards only what was kept lies below the root. Files keep their inodes.
    pub(crate) fn cut(&self, keeps: Keeps) {
        let mut random = self.random.borrow_mut();
        let mut disk = self.disk.replace(Disk::default());
        let pending = std::mem::take(&mut disk.pending);
        let until = random.below(pending.len() as u64 + 1);
        for (n, change) in (0..).zip(pending) {
            let is_split = change.iter().any(|half| half.is_synced);
            let mut keep = || match keeps {
                Keeps::Prefix => n < until,
                Keeps::Any => random.once_in(2),
            };
            let together = keep();
            for half in change {
                if half.is_synced {
                    continue;
                }
                if if is_split { keep() } else { together } {
                    self.trace.borrow_mut().push(format!("keeps {} {}", half.name, half.inode.is_some()));
                    disk.put(&half);
                }
            }
        }
        let aside = self.root.with_extension("before");
        fs::rename(&self.root, &aside).expect("the directory is ours");
        let mut found = BTreeMap::new();
        find(&aside, &mut found);
        let root = fs::metadata(&aside).expect("it was just moved there").ino();
        rebuild(&disk, root, &self.root, &found, &mut random);
        fs::remove_dir_all(&aside).expect("the directory is ours");
        drop(random);
        self.settle();
    }
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// Whether it is claim.json or the like, which no worker needs unchanged.
fn is_record(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.') || name == "claim.json")
}

#[cfg(test)]
mod tests {
    use super::super as volume;
    use super::*;

    /// The states that a power cut may leave of these changes.
    fn left(keeps: Keeps, act: impl Fn(&Path)) -> BTreeSet<Vec<String>> {
        let mut left = BTreeSet::new();
        for seed in 0..64 {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("root");
            fs::create_dir_all(root.join("a")).unwrap();
            fs::create_dir_all(root.join("b")).unwrap();
            fs::write(root.join("a/one"), "1").unwrap();
            let volume = Volume::new(&root, seed);
            let _entered = volume.enter();
            act(&root);
            volume.cut(keeps);
            let mut names = Vec::new();
            list(&root, "", &mut names);
            names.sort();
            left.insert(names);
        }
        left
    }

    fn list(dir: &Path, below: &str, names: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                list(&entry.path(), &format!("{name}/"), names);
            } else {
                names.push(format!("{name}={}", fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }

    fn all(of: &[&[&str]]) -> BTreeSet<Vec<String>> {
        of.iter().map(|names| names.iter().map(|&name| name.to_owned()).collect()).collect()
    }

    #[test]
    fn a_move_that_is_not_synced_is_done_or_not() {
        for keeps in [Keeps::Prefix, Keeps::Any] {
            let moved = left(keeps, |root| volume::rename(&root.join("a/one"), &root.join("b/two")).unwrap());
            assert_eq!(moved, all(&[&["a/one=1"], &["b/two=1"]]));
        }
    }

    #[test]
    fn the_new_name_of_a_move_is_kept_once_its_directory_is_synced_and_the_old_one_may_come_back() {
        let moved = left(Keeps::Any, |root| {
            volume::rename(&root.join("a/one"), &root.join("b/two")).unwrap();
            volume::sync_dir(&root.join("b")).unwrap();
        });
        assert!(moved.contains(&vec!["b/two=1".to_owned()]), "{moved:?}");
        assert!(moved.iter().all(|names| names.contains(&"b/two=1".to_owned())), "{moved:?}");
    }

    #[test]
    fn bytes_are_kept_once_they_are_synced() {
        let write = |root: &Path, is_synced: bool| {
            let path = root.join("b/two");
            let file = volume::create_file(&path, 0o644).unwrap();
            volume::write(&file, &path, b"2").unwrap();
            if is_synced {
                volume::sync_file(&file, &path).unwrap();
            }
            volume::sync_dir(&root.join("b")).unwrap();
        };
        assert_eq!(left(Keeps::Any, |root| write(root, true)), all(&[&["a/one=1", "b/two=2"]]));
        assert_eq!(
            left(Keeps::Any, |root| write(root, false)),
            all(&[&["a/one=1", "b/two="], &["a/one=1", "b/two=2"]])
        );
    }

    #[test]
    fn what_lies_in_a_directory_goes_with_its_name() {
        let made = left(Keeps::Any, |root| {
            volume::create_dir(&root.join("b/c"), 0o755).unwrap();
            volume::rename(&root.join("a/one"), &root.join("b/c/one")).unwrap();
            volume::sync_dir(&root.join("b/c")).unwrap();
            volume::sync_dir(&root.join("a")).unwrap();
        });
        assert_eq!(made, all(&[&[], &["b/c/one=1"]]), "nobody had synced b");
    }
}
