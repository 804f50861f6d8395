// SPDX-License-Identifier: Apache-2.0
//! A raw image: the bytes themselves.

use super::holes::without_holes;
use super::units::SECTOR;
use super::{Error, Extent, Location, Region};
use crate::conversion::Reason;

/// A raw image.
#[derive(Clone, Debug)]
pub struct Raw {
    region: Region,
    virtual_size: u64,
    warnings: Vec<String>,
}

/// Takes `region` as it is. A size that is no multiple of 512 is padded with zeros.
///
/// # Errors
/// `Truncated` where it has no bytes.
pub(super) fn open(region: &Region) -> Result<Raw, Error> {
    let (name, len) = (region.name(), region.len());
    if region.is_empty() {
        return Err(Error::refuse(Reason::Truncated, name, "is empty"));
    }
    let virtual_size = len
        .checked_next_multiple_of(SECTOR)
        .ok_or_else(|| Error::refuse(Reason::TooLarge, name, "is larger than any disk"))?;
    let warnings = if len == virtual_size {
        Vec::new()
    } else {
        vec![format!("{name}: {len} bytes are no whole number of sectors, padded with zeros to {virtual_size}")]
    };
    Ok(Raw { region: region.clone(), virtual_size, warnings })
}

impl Raw {
    /// Size of the guest's disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// What a person should know about it.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes of data, an upper bound; `None` where the file system does not tell, or once it was cancelled.
    #[must_use]
    pub fn data_bytes(&self) -> Option<u64> {
        let mut data = 0;
        for extent in without_holes(self.extents(), std::slice::from_ref(&self.region)) {
            // A file may have a million holes.
            self.region.check().ok()?;
            let extent = extent.ok()?;
            if extent.at != Location::Zero {
                data += extent.len();
            }
        }
        Some(data)
    }

    /// The map: the file, and zeros that complete its last sector.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<> {
        let len = self.region.len();
        let stored = Extent { guest: 0..len, at: Location::Stored { file: 0, offset: 0 } };
        let rest = Extent { guest: len..self.virtual_size, at: Location::Zero };
        [stored, rest].into_iter().filter(|extent| !extent.is_empty()).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;

    fn region(write: impl FnOnce(&File)) -> Region {
        let file = tempfile::tempfile().unwrap();
        write(&file);
        let len = file.metadata().unwrap().len();
        Region::whole(Arc::new(file), "a.raw", len)
    }

    fn map(raw: &Raw) -> Vec<Extent> {
        without_holes(raw.extents(), std::slice::from_ref(&raw.region)).map(Result::unwrap).collect()
    }

    fn zero(guest: Range<u64>) -> Extent {
        Extent { guest, at: Location::Zero }
    }

    #[test]
    fn holes_are_zeros_and_data_is_stored() {
        let region = region(|file| {
            file.set_len(3 << 20).unwrap();
            file.write_all_at(&vec![7; 65536], 1 << 20).unwrap();
        });
        let raw = open(&region).unwrap();
        let stored = Extent { guest: 1 << 20..(1 << 20) + 65536, at: Location::Stored { file: 0, offset: 1 << 20 } };
        assert_eq!(map(&raw), vec![zero(0..1 << 20), stored, zero((1 << 20) + 65536..3 << 20)]);
        assert_eq!(raw.data_bytes(), Some(65536));
    }

    #[test]
    fn holes_are_not_counted_after_a_cancellation() {
        let cancellation = crate::disk::Cancellation::default();
        let raw = open(&region(|file| file.set_len(1 << 20).unwrap()).until(&cancellation)).unwrap();
        assert_eq!(raw.data_bytes(), Some(0));
        cancellation.cancel();
        assert_eq!(raw.data_bytes(), None);
    }

    #[test]
    fn a_size_that_is_no_multiple_of_a_sector_is_padded_with_a_warning() {
        let raw = open(&region(|file| file.write_all_at(&[1; 1000], 0).unwrap())).unwrap();
        assert_eq!(raw.virtual_size(), 1024);
        let stored = Extent { guest: 0..1000, at: Location::Stored { file: 0, offset: 0 } };
        assert_eq!(map(&raw), vec![stored, zero(1000..1024)]);
        assert_eq!(raw.warnings().len(), 1);
    }

    #[test]
    fn a_raw_image_inside_another_file_ends_with_its_member() {
        let container = region(|file| file.write_all_at(&[1; 8192], 0).unwrap());
        let raw = open(&container.part("b.raw", 512, 1024).unwrap()).unwrap();
        assert_eq!(map(&raw), vec![Extent { guest: 0..1024, at: Location::Stored { file: 0, offset: 0 } }]);
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert_eq!(open(&region(|_| ())).unwrap_err().reason, Reason::Truncated);
    }
}
