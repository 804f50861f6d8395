//! Where a conversion by hand puts its output: made in a hidden scratch directory beside its final place, then renamed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::output::{output_failure, sync_directory};
use crate::conversion::domain::domain_xml;
use crate::conversion::options::DomainOptions;
use crate::conversion::{Failure, Metadata, OutputFormat, Phase, Reason};

/// Final places of a conversion's files.
#[derive(Debug, Default)]
pub struct Placed {
    /// One path for each disk, in the report's order.
    pub disks: Vec<PathBuf>,
    pub domain: Option<PathBuf>,
}

/// What is wanted where.
#[derive(Debug)]
pub struct Target<'a> {
    pub directory: &'a Path,
    /// Name of the only disk; refused for several.
    pub file: Option<&'a Path>,
    pub stem: &'a str,
    /// Whether existing files are replaced.
    pub replace: bool,
    /// Settings of the libvirt domain to write, if any.
    pub domain: Option<&'a DomainOptions>,
}

/// A hidden directory beside the final place, removed with whatever is left in it.
///
/// # Errors
/// What the system says of the directory.
pub fn scratch(directory: &Path) -> Result<TempDir, Failure> {
    tempfile::Builder::new().prefix(".hyper2kvm-").tempdir_in(directory).map_err(|e| output_failure(directory, &e))
}

/// Refuses names that are taken before an hour's work is done for them. [`place`] decides; this only saves time.
///
/// # Errors
/// As [`place`].
pub fn check_free(target: &Target<'_>, format: OutputFormat) -> Result<(), Failure> {
    let only = target.directory.join(format!("{}.{format}", target.stem));
    let path = target.file.unwrap_or(&only);
    if !target.replace && path.symlink_metadata().is_ok() {
        return Err(taken_or(path, &io::ErrorKind::AlreadyExists.into()));
    }
    Ok(())
}

/// Moves the finished disks from `scratch` to their places, and writes the domain; `metadata` then has their new names.
/// On an error nothing new is left.
///
/// # Errors
/// `PermissionDenied` where a name is taken and `replace` is off, else what the system says.
pub fn place(scratch: &Path, metadata: &mut Metadata, target: &Target<'_>) -> Result<Placed, Failure> {
    if target.file.is_some() && metadata.disks.len() > 1 {
        let message = format!("{}: has {} disks", metadata.source.name, metadata.disks.len());
        let failure = Failure::in_phase(Reason::UnsupportedFormat, Phase::ArgumentPreparation, message);
        return Err(Failure { suggestion: "Use --output-dir DIR instead of -o FILE".to_owned(), ..failure });
    }
    let mut placed = Placed::default();
    let mut moves = Vec::new();
    for disk in &mut metadata.disks {
        let path = target.file.map_or_else(|| target.directory.join(&disk.file), Path::to_path_buf);
        moves.push((scratch.join(&disk.file), path.clone()));
        if let Some(name) = path.file_name() {
            disk.file = name.to_string_lossy().into_owned();
        }
        placed.disks.push(path);
    }
    if let Some(domain) = target.domain {
        let path = target.directory.join(format!("{}.xml", target.stem));
        let absolute = fs::canonicalize(target.directory).map_err(|e| output_failure(target.directory, &e))?;
        let made = scratch.join("domain.xml");
        let xml = domain_xml(metadata, domain, &absolute.to_string_lossy());
        fs::write(&made, xml).map_err(|e| output_failure(&made, &e))?;
        moves.push((made, path.clone()));
        placed.domain = Some(path);
    }
    move_all(&moves, target.replace)?;
    sync_directory(target.directory).map_err(|e| output_failure(target.directory, &e))?;
    Ok(placed)
}

fn move_all(moves: &[(PathBuf, PathBuf)], replace: bool) -> Result<(), Failure> {
    for (n, (from, to)) in moves.iter().enumerate() {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        if let Err(error) = renameat_with(CWD, from, CWD, to, flags) {
            if !replace {
                for (from, to) in &moves[..n] {
                    // Back into the scratch directory, which goes away as a whole.
                    let _ = fs::rename(to, from);
                }
            }
            return Err(taken_or(to, &io::Error::from(error)));
        }
    }
    Ok(())
}

fn taken_or(path: &Path, error: &io::Error) -> Failure {
    if error.kind() != io::ErrorKind::AlreadyExists {
        return output_failure(path, error);
    }
    let failure = Failure::in_phase(
        Reason::PermissionDenied,
        Phase::OutputDirectoryCreation,
        format!("{}: exists already", path.display()),
    );
    Failure { suggestion: "Use another name, or --force to replace it".to_owned(), ..failure }
}
