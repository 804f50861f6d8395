//! Streams of several compressors, damaged ones, and such as no compressor makes.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use libdeflater::{CompressionLvl, Compressor, Decompressor};
use proptest::prelude::*;

use super::*;

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
        let mut compress = Compress::new_with_window_bits(Compression::new(level), false, window);
        let status = compress.compress(content, &mut stream, FlushCompress::Finish).unwrap();
        assert_eq!(status, Status::StreamEnd);
        stream.truncate(usize::try_from(compress.total_out()).unwrap());
    }
    stream
}

/// What zlib makes of the stream at the beginning of `input`: the bytes, and the stream's length.
fn inflated_by_zlib(input: &[u8], most: usize) -> Option<(Vec<u8>, usize)> {
    let mut inflate = Decompress::new(false);
    let mut bytes = vec![0; most];
    match inflate.decompress(input, &mut bytes, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) => {
            bytes.truncate(usize::try_from(inflate.total_out()).unwrap());
            Some((bytes, usize::try_from(inflate.total_in()).unwrap()))
        }
        _ => None,
    }
}

fn inflated_by_libdeflate(input: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    let len = Decompressor::new().deflate_decompress(input, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

proptest! {
    #[test]
    fn the_walk_ends_where_the_stream_does(content in content(), kind in 1usize..33, junk in proptest::collection::vec(any::<u8>(), 0..20)) {
        prop_assume!(kind != 10 && kind != 11);
        let stream = deflated(&content, kind);
        let mut walk = Walk::new();
        prop_assert_eq!(walk.len(&stream), Some(stream.len()));
        prop_assert_eq!(walk.len(&[&stream[..], &junk].concat()), Some(stream.len()));
        for cut in 0..stream.len().min(40) {
            prop_assert_eq!(walk.len(&stream[..stream.len() - 1 - cut]), None);
        }
    }

    #[test]
    fn what_the_walk_takes_and_libdeflate_inflates_zlib_inflates_to_the_same(
        content in content(),
        kind in 20usize..33,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8, any::<bool>()), 1..4),
    ) {
        let mut stream = deflated(&content, kind);
        let len = stream.len();
        for (at, bit, in_header) in flips {
            stream[at.index(if in_header { len.min(80) } else { len })] ^= 1 << bit;
        }
        let most = 1 << 20;
        if let (Some(len), Some(bytes)) = (Walk::new().len(&stream), inflated_by_libdeflate(&stream, most)) {
            prop_assert!(inflated_by_zlib(&stream, most) == Some((bytes, len)));
        }
    }

    #[test]
    fn any_bytes_are_walked_through_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        if let Some(len) = Walk::new().len(&bytes) {
            prop_assert!(len <= bytes.len());
        }
    }
}

/// Writes a stream bit by bit.
#[derive(Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
    used: usize,
}

impl Writer {
    /// A number, its lowest bit first.
    pub fn number(mut self, value: usize, bits: usize) -> Self {
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
    pub fn code(self, code: usize, bits: usize) -> Self {
        (0..bits).rev().fold(self, |writer, bit| writer.number(code >> bit, 1))
    }

    /// The lengths of a header's own codes, in the order of their symbols.
    fn own_lens(self, lens: [usize; 19]) -> Self {
        HEADER_ORDER.iter().fold(self, |writer, &symbol| writer.number(lens[symbol], 3))
    }
}

/// A last block with fixed codes.
pub fn fixed() -> Writer {
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
fn what_zlib_takes_is_taken() {
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
        assert_eq!(inflated_by_zlib(&bytes, 1000), Some((content.clone(), bytes.len())), "{what}");
        assert_eq!(inflated_by_libdeflate(&bytes, 1000), Some(content), "{what}");
        assert_eq!(Walk::new().len(&bytes), Some(bytes.len()), "{what}");
    }
}

#[test]
fn what_libdeflate_takes_and_zlib_refuses_is_refused() {
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
        assert!(inflated_by_libdeflate(&bytes, 50_000).is_some(), "{what}");
        assert_eq!(inflated_by_zlib(&bytes, 50_000), None, "{what}");
        assert_eq!(Walk::new().len(&bytes), None, "{what}");
    }
}

#[test]
fn what_is_damaged_is_refused() {
    let streams = [
        ("a block of no kind", Writer::default().number(1, 1).number(3, 2).number(0, 30)),
        (
            "a stored block's length",
            Writer::default().number(1, 1).number(0, 7).number(5, 16).number(5, 16).number(0, 40),
        ),
        ("more codes than bits", dynamic(257, 1).own_lens([1; 19])),
        ("fewer codes than bits", dynamic(257, 1).own_lens([5; 19])),
        (
            "no end of a block",
            dynamic(257, 1).own_lens(OWN).code(0b111, 3).number(127, 7).code(0b111, 3).number(108, 7).number(0, 40),
        ),
        (
            "zeros beyond the last",
            dynamic(257, 1).own_lens(OWN).code(0b111, 3).number(127, 7).code(0b111, 3).number(127, 7).number(0, 40),
        ),
        ("nothing to repeat", {
            let mut own = [0; 19];
            own[16] = 1;
            own[1] = 1;
            dynamic(257, 1).own_lens(own).code(1, 1).number(0, 40)
        }),
    ];
    for (what, Writer { bytes, .. }) in streams {
        assert_eq!(inflated_by_zlib(&bytes, 1000), None, "{what}");
        assert_eq!(Walk::new().len(&bytes), None, "{what}");
    }
}
