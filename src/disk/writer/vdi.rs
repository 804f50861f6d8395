// SPDX-License-Identifier: Apache-2.0
//! VDI output: dynamic, version 1.1, blocks of 1 MiB handed out in guest order.
//!
//! Layout and constants: `VirtualBox`'s `VDICore.h`. The block map begins at byte 4096 and the data at a whole MiB, both
//! fit for direct I/O. A page of the map is written when the copy has passed it; the header, without which the file is
//! no image, at last.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::coded::{Coded, Coding, Content};
use super::job::WriteJob;
use super::output::Output;
use crate::conversion::Reason;
use crate::disk::Error;
use crate::disk::buffer::{ALIGNMENT, Buffer};
use crate::disk::units::CLUSTER;
use crate::disk::vdi::SIGNATURE;

/// Bytes of a block: the only size that QEMU reads.
const BLOCK: u64 = 1 << 20;
const BLOCK_BYTES: usize = 1 << 20;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK && BLOCK.is_multiple_of(CLUSTER));
/// Where the block map begins.
const MAP: u64 = 4096;
/// Bytes of a page of the map, and the blocks that it maps: 16 GiB of guest.
const PAGE: usize = 64 << 10;
const PAGE_BLOCKS: u64 = PAGE as u64 / 4;
/// Entry of a block without data.
const FREE: u32 = 0xFFFF_FFFF;
/// Largest disk: behind a longer map the header's 32-bit offset would not reach the data.
const MAX_SIZE: u64 = 512 << 40;

const TEXT: &[u8] = b"<<< hyper2kvm virtual disk image >>>\n";
const VERSION: u32 = 0x0001_0001;
/// Length of the header from its own length field on.
const HEADER_LENGTH: u32 = 0x190;
const DYNAMIC: u32 = 1;

/// A VDI being written.
#[derive(Debug)]
pub(crate) struct Vdi {
    size: u64,
    /// Where the data begins.
    data: u64,
    /// Blocks handed out.
    allocated: u32,
    /// The guest block being filled and its place in the file.
    block: Option<(u64, u64)>,
    /// The page of the map being filled: its number and entries.
    page: Option<(u64, Vec<u32>)>,
    /// Pages written; the others say that all their blocks are free.
    written: Vec<bool>,
    /// Hash of the disk's size, its first bytes that are not zero, and the map: the image's identity.
    identity: Sha256,
}

impl Vdi {
    pub(super) fn new(size: u64, name: &str) -> Result<Self, Error> {
        if size > MAX_SIZE {
            return Err(Error::refuse(Reason::TooLarge, name, "a VDI disk holds at most 512 TiB"));
        }
        let pages = size.div_ceil(BLOCK).div_ceil(PAGE_BLOCKS);
        let mut identity = Sha256::new();
        identity.update(size.to_le_bytes());
        Ok(Self {
            size,
            data: (MAP + pages * PAGE as u64).next_multiple_of(BLOCK),
            allocated: 0,
            block: None,
            page: None,
            written: vec![false; usize::try_from(pages).expect("bounded by the largest size")],
            identity,
        })
    }

    #[expect(clippy::unused_self, reason = "writers answer for themselves")]
    pub(super) fn coding(&self) -> Coding {
        Coding::Runs { unit: ALIGNMENT }
    }

    pub(super) fn place(&mut self, coded: Coded, jobs: &mut Vec<WriteJob>) {
        let Coded { guest, buffer, content } = coded;
        let Content::Runs(runs) = content else { unreachable!("this writer asks for runs") };
        let mut parts: Vec<(u64, Range<usize>)> = Vec::with_capacity(runs.len());
        for run in runs {
            if self.allocated == 0 {
                self.identity.update(&buffer[run.start..run.end.min(run.start + ALIGNMENT)]);
            }
            let mut at = run.start;
            while at < run.end {
                let place = guest.start + at as u64;
                let within = usize::try_from(place % BLOCK).expect("below a MiB");
                let end = run.end.min(at + BLOCK_BYTES - within);
                let host = self.host(place / BLOCK, jobs) + within as u64;
                // The disk may end within a page; the buffer is padded and the block goes on.
                push(&mut parts, host, at..end.next_multiple_of(ALIGNMENT));
                at = end;
            }
        }
        jobs.push(WriteJob { buffer, parts, zeros: Vec::new() });
    }

    /// Where `block` of the guest lies in the file; the next free place if it has none yet.
    fn host(&mut self, block: u64, jobs: &mut Vec<WriteJob>) -> u64 {
        if let Some((current, host)) = self.block
            && current == block
        {
            return host;
        }
        let number = block / PAGE_BLOCKS;
        if self.page.as_ref().is_none_or(|(current, _)| *current != number) {
            self.flush_page(jobs);
            self.page = Some((number, vec![FREE; PAGE / 4]));
        }
        let (_, entries) = self.page.as_mut().expect("entered before it is filled");
        entries[usize::try_from(block % PAGE_BLOCKS).expect("an entry of a page")] = self.allocated;
        let host = self.data + u64::from(self.allocated) * BLOCK;
        self.allocated += 1;
        self.block = Some((block, host));
        host
    }

    fn flush_page(&mut self, jobs: &mut Vec<WriteJob>) {
        let Some((number, entries)) = self.page.take() else { return };
        let mut buffer = Buffer::new(PAGE);
        for (target, entry) in buffer.as_chunks_mut().0.iter_mut().zip(entries) {
            *target = entry.to_le_bytes();
        }
        self.identity.update(number.to_le_bytes());
        self.identity.update(&*buffer);
        self.written[usize::try_from(number).expect("an index of the pages")] = true;
        jobs.push(WriteJob { buffer, parts: vec![(MAP + number * PAGE as u64, 0..PAGE)], zeros: Vec::new() });
    }

    pub(super) fn close(&mut self, jobs: &mut Vec<WriteJob>) {
        self.flush_page(jobs);
    }

    pub(super) fn finish(self, output: &Output) -> Result<(), Error> {
        let mut free = Buffer::new(PAGE);
        free.fill(0xFF);
        for (number, _) in (0..).zip(&self.written).filter(|(_, written)| !**written) {
            output.write(&free, MAP + number * PAGE as u64)?;
        }
        output.set_len(self.data + u64::from(self.allocated) * BLOCK)?;
        output.write(&self.header(), 0)?;
        output.sync()
    }

    fn header(self) -> Buffer {
        let blocks = u32::try_from(self.size.div_ceil(BLOCK)).expect("bounded by the largest size");
        let mut header = Buffer::new(ALIGNMENT);
        header[..TEXT.len()].copy_from_slice(TEXT);
        for (at, value) in [
            (0x40, SIGNATURE),
            (0x44, VERSION),
            (0x48, HEADER_LENGTH),
            (0x4C, DYNAMIC),
            (0x154, u32::try_from(MAP).expect("4096")),
            (0x158, u32::try_from(self.data).expect("bounded by the largest size")),
            (0x168, 512), // bytes of a sector
            (0x178, u32::try_from(BLOCK).expect("1 MiB")),
            (0x180, blocks),
            (0x184, self.allocated),
        ] {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        header[0x170..0x178].copy_from_slice(&self.size.to_le_bytes());
        // VirtualBox tells images apart by this. The same disk gets the same, so that output can be reproduced.
        let uuid = &mut header[0x188..0x198];
        uuid.copy_from_slice(&self.identity.finalize()[..16]);
        // RFC 9562: version 8, variant 10; the first three fields are little-endian in the file.
        uuid[7] = uuid[7] & 0x0F | 0x80;
        uuid[8] = uuid[8] & 0x3F | 0x80;
        header
    }
}

/// Adds a part, or lengthens the last one where it goes on in buffer and file.
fn push(parts: &mut Vec<(u64, Range<usize>)>, host: u64, range: Range<usize>) {
    match parts.last_mut() {
        Some((offset, last)) if last.end == range.start && *offset + last.len() as u64 == host => last.end = range.end,
        _ => parts.push((host, range)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::conversion::OutputFormat;
    use crate::disk::resolve::{guest_bytes, qemu_img, region_of, region_over, sample_disk};
    use crate::disk::{Copied, CopyControl, CopyOptions, Image, Location, copy, vdi, verify};

    fn vdi_of(image: &Image, path: &Path) -> Copied {
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let options = CopyOptions { format: OutputFormat::Vdi, ..CopyOptions::default() };
        copy(image, &file, "x.vdi", &options, &CopyControl::default()).unwrap()
    }

    #[test]
    fn qemu_and_our_own_reader_see_the_disk_that_was_written() {
        let folder = tempfile::tempdir().unwrap();
        for size in [512, 4096 + 512, 1 << 20, (7 << 20) + 1536] {
            let disk = sample_disk(size);
            std::fs::write(folder.path().join("raw"), &disk).unwrap();
            let path = folder.path().join(format!("{size}.vdi"));
            vdi_of(&Image::raw(&region_over(&disk)).unwrap(), &path);
            let name = path.file_name().unwrap().to_str().unwrap();
            qemu_img(folder.path(), &["compare", "-f", "vdi", "-F", "raw", name, "raw"]);
            qemu_img(folder.path(), &["check", "-f", "vdi", name]);
            let region = region_of(&path);
            let image = vdi::Vdi::open(&region, u64::MAX).unwrap();
            assert_eq!((image.kind(), image.virtual_size()), ("vdi dynamic", size as u64));
            assert!(guest_bytes(&region, size as u64, image.extents()).unwrap() == disk);
        }
    }

    #[test]
    fn both_ends_of_a_huge_disk_take_two_blocks() {
        let size = (2 << 40) + 512;
        let raw = tempfile::tempfile().unwrap();
        raw.set_len(size).unwrap();
        raw.write_all_at(b"begin", 0).unwrap();
        raw.write_all_at(b"end", size - 512).unwrap();
        let source = crate::disk::Region::whole(std::sync::Arc::new(raw), "raw", size);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vdi");
        let copied = vdi_of(&Image::raw(&source).unwrap(), &path);
        let map = (size / BLOCK + 1) * 4;
        assert!(copied.allocated < map + (64 << 10) * 3, "{copied:?}");
        let region = region_of(&path);
        let image = vdi::Vdi::open(&region, u64::MAX).unwrap();
        let mut found = Vec::new();
        for extent in image.extents() {
            let extent = extent.unwrap();
            if let Location::Stored { offset, .. } = extent.at {
                let mut bytes = [0; 5];
                region.read_exact_at(&mut bytes, offset).unwrap();
                found.push((extent.guest, bytes));
            }
        }
        assert_eq!(found, [(0..BLOCK, *b"begin"), (2 << 40..size, *b"end\0\0")]);
    }

    #[test]
    fn different_disks_have_different_identities_and_the_same_disk_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let identity = |name: &str, disk: &[u8]| {
            let path = folder.path().join(name);
            vdi_of(&Image::raw(&region_over(disk)).unwrap(), &path);
            std::fs::read(&path).unwrap()[0x188..0x198].to_vec()
        };
        let disk = sample_disk(3 << 20);
        let first = identity("a", &disk);
        assert_eq!(first, identity("b", &disk));
        assert_ne!(first, identity("c", &sample_disk(4 << 20)));
        assert_ne!(first, identity("d", &[&[1; 512], &disk[512..]].concat()));
        assert_ne!(first, [0; 16]);
    }

    #[test]
    fn a_map_that_points_past_the_end_does_not_verify() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vdi");
        vdi_of(&Image::raw(&region_over(&sample_disk(2 << 20))).unwrap(), &path);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        verify(&file, "x.vdi", OutputFormat::Vdi, None, &CopyControl::default()).unwrap();
        file.write_all_at(&[9, 0, 0, 0], MAP + 4).unwrap();
        let error = verify(&file, "x.vdi", OutputFormat::Vdi, None, &CopyControl::default()).unwrap_err();
        assert_eq!((error.reason, error.offset), (Reason::Internal, Some(MAP + 4)));
    }

    #[test]
    fn a_disk_beyond_the_header_s_reach_is_refused() {
        assert_eq!(Vdi::new(MAX_SIZE + 512, "x").unwrap_err().reason, Reason::TooLarge);
        assert!(u32::try_from(Vdi::new(MAX_SIZE, "x").unwrap().data).is_ok());
    }

    #[test]
    fn an_unfinished_file_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vdi");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let control = CopyControl::default();
        let output = Output::new(&file, "x", &control, false);
        let mut vdi = Vdi::new(1 << 20, "x").unwrap();
        let mut buffer = Buffer::new(64 << 10);
        buffer[0] = 1;
        let run = 0..ALIGNMENT;
        let mut jobs = Vec::new();
        vdi.place(Coded { guest: 0..64 << 10, buffer, content: Content::Runs(vec![run]) }, &mut jobs);
        vdi.close(&mut jobs);
        for job in &jobs {
            for (at, range) in &job.parts {
                output.write(&job.buffer[range.clone()], *at).unwrap();
            }
        }
        assert!(vdi::Vdi::open(&region_of(&path), u64::MAX).is_err());
        vdi.finish(&output).unwrap();
        assert!(vdi::Vdi::open(&region_of(&path), u64::MAX).is_ok());
    }
}
