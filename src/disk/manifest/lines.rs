// SPDX-License-Identifier: Apache-2.0
//! The lines of a manifest, in the spellings of every program that writes digests.
//!
//! DSP0243 has `SHA256(vm-disk1.vmdk)= hex`. OpenSSL 3 writes `SHA2-256(…)=`, BSD `SHA256 (…) = hex`, coreutils
//! `hex  name` and `hex *name`, `PowerShell` `SHA256 hex name`.

use super::{Algorithm, MAX_BYTES};
use crate::conversion::Reason;
use crate::disk::Error;
use crate::disk::text;

/// A line that is neither empty nor a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number in the file, from 1.
    pub number: usize,
    pub says: Says,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// A file's digest; `None` where what stands there is none of this algorithm: it is cut, or no hex.
    Digest { name: String, algorithm: Algorithm, digest: Option<Vec<u8>> },
    /// A file's digest of an algorithm (as written) that is not computed here.
    Unchecked { name: String, algorithm: String },
    /// Nothing that is understood.
    Unknown(String),
}

/// Parses a manifest of at most [`MAX_BYTES`].
///
/// # Errors
/// `ManifestMismatch` where it is longer.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Line>, Error> {
    if bytes.len() > MAX_BYTES {
        let message = format!("is longer than {MAX_BYTES} bytes");
        return Err(Error::refuse(Reason::ManifestMismatch, file, message));
    }
    // Names in another encoding match no file, which is a warning of its own.
    let text = text::decode(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes));
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().flat_map(|line| line.split('\r')).map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']) && !line.starts_with("//"));
    Ok(lines.map(|(index, line)| Line { number: index + 1, says: parse_line(line) }).collect())
}

fn parse_line(line: &str) -> Says {
    digest_first(line)
        .or_else(|| in_brackets(line))
        .or_else(|| algorithm_first(line))
        .or_else(|| digest_last(line))
        .unwrap_or_else(|| Says::Unknown(line.to_owned()))
}

/// `hex  name`, `hex *name`, also `sha256:hex  name`. A backslash in front of it announces escapes in the name.
fn digest_first(line: &str) -> Option<Says> {
    let (line, is_escaped) = line.strip_prefix('\\').map_or((line, false), |rest| (rest, true));
    let (first, rest) = line.split_once(char::is_whitespace)?;
    let (word, hex) = match first.split_once(':') {
        Some((word, hex)) if Algorithm::parse(word).is_some() => (Some(word), hex),
        _ => (None, first),
    };
    let name = rest.strip_prefix([' ', '*']).unwrap_or(rest).trim();
    let name = if is_escaped { name.replace("\\n", "\n").replace("\\\\", "\\") } else { name.to_owned() };
    of_length(word, hex, name)
}

/// `ALGORITHM(name)= hex`, with or without spaces and the sign. The name may hold brackets itself.
fn in_brackets(line: &str) -> Option<Says> {
    let (word, rest) = line.split_once('(')?;
    let (name, hex) = rest.rsplit_once(')')?;
    let hex = hex.trim_start().trim_start_matches(['=', ':']).trim();
    let name = unquoted(name).to_owned();
    let word = word.trim();
    match Algorithm::parse(word) {
        Some(algorithm) => {
            let digest = unhex(hex).filter(|digest| digest.len() == algorithm.bytes());
            Some(Says::Digest { name, algorithm, digest })
        }
        None if unhex(hex).is_some_and(|digest| !digest.is_empty()) && is_word(word) => {
            Some(Says::Unchecked { name, algorithm: word.to_owned() })
        }
        None => None,
    }
}

/// `SHA256 hex name` and `SHA256 name = hex`.
fn algorithm_first(line: &str) -> Option<Says> {
    let (word, rest) = line.split_once(|c: char| c.is_whitespace() || c == ':')?;
    let algorithm = Algorithm::parse(word)?;
    let rest = rest.trim();
    let is_digest = |hex: &str| unhex(hex).is_some_and(|digest| digest.len() == algorithm.bytes());
    let (hex, name) = match rest.split_once(char::is_whitespace).filter(|(first, _)| is_digest(first)) {
        Some(found) => found,
        None => before_last(rest).map(|(name, hex)| (hex, name)).filter(|(hex, _)| is_digest(hex))?,
    };
    of_length(Some(word), hex, unquoted(name).to_owned())
}

/// `name hex`, `name: hex`, `name = hex`.
fn digest_last(line: &str) -> Option<Says> {
    let (name, hex) = before_last(line)?;
    of_length(None, hex, unquoted(name).to_owned())
}

/// The last word, and what stands before it without an equals sign or a colon.
fn before_last(line: &str) -> Option<(&str, &str)> {
    let (name, last) = line.rsplit_once(|c: char| c.is_whitespace() || c == '=')?;
    Some((name.trim_end().trim_end_matches(['=', ':']).trim(), last))
}

/// A digest whose algorithm is the one of this name, or else the usual one of its length.
fn of_length(word: Option<&str>, hex: &str, name: String) -> Option<Says> {
    /// MD5 and the longer ones of hash programs begin here; shorter ones are no digests.
    const SHORTEST: usize = 16;
    let digest = unhex(hex).filter(|digest| digest.len() >= SHORTEST && !name.is_empty())?;
    let algorithm = match word {
        Some(word) => Algorithm::parse(word).filter(|algorithm| algorithm.bytes() == digest.len())?,
        None => match digest.len() {
            20 => Algorithm::Sha1,
            28 => Algorithm::Sha224,
            32 => Algorithm::Sha256,
            48 => Algorithm::Sha384,
            64 => Algorithm::Sha512,
            16 => return Some(Says::Unchecked { name, algorithm: "MD5".to_owned() }),
            _ => return None,
        },
    };
    Some(Says::Digest { name, algorithm, digest: Some(digest) })
}

fn unquoted(name: &str) -> &str {
    let name = name.trim();
    name.strip_prefix('"').and_then(|n| n.strip_suffix('"')).unwrap_or(name)
}

/// Whether this may be the name of an algorithm.
fn is_word(word: &str) -> bool {
    !word.is_empty() && word.len() <= 32 && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_/. ".contains(c))
}

/// Digits in pairs, with or without colons between them.
fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.chars().filter(|c| *c != ':');
    let digits = digits.map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<Vec<u8>>>()?;
    let (pairs, odd) = digits.as_chunks::<2>();
    odd.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
