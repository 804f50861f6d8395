// SPDX-License-Identifier: Apache-2.0
//! The files of one artifact, opened once, and never by a name that an image gives.

mod alike;

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{ReadWriteFlags, preadv2};

use self::alike::Alike;
use super::contain;
use crate::conversion::contract::MAX_EXTENTS;
use crate::conversion::{Claim, Failure, Phase, Reason, Remedy, file_name};
use crate::disk::Region;
use crate::disk::descriptor::ovf::chunk_name;
use crate::disk::descriptor::{self, References};
use crate::files::store::open_beneath;

/// An artifact's files, open for reading, and their status when they were opened.
#[derive(Debug)]
pub struct Group {
    pub primary: Region,
    pub siblings: Vec<Region>,
    /// Siblings that are further disks of the machine, which no OVF names.
    pub disks: Vec<Region>,
    opened: Vec<Opened>,
}

/// Hyper-V's settings of machines, as they lie beside a VHD or VHDX.
#[derive(Debug, Default)]
pub struct Settings(Vec<Opened>);

impl Settings {
    /// Most files that are opened, and entries of a directory that are looked at.
    const MAX: usize = 16;
    const MAX_ENTRIES: usize = 4096;

    /// Opens the settings beside `source`: in its own directory, and in `Virtual Machines` there or a level above, where
    /// exports have them. They are no part of the disk: what can't be opened is left out.
    #[must_use]
    pub fn beside(source: &Path) -> Self {
        let name = source.to_string_lossy();
        if !["vhd", "vhdx"].iter().any(|wanted| file_name::extension(&name).eq_ignore_ascii_case(wanted)) {
            return Self::default();
        }
        let parent = source.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = "Virtual Machines";
        let mut found = Vec::new();
        for place in [parent.to_owned(), parent.join(folder), parent.join("..").join(folder)] {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(directory) = openat(CWD, &place, flags, Mode::empty()) else { continue };
            let Ok(entries) = rustix::fs::Dir::read_from(&directory) else { continue };
            let names = entries.take(Self::MAX_ENTRIES).flatten().map(|entry| entry.file_name().to_bytes().to_vec());
            let mut names: Vec<_> = names.filter_map(|name| String::from_utf8(name).ok()).collect();
            names.retain(|name| descriptor::hyperv::is_settings(name));
            names.sort();
            found.extend(names.iter().filter_map(|name| open_regular(&directory, OsStr::new(name)).ok()));
        }
        found.truncate(Self::MAX);
        Self(found)
    }
}

#[derive(Debug)]
struct Opened {
    name: String,
    file: Arc<File>,
    /// The same file for direct I/O, if its file system supports that and the file is not in memory anyway.
    direct: Option<Arc<File>>,
    stamp: Stamp,
}

/// What changes when somebody writes to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    mtime_ns: i128,
    ctime_ns: i128,
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        // The fields' widths differ between architectures.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as i64,
            mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            ctime_ns: i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec),
        }
    }

    /// What changes with the content, unless its writer sets the time back.
    const fn content(&self) -> (u64, u64, i64, i128) {
        (self.device, self.inode, self.size, self.mtime_ns)
    }
}

impl Group {
    /// Opens the members of `claim` in its directory.
    ///
    /// # Errors
    /// `SourceMissing` or `SourceChanged` where a member is not what was claimed, otherwise the system's error.
    pub fn open_claim(directory: &OwnedFd, claim: &Claim) -> Result<Self, Failure> {
        make_room(&claim.primary, claim.members.len())?;
        let mut opened = Vec::with_capacity(claim.members.len());
        for member in &claim.members {
            let file = open_below(directory, &member.name)?;
            let stamp = file.stamp;
            let claimed = (member.size_bytes, member.mtime_ns, member.inode);
            if (u64::try_from(stamp.size).unwrap_or(0), stamp.mtime_ns, stamp.inode) != claimed {
                return Err(changed(&member.name, "it was claimed"));
            }
            opened.push(file);
        }
        if opened.first().is_none_or(|first| first.name != claim.primary) {
            return Err(Failure::new(Reason::Internal, "claim.json does not begin with its primary member"));
        }
        Ok(Self::from_opened(opened, &claim.disks))
    }

    /// Opens `source` and, where it is a descriptor, the files beside it that it names; of an OVF, those of the
    /// deployment option called `option`, or else of its default one.
    ///
    /// # Errors
    /// As [`Group::open_claim`]; `MissingMember` and `UnsafeReference` as the descriptor's rules say.
    pub fn open_beside(source: &Path, option: Option<&str>) -> Result<Self, Failure> {
        let (directory, first) = open_first(source)?;
        let mut opened = vec![first];
        let named = members_named_by(&opened[0], option)?;
        make_room(&opened[0].name, 2 + named.required.len() + named.optional.len())?;
        let mut alike = None;
        for name in &named.required {
            if open_spelled(&directory, &named, name, &mut opened)? {
                continue;
            }
            let alike = alike.get_or_insert_with(|| Alike::list(&directory)).of(&named, name);
            match alike {
                [only] => {
                    if !opened.iter().any(|file| file.name == *only) {
                        opened.push(open_regular(&directory, OsStr::new(only))?);
                    }
                }
                several => return Err(missing(&opened[0].name, name, several)),
            }
        }
        for name in &named.optional {
            match open_regular(&directory, OsStr::new(name)) {
                Ok(file) => opened.push(file),
                Err(failure) if is_manifest(name) && failure.reason != Reason::SourceMissing => return Err(failure),
                // Nothing reads it: whatever it is, the disks can be converted.
                Err(_) => {}
            }
        }
        let name = &opened[0].name;
        if file_name::extension(name).eq_ignore_ascii_case("vmdk") {
            // The machine that VMware runs it in. It is no part of the disk: one that can't be read is left out.
            opened.extend(open_regular(&directory, OsStr::new(&format!("{}.vmx", file_name::stem(name)))).ok());
        }
        Ok(Self::from_opened(opened, &[]))
    }

    /// Adds Hyper-V's settings, which were found beside the source.
    #[must_use]
    pub fn with(mut self, settings: Settings) -> Self {
        self.siblings.extend(settings.0.iter().map(Opened::region));
        self.opened.extend(settings.0);
        self
    }

    /// Opens `source` alone, and reads nothing.
    ///
    /// # Errors
    /// As [`Group::open_beside`] for the source itself.
    pub fn check(source: &Path) -> Result<(), Failure> {
        open_first(source).map(drop)
    }

    fn from_opened(opened: Vec<Opened>, disks: &[String]) -> Self {
        let mut regions = opened.iter().map(Opened::region);
        let primary = regions.next().expect("both constructors open the primary first");
        let siblings = regions.collect();
        let is_disk = |file: &&Opened| disks.contains(&file.name);
        let disks = opened.iter().skip(1).filter(is_disk).map(Opened::region).collect();
        Self { primary, siblings, disks, opened }
    }

    /// Sum of the files' sizes in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.primary.len() + self.siblings.iter().map(Region::len).sum::<u64>()
    }

    /// Whether `path` is one of the files.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        let Ok(stat) = rustix::fs::stat(path) else { return false };
        let there = Stamp::of(&stat);
        self.opened.iter().any(|o| (o.stamp.device, o.stamp.inode) == (there.device, there.inode))
    }

    /// Fails when the content of a file has changed since it was opened, as far as size and time show.
    ///
    /// # Errors
    /// `SourceChanged`, naming the file.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        for file in &self.opened {
            if file.now()?.content() != file.stamp.content() {
                return Err(changed(&file.name, "it was opened"));
            }
        }
        Ok(())
    }

    /// Whether the status of a file changed since it was opened: its mode, owner or links changed, or somebody changed
    /// its content and set its time back.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn was_touched(&self) -> Result<bool, Failure> {
        for file in &self.opened {
            if file.now()? != file.stamp {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Opened {
    /// The file's present stamp.
    fn now(&self) -> Result<Stamp, Failure> {
        fstat(self.file.as_fd()).map(|stat| Stamp::of(&stat)).map_err(|e| open_failure(&self.name, &e.into()))
    }

    fn region(&self) -> Region {
        let len = u64::try_from(self.stamp.size).unwrap_or(0);
        // Descriptors name files by their base names, also those in folders.
        let name = self.name.rsplit('/').next().unwrap_or(&self.name);
        Region::whole(Arc::clone(&self.file), name, len).also_direct(self.direct.clone())
    }
}

/// Raises the limit of open files for an artifact of `files` files.
fn make_room(primary: &str, files: usize) -> Result<(), Failure> {
    contain::raise_open_files(files).map_err(|limit| {
        let message = format!(
            "{primary}: has {files} files, and this process may open {limit}: raise the limit of open files \
             (ulimit -n, LimitNOFILE= of the service)"
        );
        Failure::in_phase(Reason::Internal, Phase::Initialization, message).with_remedy(Remedy::RaiseOpenFiles)
    })
}

/// The files that a descriptor names; none for a disk that stands alone.
fn members_named_by(primary: &Opened, option: Option<&str>) -> Result<References, Failure> {
    let region = primary.region();
    let head = region.len().min(descriptor::MAX_BYTES as u64 + 1);
    let mut text = vec![0; usize::try_from(head).expect("a descriptor fits into memory")];
    region.read_exact_at(&mut text, 0).map_err(|e| Failure::from(&e))?;
    descriptor::references(&primary.name, &text, option).map_err(|e| Failure::from(&e))
}

/// Opens a regular file by its path below `directory`, as [`open_regular`] does.
fn open_below(directory: &OwnedFd, path: &str) -> Result<Opened, Failure> {
    let Some((below, name)) = path.rsplit_once('/') else { return open_regular(directory, OsStr::new(path)) };
    let failure = |e: rustix::io::Errno| open_failure(path, &e.into());
    let mut folder = directory.try_clone().map_err(|e| open_failure(path, &e))?;
    for name in below.split('/') {
        folder = open_beneath(&folder, OsStr::new(name), OFlags::DIRECTORY).map_err(failure)?;
    }
    let opened = open_regular(&folder, OsStr::new(name))?;
    Ok(Opened { name: path.to_owned(), ..opened })
}

/// Opens a source by hand, and the directory that it lies in.
fn open_first(source: &Path) -> Result<(OwnedFd, Opened), Failure> {
    let Some(name) = source.file_name() else {
        let message = format!("{}: is a directory, not a regular file", source.display());
        return Err(Failure::new(Reason::UnsupportedFormat, message).with_remedy(Remedy::NameImage));
    };
    let by_hand = |error: io::Error, shown: &Path| {
        let is_missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        if is_missing {
            let path = std::path::absolute(source).unwrap_or_else(|_| source.to_owned());
            let message = format!("{}: no such file", path.display());
            return Failure::new(Reason::SourceMissing, message).with_remedy(Remedy::CheckName);
        }
        let failure = open_failure(&shown.display().to_string(), &error);
        let is_denied = failure.reason == Reason::PermissionDenied;
        failure.with_remedy(is_denied.then_some(Remedy::LetRead))
    };
    let parent = source.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = openat(CWD, parent, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| by_hand(e.into(), parent))?;
    let first = open_regular(&directory, name).map_err(|failure| match failure.reason {
        Reason::SourceMissing => by_hand(io::ErrorKind::NotFound.into(), source),
        Reason::PermissionDenied => failure.with_remedy(Remedy::LetRead),
        _ => failure,
    });
    Ok((directory, first?))
}

/// Opens a regular file that lies directly in `directory`. Follows no link, and never blocks.
fn open_regular(directory: &OwnedFd, name: &OsStr) -> Result<Opened, Failure> {
    let shown = String::from_utf8_lossy(name.as_bytes()).into_owned();
    // Opening a device may do something, and a socket can't be opened.
    if let Ok(found) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        refuse_irregular(&shown, FileType::from_raw_mode(found.st_mode))?;
    }
    let fd = open_beneath(directory, name, OFlags::empty()).map_err(|e| open_failure(&shown, &e.into()))?;
    let stat = fstat(&fd).map_err(|e| open_failure(&shown, &e.into()))?;
    refuse_irregular(&shown, FileType::from_raw_mode(stat.st_mode))?;
    if stat.st_size == 0 {
        return Err(Failure::new(Reason::Truncated, format!("{shown}: the file is empty")));
    }
    let stamp = Stamp::of(&stat);
    let direct =
        if is_in_memory(&fd, stat.st_size) { None } else { open_beneath(directory, name, OFlags::DIRECT).ok() };
    let direct = direct.filter(|direct| fstat(direct).is_ok_and(|stat| Stamp::of(&stat) == stamp));
    let shared = |fd| Arc::new(File::from(fd));
    Ok(Opened { name: shown, file: shared(fd), direct: direct.map(shared), stamp })
}

/// Whether most of a file is in the page cache, because it was written a moment ago.
fn is_in_memory(file: &OwnedFd, size: i64) -> bool {
    places_in_memory(file, size) > 12
}

/// How many of 16 places of a file are in the page cache. Reads a byte at each, and never blocks.
fn places_in_memory(file: &OwnedFd, size: i64) -> usize {
    const PLACES: u64 = 16;
    let stride = (u64::try_from(size).unwrap_or(0) / PLACES).max(1);
    // Linux reads what is not there: whoever looks at the same places next would find them all.
    let random = RandomState::new();
    let found = |place| {
        let at = stride * place + random.hash_one(place) % stride;
        preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT) == Ok(1)
    };
    (0..PLACES).filter(|place| found(*place)).count()
}

/// Opens the file that `name` stands for, if it is there: under this name, under another spelling, or in chunks.
fn open_spelled(
    directory: &OwnedFd,
    named: &References,
    name: &str,
    opened: &mut Vec<Opened>,
) -> Result<bool, Failure> {
    for spelling in named.spellings(name) {
        if opened.iter().any(|file| file.name == spelling) {
            return Ok(true);
        }
        match open_regular(directory, OsStr::new(spelling)) {
            Ok(file) => {
                opened.push(file);
                return Ok(true);
            }
            Err(failure) if failure.reason == Reason::SourceMissing => {}
            Err(failure) => return Err(failure),
        }
    }
    let mut chunks = Vec::new();
    for number in 0..MAX_EXTENTS as u64 {
        match open_regular(directory, OsStr::new(&chunk_name(name, number))) {
            Ok(file) => chunks.push(file),
            Err(failure) if failure.reason == Reason::SourceMissing => break,
            Err(failure) => return Err(failure),
        }
        make_room(name, opened.len() + chunks.len())?;
    }
    let is_there = !chunks.is_empty();
    opened.extend(chunks);
    Ok(is_there)
}

/// The failure of a descriptor that names a file which is not there, or not by that name.
fn missing(descriptor: &str, name: &str, alike: &[String]) -> Failure {
    let message = format!("{descriptor}: names {name:?}, which is not beside it");
    if alike.is_empty() {
        return Failure::new(Reason::MissingMember, message);
    }
    let message = format!(
        "{message}, and {} files are called so but for case or accents; rename the one that is meant",
        alike.len()
    );
    Failure::new(Reason::MissingMember, message).with_remedy(Remedy::InMessage)
}

fn is_manifest(name: &str) -> bool {
    file_name::extension(name).eq_ignore_ascii_case("mf")
}

fn refuse_irregular(shown: &str, kind: FileType) -> Result<(), Failure> {
    let remedy = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => Remedy::NameTarget,
        FileType::Directory => Remedy::NameImage,
        _ => Remedy::CopyToFile,
    };
    let message = format!("{shown}: is {}, not a regular file", describe_kind(kind));
    Err(Failure::new(Reason::UnsupportedFormat, message).with_remedy(remedy))
}

/// What something is that is no regular file.
pub(super) const fn describe_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::Symlink => "a symbolic link",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    }
}

fn changed(name: &str, since: &str) -> Failure {
    Failure::new(Reason::SourceChanged, format!("{name}: its size, time or inode changed since {since}"))
}

fn open_failure(name: &str, error: &io::Error) -> Failure {
    let loops = rustix::io::Errno::LOOP.raw_os_error();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Reason::SourceMissing, format!("{name}: no such file")),
        io::ErrorKind::PermissionDenied => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let message = format!("{name}: cannot open it as uid {uid}, gid {gid}: {error}");
            Failure::in_phase(Reason::PermissionDenied, Phase::Initialization, message)
        }
        _ if error.raw_os_error() == Some(loops) => {
            let message = format!("{name}: is a symbolic link, not a regular file");
            Failure::new(Reason::UnsupportedFormat, message).with_remedy(Remedy::NameTarget)
        }
        _ => Failure::new(Reason::SourceIO, format!("{name}: cannot open: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{Advice, fadvise, fstatfs};

    use super::*;

    const TMPFS: i64 = 0x0102_1994;

    #[test]
    fn a_file_is_in_memory_until_its_pages_are_dropped() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 16 << 20]).unwrap();
        file.sync_all().unwrap();
        let fd = OwnedFd::from(file);
        assert!(is_in_memory(&fd, 16 << 20));
        let stays = fstatfs(&fd).unwrap().f_type == TMPFS;
        // The kernel keeps pages that it is using at this moment, and with them what lies beside.
        let since = std::time::Instant::now();
        while !stays && places_in_memory(&fd, 16 << 20) > 0 && since.elapsed().as_secs() < 20 {
            fadvise(&fd, 0, None, Advice::DontNeed).unwrap();
        }
        // Each look makes the kernel read, and the next one is not taken in by it.
        for _ in 0..4 {
            assert_eq!(is_in_memory(&fd, 16 << 20), stays);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
