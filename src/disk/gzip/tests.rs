// SPDX-License-Identifier: Apache-2.0
//! Whole, joined, cut, changed and exploding gzip files.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::disk::Cancellation;
use crate::disk::packed::CHUNK;

fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), "vm.ova:d.vmdk", bytes.len() as u64)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn run(bytes: &[u8], bounds: Bounds) -> Result<Vec<u8>, Error> {
    let (inflated, _) = inflate(&region(bytes), tempfile::tempfile().unwrap(), bounds)?;
    let mut bytes = vec![0; usize::try_from(inflated.len()).unwrap()];
    inflated.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

const WIDE: Bounds = Bounds { length: 1 << 30, stored: 1 << 30 };

#[test]
fn every_member_is_inflated_and_zeros_at_the_end_are_kept() {
    let first: Vec<u8> = (0..600_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let second = vec![0; 10_000];
    let both = [gzip(&first), gzip(&second)].concat();
    assert!(run(&both, WIDE).unwrap() == [first, second].concat());
}

#[test]
fn zeros_occupy_no_scratch() {
    let bytes = [vec![0; 1 << 20], vec![7; 100], vec![0; 1 << 20]].concat();
    let bounds = Bounds { stored: 4096, ..WIDE };
    assert!(run(&gzip(&bytes), bounds).unwrap() == bytes);
}

#[test]
fn a_bomb_is_too_large() {
    let zeros = gzip(&vec![0; 4 << 20]);
    assert_eq!(run(&zeros, Bounds { length: 1 << 20, ..WIDE }).unwrap_err().reason, Reason::TooLarge);
    let sevens = gzip(&vec![7; 4 << 20]);
    assert_eq!(run(&sevens, Bounds { stored: 1 << 20, ..WIDE }).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn cut_and_changed_streams_are_refused() {
    let whole = gzip(&(0..100_000u32).flat_map(|n| (n.wrapping_mul(n)).to_le_bytes()).collect::<Vec<u8>>());
    for keep in [3, 9, 100, whole.len() / 2, whole.len() - 1] {
        assert_eq!(run(&whole[..keep], WIDE).unwrap_err().reason, Reason::Truncated, "{keep}");
    }
    for at in [0, 2, 200, whole.len() - 8, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 0x55;
        let reason = run(&changed, WIDE).unwrap_err().reason;
        assert!(matches!(reason, Reason::Corrupt | Reason::Truncated), "{at}: {reason}");
    }
    let mut joined = [whole.clone(), gzip(b"second")].concat();
    let last = joined.len() - 6;
    joined[last] ^= 1;
    assert_eq!(run(&joined, WIDE).unwrap_err().reason, Reason::Corrupt);
    assert_eq!(run(&[whole, b"trailing garbage".to_vec()].concat(), WIDE).unwrap_err().reason, Reason::Corrupt);
}

#[test]
fn nothing_more_is_inflated_after_a_cancellation_however_little_it_is_read_from() {
    // One read has most of the noise, a second one all the rest.
    let noise: Vec<u8> =
        (0..80_000u32).flat_map(|n| n.wrapping_mul(n).wrapping_mul(0x9E37_79B1).to_be_bytes()).collect();
    let bytes = [gzip(&noise), gzip(&vec![7; 32 << 20])].concat();
    assert!(bytes.len() > CHUNK && bytes.len() < 2 * CHUNK);
    let (cancellation, reads) = (Cancellation::default(), AtomicU64::new(0));
    let cancel = cancellation.clone();
    let cancel_at_the_second = move |_| {
        if reads.fetch_add(1, Ordering::Relaxed) == 1 {
            cancel.cancel();
        }
    };
    let region = region(&bytes).before_reads(cancel_at_the_second).until(&cancellation);
    let scratch = tempfile::tempfile().unwrap();
    let error = inflate(&region, scratch.try_clone().unwrap(), WIDE).unwrap_err();
    assert_eq!(error.reason, Reason::Cancelled);
    let inflated = scratch.metadata().unwrap().len();
    assert!((1..=3 * CHUNK as u64).contains(&inflated), "{inflated} bytes were inflated");
}
