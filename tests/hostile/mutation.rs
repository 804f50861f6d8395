//! Good images with flipped, copied and cut bytes through the whole engine: the same disk or the same error at the same
//! place by the plainest path and by the fastest; never a panic, never more extents than the disk can have.
//!
//! `HYPER2KVM_FUZZ_CASES` raises the number of cases for each image (24).

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use hyper2kvm::conversion::{Compression, OutputFormat};
use hyper2kvm::disk::pipeline::{self, CopyControl, CopyOptions};
use hyper2kvm::disk::source::{self, Limits};
use hyper2kvm::disk::{Error, Image, Region};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::OFlags;

use crate::disks::good;
use crate::trap::content;

const LIMITS: Limits = Limits { max_virtual_size: 64 << 20, max_scratch_bytes: 64 << 20 };
/// Smallest extent that any format stores, but for a disk's end.
const SMALLEST: u64 = 512;

/// One change of an image, at a place in thousandths of the head or of the whole.
#[derive(Clone, Debug)]
enum Change {
    Flip { at: u16, head: bool, mask: u8 },
    Number { at: u16, head: bool, value: u64 },
    Copy { from: u16, to: u16, len: u8 },
    Cut { at: u16 },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = 0..1000u16;
    let value = prop_oneof![Just(0), Just(u64::MAX), Just(1 << 63), Just(0x1_0000), any::<u64>(), 0..64u64];
    let one = prop_oneof![
        4 => (place.clone(), any::<bool>(), 1..=255u8).prop_map(|(at, head, mask)| Change::Flip { at, head, mask }),
        4 => (place.clone(), any::<bool>(), value).prop_map(|(at, head, value)| Change::Number { at, head, value }),
        2 => (place.clone(), place.clone(), any::<u8>()).prop_map(|(from, to, len)| Change::Copy { from, to, len }),
        1 => place.prop_map(|at| Change::Cut { at }),
    ];
    prop::collection::vec(one, 1..4)
}

/// Structures lie in the first blocks of most formats.
fn place(at: u16, head: bool, len: usize) -> usize {
    let range = if head { len.min(4096) } else { len };
    usize::from(at) * range / 1000
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    let len = image.len();
    match *change {
        Change::Flip { at, head, mask } => image[place(at, head, len)] ^= mask,
        Change::Number { at, head, value } => {
            let at = place(at, head, len) & !7;
            let end = len.min(at + 8);
            image[at..end].copy_from_slice(&value.to_be_bytes()[..end - at]);
        }
        Change::Copy { from, to, len: count } => {
            let (from, to) = (place(from, false, len), place(to, true, len));
            let count = (usize::from(count) + 1).min(len - from).min(len - to);
            image.copy_within(from..from + count, to);
        }
        Change::Cut { at } => image.truncate(place(at, false, len).max(1)),
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

/// The guest's disks as they are read in their copies; the map is walked beside it.
fn convert(region: &Region, options: &CopyOptions) -> Result<Vec<Vec<u8>>, Error> {
    let source = source::open(region, &[], &LIMITS, &mut || Ok(tempfile::tempfile().unwrap()))?;
    let mut disks = Vec::new();
    for disk in &source.disks {
        let size = disk.image.virtual_size();
        assert!(size <= LIMITS.max_virtual_size, "the limit holds");
        let (mut at, mut count) = (0, 0);
        for extent in disk.image.extents() {
            let extent = extent?;
            assert_eq!(extent.guest.start, at, "extents follow one another");
            assert!(extent.guest.end > at && extent.guest.end <= size);
            at = extent.guest.end;
            count += 1;
            assert!(count <= size / SMALLEST + 2, "a map ends");
        }
        assert_eq!(at, size, "extents cover the disk");
        let output = tempfile::tempfile().unwrap();
        pipeline::copy(&disk.image, &output, "output", options, &CopyControl::default())?;
        disks.push(guest(output, options.format));
    }
    Ok(disks)
}

/// What the guest sees in a copy.
fn guest(output: File, format: OutputFormat) -> Vec<u8> {
    let len = output.metadata().unwrap().len();
    let region = Region::whole(Arc::new(output), "output", len);
    let image = if format == OutputFormat::Raw { Image::raw(&region) } else { Image::qcow2(&region, u64::MAX) };
    let raw = tempfile::NamedTempFile::new().unwrap();
    pipeline::copy(&image.unwrap(), raw.as_file(), "guest", &plainest(), &CopyControl::default()).unwrap();
    fs::read(raw.path()).unwrap()
}

#[test]
fn changed_images_are_read_the_same_or_refused_the_same_on_every_path() {
    let cases = std::env::var("HYPER2KVM_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    for (name, image) in good(&content(2 << 20)) {
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let tested = runner.run(&changes(), |changes| {
            let mut image = image.clone();
            for change in &changes {
                apply(&mut image, change);
            }
            let place = tempfile::NamedTempFile::new().unwrap();
            fs::write(place.path(), &image).unwrap();
            let file = Arc::new(File::open(place.path()).unwrap());
            let flags = OFlags::DIRECT.bits().cast_signed();
            let direct = File::options().read(true).custom_flags(flags).open(place.path()).ok();
            let cached = Region::whole(file, name, image.len() as u64);
            let around = cached.clone().also_direct(direct.map(Arc::new));
            match (convert(&cached, &plainest()), convert(&around, &fastest())) {
                (Ok(plain), Ok(fast)) => prop_assert!(plain == fast, "two readings differ"),
                // Of two faults, the first in the guest's order is told.
                (Err(plain), Err(fast)) => prop_assert_eq!(
                    (plain.reason, &plain.file, plain.offset, &plain.message),
                    (fast.reason, &fast.file, fast.offset, &fast.message)
                ),
                (plain, fast) => prop_assert!(false, "{:?} but {:?}", plain.err(), fast.err()),
            }
            Ok(())
        });
        if let Err(failure) = tested {
            panic!("{name}: {failure}");
        }
    }
}
