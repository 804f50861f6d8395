// SPDX-License-Identifier: Apache-2.0
//! Writes cpio archives ("newc"), as the kernel unpacks them into its first file system.
//!
//! The same entries in the same order are the same bytes: all belong to root, and none has a time.

use std::collections::BTreeSet;

/// Longest path, as the kernel has it (`PATH_MAX` with its NUL).
const MAX_PATH: usize = 4095;
/// Kinds of files in a mode (`S_IFMT`).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
/// Archives end at a multiple of this, so that another may follow; cpio programs take the same.
const BLOCK: usize = 512;

/// An entry that an archive cannot hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no path for an archive: it must be relative, without `.` and `..`, of 4095 bytes at most")]
    Path(String),
    #[error("{0:?} is in the archive twice")]
    Twice(String),
    #[error("{0:?} has 4 GiB or more, which an archive cannot hold")]
    Size(String),
}

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    paths: BTreeSet<String>,
}

impl Archive {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory of the mode 0755, with those above it, unless it is there.
    pub fn directory(&mut self, path: &str) -> Result<(), Error> {
        check(path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for directory in ends.map(|end| &path[..end]) {
            if self.paths.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY | 0o755, 2, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file, and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
        self.leaf(path, REGULAR | (mode & 0o7777), (0, 0), content)
    }

    /// Adds a symbolic link, and the directories above it.
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        self.leaf(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device for root alone, and the directories above it.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), Error> {
        self.leaf(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// The whole archive; its length is a multiple of 512.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[]).expect("the trailer's name is a path");
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self.bytes
    }

    fn leaf(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), Error> {
        check(path)?;
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        if !self.paths.insert(path.to_owned()) {
            return Err(Error::Twice(path.to_owned()));
        }
        self.entry(path, mode, 1, device, content)
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) -> Result<(), Error> {
        let size = u32::try_from(content.len()).map_err(|_| Error::Size(path.to_owned()))?;
        let name = u32::try_from(path.len() + 1).expect("a path has 4095 bytes at most");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        let numbers = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name, 0];
        self.entries += 1;
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn check(path: &str) -> Result<(), Error> {
    let is_name = |name: &str| !matches!(name, "" | "." | ".." | "TRAILER!!!");
    if path.len() <= MAX_PATH && !path.contains('\0') && path.split('/').all(is_name) {
        return Ok(());
    }
    Err(Error::Path(path.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_entries_are_the_same_bytes_and_directories_stand_once() {
        let write = || {
            let mut archive = Archive::new();
            archive.device("dev/console", 5, 1).unwrap();
            archive.file("etc/a", 0o644, b"12345").unwrap();
            archive.link("etc/b", "a").unwrap();
            archive.finish()
        };
        let bytes = write();
        assert_eq!(bytes, write());
        assert_eq!(bytes.len() % BLOCK, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 6, "dev, dev/console, etc, etc/a, etc/b and the trailer");
        assert!(text.starts_with("07070100000000000041ED"), "{text}");
    }

    #[test]
    fn what_no_archive_can_hold_is_refused() {
        let mut archive = Archive::new();
        let long = "x/".repeat(2048) + "x";
        for path in ["", "/etc", "a//b", "a/../b", "./a", "a/", "a\0b", "TRAILER!!!", &long] {
            assert!(matches!(archive.file(path, 0o644, b""), Err(Error::Path(_))), "{path}");
        }
        archive.file("a", 0o644, b"").unwrap();
        assert_eq!(archive.file("a", 0o644, b""), Err(Error::Twice("a".into())));
        assert_eq!(archive.link("a", "b"), Err(Error::Twice("a".into())));
    }

    #[test]
    fn another_program_reads_the_archive() {
        let mut archive = Archive::new();
        archive.file("usr/lib/a", 0o755, b"content").unwrap();
        archive.link("init", "usr/lib/a").unwrap();
        let mut cpio = match std::process::Command::new("cpio")
            .args(["--list", "--verbose", "--quiet", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            spawned => spawned.unwrap(),
        };
        std::io::Write::write_all(&mut cpio.stdin.take().unwrap(), &archive.finish()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
        let shown: Vec<_> = lines.iter().map(|words| (words[0], words[4], words[8..].join(" "))).collect();
        let expected = [
            ("drwxr-xr-x", "0", "usr".to_owned()),
            ("drwxr-xr-x", "0", "usr/lib".to_owned()),
            ("-rwxr-xr-x", "7", "usr/lib/a".to_owned()),
            ("lrwxrwxrwx", "9", "init -> usr/lib/a".to_owned()),
        ];
        assert_eq!(shown, expected, "{listing}");
    }
}
