// SPDX-License-Identifier: Apache-2.0
//! YAML that every version of YAML reads in the same way.
//!
//! kubectl reads YAML 1.1, where `yes`, `on` and `22:22` are no texts, others read 1.2. So a text is quoted, as JSON
//! quotes it, unless it can be nothing but a text. A general writer does not do that: see decision 0019.

use std::fmt::Write as _;

use serde_json::Value;

/// `value` as a YAML document, without its first line `---`.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

/// Writes a value that begins at the start of a line.
fn write(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                indent(text, depth);
                write_field(text, key, value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(text, depth);
                text.push_str("- ");
                write_item(text, item, depth + 1);
            }
        }
        other => {
            indent(text, depth);
            let _ = writeln!(text, "{}", scalar(other));
        }
    }
}

fn write_field(text: &mut String, key: &str, value: &Value, depth: usize) {
    let _ = write!(text, "{}:", quoted(key));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            write(text, value, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            write(text, value, depth);
        }
        other => {
            let _ = writeln!(text, " {}", scalar(other));
        }
    }
}

/// Writes an item behind its hyphen: the first field on the same line.
fn write_item(text: &mut String, item: &Value, depth: usize) {
    match item {
        Value::Object(fields) if !fields.is_empty() => {
            for (n, (key, value)) in fields.iter().enumerate() {
                if n > 0 {
                    indent(text, depth);
                }
                write_field(text, key, value, depth);
            }
        }
        other => {
            let _ = writeln!(text, "{}", scalar(other));
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    for _ in 0..depth {
        text.push_str("  ");
    }
}

/// A value on one line: texts quoted where need be, all else as JSON, which is YAML.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            c if u32::from(c) <= 0xffff => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

/// Whether a text can stand without quotes: a word that no version of YAML takes for a number, a truth or nothing.
fn is_plain(text: &str) -> bool {
    const OTHERS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let goes_on = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
    begins && goes_on && !OTHERS.contains(&text.to_ascii_lowercase().as_str())
}
