// SPDX-License-Identifier: Apache-2.0
//! zstd clusters that a copy takes and refuses as QEMU does.

use std::io::Write;

use super::*;
use crate::disk::CopyControl;
use crate::disk::Image;
use crate::disk::replay::{GuestBytes, replay};

/// Bytes of a cluster of the images here.
const CLUSTER: usize = 4096;

/// `bytes` as a frame with a checksum; without its last block where it is not `whole`.
fn frame(bytes: &[u8], whole: bool) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.flush().unwrap();
    if whole { encoder.finish().unwrap() } else { encoder.get_ref().clone() }
}

/// A disk of two clusters. Its streams end where a sector ends, so that no byte behind them belongs to them.
fn disk(streams: [&[u8]; 2], size: u64) -> Vec<u8> {
    let mut file = image(3, &[], 2, size);
    put64(&mut file, 72, 8);
    put32(&mut file, 100, 112);
    file[104] = 1;
    for (index, stream) in streams.iter().enumerate() {
        let sectors = stream.len().div_ceil(512);
        let start = (4 + index) * CLUSTER + sectors * 512 - stream.len();
        file[start..start + stream.len()].copy_from_slice(stream);
        put64(&mut file, 3 * CLUSTER + index * 8, 1 << 62 | (sectors as u64 - 1) << 58 | start as u64);
    }
    file
}

fn copied(file: &[u8]) -> Result<Vec<u8>, Error> {
    let image = Image::qcow2(&region_over(file), LIMIT)?;
    let mut guest = Vec::new();
    replay(&image, &CopyControl::default(), |_, found| {
        match found {
            GuestBytes::Zero(len) => guest.resize(guest.len() + len as usize, 0),
            GuestBytes::Data(bytes) => guest.extend_from_slice(bytes),
        }
        Ok(())
    })?;
    Ok(guest)
}

fn by_qemu(file: &[u8]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("x"), file).unwrap();
    let ran = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw", "x", "raw"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    ran.status.success().then(|| std::fs::read(at("raw")).unwrap())
}

#[test]
fn a_cluster_is_taken_where_its_frames_are_whole_and_fill_it() {
    let cluster = &sample_disk(1 << 20)[1 << 18..][..CLUSTER];
    let content: Vec<u8> = cluster.iter().zip(0..).map(|(byte, at): (_, u32)| byte ^ (at / 64) as u8).collect();
    let (head, tail) = content.split_at(1000);
    let whole = frame(&content, true);
    let longer = [&content[..], b"x"].concat();
    let mut wrong = whole.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let cases = [
        ("one frame", true, whole.clone()),
        ("two frames", true, [frame(head, true), frame(tail, true)].concat()),
        ("a frame and more", true, [&whole[..], b"more"].concat()),
        ("a longer frame", false, frame(&longer, true)),
        ("a frame twice as long", false, frame(&content.repeat(2), true)),
        ("two frames, the second longer", false, [frame(head, true), frame(&longer[1000..], true)].concat()),
        ("no checksum", false, whole[..whole.len() - 4].to_vec()),
        ("half a checksum", false, whole[..whole.len() - 2].to_vec()),
        ("a wrong checksum", false, wrong),
        ("no last block", false, frame(&content, false)),
        ("a wrong checksum in the first of two", false, {
            let mut first = frame(head, true);
            *first.last_mut().unwrap() ^= 1;
            [first, frame(tail, true)].concat()
        }),
        ("nothing after a short frame", false, frame(head, true)),
    ];
    for (what, is_good, stream) in cases {
        for (place, streams) in [("first", [&stream[..], &whole]), ("last", [&whole, &stream])] {
            for size in [2 * CLUSTER, CLUSTER + 1024] {
                let file = disk(streams, size as u64);
                let expected = is_good.then(|| content.repeat(2)[..size].to_vec());
                assert!(by_qemu(&file) == expected, "QEMU: {what}, {place} of {size} bytes");
                let taken = copied(&file);
                let refused = taken.as_ref().err().map(|e| (e.reason, e.offset.is_some()));
                assert_eq!(refused, (!is_good).then_some((Reason::Corrupt, true)), "{what}, {place} of {size} bytes");
                assert!(taken.ok() == expected, "{what}, {place} of {size} bytes");
            }
        }
    }
}
