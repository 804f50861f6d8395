// SPDX-License-Identifier: Apache-2.0
//! The configuration of the daemon: YAML or JSON files, flags, environment.
//!
//! Several files are laid over one another, key by key; the later wins. An unknown key is an error, a key of the
//! original that has no meaning here a warning: a setting that silently does nothing is worse than either.

mod effective;
mod error;
mod keys;
mod layers;
mod values;
pub(crate) mod yaml;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::conversion::ConversionOptions;
use crate::conversion::contract::APPLIANCE_DIR;
use crate::conversion::lifecycle::RetryPolicy;
use crate::conversion::retention::Retention;
use crate::notification::NotificationConfig;

pub use error::{ConfigError, Place};

/// All settings of a daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Directory that is watched; absolute.
    pub watch_dir: PathBuf,
    /// Directory that outputs are published in; absolute, neither above nor below `watch_dir`.
    pub output_dir: PathBuf,
    /// Accepted, for the original had it; nothing is written there.
    pub workdir: Option<PathBuf>,
    /// Attempts side by side.
    pub max_concurrent_jobs: usize,
    /// Age at which a file that isn't stable is warned about.
    pub file_stable_timeout: Duration,
    /// How long an extent waits for its descriptor.
    pub companion_timeout: Duration,
    /// How long a file must stand still whose writer nobody can see and whose format does not tell; zero: not at all.
    pub quiet_period: Duration,
    /// Whether an attempt is refused where Landlock can't contain it.
    pub require_landlock: bool,
    /// Directory of the appliance that changes guests: `vmlinuz` and `initrd`.
    pub appliance_dir: PathBuf,
    /// Whether sources of finished conversions are moved to `.processed/`.
    pub archive_processed: bool,
    pub deduplication: Deduplication,
    /// How long what ended conversions left is kept.
    pub retention: Retention,
    pub retry_policy: RetryPolicy,
    pub notifications: NotificationConfig,
    pub conversion: ConversionOptions,
    /// File that log lines are appended to, besides stderr.
    pub log_file: Option<PathBuf>,
    /// 0 warnings and the usual lines, 1 more, 2 debug, 3 trace.
    pub verbose: u8,
}

/// How a file that was converted before is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deduplication {
    Off,
    /// By name and size.
    NameAndSize,
    /// By name and size, or by MD5.
    Md5,
}

/// The settings of the command line; they win over files.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub watch_dir: Option<PathBuf>,
    pub output_dir: Option<PathBuf>,
    pub verbose: Option<u8>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            watch_dir: PathBuf::from("/var/lib/hyper2kvm/queue"),
            output_dir: PathBuf::from("/var/lib/hyper2kvm/output"),
            workdir: None,
            max_concurrent_jobs: 3,
            file_stable_timeout: Duration::from_secs(30),
            companion_timeout: Duration::from_secs(3600),
            quiet_period: Duration::from_secs(60),
            require_landlock: false,
            appliance_dir: PathBuf::from(APPLIANCE_DIR),
            archive_processed: true,
            deduplication: Deduplication::NameAndSize,
            retention: Retention::default(),
            retry_policy: RetryPolicy::default(),
            notifications: NotificationConfig::default(),
            conversion: ConversionOptions::default(),
            log_file: None,
            verbose: 0,
        }
    }
}

impl Config {
    /// The configuration as it takes effect, as YAML with every key and secrets masked.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        effective::to_yaml(self)
    }

    /// Keys whose values differ in `other`, those of a section by the section's name. A secret that changed is not seen.
    #[must_use]
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        effective::changed(self, other)
    }
}

/// Reads `files` in their order, lays `overrides` and the environment's secrets over them, and checks the whole. The
/// second part of the result is warnings for a person, one a line.
pub fn load(files: &[PathBuf], overrides: &Overrides) -> Result<(Config, Vec<String>), ConfigError> {
    let mut sources = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        sources.push((path.clone(), text));
    }
    resolve(sources, overrides, |name| std::env::var(name).ok())
}

/// The same for texts already read, and any environment.
fn resolve(
    sources: Vec<(PathBuf, String)>,
    overrides: &Overrides,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(Config, Vec<String>), ConfigError> {
    let mut layers = layers::Layers::merge(sources)?;
    if let Some(path) = &overrides.watch_dir {
        layers.set("", "watch_dir", path.to_string_lossy().into_owned().into(), Place::CommandLine);
    }
    if let Some(path) = &overrides.output_dir {
        layers.set("", "output_dir", path.to_string_lossy().into_owned().into(), Place::CommandLine);
    }
    if let Some(verbose) = overrides.verbose {
        layers.set("", "verbose", verbose.into(), Place::CommandLine);
    }
    for (variable, name) in [("HYPER2KVM_WEBHOOK_URL", "webhook_url"), ("HYPER2KVM_EMAIL_PASSWORD", "email_password")] {
        if let Some(value) = environment(variable) {
            layers.set(keys::NOTIFICATIONS, name, value.into(), Place::Environment(variable));
            layers.remove(keys::NOTIFICATIONS, &format!("{name}_file"));
        }
    }
    let config = values::config(&mut layers)?;
    Ok((config, layers.into_warnings()))
}

/// Whether one path is the other or lies below it, by their names alone.
fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

#[cfg(test)]
mod tests;
