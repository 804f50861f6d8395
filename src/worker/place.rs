// SPDX-License-Identifier: Apache-2.0
//! Where a conversion by hand puts its output: made in a hidden scratch directory beside its final place, then renamed.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, RenameFlags, renameat_with, stat};
use rustix::io::Errno;

use super::group::{Group, describe_kind};
use super::output::{output_failure, sync_directory};
use crate::conversion::options::DomainOptions;
use crate::conversion::{Emit, emit};
use crate::conversion::{Failure, Metadata};

/// Why the output could not be placed where it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("{}: exists already", .0.display())]
    Taken(PathBuf),
    #[error("{}: is the source itself", .0.display())]
    Source(PathBuf),
    #[error("{}: is a directory", .0.display())]
    Directory(PathBuf),
    #[error("{}: is no directory", .0.display())]
    NoDirectory(PathBuf),
    #[error("{}: is a block device", .0.display())]
    BlockDevice(PathBuf),
    #[error("{}: is {kind}", path.display())]
    NoFile { path: PathBuf, kind: &'static str },
    #[error("{name}: has {disks} disks, which don't go into one file")]
    Several { name: String, disks: usize },
    #[error("{name}: number of its disks: {disks}, number of devices named: {devices}")]
    Devices { name: String, disks: usize, devices: usize },
    #[error("{}: holds {holds}", path.display())]
    Holds { path: PathBuf, holds: &'static str },
    #[error("{0}")]
    Failed(Failure),
}

impl From<Failure> for PlaceError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Final places of a conversion's files.
#[derive(Debug, Default)]
pub struct Placed {
    /// One path for each disk, in the report's order.
    pub disks: Vec<PathBuf>,
    /// The files of platforms.
    pub emitted: Vec<PathBuf>,
}

/// Which output is wanted where.
#[derive(Debug)]
pub struct Target<'a> {
    pub directory: &'a Path,
    /// Name of the only disk; refused for several.
    pub file: Option<&'a Path>,
    pub stem: &'a str,
    /// Whether existing files are replaced.
    pub replace: bool,
    /// Platforms that files are written for.
    pub emit: &'a Emit,
    /// Settings of the machine in them.
    pub domain: &'a DomainOptions,
}

/// Refuses what an output never replaces, whatever is asked for: directories, devices, FIFOs and sockets, also behind a
/// link. A link to a file, or to nothing, is replaced itself.
///
/// # Errors
/// `Directory`, `BlockDevice` or `NoFile`.
pub fn check_replaceable(path: &Path) -> Result<(), PlaceError> {
    let kind = match stat(path) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(_) if path.as_os_str().as_bytes().ends_with(b"/") => {
            return Err(PlaceError::NoFile { path: path.to_owned(), kind: "the name of a directory" });
        }
        Err(_) => return Ok(()),
    };
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(PlaceError::Directory(path.to_owned())),
        FileType::BlockDevice => Err(PlaceError::BlockDevice(path.to_owned())),
        FileType::CharacterDevice => Err(PlaceError::NoFile { path: path.to_owned(), kind: "a character device" }),
        kind => Err(PlaceError::NoFile { path: path.to_owned(), kind: describe_kind(kind) }),
    }
}

/// Refuses an output directory that is something else, or lies in something else.
///
/// # Errors
/// `NoDirectory`, with the path that is none.
pub fn check_directory(directory: &Path) -> Result<(), PlaceError> {
    for above in directory.ancestors().filter(|above| !above.as_os_str().is_empty()) {
        match above.metadata() {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => return Err(PlaceError::NoDirectory(above.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && above.is_symlink() => {
                return Err(PlaceError::NoDirectory(above.to_owned()));
            }
            // It is not there yet, or only what it lies in tells.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Refuses names that are taken before an hour's work is done for them; for names that are free now, [`place`] decides.
/// Also refuses what is never replaced ([`check_replaceable`]), and the source itself.
///
/// # Errors
/// As [`place`].
pub fn check(target: &Target<'_>, group: &Group, names: &[String]) -> Result<(), PlaceError> {
    if target.file.is_some() && names.len() > 1 {
        return Err(PlaceError::Several { name: group.primary.name().to_owned(), disks: names.len() });
    }
    let disks = names.iter().map(|name| target.disk(name));
    for path in disks.chain(target.emitted()) {
        if path.symlink_metadata().is_err() {
            continue;
        }
        if group.holds(&path) {
            return Err(PlaceError::Source(path));
        }
        check_replaceable(&path)?;
        if !target.replace {
            return Err(PlaceError::Taken(path));
        }
    }
    Ok(())
}

impl Target<'_> {
    fn disk(&self, name: &str) -> PathBuf {
        self.file.map_or_else(|| self.directory.join(name), Path::to_path_buf)
    }

    /// Places of the files of platforms, as far as they are known before: those of one machine.
    fn emitted(&self) -> impl Iterator<Item = PathBuf> + '_ {
        emit::names(self.emit, emit::Names::Beside(self.stem)).into_iter().map(|name| self.directory.join(name))
    }
}

/// Moves the finished disks from `scratch` to their places, and writes the files of platforms; `metadata` then has their new names.
/// On an error nothing new is left.
///
/// # Errors
/// `Taken` where a name is taken and `replace` is off, otherwise the system's error; in both cases what was replaced is
/// restored.
pub fn place(scratch: &Path, metadata: &mut Metadata, target: &Target<'_>) -> Result<Placed, PlaceError> {
    let mut placed = Placed::default();
    let mut moves = Vec::new();
    for disk in &mut metadata.disks {
        let path = target.disk(&disk.file);
        moves.push((scratch.join(&disk.file), path.clone()));
        if let Some(name) = path.file_name() {
            let name = name.to_string_lossy().into_owned();
            let of_machines = metadata.machines.iter_mut().flat_map(|machine| &mut machine.disks);
            for of_machine in of_machines.filter(|of_machine| of_machine.file == disk.file) {
                of_machine.file.clone_from(&name);
            }
            disk.file = name;
        }
        placed.disks.push(path);
    }
    let absolute = fs::canonicalize(target.directory).map_err(|e| output_failure(target.directory, &e))?;
    let names = emit::Names::Beside(target.stem);
    for file in emit::files(metadata, target.emit, target.domain, &absolute.to_string_lossy(), names) {
        let made = scratch.join(&file.name);
        fs::write(&made, file.text).map_err(|e| output_failure(&made, &e))?;
        let path = target.directory.join(file.name);
        moves.push((made, path.clone()));
        placed.emitted.push(path);
    }
    move_all(&moves, target.replace)?;
    sync_directory(target.directory)?;
    Ok(placed)
}

fn move_all(moves: &[(PathBuf, PathBuf)], replace: bool) -> Result<(), PlaceError> {
    for (n, (from, to)) in moves.iter().enumerate() {
        if let Err(error) = move_one(from, to, replace) {
            for (from, to) in &moves[..n] {
                // The new files go back into the scratch directory, which is removed as a whole; the replaced ones
                // return from there.
                let _ = if from.symlink_metadata().is_ok() {
                    renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE).map_err(io::Error::from)
                } else {
                    fs::rename(to, from)
                };
            }
            return Err(match error.kind() {
                io::ErrorKind::AlreadyExists => PlaceError::Taken(to.clone()),
                _ => output_failure(to, &error).into(),
            });
        }
    }
    Ok(())
}

/// Moves `from` to `to`. A replaced file then lies at `from`, so that it can be restored.
fn move_one(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) if replace => {}
        moved => return Ok(moved?),
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        // A file system that can't exchange names replaces the file for good.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to),
        swapped => Ok(swapped?),
    }
}
