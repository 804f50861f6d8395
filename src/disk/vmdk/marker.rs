//! The marker before a compressed grain: the grain's first sector and the length of its data.

use super::header::SECTOR;

/// Bytes of a marker.
pub(crate) const LEN: usize = 12;
/// The same, as a length in a file.
pub(crate) const BYTES: u64 = LEN as u64;
/// Largest compressed grain taken, in bytes. One that does not shrink needs little more than a grain.
pub(super) const MAX_COMPRESSED: u64 = 2 << 20;

/// Length of the data behind `marker`, which must be for guest byte `guest` and have at most `most` bytes; else what is
/// wrong with it.
pub(crate) fn data_len(marker: [u8; LEN], guest: u64, most: u32) -> Result<u32, String> {
    let [sector @ .., a, b, c, d] = marker;
    let (sector, len) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
    if sector.checked_mul(SECTOR) != Some(guest) {
        return Err(format!("the marker tells sector {sector}, its table entry {}", guest / SECTOR));
    }
    if len == 0 || len > most {
        return Err(format!("a compressed grain of {len} bytes"));
    }
    Ok(len)
}
