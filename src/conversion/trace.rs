// SPDX-License-Identifier: Apache-2.0
//! The name of a conversion's trace.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::claim::Claim;
use super::hex::hex;

/// Names the trace of one conversion: 16 bytes, as OpenTelemetry has them. It follows from the claim, so a restart, and
/// whoever shows the conversion, knows it without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// The trace of what was claimed by this claim.
    #[must_use]
    pub fn of(claim: &Claim) -> Self {
        Self(digest(&[claim.id.as_str(), &claim.claimed_at.to_string()]))
    }

    /// The span of this name in the trace, 8 bytes.
    #[must_use]
    pub fn span(self, name: &str) -> [u8; 8] {
        digest(&[&hex(self.0), name])
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0))
    }
}

/// The first bytes of the SHA-256 of these texts, each ended by a zero byte.
fn digest<const N: usize>(texts: &[&str]) -> [u8; N] {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    let whole = hash.finalize();
    std::array::from_fn(|n| whole[n])
}
