// SPDX-License-Identifier: Apache-2.0
//! Replaces the holes that the file system knows by zeros in the map: they need not be read. Many writers leave holes
//! in the blocks of a dynamic disk, and others may have been punched later.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Error, Extent, Location, Region};

/// The same map with zeros where stored extents lie in holes of `regions`.
pub(crate) fn without_holes<'a>(
    mut extents: impl Iterator<Item = Result<Extent, Error>> + Send + 'a,
    regions: &'a [Region],
) -> impl Iterator<Item = Result<Extent, Error>> + Send + 'a {
    let mut rest: Option<Extent> = None;
    let mut known = Known::default();
    std::iter::from_fn(move || {
        let extent = match rest.take() {
            Some(extent) => extent,
            None => match extents.next()? {
                Ok(extent) => extent,
                Err(e) => return Some(Err(e)),
            },
        };
        let Location::Stored { file, offset } = extent.at else { return Some(Ok(extent)) };
        let place = offset..offset + extent.len();
        Some(known.range_at(file, &regions[file], &place).map(|(is_data, end)| {
            let border = extent.guest.start + (end - offset);
            if border < extent.guest.end {
                let at = Location::Stored { file, offset: end };
                rest = Some(Extent { guest: border..extent.guest.end, at });
            }
            Extent { guest: extent.guest.start..border, at: if is_data { extent.at } else { Location::Zero } }
        }))
    })
}

/// The last range of data that was found. Blocks may lie in any order, and each seek may walk all extents of the
/// file.
#[derive(Default)]
struct Known {
    file: usize,
    data: Range<u64>,
}

impl Known {
    /// Whether `place`, which is not empty, begins with data, and where in `place` that data or hole ends.
    fn range_at(&mut self, file: usize, region: &Region, place: &Range<u64>) -> Result<(bool, u64), Error> {
        if self.file != file || !self.data.contains(&place.start) {
            let failed = |e| Error::reading(region.name(), place.start, e);
            let data = match seek(region, SeekFrom::Data, place.start) {
                Ok(data) => data,
                // The rest of the file is a hole, unless the file shrank.
                Err(Errno::NXIO) => {
                    let end = |(file, start): (&Arc<File>, u64)| file.metadata().map(|m| m.len().saturating_sub(start));
                    if region.file().map(end).transpose().map_err(failed)?.is_some_and(|end| end < place.end) {
                        let message = "the file shrank while it was read";
                        return Err(Error::truncated(region.name(), place.start, message));
                    }
                    place.end
                }
                // The file system does not report holes.
                Err(Errno::INVAL | Errno::NOTSUP) => place.start,
                Err(e) => return Err(failed(e.into())),
            };
            if data > place.start {
                return Ok((false, data.min(place.end)));
            }
            let hole = match seek(region, SeekFrom::Hole, place.start) {
                Ok(hole) if hole > place.start => hole,
                _ => place.end,
            };
            *self = Self { file, data: place.start..hole };
        }
        Ok((true, self.data.end.min(place.end)))
    }
}

/// Where the seek from `at` ends, relative to the region. A joined region reports no holes, a sparse one those of its map.
fn seek(region: &Region, to: fn(u64) -> SeekFrom, at: u64) -> Result<u64, Errno> {
    if let Some(data) = region.data_from(at) {
        return match to(at) {
            _ if data.is_empty() => Err(Errno::NXIO),
            SeekFrom::Data(_) => Ok(data.start),
            _ => Ok(data.end),
        };
    }
    let (file, start) = region.file().ok_or(Errno::NOTSUP)?;
    rustix::fs::seek(file, to(start + at)).map(|found| found.saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::conversion::Reason;

    /// Bytes of each range of data and each hole of the files here.
    const BLOCK: u64 = 65536;

    /// A file of `blocks`, data where one is set, behind `before` bytes that its region leaves out.
    fn region(blocks: &[bool], before: u64) -> Region {
        let file = tempfile::tempfile().unwrap();
        let len = blocks.len() as u64 * BLOCK;
        file.set_len(before + len).unwrap();
        for (number, _) in blocks.iter().enumerate().filter(|(_, is_data)| **is_data) {
            file.write_all_at(&vec![7; 65536], before + number as u64 * BLOCK).unwrap();
        }
        Region::whole(Arc::new(file), "file", before + len).part("part", before, len).unwrap()
    }

    /// The guest bytes that a map makes of `regions`.
    fn guest(extents: impl Iterator<Item = Result<Extent, Error>>, regions: &[Region]) -> (Vec<u8>, u64) {
        let (mut bytes, mut read) = (Vec::new(), 0);
        for extent in extents.map(Result::unwrap) {
            let at = bytes.len();
            assert_eq!(extent.guest.start, at as u64);
            assert!(!extent.is_empty());
            bytes.resize(usize::try_from(extent.guest.end).unwrap(), 0);
            if let Location::Stored { file, offset } = extent.at {
                regions[file].read_exact_at(&mut bytes[at..], offset).unwrap();
                read += extent.len();
            }
        }
        (bytes, read)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn a_map_without_its_holes_gives_the_same_guest_and_reads_none(
            files in proptest::collection::vec((proptest::collection::vec(any::<bool>(), 1..12), 0u64..3), 1..3),
            places in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u64..3), 1..20),
        ) {
            let regions: Vec<_> = files.iter().map(|(blocks, before)| region(blocks, before * 4096)).collect();
            let mut at = 0;
            let mut data = 0;
            let extents: Vec<_> = places.iter().map(|(file, place, kind)| {
                let file = file.index(regions.len());
                let sectors = regions[file].len() / 512;
                let first = place.index(usize::try_from(sectors).unwrap()) as u64;
                let len = (sectors - first).min(77 << *kind) * 512;
                let extent = Extent { guest: at..at + len, at: Location::Stored { file, offset: first * 512 } };
                at += len;
                data += (first..first + len / 512).filter(|sector| {
                    files[file].0[usize::try_from(sector * 512 / BLOCK).unwrap()]
                }).count() as u64 * 512;
                extent
            }).collect();
            let (expected, _) = guest(extents.iter().cloned().map(Ok), &regions);
            let (found, read) = guest(without_holes(extents.into_iter().map(Ok), &regions), &regions);
            prop_assert!(found == expected);
            prop_assert_eq!(read, data);
        }
    }

    #[test]
    fn a_file_that_shrank_has_no_hole_at_its_end() {
        let region = region(&[true, true, false], 0);
        let extent = Extent { guest: 0..2 * BLOCK, at: Location::Stored { file: 0, offset: BLOCK } };
        let file: &File = region.file().unwrap().0;
        file.set_len(BLOCK).unwrap();
        let error = without_holes([Ok(extent)].into_iter(), std::slice::from_ref(&region)).next().unwrap().unwrap_err();
        assert_eq!((error.reason, error.offset), (Reason::Truncated, Some(BLOCK)));
    }
}
