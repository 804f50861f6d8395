// SPDX-License-Identifier: Apache-2.0
//! Finds out when a request is complete, and parses it.

use serde_json::Value;

use super::command::Command;
use super::reply::Reply;

/// Longest request that is read, in bytes.
pub(super) const MAX_REQUEST: usize = 64 << 10;

const USAGE: &str = r#"Invalid request: send {"command": "status"} or the bare word status"#;

/// The bytes received so far of one request. Every byte is scanned once, however they are cut into pieces.
#[derive(Debug, Default)]
pub(super) struct Request {
    bytes: Vec<u8>,
    /// Bytes before this one were scanned.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// How much of a request is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// Only white space.
    Empty,
    /// Incomplete.
    Partial,
    /// A word that may be complete.
    Word,
    Complete,
}

impl Request {
    /// Adds bytes that were read, and returns whether to read on.
    pub(super) fn push(&mut self, piece: &[u8]) -> Completeness {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() > MAX_REQUEST {
            return Completeness::Complete;
        }
        let Some(start) = self.bytes.iter().position(|b| !b.is_ascii_whitespace()) else {
            return Completeness::Empty;
        };
        match self.bytes[start] {
            b'{' | b'[' | b'"' => self.scan(start),
            _ => self.word(start),
        }
    }

    /// Follows brackets and strings up to the end of the first value. Errors in between are left to the parser.
    fn scan(&mut self, start: usize) -> Completeness {
        for at in self.scanned.max(start)..self.bytes.len() {
            self.scanned = at + 1;
            match (self.bytes[at], self.in_string) {
                _ if self.escaped => self.escaped = false,
                (b'\\', true) => self.escaped = true,
                (b'"', _) => self.in_string = !self.in_string,
                (b'{' | b'[', false) => self.depth += 1,
                (b'}' | b']', false) => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 && !self.in_string {
                self.bytes.truncate(at + 1);
                return Completeness::Complete;
            }
        }
        Completeness::Partial
    }

    /// A word ends with its line, or when it is a command (no command is the beginning of another), or when it isn't
    /// UTF-8.
    fn word(&mut self, start: usize) -> Completeness {
        let from = self.scanned.max(start);
        self.scanned = self.bytes.len();
        if self.bytes[from..].contains(&b'\n') {
            return Completeness::Complete;
        }
        match std::str::from_utf8(&self.bytes[start..self.bytes.len().min(start + 16)]) {
            Ok(word) if word.parse::<Command>().is_ok() => Completeness::Complete,
            Err(error) if error.error_len().is_some() => Completeness::Complete,
            _ => Completeness::Word,
        }
    }

    /// The command, or the error to answer.
    pub(super) fn parse(&self) -> Result<Command, Reply> {
        if self.bytes.len() > MAX_REQUEST {
            return Err(Reply::Refused(format!("Invalid request: longer than {MAX_REQUEST} bytes")));
        }
        let Ok(text) = std::str::from_utf8(&self.bytes) else {
            return Err(Reply::Refused("Invalid request: not UTF-8".to_owned()));
        };
        let text = text.trim();
        let command = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => match object.get("command") {
                Some(Value::String(command)) => command.clone(),
                _ => return Err(Reply::Refused(USAGE.to_owned())),
            },
            Err(_) if is_word(text) => text.to_owned(),
            Err(error) if text.starts_with('{') => {
                return Err(Reply::Refused(format!("Invalid request: bad JSON: {error}")));
            }
            _ => return Err(Reply::Refused(USAGE.to_owned())),
        };
        command.parse().map_err(|_| Reply::unknown(&command))
    }
}

/// Whether a person may have meant the text as a command: no JSON, no spaces.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['{', '[', '"']) && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a request in these pieces asks for; `None` if it is not complete with the last.
    fn asked(pieces: &[&[u8]]) -> Option<Result<Command, Reply>> {
        let mut request = Request::default();
        pieces.iter().any(|piece| request.push(piece) == Completeness::Complete).then(|| request.parse())
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in r#"\{("command"|"x|\\"|[a-z ]{0,4}|:|"|\{|\}|\[|\]|,|"stop"|5){0,12}\}?"#,
            cuts in vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let bytes = text.as_bytes();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let mut start = 0;
            let pieces: Vec<&[u8]> = ends.iter().map(|end| {
                let piece = &bytes[start..*end];
                start = *end;
                piece
            }).collect();
            prop_assert_eq!(asked(&pieces), asked(&[bytes]));
        }

        #[test]
        fn any_bytes_are_a_command_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            let mut request = Request::default();
            request.push(&bytes);
            if let Err(reply) = request.parse() {
                prop_assert_eq!(&reply.to_json()["status"], "error");
            }
        }
    }
}
