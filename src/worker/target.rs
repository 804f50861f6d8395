// SPDX-License-Identifier: Apache-2.0
//! The targets of a conversion's disks, open: block devices, and directories that get a disk.img.
//!
//! ```text
//!  directory:  disk.img.part, written and synced ──▶ marker with its identity ──▶ … ──▶ seal: disk.img, never replaced
//!  device:     first MiB zero ──▶ all but the first MiB ──▶ first MiB
//! ```

mod merge;

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, StatxFlags, fstatvfs, fsync, linkat, openat, renameat_with};
use rustix::fs::{statx, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::output::output_failure;
use crate::conversion::options::ByteSize;
use crate::conversion::target::{DISK_IMAGE, DISK_IMAGE_PART, DISK_IMAGE_UNIT, DiskTarget, disk_image_bytes};
use crate::conversion::{Failure, Reason};
use crate::disk::{Copied, Error, Geometry, Medium};
use crate::files::space::told_free;

/// How long a device may be in use before that is a failure: an earlier attempt's process may still be ending.
const BUSY_FOR: Duration = Duration::from_secs(30);
/// Between two looks at a device in use.
const BUSY_POLL: Duration = Duration::from_millis(250);

/// Mode of a disk image: its group's members write to it, as the process of a virtual machine may be one.
const IMAGE_MODE: u32 = 0o660;

/// The targets of a conversion, one for each disk.
#[derive(Debug)]
pub struct Targets(Vec<Target>);

/// An open target.
#[derive(Debug)]
pub struct Target {
    named: DiskTarget,
    held: Held,
    /// The image in a directory, once it was made or found again.
    made: OnceLock<Identity>,
    /// What a person should know of the copy into it.
    warning: OnceLock<String>,
}

#[derive(Debug)]
enum Held {
    Device(File, Geometry),
    Directory(OwnedFd),
}

/// By what a disk image is recognised: a file of the same number that was made at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    inode: u64,
    /// Absent where the file system does not tell it.
    made_ns: Option<i128>,
}

impl Targets {
    /// Opens them for a worker. A device that is in use is waited for.
    ///
    /// # Errors
    /// `TargetDenied`, `TargetInUse`, `TargetLost`.
    pub fn open(named: &[DiskTarget]) -> Result<Self, Failure> {
        named.iter().map(|target| Target::open(target, Instant::now() + BUSY_FOR)).collect::<Result<_, _>>().map(Self)
    }

    /// The targets of a conversion by hand.
    #[must_use]
    pub fn of_devices(devices: Vec<Target>) -> Self {
        Self(devices)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The directories in which files are made.
    pub fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter_map(|target| match &target.held {
            Held::Directory(directory) => Some(directory.as_fd()),
            Held::Device(..) => None,
        })
    }

    /// Where disk `n` goes.
    pub(super) fn named(&self, n: usize) -> DiskTarget {
        self.0[n].named.clone()
    }

    /// Refuses targets that are too few, hold something else already, or are too small for disks of `sizes` bytes. An
    /// unfinished image that an earlier attempt left is removed.
    pub(super) fn check(&self, source: &str, sizes: &[u64]) -> Result<(), Failure> {
        if self.0.len() != sizes.len() {
            let message = format!("{source}: has {} disks, and {} targets are given", sizes.len(), self.0.len());
            return Err(Failure::new(Reason::Internal, message));
        }
        let mut small: Option<Failure> = None;
        for ((n, target), &size) in (0..).zip(&self.0).zip(sizes) {
            match target.check(size) {
                Ok(()) => {}
                Err(failure) if failure.reason != Reason::TargetTooSmall => return Err(failure),
                Err(failure) => match &mut small {
                    // All of them at once: each is made larger for the next attempt.
                    Some(first) => {
                        first.needed_bytes = None;
                        first.targets.push(n);
                    }
                    None => small = Some(Failure { targets: vec![n], ..failure }),
                },
            }
        }
        small.map_or(Ok(()), Err)
    }

    /// Opens what disk `n` is written into, and says what that is.
    pub(super) fn create(&self, n: usize) -> Result<(File, Medium), Failure> {
        self.0[n].create()
    }

    /// Opens disk `n` to read it back.
    pub(super) fn reopen(&self, n: usize) -> Result<File, Failure> {
        self.0[n].reopen()
    }

    /// What an error of the copy into target `n` means.
    pub(super) fn blame(&self, n: usize, error: &Error, failure: Failure) -> Failure {
        let blamed = self.0[n].blame(error, failure);
        let targets = match blamed.reason {
            Reason::TargetTooSmall | Reason::TargetLost => u32::try_from(n).into_iter().collect(),
            _ => Vec::new(),
        };
        Failure { targets, ..blamed }
    }

    /// Remembers what a person should know of the copy into target `n`.
    pub(super) fn copied(&self, n: usize, copied: &Copied) {
        if copied.written_zeros > 0 {
            let (shown, zeros) = (self.0[n].path().display(), ByteSize(copied.written_zeros));
            let warning = format!("{shown}: can't zero a range by itself, so {zeros} of zeros were written to it");
            self.0[n].warning.get_or_init(|| warning);
        }
    }

    /// What a person should know of the copies.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().filter_map(|target| target.warning.get().cloned())
    }

    /// By what the copies that lie in the targets are recognised later; `None` where one of them lies on a device, of
    /// which nothing but all its content proves what it holds.
    pub(super) fn identities(&self) -> Option<Vec<Identity>> {
        let provable = |target: &Target| target.made.get().filter(|identity| identity.made_ns.is_some()).cloned();
        self.0.iter().map(provable).collect()
    }

    /// Whether the targets hold the copies that were recognised so. From then on these are the ones to seal.
    pub(super) fn hold(&self, copies: Option<&[Identity]>) -> bool {
        let Some(copies) = copies.filter(|copies| copies.len() == self.0.len()) else { return false };
        self.0.iter().zip(copies).all(|(target, copy)| target.holds(copy))
    }

    /// Gives every disk image its name, and syncs the names. Safe to repeat.
    pub(super) fn seal(&self) -> Result<(), Failure> {
        self.0.iter().try_for_each(Target::seal)
    }

    /// Removes unfinished images.
    pub(super) fn discard(&self) {
        for directory in self.directories() {
            // Another attempt removes it, too, before it begins.
            let _ = unlinkat(directory, DISK_IMAGE_PART, AtFlags::empty());
        }
    }
}

impl Target {
    fn open(named: &DiskTarget, until: Instant) -> Result<Self, Failure> {
        let held = match named {
            DiskTarget::Path(path) => return Self::device(path, until),
            DiskTarget::Directory(path) => {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                Held::Directory(openat(CWD, path, flags, Mode::empty()).map_err(|e| failed(path, "open", &e.into()))?)
            }
        };
        Ok(Self { named: named.clone(), held, made: OnceLock::new(), warning: OnceLock::new() })
    }

    /// Opens a device for this process alone, and waits as long as another one has it.
    ///
    /// # Errors
    /// As [`Targets::open`].
    pub fn device(path: &Path, until: Instant) -> Result<Self, Failure> {
        loop {
            match Self::opened(path, path, OFlags::EXCL) {
                Err(failure) if failure.reason == Reason::TargetInUse && Instant::now() < until => {
                    thread::sleep(BUSY_POLL);
                }
                opened => return opened,
            }
        }
    }

    /// Opens a device that errors and reports call `shown`, by another path, while the parent of this process has it
    /// for itself.
    ///
    /// # Errors
    /// As [`Targets::open`].
    pub fn device_of_parent(path: &Path, shown: &Path) -> Result<Self, Failure> {
        Self::opened(path, shown, OFlags::empty())
    }

    fn opened(path: &Path, shown: &Path, flags: OFlags) -> Result<Self, Failure> {
        let cannot = |e: io::Error| failed(shown, "open", &e);
        // Opening something else may do something.
        if !path.metadata().map_err(cannot)?.file_type().is_block_device() {
            return Err(Failure::new(Reason::TargetDenied, format!("{}: is no block device", shown.display())));
        }
        let flags = flags.bits().cast_signed();
        let file = File::options().read(true).write(true).custom_flags(flags).open(path).map_err(cannot)?;
        let geometry = Geometry::of(&file).map_err(cannot)?;
        let named = DiskTarget::Path(shown.to_owned());
        Ok(Self { named, held: Held::Device(file, geometry), made: OnceLock::new(), warning: OnceLock::new() })
    }

    /// The device, where it is one.
    #[must_use]
    pub fn as_device(&self) -> Option<(&File, Geometry)> {
        match &self.held {
            Held::Device(file, geometry) => Some((file, *geometry)),
            Held::Directory(_) => None,
        }
    }

    fn path(&self) -> &Path {
        self.named.path()
    }

    fn check(&self, size: u64) -> Result<(), Failure> {
        match &self.held {
            Held::Device(_, geometry) if geometry.bytes < size => {
                Err(too_small(self.path(), size, "device has", geometry.bytes))
            }
            Held::Device(..) => Ok(()),
            Held::Directory(directory) => {
                if statx(directory, DISK_IMAGE, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE).is_ok() {
                    return Err(self.taken());
                }
                match unlinkat(directory, DISK_IMAGE_PART, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(failed(&self.image(DISK_IMAGE_PART), "remove", &e.into())),
                }
                let stat = fstatvfs(directory).map_err(|e| failed(self.path(), "look at", &e.into()))?;
                let needed = disk_image_bytes(size).unwrap_or(u64::MAX);
                match told_free(&stat) {
                    Some(free) if free < needed => Err(too_small(self.path(), needed, "file system offers", free)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn create(&self) -> Result<(File, Medium), Failure> {
        match &self.held {
            Held::Device(file, geometry) => {
                let file = file.try_clone().map_err(|e| failed(self.path(), "open", &e))?;
                Ok((file, Medium::Device(*geometry)))
            }
            Held::Directory(directory) => {
                let cannot = |e: io::Error| failed(&self.image(DISK_IMAGE_PART), "make", &e);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(directory, DISK_IMAGE_PART, flags, Mode::from_raw_mode(IMAGE_MODE));
                let file = File::from(made.map_err(|e| cannot(e.into()))?);
                // Whatever the umask took away.
                file.set_permissions(Permissions::from_mode(IMAGE_MODE)).map_err(cannot)?;
                fsync(directory).map_err(|e| cannot(e.into()))?;
                if let Some(identity) = identity(directory, DISK_IMAGE_PART) {
                    self.made.get_or_init(|| identity);
                }
                Ok((file, Medium::Image { unit: DISK_IMAGE_UNIT }))
            }
        }
    }

    fn reopen(&self) -> Result<File, Failure> {
        match &self.held {
            Held::Device(file, _) => file.try_clone().map_err(|e| failed(self.path(), "open", &e)),
            Held::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let open = |name| openat(directory, name, flags, Mode::empty());
                let opened = open(DISK_IMAGE_PART).or_else(|_| open(DISK_IMAGE));
                opened.map(File::from).map_err(|e| failed(&self.image(DISK_IMAGE), "open", &e.into()))
            }
        }
    }

    fn blame(&self, error: &Error, failure: Failure) -> Failure {
        let is_of_target = matches!(error.reason, Reason::OutputIO | Reason::OutputFull | Reason::PermissionDenied);
        let Some(cause) = error.source.as_ref().filter(|_| is_of_target) else { return failure };
        let reason = match (&self.held, reason_of(cause)) {
            (Held::Directory(_), Reason::OutputFull) => Reason::TargetTooSmall,
            // Storage behind a device that can be overcommitted: a larger device helps nobody.
            (Held::Device(..), Reason::OutputFull) => Reason::OutputIO,
            (_, reason) => reason,
        };
        let needed_bytes = if reason == Reason::TargetTooSmall { failure.needed_bytes } else { None };
        Failure { stage: failure.stage, needed_bytes, ..Failure::new(reason, failure.message) }
    }

    fn holds(&self, copy: &Identity) -> bool {
        let Held::Directory(directory) = &self.held else { return false };
        let is_there =
            [DISK_IMAGE_PART, DISK_IMAGE].iter().any(|name| identity(directory, name).as_ref() == Some(copy));
        is_there && copy.made_ns.is_some() && self.made.get_or_init(|| copy.clone()) == copy
    }

    fn seal(&self) -> Result<(), Failure> {
        let Held::Directory(directory) = &self.held else { return Ok(()) };
        let cannot = |e: Errno| failed(&self.image(DISK_IMAGE), "make", &e.into());
        let named = match renameat_with(directory, DISK_IMAGE_PART, directory, DISK_IMAGE, RenameFlags::NOREPLACE) {
            // NFS knows no rename that replaces nothing.
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(directory, DISK_IMAGE_PART, directory, DISK_IMAGE, AtFlags::empty())
            }
            renamed => renamed,
        };
        match named {
            Ok(()) => {}
            // It got its name before.
            Err(Errno::EXIST | Errno::NOENT)
                if self.made.get().is_some() && identity(directory, DISK_IMAGE).as_ref() == self.made.get() => {}
            Err(Errno::EXIST) => return Err(self.taken()),
            Err(e) => return Err(cannot(e)),
        }
        match unlinkat(directory, DISK_IMAGE_PART, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(cannot(e)),
        }
        fsync(directory).map_err(cannot)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn taken(&self) -> Failure {
        let message =
            format!("{}: exists already, and no attempt of this conversion made it", self.image(DISK_IMAGE).display());
        Failure::new(Reason::TargetInUse, message)
    }
}

fn identity(directory: &OwnedFd, name: &str) -> Option<Identity> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, wanted).ok()?;
    let is_told = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    let made_ns = i128::from(found.stx_btime.tv_sec) * 1_000_000_000 + i128::from(found.stx_btime.tv_nsec);
    Some(Identity { inode: found.stx_ino, made_ns: is_told.then_some(made_ns) })
}

fn too_small(path: &Path, needed: u64, what: &str, there: u64) -> Failure {
    let message = format!(
        "{}: the disk needs {} ({needed} bytes), and the {what} {} ({there} bytes)",
        path.display(),
        ByteSize(needed),
        ByteSize(there)
    );
    Failure { needed_bytes: Some(needed), ..Failure::new(Reason::TargetTooSmall, message) }
}

fn failed(path: &Path, act: &str, error: &io::Error) -> Failure {
    let reason = reason_of(error);
    if reason == Reason::OutputFull {
        return output_failure(path, error);
    }
    let message = match reason {
        Reason::TargetInUse => format!("{}: is mounted, or another program uses it", path.display()),
        _ => format!("{}: cannot {act} it: {error}", path.display()),
    };
    Failure::new(reason, message)
}

/// What an error of the system at a target means.
fn reason_of(error: &io::Error) -> Reason {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Reason::TargetDenied,
        Some(Errno::BUSY | Errno::TXTBSY) => Reason::TargetInUse,
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::STALE) => Reason::TargetLost,
        Some(Errno::NOSPC | Errno::DQUOT) => Reason::OutputFull,
        // No device at all.
        None if error.kind() == io::ErrorKind::InvalidInput => Reason::TargetDenied,
        _ => Reason::OutputIO,
    }
}

#[cfg(test)]
mod tests;
