// SPDX-License-Identifier: Apache-2.0
//! A hidden directory beside the final place of a conversion by hand.

use std::fs::Permissions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::geteuid;
use tempfile::TempDir;

use super::output::output_failure;
use crate::conversion::{Failure, Phase, Reason};

/// A directory that only this user may write to. It is reached through the descriptor under which it was opened, so that
/// whoever else may write to the directory around it can't put a link in its place. Removed with whatever is left in it.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
    opened: OwnedFd,
    path: PathBuf,
}

impl Scratch {
    /// Makes one in `directory`.
    ///
    /// # Errors
    /// The system's error in the directory; `OutputIO` where the new one was replaced at once.
    pub fn new(directory: &Path) -> Result<Self, Failure> {
        let private = Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().prefix(".hyper2kvm-").permissions(private).tempdir_in(directory);
        let made = made.map_err(|e| output_failure(directory, &e))?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened =
            openat(CWD, made.path(), flags, Mode::empty()).map_err(|e| output_failure(made.path(), &e.into()))?;
        let found = fstat(&opened).map_err(|e| output_failure(made.path(), &e.into()))?;
        if found.st_uid != geteuid().as_raw() || found.st_mode & 0o077 != 0 {
            let message = format!("{}: was replaced while it was made", made.path().display());
            return Err(Failure::in_phase(Reason::OutputIO, Phase::OutputDirectoryCreation, message));
        }
        // With the dot behind it, the link to the descriptor is followed even where links are not.
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}/.", opened.as_raw_fd()));
        let is_same =
            stat(&by_descriptor).is_ok_and(|there| (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino));
        let path = if is_same { by_descriptor } else { made.path().to_owned() };
        Ok(Self { directory: made, opened, path })
    }

    /// Where it is reached, here and in children that [`Scratch::inherit`] lets have it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a person finds it.
    #[must_use]
    pub fn shown(&self) -> &Path {
        self.directory.path()
    }

    /// Lets processes that are started from now on have its descriptor.
    ///
    /// # Errors
    /// The system's error.
    pub fn inherit(&self) -> std::io::Result<()> {
        Ok(fcntl_setfd(&self.opened, FdFlags::empty())?)
    }
}

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opened.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_link_in_its_place_leads_nowhere() {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let scratch = Scratch::new(place.path()).unwrap();
        let aside = place.path().join("aside");
        fs::rename(scratch.shown(), &aside).unwrap();
        std::os::unix::fs::symlink(&victim, scratch.shown()).unwrap();
        fs::write(scratch.path().join("disk"), "guest").unwrap();
        fs::rename(scratch.path().join("disk"), scratch.path().join("out")).unwrap();
        assert_eq!(fs::read_to_string(aside.join("out")).unwrap(), "guest");
        let shown = scratch.shown().to_owned();
        drop(scratch);
        assert!(victim.exists() && fs::read_dir(&victim).unwrap().next().is_none());
        assert!(shown.symlink_metadata().is_err());
    }

    #[test]
    fn it_is_removed_with_what_is_left_in_it() {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(place.path()).unwrap();
        fs::write(scratch.path().join("disk"), "guest").unwrap();
        assert!(crate::files::store::open_dir(scratch.path()).is_ok());
        drop(scratch);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
