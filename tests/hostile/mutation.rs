//! Good images with flipped, copied and cut bytes through the whole engine: a typed error, or a disk that two readers
//! agree on; never a panic, never more extents than the disk can have.
//!
//! `HYPER2KVM_FUZZ_CASES` raises the number of cases for each image (24).

use std::fs::{self, File};
use std::sync::Arc;

use hyper2kvm::conversion::OutputFormat;
use hyper2kvm::disk::pipeline::{self, CopyControl, CopyOptions};
use hyper2kvm::disk::source::{self, Limits};
use hyper2kvm::disk::{Error, Region};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

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

/// The guest's disks, copied to raw with as many threads; the map is walked beside it.
fn convert(region: &Region, threads: usize) -> Result<Vec<Vec<u8>>, Error> {
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
        let output = tempfile::NamedTempFile::new().unwrap();
        let file = File::options().read(true).write(true).open(output.path()).unwrap();
        let options =
            CopyOptions { format: OutputFormat::Raw, threads: Some(threads), buffered: true, ..CopyOptions::default() };
        pipeline::copy(&disk.image, &file, "output", &options, &CopyControl::default())?;
        disks.push(fs::read(output.path()).unwrap());
    }
    Ok(disks)
}

#[test]
fn changed_images_are_refused_with_a_reason_or_read_the_same_by_any_number_of_threads() {
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
            let region = Region::whole(file, name, image.len() as u64);
            match (convert(&region, 1), convert(&region, 4)) {
                (Ok(one), Ok(four)) => prop_assert!(one == four, "two readings differ"),
                // Of two faults, threads may meet either first.
                (Err(one), Err(four)) => prop_assert!(!one.message.is_empty() && !four.message.is_empty()),
                (one, four) => prop_assert!(false, "{:?} but {:?}", one.err(), four.err()),
            }
            Ok(())
        });
        if let Err(failure) = tested {
            panic!("{name}: {failure}");
        }
    }
}
