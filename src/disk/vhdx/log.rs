// SPDX-License-Identifier: Apache-2.0
//! The log: changes to metadata that a writer had not yet made in place when it stopped.
//!
//! MS-VHDX 2.3. The log is a ring of 4 KiB sectors. An entry is a header with descriptors, in whole sectors, and one
//! sector for each data descriptor. Consecutive sequence numbers make a sequence; it is valid when its last entry's tail
//! points at one of its own entries, from which on it is replayed.

use super::guid::Guid;
use super::header::LogPlace;
use super::patched::{LOG_SECTOR, Patches};
use crate::conversion::{Reason, Remedy};
use crate::disk::fields::{array, le32, le64};
use crate::disk::{Error, Region};

/// Every known writer makes a log of 1 MiB. All of it is read once.
const MAX_LOG: u64 = 64 << 20;
/// Most changed sectors that are held in memory: 16 MiB.
const MAX_PATCHES: usize = (16 << 20) / LOG_SECTOR;
/// Most changes that are applied, repeated ones of one sector included: bounds time, not memory.
const MAX_CHANGES: usize = 64 * MAX_PATCHES;
const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// Nothing below is ever changed by the log: headers and region tables.
const FIRST_CHANGEABLE: u64 = 1 << 20;

/// A valid entry, at `at` bytes from the log's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    at: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    descriptors: u64,
    /// Length that the file had when the entry was written.
    flushed: u64,
}

/// The changes of the active sequence, and how many entries they came from. No valid sequence: no changes.
///
/// # Errors
/// `Corrupt` where the log holds, or held, more than that: blocks that only the log knows would read as zeros.
pub(super) fn replay(region: &Region, place: LogPlace) -> Result<(Patches, usize), Error> {
    if place.len > MAX_LOG {
        let message = format!("has a log of {} bytes that was not replayed; open it once where it was made", place.len);
        let error = Error::refuse(Reason::UnsupportedFormat, region.name(), message).at(place.offset);
        return Err(error.with_remedy(Remedy::ReplayLog));
    }
    let log = Log { region, place };
    let mut changes = Changes { patches: Patches::new(), made: 0 };
    let sequence = log.active_sequence()?;
    log.refuse_damage(sequence.last().map_or(0, |last| last.sequence))?;
    if let Some(last) = sequence.last()
        && last.flushed > region.len()
    {
        let message =
            format!("was {} bytes long when its log was written, but ends at byte {}", last.flushed, region.len());
        return Err(Error::truncated(region.name(), place.offset + last.at, message));
    }
    for entry in &sequence {
        log.apply(entry, &mut changes)?;
    }
    Ok((changes.patches, sequence.len()))
}

struct Changes {
    patches: Patches,
    made: usize,
}

struct Log<'a> {
    region: &'a Region,
    place: LogPlace,
}

impl Log<'_> {
    /// Sector at `at` of the ring.
    fn sector(&self, at: u64) -> Result<[u8; LOG_SECTOR], Error> {
        let mut sector = [0; LOG_SECTOR];
        self.region.read_exact_at(&mut sector, self.place.offset + at % self.place.len)?;
        Ok(sector)
    }

    /// The entries to replay, in order.
    fn active_sequence(&self) -> Result<Vec<Entry>, Error> {
        let sectors = self.place.len / LOG_SECTOR as u64;
        let mut entries = Vec::new();
        for index in 0..sectors {
            entries.push(self.entry(index * LOG_SECTOR as u64)?);
        }
        let entry_at = |at: u64| {
            let index = usize::try_from(at % self.place.len / LOG_SECTOR as u64).expect("a log's sectors fit");
            entries[index]
        };
        let (mut best, mut best_last) = (None, 0);
        for first in entries.iter().flatten() {
            // An entry that continues another belongs to the sequence that begins earlier and has the same end.
            let mut last = *first;
            let mut tail_within = false;
            let mut length = first.len;
            while let Some(next) = entry_at(last.at + last.len) {
                if next.sequence != last.sequence + 1 || length + next.len > self.place.len {
                    break;
                }
                length += next.len;
                last = next;
            }
            let mut at = Some(*first);
            while let Some(entry) = at {
                tail_within |= entry.at == last.tail;
                at = if entry == last { None } else { entry_at(entry.at + entry.len) };
            }
            if tail_within && last.sequence > best_last {
                (best, best_last) = (Some(last), last.sequence);
            }
        }
        let Some(last) = best else { return Ok(Vec::new()) };
        let mut sequence = Vec::new();
        let mut at = entry_at(last.tail);
        while let Some(entry) = at {
            sequence.push(entry);
            at = if entry == last { None } else { entry_at(entry.at + entry.len) };
        }
        Ok(sequence)
    }

    /// Fails where a sector shows that an entry beyond number `applied` was written, though no valid one is there.
    fn refuse_damage(&self, applied: u64) -> Result<(), Error> {
        let len = self.place.len;
        let mut before = self.sector(len - LOG_SECTOR as u64)?;
        for at in (0..len).step_by(LOG_SECTOR) {
            let sector = self.sector(at)?;
            let is_lost = match stated(&sector, &self.place.guid) {
                Stated::Head(sequence) => sequence > applied,
                // The sectors of an entry follow one another: this one's head is gone.
                Stated::Data(sequence) => {
                    sequence > applied && matches!(stated(&before, &self.place.guid), Stated::Nothing)
                }
                Stated::Other | Stated::Nothing => false,
            };
            if is_lost {
                let message = "its log is damaged: an entry that was not yet applied can't be read";
                let error = Error::corrupt(self.region.name(), self.place.offset + at, message);
                return Err(error.with_remedy(Remedy::ReplayLog));
            }
            before = sector;
        }
        Ok(())
    }

    /// The entry at `at`, if a valid one begins there. Signatures are looked at before the checksum is computed, so
    /// that sectors are not summed once for each entry that claims them.
    fn entry(&self, at: u64) -> Result<Option<Entry>, Error> {
        let first = self.sector(at)?;
        let guid: Guid = array(&first, 32);
        let entry = Entry {
            at,
            len: u64::from(le32(&first, 8)),
            tail: u64::from(le32(&first, 12)),
            sequence: le64(&first, 16),
            descriptors: u64::from(le32(&first, 24)),
            flushed: le64(&first, 48),
        };
        let head = entry.head_sectors();
        let shape = &first[..4] == b"loge"
            && guid == self.place.guid
            && entry.sequence > 0
            && entry.sequence < u64::MAX
            && entry.len.is_multiple_of(LOG_SECTOR as u64)
            && entry.tail.is_multiple_of(LOG_SECTOR as u64)
            && (head * LOG_SECTOR as u64..=self.place.len).contains(&entry.len)
            && entry.tail < self.place.len;
        if !shape {
            return Ok(None);
        }
        let mut data = 0;
        for index in 0..entry.descriptors {
            match self.descriptor(&entry, index)? {
                Some(Descriptor::Data { .. }) => data += 1,
                Some(Descriptor::Zero { .. }) => {}
                None => return Ok(None),
            }
        }
        if (head + data) * LOG_SECTOR as u64 != entry.len {
            return Ok(None);
        }
        for index in head..head + data {
            let sector = self.sector(at + index * LOG_SECTOR as u64)?;
            let sequence = u64::from(le32(&sector, 4)) << 32 | u64::from(le32(&sector, LOG_SECTOR - 4));
            if &sector[..4] != b"data" || sequence != entry.sequence {
                return Ok(None);
            }
        }
        let mut summed = first;
        summed[4..8].fill(0);
        let mut sum = crc32c::crc32c(&summed);
        for index in 1..head + data {
            sum = crc32c::crc32c_append(sum, &self.sector(at + index * LOG_SECTOR as u64)?);
        }
        Ok((sum == le32(&first, 4)).then_some(entry))
    }

    /// Descriptor `index` of an entry; `None` where it is none.
    fn descriptor(&self, entry: &Entry, index: u64) -> Result<Option<Descriptor>, Error> {
        let byte = ENTRY_HEADER as u64 + index * DESCRIPTOR as u64;
        let sector = self.sector(entry.at + byte - byte % LOG_SECTOR as u64)?;
        let start = usize::try_from(byte % LOG_SECTOR as u64).expect("within a sector");
        let bytes: [u8; DESCRIPTOR] = array(&sector, start);
        let offset = le64(&bytes, 16);
        if le64(&bytes, 24) != entry.sequence || !offset.is_multiple_of(LOG_SECTOR as u64) {
            return Ok(None);
        }
        Ok(match &bytes[..4] {
            b"zero" => Some(Descriptor::Zero { offset, len: le64(&bytes, 8) }),
            b"desc" => Some(Descriptor::Data { offset, head: array(&bytes, 8), tail: array(&bytes, 4) }),
            _ => None,
        })
    }

    fn apply(&self, entry: &Entry, changes: &mut Changes) -> Result<(), Error> {
        let mut data = entry.head_sectors();
        for index in 0..entry.descriptors {
            match self.descriptor(entry, index)? {
                Some(Descriptor::Data { offset, head, tail }) => {
                    // The sector's own first 8 and last 4 bytes gave way to signature and sequence number.
                    let mut sector = self.sector(entry.at + data * LOG_SECTOR as u64)?;
                    sector[..8].copy_from_slice(&head);
                    sector[LOG_SECTOR - 4..].copy_from_slice(&tail);
                    data += 1;
                    self.patch(entry, changes, offset, Some(Box::new(sector)))?;
                }
                Some(Descriptor::Zero { offset, len }) => {
                    if !len.is_multiple_of(LOG_SECTOR as u64) || offset.checked_add(len).is_none() {
                        let message = format!("its log clears {len} bytes at byte {offset}");
                        return Err(Error::corrupt(self.region.name(), self.place.offset + entry.at, message));
                    }
                    for at in (offset..offset + len).step_by(LOG_SECTOR) {
                        self.patch(entry, changes, at, None)?;
                    }
                }
                None => return Err(self.changed(entry)),
            }
        }
        Ok(())
    }

    fn patch(
        &self,
        entry: &Entry,
        changes: &mut Changes,
        offset: u64,
        sector: Option<Box<[u8; LOG_SECTOR]>>,
    ) -> Result<(), Error> {
        let place = self.place.offset + entry.at;
        let own = self.place.offset..self.place.offset + self.place.len;
        if offset < FIRST_CHANGEABLE || own.contains(&offset) {
            let message = format!("its log changes byte {offset}, which no log may");
            return Err(Error::corrupt(self.region.name(), place, message));
        }
        changes.patches.insert(offset, sector);
        changes.made += 1;
        if changes.patches.len() > MAX_PATCHES || changes.made > MAX_CHANGES {
            let message = "its log holds more than 16 MiB of changes; open it once where it was made";
            let error = Error::refuse(Reason::UnsupportedFormat, self.region.name(), message).at(place);
            return Err(error.with_remedy(Remedy::ReplayLog));
        }
        Ok(())
    }

    fn changed(&self, entry: &Entry) -> Error {
        Error::refuse(Reason::SourceChanged, self.region.name(), "its log changed while it was read")
            .at(self.place.offset + entry.at)
    }
}

/// What a sector of the log says of itself, damaged or not.
enum Stated {
    /// The head of an entry of this log, and the highest number in it.
    Head(u64),
    /// Data of an entry of this number.
    Data(u64),
    /// The head of another log's entry, or descriptors.
    Other,
    Nothing,
}

/// Whether the log's region holds a sector of an entry of the log `guid`.
pub(super) fn holds(region: &Region, place: LogPlace) -> Result<bool, Error> {
    let log = Log { region, place };
    for at in (0..place.len).step_by(LOG_SECTOR) {
        if matches!(stated(&log.sector(at)?, &place.guid), Stated::Head(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn stated(sector: &[u8; LOG_SECTOR], guid: &Guid) -> Stated {
    // Identifiers are random: two logs' have no more than a byte or two in common, but a damaged one has.
    let own = sector[32..48].iter().zip(guid).filter(|(byte, own)| byte == own).count() >= guid.len() / 2;
    if own {
        let mut sequence = le64(sector, 16);
        if matches!(&sector[64..68], b"desc" | b"zero") {
            sequence = sequence.max(le64(sector, 64 + 24));
        }
        return Stated::Head(sequence.max(1));
    }
    match &sector[..4] {
        b"data" => Stated::Data(u64::from(le32(sector, 4)) << 32 | u64::from(le32(sector, LOG_SECTOR - 4))),
        b"loge" | b"desc" | b"zero" => Stated::Other,
        _ => Stated::Nothing,
    }
}

enum Descriptor {
    Zero { offset: u64, len: u64 },
    Data { offset: u64, head: [u8; 8], tail: [u8; 4] },
}

impl Entry {
    /// Sectors of header and descriptors.
    fn head_sectors(&self) -> u64 {
        (ENTRY_HEADER as u64 + self.descriptors * DESCRIPTOR as u64).div_ceil(LOG_SECTOR as u64)
    }
}
