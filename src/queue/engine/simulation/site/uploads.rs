// SPDX-License-Identifier: Apache-2.0
//! Files that are written piece by piece.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::Duration;

use crate::files::volume;
use crate::files::volume::simulated::Random;
use crate::queue::writers::{Sign, Writers};

use super::super::script::Growth;
use super::{Site, Source, Upload, files};

impl Site {
    /// An engine begins to see what writers do. It knows nothing of those that began before.
    pub(in crate::queue::engine::simulation) fn watched_by(&mut self, writers: Writers) {
        self.writers = writers;
        for upload in self.sources.values_mut().filter_map(|source| source.upload.as_mut()) {
            upload.is_seen &= upload.is_closed;
        }
    }

    /// Begins a file that is written piece by piece.
    pub(in crate::queue::engine::simulation) fn upload(&mut self, growth: Growth) {
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
    pub(in crate::queue::engine::simulation) fn write_piece(&mut self) {
        let Some(mark) = self.some_upload() else { return };
        let bytes = usize::try_from(1 + self.random.below(600)).expect("a small number");
        self.write(&mark, |upload| {
            upload.written = (upload.written + bytes).min(upload.whole.len());
            false
        });
    }

    /// Truncates an upload, and begins anew.
    pub(in crate::queue::engine::simulation) fn write_anew(&mut self) {
        let Some(mark) = self.some_upload() else { return };
        let bytes = mark.len() + 1;
        self.write(&mark, |upload| {
            upload.written = bytes;
            true
        });
    }

    /// Writes the rest of an upload, and closes it.
    pub(in crate::queue::engine::simulation) fn finish(&mut self) {
        if let Some(mark) = self.some_upload() {
            self.finish_one(&mark);
        }
    }

    /// Finishes all uploads.
    pub(in crate::queue::engine::simulation) fn finish_all(&mut self) {
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
}
