// SPDX-License-Identifier: Apache-2.0
//! Numbers and texts within bytes that a guest wrote: every access is checked.

use super::error::{Error, Result};
use crate::conversion::guest::MAX_TEXT;

/// `N` bytes from `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(cut)
}

/// `len` bytes from `at`.
pub(super) fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(cut)
}

fn cut() -> Error {
    Error::corrupt("a structure ends too early")
}

pub(super) fn byte(bytes: &[u8], at: usize) -> Result<u8> {
    bytes.get(at).copied().ok_or_else(cut)
}

pub(super) fn le16(bytes: &[u8], at: usize) -> Result<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn le32(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn le64(bytes: &[u8], at: usize) -> Result<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Result<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> Result<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// A length or place that must fit into memory.
pub(super) fn size(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::corrupt("a number is too large"))
}

/// A UUID of 16 bytes as they stand: `0a1b…-…`.
pub(super) fn uuid(bytes: [u8; 16]) -> String {
    let hex = crate::conversion::hex(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A GUID as Microsoft stores it: the first three groups are little-endian.
pub(super) fn guid(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    uuid(bytes)
}

/// A guest's text for people: without control characters, at most [`MAX_TEXT`] characters.
pub(super) fn text(bytes: &[u8]) -> String {
    clean(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_TEXT)]))
}

pub(super) fn clean(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c });
    let cleaned: String = shown.take(MAX_TEXT).collect();
    cleaned.trim().to_owned()
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Text of UTF-16, little-endian, up to a NUL.
pub(super) fn utf16(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or('\u{FFFD}')).collect()
}
