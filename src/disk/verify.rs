// SPDX-License-Identifier: Apache-2.0
//! Checks an output: its metadata always, its guest bytes on request.

mod qcow2;
mod vdi;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use self::qcow2::qcow2;
use self::vdi::vdi;
use super::buffer::is_zero;
use super::control::CopyControl;
use super::replay::{GuestBytes, replay};
use super::{Error, Image, Region, device};
use crate::conversion::{OutputFormat, Reason};

/// Checks the metadata of an output in `file` that errors call `name`: bounds, overlaps, reference counts. With `source`,
/// also compares the guest's disk in it with the source's, byte by byte: a pass of progress.
///
/// # Errors
/// `Internal` with the place where the metadata is wrong or the disks differ; the errors of the source's reader;
/// `OutputIO`, `Cancelled`.
pub fn verify(
    file: &File,
    name: &str,
    format: OutputFormat,
    source: Option<&Image>,
    control: &CopyControl,
) -> Result<(), Error> {
    match format {
        OutputFormat::Qcow2 => qcow2(file, name, control)?,
        OutputFormat::Vdi => vdi(file, name, control)?,
        // A raw file has no metadata.
        OutputFormat::Raw => {}
    }
    let Some(source) = source else { return Ok(()) };
    same_guest(source, file, name, format, control)?;
    if format == OutputFormat::Raw {
        zeros_behind(file, name, source.virtual_size(), control)?;
    }
    Ok(())
}

/// Checks that nothing but zeros follows a raw disk of `size` bytes.
///
/// # Errors
/// `Internal` at the first other byte.
fn zeros_behind(file: &File, name: &str, size: u64, control: &CopyControl) -> Result<(), Error> {
    const CHUNK: u64 = 1 << 20;
    let len = device::len(file).map_err(|e| Error::writing(name, 0, e))?;
    let mut chunk = vec![0; usize::try_from(CHUNK.min(len.saturating_sub(size))).expect("a MiB at most")];
    let mut at = size;
    while at < len {
        control.check(name)?;
        let chunk = &mut chunk[..usize::try_from(CHUNK.min(len - at)).expect("a MiB at most")];
        file.read_exact_at(chunk, at).map_err(|e| Error::writing(name, at, e))?;
        if let Some(first) = chunk.iter().position(|&byte| byte != 0) {
            let message = "something else than zeros follows the disk";
            return Err(Error::refuse(Reason::Internal, name, message).at(at + first as u64));
        }
        control.skip(chunk.len() as u64);
        at += chunk.len() as u64;
    }
    Ok(())
}

/// Compares the guest's disk in `image` with the one in the output, byte by byte.
///
/// # Errors
/// `Internal` where they differ.
fn same_guest(
    image: &Image,
    file: &File,
    name: &str,
    format: OutputFormat,
    control: &CopyControl,
) -> Result<(), Error> {
    control.expect(image.virtual_size());
    let copy = open_output(file, name, format, image.virtual_size(), control)?;
    let differ = |at: u64| Error::refuse(Reason::Internal, name, "differs from its source").at(at);
    if copy.virtual_size() != image.virtual_size() {
        return Err(differ(image.virtual_size()));
    }
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Owned>(4);
    std::thread::scope(|scope| {
        let theirs = scope.spawn(|| {
            // The receiver is dropped after a difference: the rest need not be read.
            replay(&copy, control, |_, found| sender.send(Owned::from(found)).map_err(|_| differ(0)))
                .inspect(|()| drop(sender))
        });
        let mut ahead = Ahead { receiver, held: Owned::Zero(0), used: 0 };
        let ours = replay(image, control, |at, found| {
            let len = match &found {
                GuestBytes::Zero(len) => *len,
                GuestBytes::Data(bytes) => bytes.len() as u64,
            };
            if !ahead.matches(&found) {
                return Err(differ(at));
            }
            control.advance(len);
            Ok(())
        });
        drop(ahead);
        let theirs = theirs.join().map_err(|_| differ(0))?;
        match (&ours, theirs) {
            (Err(e), Err(inner)) if e.reason == Reason::Internal && inner.reason != Reason::Internal => Err(inner),
            _ => ours,
        }
    })
}

/// The output in `file`, that errors call `name`, as an image of a guest's disk of `size` bytes, by our own reader. A raw
/// one may be longer than its disk.
///
/// # Errors
/// Those of the reader.
pub fn open_output(
    file: &File,
    name: &str,
    format: OutputFormat,
    size: u64,
    control: &CopyControl,
) -> Result<Image, Error> {
    let file = file.try_clone().map_err(|e| Error::writing(name, 0, e))?;
    let len = device::len(&file).map_err(|e| Error::writing(name, 0, e))?;
    let len = if format == OutputFormat::Raw { len.min(size) } else { len };
    let region = Region::whole(Arc::new(file), name, len).until(control.cancellation());
    match format {
        OutputFormat::Raw => Image::raw(&region),
        OutputFormat::Qcow2 => Image::qcow2(&region, u64::MAX),
        OutputFormat::Vdi => Image::vdi(&region, u64::MAX),
    }
}

/// Guest bytes that outlive their buffer.
enum Owned {
    Zero(u64),
    Data(Vec<u8>),
}

impl From<GuestBytes<'_>> for Owned {
    fn from(found: GuestBytes<'_>) -> Self {
        match found {
            GuestBytes::Zero(len) => Self::Zero(len),
            GuestBytes::Data(bytes) => Self::Data(bytes.to_vec()),
        }
    }
}

impl Owned {
    fn len(&self) -> u64 {
        match self {
            Self::Zero(len) => *len,
            Self::Data(bytes) => bytes.len() as u64,
        }
    }
}

/// The output's guest bytes as they arrive, used up piece by piece.
struct Ahead {
    receiver: std::sync::mpsc::Receiver<Owned>,
    held: Owned,
    used: u64,
}

impl Ahead {
    /// Whether the next guest bytes of the output are `wanted`.
    fn matches(&mut self, wanted: &GuestBytes) -> bool {
        let (mut left, mut at) = match wanted {
            GuestBytes::Zero(len) => (*len, 0),
            GuestBytes::Data(bytes) => (bytes.len() as u64, 0),
        };
        while left > 0 {
            if self.used == self.held.len() {
                let Ok(next) = self.receiver.recv() else { return false };
                (self.held, self.used) = (next, 0);
            }
            let len = left.min(self.held.len() - self.used);
            let same = match (wanted, &self.held) {
                (GuestBytes::Zero(_), Owned::Zero(_)) => true,
                (GuestBytes::Zero(_), Owned::Data(theirs)) => is_zero(piece(theirs, self.used, len)),
                (GuestBytes::Data(ours), Owned::Zero(_)) => is_zero(piece(ours, at, len)),
                (GuestBytes::Data(ours), Owned::Data(theirs)) => piece(ours, at, len) == piece(theirs, self.used, len),
            };
            if !same {
                return false;
            }
            self.used += len;
            at += len;
            left -= len;
        }
        true
    }
}

/// `len` of the bytes, from byte `at` on.
fn piece(bytes: &[u8], at: u64, len: u64) -> &[u8] {
    let index = |at: u64| usize::try_from(at).expect("within a batch");
    &bytes[index(at)..index(at + len)]
}
