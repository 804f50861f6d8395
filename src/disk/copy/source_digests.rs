//! The digests that a manifest demands of source files, computed on the bytes that the copy reads anyway.
//!
//! Batches pass in guest order. Where that is a file's order too, its hasher takes their bytes and reads for itself only
//! the little between them. Where it is not, the hasher is handed on, to a reader that goes through the rest of the file
//! beside the copy.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::control::CopyControl;
use crate::disk::manifest::{Expected, Hasher};
use crate::disk::replay::load::Loaded;
use crate::disk::{Error, Region};

/// Bytes between two batches that are read in passing: tables, headers, what no grain refers to.
/// Few in tests, whose files are small.
const MAX_GAP: u64 = if cfg!(test) { 128 << 10 } else { 16 << 20 };
/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// The digests of the regions of one image.
pub struct Rides<'a> {
    /// One for each region; `None` where no digest is demanded, or it left for a reader of its own.
    rides: Vec<Option<Ride<'a>>>,
}

/// The digests of one file on their way through it.
pub struct Ride<'a> {
    control: &'a CopyControl,
    /// Whether the copy failed: nobody asks for a digest any more.
    failed: &'a AtomicBool,
    region: &'a Region,
    /// A manifest may have a line of each algorithm; never empty.
    digests: Vec<(&'a Expected, Hasher)>,
    /// All bytes before this one are in the hashers.
    at: u64,
}

impl<'a> Rides<'a> {
    /// The digests among `expected` that are of `regions`, for a copy that `control` ends or that says that it `failed`.
    pub fn new(regions: &[Region], expected: &'a [Expected], control: &'a CopyControl, failed: &'a AtomicBool) -> Self {
        let ride = |region: &Region| {
            let digests: Vec<_> =
                expected.iter().filter(|e| e.region.is_same(region)).map(|e| (e, e.hasher())).collect();
            Some(Ride { control, failed, region: &digests.first()?.0.region, digests, at: 0 })
        };
        Self { rides: regions.iter().map(ride).collect() }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.rides.iter().all(Option::is_none)
    }

    /// Takes the bytes of the next batch. A ride that can't go on in its file's order is handed to `leave`.
    pub fn pass(&mut self, loaded: &Loaded, mut leave: impl FnMut(Ride<'a>)) -> Result<(), Error> {
        for read in &loaded.reads {
            let Some(ride) = &mut self.rides[read.file] else { continue };
            if read.range.end <= ride.at {
                continue;
            }
            if read.range.start > ride.at + MAX_GAP {
                leave(self.rides[read.file].take().expect("it was there a line ago"));
                continue;
            }
            ride.read(ride.at..read.range.start)?;
            // The copy failed meanwhile.
            if ride.at < read.range.start {
                return Ok(());
            }
            // What was read twice, a marker's uncertain reach, is taken once.
            let known = usize::try_from(ride.at - read.range.start).expect("within what was read");
            ride.update(&loaded.bytes(read)[known..]);
            ride.at = read.range.end;
        }
        Ok(())
    }

    /// Reads what is left of every file, and compares.
    ///
    /// # Errors
    /// `ManifestMismatch`, `Cancelled`, and as reading does.
    pub fn finish(self) -> Result<(), Error> {
        self.rides.into_iter().flatten().try_for_each(Ride::finish)
    }
}

impl Ride<'_> {
    /// Reads the rest of the file, and compares; not where the copy fails meanwhile, which has an error of its own.
    pub fn finish(mut self) -> Result<(), Error> {
        self.read(self.at..self.region.len())?;
        if self.at < self.region.len() {
            return Ok(());
        }
        self.digests.into_iter().try_for_each(|(expected, hasher)| expected.compare(hasher))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.digests.iter_mut().for_each(|(_, hasher)| hasher.update(bytes));
    }

    /// Reads what lies in `range`, which starts where the ride is; nothing where it is empty or reversed, and no further
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
