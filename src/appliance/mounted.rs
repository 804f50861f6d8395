// SPDX-License-Identifier: Apache-2.0
//! The guest's files, as the appliance's kernel mounted them. No path and no link leads out of the root.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest file that is read whole. GRUB's configurations have some 10 KiB, a `modules.dep` 700 KiB.
pub const MAX_FILE: u64 = 16 << 20;
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 20_000;
/// Links that the last name of a path may lead over, as Linux allows.
const MAX_LINKS: usize = 40;

/// A path of the guest that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}")]
pub struct Error {
    /// What was tried: `read`, `write`.
    pub act: &'static str,
    /// Path in the guest.
    pub path: String,
    pub source: io::Error,
}

pub type Result<T> = std::result::Result<T, Error>;

/// The files of a guest.
#[derive(Debug)]
pub struct Mounted {
    root: OwnedFd,
}

/// Where a file is, or would be: the directory, and a name in it that is no link.
#[derive(Debug)]
pub struct Place {
    pub directory: OwnedFd,
    pub name: String,
    /// Path in the guest, over no link in its last name.
    pub path: String,
}

impl Mounted {
    /// The guest whose root is mounted on `root`.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root })
    }

    /// Opens `path` as it is, without reading it: a directory to mount on, a file to look at.
    pub fn handle(&self, path: &str) -> Result<OwnedFd> {
        self.open(path, OFlags::PATH).map_err(|source| error("find", path, source))
    }

    /// The regular file `path`, open for reading; `None` where there is none.
    pub fn file(&self, path: &str) -> Result<Option<File>> {
        let wrong = |source: Errno| error("read", path, source);
        // A pipe or a device must not make the open wait.
        let opened = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            opened => opened.map_err(wrong)?,
        };
        let stat = fs::fstat(&opened).map_err(wrong)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(Error { act: "read", path: path.to_owned(), source });
        }
        Ok(Some(File::from(opened)))
    }

    /// The bytes of the regular file `path`; `None` where there is none.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(path)? else { return Ok(None) };
        let wrong = |source| Error { act: "read", path: path.to_owned(), source };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(wrong)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(wrong(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 16 MiB")));
        }
        Ok(Some(bytes))
    }

    /// The same as text; what is no UTF-8 is an error, because it could not be written back.
    pub fn text(&self, path: &str) -> Result<Option<String>> {
        let Some(bytes) = self.read(path)? else { return Ok(None) };
        let wrong = |source| Error { act: "read", path: path.to_owned(), source };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| wrong(io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text")))
    }

    /// The directory `path`, open for its attributes.
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|source| error("find", path, source))
    }

    /// `path` with the names that are there, whatever their case; what is not there stays as it is.
    #[must_use]
    pub fn any_case(&self, path: &str) -> String {
        let mut found = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let is_there = self.exists(&format!("{found}/{part}"));
            let other = || self.names(&found).into_iter().find(|name| name.eq_ignore_ascii_case(part));
            let name = if is_there { None } else { other() };
            found = format!("{found}/{}", name.as_deref().unwrap_or(part));
        }
        found
    }

    /// Whether `path` leads to a directory.
    #[must_use]
    pub fn is_directory(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// Whether `path` leads to anything.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH).is_ok()
    }

    /// Names in the directory `path`, sorted, without those that are no UTF-8; empty where there is none.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(directory) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) else { return Vec::new() };
        let Ok(entries) = fs::Dir::read_from(&directory) else { return Vec::new() };
        let names =
            entries.flatten().take(MAX_ENTRIES).filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let mut names: Vec<_> = names.filter(|name| !matches!(name.as_str(), "." | "..")).collect();
        names.sort();
        names
    }

    /// Where the file `path` is, or would be; its directory must be there. Links in its last name are followed.
    pub fn place(&self, path: &str) -> Result<Place> {
        let wrong = |source: Errno| error("find", path, source);
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let (above, name) = at.rsplit_once('/').unwrap_or(("", &at));
            if matches!(name, "" | "." | "..") {
                return Err(wrong(Errno::INVAL));
            }
            let directory = self.open(above, OFlags::RDONLY | OFlags::DIRECTORY).map_err(wrong)?;
            match fs::readlinkat(&directory, name, Vec::new()) {
                Ok(target) => {
                    let target = target.into_string().map_err(|_| wrong(Errno::ILSEQ))?;
                    at = if target.starts_with('/') { target } else { format!("{above}/{target}") };
                }
                // It is there and no link, or not there.
                Err(Errno::INVAL | Errno::NOENT) => {
                    let path = format!("/{}", at.trim_start_matches('/'));
                    return Ok(Place { directory, name: name.to_owned(), path });
                }
                Err(error) => return Err(wrong(error)),
            }
        }
        Err(wrong(Errno::LOOP))
    }

    /// Makes the directory `path` and those above it.
    pub fn make_directory(&self, path: &str) -> Result<()> {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        for above in ends.map(|end| &path[..end]) {
            if self.is_directory(above) {
                continue;
            }
            let Place { directory, name, .. } = self.place(above)?;
            let mode = Mode::from_raw_mode(0o755);
            fs::mkdirat(&directory, &*name, mode).map_err(|source| error("make the directory", above, source))?;
        }
        Ok(())
    }

    /// The file system that holds `path`, or would hold it, and its free bytes.
    pub fn room(&self, path: &str) -> Result<(u64, u64)> {
        let wrong = |source: Errno| error("find", path, source);
        let mut above = path;
        // The nearest directory that is there: those below would be made on the same file system.
        let directory = loop {
            above = above.rsplit_once('/').map_or("", |(above, _)| above);
            match self.open(above, OFlags::RDONLY | OFlags::DIRECTORY) {
                Err(Errno::NOENT) if !above.is_empty() => {}
                opened => break opened.map_err(wrong)?,
            }
        };
        let device = fs::fstat(&directory).map_err(wrong)?.st_dev;
        let room = fs::fstatvfs(&directory).map_err(wrong)?;
        Ok((device, room.f_bavail.saturating_mul(room.f_frsize)))
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = path.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

impl Place {
    /// Bytes of the regular file that is there; `None` where there is none.
    pub fn length(&self) -> Result<Option<u64>> {
        match fs::statat(&self.directory, &*self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                Ok(Some(u64::try_from(stat.st_size).unwrap_or_default()))
            }
            Ok(_) => Err(error("use", &self.path, Errno::INVAL)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(error("find", &self.path, source)),
        }
    }

    /// Names of its directory as a handle for calls that take one.
    pub(super) fn directory(&self) -> impl AsFd + '_ {
        self.directory.as_fd()
    }
}

fn error(act: &'static str, path: &str, source: Errno) -> Error {
    Error { act, path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn guest() -> (tempfile::TempDir, Mounted) {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let mounted = Mounted::new(&root).unwrap();
        (outer, mounted)
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let (outer, mounted) = guest();
        let root = outer.path().join("root");
        symlink("../../secret", root.join("etc/up")).unwrap();
        symlink(outer.path().join("secret"), root.join("etc/absolute")).unwrap();
        symlink("/../../..", root.join("etc/directory")).unwrap();
        symlink("loop", root.join("etc/loop")).unwrap();
        for path in ["/etc/up", "/etc/absolute", "/etc/directory/secret", "/../secret", "../secret"] {
            assert!(mounted.read(path).unwrap().is_none(), "{path}");
        }
        assert_eq!(mounted.place("/etc/up").unwrap().path, "/etc/../../secret");
        let inside = mounted.place("/etc/up").unwrap();
        assert_eq!(inside.length().unwrap(), None, "the root's own `secret`, which does not exist");
        assert!(mounted.place("/etc/loop").is_err());
        assert!(mounted.read("/etc/loop").is_err());
        // Even while `/proc` is the host's.
        symlink("/proc/self/root/etc/hostname", root.join("etc/proc")).unwrap();
        assert!(mounted.read("/etc/proc").unwrap().is_none());
    }

    #[test]
    fn what_is_no_regular_file_is_not_read() {
        let (outer, mounted) = guest();
        let root = outer.path().join("root");
        fs::mknodat(fs::CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        for path in ["/pipe", "/socket", "/etc"] {
            assert!(mounted.read(path).is_err(), "{path}");
        }
        drop(socket);
        std::fs::write(root.join("latin"), b"Gr\xFC\xDFe").unwrap();
        assert!(mounted.text("/latin").is_err());
        assert_eq!(mounted.read("/latin").unwrap().unwrap().len(), 5);
        File::create(root.join("large")).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(mounted.read("/large").unwrap_err().source.to_string().contains("16 MiB"));
    }

    #[test]
    fn names_with_line_ends_are_names() {
        let (outer, mounted) = guest();
        std::fs::write(outer.path().join("root/etc/a\nb"), "").unwrap();
        std::fs::write(outer.path().join("root/etc/z"), "").unwrap();
        assert_eq!(mounted.names("/etc"), ["a\nb", "z"]);
        assert!(mounted.names("/nowhere").is_empty());
        mounted.make_directory("/a/b/c").unwrap();
        mounted.make_directory("/a/b/c").unwrap();
        assert!(mounted.is_directory("/a/b/c"));
    }
}
