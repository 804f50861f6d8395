// SPDX-License-Identifier: Apache-2.0
//! Text that others wrote, made fit for a terminal or a line of a log.

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` with every character escaped that moves a cursor, ends a line or reorders what is shown: the controls C0, C1
/// and DEL, line and paragraph separators, and the marks of bidirectional text (Unicode Standard Annex 9). Invisible
/// characters that make two names look like one are escaped as well.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::with_capacity(text.len() + 16), |mut shown, c| {
        if is_hidden(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    }))
}

/// `text` of several lines, each of them [`printable`].
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// `json`, the text of JSON values, with the same characters escaped as JSON has it. It stands for the same values; the
/// line breaks and spaces between them stay.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| is_hidden(c) && !c.is_ascii_whitespace();
    if !json.contains(is_escaped) {
        return Cow::Borrowed(json);
    }
    Cow::Owned(json.chars().fold(String::with_capacity(json.len() + 16), |mut shown, c| {
        if is_escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").expect("writing to a string does not fail");
            }
        } else {
            shown.push(c);
        }
        shown
    }))
}

/// Whether a terminal or an eye could be misled by `c`.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61C}'
            | '\u{200B}'..='\u{200F}'
            | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_cursor_or_turns_text_around_is_left() {
        for (text, shown) in [
            ("plain: ünïcode 📥", "plain: ünïcode 📥"),
            ("a\nb\r\tc\u{1b}[2J\u{7f}", r"a\nb\r\tc\u{1b}[2J\u{7f}"),
            ("\u{9b}31m\u{85}", r"\u{9b}31m\u{85}"),
            ("gpj.\u{202e}kdmv\u{2066}x\u{2069}\u{200f}", r"gpj.\u{202e}kdmv\u{2066}x\u{2069}\u{200f}"),
            ("\u{feff}a\u{200b}\u{2028}\u{e0041}", r"\u{feff}a\u{200b}\u{2028}\u{e0041}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({"a\u{9b}": ["x\u{202e}\n\u{1b}", "\u{e0041}ü"], "b": 1});
        let text = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(printable_lines("a\u{1b}b\nc\n"), "a\\u{1b}b\nc\n");
        let shown = printable_json(&text);
        assert!(!shown.contains(|c: char| is_hidden(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert!(matches!(printable_json("{\n \"a\": 1}"), Cow::Borrowed(_)));
    }
}
