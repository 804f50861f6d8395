// SPDX-License-Identifier: Apache-2.0
//! Good images with flipped, copied and cut bytes, through the whole engine. The plainest path, the fastest, other
//! outputs and a digest beside the copy give the same disk, or the same error at the same place; never a panic, never
//! more extents than the disk can have.
//!
//! How many cases, and what they reached: `docs/fuzzing.md`.

mod images;
mod mend;
mod qemu;
mod sparse;

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bolero::{TypeGenerator, check, produce};
use hyper2kvm::conversion::{Compression, OutputFormat};
use hyper2kvm::disk::manifest::{Algorithm, Expected};
use hyper2kvm::disk::source::{self, Limits};
use hyper2kvm::disk::{self, CopyControl, CopyOptions, Error, Image, Reader, Region};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use self::images::{Dropped, images};
use self::mend::mend;
use self::qemu::agrees_with_qemu;

const LIMITS: Limits = Limits { max_virtual_size: 64 << 20, max_scratch_bytes: 64 << 20, ovf_option: None };
/// Smallest extent that any format stores, except at a disk's end.
const SMALLEST: u64 = 512;
/// How long a case may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Cases of each image, unless a variable sets another number.
const CASES: usize = 24;
/// Numbers at the limits of fields, and numbers that many fields hold.
const EXTREMES: [u64; 8] = [0, 1, 0xFFFF, 0x1_0000, u32::MAX as u64, 1 << 63, u64::MAX - 511, u64::MAX];

/// One change of an image, at a place in parts of 65,536 of the head or of the whole.
#[derive(Clone, Debug, TypeGenerator)]
enum Change {
    Flip { at: u16, head: bool, mask: u8 },
    Number { at: u16, head: bool, value: u64 },
    Small { at: u16, head: bool, value: u8 },
    Extreme { at: u16, head: bool, which: u8 },
    Copy { from: u16, to: u16, len: u8 },
    Cut { at: u16 },
}

/// The structures of most formats lie in the first blocks.
fn place(at: u16, head: bool, len: usize) -> usize {
    let range = if head { len.min(4096) } else { len };
    (usize::from(at) * range) >> 16
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    let len = image.len();
    let mut number = |at, head, value: u64| {
        let at = place(at, head, len) & !7;
        let end = len.min(at + 8);
        // Big- and little-endian formats.
        let bytes = if value.is_multiple_of(2) { value.to_be_bytes() } else { value.to_le_bytes() };
        image[at..end].copy_from_slice(&bytes[..end - at]);
    };
    match *change {
        Change::Flip { at, head, mask } => image[place(at, head, len)] ^= mask.max(1),
        Change::Number { at, head, value } => number(at, head, value),
        Change::Small { at, head, value } => number(at, head, value.into()),
        Change::Extreme { at, head, which } => number(at, head, EXTREMES[usize::from(which) % EXTREMES.len()]),
        Change::Copy { from, to, len: count } => {
            let (from, to) = (place(from, false, len), place(to, true, len));
            let count = (usize::from(count) + 1).min(len - from).min(len - to);
            image.copy_within(from..from + count, to);
        }
        Change::Cut { at } => image.truncate(place(at, false, len).max(1)),
    }
}

/// Every number of the head that is not zero, at its limits: what `make test-long` begins with.
fn sweep(image: &[u8]) -> impl Iterator<Item = Change> {
    let head = image.len().min(4096);
    let numbers = (0..head).step_by(8).filter(move |at| image[*at..head.min(at + 8)].iter().any(|byte| *byte != 0));
    numbers.flat_map(move |number| {
        let at = u16::try_from((number << 16).div_ceil(head)).expect("it is within the head");
        [0, 5, 7].map(|which| Change::Extreme { at, head: true, which })
    })
}

/// Makes changed bytes of a text printable: one bad byte would hide all other faults.
fn keep_text(text: &mut [u8]) {
    for byte in text.iter_mut().filter(|byte| !byte.is_ascii_graphic() && !b" \n".contains(byte)) {
        *byte = b' ' + *byte % 95;
    }
}

/// One thread, through the page cache, to raw.
fn plainest() -> CopyOptions {
    CopyOptions { format: OutputFormat::Raw, threads: Some(1), buffered: true, ..CopyOptions::default() }
}

/// Several threads, direct I/O, compressed grains passed through.
fn fastest() -> CopyOptions {
    CopyOptions { compress: Compression::Zlib, threads: Some(4), ..CopyOptions::default() }
}

/// Other outputs, and the same beside a digest of each of the image's files.
fn others() -> [(CopyOptions, bool); 3] {
    let zstd = CopyOptions { compress: Compression::Zstd, threads: Some(3), ..CopyOptions::default() };
    let vdi = CopyOptions { format: OutputFormat::Vdi, threads: Some(2), ..CopyOptions::default() };
    [(zstd, false), (vdi, false), (fastest(), true)]
}

/// The guest's disks, read from their copies. Also walks the map.
fn convert(files: &[Region], options: &CopyOptions, digested: bool) -> Result<Vec<Vec<u8>>, Error> {
    let source = source::open(&files[0], &files[1..], &LIMITS, &mut || Ok(tempfile::tempfile().unwrap()))?;
    let mut disks = Vec::new();
    for disk in &source.disks {
        let size = disk.image.virtual_size();
        assert!(size <= LIMITS.max_virtual_size, "the limit holds");
        let (mut at, mut count) = (0, 0);
        // A raw disk in a stream has no map.
        let is_packed = matches!(disk.image.reader, Reader::Packed(_));
        for extent in disk.image.extents().filter(|_| !is_packed) {
            let extent = extent?;
            assert_eq!(extent.guest.start, at, "extents follow one another");
            assert!(extent.guest.end > at && extent.guest.end <= size);
            at = extent.guest.end;
            count += 1;
            assert!(count <= size / SMALLEST + 2, "a map ends");
        }
        assert!(at == size || is_packed, "extents cover the disk");
        let output = tempfile::tempfile().unwrap();
        let digests = if digested { disk.image.regions.iter().map(digest).collect() } else { Vec::new() };
        let options = &CopyOptions { digests, ..options.clone() };
        let control = CopyControl::default();
        disk::copy(&disk.image, &output, "output", options, &control)?;
        disk::verify(&output, "output", options.format, None, &control)?;
        disks.push(guest(output, options.format));
    }
    Ok(disks)
}

/// The digest of the region.
fn digest(region: &Region) -> Expected {
    let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
    region.read_exact_at(&mut bytes, 0).unwrap();
    Expected { region: region.clone(), algorithm: Algorithm::Sha256, digest: Sha256::digest(&bytes).to_vec() }
}

/// What the guest sees in a copy.
fn guest(output: File, format: OutputFormat) -> Vec<u8> {
    let len = output.metadata().unwrap().len();
    let region = Region::whole(Arc::new(output), "output", len);
    let image = match format {
        OutputFormat::Raw => Image::raw(&region),
        OutputFormat::Qcow2 => Image::qcow2(&region, u64::MAX),
        OutputFormat::Vdi => Image::vdi(&region, u64::MAX),
    };
    let raw = tempfile::NamedTempFile::new().unwrap();
    disk::copy(&image.unwrap(), raw.as_file(), "guest", &plainest(), &CopyControl::default()).unwrap();
    fs::read(raw.path()).unwrap()
}

/// A file as it is read through the page cache, and around it.
fn both_ways(name: &str, bytes: &[u8]) -> (Region, Region) {
    let place = tempfile::NamedTempFile::new().unwrap();
    fs::write(place.path(), bytes).unwrap();
    let file = Arc::new(File::open(place.path()).unwrap());
    let flags = OFlags::DIRECT.bits().cast_signed();
    let direct = File::options().read(true).custom_flags(flags).open(place.path()).ok();
    let cached = Region::whole(file, name, bytes.len() as u64);
    (cached.clone(), cached.also_direct(direct.map(Arc::new)))
}

/// The plainest path, the fastest, and one more in turn agree on a changed image with the files beside it.
fn agree(name: &str, image: &[u8], siblings: &[(&str, Vec<u8>)]) {
    let beside = siblings.iter().map(|(name, bytes)| both_ways(name, bytes));
    let (cached, around): (Vec<_>, Vec<_>) = std::iter::once(both_ways(name, image)).chain(beside).unzip();
    let turn = image.iter().map(|byte| usize::from(*byte)).sum::<usize>() % others().len();
    let plain = convert(&cached, &plainest(), false);
    for (options, digested) in [(fastest(), false), others()[turn].clone()] {
        match (&plain, convert(&around, &options, digested)) {
            (Ok(plain), Ok(fast)) => assert!(*plain == fast, "two readings differ: {options:?}"),
            // If there are several faults, all paths report the same one.
            (Err(plain), Err(fast)) => assert_eq!(
                (plain.reason, &plain.file, plain.offset, &plain.message),
                (fast.reason, &fast.file, fast.offset, &fast.message),
                "{options:?}"
            ),
            (plain, fast) => panic!("{:?} but {:?}: {options:?}", plain.as_ref().err(), fast.err()),
        }
    }
    if let Ok(disks) = &plain
        && std::env::var_os("HYPER2KVM_DIFFERENTIAL").is_some()
        && let [disk] = disks.as_slice()
    {
        agrees_with_qemu(name, image, siblings, disk);
    }
}

/// A target for each image.
macro_rules! targets {
    ($($target:ident $name:literal)*) => {$(
        #[test]
        fn $target() {
            let Some(Dropped { image, siblings, .. }) = images().iter().find(|dropped| dropped.name == $name) else {
                eprintln!("left out: {} is made by qemu-img, which is not installed (Debian: qemu-utils)", $name);
                return;
            };
            let change_and_read = |mended: bool, changes: &[Change]| {
                let mut image = image.clone();
                for change in changes {
                    apply(&mut image, change);
                }
                if !siblings.is_empty() {
                    keep_text(&mut image);
                }
                if mended {
                    mend($name, &mut image);
                }
                let start = Instant::now();
                agree($name, &image, siblings);
                assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
            };
            if std::env::var_os("HYPER2KVM_LONG").is_some() {
                sweep(image).for_each(|change| change_and_read(true, &[change]));
            }
            // Half of the images get right checksums again: with a wrong one, some formats are read no further.
            let changes = (produce::<bool>(), produce::<Vec<Change>>().with().len(1usize..4));
            check!()
                .with_generator(changes)
                .with_iterations(CASES)
                .for_each(|(mended, changes)| change_and_read(*mended, changes));
        }
    )*};
}

targets! {
    stream_vmdk "stream.vmdk"
    no_footer_vmdk "no-footer.vmdk"
    descending_vmdk "descending.vmdk"
    sparse_vmdk "sparse.vmdk"
    fixed_vhd "fixed.vhd"
    dynamic_vhd "dynamic.vhd"
    dynamic_vhdx "dynamic.vhdx"
    fixed_vhdx "fixed.vhdx"
    unclosed_vhdx "unclosed.vhdx"
    vdi "disk.vdi"
    static_vdi "static.vdi"
    qcow2 "disk.qcow2"
    version_2_qcow2 "version-2.qcow2"
    extended_qcow2 "extended.qcow2"
    zlib_qcow2 "zlib.qcow2"
    zstd_qcow2 "zstd.qcow2"
    parallels "disk.hdd"
    gzip_vmdk "stream.vmdk.gz"
    gzip_raw "disk.img.gz"
    xz_raw "disk.img.xz"
    xz_vmdk "stream.vmdk.xz"
    bzip2_raw "disk.img.bz2"
    zstd_raw "disk.img.zst"
    tar "disk.tar"
    gzip_tar "disk.tar.gz"
    zstd_tar "disk.tar.zst"
    old_sparse_tar "old-sparse.tar"
    sparse_tar_0_0 "sparse-0-0.tar"
    sparse_tar_0_1 "sparse-0-1.tar"
    sparse_tar_1_0 "sparse-1-0.tar"
    zip "vmdk.zip"
    ova "one.ova"
    gzip_ova "gzip.ova"
    ovf "one.ovf"
    split_vmdk "split.vmdk"
    stale_vmdk "stale.vmdk"
    endless_vhd "endless.vhd"
    padded_vhd "padded.vhd"
    cut_qcow2 "cut.qcow2"
}

#[test]
fn every_good_image_is_a_target_and_is_read() {
    let source = include_str!("mutation.rs");
    for Dropped { name, image, siblings } in images() {
        let files: Vec<_> =
            [(*name, image)].into_iter().chain(siblings.iter().map(|(name, image)| (*name, image))).collect();
        let files: Vec<_> = files.into_iter().map(|(name, image)| both_ways(name, image).0).collect();
        convert(&files, &plainest(), false).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(source.contains(&format!(" \"{name}\"\n")), "{name} is changed by no target");
    }
}
