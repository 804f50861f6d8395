// SPDX-License-Identifier: Apache-2.0
//! A fingerprint of the content of files, made of a few sampled blocks: it distinguishes two files of one name and one
//! size without reading them whole.
//!
//! Equal fingerprints are no proof of equal content: files that differ only between the samples have the same one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use crate::conversion::hex;

/// Bytes of a sampled block.
const BLOCK: usize = 4 << 10;

/// Blocks that are sampled of one file, the first and the last among them. Headers and tables lie at the ends; the
/// blocks between are spread evenly. A disk that seeks for each of them takes a fifth of a second.
const BLOCKS: u64 = 16;

/// Fingerprint of the files in this order, each open only while it is read: 32 lower-case hex digits, the first half of
/// a SHA-256 over each file's size and sampled blocks.
///
/// # Errors
/// The error of opening or reading a file.
pub(crate) fn of(files: impl IntoIterator<Item = io::Result<File>>) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    for file in files {
        let file = file?;
        let size = file.metadata()?.len();
        hash.update(size.to_le_bytes());
        for offset in places(size) {
            let read = read_at_most(&file, &mut block, offset)?;
            hash.update(&block[..read]);
        }
    }
    Ok(hex(&hash.finalize()[..16]))
}

/// Whether one file is the beginning of a longer one, as far as the sampled blocks of the shorter tell; one without
/// data is nobody's beginning.
///
/// # Errors
/// The error of reading a file.
pub(crate) fn begins(shorter: &File, longer: &File) -> io::Result<bool> {
    let size = shorter.metadata()?.len();
    if size >= longer.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut has_data = false;
    for offset in places(size) {
        let read = read_at_most(shorter, &mut one, offset)?;
        let there = read_at_most(longer, &mut other, offset)?;
        if there < read || one[..read] != other[..read] {
            return Ok(false);
        }
        has_data |= one[..read].iter().any(|byte| *byte != 0);
    }
    Ok(has_data)
}

/// Offsets of the sampled blocks, rising; the blocks of a small file cover all of it.
fn places(size: u64) -> impl Iterator<Item = u64> {
    let last = size.saturating_sub(BLOCK as u64);
    let mut before = None;
    (0..BLOCKS)
        .map(move |n| if n == BLOCKS - 1 { last } else { last / (BLOCKS - 1) * n })
        .filter(move |offset| before.replace(*offset) != Some(*offset))
}

/// Reads a block and returns how many bytes that were: fewer at the end of the file.
fn read_at_most(file: &File, block: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < block.len() {
        match file.read_at(&mut block[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn one(content: &[u8]) -> String {
        of([Ok(file(content))]).unwrap()
    }

    #[test]
    fn files_of_one_size_are_told_apart_by_what_lies_at_their_ends_and_between() {
        let content = vec![7; 1 << 20];
        assert_eq!(one(&content), one(&content));
        assert_eq!(one(&content).len(), 32);
        for (at, len) in [(0, 1), ((1 << 20) - 1, 1), (1 << 19, 1 << 17)] {
            let mut other = content.clone();
            other[at..at + len].fill(8);
            assert_ne!(one(&content), one(&other), "{at}");
        }
        assert_ne!(one(&content), one(&content[1..]));
        assert_ne!(one(&content), of([Ok(file(&content)), Ok(file(&content))]).unwrap());
    }

    #[test]
    fn the_beginning_of_a_file_is_known() {
        let content: Vec<u8> = (0..=u8::MAX).flat_map(|block| [block; 4096]).collect();
        let whole = file(&content);
        for (len, expected) in [(1, false), (5000, true), (1 << 19, true), (1 << 20, false)] {
            assert_eq!(begins(&file(&content[..len]), &whole).unwrap(), expected, "{len}");
        }
        let mut other = content[..1 << 19].to_vec();
        *other.last_mut().unwrap() ^= 1;
        assert!(!begins(&file(&other), &whole).unwrap());
        assert!(!begins(&file(&[0; 5000]), &file(&[0; 6000])).unwrap());
    }

    #[test]
    fn small_and_sparse_files_have_one_too() {
        assert_ne!(one(b""), one(b"a"));
        assert_ne!(one(b"b"), one(b"a"));
        let mut sparse = file(b"");
        sparse.seek(SeekFrom::Start(4 << 40)).unwrap();
        sparse.write_all(b"end").unwrap();
        assert_eq!(of([Ok(sparse)]).unwrap().len(), 32);
        assert_eq!(places(0).count(), 1);
        assert_eq!(places(4 << 40).count(), 16);
    }
}
