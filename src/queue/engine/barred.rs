// SPDX-License-Identifier: Apache-2.0
//! What keeps files and conversions from going on although both volumes are there: a volume that can only be read, a claim or
//! an end that can't be written. It is told once an episode and shown while it lasts.

use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::conversion::chain;
use crate::executor::Executor;
use crate::notification::Event;

use super::{Engine, Error};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Barred {
    /// Why no file could be claimed last, as it was logged.
    claims: Option<String>,
    /// The directory whose volume can only be read, as it was announced.
    read_only: Option<PathBuf>,
}

impl<E: Executor> Engine<E> {
    /// A file could not be claimed; its error is logged once.
    pub(super) fn hold_claims(&mut self, file: &str, error: &Error) {
        self.look_for_read_only();
        let of_file = format!("{file} can't be claimed: ");
        // Each try names the directory of another claim.
        if self.barred.claims.as_ref().is_none_or(|told| !told.starts_with(&of_file)) {
            tracing::error!(file, error = %chain(error), "cannot claim");
        }
        self.barred.claims = Some(format!("{of_file}{}", chain(error)));
    }

    /// A claim was written, or there is none to write.
    pub(super) fn claims_go_on(&mut self) {
        self.barred.claims = None;
    }

    /// After an effect failed: whether a volume became read-only, as ext4 does by itself after an error.
    pub(super) fn look_for_read_only(&mut self) {
        let paths = &self.settings.paths;
        let Some(path) = [paths.queue(), paths.output()].into_iter().find(|path| is_read_only(path)) else { return };
        if self.barred.read_only.as_deref() == Some(path) {
            return;
        }
        let (path, shown) = (path.to_owned(), path.display().to_string());
        tracing::error!(
            "the volume of {shown} can only be read now; look into the kernel's log, and mount it for writing again"
        );
        self.barred.read_only = Some(path);
        self.notify(&Event::ReadOnly { path: shown, at: self.wall() });
    }

    /// Notices that a volume can be written again.
    pub(super) fn look_at_read_only(&mut self) {
        if let Some(path) = self.barred.read_only.take_if(|path| !is_read_only(path)) {
            tracing::info!("the volume of {} can be written again", path.display());
        }
    }

    /// What bars files or conversions, for a person.
    pub(super) fn barred_by(&self) -> Option<String> {
        let read_only = self.barred.read_only.as_ref().map(|path| {
            format!("the volume of {}, which can only be read, to be mounted for writing again", path.display())
        });
        let stuck = || {
            let stuck = self.conversions.values().find(|conversion| conversion.is_stuck)?;
            Some(format!("{} can't go on: {}", stuck.row.claim.primary, stuck.last_error))
        };
        read_only.or_else(|| self.barred.claims.clone()).or_else(stuck)
    }
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|told| told.f_flag.contains(StatVfsMountFlags::RDONLY))
}
