// SPDX-License-Identifier: Apache-2.0
//! Numbers in a tar header, and its sum.
//!
//! Format: POSIX.1-2017, `pax`, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format", for base-256 numbers.

/// Bytes of a header; a member's bytes are padded to as many.
pub(super) const BLOCK: usize = 512;

/// A number in a header: octal digits, or base-256 where the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // 0xFF begins a negative number; 0x80 one whose eleven bytes must fit in eight.
    if field[0] != 0x80 || field[1..field.len() - 8].iter().any(|b| *b != 0) {
        return None;
    }
    field[field.len() - 8..].try_into().ok().map(u64::from_be_bytes)
}

/// Whether the sum over the header is the one that it states; `None` where it states none.
pub(super) fn is_summed(header: &[u8; BLOCK]) -> Option<bool> {
    let said = octal(&header[148..156])?;
    let blank = |index: usize| (148..156).contains(&index);
    let bytes = || header.iter().enumerate().map(|(index, byte)| if blank(index) { b' ' } else { *byte });
    let unsigned: u64 = bytes().map(u64::from).sum();
    // Some old writers summed signed bytes.
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    Some(said == unsigned || i64::try_from(said) == Ok(signed))
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    u64::from_str_radix(digits, 8).ok()
}
