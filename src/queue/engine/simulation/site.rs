// SPDX-License-Identifier: Apache-2.0
//! The directories of a simulated queue: what was dropped into them, what others did to it, and what the result must
//! be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::conversion::Metadata;
use crate::conversion::retention::Retention;
use crate::conversion::status::End;
use crate::files::volume::simulated::{Random, Volume};
use crate::files::{Paths, volume};
use crate::ledger::Ledger;
use crate::queue::identity::Role;
use crate::queue::writers::{Sign, Writers};

use super::Simulated;
use super::executor::{World, converted};
use super::script::Growth;

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
    /// What the engine is told of writers.
    writers: Writers,
}

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
            writers: Writers::default(),
        }
    }

    fn modified(&self) -> SystemTime {
        SystemTime::from(self.time.now())
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

    /// Moves a folder from `.errors/` back into the queue.
    pub(super) fn retry_folder(&mut self) {
        let errors = self.paths.errors();
        let folders =
            names(&errors).into_iter().filter(|name| name.starts_with("folder") && errors.join(name).is_dir());
        let folders: Vec<String> = folders.collect();
        let Some(index) = (!folders.is_empty()).then(|| self.random.below(folders.len() as u64)) else { return };
        let name = &folders[usize::try_from(index).expect("an index")];
        let (from, to) = (errors.join(name), self.paths.queue().join(name));
        if to.exists() {
            return;
        }
        self.volume.note(format!("taken from .errors: {name}"));
        let marks: Vec<String> =
            files(&from, true).iter().filter_map(|path| mark(&fs::read(path).expect("a file of ours"))).collect();
        self.move_by_hand(&from, &to);
        for mark in &marks {
            self.touch(mark);
        }
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

    /// Chooses a file in a directory that people look into.
    fn some(&mut self, dir: &Path) -> Option<(PathBuf, String)> {
        let mut found: Vec<(PathBuf, String)> = files(dir, false)
            .into_iter()
            .filter_map(|path| Some((path.clone(), mark(&fs::read(path).ok()?)?)))
            .collect();
        found.retain(|(_, mark)| self.sources.get(mark).is_some_and(|source| source.upload.is_none()));
        // A file with two names is in the middle of a move by link, and nobody takes one of its names.
        found.retain(|(path, _)| fs::symlink_metadata(path).is_ok_and(|found| found.nlink() == 1));
        found.sort();
        (!found.is_empty()).then(|| {
            let index = usize::try_from(self.random.below(found.len() as u64)).expect("an index");
            found.swap_remove(index)
        })
    }

    /// Chooses a file in the queue directory itself.
    fn some_waiting(&mut self) -> Option<(PathBuf, String)> {
        let queue = self.paths.queue().to_owned();
        self.some(&queue)
    }

    pub(super) fn rename(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        let to = self.paths.queue().join(format!("renamed{}.raw", self.random.below(1000)));
        if to.exists() {
            return;
        }
        self.volume.note(format!("renamed: {mark} to {}", to.display().to_string().rsplit('/').next().unwrap_or("")));
        self.move_by_hand(&path, &to);
        self.touch(&mark);
    }

    /// Moves a file from `.errors/` back into the queue.
    pub(super) fn retry(&mut self) {
        let Some((path, mark)) = self.some(&self.paths.errors()) else { return };
        let to = self.paths.queue().join(path.file_name().expect("a file"));
        if to.exists() {
            return;
        }
        self.volume.note(format!("taken from .errors: {mark}"));
        self.move_by_hand(&path, &to);
        self.touch(&mark);
    }

    fn move_by_hand(&self, from: &Path, to: &Path) {
        self.volume.other(|| {
            volume::rename(from, to).expect("a file of ours");
            volume::sync_dir(to.parent().expect("a file")).expect("a directory of ours");
            volume::sync_dir(from.parent().expect("a file")).expect("a directory of ours");
        });
    }

    pub(super) fn grow(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        let file = File::options().append(true).open(&path).expect("a file of ours");
        self.lengthen(&mark, &file, &path);
    }

    /// Changes a file in `.errors/`.
    pub(super) fn correct(&mut self) {
        let Some((path, mark)) = self.some(&self.paths.errors()) else { return };
        let file = File::options().append(true).open(&path).expect("a file of ours");
        self.lengthen(&mark, &file, &path);
    }

    /// Writes to a file wherever it is now.
    pub(super) fn write_on(&mut self) {
        let marks: Vec<String> = self
            .sources
            .iter()
            .filter(|(_, s)| s.open.is_some() && !s.is_removed)
            .map(|(mark, _)| mark.clone())
            .collect();
        if marks.is_empty() {
            return;
        }
        let mark = &marks[usize::try_from(self.random.below(marks.len() as u64)).expect("an index")];
        let Some(file) = self.sources.get_mut(mark).and_then(|source| source.open.take()) else { return };
        let inode = file.metadata().expect("an open file").ino();
        let path = files(self.paths.queue(), true)
            .into_iter()
            .find(|path| fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode));
        if let Some(path) = path {
            let file = File::options().append(true).open(&path).expect("a file of ours");
            self.lengthen(mark, &file, &path);
        }
    }

    fn lengthen(&mut self, mark: &str, mut file: &File, path: &Path) {
        self.volume.note(format!("written to: {mark}"));
        file.write_all(b"more....").expect("a file of ours");
        // The modification time differs from every earlier one.
        let modified = self.modified() + Duration::from_nanos(self.volume.trace().len() as u64);
        file.set_modified(modified).expect("a file of ours");
        self.volume.other(|| volume::sync_file(file, path)).expect("a file of ours");
        self.volume.touched(file.metadata().expect("an open file").ino());
        let content = fs::read(path).expect("a file of ours");
        if let Some(source) = self.sources.get_mut(mark) {
            source.contents.push(content);
        }
        self.touch(mark);
    }

    pub(super) fn chmod(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        self.volume.note(format!("mode changed: {mark}"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file of ours");
        self.volume.touched(fs::metadata(&path).expect("a file of ours").ino());
    }

    /// Makes a file immovable.
    pub(super) fn deny(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        self.volume.note(format!("may not be moved: {mark}"));
        self.volume.set_immovable(fs::metadata(&path).expect("a file of ours").ino(), true);
        // The conversion fails, and the file is converted when it may be moved again.
        self.touch(&mark);
    }

    pub(super) fn remove(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        self.volume.note(format!("removed: {mark}"));
        self.volume.other(|| {
            volume::remove_file(&path).expect("a file of ours");
            volume::sync_dir(self.paths.queue()).expect("a directory of ours");
        });
        if let Some(source) = self.sources.get_mut(&mark) {
            source.is_removed = true;
        }
        self.touch(&mark);
    }

    /// A name in the queue that can be asked for.
    pub(super) fn some_name(&mut self) -> Option<String> {
        let (path, mark) = self.some_waiting()?;
        // A requested file is converted, whatever became of it before.
        self.touch(&mark);
        path.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// An engine begins to see what writers do. It knows nothing of those that began before.
    pub(super) fn watched_by(&mut self, writers: Writers) {
        self.writers = writers;
        for upload in self.sources.values_mut().filter_map(|source| source.upload.as_mut()) {
            upload.is_seen &= upload.is_closed;
        }
    }

    /// Begins a file that is written piece by piece.
    pub(super) fn upload(&mut self, growth: Growth) {
        let (mark, name) = (format!("source {}", self.dropped), format!("up{}.raw", self.dropped));
        self.dropped += 1;
        let mut whole = format!("{mark}\n").into_bytes();
        let written = whole.len();
        whole.resize(usize::try_from(512 + 512 * (1 + self.random.below(8))).expect("a small number"), b'w');
        let mut content = whole[..written].to_vec();
        if growth == Growth::Preallocated {
            content.resize(whole.len(), 0);
        }
        self.volume.note(format!("upload begins: {name}, {mark}, {growth:?}, {} bytes", whole.len()));
        let path = self.paths.queue().join(&name);
        let modified = self.modified();
        let file = self.volume.other(|| {
            let file = volume::create_file(&path, 0o644).expect("a free name");
            volume::write(&file, &path, &content).expect("a directory of ours");
            file.set_modified(modified).expect("a file of ours");
            volume::sync_file(&file, &path).expect("a file of ours");
            volume::sync_dir(self.paths.queue()).expect("a directory of ours");
            file
        });
        self.volume.touched(file.metadata().expect("an open file").ino());
        self.writers.observe(&name, Sign::Modified);
        let upload = Upload { file: Some(file), whole, written, is_seen: true, is_closed: false };
        let source = Source {
            name,
            contents: vec![content],
            open: None,
            is_removed: false,
            // A half of it may be converted where the engine can't see the writer.
            is_touched: true,
            is_extent: false,
            group: self.groups,
            upload: Some(upload),
        };
        self.groups += 1;
        self.sources.insert(mark, source);
    }

    /// Writes the next piece of an upload.
    pub(super) fn write_piece(&mut self) {
        let Some(mark) = self.some_upload() else { return };
        let bytes = usize::try_from(1 + self.random.below(600)).expect("a small number");
        self.write(&mark, |upload| {
            upload.written = (upload.written + bytes).min(upload.whole.len());
            false
        });
    }

    /// Truncates an upload, and begins anew.
    pub(super) fn write_anew(&mut self) {
        let Some(mark) = self.some_upload() else { return };
        let bytes = mark.len() + 1;
        self.write(&mark, |upload| {
            upload.written = bytes;
            true
        });
    }

    /// Writes the rest of an upload, and closes it.
    pub(super) fn finish(&mut self) {
        if let Some(mark) = self.some_upload() {
            self.finish_one(&mark);
        }
    }

    /// Finishes all uploads.
    pub(super) fn finish_all(&mut self) {
        let is_open = |source: &Source| source.upload.as_ref().is_some_and(|upload| upload.file.is_some());
        let open: Vec<String> =
            self.sources.iter().filter(|(_, source)| is_open(source)).map(|(mark, _)| mark.clone()).collect();
        for mark in &open {
            self.finish_one(mark);
        }
    }

    fn finish_one(&mut self, mark: &str) {
        self.write(mark, |upload| {
            upload.written = upload.whole.len();
            false
        });
        let Some(source) = self.sources.get_mut(mark) else { return };
        let Some(upload) = source.upload.as_mut().filter(|upload| upload.file.is_some()) else { return };
        self.volume.note(format!("upload ends: {mark}"));
        upload.file = None;
        upload.is_closed = true;
        self.writers.observe(&source.name, Sign::Closed);
    }

    fn some_upload(&mut self) -> Option<String> {
        let is_open = |source: &Source| source.upload.as_ref().is_some_and(|upload| upload.file.is_some());
        let open: Vec<&String> =
            self.sources.iter().filter(|(_, source)| is_open(source)).map(|(mark, _)| mark).collect();
        let index = |bound: usize, random: &mut Random| usize::try_from(random.below(bound as u64)).expect("an index");
        (!open.is_empty()).then(|| open[index(open.len(), &mut self.random)].clone())
    }

    /// Writes as far as `advance` says, which returns whether the file is truncated to that. The file may lie anywhere
    /// meanwhile.
    fn write(&mut self, mark: &str, advance: impl FnOnce(&mut Upload) -> bool) {
        let modified = self.modified() + Duration::from_nanos(self.volume.trace().len() as u64);
        let Some(source) = self.sources.get_mut(mark) else { return };
        let Some(upload) = &mut source.upload else { return };
        let is_truncated = advance(upload);
        let Some(file) = &upload.file else { return };
        let inode = file.metadata().expect("an open file").ino();
        self.volume.note(format!("upload goes on: {mark}, {} bytes", upload.written));
        if is_truncated {
            file.set_len(upload.written as u64).expect("a file of ours");
        }
        file.write_all_at(&upload.whole[..upload.written], 0).expect("a file of ours");
        file.set_modified(modified).expect("a file of ours");
        self.volume.touched(inode);
        let is_it = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode);
        if let Some(path) = files(self.paths.queue(), true).into_iter().find(is_it) {
            self.volume.other(|| volume::sync_file(file, &path)).expect("a file of ours");
            source.contents.push(fs::read(&path).expect("a file of ours"));
        } else {
            // It was removed by its age, and its writer writes to nothing.
            upload.file = None;
        }
        self.writers.observe(&source.name, Sign::Modified);
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

    /// Checks that every source lies in one place below the queue, under one name or, where a move was cut short, under
    /// two.
    pub(super) fn check_places(&self, published: &[Published], retention: &Retention, is_end: bool) -> Check {
        let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in files(self.paths.queue(), true) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let content = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let shown = path.strip_prefix(self.paths.queue()).unwrap_or(&path).display().to_string();
            if let Some(mark) = mark(&content) {
                let inode = fs::metadata(&path).map_err(|error| error.to_string())?.ino();
                found.entry(mark.clone()).or_default().insert(inode);
                names.entry(mark).or_default().push(shown);
            } else if !(name == "claim.json" || name.ends_with(".error.json") || name.starts_with('.')) {
                return Err(format!("what is {shown}?"));
            }
        }
        for (mark, source) in &self.sources {
            let places = names.get(mark).map_or(&[][..], Vec::as_slice);
            let inodes = found.get(mark).map_or(0, BTreeSet::len);
            let is_published = published.iter().any(|one| one.marks.contains(mark));
            let may_be_gone = retention.errors_days.is_some()
                || retention.processed_days.is_some() && (is_published || retention.outputs_days.is_some());
            let is_right = match (source.is_removed, is_end) {
                (true, _) => places.is_empty(),
                (false, _) if places.is_empty() => may_be_gone,
                (false, true) => places.len() == 1,
                (false, false) => inodes == 1 && places.len() <= 2,
            };
            if !is_right {
                return Err(format!("{mark} (removed: {}) lies in {places:?}", source.is_removed));
            }
        }
        Ok(())
    }

    /// Checks that every published directory is whole, and returns them.
    pub(super) fn check_published(&self, is_end: bool) -> Result<Vec<Published>, String> {
        let mut published = Vec::new();
        for day in names(self.paths.output()).iter().filter(|name| !name.starts_with('.')) {
            for stem in names(&self.paths.output().join(day)) {
                let dir = self.paths.output().join(day).join(&stem);
                published.push(self.check_one(&dir, is_end).map_err(|why| format!("{day}/{stem}: {why}"))?);
            }
        }
        Ok(published)
    }

    fn check_one(&self, dir: &Path, is_end: bool) -> Result<Published, String> {
        let text = fs::read(dir.join("metadata.json")).map_err(|error| format!("metadata.json: {error}"))?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| format!("metadata.json: {error}"))?;
        let [disk] = metadata.disks.as_slice() else { return Err("not one disk".to_owned()) };
        let expected = BTreeSet::from(["domain.xml".to_owned(), "metadata.json".to_owned(), disk.file.clone()]);
        // Until the end, metadata.json may be in the middle of being replaced.
        let is_odd = |name: &String| !expected.contains(name) && (is_end || !name.starts_with('.'));
        if let Some(other) = names(dir).into_iter().find(is_odd) {
            return Err(format!("{other} lies there"));
        }
        let bytes = fs::read(dir.join(&disk.file)).map_err(|error| format!("{}: {error}", disk.file))?;
        let text = String::from_utf8_lossy(&bytes);
        let marks: Vec<String> = text
            .match_indices("source ")
            .map(|(at, _)| text[at..].split('\n').next().unwrap_or_default().to_owned())
            .collect();
        // The disk holds each of its members, with a content that this member had at some time.
        let mut rest = bytes.as_slice().strip_prefix(b"converted\n").ok_or("its disk has no beginning")?;
        for mark in &marks {
            let source = self.sources.get(mark).ok_or_else(|| format!("made of {mark}"))?;
            let content = source.contents.iter().rev().find(|content| rest.starts_with(content));
            let content = content.ok_or_else(|| format!("not what {mark} was"))?;
            source.check_upload(content, is_end && metadata.source_changed_at.is_none())?;
            rest = &rest[content.len()..];
        }
        if !rest.is_empty() || marks.is_empty() || bytes == converted([]) {
            return Err("its disk is not what was dropped".to_owned());
        }
        let is_superseded = match metadata.superseded_by {
            Some(whole) if !Path::new(&whole).join("metadata.json").exists() => {
                return Err(format!("superseded by {whole}, which is not there"));
            }
            by => by.is_some(),
        };
        Ok(Published { marks, is_superseded })
    }

    /// Checks, once everything has come to rest, that all is in its place and counted.
    pub(super) fn check_end(&self, world: &World, ledger: &mut Ledger, script: &super::script::Script) -> Check {
        let retention = &script.retention;
        let published = self.check_published(true)?;
        self.check_places(&published, retention, true)?;
        for trash in [self.paths.processing().join(".trash"), self.paths.work().join(".trash")] {
            if !names(&trash).is_empty() {
                return Err(format!("{:?} is left in {}", names(&trash), trash.display()));
            }
        }
        for below in [self.paths.processing(), self.paths.work()] {
            let left: Vec<String> = names(&below).into_iter().filter(|name| !name.starts_with('.')).collect();
            if !left.is_empty() {
                return Err(format!("{left:?} is left in {}", below.display()));
            }
        }
        let rows = ledger.conversions().map_err(|error| error.to_string())?;
        if !rows.is_empty() {
            return Err(format!("{} rows are left", rows.len()));
        }
        self.check_sources(&published, world, script)?;
        let totals = ledger.totals().map_err(|error| error.to_string())?;
        let count = |wanted: End| world.ended.values().filter(|(end, _)| *end == wanted).count() as u64;
        let given_back = world
            .ended
            .values()
            .filter(|(end, failure)| {
                let is_given_back = failure.as_ref().is_some_and(|f| f.class == crate::conversion::Class::GivenBack);
                *end == End::Cancelled && is_given_back
            })
            .count() as u64;
        let counted = [totals.all.succeeded, totals.all.failed, totals.duplicates, totals.cancelled];
        let happened =
            [count(End::Succeeded), count(End::Failed), count(End::Duplicate), count(End::Cancelled) - given_back];
        if counted != happened {
            return Err(format!(
                "counted {counted:?}, happened {happened:?} (succeeded, failed, duplicate, cancelled)"
            ));
        }
        check_announced(ledger, happened[0], happened[1])?;
        let superseded = published.iter().filter(|one| one.is_superseded).count() as u64;
        if superseded > totals.superseded || superseded < totals.superseded && retention.outputs_days.is_none() {
            return Err(format!("{superseded} are superseded, {} are counted so", totals.superseded));
        }
        if published.len() as u64 + totals.removed.outputs != happened[0] {
            let removed = totals.removed.outputs;
            return Err(format!("{} published, {removed} removed, {} succeeded", published.len(), happened[0]));
        }
        let limits = [retention.processed_days, retention.errors_days, retention.outputs_days];
        let removed = [totals.removed.processed, totals.removed.errors, totals.removed.outputs];
        if limits.iter().zip(removed).any(|(limit, removed)| limit.is_none() && removed > 0) {
            return Err(format!("removed {removed:?} by {limits:?}"));
        }
        let [succeeded, failed, duplicates, cancelled] = happened;
        if removed[0] > succeeded + duplicates || removed[1] > failed + cancelled {
            return Err(format!("removed {removed:?}, happened {happened:?}"));
        }
        Ok(())
    }

    /// Checks that archived sources were published, and sources that nobody touched at most once.
    fn check_sources(&self, published: &[Published], world: &World, script: &super::script::Script) -> Check {
        let times = |mark: &str| published.iter().flat_map(|one| &one.marks).filter(|of| *of == mark).count();
        let valid = published.iter().filter(|one| !one.is_superseded);
        let valid_times = |mark: &str| valid.clone().flat_map(|one| &one.marks).filter(|of| *of == mark).count();
        for path in files(self.paths.queue(), true) {
            let Some(mark) = fs::read(&path).ok().as_deref().and_then(mark) else { continue };
            let Some(source) = self.sources.get(&mark) else { continue };
            let shown = path.strip_prefix(self.paths.queue()).unwrap_or(&path).to_owned();
            let is_archived = shown.starts_with(".processed");
            let is_failed = shown.starts_with(".errors");
            if valid_times(&mark) > 1 && !source.is_touched {
                return Err(format!("{mark} was published {} times", valid_times(&mark)));
            }
            let has_lost_outputs = script.retention.outputs_days.is_some();
            let has_duplicates = world.ended.values().any(|(end, _)| *end == End::Duplicate);
            if is_archived && times(&mark) == 0 && !has_duplicates && !has_lost_outputs {
                return Err(format!("{mark} is archived and was not published"));
            }
            // A source that a later descriptor names may have been published by itself, without that descriptor.
            let is_half = self.named_late.contains_key(&source.name) && valid_times(&mark) == 1;
            if is_failed && times(&mark) > 0 && !source.is_touched && !is_half {
                return Err(format!("{mark} was published and lies in {}", shown.display()));
            }
            let stays = !script.archive_processed || source.is_extent || source.is_touched;
            if !is_archived && !is_failed && !stays {
                return Err(format!("{mark} is forgotten in {}", shown.display()));
            }
            let is_unpublished = times(&mark) == 0 && !has_duplicates && !has_lost_outputs;
            if !is_archived && !is_failed && !source.is_extent && is_unpublished {
                return Err(format!("{mark} waits for ever in {}", shown.display()));
            }
        }
        Ok(())
    }
}

/// Checks that each success and each failure was announced once.
fn check_announced(ledger: &mut Ledger, succeeded: u64, failed: u64) -> Check {
    let announced = |ledger: &Ledger, kind: &str| ledger.count_notifications(kind).map_err(|error| error.to_string());
    let told = [announced(ledger, "success")?, announced(ledger, "failure")?];
    if told != [succeeded, failed] {
        return Err(format!("announced {told:?}, happened {:?} (succeeded, failed)", [succeeded, failed]));
    }
    Ok(())
}

impl Source {
    /// Checks that a disk that was made of this content is what the writer had written when it closed the file. Where the
    /// engine could not see the writer, a half may be published; it says so in the end (`is_final`: it does not).
    fn check_upload(&self, content: &[u8], is_final: bool) -> Check {
        let Some(upload) = &self.upload else { return Ok(()) };
        let is_whole = upload.is_closed && content == upload.whole;
        // A writer that died with its machine has closed nothing, and nobody knows what it wanted.
        let is_dead = upload.file.is_none() && !upload.is_closed;
        if !is_whole && !is_dead && (upload.is_seen || is_final) {
            let (found, of) = (content.len(), upload.whole.len());
            let closed = if upload.is_closed { "was closed" } else { "is open" };
            return Err(format!("{} {closed}, and was published otherwise ({found} of {of} bytes)", self.name));
        }
        Ok(())
    }
}

/// One published directory.
#[derive(Debug)]
pub(super) struct Published {
    /// Marks of the sources that it was made of.
    marks: Vec<String>,
    /// Whether it says that it is superseded.
    is_superseded: bool,
}

/// The text of a descriptor with one extent.
fn descriptor(extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 1 FLAT \"{extent}\" 0\nddb.adapterType = \"lsilogic\"\n"
    )
}

/// The mark in a source's content.
fn mark(content: &[u8]) -> Option<String> {
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
