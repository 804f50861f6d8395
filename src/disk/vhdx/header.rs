// SPDX-License-Identifier: Apache-2.0
//! The first MiB: file identifier, two headers, two region tables.

use crate::conversion::Reason;
use crate::disk::fields::{array, le16, le32, le64};
use crate::disk::{Error, Region};

use super::guid::{self, Guid};

/// The first eight bytes of the file.
pub(super) const SIGNATURE: &[u8; 8] = b"vhdxfile";

pub(super) const MIB: u64 = 1 << 20;
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Length of a header that its checksum covers.
const HEADER: usize = 4096;
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE: usize = 64 << 10;
/// By the specification.
const MAX_REGIONS: usize = 2047;

/// Where the log lies, and the identifier that its valid entries carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPlace {
    pub(super) guid: Guid,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A range of whole MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) bat: Span,
    pub(super) metadata: Span,
    /// All regions, those of unknown use as well.
    pub(super) all: Vec<Span>,
}

/// The log that the headers name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Logs {
    /// The current header's; `None` where there is nothing to replay.
    pub(super) current: Option<LogPlace>,
    /// The log of a newer header that is damaged, and where that header lies.
    pub(super) lost: Option<(LogPlace, u64)>,
}

/// The logs of both headers.
pub(super) fn logs(region: &Region, warnings: &mut Vec<String>) -> Result<Logs, Error> {
    let name = region.name();
    let mut signature = [0; 8];
    region.read_exact_at(&mut signature, 0)?;
    if &signature != SIGNATURE {
        return Err(Error::refuse(Reason::FormatMismatch, name, "is no VHDX").at(0));
    }
    let Current { at, header, damaged } = current(region)?;
    if le16(&header, 66) != 1 {
        let message = format!("VHDX version {} is not supported, only 1 is", le16(&header, 66));
        return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(at + 66));
    }
    let guid: Guid = array(&header, 48);
    let mut logs = Logs::default();
    if let Some((damaged_at, damaged)) = damaged {
        warnings.push(format!("{name}: one of its two headers is damaged; the other was read"));
        let guid_of_damaged: Guid = array(&damaged, 48);
        let is_newer = le64(&damaged, 8) > le64(&header, 8);
        if is_newer && guid_of_damaged != guid && guid_of_damaged != guid::NIL {
            // Both headers name one place.
            let place = log_span(region, at, &header).ok();
            let place = place.map(|span| LogPlace { guid: guid_of_damaged, offset: span.offset, len: span.len });
            logs.lost = place.map(|place| (place, damaged_at));
        }
    }
    if guid == guid::NIL {
        return Ok(logs);
    }
    if le16(&header, 64) != 0 {
        let message = format!("has a log of version {}", le16(&header, 64));
        return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(at + 64));
    }
    let span = log_span(region, at, &header)?;
    logs.current = Some(LogPlace { guid, offset: span.offset, len: span.len });
    Ok(logs)
}

fn log_span(region: &Region, at: u64, header: &[u8]) -> Result<Span, Error> {
    span(region, at + 68, "log", le64(header, 72), u64::from(le32(header, 68)))
}

/// The header that counts.
struct Current {
    at: u64,
    header: Vec<u8>,
    /// The other one, where it can't be read: its place and its bytes.
    damaged: Option<(u64, Vec<u8>)>,
}

/// The valid header with the larger sequence number.
fn current(region: &Region) -> Result<Current, Error> {
    let mut best: Option<(u64, u64, Vec<u8>)> = None;
    let mut damaged = None;
    for at in HEADERS {
        let mut header = vec![0; HEADER];
        region.read_exact_at(&mut header, at)?;
        if &header[..4] != b"head" || !checksum_holds(&mut header) {
            damaged = Some((at, header));
            continue;
        }
        let sequence = le64(&header, 8);
        match &best {
            Some((held, _, other)) if *held == sequence && *other != header => {
                return Err(Error::corrupt(region.name(), at, "its two headers differ under one sequence number"));
            }
            Some((held, ..)) if *held >= sequence => {}
            _ => best = Some((sequence, at, header)),
        }
    }
    match best {
        Some((_, at, header)) => Ok(Current { at, header, damaged }),
        None => Err(Error::corrupt(region.name(), HEADERS[0], "neither of its headers has a right checksum")),
    }
}

/// The regions. Both tables must say the same, or one of them be invalid.
pub(super) fn regions(region: &Region, warnings: &mut Vec<String>) -> Result<Regions, Error> {
    let name = region.name();
    let mut found: Option<(u64, Vec<u8>)> = None;
    let mut is_damaged = false;
    for at in REGION_TABLES {
        let mut table = vec![0; REGION_TABLE];
        region.read_exact_at(&mut table, at)?;
        if &table[..4] != b"regi" || !checksum_holds(&mut table) {
            is_damaged = true;
            continue;
        }
        match &found {
            Some((_, other)) if *other != table => {
                return Err(Error::corrupt(name, at, "its two region tables differ"));
            }
            Some(_) => {}
            None => found = Some((at, table)),
        }
    }
    let Some((at, table)) = found else {
        return Err(Error::corrupt(name, REGION_TABLES[0], "neither of its region tables has a right checksum"));
    };
    if is_damaged {
        warnings.push(format!("{name}: one of its two region tables is damaged; the other was read"));
    }
    parse_regions(region, at, &table)
}

fn parse_regions(region: &Region, at: u64, table: &[u8]) -> Result<Regions, Error> {
    let name = region.name();
    let count = le32(table, 8) as usize;
    if count > MAX_REGIONS {
        return Err(Error::corrupt(name, at + 8, format!("has {count} regions")));
    }
    let (mut bat, mut metadata, mut all) = (None, None, Vec::new());
    for index in 0..count {
        let start = 16 + index * 32;
        let place = at + start as u64;
        let id: Guid = array(table, start);
        let (offset, len) = (le64(table, start + 16), u64::from(le32(table, start + 24)));
        let slot = match id {
            guid::BAT => Some(&mut bat),
            guid::METADATA => Some(&mut metadata),
            _ if le32(table, start + 28) & 1 != 0 => {
                let message = "needs a region of unknown use";
                return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(place));
            }
            _ => None,
        };
        let span = span(region, place + 16, "region", offset, len)?;
        if slot.is_some_and(|slot| slot.replace(span).is_some()) {
            return Err(Error::corrupt(name, place, "has one region twice"));
        }
        all.push(span);
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata, all }),
        (None, _) => Err(Error::corrupt(name, at, "has no block table")),
        (_, None) => Err(Error::corrupt(name, at, "has no metadata")),
    }
}

/// Checks that `what` consists of whole MiB behind the first one, inside the file.
fn span(region: &Region, place: u64, what: &str, offset: u64, len: u64) -> Result<Span, Error> {
    if offset < MIB || len == 0 || !offset.is_multiple_of(MIB) || !len.is_multiple_of(MIB) {
        let message = format!("has a {what} of {len} bytes at byte {offset}");
        return Err(Error::corrupt(region.name(), place, message));
    }
    if offset.checked_add(len).is_none_or(|end| end > region.len()) {
        let message = format!("needs a {what} of {len} bytes, but the file ends at byte {}", region.len());
        return Err(Error::truncated(region.name(), offset, message));
    }
    Ok(Span { offset, len })
}

/// Whether the CRC-32C at byte 4 is the one of `bytes` with zeros in its place. Leaves zeros there.
fn checksum_holds(bytes: &mut [u8]) -> bool {
    let stated = le32(bytes, 4);
    bytes[4..8].fill(0);
    crc32c::crc32c(bytes) == stated
}
