// SPDX-License-Identifier: Apache-2.0
//! Makes the planned changes in the mounted guest: each file anew under another name, then renamed. What was there is kept
//! as `NAME.hyper2kvm`.

mod security;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::mounted::{Error, Mounted, Place, Result};
use super::plan::{Act, Planned, bounded};
use crate::conversion::guest::fix::Change;

/// End of the name under which a file is kept as it was. There is one: a later fix takes its place.
pub const KEPT: &str = ".hyper2kvm";
/// Name of a file that is not whole yet, in the directory of its later name.
const UNFINISHED: &str = ".hyper2kvm.unfinished";
/// Longest value of an attribute, by Linux' own limit, and of the list of names.
const MAX_ATTRIBUTE: usize = 64 << 10;
/// A file's security descriptor, as ntfs-3g has it.
const SECURITY: &str = "system.ntfs_acl";
/// The label that `SELinux` goes by.
const LABEL: &str = "security.selinux";

/// Makes one change.
pub fn apply(files: &Mounted, planned: &Planned) -> Result<Change> {
    let Planned { fix, path, act } = planned;
    if let Some((above, _)) = path.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
        let is_of_windows = matches!(act, Act::Install(_));
        let new = if is_of_windows { missing(files, above) } else { Vec::new() };
        files.make_directory(above)?;
        for directory in new {
            let handle = files.directory(directory)?;
            let wrong = |source| Error { act: "protect", path: directory.to_owned(), source };
            set_security(&handle, &security::descriptor()).map_err(wrong)?;
        }
    }
    let place = files.place(path)?;
    let wrong = |act| {
        let path = path.clone();
        move |source: io::Error| Error { act, path, source }
    };
    let before = place.length()?.is_some();
    if let Act::Edit(content) = act {
        edit(&place, content).map_err(wrong("edit"))?;
        let backup = Some(bounded(&format!("{}{KEPT}", place.path)));
        return Ok(Change { fix: *fix, file: bounded(&place.path), backup });
    }
    if *act != Act::Remove {
        write(files, &place, act, before).map_err(wrong("write"))?;
    }
    let kept = format!("{}{KEPT}", place.name);
    if before {
        rename(&place, &place.name, &kept).map_err(wrong("keep"))?;
    }
    if *act != Act::Remove {
        rename(&place, UNFINISHED, &place.name).map_err(wrong("rename"))?;
    }
    fs::fsync(place.directory()).map_err(io::Error::from).map_err(wrong("sync the directory of"))?;
    let backup = before.then(|| bounded(&format!("{}{KEPT}", place.path)));
    Ok(Change { fix: *fix, file: bounded(&place.path), backup })
}

fn rename(place: &Place, from: &str, to: &str) -> io::Result<()> {
    Ok(fs::renameat(place.directory(), from, place.directory(), to)?)
}

/// Writes the whole file under its unfinished name, with owner, mode and attributes of what it replaces.
fn write(files: &Mounted, place: &Place, act: &Act, before: bool) -> io::Result<()> {
    let mut file = create(place)?;
    let old = before.then(|| old(place)).transpose()?;
    match act {
        Act::Write(content) | Act::Install(content) => file.write_all(content)?,
        Act::Prepend(prefix) => {
            file.write_all(prefix)?;
            let mut old = old.as_ref().ok_or(io::ErrorKind::NotFound)?;
            io::copy(&mut old, &mut file)?;
        }
        Act::Append(more) => {
            let mut old = old.as_ref().ok_or(io::ErrorKind::NotFound)?;
            io::copy(&mut old, &mut file)?;
            file.write_all(more)?;
        }
        Act::CopyOf(other) => {
            let other = files.file(other).map_err(|error| error.source)?;
            io::copy(&mut other.ok_or(io::ErrorKind::NotFound)?, &mut file)?;
        }
        Act::Edit(_) | Act::Remove => {}
    }
    match &old {
        Some(old) => take_over(old, &file)?,
        None => begin(place, &file)?,
    }
    if matches!(act, Act::Install(_)) {
        let descriptor = old.as_ref().map_or_else(|| Ok(security::descriptor()), security)?;
        set_security(&file, &descriptor)?;
    }
    fs::fsync(&file)?;
    Ok(())
}

/// Writes `content` into the file that is there, once a copy of it is whole.
fn edit(place: &Place, content: &[u8]) -> io::Result<()> {
    let (mut old, mut copy) = (old(place)?, create(place)?);
    io::copy(&mut old, &mut copy)?;
    if let Ok(descriptor) = security(&old) {
        set_security(&copy, &descriptor)?;
    }
    fs::fsync(&copy)?;
    rename(place, UNFINISHED, &format!("{}{KEPT}", place.name))?;
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(place.directory(), &*place.name, flags, Mode::empty())?);
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    file.sync_all()?;
    Ok(fs::fsync(place.directory())?)
}

/// The directories of `path` that are not there yet, the highest first.
fn missing<'a>(files: &Mounted, path: &'a str) -> Vec<&'a str> {
    let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
    ends.map(|end| &path[..end]).filter(|directory| !files.is_directory(directory)).collect()
}

/// The security of a file on NTFS, as ntfs-3g tells it.
fn security(file: &File) -> io::Result<Vec<u8>> {
    let mut value = vec![0; MAX_ATTRIBUTE];
    let len = fs::fgetxattr(file, SECURITY, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn set_security(file: &impl AsFd, descriptor: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(file, SECURITY, descriptor, XattrFlags::empty())?)
}

/// A new file under the unfinished name.
fn create(place: &Place) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = || fs::openat(place.directory(), UNFINISHED, flags, Mode::from_raw_mode(0o600));
    let created = match create() {
        Err(Errno::EXIST) => {
            fs::unlinkat(place.directory(), UNFINISHED, AtFlags::empty())?;
            create()
        }
        created => created,
    };
    Ok(File::from(created?))
}

/// The file that is replaced, open for reading.
fn old(place: &Place) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(place.directory(), &*place.name, flags, Mode::empty())?))
}

/// Gives `file` the owner, mode and attributes of `old`.
fn take_over(old: &File, file: &File) -> io::Result<()> {
    let stat = fs::fstat(old)?;
    ignore_unsupported(fs::fchown(file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))))?;
    let mut names = vec![0; MAX_ATTRIBUTE];
    let len = match fs::flistxattr(old, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        copy_attribute(old, file, name)?;
    }
    // Last: a change of owner takes set-user-ID away.
    ignore_unsupported(fs::fchmod(file, Mode::from_raw_mode(stat.st_mode)))
}

/// Gives a new file the mode of configuration, and the label of a neighbour.
fn begin(place: &Place, file: &File) -> io::Result<()> {
    ignore_unsupported(fs::fchmod(file, Mode::from_raw_mode(0o644)))?;
    let entries = fs::Dir::read_from(place.directory())?;
    let regular = entries.flatten().take(1000).filter(|entry| entry.file_type() == fs::FileType::RegularFile);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let names = regular.filter(|entry| !entry.file_name().to_bytes().starts_with(UNFINISHED.as_bytes()));
    let neighbour =
        names.into_iter().find_map(|entry| fs::openat(place.directory(), entry.file_name(), flags, Mode::empty()).ok());
    match neighbour {
        Some(neighbour) => copy_attribute(&neighbour, file, LABEL.as_bytes()),
        None => copy_attribute(&place.directory(), file, LABEL.as_bytes()),
    }
}

/// Copies one attribute, if `from` has it.
fn copy_attribute(from: &impl AsFd, to: &File, name: &[u8]) -> io::Result<()> {
    let mut value = vec![0; MAX_ATTRIBUTE];
    match fs::fgetxattr(from, name, &mut value[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        len => Ok(fs::fsetxattr(to, name, &value[..len?], XattrFlags::empty())?),
    }
}

/// FAT has neither owners nor modes.
fn ignore_unsupported(done: rustix::io::Result<()>) -> io::Result<()> {
    match done {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests;
