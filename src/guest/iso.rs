// SPDX-License-Identifier: Apache-2.0
//! ISO 9660, far enough to say that an image is a CD's and not a disk's.
//!
//! Formats: ECMA-119, section 8 (volume descriptors); *El Torito* 1.0, section 2 (the boot catalogue).

use super::disk::Volume;
use super::error::Result;
use super::fields::{byte, le32, slice, text, until_nul};

const SECTOR: u64 = 2048;
/// The first volume descriptor, and how many are looked at.
const FIRST: u64 = 16;
const MAX_DESCRIPTORS: u64 = 32;
/// Platform of a boot entry: EFI.
const EFI: u8 = 0xEF;

/// What an image of a CD says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Iso {
    pub(super) label: Option<String>,
    pub(super) bios: bool,
    pub(super) efi: bool,
}

impl Iso {
    /// Reads the descriptors of `volume`; `None` where it is no image of a CD.
    pub(super) fn read(volume: &Volume) -> Result<Option<Self>> {
        if volume.len() < (FIRST + 1) * SECTOR || &volume.bytes(FIRST * SECTOR + 1, 5)? != b"CD001" {
            return Ok(None);
        }
        let mut iso = Self::default();
        for index in FIRST..FIRST + MAX_DESCRIPTORS {
            let Ok(descriptor) = volume.bytes(index * SECTOR, 2048) else { break };
            if slice(&descriptor, 1, 5)? != b"CD001" {
                break;
            }
            match byte(&descriptor, 0)? {
                0 if slice(&descriptor, 7, 23)? == b"EL TORITO SPECIFICATION" => {
                    // An image may be cut before its catalogue.
                    if let Ok(catalogue) = volume.bytes(u64::from(le32(&descriptor, 71)?) * SECTOR, 2048) {
                        iso.boots(&catalogue)?;
                    }
                }
                1 if iso.label.is_none() => {
                    let label = text(until_nul(slice(&descriptor, 40, 32)?));
                    iso.label = Some(label).filter(|label| !label.is_empty());
                }
                255 => break,
                _ => {}
            }
        }
        Ok(Some(iso))
    }

    /// Reads the boot catalogue: the validation entry, the default entry, and sections for further platforms.
    fn boots(&mut self, catalogue: &[u8]) -> Result<()> {
        if byte(catalogue, 0)? != 1 || slice(catalogue, 30, 2)? != [0x55, 0xAA] {
            return Ok(());
        }
        let mut platform = byte(catalogue, 1)?;
        for entry in catalogue.chunks_exact(32).skip(1) {
            match entry[0] {
                0x88 if platform == EFI => self.efi = true,
                0x88 => self.bios |= platform == 0,
                0x90 | 0x91 => platform = entry[1],
                _ => {}
            }
        }
        Ok(())
    }

    /// For a person: what starts it.
    pub(super) fn detail(&self) -> &'static str {
        match (self.bios, self.efi) {
            (true, true) => "boots by BIOS and EFI",
            (true, false) => "boots by BIOS",
            (false, true) => "boots by EFI",
            (false, false) => "does not boot",
        }
    }
}
