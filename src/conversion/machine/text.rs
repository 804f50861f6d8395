// SPDX-License-Identifier: Apache-2.0
//! Texts of strangers: on one line, of one length, or of one form.

/// `text` on one line, at most `most` bytes: what could end a line, hide or turn text is a space, and spaces are one.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most));
    let visible = text.chars().map(|c| if is_visible(c) { c } else { ' ' });
    for c in visible {
        if c == ' ' && (line.is_empty() || line.ends_with(' ')) {
            continue;
        }
        if line.len() + c.len_utf8() > most {
            break;
        }
        line.push(c);
    }
    line.truncate(line.trim_end().len());
    line
}

/// Whether a character stands for itself in every file that is written: no control character, none of Unicode's that
/// end lines, turn the direction of text or are invisible, and none that XML or YAML forbid.
fn is_visible(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
        && u32::from(c) & 0xfffe != 0xfffe
}

/// The address as libvirt writes it; `None` where it is invalid or a group's address.
#[must_use]
pub fn mac_address(text: &str) -> Option<String> {
    let digits: String = text.trim().chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    let is_hex = digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let value = u64::from_str_radix(&digits, 16).ok().filter(|_| is_hex)?;
    let bytes = &value.to_be_bytes()[2..];
    if bytes[0] & 1 == 1 || value == 0 {
        return None;
    }
    Some(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
}

/// A UUID in its usual form, from any that exporters write: in braces, upper case, or VMware's `56 4d … - …`. `None`
/// for other texts and for the one of zeros.
#[must_use]
pub fn uuid(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, '{' | '}' | '-' | ' ')).collect();
    let is_hex = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex || digits.bytes().all(|b| b == b'0') {
        return None;
    }
    let digits = digits.to_ascii_lowercase();
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}
