// SPDX-License-Identifier: Apache-2.0
//! Reads a guest's disk from front to back, for second passes and checks.

pub(crate) mod batch;
pub(crate) mod consumed;
pub(crate) mod decode;
pub(crate) mod load;

use self::batch::{Batches, Step};
use self::consumed::Used;
use self::decode::Decode;
use self::load::{Loaded, load};
use super::buffer::Buffer;
use super::control::CopyControl;
use super::image::Reader;
use super::packed::{PIECE, PackedRaw};
use super::units::CLUSTER_BYTES;
use super::{Error, Image};

/// Guest bytes, in one of two forms.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum GuestBytes<'a> {
    /// So many zeros, as far as the map knows.
    Zero(u64),
    Data(&'a [u8]),
}

/// Calls `sink` with the guest's bytes in order, and the guest offset at which they begin. One thread, bounded
/// memory.
///
/// # Errors
/// The reader's, the sink's, or `Cancelled`.
pub(super) fn replay(
    image: &Image,
    control: &CopyControl,
    mut sink: impl FnMut(u64, GuestBytes) -> Result<(), Error>,
) -> Result<(), Error> {
    if let Reader::Packed(packed) = &image.reader {
        return replay_packed(packed, control, sink);
    }
    let name = image.regions.first().map_or("source", |region| region.name()).to_owned();
    let mut batches = Batches::new(image.extents(), image.virtual_size(), name.clone());
    let mut decode = Decode::new();
    let mut used = Used::default();
    let (mut buffer, mut input) = (Buffer::default(), Buffer::default());
    let mut at = 0;
    while let Some(step) = batches.next()? {
        control.check(&name)?;
        match step {
            Step::Zero(end) => {
                sink(at, GuestBytes::Zero(end - at))?;
                at = end;
            }
            Step::Data(batch) => {
                let len = batch.len();
                let needed = len.next_multiple_of(CLUSTER_BYTES);
                if buffer.len() < needed {
                    buffer = Buffer::new(needed);
                }
                let mut loaded = load(&image.regions, batch, buffer, input)?;
                let consumed = decode.run(image, &mut loaded)?;
                used.claim(image, &consumed)?;
                sink(at, GuestBytes::Data(&loaded.buffer[..len]))?;
                at = loaded.guest.end;
                Loaded { buffer, input, .. } = loaded;
            }
        }
    }
    Ok(())
}

fn replay_packed(
    packed: &PackedRaw,
    control: &CopyControl,
    mut sink: impl FnMut(u64, GuestBytes) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut pieces = packed.pieces()?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        control.check(packed.region().name())?;
        let len = pieces.next(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        sink(at, GuestBytes::Data(&buffer[..len]))?;
        at += len as u64;
    }
}
