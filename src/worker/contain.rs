// SPDX-License-Identifier: Apache-2.0
//! Containment for what the checks of the image formats miss: Landlock, resource limits, signals.
//!
//! Landlock binds the calling thread and what it starts later, so both restrictions happen while the process is still
//! single-threaded: the first before any byte of an image is parsed, the second once the files are open.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::conversion::{Failure, Reason};

/// Newest Landlock interface whose rights are asked for; older kernels enforce those that they know (Linux 6.12).
const LANDLOCK: ABI = ABI::V6;

/// Address space of a worker: far more than the pipeline maps (64 MiB and thread stacks), far less than a machine has.
const ADDRESS_SPACE: u64 = 8 << 30;

/// Bytes that an output file may have beyond its virtual size: headers, tables and reference counts of a qcow2 take
/// under 1/4096 of it, and incompressible clusters are stored plain.
const fn metadata_bound(virtual_size: u64) -> u64 {
    virtual_size / 1024 + (64 << 20)
}

/// How much of the restriction the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    Full,
    /// An older kernel: file access is restricted, newer rights are not known to it.
    Partial,
    /// The kernel has no Landlock.
    None,
}

/// From here on this process reads only below `readable`, writes only below each of `writable` (nothing where there is
/// none), opens no TCP connection and gains no privilege.
///
/// # Errors
/// `Internal` where the kernel refuses, or has no Landlock although it is `required`.
pub fn restrict_to(
    readable: Option<BorrowedFd<'_>>,
    writable: &[BorrowedFd<'_>],
    required: bool,
) -> Result<Enforcement, Failure> {
    restrict(readable, writable, None, required)
}

/// The same for a process that may run programs, too.
///
/// # Errors
/// As [`restrict_to`].
pub fn restrict(
    readable: Option<BorrowedFd<'_>>,
    writable: &[BorrowedFd<'_>],
    executable: Option<&Executable>,
    required: bool,
) -> Result<Enforcement, Failure> {
    let status = ruleset(readable, writable, executable)
        .map_err(|e| Failure::new(Reason::Internal, format!("cannot restrict this process by Landlock: {e}")))?;
    let enforcement = match status.ruleset {
        RulesetStatus::FullyEnforced => Enforcement::Full,
        RulesetStatus::PartiallyEnforced => Enforcement::Partial,
        RulesetStatus::NotEnforced => Enforcement::None,
    };
    if required && enforcement == Enforcement::None {
        let message = "this kernel has no Landlock, and require_landlock is set";
        return Err(Failure {
            class: crate::conversion::Class::Configuration,
            ..Failure::new(Reason::Internal, message)
        });
    }
    Ok(enforcement)
}

/// What a process that runs programs may read and execute besides its files. Nothing of it is written to.
#[derive(Debug, Default)]
pub struct Executable {
    /// Directories of programs and their libraries.
    pub directories: Vec<OwnedFd>,
    pub programs: Vec<OwnedFd>,
    /// Single files that they read.
    pub files: Vec<OwnedFd>,
    /// Directories of other files that they read.
    pub readable: Vec<OwnedFd>,
    /// The null device, which is both read and written.
    pub null: Option<OwnedFd>,
    /// The device of KVM, which is told what to do by ioctl.
    pub kvm: Option<OwnedFd>,
}

/// Restricts this process to a program that reads what `executable` has, and writes to the files `writable`.
///
/// # Errors
/// `Internal` where the kernel refuses.
pub(super) fn restrict_program(executable: &Executable, writable: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    let restricted = rules().and_then(|rules| {
        let mut rules = allow(rules, executable)?;
        for file in writable {
            let access = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
            rules = rules.add_rule(PathBeneath::new(file, access))?;
        }
        rules.restrict_self()
    });
    restricted
        .map(|_| ())
        .map_err(|e| Failure::new(Reason::Internal, format!("cannot restrict a program by Landlock: {e}")))
}

fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()
}

fn allow(mut rules: RulesetCreated, executable: &Executable) -> Result<RulesetCreated, RulesetError> {
    let Executable { directories, programs, files, readable, null, kvm } = executable;
    let run = AccessFs::Execute | AccessFs::ReadFile;
    let write = AccessFs::ReadFile | AccessFs::WriteFile;
    for (paths, access) in [
        (directories.as_slice(), run | AccessFs::ReadDir),
        (programs, run),
        (files, AccessFs::ReadFile.into()),
        (readable, AccessFs::ReadFile | AccessFs::ReadDir),
        (null.as_slice(), write),
        (kvm.as_slice(), write | AccessFs::IoctlDev),
    ] {
        for path in paths {
            rules = rules.add_rule(PathBeneath::new(path, access))?;
        }
    }
    Ok(rules)
}

fn ruleset(
    readable: Option<BorrowedFd<'_>>,
    writable: &[BorrowedFd<'_>],
    executable: Option<&Executable>,
) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = rules()?;
    if let Some(executable) = executable {
        rules = allow(rules, executable)?;
    }
    if let Some(directory) = readable {
        rules = rules.add_rule(PathBeneath::new(directory, AccessFs::ReadFile | AccessFs::ReadDir))?;
    }
    for directory in writable {
        rules = rules.add_rule(PathBeneath::new(directory, work_access()))?;
    }
    rules.restrict_self()
}

/// What a worker may do in its work directory: everything with plain files and folders, nothing else.
fn work_access() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
}

/// Open files beside an artifact's own: its output, directories, the log.
const OTHER_FILES: u64 = 64;

/// Lets this process open an artifact of `files` files, each twice (direct I/O has a descriptor of its own).
///
/// # Errors
/// The limit that stays, where it is too low to open each file once.
pub fn raise_open_files(files: usize) -> Result<(), u64> {
    let now = getrlimit(Resource::Nofile);
    let files = u64::try_from(files).unwrap_or(u64::MAX);
    let wanted = files.saturating_mul(2).saturating_add(OTHER_FILES);
    if now.current.is_none_or(|limit| limit >= wanted) {
        return Ok(());
    }
    let maximum = now.maximum.map(|hard| hard.max(wanted));
    // Only root may raise a hard limit.
    let hard = Rlimit { current: Some(wanted), maximum };
    let soft = Rlimit { current: Some(now.maximum.map_or(wanted, |hard| hard.min(wanted))), maximum: now.maximum };
    if setrlimit(Resource::Nofile, hard).is_err() {
        // The limit that stays is checked below.
        let _ = setrlimit(Resource::Nofile, soft);
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit >= files.saturating_add(OTHER_FILES) { Ok(()) } else { Err(limit) }
}

/// Limits that hold for the whole attempt: no core dump, a bounded address space. Signals that would kill in the
/// middle of a write are turned into errors of that write (SIGXFSZ) or ignored (SIGUSR1, which asks a daemon for its
/// statistics and may reach its children).
///
/// # Errors
/// The system's error.
pub fn limit_process() -> io::Result<()> {
    lower(Resource::Core, 0)?;
    lower(Resource::As, ADDRESS_SPACE)?;
    turn_signals_into_errors()
}

/// Limits of a program that an attempt runs: no core dump, `address_space` bytes.
///
/// # Errors
/// The system's error.
pub(super) fn limit_program(address_space: u64) -> io::Result<()> {
    lower(Resource::Core, 0)?;
    lower(Resource::As, address_space)
}

/// A write beyond the largest file allowed fails instead of killing this process.
///
/// # Errors
/// The system's error.
pub fn turn_signals_into_errors() -> io::Result<()> {
    for signal in [signal_hook::consts::SIGXFSZ, signal_hook::consts::SIGUSR1] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Largest file of a program besides the disks, in bytes: QEMU has what it translates in a file in memory, of 128 MiB at
/// most, and the appliance's initrd is a file, too.
pub const FILE_OF_PROGRAM: u64 = 256 << 20;

/// Largest offset that any output file of a disk of `virtual_size` bytes may be written at. The limit counts offsets,
/// not bytes, so that sparse files pass.
///
/// # Errors
/// The system's error.
pub fn limit_file_size(virtual_size: u64) -> io::Result<()> {
    lower(Resource::Fsize, virtual_size.saturating_add(metadata_bound(virtual_size)))
}

fn lower(resource: Resource, limit: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let maximum = now.maximum.map_or(limit, |hard| hard.min(limit));
    setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::TcpStream;
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::thread;

    use super::*;

    /// Runs `test` on a thread of its own, since Landlock restricts the calling thread and is never removed.
    fn contained(test: impl FnOnce(&Path, &Path) + Send + 'static) {
        let place = tempfile::tempdir().unwrap();
        let (claim, work) = (place.path().join("claim"), place.path().join("work"));
        fs::create_dir(&claim).unwrap();
        fs::create_dir(&work).unwrap();
        fs::write(claim.join("disk"), "member").unwrap();
        fs::write(place.path().join("canary"), "secret").unwrap();
        thread::spawn(move || test(&claim, &work)).join().unwrap();
    }

    fn denied<T>(result: &io::Result<T>) -> bool {
        matches!(result, Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn a_worker_reads_its_claim_and_writes_its_work_directory_only() {
        contained(|claim, work| {
            let (claim_fd, work_fd) = (File::open(claim).unwrap(), File::open(work).unwrap());
            let enforced = restrict_to(Some(claim_fd.as_fd()), &[work_fd.as_fd()], false).unwrap();
            if enforced == Enforcement::None {
                eprintln!("left out: this kernel has no Landlock");
                return;
            }
            assert_eq!(fs::read_to_string(claim.join("disk")).unwrap(), "member");
            fs::create_dir(work.join("folder")).unwrap();
            fs::write(work.join("folder/tmp"), "output").unwrap();
            fs::rename(work.join("folder/tmp"), work.join("folder/output")).unwrap();
            assert!(denied(&fs::write(claim.join("disk"), "changed")));
            assert!(denied(&fs::read(claim.join("../canary"))));
            assert!(denied(&fs::read("/etc/passwd")));
            assert!(denied(&std::os::unix::fs::symlink("/etc/passwd", work.join("link"))));
        });
    }

    #[test]
    fn once_the_files_are_open_no_path_can_be_read_and_no_connection_made() {
        contained(|claim, work| {
            let work_fd = File::open(work).unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let open = File::open(claim.join("disk")).unwrap();
            let enforced = restrict_to(None, &[work_fd.as_fd()], false).unwrap();
            if enforced == Enforcement::None {
                eprintln!("left out: this kernel has no Landlock");
                return;
            }
            assert_eq!(io::read_to_string(&open).unwrap(), "member");
            assert!(denied(&File::open(claim.join("disk"))));
            if enforced == Enforcement::Full {
                assert!(denied(&TcpStream::connect(listener.local_addr().unwrap())));
            }
        });
    }
}
