// SPDX-License-Identifier: Apache-2.0
//! What is certainly on a simulated disk, what is pending, and what a power cut leaves of both.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::random::Random;

/// The pending change of one name.
#[derive(Clone, Debug)]
pub(super) struct Half {
    pub dir: u64,
    pub name: String,
    /// The file or directory with this name after the change; `None` if it is removed.
    pub inode: Option<u64>,
    pub is_synced: bool,
}

/// Names that change together.
pub(super) type Pending = Vec<Half>;

/// What is certainly on the disk, and what is pending.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub names: BTreeMap<u64, BTreeMap<String, u64>>,
    pub bytes: BTreeMap<u64, Vec<u8>>,
    pub pending: Vec<Pending>,
}

impl Disk {
    pub(super) fn pend<const N: usize>(&mut self, halves: [Option<Half>; N]) {
        self.pending.push(halves.into_iter().flatten().collect());
    }

    pub(super) fn put(&mut self, half: &Half) {
        let names = self.names.entry(half.dir).or_default();
        match half.inode {
            Some(inode) => names.insert(half.name.clone(), inode),
            None => names.remove(&half.name),
        };
    }

    /// Syncs a directory's names. If another process does it (`by_other`), moves out of the directory become durable
    /// on both sides, as journals do it: if a process died before the sync of its own move, no engine could recover a
    /// file that another process's sync has taken away.
    pub(super) fn sync(&mut self, dir: u64, by_other: bool) {
        let mut pending = std::mem::take(&mut self.pending);
        for change in pending.iter_mut().filter(|change| change.iter().any(|half| half.dir == dir)) {
            // No file system shows a directory under two names.
            let is_whole =
                by_other || change.iter().any(|half| half.inode.is_some_and(|inode| self.names.contains_key(&inode)));
            for half in change.iter_mut().filter(|half| (half.dir == dir || is_whole) && !half.is_synced) {
                half.is_synced = true;
                self.put(half);
            }
        }
        pending.retain(|change| change.iter().any(|half| !half.is_synced));
        self.pending = pending;
    }
}

pub(super) fn half(path: &Path, inode: Option<u64>) -> Option<Half> {
    let dir = fs::metadata(path.parent()?).ok()?.ino();
    Some(Half { dir, name: path.file_name()?.to_string_lossy().into_owned(), inode, is_synced: false })
}

pub(super) fn record(dir: &Path, disk: &mut Disk) {
    let at = fs::metadata(dir).expect("it was just listed").ino();
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory of ours").map(|entry| entry.expect("a directory of ours")) {
        let found = fs::symlink_metadata(entry.path()).expect("nobody else is here");
        names.insert(entry.file_name().to_string_lossy().into_owned(), found.ino());
        if found.is_dir() {
            record(&entry.path(), disk);
        } else if found.is_file() {
            disk.bytes.insert(found.ino(), fs::read(entry.path()).unwrap_or_default());
        }
    }
    disk.names.insert(at, names);
}

/// The path of each file and directory.
pub(super) fn find(dir: &Path, found: &mut BTreeMap<u64, PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of ours").map(|entry| entry.expect("a directory of ours")) {
        let kind = entry.file_type().expect("nobody else is here");
        if kind.is_dir() {
            find(&entry.path(), found);
        }
        found.insert(fs::symlink_metadata(entry.path()).expect("nobody else is here").ino(), entry.path());
    }
}

pub(super) fn rebuild(disk: &Disk, directory: u64, at: &Path, found: &BTreeMap<u64, PathBuf>, random: &mut Random) {
    fs::create_dir(at).expect("the directory is ours");
    for (name, inode) in disk.names.get(&directory).into_iter().flatten() {
        let path = at.join(name);
        if disk.names.contains_key(inode) {
            rebuild(disk, *inode, &path, found, random);
            continue;
        }
        let kept = disk.bytes.get(inode);
        if let Some(before) = found.get(inode) {
            fs::hard_link(before, &path).expect("the directory is ours");
            let now = fs::read(&path).unwrap_or_default();
            // Bytes that were not synced are all there or not at all.
            let bytes = kept.cloned().unwrap_or_default();
            if now != bytes && random.once_in(2) {
                let modified = fs::metadata(&path).and_then(|found| found.modified()).expect("a file of ours");
                fs::write(&path, bytes).expect("a file of ours");
                let file = fs::File::options().write(true).open(&path).expect("a file of ours");
                file.set_modified(modified).expect("a file of ours");
            }
        } else {
            fs::write(&path, kept.cloned().unwrap_or_default()).expect("the directory is ours");
        }
    }
    // A directory gets another inode, as after a restore. It is still known by its time.
    if let Some(before) = found.get(&directory) {
        let modified = fs::metadata(before).and_then(|found| found.modified()).expect("a directory of ours");
        fs::File::open(at).and_then(|dir| dir.set_modified(modified)).expect("a directory of ours");
    }
}
