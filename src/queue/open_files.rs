// SPDX-License-Identifier: Apache-2.0
//! Which files some process of this machine has open for writing, as /proc tells.
//!
//! File events alone are not enough: they say nothing of a file that was open before we watched, that was renamed here
//! with its writer still at it, that was opened again and not yet written to, or that two have open. /proc/PID/fdinfo
//! names flags and inode of each open file without touching the file's volume (`proc_pid_fdinfo(5)`); only where the
//! inode is one that is asked for is the volume asked for its device. Processes of other users show theirs to root alone.
//!
//! Who has mapped a file may have closed it: /proc/PID/maps names device and inode of each mapping (`proc_pid_maps(5)`).
//!
//! A loop device's file is open in the kernel and in no process; sysfs names it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Files that are open for writing, at one moment.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// By inode, the descriptors that have a file of that number open; its device is not known yet.
    by_inode: HashMap<u64, Vec<PathBuf>>,
    /// Device and inode of files that are mapped, shared and for writing.
    mapped: HashSet<(u64, u64)>,
    /// Files that loop devices write to.
    of_devices: Vec<PathBuf>,
}

impl OpenFiles {
    /// Looks at every process. One that ends meanwhile, or that we may not look at, has none.
    #[must_use]
    pub fn look() -> Self {
        let mut open = Self { of_devices: of_loop_devices(Path::new("/sys/block")), ..Self::default() };
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
            let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
            open.mapped.extend(maps.lines().filter_map(mapped));
        }
        open
    }

    /// Whether some process, or a device, has the file open for writing.
    #[must_use]
    pub fn has(&self, device: u64, inode: u64) -> bool {
        let is_it =
            |link: &PathBuf| fs::metadata(link).is_ok_and(|found| (found.dev(), found.ino()) == (device, inode));
        self.by_inode.get(&inode).into_iter().flatten().any(is_it)
            || self.mapped.contains(&(device, inode))
            || self.of_devices.iter().any(is_it)
    }
}

/// The files behind those loop devices of `devices` that are not read-only (Linux' `Documentation/ABI/testing/sysfs-block-loop`).
fn of_loop_devices(devices: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir(devices).into_iter().flatten().flatten();
    let loops = devices.filter(|device| device.file_name().as_encoded_bytes().starts_with(b"loop"));
    let file = |device: fs::DirEntry| {
        let told = |name: &str| fs::read_to_string(device.path().join(name)).ok();
        let file = told("loop/backing_file").filter(|_| told("ro").is_none_or(|is_ro| is_ro.trim() != "1"))?;
        Some(PathBuf::from(file.trim_end_matches('\n')))
    };
    loops.filter_map(file).collect()
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

/// Device and inode of the file that this line of maps shows mapped, shared and for writing.
fn mapped(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let rights = fields.nth(1)?;
    let is_written = rights.contains('w') && rights.ends_with('s');
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let device = rustix::fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
    is_written.then_some((device, inode))
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
    fn a_loop_device_writes_to_its_file_unless_it_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        for (name, file, is_ro) in
            [("loop0", "/q/a.raw\n", "0\n"), ("loop1", "/q/b.raw\n", "1\n"), ("sda", "/q/c\n", "0\n")]
        {
            fs::create_dir_all(dir.path().join(name).join("loop")).unwrap();
            fs::write(dir.path().join(name).join("loop/backing_file"), file).unwrap();
            fs::write(dir.path().join(name).join("ro"), is_ro).unwrap();
        }
        fs::create_dir(dir.path().join("loop2")).unwrap();
        assert_eq!(of_loop_devices(dir.path()), [PathBuf::from("/q/a.raw")]);
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let found = fs::metadata(&file).unwrap();
        let open = OpenFiles { of_devices: vec!["/nowhere".into(), file], ..OpenFiles::default() };
        assert!(open.has(found.dev(), found.ino()));
    }

    #[test]
    fn only_what_is_mapped_shared_and_for_writing_counts() {
        let line = |rights: &str| format!("7f1a8c000000-7f1a8c100000 {rights} 00000000 fe:01 1234    /q/a b.raw");
        assert_eq!(mapped(&line("rw-s")), Some((rustix::fs::makedev(0xfe, 1), 1234)));
        for rights in ["r--s", "rw-p", "r-xp", "---p", "-w-s "] {
            assert_eq!(mapped(&line(rights)).is_some(), rights.starts_with("-w-s"), "{rights}");
        }
        assert_eq!(mapped("7ffd6b5fe000-7ffd6b61f000 rw-s 00000000 00:00 0    [shmem]"), None);
        assert_eq!(mapped(""), None);
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
