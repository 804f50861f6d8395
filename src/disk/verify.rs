// SPDX-License-Identifier: Apache-2.0
//! Checks an output: its metadata always, its guest bytes on request.

mod qcow2;
mod vdi;

use std::fs::File;
use std::sync::Arc;

use self::qcow2::qcow2;
use self::vdi::vdi;
use super::buffer::is_zero;
use super::control::CopyControl;
use super::replay::{Stretch, replay};
use super::{Error, Image, Region};
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
    source.map_or(Ok(()), |source| same_guest(source, file, name, format, control))
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
    let copy = open_output(file, name, format, control)?;
    let differ = |at: u64| Error::refuse(Reason::Internal, name, "differs from its source").at(at);
    if copy.virtual_size() != image.virtual_size() {
        return Err(differ(image.virtual_size()));
    }
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Owned>(4);
    std::thread::scope(|scope| {
        let theirs = scope.spawn(|| {
            // The receiver is dropped after a difference: the rest need not be read.
            replay(&copy, control, |_, stretch| sender.send(Owned::from(stretch)).map_err(|_| differ(0)))
                .inspect(|()| drop(sender))
        });
        let mut ahead = Ahead { receiver, stretch: Owned::Zero(0), used: 0 };
        let ours = replay(image, control, |at, stretch| {
            let len = match &stretch {
                Stretch::Zero(len) => *len,
                Stretch::Data(bytes) => bytes.len() as u64,
            };
            if !ahead.matches(&stretch) {
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

/// The output as an image, by our own reader.
fn open_output(file: &File, name: &str, format: OutputFormat, control: &CopyControl) -> Result<Image, Error> {
    let file = file.try_clone().map_err(|e| Error::writing(name, 0, e))?;
    let len = file.metadata().map_err(|e| Error::writing(name, 0, e))?.len();
    let region = Region::whole(Arc::new(file), name, len).until(control.cancellation());
    match format {
        OutputFormat::Raw => Image::raw(&region),
        OutputFormat::Qcow2 => Image::qcow2(&region, u64::MAX),
        OutputFormat::Vdi => Image::vdi(&region, u64::MAX),
    }
}

/// A stretch that outlives its buffer.
enum Owned {
    Zero(u64),
    Data(Vec<u8>),
}

impl From<Stretch<'_>> for Owned {
    fn from(stretch: Stretch<'_>) -> Self {
        match stretch {
            Stretch::Zero(len) => Self::Zero(len),
            Stretch::Data(bytes) => Self::Data(bytes.to_vec()),
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

/// The copy's stretches as they come, used up piece by piece.
struct Ahead {
    receiver: std::sync::mpsc::Receiver<Owned>,
    stretch: Owned,
    used: u64,
}

impl Ahead {
    /// Whether the copy goes on with `stretch`.
    fn matches(&mut self, stretch: &Stretch) -> bool {
        let (mut left, mut at) = match stretch {
            Stretch::Zero(len) => (*len, 0),
            Stretch::Data(bytes) => (bytes.len() as u64, 0),
        };
        while left > 0 {
            if self.used == self.stretch.len() {
                let Ok(next) = self.receiver.recv() else { return false };
                (self.stretch, self.used) = (next, 0);
            }
            let len = left.min(self.stretch.len() - self.used);
            let same = match (stretch, &self.stretch) {
                (Stretch::Zero(_), Owned::Zero(_)) => true,
                (Stretch::Zero(_), Owned::Data(theirs)) => is_zero(piece(theirs, self.used, len)),
                (Stretch::Data(ours), Owned::Zero(_)) => is_zero(piece(ours, at, len)),
                (Stretch::Data(ours), Owned::Data(theirs)) => piece(ours, at, len) == piece(theirs, self.used, len),
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

/// `len` bytes of a stretch from its byte `at` on.
fn piece(stretch: &[u8], at: u64, len: u64) -> &[u8] {
    let index = |at: u64| usize::try_from(at).expect("within a batch");
    &stretch[index(at)..index(at + len)]
}
