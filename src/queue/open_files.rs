// SPDX-License-Identifier: Apache-2.0
//! Which files some process of this machine has open for writing, as /proc tells.
//!
//! File events alone are not enough: they say nothing of a file that was open before we watched, that was renamed here
//! with its writer still at it, that was opened again and not yet written to, or that two have open. /proc/PID/fdinfo
//! names flags and inode of each open file without touching the file's volume (`proc_pid_fdinfo(5)`); only where the
//! inode is one that is asked for is the volume asked for its device. Processes of other users show theirs to root alone.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Files that are open for writing, at one moment.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// By inode, the descriptors that have a file of that number open; its device is not known yet.
    by_inode: HashMap<u64, Vec<PathBuf>>,
}

impl OpenFiles {
    /// Looks at every process. One that ends meanwhile, or that we may not look at, has none.
    #[must_use]
    pub fn look() -> Self {
        let mut open = Self::default();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in
            processes.filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        {
            let process = process.path();
            let descriptors = fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
            for descriptor in descriptors {
                let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
                if let Some(inode) = written(&text) {
                    let link = process.join("fd").join(descriptor.file_name());
                    open.by_inode.entry(inode).or_default().push(link);
                }
            }
        }
        open
    }

    /// Whether some process has the file open for writing.
    #[must_use]
    pub fn has(&self, device: u64, inode: u64) -> bool {
        let is_it =
            |link: &PathBuf| fs::metadata(link).is_ok_and(|found| (found.dev(), found.ino()) == (device, inode));
        self.by_inode.get(&inode).is_some_and(|links| links.iter().any(is_it))
    }
}

/// The inode of a file that this fdinfo shows open for writing.
fn written(fdinfo: &str) -> Option<u64> {
    const ACCESS_MODE: u32 = 0o3;
    let field = |name: &str| fdinfo.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = u32::from_str_radix(field("flags:")?, 8).ok()?;
    if flags & ACCESS_MODE == 0 {
        return None;
    }
    field("ino:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_what_is_open_for_writing_counts() {
        let text = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t30\nino:\t1234\n");
        assert_eq!(written(&text("0100000")), None);
        assert_eq!(written(&text("0100001")), Some(1234));
        assert_eq!(written(&text("02100002")), Some(1234));
        assert_eq!(written("pos:\t0\nflags:\t02\n"), None, "a kernel that does not tell the inode");
        assert_eq!(written(""), None);
    }

    #[test]
    fn a_file_is_seen_while_a_writer_has_it_open_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let (path, renamed) = (dir.path().join("a"), dir.path().join("b"));
        let writer = File::create(&path).unwrap();
        let second = File::options().append(true).open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        fs::rename(&path, &renamed).unwrap();
        let found = fs::metadata(&renamed).unwrap();
        let is_open = || OpenFiles::look().has(found.dev(), found.ino());
        assert!(is_open());
        drop(writer);
        assert!(is_open());
        drop(second);
        assert!(!is_open());
        drop(reader);
    }
}
