// SPDX-License-Identifier: Apache-2.0
//! The frame of a stream that does not tell its own length: a marker before it, with the guest's first sector and the
//! length of the stream. Sparse VMDKs have it before each compressed grain.

use super::units::SECTOR;

/// Bytes of a marker.
pub(crate) const LEN: usize = 12;
/// The same, as a length in a file.
pub(crate) const BYTES: u64 = LEN as u64;

/// Most bytes of a marker and a compressed grain of `grain` bytes. Fixed codes take 9 bits for a byte at worst (RFC 1951,
/// section 3.2.6); some more are for headers, and for a length that counts the padding up to a sector.
pub(crate) fn most(grain: u64) -> u64 {
    BYTES + grain + grain / 8 + SECTOR
}

/// Length of the data behind `marker`, which must be for guest byte `guest`; else what is wrong with it.
pub(crate) fn data_len(marker: [u8; LEN], guest: u64) -> Result<u32, String> {
    let [sector @ .., a, b, c, d] = marker;
    let (sector, len) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
    if sector.checked_mul(SECTOR) != Some(guest) {
        return Err(format!("the marker tells sector {sector}, its table entry {}", guest / SECTOR));
    }
    if len == 0 { Err("a compressed grain of no bytes".into()) } else { Ok(len) }
}
