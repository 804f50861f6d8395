// SPDX-License-Identifier: Apache-2.0
//! Writes sparse VMDKs as several makers do: streamOptimized with and without a footer, monolithicSparse, split extents.
//!
//! Shared by path: unit tests, black-box tests, examples. Layout: `VMware`'s "Virtual Disk Format 5.0".
#![allow(dead_code)]

use std::io::{self, Seek, SeekFrom, Write};

pub(crate) const SECTOR: u64 = 512;
/// Bytes of a grain: 64 KiB, as all makers write it.
pub(crate) const GRAIN: u64 = 64 << 10;
const TABLE_ENTRIES: u64 = 512;
/// Sectors kept for the descriptor, behind the header.
const DESCRIPTOR_SECTORS: u64 = 20;

/// What kind of VMDK to write.
#[derive(Clone, Debug)]
pub(crate) struct Sparse {
    /// Guest bytes; a multiple of 512.
    pub capacity: u64,
    /// streamOptimized: zlib grains behind markers.
    pub compressed: bool,
    /// Tables and a footer behind the grains, as `ESXi` and ovftool do, else tables before them.
    pub footer: bool,
    /// Redundant directory and tables.
    pub redundant: bool,
    /// Grains lie in the file from the disk's end to its start.
    pub descending: bool,
    /// Flag bit 2, version 2: grains of zeros are marked with a table entry of 1.
    pub zero_grains: bool,
    /// The text of the descriptor; `None` for an extent of a split disk.
    pub descriptor: Option<String>,
}

impl Sparse {
    /// As `ESXi` and ovftool export it.
    pub(crate) fn stream_optimized(capacity: u64) -> Self {
        let descriptor = Some(descriptor("streamOptimized", capacity));
        Self {
            capacity,
            compressed: true,
            footer: true,
            redundant: false,
            descending: false,
            zero_grains: false,
            descriptor,
        }
    }

    /// As Workstation makes it.
    pub(crate) fn monolithic_sparse(capacity: u64) -> Self {
        let descriptor = Some(descriptor("monolithicSparse", capacity));
        Self { compressed: false, footer: false, redundant: true, descriptor, ..Self::stream_optimized(capacity) }
    }

    /// Writes the file from the start of `out`. `grain` yields the bytes of the grain with that number, or `None` where
    /// it is all zeros; a last grain may be shorter than [`GRAIN`]. It is asked once for each grain, in file order.
    pub(crate) fn write<W: Write + Seek>(
        &self,
        out: &mut W,
        mut grain: impl FnMut(u64) -> Option<Vec<u8>>,
    ) -> io::Result<()> {
        let compressed = self.compressed;
        self.write_stored(out, |number| {
            let bytes = grain(number)?;
            let is_marked = self.zero_grains && bytes.iter().all(|&byte| byte == 0);
            Some(if is_marked {
                Vec::new()
            } else if compressed {
                zlib(&bytes)
            } else {
                bytes
            })
        })
    }

    /// The same with grains as they are stored: zlib streams, or plain bytes; an empty one is a marked grain of zeros.
    pub(crate) fn write_stored<W: Write + Seek>(
        &self,
        out: &mut W,
        mut grain: impl FnMut(u64) -> Option<Vec<u8>>,
    ) -> io::Result<()> {
        let grains = self.capacity.div_ceil(GRAIN);
        let tables = grains.div_ceil(TABLE_ENTRIES);
        let tables_sectors = (tables * 4).div_ceil(SECTOR) + tables * 4;
        let first = 1 + DESCRIPTOR_SECTORS;
        let (redundant_at, directory_at) = match (self.footer, self.redundant) {
            (true, _) => (0, u64::MAX),
            (false, true) => (first, first + tables_sectors),
            (false, false) => (0, first),
        };
        let overhead = if self.footer { 128 } else { (directory_at + tables_sectors).next_multiple_of(GRAIN / SECTOR) };

        let mut entries = vec![0u32; usize::try_from(tables * TABLE_ENTRIES).unwrap()];
        let mut at = overhead * SECTOR;
        out.seek(SeekFrom::Start(at))?;
        for step in 0..grains {
            let number = if self.descending { grains - 1 - step } else { step };
            let Some(bytes) = grain(number) else { continue };
            let entry = &mut entries[usize::try_from(number).unwrap()];
            if bytes.is_empty() {
                *entry = 1;
                continue;
            }
            *entry = u32::try_from(at / SECTOR).unwrap();
            at += self.write_grain(out, number, &bytes)?;
        }
        if self.footer {
            self.write_end(out, &entries, at)?;
        } else {
            for at in [redundant_at, directory_at] {
                if at != 0 {
                    out.seek(SeekFrom::Start(at * SECTOR))?;
                    write_tables(out, &entries, at, tables)?;
                }
            }
        }
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&self.header(redundant_at, directory_at, overhead))?;
        if let Some(descriptor) = &self.descriptor {
            let mut text = descriptor.clone().into_bytes();
            text.resize(usize::try_from(DESCRIPTOR_SECTORS * SECTOR).unwrap(), 0);
            out.write_all(&text)?;
        }
        out.flush()
    }

    fn write_grain<W: Write>(&self, out: &mut W, number: u64, bytes: &[u8]) -> io::Result<u64> {
        if !self.compressed {
            let mut bytes = bytes.to_vec();
            bytes.resize(usize::try_from(GRAIN).unwrap(), 0);
            out.write_all(&bytes)?;
            return Ok(GRAIN);
        }
        let mut grain = Vec::with_capacity(bytes.len() + 1024);
        grain.extend_from_slice(&(number * GRAIN / SECTOR).to_le_bytes());
        grain.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        grain.extend_from_slice(bytes);
        grain.resize(grain.len().next_multiple_of(512), 0);
        out.write_all(&grain)?;
        Ok(grain.len() as u64)
    }

    /// Grain tables, directory, footer and end-of-stream, each behind its marker; `at` is where the file is.
    fn write_end<W: Write>(&self, out: &mut W, entries: &[u32], at: u64) -> io::Result<()> {
        let mut sector = at / SECTOR;
        let mut directory = Vec::new();
        for table in entries.chunks(usize::try_from(TABLE_ENTRIES).unwrap()) {
            if table.iter().all(|&entry| entry == 0) {
                directory.push(0);
                continue;
            }
            out.write_all(&marker(4, 1))?;
            directory.push(u32::try_from(sector + 1).unwrap());
            write_entries(out, table)?;
            sector += 5;
        }
        let directory_sectors = (directory.len() as u64 * 4).div_ceil(SECTOR);
        out.write_all(&marker(directory_sectors, 2))?;
        write_entries(out, &directory)?;
        out.write_all(&marker(1, 3))?;
        out.write_all(&self.header(0, sector + 1, 128))?;
        out.write_all(&marker(0, 0))
    }

    fn header(&self, redundant: u64, directory: u64, overhead: u64) -> [u8; 512] {
        let mut header = [0; 512];
        let mut flags = 1u32;
        flags |= u32::from(self.redundant && !self.footer) << 1;
        flags |= u32::from(self.zero_grains) << 2;
        flags |= if self.compressed { 3 << 16 } else { 0 };
        let version = if self.compressed { 3u32 } else { 1 + u32::from(self.zero_grains) };
        let (descriptor_at, descriptor_len) = if self.descriptor.is_some() { (1, DESCRIPTOR_SECTORS) } else { (0, 0) };
        header[..4].copy_from_slice(b"KDMV");
        header[4..8].copy_from_slice(&version.to_le_bytes());
        header[8..12].copy_from_slice(&flags.to_le_bytes());
        header[12..20].copy_from_slice(&(self.capacity / SECTOR).to_le_bytes());
        header[20..28].copy_from_slice(&(GRAIN / SECTOR).to_le_bytes());
        header[28..36].copy_from_slice(&u64::to_le_bytes(descriptor_at));
        header[36..44].copy_from_slice(&descriptor_len.to_le_bytes());
        header[44..48].copy_from_slice(&512u32.to_le_bytes());
        header[48..56].copy_from_slice(&redundant.to_le_bytes());
        header[56..64].copy_from_slice(&directory.to_le_bytes());
        header[64..72].copy_from_slice(&overhead.to_le_bytes());
        header[73..77].copy_from_slice(b"\n \r\n");
        header[77..79].copy_from_slice(&u16::from(self.compressed).to_le_bytes());
        header
    }
}

/// The descriptor of a disk that is one sparse file.
pub(crate) fn descriptor(kind: &str, capacity: u64) -> String {
    let sectors = capacity / SECTOR;
    let cylinders = sectors.div_ceil(63 * 255);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
         # Extent description\nRW {sectors} SPARSE \"generated-stream.vmdk\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\nddb.virtualHWVersion = \"13\"\n"
    )
}

/// All bytes of a VMDK of `content`, whose zero grains are left out.
pub(crate) fn built(kind: &Sparse, content: &[u8]) -> Vec<u8> {
    let mut out = io::Cursor::new(Vec::new());
    let grain = |number: u64| {
        let start = usize::try_from(number * GRAIN).unwrap();
        let bytes = &content[start..content.len().min(start + usize::try_from(GRAIN).unwrap())];
        (kind.zero_grains || bytes.iter().any(|&byte| byte != 0)).then(|| bytes.to_vec())
    };
    kind.write(&mut out, grain).unwrap();
    out.into_inner()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a vector takes every write")
}

/// A marker sector: what follows, in sectors, and its type.
fn marker(sectors: u64, kind: u32) -> [u8; 512] {
    let mut marker = [0; 512];
    marker[..8].copy_from_slice(&sectors.to_le_bytes());
    marker[12..16].copy_from_slice(&kind.to_le_bytes());
    marker
}

/// Directory and tables, contiguous from sector `at`.
fn write_tables<W: Write>(out: &mut W, entries: &[u32], at: u64, tables: u64) -> io::Result<()> {
    let first = at + (tables * 4).div_ceil(SECTOR);
    let directory: Vec<u32> = (0..tables).map(|table| u32::try_from(first + table * 4).unwrap()).collect();
    write_entries(out, &directory)?;
    write_entries(out, entries)
}

/// Entries, padded to whole sectors.
fn write_entries<W: Write>(out: &mut W, entries: &[u32]) -> io::Result<()> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    out.write_all(&bytes)
}
