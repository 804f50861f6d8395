// SPDX-License-Identifier: Apache-2.0
//! Small guests for the appliance: an ext4 with what a Debian has that was made on VMware, in a partition.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// UUID of the root.
pub(super) const UUID: &str = "11111111-2222-4333-8444-555555555555";
const MIB: u64 = 1 << 20;
/// Where the partition begins.
const START: u64 = MIB;

/// The guest's files, before they are on a disk.
pub(super) struct Guest {
    place: PathBuf,
    version: String,
}

/// Where mkfs and its like are.
pub(super) fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

/// The content of a file of an ext4.
pub(super) fn cat(volume: &Path, file: &str) -> Vec<u8> {
    run("debugfs", &["-R", &format!("cat \"{file}\""), volume.to_str().unwrap()], b"")
}

impl Guest {
    /// A Debian whose kernel is the appliance's, without virtio in its initramfs.
    pub(super) fn new(place: &Path, modules: &Path, version: &str) -> Self {
        let guest = Self { place: place.to_owned(), version: version.to_owned() };
        guest.write("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
        guest.write("etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n");
        guest.write("etc/network/interfaces", "auto lo\niface lo inet loopback\niface ens192 inet dhcp\n");
        guest.write("usr/lib/systemd/systemd-udevd", "");
        guest.write("boot/grub/grub.cfg", "linux /boot/vmlinuz root=/dev/sda1 ro quiet\n");
        guest.write(&format!("boot/vmlinuz-{version}"), "MZ");
        guest.write("etc/initramfs-tools/modules", "# by hand\nvmw_pvscsi\n");
        let files = ["conf/arch.conf", "scripts/functions", "usr/bin/kmod"];
        let archive = guest.place.join("archive");
        for file in files {
            write(&archive.join(file), b"x");
        }
        let archive =
            run("sh", &["-c", "cd \"$0\" && find . | cpio -o -H newc --quiet", archive.to_str().unwrap()], b"");
        let packed = zstd::bulk::compress(&archive, 1).unwrap();
        write(&guest.files().join(format!("boot/initrd.img-{version}")), &packed);
        let own = format!("lib/modules/{version}");
        for list in ["modules.dep", "modules.builtin"] {
            write(&guest.files().join(&own).join(list), &fs::read(modules.join(list)).unwrap());
        }
        let dep = fs::read_to_string(modules.join("modules.dep")).unwrap();
        let wanted = ["/virtio_blk.ko:", "/virtio_pci.ko:", "/virtio_scsi.ko:", "/sd_mod.ko:"];
        for line in dep.lines().filter(|line| wanted.iter().any(|name| line.contains(name))) {
            for file in line.replace(':', " ").split_ascii_whitespace() {
                write(&guest.files().join(&own).join(file), &fs::read(modules.join(file)).unwrap());
            }
        }
        guest
    }

    fn files(&self) -> PathBuf {
        self.place.join("files")
    }

    fn write(&self, file: &str, content: &str) {
        write(&self.files().join(file), content.as_bytes());
    }

    /// What a stranger may put beside: links out of the root where files are written, names with line ends, a pipe where
    /// text is expected, a loop.
    pub(super) fn hostile(&self) {
        let files = self.files();
        fs::create_dir_all(files.join("etc/systemd")).unwrap();
        symlink("/../../../../../etc/systemd/of-the-root", files.join("etc/systemd/network")).unwrap();
        fs::create_dir_all(files.join("etc/systemd/of-the-root")).unwrap();
        fs::write(files.join("etc/network/a\nname"), "iface eth9 inet dhcp\n").unwrap();
        fs::create_dir_all(files.join("etc/network/interfaces.d")).unwrap();
        run("mkfifo", &[files.join("etc/network/interfaces.d/pipe").to_str().unwrap()], b"");
        symlink("loop", files.join("etc/circle")).unwrap();
        symlink("circle", files.join("etc/loop")).unwrap();
    }

    /// A disk of so many MiB with the files on its only partition.
    pub(super) fn disk(&self, name: &str, mib: u64) -> PathBuf {
        self.laid(name, mib, &["-b", "4096"])
    }

    /// The same with a block less than what a fix needs.
    pub(super) fn full(&self, name: &str, mib: u64) -> PathBuf {
        let disk = self.laid(name, mib, &["-b", "1024"]);
        let volume = self.volume(&disk);
        let free = run("dumpe2fs", &["-h", volume.to_str().unwrap()], b"");
        let free = String::from_utf8_lossy(&free);
        let blocks: u64 =
            free.lines().find_map(|line| line.strip_prefix("Free blocks:")).unwrap().trim().parse().unwrap();
        let filler = self.place.join("filler");
        fs::write(&filler, vec![1; usize::try_from((blocks - 600) * 1024).unwrap()]).unwrap();
        let command = format!("write {} filler", filler.display());
        run("debugfs", &["-w", "-R", &command, volume.to_str().unwrap()], b"");
        lay(&disk, &volume);
        disk
    }

    /// The same with a file system whose structures contradict themselves.
    pub(super) fn broken(&self, name: &str, mib: u64) -> PathBuf {
        let disk = self.disk(name, mib);
        let file = File::options().write(true).read(true).open(&disk).unwrap();
        // Its group descriptors and the first tables of inodes, but not its superblock.
        let mut bytes = vec![0; 512 << 10];
        file.read_exact_at(&mut bytes, START + 4096).unwrap();
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte ^= u8::try_from((index * 7 + index / 251) % 256).unwrap() & 0x11;
        }
        file.write_all_at(&bytes, START + 4096).unwrap();
        disk
    }

    pub(super) fn empty(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.place.join(name);
        File::create(&path).unwrap().set_len(mib * MIB).unwrap();
        path
    }

    fn laid(&self, name: &str, mib: u64, options: &[&str]) -> PathBuf {
        let (disk, volume) = (self.empty(name, mib), self.empty("volume", mib - 1));
        run("sfdisk", &["-q", disk.to_str().unwrap()], b"2048,,83,*\n");
        let files = self.files();
        let fixed = ["-q", "-F", "-t", "ext4", "-U", UUID, "-d", files.to_str().unwrap()];
        run("mke2fs", &[&fixed, options, &[volume.to_str().unwrap()]].concat(), b"");
        lay(&disk, &volume);
        disk
    }

    /// The file system of a disk, in a file of its own.
    pub(super) fn volume(&self, disk: &Path) -> PathBuf {
        let path = self.place.join("looked-at");
        let bytes = fs::read(disk).unwrap();
        fs::write(&path, &bytes[usize::try_from(START).unwrap()..]).unwrap();
        path
    }

    /// The digest of each regular file of a disk, by its path.
    pub(super) fn digests(&self, disk: &Path) -> BTreeMap<String, String> {
        let (volume, out) = (self.volume(disk), self.place.join("dump"));
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        run("debugfs", &["-R", &format!("rdump / {}", out.display()), volume.to_str().unwrap()], b"");
        let script = "cd \"$0\" && find . -type f -print0 | xargs -0 sha256sum --zero";
        let listed = run("sh", &["-c", script, out.to_str().unwrap()], b"");
        let listed = String::from_utf8(listed).unwrap();
        assert!(listed.contains(&self.version), "the files are not on the disk");
        let lines = listed.split_terminator('\0').filter_map(|line| line.split_once("  "));
        lines.map(|(digest, path)| (path.trim_start_matches('.').to_owned(), digest.to_owned())).collect()
    }
}

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Writes a file system to its partition.
fn lay(disk: &Path, volume: &Path) {
    let bytes = fs::read(volume).unwrap();
    File::options().write(true).open(disk).unwrap().write_all_at(&bytes, START).unwrap();
}
