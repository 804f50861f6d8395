// SPDX-License-Identifier: Apache-2.0
//! The directories of a simulated queue: what was dropped into them, what others did to it, and what the result must
//! be.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use crate::files::volume::simulated::{Random, Volume};
use crate::files::{Paths, volume};
use crate::queue::identity::Role;
use crate::queue::writers::Writers;

use super::Simulated;

/// A source that was dropped, known by the first line of its content, whatever it is called.
#[derive(Debug)]
struct Source {
    /// The name that it was dropped by.
    name: String,
    /// Every content that it had, oldest first.
    contents: Vec<Vec<u8>>,
    /// The file, if whoever dropped it holds it open.
    open: Option<File>,
    is_removed: bool,
    /// Whether others did something to it, so that it may be converted more than once.
    is_touched: bool,
    is_extent: bool,
    /// Files that were dropped together.
    group: u64,
    /// How it was written, where that took several steps.
    upload: Option<Upload>,
}

/// A file that is written piece by piece.
#[derive(Debug)]
struct Upload {
    /// Its writer's handle; absent once the writer has closed it, or died.
    file: Option<File>,
    /// What the writer means to write.
    whole: Vec<u8>,
    /// How much of that it has written.
    written: usize,
    /// Whether the engine has seen all that the writer did: then it can know better than to take a half.
    is_seen: bool,
    /// Whether the writer has closed it.
    is_closed: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Site {
    pub paths: Paths,
    volume: Rc<Volume>,
    time: Simulated,
    random: Random,
    sources: BTreeMap<String, Source>,
    dropped: u64,
    groups: u64,
    /// Whether the next drop belongs to the group of the last one.
    is_in_group: bool,
    names: Vec<String>,
    /// A file that a dropped folder still misses: its path, and its group.
    missing: Option<(String, u64)>,
    /// Names that a later descriptor named, with the name of that descriptor.
    named_late: BTreeMap<String, String>,
    /// Marks of descriptors and files that their manifests disprove.
    pub wrong: Wrong,
    /// Whether somebody deleted the ledger: then nobody knows what was published before.
    is_ledger_lost: bool,
    /// What the engine is told of writers.
    writers: Writers,
}

mod checks;
mod others;
mod uploads;

/// See [`Site::wrong`].
pub(super) type Wrong = Rc<RefCell<BTreeSet<(String, String)>>>;

type Check = Result<(), String>;

impl Site {
    pub(super) fn new(paths: Paths, volume: Rc<Volume>, time: Simulated, random: Random) -> Self {
        Self {
            paths,
            volume,
            time,
            random,
            sources: BTreeMap::new(),
            dropped: 0,
            groups: 0,
            is_in_group: false,
            names: Vec::new(),
            missing: None,
            named_late: BTreeMap::new(),
            wrong: Wrong::default(),
            is_ledger_lost: false,
            writers: Writers::default(),
        }
    }

    fn modified(&self) -> SystemTime {
        // A writer's clock is its own.
        SystemTime::from(self.time.steady())
    }

    /// Drops a file under a new name.
    pub(super) fn drop_file(&mut self) {
        let name = format!("vm{}.raw", self.dropped);
        self.put(&name, "", false);
    }

    /// Drops a file under a name that was used before, unless a file of that name waits.
    pub(super) fn drop_again(&mut self) {
        if self.names.is_empty() {
            return self.drop_file();
        }
        let index = usize::try_from(self.random.below(self.names.len() as u64)).expect("an index");
        let name = self.names[index].clone();
        if !self.paths.queue().join(&name).exists() && !name.contains(".vmdk") {
            self.put(&name, "", false);
        }
    }

    /// Drops a descriptor and its extent.
    pub(super) fn drop_group(&mut self) {
        let n = self.dropped;
        let (name, extent) = (format!("vm{n}.vmdk"), format!("vm{n}-flat.vmdk"));
        let text = descriptor(&extent);
        self.is_in_group = true;
        if self.random.once_in(2) {
            self.put(&name, &text, false);
            self.put(&extent, "", true);
        } else {
            self.put(&extent, "", true);
            self.put(&name, &text, false);
        }
        self.is_in_group = false;
        self.groups += 1;
    }

    /// Drops a folder with a descriptor and its extent, or brings the extent that the last one misses. Where that was
    /// taken meanwhile, it lies in a folder of its own.
    pub(super) fn drop_folder(&mut self) {
        if let Some((path, group)) = self.missing.take() {
            let folder = self.paths.queue().join(path.split('/').next().expect("a path"));
            if !folder.exists() {
                self.make_folder(&folder);
            }
            let last = std::mem::replace(&mut self.groups, group);
            self.is_in_group = true;
            self.put(&path, "", true);
            self.is_in_group = false;
            self.groups = last;
            return;
        }
        let folder = format!("folder{}", self.dropped);
        self.make_folder(&self.paths.queue().join(&folder));
        let extent = format!("{folder}/any-flat.vmdk");
        self.is_in_group = true;
        self.put(&format!("{folder}/any.vmdk"), &descriptor("any-flat.vmdk"), false);
        if self.random.once_in(3) {
            self.missing = Some((extent, self.groups));
        } else {
            self.put(&extent, "", true);
        }
        self.is_in_group = false;
        self.groups += 1;
    }

    fn make_folder(&self, path: &Path) {
        self.volume.other(|| {
            volume::create_dir(path, 0o755).expect("a free name");
            volume::sync_dir(self.paths.queue()).expect("a directory of ours");
        });
    }

    /// Drops a descriptor that names a file that was dropped before, wherever that file is now.
    pub(super) fn drop_late(&mut self) {
        let free = |name: &&String| !name.contains(".vmdk") && !self.named_late.contains_key(*name);
        let names: Vec<String> = self.names.iter().filter(free).cloned().collect();
        if names.is_empty() {
            return self.drop_file();
        }
        let name = names[usize::try_from(self.random.below(names.len() as u64)).expect("an index")].clone();
        let late = format!("late{}.vmdk", self.dropped);
        // The descriptor's manifest may know another file of this name.
        if self.random.once_in(3) {
            let of = format!("source {}", self.dropped);
            let marks = self.sources.iter().filter(|(_, source)| source.name == name).map(|(mark, _)| mark.clone());
            self.wrong.borrow_mut().extend(marks.map(|mark| (of.clone(), mark)));
            self.volume.note(format!("{name} is disproved for {late}"));
        }
        self.put(&late, &descriptor(&name), false);
        self.named_late.insert(name, late);
    }

    fn put(&mut self, name: &str, text: &str, is_extent: bool) {
        let mark = format!("source {}", self.dropped);
        self.dropped += 1;
        // A descriptor is recognised by its first line.
        let mut content = if text.is_empty() { format!("{mark}\n") } else { format!("{text}# {mark}\n") }.into_bytes();
        if text.is_empty() {
            content.resize(usize::try_from(512 + 8 * self.random.below(8)).expect("a small number"), b'.');
        }
        let path = self.paths.queue().join(name);
        self.volume.note(format!("dropped: {name}, {mark}, {} bytes", content.len()));
        let modified = self.modified();
        let open = self.volume.other(|| {
            let file = volume::create_file(&path, 0o644).expect("a free name");
            volume::write(&file, &path, &content).expect("a directory of ours");
            file.set_modified(modified).expect("a file of ours");
            volume::sync_file(&file, &path).expect("a file of ours");
            volume::sync_dir(path.parent().expect("a file")).expect("a directory of ours");
            file
        });
        self.volume.touched(open.metadata().expect("an open file").ino());
        let source = Source {
            name: name.to_owned(),
            contents: vec![content],
            open: Some(open),
            is_removed: false,
            is_touched: false,
            is_extent,
            group: self.groups,
            upload: None,
        };
        self.sources.insert(mark, source);
        // People drop folders under new names only.
        if !name.contains('/') {
            self.names.push(name.to_owned());
        }
        self.groups += u64::from(!self.is_in_group);
    }

    fn touch(&mut self, mark: &str) {
        let Some(touched) = self.sources.get(mark) else { return };
        let (group, name) = (touched.group, touched.name.clone());
        let late = self.named_late.iter().filter(|(named, late)| **named == name || **late == name);
        let names: Vec<String> = late.flat_map(|(named, late)| [named.clone(), late.clone()]).collect();
        for source in self.sources.values_mut().filter(|s| s.group == group || names.contains(&s.name)) {
            source.is_touched = true;
        }
    }

    /// Without its rows the engine may convert again what it had published, and archives what it has no output of.
    pub(super) fn ledger_was_lost(&mut self) {
        self.is_ledger_lost = true;
        for source in self.sources.values_mut() {
            source.is_touched = true;
        }
    }

    /// After a power cut nobody holds a file open.
    pub(super) fn power_was_cut(&mut self) {
        for source in self.sources.values_mut() {
            source.open = None;
            if let Some(upload) = &mut source.upload {
                upload.file = None;
            }
        }
    }

    /// The volume of one directory goes away: an empty directory lies there instead. Returns whether the volume was
    /// there.
    pub(super) fn unmount(&self, role: Role) -> bool {
        let (at, aside) = self.mount_of(role);
        if self.is_away() {
            return false;
        }
        let root = at.parent().expect("the directories lie below the volume's root");
        self.volume.other(|| {
            volume::rename(&at, &aside).expect("a directory of ours");
            volume::create_dir(&at, 0o755).expect("a name that was just given up");
            volume::sync_dir(root).expect("a directory of ours");
        });
        true
    }

    /// The volumes that are away come back. Nobody may have written into the directories that stood in for them.
    pub(super) fn mount(&self) -> Check {
        for (at, aside) in [Role::Queue, Role::Output].map(|role| self.mount_of(role)) {
            if !aside.exists() {
                continue;
            }
            let written = names(&at);
            if !written.is_empty() {
                return Err(format!("{written:?} was written where {} was not mounted", at.display()));
            }
            let root = at.parent().expect("the directories lie below the volume's root");
            self.volume.other(|| {
                volume::remove_dir(&at).expect("a directory of ours");
                volume::rename(&aside, &at).expect("a directory of ours");
                volume::sync_dir(root).expect("a directory of ours");
            });
        }
        Ok(())
    }

    pub(super) fn is_away(&self) -> bool {
        [Role::Queue, Role::Output].into_iter().any(|role| self.mount_of(role).1.exists())
    }

    /// Where a volume is mounted, and where it lies while it is not.
    fn mount_of(&self, role: Role) -> (PathBuf, PathBuf) {
        let at = if role == Role::Queue { self.paths.queue() } else { self.paths.output() };
        (at.to_owned(), at.with_extension("away"))
    }

    pub(super) fn holds_no_claim(&self) -> bool {
        names(&self.paths.processing()).iter().all(|name| name.starts_with('.'))
    }
}

/// The text of a descriptor with one extent.
fn descriptor(extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 1 FLAT \"{extent}\" 0\nddb.adapterType = \"lsilogic\"\n"
    )
}

/// The mark in a source's content.
pub(super) fn mark(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    let at = if text.starts_with("source ") { 0 } else { text.find("\n# source ").map(|at| at + 3)? };
    text[at..].lines().next().map(str::to_owned)
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// Files in a directory, or below it.
fn files(dir: &Path, is_deep: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(dir) {
        let path = dir.join(name);
        match fs::symlink_metadata(&path) {
            Ok(kind) if kind.is_dir() && is_deep => found.extend(files(&path, true)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}
