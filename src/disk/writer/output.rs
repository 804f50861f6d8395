// SPDX-License-Identifier: Apache-2.0
//! The output file or device: direct I/O where it takes that, else buffered without keeping the page cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::zeros::Zeros;
use crate::disk::Error;
use crate::disk::control::CopyControl;

/// Bytes after which buffered output is written back and dropped from the page cache: dirty pages are charged to the
/// pod.
const FLUSH: u64 = 32 << 20;

/// A file being written by several threads.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    file: &'a File,
    name: &'a str,
    control: &'a CopyControl,
    /// Whether direct I/O is on. Locked while it is turned off: a thread that finds it off may write unaligned bytes.
    direct: Mutex<bool>,
    /// Bytes written through the page cache since the last flush.
    unflushed: AtomicU64,
    /// Bytes written in all.
    written: AtomicU64,
    zeros: Zeros,
}

impl<'a> Output<'a> {
    /// Takes an empty file, or a device, open for reading and writing, and turns direct I/O on if it can. Nothing is written once
    /// `control` is cancelled.
    #[must_use]
    pub(crate) fn new(file: &'a File, name: &'a str, control: &'a CopyControl, direct: bool) -> Self {
        let direct = Mutex::new(direct && set_direct(file, true).is_ok());
        let (unflushed, written, zeros) = (AtomicU64::new(0), AtomicU64::new(0), Zeros::default());
        Self { file, name, control, direct, unflushed, written, zeros }
    }

    /// Writes `bytes` at `at`. With direct I/O on, both must be multiples of [`ALIGNMENT`](crate::disk::buffer::ALIGNMENT).
    pub(crate) fn write(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        self.control.check(self.name)?;
        let was_direct = self.is_direct();
        if let Err(first) = self.file.write_all_at(bytes, at) {
            // A file system may accept the flag and refuse the write. Another thread may have turned it off since.
            let refused = first.raw_os_error() == Some(Errno::INVAL.raw_os_error());
            if !(refused && was_direct) {
                return Err(self.failed(at, first));
            }
            self.buffered()?;
            self.file.write_all_at(bytes, at).map_err(|e| self.failed(at, e))?;
        }
        let len = bytes.len() as u64;
        self.written.fetch_add(len, Ordering::Relaxed);
        if !self.is_direct() && self.unflushed.fetch_add(len, Ordering::Relaxed) + len >= FLUSH {
            self.unflushed.store(0, Ordering::Relaxed);
            // Starts writing back what is dirty and drops what is clean; a hint, so a refusal changes nothing.
            let _ = fadvise(self.file, 0, None, Advice::DontNeed);
        }
        Ok(())
    }

    /// Makes a range of a device zeros, which begins and ends at a sector.
    pub(crate) fn zero(&self, range: Range<u64>) -> Result<(), Error> {
        self.zeros.make(self.file, range, self.name, self.control, |zeros, at| self.write(zeros, at))
    }

    /// Bytes that were written, without those that the device zeroed by itself.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes of zeros that were written because the device can't zero a range by itself.
    pub(crate) fn written_zeros(&self) -> u64 {
        self.zeros.written()
    }

    /// Turns direct I/O off, for a write that is not aligned or a second pass.
    pub(crate) fn buffered(&self) -> Result<(), Error> {
        let mut direct = self.direct.lock().expect("no holder of the flag panics");
        if *direct {
            set_direct(self.file, false).map_err(|e| self.failed(0, e.into()))?;
            *direct = false;
        }
        Ok(())
    }

    fn is_direct(&self) -> bool {
        *self.direct.lock().expect("no holder of the flag panics")
    }

    /// Sets the file's length.
    pub(crate) fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.set_len(len).map_err(|e| self.failed(len, e))
    }

    /// Makes everything durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.control.check(self.name)?;
        self.file.sync_all().map_err(|e| self.failed(0, e))
    }

    fn failed(&self, at: u64, source: io::Error) -> Error {
        Error::writing(self.name, at, source)
    }
}

fn set_direct(file: &File, on: bool) -> Result<(), Errno> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    fcntl_setfl(file, flags)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_write_that_direct_io_refuses_goes_through_the_page_cache() {
        let mut file = tempfile::tempfile().unwrap();
        let control = CopyControl::default();
        let output = Output::new(&file, "out", &control, true);
        output.write(b"no alignment suits this", 77).unwrap();
        output.write(b"nor this", 100).unwrap();
        output.sync().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[77..], *b"no alignment suits thisnor this");
    }

    #[test]
    fn several_threads_may_be_refused_at_once() {
        const THREADS: usize = 4;
        for _ in 0..200 {
            let file = tempfile::tempfile().unwrap();
            let control = CopyControl::default();
            let output = Output::new(&file, "out", &control, true);
            let start = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for number in 0..THREADS as u64 {
                    let (output, start) = (&output, &start);
                    scope.spawn(move || {
                        start.wait();
                        output.write(b"odd", 1 + number * 3).unwrap();
                    });
                }
            });
            assert_eq!(file.metadata().unwrap().len(), 1 + THREADS as u64 * 3);
        }
    }

    #[test]
    fn nothing_is_written_after_a_cancellation() {
        let file = tempfile::tempfile().unwrap();
        let control = CopyControl::default();
        let output = Output::new(&file, "out", &control, false);
        output.write(b"before", 0).unwrap();
        control.cancel();
        assert_eq!(output.write(b"after", 6).unwrap_err().reason, crate::conversion::Reason::Cancelled);
        assert_eq!(output.sync().unwrap_err().reason, crate::conversion::Reason::Cancelled);
        assert_eq!(file.metadata().unwrap().len(), 6);
    }
}
