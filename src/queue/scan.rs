// SPDX-License-Identifier: Apache-2.0
//! One bounded listing of the queue directory, and what each entry is to us.

use std::ffi::OsStr;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

use crate::conversion::contract::{CLAIM_FILE, UNFINISHED};
use crate::conversion::file_name::is_taken;
use crate::conversion::{Member, Stamp};
use crate::files::volume;

mod refusal;

pub use refusal::Refusal;

/// Entries looked at in one listing. A larger directory is read in part, and that is reported.
pub const MAX_ENTRIES: usize = 200_000;

/// How VMware calls the file of a disk's changed blocks: `vm-ctk.vmdk`.
const CHANGE_TRACKING: &str = "-ctk.vmdk";

/// How files end that a program keeps beside a download for as long as it is not whole: aria2, axel, lftp.
const DOWNLOADS: [&str; 3] = [".aria2", ".st", ".lftp-pget-status"];

/// Directories that file systems and file servers make for themselves.
const SYSTEM: [&str; 5] = ["lost+found", "System Volume Information", "$RECYCLE.BIN", "@eaDir", "#recycle"];

/// What kind of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Regular,
    Symlink,
    Directory,
    Fifo,
    Socket,
    Device,
}

/// A file's name; of a file in a folder its path from the queue directory. Shared, because everything that is known of ten thousand waiting files is known by name.
pub type Name = Arc<str>;

/// One entry of the queue directory, as it was when looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i128,
    pub inode: u64,
    pub device: u64,
}

impl Entry {
    /// What a claim remembers of it.
    #[must_use]
    pub fn member(&self) -> Member {
        Member {
            name: self.name.as_ref().to_owned(),
            size_bytes: self.size,
            mtime_ns: self.mtime_ns,
            inode: self.inode,
            alone: None,
        }
    }

    /// Its state.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { size_bytes: self.size, mtime_ns: self.mtime_ns, inode: self.inode }
    }

    /// The entry called `name`, of which the system says this.
    #[must_use]
    pub fn of(name: &str, found: &Metadata) -> Self {
        Self {
            name: name.into(),
            kind: kind(found.file_type()),
            size: found.len(),
            mtime_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
            ctime_ns: volume::changed_at(found.ino(), nanoseconds(found.ctime(), found.ctime_nsec())),
            inode: found.ino(),
            device: found.dev(),
        }
    }
}

/// What an entry is to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A regular file with a disk's extension: to be settled and converted.
    Candidate,
    /// Another regular file: of interest only where a descriptor names it, or as an OVF's manifest.
    Companion,
    /// A directory: one machine.
    Folder,
    /// An entry that is never converted.
    Refused(Refusal),
    /// Left alone: hidden, an upload under way, or nothing of ours.
    Ignored,
}

/// An entry that was refused, for the report that is made once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// Its name; bytes that are no UTF-8 are shown as U+FFFD.
    pub name: String,
    pub inode: u64,
    pub refusal: Refusal,
}

/// What one look at the directory found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Candidates and companions, in the order of their names.
    pub entries: Vec<Entry>,
    /// Folders, in the order of their names.
    pub folders: Vec<Entry>,
    /// What is refused, in the order of their names.
    pub refused: Vec<Refused>,
    /// Whether there was more than [`MAX_ENTRIES`].
    pub is_partial: bool,
}

/// Lists a directory, not recursively, without opening or following anything in it.
pub fn list(dir: &Path) -> io::Result<Listing> {
    list_at_most(dir, MAX_ENTRIES)
}

fn list_at_most(dir: &Path, limit: usize) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let device = fs::metadata(dir)?.dev();
    for (n, entry) in fs::read_dir(dir)?.enumerate() {
        if n == limit {
            listing.is_partial = true;
            break;
        }
        let entry = entry?;
        let name = entry.file_name();
        if is_left_alone(name.as_bytes()) {
            continue;
        }
        let found = match entry.metadata() {
            Ok(found) => found,
            // Moved away since the directory was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        match name.to_str() {
            Some(name) => {
                let entry = Entry::of(name, &found);
                match role(&entry) {
                    Role::Candidate | Role::Companion => listing.entries.push(entry),
                    // A mount point can't be moved.
                    Role::Folder if entry.device != device => {
                        listing.refused.push(Refused {
                            name: name.to_owned(),
                            inode: entry.inode,
                            refusal: Refusal::Mounted,
                        });
                    }
                    Role::Folder => listing.folders.push(entry),
                    Role::Refused(refusal) => {
                        listing.refused.push(Refused { name: name.to_owned(), inode: entry.inode, refusal });
                    }
                    Role::Ignored => {}
                }
            }
            None => listing.refused.push(Refused {
                name: name.to_string_lossy().into_owned(),
                inode: found.ino(),
                refusal: Refusal::Name,
            }),
        }
    }
    listing.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listing.folders.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listing.refused.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(listing)
}

/// Looks at one entry; `None` where it is gone. A network file system is made to ask its server, because what it
/// remembers of a file's size may be a minute old.
pub fn look(dir: &Path, name: &str) -> io::Result<Option<Entry>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let found = match statx(CWD, dir.join(name), flags, StatxFlags::BASIC_STATS) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let kind = match u32::from(found.stx_mode) & 0o170_000 {
        0o100_000 => Kind::Regular,
        0o120_000 => Kind::Symlink,
        0o040_000 => Kind::Directory,
        0o010_000 => Kind::Fifo,
        0o140_000 => Kind::Socket,
        _ => Kind::Device,
    };
    Ok(Some(Entry {
        name: name.into(),
        kind,
        size: found.stx_size,
        mtime_ns: nanoseconds(found.stx_mtime.tv_sec, i64::from(found.stx_mtime.tv_nsec)),
        ctime_ns: volume::changed_at(
            found.stx_ino,
            nanoseconds(found.stx_ctime.tv_sec, i64::from(found.stx_ctime.tv_nsec)),
        ),
        inode: found.stx_ino,
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
    }))
}

/// What this entry is to the queue. An empty file is a candidate until it settled as such
/// ([`Refusal::Empty`]): many uploads begin with one.
#[must_use]
pub fn role(entry: &Entry) -> Role {
    let name = base(&entry.name).as_bytes();
    if is_left_alone(name) {
        return Role::Ignored;
    }
    match entry.kind {
        Kind::Regular if is_disk_name(name) => Role::Candidate,
        Kind::Regular => Role::Companion,
        Kind::Directory if is_of_system(&entry.name) => Role::Ignored,
        Kind::Directory if *entry.name == *CLAIM_FILE => Role::Refused(Refusal::Reserved),
        Kind::Directory => Role::Folder,
        kind => Role::Refused(Refusal::of_kind(kind)),
    }
}

/// Whether a directory of this name is hidden, or made by a file system or file server.
#[must_use]
pub fn is_of_system(name: &str) -> bool {
    name.starts_with('.') || SYSTEM.contains(&name)
}

/// The last part of a path.
#[must_use]
pub fn base(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, base)| base)
}

/// The folder of the queue directory that the file of this path lies in.
#[must_use]
pub fn folder_of(path: &str) -> Option<&str> {
    path.split_once('/').map(|(folder, _)| folder)
}

/// The extension in lower case, without its dot; empty where there is none.
#[must_use]
pub fn extension(name: &str) -> String {
    base(name).rsplit_once('.').map_or_else(String::new, |(_, extension)| extension.to_ascii_lowercase())
}

/// Whether a regular file of this name is a candidate.
#[must_use]
pub fn is_candidate_name(name: &str) -> bool {
    let name = base(name).as_bytes();
    !is_left_alone(name) && is_disk_name(name)
}

fn is_disk_name(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| is_taken(name) && !is_change_tracking(name))
}

/// Whether a file of this name lists changed blocks of a disk, for backups. It is no disk.
#[must_use]
pub fn is_change_tracking(name: &str) -> bool {
    ends(name.as_bytes(), CHANGE_TRACKING)
}

fn is_left_alone(name: &[u8]) -> bool {
    name.starts_with(b".") || ends_unfinished(name)
}

/// Whether the name says that a file is still being received.
#[must_use]
pub fn is_unfinished(name: &str) -> bool {
    ends_unfinished(name.as_bytes())
}

/// The disk whose download a file of this name keeps account of: while that lies there, the disk is not whole.
#[must_use]
pub fn download_of(name: &str) -> Option<&str> {
    let ending = DOWNLOADS.iter().find(|ending| ends(name.as_bytes(), ending))?;
    name.get(..name.len() - ending.len()).filter(|of| is_candidate_name(of))
}

/// Whether the name says that a file is, or keeps account of, an upload under way or what an interrupted one left:
/// `d1.vhdx.part`, `d1.vhdx.aria2`, `.d1.vhdx.Ab12Cd` (rsync), `.in.d1.vhdx.` (`ProFTPD`), `d1.vhdx~`. In a folder nothing
/// else is called so.
#[must_use]
pub fn is_of_upload(name: &str) -> bool {
    let base = base(name);
    let is_hidden_disk = |hidden: &str| {
        let ends = hidden.match_indices('.').map(|(at, _)| at).chain([hidden.len()]);
        // macOS keeps what its file systems know of `vm.raw` in `._vm.raw`.
        !hidden.starts_with('_') && ends.map(|end| &hidden[..end]).any(is_candidate_name)
    };
    is_unfinished(base)
        || download_of(base).is_some()
        || base.strip_suffix('~').is_some_and(is_candidate_name)
        || base.strip_prefix('.').is_some_and(is_hidden_disk)
}

fn ends_unfinished(name: &[u8]) -> bool {
    UNFINISHED.iter().any(|ending| ends(name, ending))
}

/// Whether `name` ends so, in any case.
fn ends(name: &[u8], ending: &str) -> bool {
    name.len().checked_sub(ending.len()).is_some_and(|at| name[at..].eq_ignore_ascii_case(ending.as_bytes()))
}

/// Whether events about this name are of any interest.
#[must_use]
pub fn is_of_interest(name: &OsStr) -> bool {
    !is_left_alone(name.as_bytes())
}

/// A size as the log shows it: `10GB`, `1.5GB`, `512MB`.
#[must_use]
pub(super) fn size_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)];
    match UNITS.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => {
            #[expect(clippy::cast_precision_loss, reason = "one decimal of a size for a person")]
            let value = bytes as f64 / unit as f64;
            format!("{value:.1}{name}")
        }
        None => format!("{bytes}B"),
    }
}

fn kind(file_type: FileType) -> Kind {
    if file_type.is_file() {
        Kind::Regular
    } else if file_type.is_symlink() {
        Kind::Symlink
    } else if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else {
        Kind::Device
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{Mode, mkfifoat};
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn only_files_named_like_disks_are_candidates() {
        let dir = tempdir().unwrap();
        let long = format!("{}.raw", "x".repeat(251));
        let candidates = [
            "UP.VMDK",
            "-rf.ova",
            "a:b,c.ovf",
            "new\nline.Qcow2",
            "vm.vdi",
            "vm.vmdk.gz",
            "vm.tar.xz",
            "vm.zip",
            &long,
        ];
        let companions = ["vm.mf", "notes.txt", "noextension", "notes.txt.gz", "vm.gz", "vm-ctk.vmdk", "VM-CTK.VMDK"];
        let ignored = [".hidden.vmdk", "vm.vmdk.part", "vm.ova.TMP", "vm.raw.filepart", "vm.img.crdownload"];
        for name in candidates.iter().chain(&companions).chain(&ignored) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let listing = list(dir.path()).unwrap();
        let with_role = |wanted| {
            let mut names: Vec<_> =
                listing.entries.iter().filter(|e| role(e) == wanted).map(|e| e.name.as_ref()).collect();
            names.sort_unstable();
            names
        };
        let sorted = |names: &[&str]| {
            let mut names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(with_role(Role::Candidate), sorted(&candidates));
        assert_eq!(with_role(Role::Companion), sorted(&companions));
        assert_eq!(listing.refused, []);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_with_a_reason() {
        let dir = tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("a.vmdk")).unwrap();
        fs::create_dir(at("plain")).unwrap();
        fs::create_dir(at("lost+found")).unwrap();
        fs::create_dir(at(".processing")).unwrap();
        fs::create_dir(at("web01.part")).unwrap();
        fs::create_dir(at("claim.json")).unwrap();
        mkfifoat(CWD, at("b.raw"), Mode::RWXU).unwrap();
        let _socket = UnixListener::bind(at("c.ova")).unwrap();
        symlink("/etc/passwd", at("d.img")).unwrap();
        symlink("/etc/passwd", at("plainlink")).unwrap();
        fs::write(dir.path().join(OsString::from_vec(b"e\xff.vmdk".to_vec())), "x").unwrap();
        fs::write(dir.path().join(OsString::from_vec(b"f\xff.txt".to_vec())), "x").unwrap();
        let listing = list(dir.path()).unwrap();
        assert_eq!(listing.entries, []);
        let folders: Vec<_> = listing.folders.iter().map(|folder| folder.name.as_ref()).collect();
        assert_eq!(folders, ["a.vmdk", "plain"]);
        let refused: Vec<_> = listing.refused.iter().map(|r| (r.name.as_str(), r.refusal)).collect();
        assert_eq!(
            refused,
            [
                ("b.raw", Refusal::Fifo),
                ("c.ova", Refusal::Socket),
                ("claim.json", Refusal::Reserved),
                ("d.img", Refusal::Symlink),
                ("e\u{fffd}.vmdk", Refusal::Name),
                ("f\u{fffd}.txt", Refusal::Name),
                ("plainlink", Refusal::Symlink),
            ]
        );
    }

    #[test]
    fn a_look_at_one_file_says_what_the_listing_says() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("vm.raw"), "12345").unwrap();
        let listed = list(dir.path()).unwrap().entries.remove(0);
        assert_eq!(listed.size, 5);
        assert_eq!(look(dir.path(), "vm.raw").unwrap(), Some(listed));
        assert_eq!(look(dir.path(), "none").unwrap(), None);
        symlink("vm.raw", dir.path().join("link.raw")).unwrap();
        assert_eq!(look(dir.path(), "link.raw").unwrap().unwrap().kind, Kind::Symlink);
    }

    #[test]
    fn a_listing_is_bounded_and_says_so() {
        let dir = tempdir().unwrap();
        for n in 0..5 {
            fs::write(dir.path().join(format!("{n}.raw")), "").unwrap();
        }
        let listing = list_at_most(dir.path(), 3).unwrap();
        assert_eq!((listing.entries.len(), listing.is_partial), (3, true));
        assert!(!list(dir.path()).unwrap().is_partial);
    }
}
