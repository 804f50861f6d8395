// SPDX-License-Identifier: Apache-2.0
//! The programs that a fix runs, found before the process restricts itself, and started by a child that restricts itself
//! further.
//!
//! ```text
//!  worker ── exec of this program ──▶ launcher: dies with the worker, lower limits, reads the appliance and the disks,
//!                                     writes the overlays ── exec ──▶ QEMU
//! ```

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::error::FixError;
use crate::conversion::options::Accelerator;
use crate::worker::contain;

/// The emulator, and the program that merges an overlay into its base.
pub(super) const QEMU: &str = "qemu-system-x86_64";
pub(super) const QEMU_IMG: &str = "qemu-img";

/// What QEMU may not do itself: start programs, gain rights.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Most bytes of a program's complaint.
pub(super) const MAX_SAID: u64 = 4096;
/// The device of KVM.
pub(super) const KVM: &str = "/dev/kvm";

/// Where programs and their libraries lie. What is not there is left out.
const DIRECTORIES: [&str; 4] = ["/usr", "/lib", "/lib64", "/etc/alternatives"];
const FILES: [&str; 1] = ["/etc/ld.so.cache"];

/// Variable by which a launcher is told what it is.
const LAUNCH: &str = "HYPER2KVM_LAUNCH";
/// Address space of a program, in bytes: QEMU maps the guest's memory, what it translates, and its threads' stacks.
const ADDRESS_SPACE: u64 = 6 << 30;

/// What a fix may run and read.
#[derive(Debug)]
pub struct Programs {
    /// This program, for the launcher.
    own: PathBuf,
    qemu: Option<PathBuf>,
    qemu_img: Option<PathBuf>,
    /// Directory of the appliance.
    pub(in crate::worker) appliance: PathBuf,
    /// Directory with virtio-win's drivers.
    pub(in crate::worker) virtio_win: Option<PathBuf>,
    pub(super) accelerator: Accelerator,
    /// Whether KVM runs, once that was tried.
    pub(super) kvm: OnceLock<Result<(), String>>,
}

impl Programs {
    /// Finds the programs in the PATH. What is missing is told when it is needed: most guests need nothing.
    #[must_use]
    pub fn find(appliance: &Path, virtio_win: Option<&Path>, accelerator: Accelerator) -> Self {
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let find = |name: &str| env::split_paths(&path).map(|place| place.join(name)).find(|found| found.is_file());
        let own = env::current_exe().ok().filter(|program| program.exists());
        Self {
            own: own.unwrap_or_else(|| PathBuf::from("/proc/self/exe")),
            qemu: find(QEMU),
            qemu_img: find(QEMU_IMG),
            appliance: appliance.to_owned(),
            virtio_win: virtio_win.map(Path::to_owned),
            accelerator,
            kvm: OnceLock::new(),
        }
    }

    /// What the process must keep the right to read and execute, and to read: `devices` hold disks.
    ///
    /// # Errors
    /// None: what can't be opened is left out, and found missing later.
    #[must_use]
    pub fn open<'a>(&self, devices: impl Iterator<Item = &'a Path>) -> contain::Executable {
        let opened = |path: &Path| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
        let programs = [Some(&self.own), self.qemu.as_ref(), self.qemu_img.as_ref()].into_iter().flatten();
        contain::Executable {
            directories: DIRECTORIES.iter().filter_map(|path| opened(Path::new(path))).collect(),
            programs: programs.filter_map(|path| opened(path)).collect(),
            files: FILES.iter().map(Path::new).chain(devices).filter_map(opened).collect(),
            readable: [Some(&self.appliance), self.virtio_win.as_ref()]
                .into_iter()
                .flatten()
                .filter_map(|path| opened(path))
                .collect(),
            null: opened(Path::new("/dev/null")),
            kvm: opened(Path::new(KVM)).filter(|_| self.accelerator != Accelerator::Tcg),
        }
    }

    fn path(&self, program: &'static str) -> Result<&Path, FixError> {
        let found = if program == QEMU { &self.qemu } else { &self.qemu_img };
        found.as_deref().ok_or(FixError::NoProgram(program))
    }

    /// Whether both programs are there.
    pub(in crate::worker) fn check(&self) -> Result<(), FixError> {
        self.path(QEMU).and_then(|_| self.path(QEMU_IMG)).map(|_| ())
    }

    /// A command that runs `program` with the right to read `readable` and to write `writable`, and nothing else of what
    /// is not the system's.
    pub(super) fn command(
        &self,
        program: &'static str,
        arguments: Vec<String>,
        readable: Vec<PathBuf>,
        writable: Vec<PathBuf>,
    ) -> Result<Command, FixError> {
        let launch = Launch {
            parent: getpid().as_raw_nonzero().get(),
            program: self.path(program)?.to_owned(),
            arguments,
            appliance: self.appliance.clone(),
            accelerator: self.accelerator,
            readable,
            writable,
        };
        let mut command = Command::new(&self.own);
        command
            .arg0("hyper2kvm")
            .arg("launch")
            .env_clear()
            .env(LAUNCH, serde_json::to_string(&launch).expect("paths that came from texts serialise"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }
}

/// What a launcher is told.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    parent: i32,
    program: PathBuf,
    arguments: Vec<String>,
    appliance: PathBuf,
    accelerator: Accelerator,
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
}

/// Becomes the program that the environment names, restricted to what that needs. Returns only why it could not.
#[must_use]
pub fn launch() -> String {
    let told = env::var(LAUNCH).map_err(|_| format!("{LAUNCH} is not set: this is for workers"));
    let launch: Result<Launch, String> =
        told.and_then(|text| serde_json::from_str(&text).map_err(|e| format!("{LAUNCH}: {e}")));
    match launch.and_then(|launch| restrict(&launch).map(|()| launch)) {
        Ok(launch) => {
            let error = Command::new(&launch.program).args(&launch.arguments).env_clear().exec();
            format!("{}: {error}", launch.program.display())
        }
        Err(message) => message,
    }
}

fn restrict(launch: &Launch) -> Result<(), String> {
    let tied = set_parent_process_death_signal(Some(Signal::KILL));
    tied.map_err(|e| format!("cannot tie to the parent: {e}"))?;
    if getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != launch.parent) {
        return Err("the process that started this one is gone".to_owned());
    }
    contain::limit_program(ADDRESS_SPACE).map_err(|e| format!("cannot limit the process: {e}"))?;
    let open = |path: &PathBuf| File::open(path).map(OwnedFd::from).map_err(|e| format!("{}: {e}", path.display()));
    let readable = launch.readable.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let writable = launch.writable.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut executable = Programs::find(&launch.appliance, None, launch.accelerator).open(std::iter::empty());
    executable.programs.extend(File::open(&launch.program).map(OwnedFd::from).ok());
    executable.files.extend(readable);
    let writable: Vec<BorrowedFd<'_>> = writable.iter().map(|file| file.as_fd()).collect();
    contain::restrict_program(&executable, &writable).map_err(|failure| failure.message)
}

/// Reads at most `most` bytes of what a program said, for a person.
pub(super) fn said(output: &mut impl io::Read, most: u64) -> String {
    let mut text = Vec::new();
    // What can't be read is not told.
    let _ = io::Read::read_to_end(&mut io::Read::take(output, most), &mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}
