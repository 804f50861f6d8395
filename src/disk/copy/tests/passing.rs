// SPDX-License-Identifier: Apache-2.0
//! Which deflate streams are passed through: of several compressors, damaged ones, and some that no compressor makes.

use flate2::{Compress, FlushCompress, Status};
use libdeflater::{CompressionLvl, Compressor, Decompressor, adler32};
use proptest::prelude::*;

use crate::disk::replay::decode::Decode;

/// The order in which the lengths of a header's own codes come (RFC 1951, section 3.2.7).
const HEADER_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Some text-like bytes, some repetition, some noise.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..2000);
    let words = proptest::collection::vec(0u8..12, 0..6000);
    let run = (any::<u8>(), 0usize..40_000).prop_map(|(byte, len)| vec![byte; len]);
    let counted =
        (1usize..200, 0usize..9000).prop_map(|(by, len)| (0..len).map(|at| (at / by).to_le_bytes()[0]).collect());
    proptest::collection::vec(prop_oneof![noise, words, run, counted], 0..6).prop_map(|parts| parts.concat())
}

/// `content` as a deflate stream of any of the compressors at hand.
fn deflated(content: &[u8], kind: usize) -> Vec<u8> {
    let mut stream = vec![0; content.len() + content.len() / 100 + 1000];
    if let Some(level) = kind.checked_sub(20) {
        let mut compressor = Compressor::new(CompressionLvl::new(i32::try_from(level).unwrap()).unwrap());
        let len = compressor.deflate_compress(content, &mut stream).unwrap();
        stream.truncate(len);
    } else {
        let (level, window) = (u32::try_from(kind % 10).unwrap(), if kind < 10 { 15 } else { 12 });
        let mut compress = Compress::new_with_window_bits(flate2::Compression::new(level), false, window);
        let status = compress.compress(content, &mut stream, FlushCompress::Finish).unwrap();
        assert_eq!(status, Status::StreamEnd);
        stream.truncate(usize::try_from(compress.total_out()).unwrap());
    }
    stream
}

fn inflated_by_libdeflate(input: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    let len = Decompressor::new().deflate_decompress(input, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// `body` as a zlib stream of `content`.
fn zlib_of(body: &[u8], content: &[u8]) -> Vec<u8> {
    [&[0x78, 0x9C], body, &adler32(content).to_be_bytes()].concat()
}

fn is_passed(body: &[u8], content: &[u8]) -> bool {
    let mut target = vec![0xAA; content.len()];
    let stream = zlib_of(body, content);
    let passed = Decode::new().pass_through(&stream, &mut target);
    assert!(passed.is_none_or(|passed| passed == body && target == content));
    passed.is_some()
}

proptest! {
    #[test]
    fn what_a_compressor_makes_is_passed_and_nothing_longer_or_shorter(
        content in content(),
        kind in 1usize..33,
        junk in proptest::collection::vec(any::<u8>(), 1..20),
    ) {
        prop_assume!(kind != 10 && kind != 11);
        let stream = deflated(&content, kind);
        prop_assert!(is_passed(&stream, &content));
        prop_assert!(!is_passed(&[&stream[..], &junk].concat(), &content));
        prop_assert!(!is_passed(&stream[..stream.len() - 1], &content));
        prop_assert!(!is_passed(&stream, &[&content[..], &[0]].concat()));
    }

    #[test]
    fn what_is_passed_of_damaged_streams_libdeflate_inflates_to_the_same(
        content in content(),
        kind in 20usize..33,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8, any::<bool>()), 1..4),
    ) {
        let mut stream = deflated(&content, kind);
        let len = stream.len();
        for (at, bit, in_header) in flips {
            stream[at.index(if in_header { len.min(80) } else { len })] ^= 1 << bit;
        }
        if let Some(bytes) = inflated_by_libdeflate(&stream, 1 << 20) && is_passed(&stream, &bytes) {
            prop_assert_eq!(inflated_by_libdeflate(&stream, bytes.len()), Some(bytes));
        }
    }
}

#[test]
fn what_has_another_header_than_zlib_writes_is_not_passed() {
    let content = vec![7; 65536];
    let stream = zlib_of(&deflated(&content, 6), &content);
    let mut target = vec![0; content.len()];
    let (mut decode, mut libdeflate) = (Decode::new(), Decompressor::new());
    for header in 0..=u16::MAX {
        let stream = [&header.to_be_bytes(), &stream[2..]].concat();
        let is_right = libdeflate.zlib_decompress(&stream, &mut target).is_ok();
        assert_eq!(decode.pass_through(&stream, &mut target).is_some(), is_right, "{header:#06x}");
    }
}

/// Writes a stream bit by bit.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    used: usize,
}

impl Writer {
    /// A number, its lowest bit first.
    pub(super) fn number(mut self, value: usize, bits: usize) -> Self {
        for bit in 0..bits {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= u8::try_from(value >> bit & 1).unwrap() << (self.used % 8);
            self.used += 1;
        }
        self
    }

    /// A code, its highest bit first.
    pub(super) fn code(self, code: usize, bits: usize) -> Self {
        (0..bits).rev().fold(self, |writer, bit| writer.number(code >> bit, 1))
    }

    /// The lengths of a header's own codes, in the order of their symbols.
    fn own_lens(self, lens: [usize; 19]) -> Self {
        HEADER_ORDER.iter().fold(self, |writer, &symbol| writer.number(lens[symbol], 3))
    }
}

/// A last block with fixed codes.
pub(super) fn fixed() -> Writer {
    Writer::default().number(1, 1).number(1, 2)
}

/// A block of 40,000 zeros, stored as they are.
fn far() -> Writer {
    let writer = Writer::default().number(0, 8).number(40_000, 16).number(0xFFFF - 40_000, 16);
    (0..40_000).fold(writer, |writer, _| writer.number(0, 8))
}

/// A last block with codes of its own: so many literals and distances.
fn dynamic(literals: usize, distances: usize) -> Writer {
    Writer::default().number(1, 1).number(2, 2).number(literals - 257, 5).number(distances - 1, 5).number(15, 4)
}

/// The header's own codes: `0`: a length of 0, `10`: of 1, `110`: of 2, `111`: 18 (11 to 138 zeros).
const OWN: [usize; 19] = {
    let mut lens = [0; 19];
    lens[0] = 1;
    lens[1] = 2;
    lens[2] = 3;
    lens[18] = 3;
    lens
};

/// Lengths 1 for `a` and for the end of a block, zeros up to `literals`, then `distances` as they are.
fn a_and_end(writer: Writer, literals: usize, distances: &[usize]) -> Writer {
    let zeros = |writer: Writer, count: usize| (0..count).fold(writer, |writer, _| writer.code(0, 1));
    let writer = zeros(writer.own_lens(OWN), 97).code(0b10, 2);
    let writer = zeros(writer, 256 - 98).code(0b10, 2);
    let writer = zeros(writer, literals - 257);
    distances.iter().fold(writer, |writer, len| match len {
        0 => writer.code(0, 1),
        1 => writer.code(0b10, 2),
        _ => writer.code(0b110, 3),
    })
}

/// Codes `0` for `a`, `10` for the end of a block, `11` for a length of 3, and a single distance, of 1.
fn a_run_and_end() -> Writer {
    let zeros = |writer: Writer, count: usize| (0..count).fold(writer, |writer, _| writer.code(0, 1));
    let writer = zeros(dynamic(258, 1).own_lens(OWN), 97).code(0b10, 2);
    zeros(writer, 256 - 98).code(0b110, 3).code(0b110, 3).code(0b10, 2)
}

#[test]
fn what_zlib_takes_is_passed() {
    let streams = [
        ("an empty block", fixed().code(0, 7), vec![]),
        ("a fixed block", fixed().code(0x30 + 97, 8).code(0, 7), vec![97]),
        ("the longest length", fixed().code(0x30 + 97, 8).code(0b1100_0101, 8).code(0, 5).code(0, 7), vec![97; 259]),
        ("two codes", a_and_end(dynamic(257, 1), 257, &[0]).code(0, 1).code(1, 1), vec![97]),
        ("30 distances", a_and_end(dynamic(257, 30), 257, &[0; 30]).code(0, 1).code(1, 1), vec![97]),
        ("286 literals", a_and_end(dynamic(286, 1), 286, &[0]).code(0, 1).code(1, 1), vec![97]),
        ("a single distance", a_and_end(dynamic(257, 1), 257, &[1]).code(0, 1).code(1, 1), vec![97]),
        (
            "a single distance that occurs",
            a_run_and_end().code(0, 1).code(0b11, 2).code(0, 1).code(0b10, 2),
            vec![97; 4],
        ),
    ];
    for (what, Writer { bytes, .. }, content) in streams {
        assert!(is_passed(&bytes, &content), "{what}");
        assert_eq!(inflated_by_libdeflate(&bytes, 1000), Some(content), "{what}");
    }
}

#[test]
fn what_libdeflate_takes_and_zlib_refuses_is_not_passed() {
    let streams = [
        ("length symbol 286", fixed().code(0x30 + 97, 8).code(0b1100_0110, 8).code(0, 5).code(0, 7)),
        ("length symbol 287", fixed().code(0x30 + 97, 8).code(0b1100_0111, 8).code(0, 5).code(0, 7)),
        ("31 distances", a_and_end(dynamic(257, 31), 257, &[0; 31]).code(0, 1).code(1, 1)),
        ("32 distances", a_and_end(dynamic(257, 32), 257, &[0; 32]).code(0, 1).code(1, 1)),
        ("287 literals", a_and_end(dynamic(287, 1), 287, &[0]).code(0, 1).code(1, 1)),
        ("the other value of a single distance", a_run_and_end().code(0, 1).code(0b11, 2).code(1, 1).code(0b10, 2)),
        ("distance symbol 30", far().number(1, 1).number(1, 2).code(1, 7).code(30, 5).number(0, 13).code(0, 7)),
        ("distance symbol 31", far().number(1, 1).number(1, 2).code(1, 7).code(31, 5).number(0, 13).code(0, 7)),
        ("288 literals", a_and_end(dynamic(288, 1), 288, &[0]).code(0, 1).code(1, 1)),
    ];
    for (what, Writer { bytes, .. }) in streams {
        let content = inflated_by_libdeflate(&bytes, 50_000).expect(what);
        assert!(!is_passed(&bytes, &content), "{what}");
    }
}
