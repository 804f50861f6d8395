// SPDX-License-Identifier: Apache-2.0
//! What the structure of a packed file tells without unpacking it: the length of its content, and whether its end is
//! there. Every question costs a bounded number of reads.
//!
//! Formats: *The .xz File Format* 1.2.1, sections 2.1.2 and 4; RFC 8878, sections 3.1.1 and 3.1.2; bzip2's end of
//! stream; *SAM/BAM Format Specification*, section 4.1.2 (bgzip); PKWARE's APPNOTE 6.3.10, section 4.3.16.

use crate::conversion::{Reason, Remedy};
use crate::disk::detect::{Packing, ZSTD, is_skippable};
use crate::disk::fields::{le16, le32, le64};
use crate::disk::{Error, Region};

/// The empty member that closes a file of bgzip.
const BGZIP_END: [u8; 28] = *b"\x1F\x8B\x08\x04\0\0\0\0\0\xFF\x06\0BC\x02\0\x1B\0\x03\0\0\0\0\0\0\0\0\0";
/// Largest index of an xz that is read: a million blocks.
const MAX_INDEX: u64 = 16 << 20;
/// Most streams of an xz, most padding behind one.
const MAX_STREAMS: u32 = 1024;
const MAX_PADDING: u64 = 64 << 10;
/// Blocks of a zstd that are looked at: 512 MiB of content.
const MAX_BLOCKS: u32 = 4096;
/// Largest window of a zstd, as zstd(1) takes without asking: 2^27.
const MAX_WINDOW: u64 = 1 << 27;

/// Length of what is packed in `region`; `None` where only unpacking tells.
pub(super) fn size(region: &Region, packing: Packing) -> Option<u64> {
    match packing {
        Packing::Xz => xz_size(region),
        Packing::Zstd => match zstd_frames(region) {
            Frames::Whole(size) => size,
            Frames::Cut | Frames::Unknown => None,
        },
        Packing::Gzip | Packing::Bzip2 => None,
    }
}

/// Length of what the last member of a gzip packs, modulo 2^32 (RFC 1952, ISIZE).
pub(super) fn gzip_length(region: &Region) -> Option<u32> {
    last::<4>(region, region.len()).map(u32::from_le_bytes)
}

/// Whether the mark that ends the stream is there; `None` where the packing has none that is to be had cheaply.
pub(crate) fn has_end(region: &Region, packing: Packing) -> Option<bool> {
    match packing {
        Packing::Gzip => (last::<28>(region, region.len())? == BGZIP_END).then_some(true),
        Packing::Xz => Some(without_padding(region, region.len()).and_then(|end| xz_footer(region, end)).is_some()),
        Packing::Zstd => match zstd_frames(region) {
            Frames::Whole(_) => Some(true),
            Frames::Cut => Some(false),
            Frames::Unknown => None,
        },
        Packing::Bzip2 => Some(has_bzip2_end(region)),
    }
}

/// Whether a zip's end of central directory is there.
pub(crate) fn has_zip_end(region: &Region) -> Option<bool> {
    const LEN: usize = 22;
    let most = usize::try_from(region.len()).unwrap_or(usize::MAX).min(LEN + usize::from(u16::MAX));
    let mut tail = vec![0; most];
    region.read_exact_at(&mut tail, region.len() - most as u64).ok()?;
    let closes = |end: &[u8]| end.starts_with(b"PK\x05\x06") && LEN + usize::from(le16(end, 20)) == end.len();
    Some((0..tail.len().saturating_sub(LEN - 1)).any(|at| closes(&tail[at..])))
}

/// Fails where unpacking the first frame would take too much memory.
pub(super) fn check_window(region: &Region) -> Result<(), Error> {
    match zstd_header(region, 0) {
        Some(Header { window, .. }) if window > MAX_WINDOW => {
            let message = format!(
                "needs a window of {} MiB to be unpacked, the limit is {}; pack it again without --long",
                window >> 20,
                MAX_WINDOW >> 20
            );
            Err(Error::refuse(Reason::UnsupportedFormat, region.name(), message).at(0).with_remedy(Remedy::InMessage))
        }
        _ => Ok(()),
    }
}

/// The `N` bytes before `end`.
fn last<const N: usize>(region: &Region, end: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    region.read_exact_at(&mut bytes, end.checked_sub(N as u64)?).ok()?;
    Some(bytes)
}

/// Where the last xz stream before `end` ends: padding is zeros, four at a time.
fn without_padding(region: &Region, mut end: u64) -> Option<u64> {
    let least = end.saturating_sub(MAX_PADDING);
    while end > least && last::<4>(region, end)? == [0; 4] {
        end -= 4;
    }
    Some(end)
}

/// Length of the index that the footer before `end` gives.
fn xz_footer(region: &Region, end: u64) -> Option<u64> {
    let footer = last::<12>(region, end)?;
    let is_footer = &footer[10..] == b"YZ" && crc32fast::hash(&footer[4..10]) == le32(&footer, 0);
    is_footer.then(|| (u64::from(le32(&footer, 4)) + 1) * 4)
}

/// The sum of what the indices of all streams say.
fn xz_size(region: &Region) -> Option<u64> {
    let mut end = region.len();
    let mut size = 0_u64;
    for _ in 0..MAX_STREAMS {
        end = without_padding(region, end)?;
        let len = xz_footer(region, end).filter(|len| *len <= MAX_INDEX)?;
        let start = end.checked_sub(12 + len)?;
        let mut index = vec![0; usize::try_from(len).ok()?];
        region.read_exact_at(&mut index, start).ok()?;
        let (packed, unpacked) = xz_index(&index)?;
        size = size.checked_add(unpacked)?;
        // The blocks, and the stream's header.
        end = start.checked_sub(packed)?.checked_sub(12)?;
        if end == 0 {
            return Some(size);
        }
    }
    None
}

/// Bytes of all blocks of an index, packed and unpacked.
fn xz_index(index: &[u8]) -> Option<(u64, u64)> {
    let mut rest = index.strip_prefix(&[0])?;
    let records = xz_number(&mut rest)?;
    let (mut packed, mut unpacked) = (0_u64, 0_u64);
    for _ in 0..records {
        packed = packed.checked_add(xz_number(&mut rest)?.checked_next_multiple_of(4)?)?;
        unpacked = unpacked.checked_add(xz_number(&mut rest)?)?;
    }
    Some((packed, unpacked))
}

/// A number of seven bits a byte.
fn xz_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// What a walk over the frames of a zstd found.
enum Frames {
    /// The last one ends where the file does. The length is known where every frame states its own.
    Whole(Option<u64>),
    Cut,
    Unknown,
}

/// What the head of a frame says.
struct Header {
    /// Bytes to the first block.
    len: u64,
    window: u64,
    /// Bytes of content.
    content: Option<u64>,
    has_checksum: bool,
}

fn zstd_frames(region: &Region) -> Frames {
    let (mut at, mut left, mut size) = (0, MAX_BLOCKS, Some(0_u64));
    while at < region.len() {
        let mut head = [0; 8];
        if left == 0 {
            return Frames::Unknown;
        }
        left -= 1;
        if region.len() - at < 8 {
            return Frames::Cut;
        }
        if region.read_exact_at(&mut head, at).is_err() {
            return Frames::Unknown;
        }
        if is_skippable(&head) {
            at = at.saturating_add(8 + u64::from(le32(&head, 4)));
            continue;
        }
        if !head.starts_with(ZSTD) {
            return Frames::Unknown;
        }
        let Some(header) = zstd_header(region, at) else { return Frames::Cut };
        size = size.zip(header.content).and_then(|(size, content)| size.checked_add(content));
        match zstd_blocks(region, at + header.len, &mut left) {
            Ok(end) => at = end + if header.has_checksum { 4 } else { 0 },
            Err(frames) => return frames,
        }
    }
    if at == region.len() { Frames::Whole(size) } else { Frames::Cut }
}

/// Where the blocks from `at` on end.
fn zstd_blocks(region: &Region, mut at: u64, left: &mut u32) -> Result<u64, Frames> {
    loop {
        *left = left.checked_sub(1).ok_or(Frames::Unknown)?;
        let mut head = [0; 4];
        if at.saturating_add(3) > region.len() {
            return Err(Frames::Cut);
        }
        region.read_exact_at(&mut head[..3], at).map_err(|_| Frames::Unknown)?;
        let head = le32(&head, 0);
        // A block of the second kind is one byte, repeated.
        let len = if head >> 1 & 3 == 1 { 1 } else { u64::from(head >> 3) };
        at = at.saturating_add(3 + len);
        if head & 1 == 1 {
            return Ok(at);
        }
    }
}

/// The head of the frame at `at`; `None` where there is none, or not all of it.
fn zstd_header(region: &Region, at: u64) -> Option<Header> {
    let mut head = [0; 18];
    let len = usize::try_from(region.len().checked_sub(at)?).unwrap_or(usize::MAX).min(head.len());
    region.read_exact_at(&mut head[..len], at).ok()?;
    if !head.starts_with(ZSTD) {
        return None;
    }
    let descriptor = head[4];
    let single = descriptor >> 5 & 1 == 1;
    let mut next = 5;
    let mut window = 0;
    if !single {
        let (exponent, mantissa) = (u32::from(head[5] >> 3), u64::from(head[5] & 7));
        let base = 1_u64 << (10 + exponent);
        window = base + base / 8 * mantissa;
        next += 1;
    }
    next += [0, 1, 2, 4][usize::from(descriptor & 3)];
    let bytes = match descriptor >> 6 {
        0 => usize::from(single),
        log => 1 << log,
    };
    if next + bytes > len {
        return None;
    }
    let content = match bytes {
        1 => Some(u64::from(head[next])),
        2 => Some(u64::from(le16(&head, next)) + 256),
        4 => Some(u64::from(le32(&head, next))),
        8 => Some(le64(&head, next)),
        _ => None,
    };
    let window = if single { content.unwrap_or(0) } else { window };
    Some(Header { len: (next + bytes) as u64, window, content, has_checksum: descriptor >> 2 & 1 == 1 })
}

/// The last block of a bzip2 is 48 bits that begin at any bit, a checksum of 32 bits, and padding to a byte.
fn has_bzip2_end(region: &Region) -> bool {
    const END: u128 = 0x1772_4538_5090;
    let Some(tail) = last::<11>(region, region.len()) else { return false };
    let mut bytes = [0; 16];
    bytes[5..].copy_from_slice(&tail);
    let bits = u128::from_be_bytes(bytes);
    (0..8).any(|padding| bits >> (32 + padding) & 0xFFFF_FFFF_FFFF == END)
}
