// SPDX-License-Identifier: Apache-2.0
//! The size of outputs whose grains are passed through.

use super::*;

#[test]
fn what_is_passed_through_takes_no_more_than_its_source() {
    const GRAIN: usize = 65536;
    let text = |seed: u8| Piece::Stored(seed | 1);
    let noise = |seed: u32| Piece::Random(seed);
    let pieces: Vec<_> = (0..200).map(text).chain((0..20).map(noise)).chain((0..55).map(text)).collect();
    let (_, content) = image(&pieces, GRAIN, pieces.len() * GRAIN);
    let vmdk = built(&Sparse::stream_optimized(content.len() as u64), &content);
    let folder = tempfile::tempdir().unwrap();
    let options = CopyOptions { compress: Compression::Zlib, ..CopyOptions::default() };
    let copied = copied(&Image::vmdk(&region(&vmdk), u64::MAX).unwrap(), &folder.path().join("out"), &options).unwrap();

    // Without its header and checksum; what does not shrink is stored plain.
    let grains: usize = content.chunks(GRAIN).map(|grain| (zlib(grain).len() - 6).min(GRAIN)).sum();
    // Header, L1 and L2, refcount table and block, and an open cluster before the noise and at the end.
    let most = (grains + 7 * GRAIN) as u64;
    assert!(copied.file_size <= most, "{} bytes, {grains} of them grains", copied.file_size);
    assert!(copied.allocated <= vmdk.len() as u64 + 7 * GRAIN as u64);
}
