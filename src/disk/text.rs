// SPDX-License-Identifier: Apache-2.0
//! Texts of other programs, in whatever encoding they are, as UTF-8.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE};

/// A text that is not in the encoding that it claims. The byte offset is known of UTF-8 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Undecodable {
    pub offset: Option<usize>,
}

/// The text of a byte order mark's encoding, of UTF-16 that shows by its zeros, or of UTF-8.
///
/// # Errors
/// [`Undecodable`].
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Undecodable> {
    match by_mark_or_zeros(bytes) {
        Some((encoding, mark)) => decode_as(encoding, &bytes[mark..]),
        None => utf8(bytes),
    }
}

/// The text of an XML document: by its mark, by its zeros, or by the encoding that it declares. An unknown encoding, and
/// one that the declaration itself is not written in, is taken for UTF-8.
///
/// # Errors
/// [`Undecodable`].
pub(super) fn decode_xml(bytes: &[u8]) -> Result<Cow<'_, str>, Undecodable> {
    if let Some((encoding, mark)) = by_mark_or_zeros(bytes) {
        return decode_as(encoding, &bytes[mark..]);
    }
    match declared(bytes).and_then(|label| encoding(&label)) {
        Some(encoding) if encoding.is_ascii_compatible() && encoding != encoding_rs::UTF_8 => {
            decode_as(encoding, bytes)
        }
        _ => utf8(bytes),
    }
}

/// The encoding of this name. Knows the Encoding Standard's labels, and code pages by their number: `cp936`, `windows_936`.
pub(super) fn encoding(label: &str) -> Option<&'static Encoding> {
    let label = label.trim().to_ascii_lowercase();
    let by_label = |label: &str| Encoding::for_label_no_replacement(label.as_bytes());
    let dashed = label.replace('_', "-");
    by_label(&label).or_else(|| by_label(&dashed)).or_else(|| {
        let number =
            ["windows-", "cp", "ibm-", "ms", "x-windows-"].iter().find_map(|prefix| dashed.strip_prefix(prefix))?;
        let digits = number.split('-').next().unwrap_or_default();
        match digits {
            "932" | "943" => by_label("shift_jis"),
            "936" => by_label("gbk"),
            "949" => by_label("euc-kr"),
            "950" => by_label("big5"),
            "1386" => by_label("gb18030"),
            "65001" => by_label("utf-8"),
            _ => by_label(&format!("windows-{digits}")),
        }
    })
}

/// The text that `bytes` are in this encoding; no mark is looked for.
///
/// # Errors
/// [`Undecodable`].
pub(super) fn decode_as<'a>(encoding: &'static Encoding, bytes: &'a [u8]) -> Result<Cow<'a, str>, Undecodable> {
    encoding.decode_without_bom_handling_and_without_replacement(bytes).ok_or(Undecodable { offset: None })
}

/// The ASCII that a UTF-16 text begins with; any other text as it is.
pub(super) fn narrow(head: &[u8]) -> Cow<'_, [u8]> {
    match by_mark_or_zeros(head) {
        Some((encoding, mark)) if encoding == UTF_16LE || encoding == UTF_16BE => {
            let high = usize::from(encoding == UTF_16LE);
            let pairs = head[mark..].as_chunks::<2>().0.iter();
            Cow::Owned(pairs.take_while(|pair| pair[high] == 0).map(|pair| pair[1 - high]).collect())
        }
        Some((_, mark)) => Cow::Borrowed(&head[mark..]),
        None => Cow::Borrowed(head),
    }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, Undecodable> {
    let text = std::str::from_utf8(bytes).map_err(|e| Undecodable { offset: Some(e.valid_up_to()) })?;
    Ok(Cow::Borrowed(text))
}

/// The encoding that the first bytes show, and the length of the mark. A text in UTF-16 without a mark begins with an
/// ASCII character, one of whose bytes is zero.
fn by_mark_or_zeros(bytes: &[u8]) -> Option<(&'static Encoding, usize)> {
    if let Some(found) = Encoding::for_bom(bytes) {
        return Some(found);
    }
    match bytes.get(..4)? {
        [a, 0, b, 0] if *a != 0 && *b != 0 => Some((UTF_16LE, 0)),
        [0, a, 0, b] if *a != 0 && *b != 0 => Some((UTF_16BE, 0)),
        _ => None,
    }
}

/// The encoding that an XML declaration names.
fn declared(bytes: &[u8]) -> Option<String> {
    /// No declaration is longer.
    const MAX_DECLARATION: usize = 256;
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_DECLARATION)]);
    let declaration = head.trim_start().strip_prefix("<?xml")?.split("?>").next()?;
    let value = declaration.split_once("encoding")?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    Some(value[1..].split(quote).next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_shows_its_encoding() {
        let wide = |order: fn(u16) -> [u8; 2]| "<é>\n".encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let (little, big) = (wide(u16::to_le_bytes), wide(u16::to_be_bytes));
        for bytes in [
            "<é>\n".as_bytes(),
            b"\xEF\xBB\xBF<\xC3\xA9>\n",
            &[b"\xFF\xFE".as_slice(), &little].concat(),
            &[b"\xFE\xFF".as_slice(), &big].concat(),
        ] {
            assert_eq!(decode(bytes).unwrap(), "<é>\n");
        }
        let plain: Vec<u8> = "<x>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&plain).unwrap(), "<x>");
        assert_eq!(narrow(&plain).as_ref(), b"<x>");
        assert_eq!(decode(b"ab\xE9"), Err(Undecodable { offset: Some(2) }));
    }

    #[test]
    fn xml_declares_its_encoding() {
        for (label, byte) in [("ISO-8859-1", 0xE9), ("windows-1252", 0xE9), ("ISO-8859-2", 0xE9), ("cp1252", 0xE9)] {
            let mut bytes = format!("<?xml version='1.0' encoding='{label}'?>").into_bytes();
            bytes.push(byte);
            assert!(decode_xml(&bytes).unwrap().ends_with('é'), "{label}");
        }
        // Written by a program that keeps its texts as UTF-16 in memory, and stored as UTF-8.
        assert!(decode_xml("<?xml version=\"1.0\" encoding=\"utf-16\"?>é".as_bytes()).unwrap().ends_with('é'));
        assert!(decode_xml(b"<?xml encoding='utf-8'?>\xE9").is_err());
    }

    #[test]
    fn code_pages_are_known_by_their_numbers() {
        for (label, name) in [
            ("GBK", "GBK"),
            ("cp936", "GBK"),
            ("windows-936-2000", "GBK"),
            ("Shift_JIS", "Shift_JIS"),
            ("windows-932", "Shift_JIS"),
            ("ibm-943_P15A-2003", "Shift_JIS"),
            ("Big5", "Big5"),
            ("cp949", "EUC-KR"),
            ("windows_1251", "windows-1251"),
            ("UTF-8", "UTF-8"),
        ] {
            assert_eq!(encoding(label).map(Encoding::name), Some(name), "{label}");
        }
        assert_eq!(encoding("klingon"), None);
    }
}
