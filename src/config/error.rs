// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::yaml::YamlError;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File {
        path: PathBuf,
        /// From 1, where it is known.
        line: Option<usize>,
    },
    CommandLine,
    /// This variable.
    Environment(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::CommandLine => f.write_str("command line"),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is neither YAML nor JSON")]
    Syntax {
        path: PathBuf,
        #[source]
        source: YamlError,
    },
    #[error("{path} holds no mapping of keys to values")]
    NoMapping { path: PathBuf },
    #[error("{place}: unknown key {key:?}{}", nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey { place: Place, key: String, nearest: Option<String> },
    #[error("{place}: {key:?} is given twice in this file, as {other:?} too")]
    Twice { place: Place, key: String, other: String },
    #[error("{place}: {key} is {value}, allowed: {allowed}")]
    Value { place: Place, key: String, value: String, allowed: String },
    #[error("{place}: {key}: cannot read {path}")]
    SecretFile {
        place: Place,
        key: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{key} is missing: {because}")]
    Missing { key: &'static str, because: &'static str },
    #[error("watch_dir {watch_dir} and output_dir {output_dir} must not contain one another: put them side by side")]
    Overlap { watch_dir: PathBuf, output_dir: PathBuf },
}
