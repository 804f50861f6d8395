// SPDX-License-Identifier: Apache-2.0
//! The manifest of an OVF, and the digests that it demands.
//!
//! Format: DMTF DSP0243, "Integrity of OVF packages": one line for each file. What is not understood, and what names no
//! file that is there, is a warning; a digest that a file does not have is a refusal.

mod lines;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512, Sha512_224, Sha512_256};

use self::lines::{Line, Says};
use super::descriptor::shown;
use super::{Error, Region};
use crate::conversion::{Reason, hex};

/// Longest manifest that is read, in bytes: 128 lines of SHA512 have 50 KiB.
pub const MAX_BYTES: usize = 64 << 10;

/// Most warnings about one manifest.
const MAX_WARNINGS: usize = 16;

/// Bytes read at a time where a member is digested beside the copy.
const CHUNK: usize = 1 << 20;

/// The algorithms of SHA-1 and SHA-2 (FIPS 180-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    /// SHA-512/224, not SHA-512 cut short.
    Sha512To224,
    /// SHA-512/256.
    Sha512To256,
}

impl Algorithm {
    /// Takes every spelling: `SHA256`, `sha-256`, `SHA2-256`, `SHA_256`.
    fn parse(word: &str) -> Option<Self> {
        let letters = word.chars().filter(|c| !matches!(c, '-' | '_' | '/' | '.' | ' '));
        match letters.collect::<String>().to_ascii_uppercase().as_str() {
            "SHA1" | "SHA160" => Some(Self::Sha1),
            "SHA224" | "SHA2224" => Some(Self::Sha224),
            "SHA256" | "SHA2256" => Some(Self::Sha256),
            "SHA384" | "SHA2384" => Some(Self::Sha384),
            "SHA512" | "SHA2512" => Some(Self::Sha512),
            "SHA512224" | "SHA2512224" => Some(Self::Sha512To224),
            "SHA512256" | "SHA2512256" => Some(Self::Sha512To256),
            _ => None,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 | Self::Sha512To224 => 28,
            Self::Sha256 | Self::Sha512To256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The word for messages, as manifests carry it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
            Self::Sha512To224 => "SHA512/224",
            Self::Sha512To256 => "SHA512/256",
        }
    }

    fn hasher(self) -> Box<dyn DynDigest + Send> {
        match self {
            Self::Sha1 => Box::new(Sha1::new()),
            Self::Sha224 => Box::new(Sha224::new()),
            Self::Sha256 => Box::new(Sha256::new()),
            Self::Sha384 => Box::new(Sha384::new()),
            Self::Sha512 => Box::new(Sha512::new()),
            Self::Sha512To224 => Box::new(Sha512_224::new()),
            Self::Sha512To256 => Box::new(Sha512_256::new()),
        }
    }
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
        Hasher(self.algorithm.hasher())
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

/// The digests that a manifest (of the region called `file`) demands, each once, and warnings about what it says
/// besides. `find` returns the member of a name.
///
/// # Errors
/// `ManifestMismatch` where it is too long, where a member's digest is cut, or where two lines contradict each other.
pub fn expected(
    file: &str,
    bytes: &[u8],
    find: impl Fn(&str) -> Option<Region>,
) -> Result<(Vec<Expected>, Vec<String>), Error> {
    let mut expected: Vec<Expected> = Vec::new();
    let mut warnings = Vec::new();
    for Line { number, says } in lines::parse(file, bytes)? {
        let (name, algorithm, digest) = match says {
            Says::Digest { name, algorithm, digest } => (name, algorithm, digest),
            Says::Unchecked { name, algorithm } => {
                let (algorithm, name) = (shown(&algorithm), shown(&name));
                warnings.push(format!("the manifest has a digest of {name} by {algorithm}, which is not checked"));
                continue;
            }
            Says::Unknown(text) => {
                warnings.push(format!("the manifest has a line {number} that is no digest: {}", shown(&text)));
                continue;
            }
        };
        let Some(region) = find(&name) else {
            warnings.push(format!("the manifest names {}, which is not there", shown(&name)));
            continue;
        };
        if region.name() == file {
            warnings.push(format!("the manifest names itself in line {number}"));
            continue;
        }
        let refuse = |message: String| Err(Error::refuse(Reason::ManifestMismatch, file, message));
        let (word, name) = (algorithm.as_str(), shown(&name));
        let Some(digest) = digest else {
            return refuse(format!("has in line {number} a {word} of {name} that is cut or no hex"));
        };
        match expected.iter().find(|e| e.algorithm == algorithm && e.region.is_same(&region)) {
            None => expected.push(Expected { region, algorithm, digest }),
            // A repeated line is dropped: a thousand of them must not cause a thousand reads of the disk.
            Some(known) if known.digest == digest => {}
            Some(_) => return refuse(format!("has in line {number} another {word} of {name} than before")),
        }
    }
    Ok((expected, shortened(warnings)))
}

/// The first of many warnings, and how many more there are.
fn shortened(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    if more > 0 {
        warnings.truncate(MAX_WARNINGS);
        warnings.push(format!("the manifest has {more} more lines that were not used"));
    }
    warnings
}

/// A digest in the making.
pub struct Hasher(Box<dyn DynDigest + Send>);

impl Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> Vec<u8> {
        self.0.finalize().into_vec()
    }
}

#[cfg(test)]
mod tests;
