// SPDX-License-Identifier: Apache-2.0
//! What runs the code in a virtual machine: KVM where it does, else QEMU's own translation.

use std::fs::File;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use super::error::FixError;
use super::programs::{KVM, MAX_SAID, Programs, QEMU, SANDBOX, said};
use crate::conversion::options::Accelerator;

/// How long an empty machine may take to find that it has nothing to start. It takes a quarter of a second without KVM,
/// and less with it. Where KVM is there and hardly moves, as inside some virtual machines, it takes from three and a half
/// seconds to fifteen, and a kernel says nothing for minutes. A busy machine that takes too long works without KVM.
const TRIAL: Duration = Duration::from_millis(1500);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a killed process may take to be gone. It is left to the kernel then.
const KILLED: Duration = Duration::from_secs(2);

/// What runs the code of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runner {
    Kvm,
    Tcg,
}

impl Runner {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// QEMU's arguments, with `translated_mib` MiB for what it translates.
    pub(super) fn arguments(self, translated_mib: u32) -> [(&'static str, String); 2] {
        let (accelerator, processor) = match self {
            Self::Kvm => ("kvm".to_owned(), "host"),
            // What is translated is written at one address and run at another: systemd's MemoryDenyWriteExecute= forbids
            // both at one.
            Self::Tcg => (format!("tcg,split-wx=on,tb-size={translated_mib}"), "max"),
        };
        [("-accel", accelerator), ("-cpu", processor.to_owned())]
    }
}

impl Programs {
    /// What runs a machine here. Whether KVM does is tried once.
    ///
    /// # Errors
    /// `NoKvm` where it must and does not.
    pub(super) fn runner(&self, is_interrupted: &impl Fn() -> bool) -> Result<Runner, FixError> {
        if self.accelerator == Accelerator::Tcg {
            return Ok(Runner::Tcg);
        }
        let runs = self.kvm.get_or_init(|| {
            let runs = self.try_kvm(is_interrupted);
            match &runs {
                Ok(()) => tracing::info!("virtual machines run by KVM"),
                Err(why) => tracing::info!(%why, "virtual machines run without KVM"),
            }
            runs
        });
        match (self.accelerator, runs) {
            (_, Ok(())) => Ok(Runner::Kvm),
            (Accelerator::Kvm, Err(why)) => Err(FixError::NoKvm(why.clone())),
            (_, Err(_)) => Ok(Runner::Tcg),
        }
    }

    /// Runs a machine without disks until its firmware gives up, which stops it.
    fn try_kvm(&self, is_interrupted: &impl Fn() -> bool) -> Result<(), String> {
        File::options().read(true).write(true).open(KVM).map_err(|error| format!("{KVM}: {error}"))?;
        let arguments: [&[&str]; 5] = [
            &["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none"],
            &["-sandbox", SANDBOX],
            &["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64"],
            &["-boot", "reboot-timeout=1"],
            &["-serial", "null"],
        ];
        let arguments = arguments.concat().into_iter().map(str::to_owned).collect();
        let mut command = self.command(QEMU, arguments, Vec::new(), Vec::new()).map_err(|error| error.to_string())?;
        let mut qemu = command.spawn().map_err(|error| error.to_string())?;
        let start = Instant::now();
        let ended = wait(&mut qemu, || start.elapsed() > TRIAL || is_interrupted());
        let Some(ended) = ended else {
            let _ = qemu.kill();
            let killed = Instant::now();
            wait(&mut qemu, || killed.elapsed() > KILLED);
            return Err(format!("an empty machine was not done in {} s", TRIAL.as_secs_f32()));
        };
        if ended {
            return Ok(());
        }
        Err(qemu.stderr.as_mut().map(|stderr| said(stderr, MAX_SAID)).unwrap_or_default())
    }
}

/// Waits for the end of a process: whether it ended well, or `None` where it did not before `is_late`.
fn wait(process: &mut Child, is_late: impl Fn() -> bool) -> Option<bool> {
    loop {
        match process.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if !is_late() => thread::sleep(LOOK),
            Ok(None) | Err(_) => return None,
        }
    }
}
