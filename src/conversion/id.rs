// SPDX-License-Identifier: Apache-2.0
//! Names of conversions and numbers of attempts.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file_name::stem;

/// Longest identifier, so that `<id>-<attempt>` and its pods' names stay DNS labels of 63 characters.
pub(crate) const MAX_ID_LENGTH: usize = 52;
const SUFFIX_LENGTH: usize = 8;

/// Identity of one conversion: a slug of the artifact's name and eight random hex digits, a DNS label of at most
/// `MAX_ID_LENGTH` characters. Also the name of its claim directory and of its `ConversionJob`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ConversionId(String);

/// A text that is no DNS label of at most 52 characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no conversion's name: at most 52 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit"
)]
pub struct InvalidId(String);

impl ConversionId {
    /// Names the conversion of the file `name` by its stem; `random` makes it unique.
    #[must_use]
    pub fn for_file(name: &str, random: u32) -> Self {
        let mut slug = String::new();
        for c in stem(name).chars().flat_map(char::to_lowercase) {
            let c = if c.is_ascii_alphanumeric() { c } else { '-' };
            if c != '-' || !(slug.is_empty() || slug.ends_with('-')) {
                slug.push(c);
            }
            if slug.len() == MAX_ID_LENGTH - SUFFIX_LENGTH - 1 {
                break;
            }
        }
        let slug = slug.trim_matches('-');
        let slug = if slug.is_empty() { "disk" } else { slug };
        Self(format!("{slug}-{random:08x}"))
    }

    /// The identifier's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConversionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = text.len() <= MAX_ID_LENGTH
            && text.starts_with(inner)
            && text.ends_with(inner)
            && text.chars().all(|c| inner(c) || c == '-');
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId(text.to_owned())) }
    }
}

impl TryFrom<String> for ConversionId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<ConversionId> for String {
    fn from(id: ConversionId) -> Self {
        id.0
    }
}

impl fmt::Display for ConversionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of an attempt, from 1. It never restarts: an end that does not count uses up its number too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Attempt(pub u32);

impl Attempt {
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_dns_label_whatever_the_file_is_called() {
        let long = "x".repeat(255);
        for (name, id) in [
            ("web01.ova", "web01-0000002a"),
            ("Üb er__Größe.vmdk", "b-er-gr-e-0000002a"),
            ("-rf", "rf-0000002a"),
            ("…", "disk-0000002a"),
            (long.as_str(), "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-0000002a"),
        ] {
            let made = ConversionId::for_file(name, 42);
            assert_eq!(made.as_str(), id);
            assert_eq!(made.as_str().parse(), Ok(made.clone()));
        }
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for text in ["", "-a", "a-", "A", "a/b", "a.b", &"a".repeat(53)] {
            assert!(text.parse::<ConversionId>().is_err(), "{text}");
        }
    }
}
