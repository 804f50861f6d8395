// SPDX-License-Identifier: Apache-2.0
//! The maps of sparse members, which `tar --sparse` writes.
//!
//! Format: GNU tar's manual, "Storing Sparse Files": the old GNU format (type flag S), and PAX formats 0.0, 0.1 and 1.0.

use crate::disk::segments::Segments;
use crate::disk::tar_header::{BLOCK, number};

/// Most segments of all members: a few bytes of memory each.
pub(super) const MAX_SEGMENTS: usize = 1 << 19;

/// Where the fields of a header of the old format begin: its ranges, the mark that more follow, the file's length.
const OLD_RANGES: std::ops::Range<usize> = 386..482;
const OLD_MORE: usize = 482;
const OLD_LENGTH: std::ops::Range<usize> = 483..495;

/// The same of the blocks that follow such a header.
const MORE_RANGES: std::ops::Range<usize> = 0..504;
const MORE_MORE: usize = 504;

/// What an archive tells of a sparse member, as far as it was read. What contradicts itself is `None` everywhere here.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// The member's name: the header's is made up.
    pub name: Option<String>,
    major: Option<u64>,
    minor: Option<u64>,
    len: Option<u64>,
    /// Starts and lengths of the data.
    ranges: Vec<(u64, u64)>,
    /// The start whose length comes next.
    start: Option<u64>,
    /// Of a map before the data: the digits so far of the number that is read, and how many numbers are left.
    digits: Option<u64>,
    left: Option<usize>,
}

impl Sparse {
    /// Takes the record `GNU.sparse.{key}` of an extended header.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"size" | b"realsize" => {
                let len = decimal(value)?;
                if self.len.replace(len).is_some_and(|other| other != len) {
                    return None;
                }
            }
            b"offset" if self.start.is_none() => self.number(decimal(value)?)?,
            b"numbytes" if self.start.is_some() => self.number(decimal(value)?)?,
            b"offset" | b"numbytes" => return None,
            b"map" => value.split(|b| *b == b',').try_for_each(|text| self.number(decimal(text)?))?,
            _ => {}
        }
        Some(())
    }

    /// Takes a header of the old format. Also whether blocks with more ranges follow it.
    pub(super) fn old(header: &[u8; BLOCK]) -> Option<(Self, bool)> {
        let mut sparse = Self { len: Some(number(&header[OLD_LENGTH])?), ..Self::default() };
        sparse.fields(&header[OLD_RANGES])?;
        Some((sparse, header[OLD_MORE] != 0))
    }

    /// Takes such a block. Also whether another one follows.
    pub(super) fn more(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        self.fields(&block[MORE_RANGES])?;
        Some(block[MORE_MORE] != 0)
    }

    /// Whether the map stands before the data, where [`Sparse::text`] takes it.
    pub(super) fn is_before_data(&self) -> bool {
        (self.major, self.minor) == (Some(1), Some(0))
    }

    /// Takes a block of a map before the data. Also whether it was the last.
    pub(super) fn text(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    self.digits = Some(self.digits.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
                }
                b'\n' => {
                    let number = self.digits.take()?;
                    let left = match self.left {
                        None => usize::try_from(number).ok().filter(|ranges| *ranges <= MAX_SEGMENTS)? * 2,
                        Some(left) => self.number(number).map(|()| left - 1)?,
                    };
                    self.left = Some(left);
                    if left == 0 {
                        return Some(true);
                    }
                }
                _ => return None,
            }
        }
        Some(false)
    }

    /// How many ranges it has so far.
    pub(super) fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// The map of the member, whose data have `kept` bytes.
    pub(super) fn segments(&self, kept: u64) -> Option<Segments> {
        let is_known = matches!((self.major, self.minor), (None | Some(0), _) | (Some(1), Some(0)));
        (is_known && self.start.is_none()).then_some(())?;
        Segments::new(self.len?, kept, &self.ranges)
    }

    /// Takes ranges of the old format, up to the first without a length.
    fn fields(&mut self, ranges: &[u8]) -> Option<()> {
        for range in ranges.chunks_exact(24).take_while(|range| range[12] != 0) {
            self.number(number(&range[..12])?)?;
            self.number(number(&range[12..])?)?;
        }
        Some(())
    }

    /// Takes the next start or length.
    fn number(&mut self, number: u64) -> Option<()> {
        match self.start.take() {
            None => self.start = Some(number),
            Some(start) => self.ranges.push((start, number)),
        }
        (self.ranges.len() <= MAX_SEGMENTS).then_some(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok()
}
