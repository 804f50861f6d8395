// SPDX-License-Identifier: Apache-2.0
//! Disks that lie in several files.

use super::*;

/// A file called `name` with `pieces` in `order`, and its image.
fn part(name: &str, pieces: &[Piece], order: &[usize], unit: usize) -> (Vec<u8>, Region, Image, Vec<u8>) {
    let (bytes, image, guest) = image_in_order(512, 512, order, pieces, unit, pieces.len() * unit);
    let region = named(name, &bytes);
    (bytes, region.clone(), image(region), guest)
}

fn named(name: &str, bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), name, bytes.len() as u64)
}

#[test]
fn batches_may_span_files_and_each_file_has_its_digest() {
    let kinds = [Piece::Random(3), Piece::Zlib(5), Piece::Absent, Piece::Stored(9), Piece::Zstd(7), Piece::Deflate(4)];
    let pieces = |count: usize| kinds.iter().cycle().take(count).cloned().collect::<Vec<_>>();
    // None ends where a batch ends, the first not even with a cluster of the output; the third is read backwards.
    let parts = [
        part("first", &pieces(45), &(0..45).collect::<Vec<_>>(), 4096),
        part("second", &pieces(37), &(0..37).collect::<Vec<_>>(), 65536),
        part("third", &pieces(50), &(0..50).rev().collect::<Vec<_>>(), 65536),
    ];
    let image = Image::joined("joined", parts.iter().map(|(_, _, image, _)| image.clone()).collect());
    let guest: Vec<u8> = parts.iter().flat_map(|(_, _, _, guest)| guest.clone()).collect();
    let digests: Vec<_> = parts
        .iter()
        .map(|(bytes, region, _, _)| Expected {
            region: region.clone(),
            algorithm: Algorithm::Sha256,
            digest: Sha256::digest(bytes).to_vec(),
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    for (number, options) in every_output().into_iter().enumerate() {
        let path = folder.path().join(format!("good {number}"));
        let options = CopyOptions { digests: digests.clone(), threads: Some(3), ..options };
        copied(&image, &path, &options).unwrap();
        assert!(read_by_qemu(&path, options.format) == guest, "{options:?}");
    }
    for wrong in 0..parts.len() {
        let mut digests = digests.clone();
        digests[wrong].digest[7] ^= 1;
        let options = CopyOptions { digests, ..CopyOptions::default() };
        let error = copied(&image, &folder.path().join(format!("wrong {wrong}")), &options).unwrap_err();
        let file = parts[wrong].1.name();
        assert_eq!((error.reason, error.file.as_str()), (Reason::ManifestMismatch, file), "{error}");
    }
}
