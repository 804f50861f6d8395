// SPDX-License-Identifier: Apache-2.0
//! A guest's disk at random places: read-only, decoded, with a cache of bounded size.

use std::collections::HashMap;

use super::buffer::Buffer;
use super::extent::MAX_COMPRESSED;
use super::replay::batch::Batch;
use super::replay::decode::Decode;
use super::replay::load::{Loaded, load};
use super::units::CLUSTER_BYTES;
use super::{Error, Image, Location};
use crate::conversion::Reason;

/// Guest bytes of a page.
const PAGE: u64 = 64 << 10;

/// Reads anywhere on one disk.
pub struct View {
    image: Image,
    size: u64,
    decode: Decode,
    /// Most pages that it holds.
    most: usize,
    /// By number, with the time of its last use.
    pages: HashMap<u64, (u64, Box<[u8]>)>,
    uses: u64,
    loaded: u64,
    buffer: Buffer,
    input: Buffer,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("size", &self.size).finish_non_exhaustive()
    }
}

impl View {
    /// A view of the whole disk that holds `most` pages of 64 KiB at most, or one. Reads nothing yet.
    #[must_use]
    pub fn new(image: Image, most: usize) -> Self {
        Self {
            most,
            size: image.virtual_size(),
            image,
            decode: Decode::new(),
            pages: HashMap::new(),
            uses: 0,
            loaded: 0,
            buffer: Buffer::default(),
            input: Buffer::default(),
        }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Guest bytes that were read and decoded so far, those in the cache not again.
    #[must_use]
    pub fn loaded(&self) -> u64 {
        self.loaded
    }

    /// Fills `target` with the guest's bytes from `offset`.
    ///
    /// # Errors
    /// The reader's; `Truncated` where the disk ends before.
    pub fn read_at(&mut self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        if offset.checked_add(target.len() as u64).is_none_or(|end| end > self.size) {
            let message = format!("the guest needs {} bytes behind its disk's end", target.len());
            return Err(Error::truncated(self.name(), offset, message));
        }
        let mut at = offset;
        let mut rest = target;
        while !rest.is_empty() {
            let (number, within) = (at / PAGE, usize::try_from(at % PAGE).expect("within a page"));
            let page = self.page(number)?;
            let len = rest.len().min(page.len() - within);
            let (filled, behind) = rest.split_at_mut(len);
            filled.copy_from_slice(&page[within..within + len]);
            rest = behind;
            at += len as u64;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.image.regions.first().map_or("source", |region| region.name()).to_owned()
    }

    fn page(&mut self, number: u64) -> Result<&[u8], Error> {
        if !self.pages.contains_key(&number) {
            self.fetch(number)?;
        }
        self.uses += 1;
        let (used, page) = self.pages.get_mut(&number).expect("it was just fetched");
        *used = self.uses;
        Ok(page)
    }

    /// Reads page `number` and what is decoded together with it.
    fn fetch(&mut self, number: u64) -> Result<(), Error> {
        let start = number * PAGE;
        let wanted = start..(start + PAGE).min(self.size);
        let mut guest = wanted.clone();
        let mut pieces = Vec::new();
        for extent in self.image.extents_within(&wanted) {
            let extent = extent?;
            if extent.is_empty() || extent.len() > PAGE.max(MAX_COMPRESSED) || extent.guest.end > self.size {
                let message = format!("the map is broken near guest byte {start}");
                return Err(Error::refuse(Reason::Internal, self.name(), message));
            }
            guest = guest.start.min(extent.guest.start)..guest.end.max(extent.guest.end);
            if extent.at != Location::Zero {
                pieces.push(extent);
            }
        }
        let len = usize::try_from(guest.end - guest.start).expect("a few MiB");
        self.loaded += len as u64;
        let needed = len.next_multiple_of(CLUSTER_BYTES);
        if self.buffer.len() < needed {
            self.buffer = Buffer::new(needed);
        }
        let batch = Batch { guest: guest.clone(), pieces };
        let (buffer, input) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.input));
        let mut loaded = load(&self.image.regions, batch, buffer, input)?;
        self.decode.run(&self.image, &mut loaded)?;
        let Loaded { buffer, input, .. } = loaded;
        // Every page that is whole in it; the wanted one last, so that no other of them takes its place.
        let first = guest.start.div_ceil(PAGE);
        for number in (first..guest.end.div_ceil(PAGE)).filter(|other| *other != number).chain([number]) {
            let page = number * PAGE..((number + 1) * PAGE).min(self.size);
            if page.end <= guest.end {
                let at = usize::try_from(page.start - guest.start).expect("within the batch");
                let end = usize::try_from(page.end - guest.start).expect("within the batch");
                self.keep(number, buffer[at..end].into());
            }
        }
        (self.buffer, self.input) = (buffer, input);
        Ok(())
    }

    fn keep(&mut self, number: u64, page: Box<[u8]>) {
        if self.pages.len() >= self.most.max(1)
            && let Some(oldest) = self.pages.iter().min_by_key(|(_, (used, _))| *used).map(|(number, _)| *number)
        {
            self.pages.remove(&oldest);
        }
        self.uses += 1;
        self.pages.insert(number, (self.uses, page));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::resolve::{qemu_img, region_of, sample_disk};
    use crate::disk::source::{self, Limits};

    const LIMITS: Limits = Limits { max_virtual_size: 1 << 40, max_scratch_bytes: 1 << 26, ovf_option: None };

    /// Places in an order that no cache likes: the halves of a disk in turn, each step a prime.
    fn places(size: u64) -> impl Iterator<Item = (u64, usize)> {
        let step =
            move |n: u64| (n * 7_654_321 % size, [1, 512, 4096, 70_000, 300_000][usize::try_from(n % 5).unwrap()]);
        (0..400).map(step).map(move |(at, len)| (at, len.min(usize::try_from(size - at).unwrap())))
    }

    #[test]
    fn every_format_reads_the_same_at_random_places() {
        let directory = tempfile::tempdir().unwrap();
        let disk = sample_disk((24 << 20) + 512 * 3);
        fs::write(directory.path().join("disk.raw"), &disk).unwrap();
        for (name, options) in [
            ("disk.raw", &[][..]),
            ("plain.qcow2", &["-O", "qcow2"]),
            ("packed.qcow2", &["-c", "-O", "qcow2", "-o", "cluster_size=2M"]),
            ("zstd.qcow2", &["-c", "-O", "qcow2", "-o", "compression_type=zstd"]),
            ("sub.qcow2", &["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"]),
            ("stream.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
            ("sparse.vmdk", &["-O", "vmdk"]),
            ("disk.hds", &["-O", "parallels"]),
            ("disk.vdi", &["-O", "vdi"]),
            ("disk.vhdx", &["-O", "vhdx"]),
            ("disk.vhd", &["-O", "vpc", "-o", "force_size=on"]),
        ] {
            if name != "disk.raw" {
                let arguments = [&["convert", "-f", "raw"][..], options, &["disk.raw", name]].concat();
                qemu_img(directory.path(), &arguments);
            }
            let region = region_of(&directory.path().join(name));
            let source = source::open(&region, &[], &LIMITS, &mut || Ok(tempfile::tempfile().unwrap())).unwrap();
            let mut view = View::new(source.disks[0].image.clone(), 8);
            // VHD rounds its size up.
            assert!(view.size() >= disk.len() as u64, "{name}");
            for (at, len) in places(disk.len() as u64) {
                let mut found = vec![0xEE; len];
                view.read_at(&mut found, at).unwrap();
                let start = usize::try_from(at).unwrap();
                assert!(found == disk[start..start + len], "{name}: {len} bytes at {at}");
            }
            assert!(view.pages.len() <= 8);
            let end = view.size();
            assert_eq!(view.read_at(&mut [0; 2], end - 1).unwrap_err().reason, Reason::Truncated, "{name}");
        }
    }
}
