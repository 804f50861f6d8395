// SPDX-License-Identifier: Apache-2.0
//! From logical addresses to places on the device.

use super::tree::Key;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{le16, le64, slice};

pub(super) const CHUNK_ITEM: u8 = 228;
/// Chunks that are read: of 1 GiB each, as btrfs makes them on large disks.
pub(super) const MAX_CHUNKS: usize = 1 << 16;
/// Length of a chunk before its stripes, and of a stripe.
const HEADER: usize = 48;
const STRIPE: usize = 32;
/// Profiles that divide data among devices: RAID0, RAID10, RAID5, RAID6.
const DIVIDED: u64 = 0x8 | 0x40 | 0x80 | 0x100;

/// A range of logical addresses that lies in one range of the device.
#[derive(Debug)]
struct Chunk {
    logical: u64,
    len: u64,
    /// `None` where it is on another device, or divided.
    place: Option<u64>,
}

/// Chunks, in the order of their addresses once they are all there.
#[derive(Debug, Default)]
pub(super) struct Chunks(Vec<Chunk>);

impl Chunks {
    /// Those that the superblock tells, enough to read the tree of the others.
    pub(super) fn of_superblock(array: &[u8], device: u64) -> Result<Self> {
        let mut chunks = Self::default();
        let mut at = 0;
        while at + Key::LEN + HEADER <= array.len() {
            let key = Key::read(array, at)?;
            let chunk = slice(array, at + Key::LEN, array.len() - at - Key::LEN)?;
            if key.kind != CHUNK_ITEM {
                return Err(Error::corrupt("has a superblock with a foreign item"));
            }
            chunks.push(key.offset, chunk, device)?;
            at += Key::LEN + HEADER + usize::from(le16(chunk, 44)?) * STRIPE;
        }
        chunks.sort();
        Ok(chunks)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds those that are not known by their addresses.
    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
        self.sort();
    }

    /// Of several chunks with one address, the first counts.
    fn sort(&mut self) {
        self.0.sort_by_key(|chunk| chunk.logical);
        self.0.dedup_by_key(|chunk| chunk.logical);
    }

    /// Adds the chunk at `logical` that the item `chunk` describes, behind the others.
    pub(super) fn push(&mut self, logical: u64, chunk: &[u8], device: u64) -> Result<()> {
        let (len, profile, stripes) = (le64(chunk, 0)?, le64(chunk, 24)?, usize::from(le16(chunk, 44)?));
        let mut place = None;
        for index in 0..stripes {
            let stripe = slice(chunk, HEADER + index * STRIPE, STRIPE)?;
            if profile & DIVIDED == 0 && le64(stripe, 0)? == device {
                place = Some(le64(stripe, 8)?);
                break;
            }
        }
        self.0.push(Chunk { logical, len, place });
        Ok(())
    }

    /// Where `logical` lies, and how many bytes follow there.
    pub(super) fn place(&self, logical: u64) -> Result<(u64, u64)> {
        let index = self.0.partition_point(|chunk| chunk.logical <= logical);
        let chunk = index.checked_sub(1).map(|index| &self.0[index]);
        let chunk = chunk.filter(|chunk| logical - chunk.logical < chunk.len);
        let chunk = chunk.ok_or_else(|| Error::corrupt(format!("has nothing at address {logical}")))?;
        let within = logical - chunk.logical;
        let place =
            chunk.place.ok_or_else(|| Error::unsupported("is divided among several devices, which is not read"))?;
        let place = place.checked_add(within).ok_or_else(|| Error::corrupt("has a chunk that lies nowhere"))?;
        Ok((place, chunk.len - within))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn many_chunks_in_any_order_cost_little_and_the_first_of_an_address_counts() {
        let chunk = |place: u64| {
            let mut item = vec![0; HEADER + STRIPE];
            item[..8].copy_from_slice(&4096_u64.to_le_bytes());
            item[44] = 1;
            item[HEADER + 8..HEADER + 16].copy_from_slice(&place.to_le_bytes());
            item
        };
        let mut known = Chunks::default();
        known.push(0, &chunk(1), 0).unwrap();
        let mut others = Chunks::default();
        let start = Instant::now();
        for index in (0..MAX_CHUNKS as u64).rev() {
            others.push(index * 4096, &chunk(index * 4096 + 7), 0).unwrap();
        }
        known.extend(others);
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
        assert_eq!(known.place(10).unwrap(), (11, 4086));
        assert_eq!(known.place(8192).unwrap(), (8199, 4096));
        assert_eq!(known.len(), MAX_CHUNKS);
    }
}
