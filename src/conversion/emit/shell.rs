// SPDX-License-Identifier: Apache-2.0
//! Scripts for a POSIX shell.

/// How a script begins: its comments, and where it lies. `head` is of single lines.
pub(super) fn begin(head: &[String]) -> String {
    let mut text = String::from("#!/bin/sh\n");
    for line in head {
        text.push_str("# ");
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("set -eu\nhere=$(CDPATH='' cd -- \"$(dirname -- \"$0\")\" && pwd)\n");
    text
}

/// A text as one word of the shell, whatever is in it. A NUL byte, which no word has, is left out.
pub(super) fn word(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=,+".contains(&b);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\0', "").replace('\'', "'\\''"))
}

/// A command, one argument and its value a line. The words are quoted already.
pub(super) fn command(words: &[String]) -> String {
    let mut text = String::new();
    for (n, word) in words.iter().enumerate() {
        match n {
            0 => {}
            _ if word.starts_with('-') => text.push_str(" \\\n  "),
            _ => text.push(' '),
        }
        text.push_str(word);
    }
    text.push('\n');
    text
}
