// SPDX-License-Identifier: Apache-2.0
//! Makes guests: files by code, file systems and tables by the tools that guests have them from.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub(super) const MIB: u64 = 1 << 20;
/// Version of the kernel in a sample.
pub(super) const KERNEL: &str = "6.1.0-18-amd64";
/// UUID of each sample's root.
pub(super) const ROOT: &str = "11111111-2222-3333-4444-555555555555";

/// Runs a program of the system, which may lie where only root looks; whether it is there.
pub(super) fn has(program: &str) -> bool {
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|place| Path::new(place).join(program).exists());
    if !found {
        println!("LEFT OUT: {program} is not installed (tests/prerequisites.sh)");
    }
    found
}

/// Whether a test may mount: it is root, and loop devices work.
pub(super) fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let can = is_root && Path::new("/dev/loop-control").exists();
    if !can {
        println!("LEFT OUT: a file system that only a mount fills (root with loop devices)");
    }
    can
}

/// Runs a program; panics with its words where it fails.
pub(super) fn run(program: &str, arguments: &[&str]) {
    run_with(program, arguments, b"");
}

pub(super) fn run_with(program: &str, arguments: &[&str], input: &[u8]) {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory for the files of a guest, its volumes and its disk.
pub(super) struct Maker {
    place: TempDir,
}

impl Maker {
    pub(super) fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("files")).unwrap();
        Self { place }
    }

    /// Where the guest's files are laid.
    pub(super) fn files(&self) -> PathBuf {
        self.place.path().join("files")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Writes a file of the guest, with its directories.
    pub(super) fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.files().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn link(&self, path: &str, target: &str) {
        symlink(target, self.files().join(path.trim_start_matches('/'))).unwrap();
    }

    /// An empty file of `size` bytes for a volume or a disk.
    pub(super) fn empty(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// The files of a small Debian whose initramfs has these modules.
    pub(super) fn linux(&self, modules: &[&str]) {
        self.linux_without_boot();
        self.boot("boot", modules);
    }

    pub(super) fn linux_without_boot(&self) {
        self.file("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        self.file("etc/fstab", format!("# a comment\nUUID={ROOT} / ext4 defaults 0 1\n"));
        self.file("etc/network/interfaces", "auto lo\niface lo inet loopback\niface ens192 inet dhcp\n");
        self.file("usr/bin/sh", [&b"\x7fELF\x02\x01\x01"[..], &[0; 9], &[2, 0, 62, 0]].concat());
        self.file("usr/bin/vmtoolsd", "");
        let modules = format!("usr/lib/modules/{KERNEL}");
        self.file(&format!("{modules}/modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\nkernel/a/b.ko\n");
        let of_root = ["virtio_blk", "virtio-scsi", "virtio_net", "ahci", "sd_mod", "nvme"];
        let lines = of_root.map(|name| format!("kernel/drivers/{name}.ko: kernel/x.ko\n")).concat();
        self.file(&format!("{modules}/modules.dep"), lines);
        self.link("lib", "usr/lib");
        self.link("bin", "usr/bin");
    }

    /// Kernel, initramfs and GRUB's configuration in a directory that is /boot.
    pub(super) fn boot(&self, directory: &str, modules: &[&str]) {
        self.file(&format!("{directory}/vmlinuz-{KERNEL}"), "MZ");
        self.file(&format!("{directory}/initrd.img-{KERNEL}"), initramfs(modules));
        let menu = format!("menuentry Debian {{\n\tlinux /boot/vmlinuz-{KERNEL} root=UUID={ROOT} ro quiet\n}}\n");
        self.file(&format!("{directory}/grub/grub.cfg"), menu);
    }

    /// An ext4 of these files.
    pub(super) fn ext4(&self, name: &str, size: u64, files: &Path) -> PathBuf {
        let path = self.empty(name, size);
        let (volume, files) = (path.to_str().unwrap(), files.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-F", "-U", ROOT, "-L", "root", "-d", files, volume]);
        path
    }

    /// An XFS of these files, by its maker's list of files.
    pub(super) fn xfs(&self, name: &str, size: u64, files: &Path, options: &[&str]) -> PathBuf {
        let path = self.empty(name, size);
        let list = self.path("list");
        fs::write(&list, format!("/none\n0 0\nd--755 0 0\n{}$\n", proto(files))).unwrap();
        let arguments = [&["-q", "-f", "-p", list.to_str().unwrap()], options, &[path.to_str().unwrap()]].concat();
        run("mkfs.xfs", &arguments);
        path
    }

    /// A FAT of these files.
    pub(super) fn fat(&self, name: &str, size: u64, bits: u32, files: &Path) -> PathBuf {
        let path = self.empty(name, size);
        let volume = path.to_str().unwrap();
        run("mkfs.vfat", &["-F", &bits.to_string(), "-i", "ABCD1234", "-n", "EFI", volume]);
        for entry in fs::read_dir(files).unwrap() {
            run("mcopy", &["-s", "-i", volume, entry.unwrap().path().to_str().unwrap(), "::/"]);
        }
        path
    }

    /// Mounts a volume with `mount`'s arguments and copies these files onto it.
    pub(super) fn fill(&self, volume: &Path, options: &[&str], files: &Path) {
        let place = self.path("mounted");
        fs::create_dir_all(&place).unwrap();
        let mount = [options, &[volume.to_str().unwrap(), place.to_str().unwrap()]].concat();
        run(mount[0], &mount[1..]);
        run("cp", &["-a", &format!("{}/.", files.display()), place.to_str().unwrap()]);
        run("umount", &[place.to_str().unwrap()]);
    }

    /// A disk with a table that sfdisk makes of `script`, and volumes at these places.
    pub(super) fn disk(&self, name: &str, size: u64, script: &str, volumes: &[(u64, &Path)]) -> PathBuf {
        let path = self.empty(name, size);
        run_with("sfdisk", &["-q", path.to_str().unwrap()], script.as_bytes());
        for (offset, volume) in volumes {
            lay(&path, *offset, volume);
        }
        path
    }
}

/// Writes what is not zero of `volume` to `offset` of `disk`.
pub(super) fn lay(disk: &Path, offset: u64, volume: &Path) {
    let (volume, disk) = (File::open(volume).unwrap(), File::options().write(true).open(disk).unwrap());
    let mut piece = vec![0; 65_536];
    for at in (0..volume.metadata().unwrap().len()).step_by(piece.len()) {
        let len = volume.read_at(&mut piece, at).unwrap();
        if piece[..len].iter().any(|byte| *byte != 0) {
            disk.write_all_at(&piece[..len], offset + at).unwrap();
        }
    }
}

/// The lines of mkfs.xfs' list for what is below a directory.
fn proto(directory: &Path) -> String {
    let mut lines = String::new();
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        let line = if kind.is_dir() {
            format!("{name} d--755 0 0\n{}$\n", proto(&path))
        } else if kind.is_symlink() {
            format!("{name} l--777 0 0 {}\n", fs::read_link(&path).unwrap().display())
        } else {
            format!("{name} ---644 0 0 {}\n", path.display())
        };
        lines.push_str(&line);
    }
    lines
}

/// An archive of files ("newc"), with its trailer.
pub(super) fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files.iter().copied().chain([("TRAILER!!!", &b""[..])]) {
        let numbers = [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        archive.extend(numbers.iter().flat_map(|number| format!("{number:08X}").into_bytes()));
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// An unpacked archive of a main initramfs with these modules.
pub(super) fn archive(modules: &[&str]) -> Vec<u8> {
    let name = |module: &&str| format!("usr/lib/modules/{KERNEL}/kernel/drivers/{module}.ko");
    let names: Vec<String> = modules.iter().map(name).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("init", b"#!/bin/sh\n")];
    files.extend(names.iter().map(|name| (name.as_str(), &b"\x7fELF a module"[..])));
    cpio(&files)
}

/// An initramfs as Debian makes it: microcode unpacked, then the rest packed with zstd.
pub(super) fn initramfs(modules: &[&str]) -> Vec<u8> {
    let early = cpio(&[("kernel/x86/microcode/GenuineIntel.bin", &[7; 3000])]);
    [early, vec![0; 512], zstd::encode_all(&archive(modules)[..], 3).unwrap()].concat()
}

/// A registry hive.
pub(super) struct Hive {
    cells: Vec<u8>,
}

/// A key with its values and the keys below it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) values: Vec<(&'static str, Value)>,
    pub(super) keys: Vec<Key>,
}

pub(super) enum Value {
    Text(&'static str),
    Number(u32),
}

/// A key without values.
pub(super) fn key(name: &'static str, keys: Vec<Key>) -> Key {
    Key { name, values: Vec::new(), keys }
}

impl Hive {
    /// The file of a hive with this root.
    pub(super) fn file(root: &Key) -> Vec<u8> {
        let mut hive = Self { cells: vec![0; 32] };
        let root = hive.key(root);
        let mut header = vec![0; 4096];
        header[..4].copy_from_slice(b"regf");
        header[4..8].copy_from_slice(&7_u32.to_le_bytes());
        header[8..12].copy_from_slice(&7_u32.to_le_bytes());
        header[36..40].copy_from_slice(&root.to_le_bytes());
        hive.cells[..4].copy_from_slice(b"hbin");
        let len = hive.cells.len().next_multiple_of(4096);
        hive.cells.resize(len, 0);
        [header, hive.cells].concat()
    }

    fn cell(&mut self, content: &[u8]) -> u32 {
        let at = u32::try_from(self.cells.len()).unwrap();
        let len = (content.len() + 4).next_multiple_of(8);
        self.cells.extend((-i32::try_from(len).unwrap()).to_le_bytes());
        self.cells.extend(content);
        self.cells.resize(usize::try_from(at).unwrap() + len, 0);
        at
    }

    fn key(&mut self, key: &Key) -> u32 {
        let below: Vec<u32> = key.keys.iter().map(|key| self.key(key)).collect();
        let values: Vec<u32> = key.values.iter().map(|(name, value)| self.value(name, value)).collect();
        let keys = if below.is_empty() {
            u32::MAX
        } else {
            let mut list = [&b"lh"[..], &u16::try_from(below.len()).unwrap().to_le_bytes()].concat();
            list.extend(below.iter().flat_map(|at| [at.to_le_bytes(), [0; 4]].concat()));
            self.cell(&list)
        };
        let list: Vec<u8> = values.iter().flat_map(|at| at.to_le_bytes()).collect();
        let list = if values.is_empty() { u32::MAX } else { self.cell(&list) };
        let mut cell = vec![0; 76];
        cell[..2].copy_from_slice(b"nk");
        cell[2] = 0x20;
        cell[20..24].copy_from_slice(&u32::try_from(below.len()).unwrap().to_le_bytes());
        cell[28..32].copy_from_slice(&keys.to_le_bytes());
        cell[36..40].copy_from_slice(&u32::try_from(values.len()).unwrap().to_le_bytes());
        cell[40..44].copy_from_slice(&list.to_le_bytes());
        cell[72..74].copy_from_slice(&u16::try_from(key.name.len()).unwrap().to_le_bytes());
        cell.extend(key.name.as_bytes());
        self.cell(&cell)
    }

    fn value(&mut self, name: &str, value: &Value) -> u32 {
        let (kind, data) = match value {
            Value::Text(text) => {
                let data: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
                (1_u32, data)
            }
            Value::Number(number) => (4, number.to_le_bytes().to_vec()),
        };
        let len = u32::try_from(data.len()).unwrap();
        let (len, place) = if data.len() <= 4 {
            (len | 1 << 31, u32::from_le_bytes(data.try_into().unwrap()))
        } else {
            (len, self.cell(&data))
        };
        let mut cell = [&b"vk"[..], &u16::try_from(name.len()).unwrap().to_le_bytes()].concat();
        cell.extend([len, place, kind, 1].iter().flat_map(|number| number.to_le_bytes()));
        cell.extend(name.as_bytes());
        self.cell(&cell)
    }
}
