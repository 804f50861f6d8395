// SPDX-License-Identifier: Apache-2.0
//! The manifest of an OVF, and the digests that it demands.
//!
//! Format: DMTF DSP0243, "Integrity of OVF packages": one line for each file, `SHA256(vm-disk1.vmdk)= hex`. Writers
//! differ in spaces and line ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

use super::descriptor::shown;
use super::{Error, Region};
use crate::conversion::{Reason, hex};

/// Longest manifest that is read, in bytes: 128 lines of SHA512 have 50 KiB.
pub const MAX_BYTES: usize = 64 << 10;

/// Bytes read at a time where a member is digested beside the copy.
const CHUNK: usize = 1 << 20;

/// Algorithms of the OVF specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn parse(word: &str) -> Option<Self> {
        match word.to_ascii_uppercase().as_str() {
            "SHA1" => Some(Self::Sha1),
            "SHA256" => Some(Self::Sha256),
            "SHA512" => Some(Self::Sha512),
            _ => None,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The word that manifests carry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }
}

/// One line of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub name: String,
    pub algorithm: Algorithm,
    pub digest: Vec<u8>,
}

/// Parses a manifest. Returns one line for each file and algorithm.
///
/// # Errors
/// `ManifestMismatch` for a line that can't be understood, since its file could not be checked, and for two lines
/// that contradict each other.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Line>, Error> {
    let refuse = |message: String| Error::refuse(Reason::ManifestMismatch, file, message);
    if bytes.len() > MAX_BYTES {
        return Err(refuse(format!("is longer than {MAX_BYTES} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("is no UTF-8 text".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines: Vec<Line> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line =
            parse_line(line.trim()).ok_or_else(|| refuse(format!("has a line {} that is no digest", index + 1)))?;
        match lines.iter().find(|known| (&known.name, known.algorithm) == (&line.name, line.algorithm)) {
            None => lines.push(line),
            // A repeated line is dropped: a thousand of them must not cause a thousand reads of the disk.
            Some(known) if known.digest == line.digest => {}
            Some(_) => {
                let (algorithm, name) = (line.algorithm.as_str(), shown(&line.name));
                return Err(refuse(format!("has in line {} another {algorithm} of {name} than before", index + 1)));
            }
        }
    }
    Ok(lines)
}

/// `ALGORITHM(name)= hex`, with or without spaces before the name and around the equals sign. The name may hold
/// brackets itself.
fn parse_line(line: &str) -> Option<Line> {
    let (algorithm, rest) = line.split_once('(')?;
    let (rest, hex) = rest.rsplit_once('=')?;
    let name = rest.trim_end().strip_suffix(')')?;
    let algorithm = Algorithm::parse(algorithm.trim())?;
    let digest = unhex(hex.trim())?;
    (digest.len() == algorithm.bytes()).then(|| Line { name: name.to_owned(), algorithm, digest })
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<Vec<u8>>>()?;
    let (pairs, odd) = digits.as_chunks::<2>();
    odd.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// A digest that a manifest demands of a member, over its stored (also its compressed) bytes.
#[derive(Clone, Debug)]
pub struct Expected {
    pub region: Region,
    pub algorithm: Algorithm,
    pub digest: Vec<u8>,
}

impl Expected {
    /// A hasher for this member, to be fed every byte in file order.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha1 => Hasher(Running::Sha1(Sha1::new())),
            Algorithm::Sha256 => Hasher(Running::Sha256(Sha256::new())),
            Algorithm::Sha512 => Hasher(Running::Sha512(Box::new(Sha512::new()))),
        }
    }

    /// Compares the digest in `hasher` with the one demanded.
    ///
    /// # Errors
    /// `ManifestMismatch`.
    pub fn compare(&self, hasher: Hasher) -> Result<(), Error> {
        let found = hasher.finish();
        if found == self.digest {
            return Ok(());
        }
        let algorithm = self.algorithm.as_str();
        let message = format!("has the {algorithm} {}, and its manifest says {}", hex(&found), hex(&self.digest));
        Err(Error::refuse(Reason::ManifestMismatch, self.region.name(), message))
    }

    /// Reads the member from start to end and compares.
    ///
    /// # Errors
    /// `ManifestMismatch`, and as reading does.
    pub fn verify(&self, control: &Control) -> Result<Outcome, Error> {
        let mut hasher = self.hasher();
        let mut buffer = vec![0; usize::try_from(self.region.len()).unwrap_or(CHUNK).min(CHUNK)];
        let mut at = 0;
        while at < self.region.len() {
            if control.cancel.load(Ordering::Relaxed) {
                return Ok(Outcome::Cancelled);
            }
            let len = usize::try_from(self.region.len() - at).unwrap_or(CHUNK).min(CHUNK);
            self.region.read_exact_at(&mut buffer[..len], at)?;
            hasher.update(&buffer[..len]);
            at += len as u64;
            control.done.fetch_add(len as u64, Ordering::Relaxed);
        }
        self.compare(hasher).map(|()| Outcome::Verified)
    }
}

/// Progress and cancellation of a verification.
#[derive(Debug, Default)]
pub struct Control {
    /// Bytes digested so far.
    pub done: AtomicU64,
    /// Set it, and the verification ends within a megabyte.
    pub cancel: AtomicBool,
}

/// How a verification ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Verified,
    /// The caller ended it; nothing is known.
    Cancelled,
}

/// Verifies one member after the other; made to run in a thread of its own beside the copy, before anything is
/// published.
///
/// # Errors
/// `ManifestMismatch` of the first that differs, and as reading does.
pub fn verify(expected: &[Expected], control: &Control) -> Result<Outcome, Error> {
    for one in expected {
        if one.verify(control)? == Outcome::Cancelled {
            return Ok(Outcome::Cancelled);
        }
    }
    Ok(Outcome::Verified)
}

/// Matches the lines of a manifest with the members beside it; names without a member come back as warnings.
#[must_use]
pub fn expected(lines: &[Line], members: &[(&str, &Region)]) -> (Vec<Expected>, Vec<String>) {
    let mut expected = Vec::new();
    let mut warnings = Vec::new();
    for line in lines {
        match members.iter().find(|(name, _)| *name == line.name) {
            Some((_, region)) => expected.push(Expected {
                region: (*region).clone(),
                algorithm: line.algorithm,
                digest: line.digest.clone(),
            }),
            None => warnings.push(format!("the manifest names {}, which is not there", shown(&line.name))),
        }
    }
    (expected, warnings)
}

/// A digest in the making.
#[derive(Clone, Debug)]
pub struct Hasher(Running);

#[derive(Clone, Debug)]
enum Running {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Running::Sha1(hasher) => hasher.update(bytes),
            Running::Sha256(hasher) => hasher.update(bytes),
            Running::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self.0 {
            Running::Sha1(hasher) => hasher.finalize().to_vec(),
            Running::Sha256(hasher) => hasher.finalize().to_vec(),
            Running::Sha512(hasher) => hasher.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests;
