// SPDX-License-Identifier: Apache-2.0
//! What other people do to files that lie in the queue or beside it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::volume;

use super::{Site, files, mark, names};

impl Site {
    /// Moves a folder from `.errors/` back into the queue.
    pub(in crate::queue::engine::simulation) fn retry_folder(&mut self) {
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

    pub(in crate::queue::engine::simulation) fn rename(&mut self) {
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
    pub(in crate::queue::engine::simulation) fn retry(&mut self) {
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

    pub(in crate::queue::engine::simulation) fn grow(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        let file = File::options().append(true).open(&path).expect("a file of ours");
        self.lengthen(&mark, &file, &path);
    }

    /// Changes a file in `.errors/`.
    pub(in crate::queue::engine::simulation) fn correct(&mut self) {
        let Some((path, mark)) = self.some(&self.paths.errors()) else { return };
        let file = File::options().append(true).open(&path).expect("a file of ours");
        self.lengthen(&mark, &file, &path);
    }

    /// Writes to a file wherever it is now.
    pub(in crate::queue::engine::simulation) fn write_on(&mut self) {
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

    pub(in crate::queue::engine::simulation) fn chmod(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        self.volume.note(format!("mode changed: {mark}"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file of ours");
        self.volume.touched(fs::metadata(&path).expect("a file of ours").ino());
    }

    /// Makes a file immovable.
    pub(in crate::queue::engine::simulation) fn deny(&mut self) {
        let Some((path, mark)) = self.some_waiting() else { return };
        self.volume.note(format!("may not be moved: {mark}"));
        self.volume.set_immovable(fs::metadata(&path).expect("a file of ours").ino(), true);
        // The conversion fails, and the file is converted when it may be moved again.
        self.touch(&mark);
    }

    pub(in crate::queue::engine::simulation) fn remove(&mut self) {
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
    pub(in crate::queue::engine::simulation) fn some_name(&mut self) -> Option<String> {
        let (path, mark) = self.some_waiting()?;
        // A requested file is converted, whatever became of it before.
        self.touch(&mark);
        path.file_name().map(|name| name.to_string_lossy().into_owned())
    }
}
