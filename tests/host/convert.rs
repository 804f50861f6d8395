// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm convert` against qemu-img, which makes the sources and checks the outputs.

mod intake;
mod packed;
mod threads;

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use hyper2kvm::conversion::OutputFormat;
use hyper2kvm::disk::{self, CopyControl, CopyOptions, Image, Region};
use rustix::fs::OFlags;
use tempfile::TempDir;

/// Virtual size: two grain tables of a VMDK, no multiple of any cluster but 64 KiB.
const SIZE: u64 = (70 << 20) + (64 << 10);

fn have_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("left out: qemu-img is not installed (Debian: qemu-utils)");
    }
    found
}

fn hyper2kvm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hyper2kvm")).args(arguments).output().expect("the built binary runs")
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img runs");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

/// Incompressible bytes, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The lower bits of such a generator repeat after a short while.
        u32::try_from(state >> 32).unwrap().to_be_bytes()
    };
    std::iter::repeat_with(&mut next).take(len.div_ceil(4)).flatten().collect()
}

/// A guest's disk: compressible text, incompressible noise, written zeros, and holes; with data in the first and the
/// last sector.
fn truth(place: &TempDir) -> PathBuf {
    let path = place.path().join("truth.img");
    let file = File::create_new(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let noise = noise(3 << 20);
    let words: Vec<u8> = (0..200_000u32).flat_map(|n| format!("line {n} of a log\n").into_bytes()).collect();
    file.write_all_at(&words, 512).unwrap();
    file.write_all_at(&noise, 20 << 20).unwrap();
    file.write_all_at(&vec![0; 4 << 20], 40 << 20).unwrap();
    file.write_all_at(&words[..100_000], (64 << 20) + 12_345).unwrap();
    file.write_all_at(b"the last sector", SIZE - 512).unwrap();
    path
}

/// File name, format, and options of the sources that qemu-img makes.
const SOURCES: [(&str, &str, &[&str]); 17] = [
    ("sparse.vmdk", "vmdk", &["-o", "subformat=monolithicSparse"]),
    ("stream.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
    ("split.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
    ("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]),
    ("splitflat.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
    ("dynamic.vhd", "vpc", &["-o", "subformat=dynamic,force_size=on"]),
    ("fixed.vhd", "vpc", &["-o", "subformat=fixed,force_size=on"]),
    ("dynamic.vhdx", "vhdx", &["-o", "subformat=dynamic"]),
    ("fixed.vhdx", "vhdx", &["-o", "subformat=fixed"]),
    ("dynamic.vdi", "vdi", &[]),
    ("static.vdi", "vdi", &["-o", "static=on"]),
    ("expanding.hdd", "parallels", &[]),
    ("two.qcow2", "qcow2", &["-o", "compat=0.10"]),
    ("three.qcow2", "qcow2", &["-o", "cluster_size=4k"]),
    ("zlib.qcow2", "qcow2", &["-c"]),
    ("zstd.qcow2", "qcow2", &["-c", "-o", "compression_type=zstd"]),
    ("subclusters.qcow2", "qcow2", &["-o", "extended_l2=on"]),
];

/// Our flags, and the format that they make.
const OUTPUTS: [(&[&str], &str); 6] = [
    (&["--format", "qcow2"], "qcow2"),
    (&["--compress"], "qcow2"),
    (&["--compress=zstd"], "qcow2"),
    (&["--compress=zlib-strict"], "qcow2"),
    (&["--format", "raw"], "raw"),
    (&["--format", "vdi"], "vdi"),
];

fn converts_to_every_output(source: &Path, truth: &Path) {
    converts_to_every_output_in(&tempfile::tempdir().unwrap(), source, truth);
}

fn converts_to_every_output_in(place: &TempDir, source: &Path, truth: &Path) {
    for (flags, format) in OUTPUTS {
        let output = place.path().join(format!("out.{format}"));
        // Our own reader, too, must return the same guest disk.
        let mut arguments = vec!["convert", text(source), "-o", text(&output), "--force", "--verify=full"];
        arguments.extend(flags);
        let converted = hyper2kvm(&arguments);
        let said = String::from_utf8_lossy(&converted.stderr);
        assert!(converted.status.success(), "{} {flags:?}: {said}", source.display());
        qemu_img(&["compare", "-f", format, "-F", "raw", text(&output), text(truth)]);
        if format != "raw" {
            qemu_img(&["check", "-f", format, text(&output)]);
        }
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|n| n.to_str().is_some_and(|n| n.starts_with("out."))), "left behind: {left:?}");
    }
}

#[test]
fn every_source_of_qemu_img_becomes_every_output_byte_for_byte() {
    if !have_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let truth = truth(&place);
    for (name, format, options) in SOURCES {
        let source = place.path().join(name);
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        arguments.extend(options);
        arguments.extend([text(&truth), text(&source)]);
        qemu_img(&arguments);
        converts_to_every_output(&source, &truth);
    }
    let raw = place.path().join("plain.raw");
    fs::copy(&truth, &raw).unwrap();
    converts_to_every_output(&raw, &truth);
}

/// SHA-256 of the [`OUTPUTS`] for [`truth`]. Only another writer or codec may change them, in a commit that says so.
const DIGESTS: [&str; 6] = [
    "ad347c2ecf750fbdf0b9d45fed0826b57ccf93312497eeb237c9d9b67c8a1cc9",
    "5eb98cb9db1397d315e20272f2dffa2ebca0b31e2f547da5b848e459178d6fc5",
    "73b2f1e91a97f208f35799b671592c8856e425f31f7780dc756f0759d25bac5d",
    "d3ef172b1307101683d3e89af09bf039a13d8b0dd356447684a969637a7011a7",
    "341a5c4355af1b1d0ed0c7fc3f157b604c72b87c18cbd29731b6bf9ce379cf04",
    "47bd1e424414b98d9e02406e21b85c92aa0a52cbf9569b6001add0a1dfd2a968",
];

#[test]
fn outputs_have_the_bytes_that_they_had() {
    let place = tempfile::tempdir().unwrap();
    let truth = truth(&place);
    for ((flags, format), digest) in OUTPUTS.into_iter().zip(DIGESTS) {
        let output = place.path().join(format!("out.{format}"));
        let mut arguments = vec!["convert", text(&truth), "-o", text(&output), "--force", "--checksum", "--json"];
        arguments.extend(flags);
        let converted = hyper2kvm(&arguments);
        assert!(converted.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&converted.stderr));
        let report: serde_json::Value = serde_json::from_slice(&converted.stdout).unwrap();
        assert_eq!(report["disks"][0]["sha256"], digest, "{flags:?}");
    }
}

/// A file system that refuses direct I/O, while this value lives.
struct Ramfs(TempDir);

impl Ramfs {
    /// `None`, reported on standard error, where it can't be mounted.
    fn mount() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "ramfs", "hyper2kvm-test"]).arg(place.path()).output();
        if mounted.is_ok_and(|done| done.status.success()) {
            return Some(Self(place));
        }
        eprintln!("left out: a file system without direct I/O: only root mounts one");
        None
    }
}

impl Drop for Ramfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_file_system_that_refuses_direct_io_gets_the_same_outputs() {
    let Some(ramfs) = Ramfs::mount().filter(|_| have_qemu_img()) else { return };
    let direct = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(ramfs.0.path().join("probe"));
    assert_eq!(direct.unwrap_err().kind(), ErrorKind::InvalidInput, "this file system takes direct I/O");
    let truth = truth(&ramfs.0);
    for (name, format, options) in SOURCES.into_iter().filter(|(name, ..)| DIRECT.contains(name)) {
        let source = ramfs.0.path().join(name);
        qemu_img(&[&["convert", "-f", "raw", "-O", format], options, &[text(&truth), text(&source)]].concat());
        converts_to_every_output_in(&tempfile::tempdir_in(ramfs.0.path()).unwrap(), &source, &truth);
        fs::remove_file(source).unwrap();
    }
}

/// Sources that are inflated, sparse, and copied as they are.
const DIRECT: [&str; 3] = ["stream.vmdk", "sparse.vmdk", "fixed.vhd"];

/// Processes that may take so many bytes together, page cache included.
struct SmallMemory(PathBuf);

impl SmallMemory {
    /// `None`, reported on standard error, where it can't be made.
    fn group(bytes: u64) -> Option<Self> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (parent, key) =
            if first.exists() { (first, "memory.limit_in_bytes") } else { (Path::new("/sys/fs/cgroup"), "memory.max") };
        let path = parent.join(format!("hyper2kvm-test-{}-{bytes}", std::process::id()));
        let group = fs::create_dir(&path).is_ok().then(|| Self(path));
        let limited = group.filter(|group| fs::write(group.0.join(key), bytes.to_string()).is_ok());
        if limited.is_none() {
            eprintln!("left out: no cgroup with a memory limit can be made");
        }
        limited
    }

    /// `program` as a member of it.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.0).arg(program);
        command
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn a_memory_limit_of_64_mib_is_enough_for_every_output_of_a_larger_disk() {
    let Some(group) = SmallMemory::group(64 << 20).filter(|_| have_qemu_img()) else { return };
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("disk.img");
    fs::write(&source, noise(80 << 20)).unwrap();
    for (flags, format) in OUTPUTS {
        let output = place.path().join(format!("out.{format}"));
        let limited = group
            .command(Path::new(env!("CARGO_BIN_EXE_hyper2kvm")))
            .args(["convert", text(&source), "-o", text(&output), "--force"])
            .args(flags)
            .output()
            .unwrap();
        assert!(
            limited.status.success(),
            "{flags:?}: {:?} {}",
            limited.status,
            String::from_utf8_lossy(&limited.stderr)
        );
        qemu_img(&["compare", "-f", format, "-F", "raw", text(&output), text(&source)]);
    }
}

/// Set where this test runs again within a memory limit: the directory of its source and its outputs.
const PLACE: &str = "HYPER2KVM_TEST_PLACE";

#[test]
fn a_memory_limit_of_256_mib_is_enough_where_direct_io_is_refused() {
    if let Some(place) = std::env::var_os(PLACE) {
        return copy_through_the_page_cache(Path::new(&place));
    }
    let Some(group) = SmallMemory::group(256 << 20).filter(|_| have_qemu_img()) else { return };
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("disk.img"), noise(8 << 20).repeat(50)).unwrap();
    let limited = group
        .command(&std::env::current_exe().unwrap())
        .args(["convert::a_memory_limit_of_256_mib_is_enough_where_direct_io_is_refused", "--exact", "--nocapture"])
        .env(PLACE, place.path())
        .output()
        .unwrap();
    let said = [limited.stdout, limited.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(limited.status.success() && said.contains("1 passed"), "{:?} {said}", limited.status);
    for format in ["raw", "qcow2"] {
        let output = place.path().join(format!("out.{format}"));
        qemu_img(&["compare", "-f", format, "-F", "raw", text(&output), text(&place.path().join("disk.img"))]);
    }
}

/// The program's own copy on a file system that takes direct I/O, without it: those that refuse it keep all of a file in
/// memory here.
fn copy_through_the_page_cache(place: &Path) {
    let source = Arc::new(File::open(place.join("disk.img")).unwrap());
    let len = source.metadata().unwrap().len();
    let image = Image::raw(&Region::whole(source, "disk.img", len)).unwrap();
    for format in [OutputFormat::Raw, OutputFormat::Qcow2] {
        let path = place.join(format!("out.{format}"));
        let output = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let options = CopyOptions { format, buffered: true, ..CopyOptions::default() };
        disk::copy(&image, &output, "output", &options, &CopyControl::default()).unwrap();
    }
}

#[test]
fn an_ova_is_read_in_place_and_its_digests_are_checked() {
    if !have_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let truth = truth(&place);
    let disk = place.path().join("web-disk1.vmdk");
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", text(&truth), text(&disk)]);
    fs::write(place.path().join("web.ovf"), ovf("web-disk1.vmdk")).unwrap();
    let sum = |program: &str, name: &str| {
        let output = Command::new(program).current_dir(place.path()).arg(name).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
    };
    let digest = |name: &str| sum("sha256sum", name);
    let manifest =
        |disk_digest: &str| format!("SHA256(web.ovf)= {}\nSHA256(web-disk1.vmdk)= {disk_digest}\n", digest("web.ovf"));
    let pack = |name: &str| {
        let packed = Command::new("tar")
            .current_dir(place.path())
            .args(["--format=ustar", "-cf", name, "web.ovf", "web.mf", "web-disk1.vmdk"])
            .status()
            .unwrap();
        assert!(packed.success());
        place.path().join(name)
    };
    fs::write(place.path().join("web.mf"), manifest(&digest("web-disk1.vmdk"))).unwrap();
    converts_to_every_output(&pack("good.ova"), &truth);

    let sha1 = format!("SHA1(web-disk1.vmdk)= {}\n", sum("sha1sum", "web-disk1.vmdk"));
    let wrong = manifest(&"0".repeat(64));
    for (name, manifest) in [("bad.ova", wrong.clone()), ("half.ova", sha1 + &wrong)] {
        fs::write(place.path().join("web.mf"), manifest).unwrap();
        let bad = pack(name);
        let output = tempfile::tempdir().unwrap();
        let refused = hyper2kvm(&["convert", text(&bad), "--output-dir", text(output.path())]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(10), "{said}");
        assert!(said.contains("ManifestMismatch") && said.contains("web-disk1.vmdk"), "{said}");
        assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0, "the output directory is as it was");
    }
}

fn ovf(disk: &str) -> String {
    format!(
        r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File ovf:id="f1" ovf:href="{disk}"/></References>
  <DiskSection><Info>Disks</Info><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="{SIZE}" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
  <VirtualSystem ovf:id="web"><Info>A machine</Info></VirtualSystem>
</Envelope>
"#
    )
}

/// A small raw disk and a place for outputs.
fn small() -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("small.raw");
    fs::write(&source, [b'x'; 4096]).unwrap();
    (place, source)
}

#[test]
fn an_existing_output_is_refused_and_replaced_only_by_force() {
    let (place, source) = small();
    let output = place.path().join("out.qcow2");
    fs::write(&output, "precious").unwrap();
    let refused = hyper2kvm(&["convert", text(&source), "-o", text(&output)]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("exists already") && said.contains("--force"), "{said}");
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    assert!(hyper2kvm(&["convert", text(&source), "-o", text(&output), "--force"]).status.success());
    assert_eq!(&fs::read(&output).unwrap()[..4], b"QFI\xfb");
}

#[test]
fn the_report_tells_disks_sizes_and_digest() {
    let (place, source) = small();
    let output = place.path().join("out.raw");
    let converted =
        hyper2kvm(&["convert", text(&source), "-o", text(&output), "--format", "raw", "--checksum", "--json"]);
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    let report: serde_json::Value = serde_json::from_slice(&converted.stdout).unwrap();
    assert_eq!(report.get("id"), None, "a conversion by hand has no id");
    let disk = &report["disks"][0];
    assert_eq!(disk["virtualSizeBytes"], 4096);
    // sha256 of 4096 times 'x'.
    let sum = Command::new("sha256sum").arg(&output).output().unwrap();
    assert_eq!(disk["sha256"].as_str().unwrap(), &String::from_utf8_lossy(&sum.stdout)[..64]);
}

#[test]
fn a_refusal_names_file_reason_place_and_remedy_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("broken.vmdk");
    fs::write(&source, [b"KDMV".as_slice(), &[0; 5000]].concat()).unwrap();
    let output = place.path().join("output");
    fs::create_dir(&output).unwrap();
    let refused = hyper2kvm(&["convert", text(&source), "--output-dir", text(&output)]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(10), "{said}");
    let mut lines = said.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("hyper2kvm: ") && first.contains("broken.vmdk: "), "{said}");
    assert!(lines.next().is_some_and(|l| l.starts_with("  ")), "{said}");
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    assert!(Command::new("mkfifo").arg(at("fifo.vmdk")).status().unwrap().success());
    std::os::unix::fs::symlink("/etc/hostname", at("link.raw")).unwrap();
    fs::create_dir(at("directory.vmdk")).unwrap();
    fs::write(at("empty.raw"), "").unwrap();
    for (name, words) in [
        ("fifo.vmdk", "is a FIFO"),
        ("link.raw", "is a symbolic link"),
        ("directory.vmdk", "is a directory"),
        ("empty.raw", "the file is empty"),
        ("absent.raw", "no such file"),
    ] {
        let refused = hyper2kvm(&["convert", text(&at(name)), "--output-dir", text(&at("out"))]);
        let said = String::from_utf8_lossy(&refused.stderr);
        let code = if name == "absent.raw" { 2 } else { 10 };
        assert_eq!(refused.status.code(), Some(code), "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    }
}

#[test]
fn a_name_that_was_mistyped_is_answered_with_the_path_that_was_looked_for() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), "x").unwrap();
    for (name, looked_for) in [("nofile.vmdk", "nofile.vmdk"), ("no/x.raw", "no/x.raw"), ("file/x.raw", "file/x.raw")] {
        let ran = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
            .current_dir(place.path())
            .args(["convert", "--json", name])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        let path = place.path().canonicalize().unwrap().join(looked_for);
        assert_eq!(said, format!("hyper2kvm: {}: no such file\n  Check the name\n", path.display()));
        let told: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let refusal = (&told["refusal"]["reason"], &told["refusal"]["suggestion"]);
        assert_eq!(refusal, (&"SourceMissing".into(), &"Check the name".into()));
        assert_eq!((ran.status.code(), hyper2kvm(&["inspect", name]).status.code()), (Some(2), Some(2)));
    }
    for name in [".", "..", "/"] {
        let said = hyper2kvm(&["convert", name]);
        let said = String::from_utf8_lossy(&said.stderr);
        assert!(said.contains(&format!("{name}: is a directory")), "{said}");
    }
}

#[test]
fn an_output_that_can_t_be_there_is_a_wrong_call() {
    let (place, source) = small();
    let at = |name: &str| text(&place.path().join(name)).to_owned();
    fs::write(at("vm.qcow2"), "precious").unwrap();
    std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
    for (flag, output, words) in [
        ("--output-dir", at("vm.qcow2"), "vm.qcow2: is no directory\n  Name a directory"),
        ("--output-dir", at("vm.qcow2/below/it"), "vm.qcow2: is no directory\n  Name a directory"),
        ("--output-dir", at("link"), "link: is no directory"),
        ("-o", at("vm.qcow2/new.qcow2"), "vm.qcow2: is no directory"),
        ("-o", at("new/"), "new/: is the name of a directory\n  Name a file"),
        ("-o", at("x.vmdk"), "vmdk is not written; outputs are qcow2, raw and vdi. Call it "),
        ("-o", "/dev/null".to_owned(), "/dev/null: is a character device\n  Name a file"),
    ] {
        for more in [&[][..], &["--force"], &["--force", "--no-sandbox"]] {
            let ran = hyper2kvm(&[&["convert", text(&source), flag, &output, "--json"][..], more].concat());
            let said = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(2), "{output}: {said}");
            assert!(said.contains(words), "{output}: {said}");
            let told: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
            assert!(said.contains(told["refusal"]["message"].as_str().unwrap()), "{told}");
        }
    }
    assert_eq!(fs::read(at("vm.qcow2")).unwrap(), b"precious");
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_device_is_never_replaced_by_a_file() {
    use std::os::unix::fs::FileTypeExt as _;
    let (place, source) = small();
    let (device, link) = (place.path().join("blk"), place.path().join("link"));
    let made = Command::new("mknod").args([text(&device), "b", "7", "99"]).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("left out: this user may not make a device node");
        return;
    }
    std::os::unix::fs::symlink("blk", &link).unwrap();
    for output in [&device, &link] {
        for more in [&[][..], &["--force"], &["--force", "--format", "raw", "--no-sandbox"]] {
            let ran = hyper2kvm(&[&["convert", text(&source), "-o", text(output)][..], more].concat());
            let said = String::from_utf8_lossy(&ran.stderr);
            let path = output.display();
            assert_eq!(ran.status.code(), Some(2), "{said}");
            let expected = format!("{path}: is a block device\n  To write the disk onto it: --to-device {path}\n");
            assert!(said.ends_with(&expected), "{said}");
        }
    }
    assert!(device.symlink_metadata().unwrap().file_type().is_block_device() && link.is_symlink());
}

#[test]
fn the_help_shows_the_default_limit_as_it_is_typed() {
    use hyper2kvm::conversion::options::{ByteSize, DEFAULT_MAX_VIRTUAL_SIZE};
    let limit = ByteSize(DEFAULT_MAX_VIRTUAL_SIZE).to_string();
    let (place, source) = small();
    for command in ["convert", "inspect"] {
        let help = String::from_utf8(hyper2kvm(&[command, "--help"]).stdout).unwrap();
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&format!("larger than this [default: {limit}]")), "{help}");
        assert!(!words.contains(&format!("\"{limit}\"")), "{help}");
        let target = place.path().join(command);
        let mut typed = vec![command, text(&source), "--max-virtual-size", &limit];
        if command == "convert" {
            typed.extend(["-o", text(&target)]);
        }
        assert!(hyper2kvm(&typed).status.success());
    }
}

#[test]
fn inspect_tells_what_an_image_is_and_whether_it_would_be_accepted() {
    let (place, source) = small();
    let told = hyper2kvm(&["inspect", text(&source), "--json"]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["accepted"], true, "{told}");
    let child = place.path().join("child.qcow2");
    if have_qemu_img() {
        qemu_img(&["create", "-f", "qcow2", "-b", text(&source), "-F", "raw", text(&child)]);
        let told = hyper2kvm(&["inspect", text(&child), "--json"]);
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(
            (&told["accepted"], &told["refusal"]["reason"]),
            (&false.into(), &"UnsafeReference".into()),
            "{told}"
        );
    }
}

#[test]
fn what_must_not_be_replaced_is_refused_before_any_work_even_by_force() {
    let (place, source) = small();
    let before = fs::read(&source).unwrap();
    fs::create_dir(place.path().join("directory")).unwrap();
    for (output, words) in [
        (source.clone(), "is the source itself"),
        (place.path().join("directory"), "is a directory"),
        (place.path().join(".."), "is a directory"),
    ] {
        let refused = hyper2kvm(&["convert", text(&source), "-o", text(&output), "--format", "raw", "--force"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(fs::read(&source).unwrap(), before);
}

#[test]
fn a_refusal_leaves_no_directory_that_was_not_there() {
    let (place, _) = small();
    let (absent, broken) = (place.path().join("absent.raw"), place.path().join("broken.vmdk"));
    fs::write(&broken, [0; 4096]).unwrap();
    for source in [absent, broken] {
        let output = place.path().join("new/below");
        let code = if source.exists() { 10 } else { 2 };
        assert_eq!(hyper2kvm(&["convert", text(&source), "--output-dir", text(&output)]).status.code(), Some(code));
        assert!(!place.path().join("new").exists());
    }
}

#[test]
fn the_output_s_extension_tells_its_format_and_a_contradiction_is_wrong_usage() {
    let (place, source) = small();
    let raw = place.path().join("out.img");
    assert!(hyper2kvm(&["convert", text(&source), "-o", text(&raw)]).status.success());
    assert_eq!(fs::read(&raw).unwrap(), [b'x'; 4096]);
    for flags in [
        ["--format", "raw", "--compress", "--json"],
        ["--compress=zlib", "--compress-level", "10", "--json"],
        ["--compress=zstd", "--compress-level", "23", "--json"],
    ] {
        let refused = hyper2kvm(&[["convert", text(&source)].as_slice(), &flags].concat());
        assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    }
}

#[test]
fn a_terminal_sees_a_bar_with_bytes_rate_and_time_left() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("left out: script (Debian bsdutils) is not here");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("disk.img");
    // Slow to compress, so that the bar has something to count.
    fs::write(&source, noise(16 << 20)).unwrap();
    let (program, output) = (env!("CARGO_BIN_EXE_hyper2kvm"), place.path().join("out.qcow2"));
    let command =
        format!("stty cols 100; {program} convert {} -o {} --compress=zstd", source.display(), output.display());
    let seen = Command::new("script").args(["-qec", &command, "/dev/null"]).output().unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout);
    let drawn = seen.split(['\r', '\n']).filter(|line| line.contains(" / ")).collect::<Vec<_>>();
    let steps = ["inspect", "plan", "copy", "verify", "report"];
    for line in &drawn {
        let line = line.trim_start_matches("\u{1b}[2K");
        assert!(
            line.contains(" / 16.00 MiB ") && steps.iter().any(|step| line.starts_with(step)),
            "{line:?} in {seen}"
        );
    }
    assert!(drawn.iter().any(|line| line.contains(" MiB/s ")), "{seen}");
}
