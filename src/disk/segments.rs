// SPDX-License-Identifier: Apache-2.0
//! A file with holes whose data lie one behind the other, as archives keep it.

use super::units::SECTOR;

/// Data of the file, and where they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// First byte in the file.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
    /// Where its first byte is kept.
    pub at: u64,
}

/// The map of such a file. What is in no segment reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Length of the file in bytes.
    len: u64,
    /// In the file's order, apart from each other, none empty.
    data: Vec<Segment>,
}

impl Segments {
    /// The map of a file of `len` bytes, of which `kept` are data, from the starts and lengths of these. `None` where they
    /// overlap, are not in order, pass the file's end or are not `kept` bytes in all, and where one does not begin or
    /// end with a sector: some programs pad it to one and others do not, and they read another file.
    pub(super) fn new(len: u64, kept: u64, ranges: &[(u64, u64)]) -> Option<Self> {
        let mut data: Vec<Segment> = Vec::new();
        let mut at = 0u64;
        for (start, bytes) in ranges.iter().copied().filter(|(_, bytes)| *bytes > 0) {
            let end = start.checked_add(bytes).filter(|end| *end <= len)?;
            let before = data.last().map_or(0, |segment| segment.end);
            if start < before || !start.is_multiple_of(SECTOR) || !(end.is_multiple_of(SECTOR) || end == len) {
                return None;
            }
            match data.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => data.push(Segment { start, end, at }),
            }
            at = at.checked_add(bytes)?;
        }
        (at == kept).then_some(Self { len, data })
    }

    /// Length of the file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The data that hold the byte `at` of the file, or the next behind it.
    pub(super) fn from(&self, at: u64) -> Option<&Segment> {
        self.data.get(self.data.partition_point(|segment| segment.end <= at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_touch_are_one_segment() {
        let map =
            Segments::new(9000, 1536 + 808, &[(512, 512), (1024, 512), (4096, 512), (8192, 808), (9000, 0)]).unwrap();
        assert_eq!(map.data.len(), 3);
        assert_eq!(map.from(0), Some(&Segment { start: 512, end: 1536, at: 0 }));
        assert_eq!(map.from(1535), map.from(0));
        assert_eq!(map.from(1536), Some(&Segment { start: 4096, end: 4608, at: 1024 }));
        assert_eq!(map.from(8999), Some(&Segment { start: 8192, end: 9000, at: 1536 }));
        assert_eq!(map.from(9000), None);
    }

    #[test]
    fn maps_that_contradict_themselves_or_that_programs_read_otherwise_are_none() {
        for (len, kept, ranges) in [
            (4096, 512, [(0, 512), (1024, 512)].as_slice()),
            (4096, 2048, &[(0, 512), (1024, 512)]),
            (4096, 1024, &[(1024, 512), (0, 512)]),
            (4096, 1536, &[(0, 1024), (512, 512)]),
            (4096, 1024, &[(3584, 1024)]),
            (4096, 512, &[(u64::MAX, 512)]),
            (4096, 512, &[(100, 512)]),
            (4096, 612, &[(0, 100), (512, 512)]),
        ] {
            assert_eq!(Segments::new(len, kept, ranges), None, "{ranges:?}");
        }
        assert!(Segments::new(1 << 46, 0, &[]).is_some());
    }
}
