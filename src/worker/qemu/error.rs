// SPDX-License-Identifier: Apache-2.0
//! Why the appliance did not do its work. The disks are as they were.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::map::MapError;
use crate::appliance::protocol;
use crate::conversion::{Failure, Reason, Remedy, Stage, chain};

/// A fix that was not made.
#[derive(Debug, thiserror::Error)]
pub(in crate::worker) enum FixError {
    #[error("{} is missing", .0.display())]
    NoAppliance(PathBuf),
    #[error("{} can't be read", .0.display())]
    Appliance(PathBuf, #[source] io::Error),
    #[error("{path} has more than {most_mib} MiB, which do not fit in the appliance's memory")]
    LargeAppliance { path: PathBuf, most_mib: u64 },
    #[error("{0} is not installed, or not in the PATH")]
    NoProgram(&'static str),
    #[error("the machine has {0} disks, more than the appliance takes")]
    TooManyDisks(usize),
    #[error("the job can't be told")]
    Job(#[from] protocol::JobError),
    #[error("{0} can't be started")]
    Start(&'static str, #[source] io::Error),
    #[error("{program} ended with {status}: {said}")]
    Program { program: &'static str, status: ExitStatus, said: String },
    #[error("the work directory can't be used")]
    Work(#[source] io::Error),
    #[error("the output volume has no room for what may be changed")]
    NoRoom,
    #[error("the appliance said nothing for {0} s")]
    Silent(u64),
    #[error("the appliance was not done after {0} s")]
    Late(u64),
    #[error("the appliance's answer is not believed")]
    Answer(#[from] protocol::Error),
    #[error("what qemu-img says of the changes is not believed")]
    Map(#[from] MapError),
    #[error("KVM does not run: {0}")]
    NoKvm(String),
    #[error("QEMU says what is not its protocol")]
    Protocol(#[source] serde_json::Error),
    #[error("QEMU refuses a command: {0}")]
    Refused(String),
    #[error("QEMU said nothing for {0} s")]
    Mute(u64),
    #[error("the attempt was told to end")]
    Interrupted,
}

/// A check that was not made.
#[derive(Debug, thiserror::Error)]
pub(in crate::worker) enum CheckError {
    #[error("the firmware for EFI (OVMF) is not installed")]
    NoFirmware,
    #[error("{0} are not known to this check")]
    Device(String),
    #[error(transparent)]
    Run(#[from] FixError),
}

impl From<FixError> for Failure {
    fn from(error: FixError) -> Self {
        let (reason, remedy) = match error {
            FixError::Interrupted => (Reason::Disrupted, None),
            FixError::NoAppliance(_) | FixError::Appliance(..) | FixError::LargeAppliance { .. } => {
                (Reason::GuestFixFailed, Some(Remedy::BuildAppliance))
            }
            FixError::NoProgram(_) => (Reason::GuestFixFailed, Some(Remedy::InstallQemu)),
            _ => (Reason::GuestFixFailed, None),
        };
        Self::new(reason, chain(&error)).with_remedy(remedy).at_stage(Stage::Fix)
    }
}
