// SPDX-License-Identifier: Apache-2.0
//! What one attempt converts, and what its steps share.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use super::group::Group;
use super::marker::open_disk;
use super::output::output_failure;
use super::qemu::Programs;
use super::target::Targets;
use crate::conversion::{ConversionOptions, Failure, Reason, Stage};
use crate::disk::{Error, Medium};

/// What is converted, and into which directory.
#[derive(Debug)]
pub struct Conversion<'a> {
    pub group: &'a Group,
    /// Directory that gets the disks; empty before, and left with waste after a failure.
    pub directory: &'a Path,
    /// Stem of the disks' names.
    pub stem: &'a str,
    /// The conversion's id; empty for a conversion by hand.
    pub id: &'a str,
    /// Version of the report that is asked for.
    pub contract_version: u32,
    pub options: &'a ConversionOptions,
    /// The deployment option of an OVF; absent: its default one.
    pub ovf_option: Option<&'a str>,
    /// Threads that decode and encode; absent: as many as the process may use.
    pub threads: Option<usize>,
    /// Whether the output is read back and compared with the source.
    pub verify_full: bool,
    /// What changes the guest and tries it; absent where the options don't ask for that, or where it can't be done.
    pub programs: Option<&'a Programs>,
    /// How long the guests may be looked into, all together.
    pub look_time: Duration,
    /// Where the disks go; absent: they become files in the directory.
    pub targets: Option<&'a Targets>,
    /// Members that are known by name and size alone: where a digest differs, they may be another machine's.
    pub doubtful: Vec<String>,
}

impl Conversion<'_> {
    /// How often progress passes through the guest's disks: once for the copy, and on request for the comparison and
    /// the digest.
    pub(super) fn passes(&self) -> u64 {
        1 + u64::from(self.verify_full) + u64::from(self.options.checksum)
    }

    /// Makes what disk `n`, called `name`, is written into.
    pub(super) fn create(&self, n: usize, name: &str) -> Result<(File, Medium), Failure> {
        if let Some(targets) = self.targets {
            return targets.create(n);
        }
        let path = self.directory.join(name);
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        made.map(|file| (file, Medium::File)).map_err(|e| output_failure(&path, &e))
    }

    /// Opens disk `n`, called `name`, to read it back.
    pub(super) fn reopen(&self, n: usize, name: &str) -> Result<File, Failure> {
        self.targets.map_or_else(|| open_disk(self.directory, name), |targets| targets.reopen(n))
    }

    /// The failure of a copy. A digest that differs may say that a doubtful member is not the one that was meant.
    pub(super) fn blame(&self, error: &Error, stage: Stage) -> Failure {
        let failure = Failure::from(error).at_stage(stage);
        if error.reason != Reason::ManifestMismatch || !self.doubtful.contains(&error.file) {
            return failure;
        }
        let message = format!("{}, so that it belongs to another machine", failure.message);
        let member = Some(error.file.clone());
        Failure { member, ..Failure::new(Reason::WrongMember, message) }.at_stage(stage)
    }
}
