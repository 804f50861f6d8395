// SPDX-License-Identifier: Apache-2.0
//! Whether both directories can be worked with: they are a pair, on volumes that can do what will be asked of them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hyper2kvm::config::Config;
use hyper2kvm::conversion::chain;
use hyper2kvm::files::{Method, Paths};
use hyper2kvm::queue::identity::{self, IdentityError, Volumes};
use hyper2kvm::queue::{lock, probe};

use super::Refusal;

/// Both directories, ready for work.
#[derive(Debug)]
pub(super) struct Ready {
    pub paths: Paths,
    pub volumes: Volumes,
}

/// Why the directories are not ready.
#[derive(Debug)]
pub(super) enum Unready {
    /// A volume is not there, or is another one. The person on call mounts it, and the daemon goes on by itself.
    Away {
        why: String,
        /// The output directory, if it is the right one.
        output: Option<PathBuf>,
    },
    /// A volume is full. Nobody would start the daemon again once there is room, so it waits.
    Full { why: String, output: PathBuf },
    /// The daemon ends with this refusal.
    Refused(Refusal),
}

/// Tries both directories. Writes nothing to a directory that may be an empty mount point. `is_meant`: a person
/// declared these two a pair, whatever they belonged to.
pub(super) fn ready(config: &Config, is_meant: bool) -> Result<Ready, Unready> {
    let (queue, output) = (&config.watch_dir, &config.output_dir);
    for dir in [queue, output] {
        if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
            return Err(refused(true, format!("{}: is no directory", dir.display())));
        }
    }
    if queue.exists() && output.exists() {
        check(&Paths::new(queue, output))?;
    }
    let plan = identity::plan(queue, output, is_meant).map_err(|error| {
        match &error {
            // Where a daemon works in one of them no volume is missing: it is named instead.
            IdentityError::Refused(_) => {
                check_unused(&Paths::new(queue, output)).err().unwrap_or_else(|| unfit(&error, output))
            }
            _ => unfit(&error, output),
        }
    })?;
    let paths = Paths::new(make_directory(queue)?, make_directory(output)?);
    check(&paths)?;
    if is_meant && plan.makes_a_pair() {
        check_unused(&paths)?;
        tracing::warn!(queue = %queue.display(), output = %output.display(), "adopted: these directories are a pair now");
    }
    let volumes = plan.carry_out(&paths).map_err(|error| unfit(&error, output))?;
    match probe::probe(&paths, Method::NoReplace) {
        Ok(()) => Ok(Ready { paths, volumes }),
        Err(error) if error.is_no_space() => Err(full(chain(&error), output)),
        Err(error) => Err(refused(error.is_lasting(), chain(&error))),
    }
}

/// Makes sure that no daemon works in one of them: once they are another pair, it could not start again.
fn check_unused(paths: &Paths) -> Result<(), Unready> {
    lock::check_unused(paths).map_err(|error| refused(error.is_lasting(), chain(&error)))
}

fn unfit(error: &IdentityError, output: &Path) -> Unready {
    let text = chain(error);
    match (error, error.io()) {
        (IdentityError::Refused(refusal), _) => {
            let why = format!(
                "{text} Mount it, and the daemon goes on by itself; where these directories are meant, start it once \
                 with --adopt"
            );
            let is_output_right = matches!(refusal, identity::Refusal::Unmarked { dir, .. } if dir != output);
            Unready::Away { why, output: is_output_right.then(|| output.to_owned()) }
        }
        (_, Some(source)) if probe::is_no_space(source) => full(text, output),
        (IdentityError::Write { dir, .. }, Some(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
            refused(true, denied(dir))
        }
        (_, source) => refused(source.is_some_and(probe::is_lasting), text),
    }
}

/// No restart gives this user the right to write to a directory.
fn denied(dir: &Path) -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!("{}: uid {uid} may not write there; chown it to the daemon's user", dir.display())
}

fn full(why: String, output: &Path) -> Unready {
    Unready::Full { why, output: output.to_owned() }
}

/// An error that may pass by itself ends the daemon with an exit code after which the service is started again.
fn refused(is_lasting: bool, text: String) -> Unready {
    Unready::Refused(if is_lasting { Refusal::setting(text) } else { Refusal::fault(text) })
}

fn check(paths: &Paths) -> Result<(), Unready> {
    match probe::check_directories(paths) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(conflict)) => Err(refused(true, conflict.to_string())),
        Err(error) => Err(refused(probe::is_lasting(&error), format!("cannot look at the directories: {error}"))),
    }
}

/// Makes a directory and its missing parents, and brings their names to disk: later records rely on them.
fn make_directory(dir: &Path) -> Result<PathBuf, Unready> {
    let made = || -> io::Result<PathBuf> {
        let dir = std::path::absolute(dir)?;
        let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
        fs::create_dir_all(&dir)?;
        for parent in missing.into_iter().filter_map(Path::parent) {
            File::open(parent)?.sync_all()?;
        }
        dir.canonicalize()
    };
    made().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            refused(true, format!("{}: is no directory", dir.display()))
        }
        io::ErrorKind::PermissionDenied => refused(true, denied(dir)),
        _ => refused(probe::is_lasting(&error), format!("cannot use {}: {error}", dir.display())),
    })
}
