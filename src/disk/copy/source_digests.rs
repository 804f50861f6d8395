// SPDX-License-Identifier: Apache-2.0
//! The digests that a manifest demands of source files, computed on the bytes that the copy reads anyway.
//!
//! Batches pass in guest order. Where that is also the file's order, the file's hasher takes their bytes and reads
//! only the small gaps between them itself. Otherwise the hasher is handed on to a thread that reads the rest of the
//! file beside the copy.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::control::CopyControl;
use crate::disk::manifest::{Expected, Hasher};
use crate::disk::replay::load::Loaded;
use crate::disk::{Error, Region};

/// Largest gap between two batches, in bytes, that is read in passing: tables, headers, unreferenced grains. Small in
/// tests, whose files are small.
const MAX_GAP: u64 = if cfg!(test) { 128 << 10 } else { 16 << 20 };
/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// The digests of the regions of one image.
pub(super) struct SourceDigests<'a> {
    /// One for each region; `None` where no digest is demanded, or it was handed on.
    files: Vec<Option<FileDigest<'a>>>,
}

/// The unfinished digests of one file.
pub(super) struct FileDigest<'a> {
    control: &'a CopyControl,
    /// Set once the copy failed: the digests are no longer needed.
    failed: &'a AtomicBool,
    region: &'a Region,
    /// A manifest may have a line of each algorithm; never empty.
    digests: Vec<(&'a Expected, Hasher)>,
    /// All bytes before this one are in the hashers.
    at: u64,
}

impl<'a> SourceDigests<'a> {
    /// The digests in `expected` that belong to `regions`. The work ends when `control` is cancelled or `failed` is
    /// set.
    pub(super) fn new(
        regions: &[Region],
        expected: &'a [Expected],
        control: &'a CopyControl,
        failed: &'a AtomicBool,
    ) -> Self {
        let of_file = |region: &Region| {
            let digests: Vec<_> =
                expected.iter().filter(|e| e.region.is_same(region)).map(|e| (e, e.hasher())).collect();
            Some(FileDigest { control, failed, region: &digests.first()?.0.region, digests, at: 0 })
        };
        Self { files: regions.iter().map(of_file).collect() }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.files.iter().all(Option::is_none)
    }

    /// Takes the bytes of the next batch. A file that is not read in its own order is handed to `hand_on`.
    pub(super) fn pass(&mut self, loaded: &Loaded, mut hand_on: impl FnMut(FileDigest<'a>)) -> Result<(), Error> {
        for read in &loaded.reads {
            let Some(digest) = &mut self.files[read.file] else { continue };
            if read.range.end <= digest.at {
                continue;
            }
            if read.range.start > digest.at + MAX_GAP {
                hand_on(self.files[read.file].take().expect("it was there a line ago"));
                continue;
            }
            digest.read(digest.at..read.range.start)?;
            // The copy failed meanwhile.
            if digest.at < read.range.start {
                return Ok(());
            }
            // Reads may overlap, because a marker's reach is an upper bound. Each byte is hashed once.
            let known = usize::try_from(digest.at - read.range.start).expect("within what was read");
            digest.update(&loaded.bytes(read)[known..]);
            digest.at = read.range.end;
        }
        Ok(())
    }

    /// Reads what is left of every file, and compares.
    ///
    /// # Errors
    /// `ManifestMismatch`, `Cancelled`, and as reading does.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.files.into_iter().flatten().try_for_each(FileDigest::finish)
    }
}

impl FileDigest<'_> {
    /// Reads the rest of the file, and compares. Skipped when the copy failed: its error is reported instead.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.read(self.at..self.region.len())?;
        if self.at < self.region.len() {
            return Ok(());
        }
        self.digests.into_iter().try_for_each(|(expected, hasher)| expected.compare(hasher))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.digests.iter_mut().for_each(|(_, hasher)| hasher.update(bytes));
    }

    /// Hashes `range`, which starts where the digest stands. Does nothing for an empty or reversed range, and stops
    /// once the copy failed.
    fn read(&mut self, range: Range<u64>) -> Result<(), Error> {
        let mut chunk = Vec::new();
        while self.at < range.end && !self.failed.load(Ordering::Relaxed) {
            self.control.check(self.region.name())?;
            let len = usize::try_from(CHUNK.min(range.end - self.at)).expect("at most a chunk");
            chunk.resize(len, 0);
            self.region.read_exact_at(&mut chunk[..len], self.at)?;
            self.update(&chunk[..len]);
            self.at += len as u64;
        }
        Ok(())
    }
}
