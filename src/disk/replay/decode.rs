// SPDX-License-Identifier: Apache-2.0
//! Turns a batch's bytes into guest bytes.

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::{DecompressionError, Decompressor, adler32};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::consumed::Consumed;
use super::load::{Bytes, Codec, Loaded, Piece};
use crate::disk::{Error, Image};

/// Largest window that the decoder keeps: log2 of the largest cluster, beyond which nothing in one refers back.
const ZSTD_WINDOW_LOG: u32 = 21;
/// Largest window that a zstd frame may state: zstd's own limit, and QEMU's.
const ZSTD_MOST_WINDOW_LOG: u8 = 27;
/// zlib's header, and its adler32 at the end (RFC 1950, section 2.2).
pub(crate) const ZLIB_HEADER: usize = 2;
const ZLIB_TRAILER: usize = 4;

/// The decoders of one thread.
pub(crate) struct Decode {
    inflate: Decompressor,
    /// zlib's own inflate, which QEMU uses: it refuses symbols that RFC 1951 rules out and libdeflate accepts, and tells
    /// where a stream ends. It takes longer.
    strict: Decompress,
    zstd: Option<Decoder<'static>>,
    scratch: Vec<u8>,
}

/// Guest bytes that came out of a stream, and the bytes of it that went in; 0 where the stream's length was known.
struct Decoded {
    len: usize,
    used: usize,
}

/// Why nothing came out.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    /// The target is full, and the stream goes on.
    Full,
    Bad,
}

impl Decode {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompressor::new(), strict: Decompress::new(false), zstd: None, scratch: Vec::new() }
    }

    /// Decodes a batch of `image`: `loaded.buffer` then has the guest's bytes, and zeros behind the batch's end. Returns
    /// the streams whose ends were not known before.
    pub(crate) fn run(&mut self, image: &Image, loaded: &mut Loaded) -> Result<Vec<Consumed>, Error> {
        let Loaded { guest, pieces, buffer, input, .. } = loaded;
        let size = image.virtual_size();
        let mut done = 0;
        let mut consumed = Vec::new();
        for Piece { place, bytes } in pieces {
            buffer[done..place.start].fill(0);
            done = place.end;
            let Bytes::Compressed(stream) = bytes else { continue };
            let target = &mut buffer[place.clone()];
            // The disk may end within its last cluster or grain, which is whole in the file.
            let ends_disk = guest.start + place.end as u64 == size;
            let most = if ends_disk { target.len().max(image.unit()) } else { target.len() };
            let input = &input[stream.input.clone()];
            let guest = guest.start + place.start as u64;
            let used = self.stream(stream.codec, input, target, most).map_err(|what| {
                let message = format!("the data for guest byte {guest} {what}");
                Error::corrupt(image.regions[stream.file].name(), stream.offset, message)
            })?;
            if used > 0 {
                let range = stream.offset..stream.offset + used as u64;
                consumed.push(Consumed { file: stream.file, range, guest });
            }
        }
        buffer[done..].fill(0);
        Ok(consumed)
    }

    /// Decodes `input` into `target`, and returns how much of `input` that took, where it was not known. The stream may
    /// yield up to `most` bytes; those beyond `target` are dropped. The error says what is wrong with it.
    fn stream(&mut self, codec: Codec, input: &[u8], target: &mut [u8], most: usize) -> Result<usize, String> {
        let needed = target.len();
        let decoded = match self.decode(codec, input, target, needed) {
            Err(Failed::Full) if most > needed => {
                let mut scratch = std::mem::take(&mut self.scratch);
                scratch.resize(most, 0);
                let decoded = self.decode(codec, input, &mut scratch, needed).map(|decoded| {
                    let kept = decoded.len.min(needed);
                    target[..kept].copy_from_slice(&scratch[..kept]);
                    Decoded { len: kept, ..decoded }
                });
                self.scratch = scratch;
                decoded
            }
            decoded => decoded,
        };
        match decoded {
            Ok(Decoded { len, used }) if len == needed => Ok(used),
            Ok(Decoded { len, .. }) => Err(format!("decodes to {len} bytes, expected {needed}")),
            Err(_) => Err("can't be decoded, or its checksum differs".to_owned()),
        }
    }

    fn decode(&mut self, codec: Codec, input: &[u8], target: &mut [u8], needed: usize) -> Result<Decoded, Failed> {
        match codec {
            Codec::Deflate => self.inflate_strictly(input, false, target),
            Codec::Zlib => {
                let body = input.get(ZLIB_HEADER..).unwrap_or_default();
                if may_hold_reserved_symbols(body) {
                    return self.inflate_strictly(input, true, target).map(|decoded| Decoded { used: 0, ..decoded });
                }
                match self.inflate.zlib_decompress(input, target) {
                    Ok(len) => Ok(Decoded { len, used: 0 }),
                    Err(DecompressionError::InsufficientSpace) => Err(Failed::Full),
                    Err(DecompressionError::BadData) => Err(Failed::Bad),
                }
            }
            // What zstd says of a full target is not told from damage.
            Codec::Zstd => self.zstd(input, target, needed).ok_or(Failed::Full),
        }
    }

    fn inflate_strictly(&mut self, input: &[u8], zlib: bool, target: &mut [u8]) -> Result<Decoded, Failed> {
        self.strict.reset(zlib);
        let ended = self.strict.decompress(input, target, FlushDecompress::Finish);
        let count = |total: u64| usize::try_from(total).expect("within slices");
        let (len, used) = (count(self.strict.total_out()), count(self.strict.total_in()));
        match ended {
            Ok(Status::StreamEnd) => Ok(Decoded { len, used }),
            Ok(_) if len == target.len() => Err(Failed::Full),
            _ => Err(Failed::Bad),
        }
    }

    /// Decodes zstd frames, one behind the other, until they have yielded `needed` bytes. As QEMU has it, each must be
    /// whole, with the checksum that it announces, and fit into `target`; what follows them in `input` is not looked at.
    fn zstd(&mut self, input: &[u8], target: &mut [u8], needed: usize) -> Option<Decoded> {
        let decoder = match &mut self.zstd {
            Some(decoder) => {
                decoder.reinit().ok()?;
                decoder
            }
            none => {
                let mut decoder = Decoder::new().ok()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).ok()?;
                none.insert(decoder)
            }
        };
        let mut sink = OutBuffer::around(target);
        let mut used = 0;
        loop {
            // At a frame's start.
            let narrowed = narrowed(&input[used..]);
            let mut source = InBuffer::around(narrowed.as_deref().unwrap_or(&input[used..]));
            loop {
                let (before, filled) = (source.pos(), sink.pos());
                let more = decoder.run(&mut source, &mut sink).ok()?;
                if more == 0 {
                    break;
                }
                if source.pos() == before && sink.pos() == filled {
                    return None;
                }
            }
            if source.pos() == 0 {
                return None;
            }
            used += source.pos();
            if sink.pos() >= needed {
                return Some(Decoded { len: sink.pos(), used });
            }
        }
    }

    /// Inflates a zlib stream into `target` and returns its deflate part where it may be passed on as it is: as QEMU
    /// inflates it, it fills `target` exactly and ends with its adler32 at the end of `input`. `None` says nothing
    /// about the stream: decode it the usual way.
    pub(crate) fn pass_through<'a>(&mut self, input: &'a [u8], target: &mut [u8]) -> Option<&'a [u8]> {
        let (header, rest) = input.split_first_chunk::<ZLIB_HEADER>()?;
        let (body, trailer) = rest.split_last_chunk::<ZLIB_TRAILER>()?;
        if !is_zlib_header(*header) {
            return None;
        }
        self.strict.reset(false);
        let is_whole = matches!(self.strict.decompress(body, target, FlushDecompress::Finish), Ok(Status::StreamEnd))
            && self.strict.total_in() == body.len() as u64
            && self.strict.total_out() == target.len() as u64
            && adler32(target).to_be_bytes() == *trailer;
        is_whole.then_some(body)
    }
}

/// The zstd frame at the start of `frame` with a smaller window, where it states one larger than any cluster: within a
/// cluster nothing refers further back, and the decoder would take memory for it (RFC 8878, section 3.1.1.1).
fn narrowed(frame: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let [a, b, c, d, descriptor, window, ..] = *frame else { return None };
    let exponent = 10 + (window >> 3);
    let (least, mantissa) = (u8::try_from(ZSTD_WINDOW_LOG).expect("small"), window & 7);
    let is_wide = exponent > least || (exponent == least && mantissa > 0);
    let is_taken = exponent < ZSTD_MOST_WINDOW_LOG || (exponent == ZSTD_MOST_WINDOW_LOG && mantissa == 0);
    if [a, b, c, d] != MAGIC || descriptor & SINGLE_SEGMENT != 0 || !is_wide || !is_taken {
        return None;
    }
    let mut frame = frame.to_vec();
    frame[5] = (least - 10) << 3;
    Some(frame)
}

/// Whether the deflate stream `body` may use the symbols 286, 287 or the distances 30, 31, which RFC 1951 (section 3.2.6)
/// rules out: only blocks with fixed codes, or with more codes than there are symbols, can. Looks at the first block that
/// is not stored.
fn may_hold_reserved_symbols(body: &[u8]) -> bool {
    // 286 codes of literals and lengths, counted from 257; 30 of distances, counted from 1.
    const MOST_LENGTHS: u8 = 29;
    const MOST_DISTANCES: u8 = 29;
    let mut rest = body;
    loop {
        let [first, ..] = *rest else { return false };
        match (first >> 1 & 3, first & 1) {
            // The last block is stored.
            (0, 1) => return false,
            (0, _) => {
                let [_, low, high, _, _, ..] = *rest else { return false };
                let len = usize::from(u16::from_le_bytes([low, high]));
                let Some(next) = rest.get(5 + len..) else { return false };
                rest = next;
            }
            (2, _) => {
                let [_, second, ..] = *rest else { return false };
                return first >> 3 > MOST_LENGTHS || second & 0x1F > MOST_DISTANCES;
            }
            _ => return true,
        }
    }
}

/// Deflate with a window of 32 KiB at most and no dictionary, and the check bits right (RFC 1950, section 2.2).
fn is_zlib_header([cmf, flg]: [u8; ZLIB_HEADER]) -> bool {
    cmf & 0x0F == 8 && cmf >> 4 <= 7 && flg & 0x20 == 0 && u16::from_be_bytes([cmf, flg]).is_multiple_of(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of a deflate stream, the first in the lowest place.
    #[derive(Default)]
    struct Bits(Vec<bool>);

    impl Bits {
        /// A number, its lowest bit first.
        fn number(mut self, value: u32, len: u32) -> Self {
            self.0.extend((0..len).map(|bit| value >> bit & 1 == 1));
            self
        }

        /// A Huffman code, its highest bit first.
        fn code(mut self, value: u32, len: u32) -> Self {
            self.0.extend((0..len).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        fn bytes(self) -> Vec<u8> {
            self.0.chunks(8).map(|byte| byte.iter().rev().fold(0, |value, bit| value << 1 | u8::from(*bit))).collect()
        }
    }

    /// A block with fixed codes: the letter `a`, then a length and a distance, then its end.
    fn fixed(length: (u32, u32), distance: u32, extra: u32) -> Vec<u8> {
        let block = Bits::default().number(1, 1).number(1, 2).code(0x30 + u32::from(b'a'), 8);
        block.code(length.0, length.1).code(distance, 5).number(0, extra).code(0, 7).bytes()
    }

    fn zlib(body: &[u8], guest: &[u8]) -> Vec<u8> {
        [&[0x78, 0x9C], body, &adler32(guest).to_be_bytes()].concat()
    }

    #[test]
    fn symbols_that_the_rfc_rules_out_are_refused_as_zlib_refuses_them() {
        // 257 has the code 1, 286 the code 198: lengths of 3 and, to libdeflate, of 258.
        let (three, odd_length) = ((1, 7), (0b1100_0110, 8));
        for (name, stream, len, is_good) in [
            ("a length of 3", fixed(three, 0, 0), 4, true),
            ("symbol 286", fixed(odd_length, 0, 0), 259, false),
            ("symbol 287", fixed((0b1100_0111, 8), 0, 0), 259, false),
            ("distance 30", fixed(three, 30, 13), 4, false),
            ("distance 31", fixed(three, 31, 13), 4, false),
        ] {
            let guest = vec![b'a'; len];
            for stored in [false, true] {
                // A stored block without bytes before it.
                let before: &[u8] = if stored { &[0, 0, 0, 0xFF, 0xFF] } else { &[] };
                let stream = [before, &stream].concat();
                for (codec, input) in [(Codec::Deflate, stream.clone()), (Codec::Zlib, zlib(&stream, &guest))] {
                    let mut target = vec![0; len];
                    let decoded = Decode::new().stream(codec, &input, &mut target, len);
                    assert_eq!(decoded.is_ok(), is_good, "{name} {codec:?}");
                    assert!(!is_good || target == guest);
                }
            }
        }
        assert!(may_hold_reserved_symbols(&[0b1111_0100, 0]), "287 codes of lengths");
        assert!(may_hold_reserved_symbols(&[0b0000_0100, 30]), "31 codes of distances");
        assert!(!may_hold_reserved_symbols(&[0b1110_1100, 29]));
    }

    #[test]
    fn a_stream_tells_where_it_ends_whatever_follows() {
        let guest = vec![7; 4096];
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
        std::io::Write::write_all(&mut deflate, &guest).unwrap();
        let streams =
            [(Codec::Deflate, deflate.finish().unwrap()), (Codec::Zstd, zstd::bulk::compress(&guest, 3).unwrap())];
        for (codec, stream) in streams {
            let mut target = vec![0; 4096];
            let used = Decode::new().stream(codec, &[&stream[..], &[0xAA; 100]].concat(), &mut target, 4096).unwrap();
            assert_eq!((used, &target), (stream.len(), &guest), "{codec:?}");
        }
    }

    #[test]
    fn a_window_wider_than_a_cluster_costs_no_memory() {
        let guest: Vec<u8> = (0..65536_u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
        for log in [17, 21, 22, 27, 28] {
            let mut encoder = zstd::stream::raw::Encoder::new(3).unwrap();
            encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(log.min(27))).unwrap();
            let mut stream = vec![0; 70_000];
            let mut sink = OutBuffer::around(&mut stream);
            let mut source = InBuffer::around(&guest);
            while source.pos() < guest.len() {
                encoder.run(&mut source, &mut sink).unwrap();
            }
            while encoder.finish(&mut sink, true).unwrap() > 0 {}
            let len = sink.pos();
            stream.truncate(len);
            assert_eq!(stream[4] & 1 << 5, 0, "it states its window");
            stream[5] = u8::try_from((log - 10) << 3).unwrap();
            let mut target = vec![0; guest.len()];
            let decoded = Decode::new().stream(Codec::Zstd, &stream, &mut target, guest.len());
            assert_eq!(decoded.is_ok(), log <= 27, "{log}: {decoded:?}");
            assert!(log > 27 || target == guest, "{log}");
            // A second frame behind it, cut in the middle of the guest's bytes.
            let twice = [&stream[..], &stream[..]].concat();
            let mut target = vec![0; 2 * guest.len()];
            let decoded = Decode::new().stream(Codec::Zstd, &twice, &mut target, 2 * guest.len());
            assert_eq!(decoded.ok(), (log <= 27).then_some(twice.len()), "{log}");
        }
    }
}
