// SPDX-License-Identifier: Apache-2.0
//! Puts the appliance's initrd together, from a kernel's modules and the tools of this host: no network, no time, so that
//! the same parts make the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::modules::{self, Modules};
use super::{cpio, libraries};

/// A module a line, in the order in which they are loaded: its group, and its file; `?` begins one that may fail.
pub const MODULES_LIST: &str = "etc/hyper2kvm/modules";
/// Directory of the modules.
pub const MODULES: &str = "lib/hyper2kvm";
/// A multiple of which the initrd's length is, so that the job's archive can follow (the kernel demands 4).
const BLOCK: usize = 512;
/// Most bytes that the initrd may unpack to. The kernel's first file system takes half of its memory at most, of the 384 MiB
/// that an appliance has, and the drivers of a job need 32 MiB of that.
const MAX_UNPACKED: usize = 128 << 20;
/// zstd's level: a higher one takes ten times as long for a twentieth.
const LEVEL: i32 = 12;

/// Modules of one purpose, which are loaded once it comes up: btrfs alone measures its digests for seconds.
#[derive(Debug)]
struct Group {
    /// As the list and the appliance call it.
    name: &'static str,
    /// Without them a guest cannot be reached. Built in is as good.
    required: &'static [&'static str],
    /// Taken where the kernel has them. Digests are among them: file systems ask for them by name, and no program of the
    /// appliance loads modules on demand.
    welcome: &'static [&'static str],
}

/// The groups; the first is loaded at the start.
const GROUPS: [Group; 6] = [
    Group {
        name: "base",
        required: &["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4"],
        welcome: &["crc32c_generic", "crc32c_intel"],
    },
    Group { name: "lvm", required: &["dm_mod"], welcome: &["dm_mirror", "dm_snapshot", "dm_thin_pool", "raid1"] },
    Group { name: "xfs", required: &["xfs"], welcome: &[] },
    Group {
        name: "btrfs",
        required: &["btrfs"],
        welcome: &["xxhash_generic", "sha256_generic", "sha256_ssse3", "blake2b_generic", "blake2b"],
    },
    Group { name: "vfat", required: &["vfat", "nls_cp437", "nls_ascii"], welcome: &["nls_iso8859_1", "nls_utf8"] },
    // The program ntfs-3g writes NTFS: kernels of Debian 12 cannot.
    Group { name: "ntfs", required: &[], welcome: &["fuse"] },
];

/// A program that is taken along where this host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    pub name: &'static str,
    /// What cannot be done without it.
    pub without: &'static str,
}

/// The tools, in `/sbin` of the appliance.
pub const TOOLS: [Tool; 5] = [
    Tool { name: "lvm", without: "guests on LVM cannot be fixed" },
    Tool { name: "e2fsck", without: "ext4 is not checked after a fix" },
    Tool { name: "xfs_repair", without: "XFS is not checked after a fix" },
    Tool { name: "ntfs-3g", without: "guests of Windows cannot be fixed" },
    Tool { name: "ntfsfix", without: "NTFS is not checked after a fix" },
];

/// The parts.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The program that is started first.
    pub init: &'a Path,
    /// A kernel's modules, with their `modules.dep`: `/lib/modules/VERSION`.
    pub modules: &'a Path,
    /// Directories in which the tools are looked for.
    pub programs: &'a [PathBuf],
}

/// An initrd, and what is not in it.
#[derive(Debug)]
pub struct Initrd {
    /// Its length is a multiple of 512.
    pub bytes: Vec<u8>,
    /// Tools that this host does not have.
    pub missing: Vec<Tool>,
}

/// An initrd that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} has no modules.dep: run depmod for this kernel")]
    NoModules(PathBuf),
    #[error("the kernel in {directory} has no module {module}, neither built in nor as a file")]
    Module { directory: PathBuf, module: String },
    #[error("cannot take the modules of {directory}")]
    Modules { directory: PathBuf, source: modules::Error },
    #[error("cannot take a program along")]
    Program(#[from] libraries::Error),
    #[error("cannot pack the initrd")]
    Archive(#[from] cpio::Error),
    #[error("cannot pack the initrd")]
    Pack(#[source] io::Error),
    #[error(
        "the initrd would unpack to {} MiB, and the appliance's memory takes {} MiB: its largest file is {} with {} MiB, \
         strip its symbols (strip --strip-debug)",
        bytes >> 20, MAX_UNPACKED >> 20, largest.display(), of_largest >> 20
    )]
    Large { bytes: usize, largest: PathBuf, of_largest: usize },
}

/// The largest file that was taken, and its bytes.
#[derive(Debug, Default)]
struct Largest(PathBuf, usize);

impl Largest {
    fn see(&mut self, path: &Path, content: &[u8]) {
        if content.len() > self.1 {
            *self = Self(path.to_owned(), content.len());
        }
    }
}

/// Puts an initrd together.
pub fn build(parts: &Parts<'_>) -> Result<Initrd, Error> {
    let mut archive = cpio::Archive::new();
    for directory in ["proc", "sys", "dev", "run", "tmp", "guest", "etc/lvm"] {
        archive.directory(directory)?;
    }
    // The kernel gives it to the first process as its standard output, before /dev is mounted.
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    let mut largest = Largest::default();
    take_modules(parts.modules, &mut archive, &mut largest)?;
    let mut shared = BTreeMap::new();
    let init = read(parts.init)?;
    largest.see(parts.init, &init);
    archive.file("init", 0o755, &init)?;
    shared.extend(libraries::of(parts.init)?);
    let mut missing = Vec::new();
    for tool in TOOLS {
        let places = parts.programs.iter().map(|directory| directory.join(tool.name));
        let Some(program) = places.into_iter().find(|place| place.is_file()) else {
            missing.push(tool);
            continue;
        };
        archive.file(&format!("sbin/{}", tool.name), 0o755, &read(&program)?)?;
        shared.extend(libraries::of(&program)?);
    }
    for (path, content) in shared {
        archive.file(path.trim_start_matches('/'), 0o755, &content)?;
    }
    let unpacked = archive.finish();
    if unpacked.len() > MAX_UNPACKED {
        let Largest(largest, of_largest) = largest;
        return Err(Error::Large { bytes: unpacked.len(), largest, of_largest });
    }
    let mut bytes = zstd::bulk::compress(&unpacked, LEVEL).map_err(Error::Pack)?;
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    Ok(Initrd { bytes, missing })
}

/// Adds the modules, and the list of them.
fn take_modules(directory: &Path, archive: &mut cpio::Archive, largest: &mut Largest) -> Result<(), Error> {
    let dep = match fs::read_to_string(directory.join("modules.dep")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoModules(directory.to_owned())),
        read => read.map_err(|source| Error::Read { path: directory.join("modules.dep"), source })?,
    };
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<String> = builtin.lines().filter_map(modules::name).collect();
    let modules = Modules::parse(&dep);
    let wrong = |source| Error::Modules { directory: directory.to_owned(), source };
    let (mut list, mut taken) = (String::new(), BTreeSet::new());
    for Group { name: group, required, welcome } in &GROUPS {
        let required: Vec<&str> = required.iter().filter(|module| !builtin.contains(**module)).copied().collect();
        if let Some(module) = required.iter().find(|module| !modules.has(module)) {
            return Err(Error::Module { directory: directory.to_owned(), module: (*module).to_owned() });
        }
        let needed = modules.closure(&required).map_err(wrong)?;
        let mut wanted: Vec<&str> = welcome.iter().filter(|module| modules.has(module)).copied().collect();
        wanted.extend(required);
        for file in modules.closure(&wanted).map_err(wrong)? {
            let name = modules::file_name(&file).ok_or_else(|| wrong(modules::Error::Form(file.clone())))?;
            if taken.insert(name.to_owned()) {
                let place = directory.join(&file);
                let module = modules::unpack(&file, read(&place)?).map_err(wrong)?;
                largest.see(&place, &module);
                archive.file(&format!("{MODULES}/{name}"), 0o644, &module)?;
            }
            let may_fail = if needed.contains(&file) { "" } else { "?" };
            writeln!(list, "{group} {may_fail}{name}").expect("writing to a string does not fail");
        }
    }
    archive.file(MODULES_LIST, 0o644, list.as_bytes())?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel's modules: all that are required but one are built in, that one is a file and needs another.
    fn kernel(last: bool) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let required = GROUPS.iter().flat_map(|group| group.required).filter(|name| **name != "virtio_pci");
        let builtin = required.fold(String::new(), |lines, name| lines + "kernel/" + name + ".ko\n");
        fs::write(directory.path().join("modules.builtin"), builtin).unwrap();
        let dep =
            if last { "virtio_pci.ko: virtio_ring.ko\nvirtio_ring.ko:\nnls_utf8.ko:\n" } else { "nls_utf8.ko:\n" };
        fs::write(directory.path().join("modules.dep"), dep).unwrap();
        for name in ["virtio_pci", "virtio_ring", "nls_utf8"] {
            fs::write(directory.path().join(format!("{name}.ko")), b"\x7FELF module").unwrap();
        }
        directory
    }

    fn parts<'a>(init: &'a Path, modules: &'a Path) -> Parts<'a> {
        Parts { init, modules, programs: &[] }
    }

    #[test]
    fn the_same_parts_make_the_same_initrd() {
        let (kernel, init) = (kernel(true), PathBuf::from("/bin/true"));
        let first = build(&parts(&init, kernel.path())).unwrap();
        let second = build(&parts(&init, kernel.path())).unwrap();
        assert!(first.bytes == second.bytes && first.bytes.len().is_multiple_of(BLOCK));
        assert_eq!(first.missing, TOOLS);
        let limits = crate::guest::Limits { time: std::time::Duration::from_secs(60), ..Default::default() };
        let listed = crate::guest::list_initramfs(&first.bytes[..], &limits).unwrap();
        let paths: Vec<_> = listed.iter().map(|entry| entry.path.as_str()).collect();
        for path in ["init", "dev/console", MODULES_LIST, "lib/hyper2kvm/virtio_ring.ko", "lib/hyper2kvm/nls_utf8.ko"] {
            assert!(paths.contains(&path), "{path} is not in {paths:?}");
        }
    }

    #[test]
    fn an_initrd_that_its_memory_does_not_take_is_refused_with_its_largest_file() {
        let (kernel, place) = (kernel(true), tempfile::tempdir().unwrap());
        let init = place.path().join("init");
        fs::copy("/bin/true", &init).unwrap();
        fs::File::options().write(true).open(&init).unwrap().set_len(MAX_UNPACKED as u64).unwrap();
        let error = build(&parts(&init, kernel.path())).unwrap_err().to_string();
        let expected = format!("its largest file is {} with 128 MiB, strip its symbols", init.display());
        assert!(error.contains(&expected), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let init = PathBuf::from("/bin/true");
        let (without, empty) = (kernel(false), tempfile::tempdir().unwrap());
        let error = build(&parts(&init, without.path())).unwrap_err().to_string();
        assert!(error.ends_with("has no module virtio_pci, neither built in nor as a file"), "{error}");
        let error = build(&parts(&init, empty.path())).unwrap_err().to_string();
        assert!(error.ends_with("has no modules.dep: run depmod for this kernel"), "{error}");
        let error = build(&parts(Path::new("/nowhere"), kernel(true).path())).unwrap_err().to_string();
        assert_eq!(error, "cannot read /nowhere");
        let (broken, script) = (kernel(true), empty.path().join("script"));
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(matches!(build(&parts(&script, broken.path())), Err(Error::Program(libraries::Error::Form(_)))));
        fs::write(broken.path().join("virtio_ring.ko"), "text").unwrap();
        assert!(matches!(build(&parts(&init, broken.path())), Err(Error::Modules { .. })));
        fs::remove_file(broken.path().join("virtio_ring.ko")).unwrap();
        assert!(matches!(build(&parts(&init, broken.path())), Err(Error::Read { .. })));
    }
}
