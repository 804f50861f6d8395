// SPDX-License-Identifier: Apache-2.0
//! Turns guest bytes into what a writer stores: runs that are not zero, or compressed clusters.

use std::ops::Range;

use flate2::{Compress, FlushCompress, Status};
use libdeflater::{CompressionLvl, Compressor};

use crate::conversion::Compression;
use crate::disk::buffer::{Buffer, is_zero};
use crate::disk::replay::consumed::Consumed;
use crate::disk::replay::decode::{self, Decode};
use crate::disk::replay::load::{Bytes, Codec, Loaded, Piece, Stream};
use crate::disk::units::CLUSTER_BYTES;
use crate::disk::writer::coded::{Cluster, Coded, Coding, Content};
use crate::disk::{Error, Image};

/// Window of QEMU's own deflate clusters: log2 of 4 KiB.
const STRICT_WINDOW_LOG: u8 = 12;
const ZLIB_LEVEL: u32 = 6;
const ZSTD_LEVEL: u32 = 3;

/// The encoders and decoders of one thread.
pub(super) struct Encode {
    decode: Decode,
    encoder: Encoder,
    coding: Coding,
    /// Room for one compressed cluster, written over and over.
    scratch: Vec<u8>,
}

enum Encoder {
    None,
    Deflate(Compressor),
    /// Deflate with a 4 KiB window.
    Strict(Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encode {
    pub(super) fn new(coding: Coding) -> Result<Self, std::io::Error> {
        let encoder = match coding {
            Coding::Runs { .. } => Encoder::None,
            Coding::Packed { compression, level } => Encoder::new(compression, level)?,
        };
        Ok(Self { decode: Decode::new(), encoder, coding, scratch: vec![0; CLUSTER_BYTES] })
    }

    /// Decodes and encodes a batch of `image`. Gives back the input's memory too, and which streams were decoded.
    pub(super) fn run(&mut self, image: &Image, mut loaded: Loaded) -> Result<(Coded, Vec<Consumed>, Buffer), Error> {
        let (content, consumed) = match self.coding {
            Coding::Runs { unit } => {
                let consumed = self.decode.run(image, &mut loaded)?;
                (Content::Runs(runs(&loaded.buffer, loaded.len(), unit)), consumed)
            }
            Coding::Packed { compression, .. } => {
                let passed = if compression == Compression::Zlib { self.pass_through(&mut loaded) } else { Vec::new() };
                let consumed = self.decode.run(image, &mut loaded)?;
                (self.pack(&loaded, &passed), consumed)
            }
        };
        let Loaded { guest, buffer, input, .. } = loaded;
        Ok((Coded { guest, buffer, content }, consumed, input))
    }

    /// Finds the streams that can be passed on as they are. Verifying them leaves their guest bytes in the buffer.
    /// Returns the cluster and the input range of each.
    fn pass_through(&mut self, loaded: &mut Loaded) -> Vec<(usize, Range<usize>)> {
        let Loaded { pieces, buffer, input, .. } = loaded;
        let mut passed = Vec::new();
        for Piece { place, bytes } in pieces {
            let Bytes::Compressed(Stream { codec: Codec::Zlib, input: stream, .. }) = bytes else { continue };
            // A batch begins at a cluster.
            if !place.start.is_multiple_of(CLUSTER_BYTES) || place.len() != CLUSTER_BYTES {
                continue;
            }
            if let Some(body) = self.decode.pass_through(&input[stream.clone()], &mut buffer[place.clone()]) {
                let start = stream.start + decode::ZLIB_HEADER;
                passed.push((place.start / CLUSTER_BYTES, start..start + body.len()));
                *bytes = Bytes::InBuffer;
            }
        }
        passed
    }

    fn pack(&mut self, loaded: &Loaded, passed: &[(usize, Range<usize>)]) -> Content {
        let len = loaded.len().next_multiple_of(CLUSTER_BYTES);
        let mut packed = Vec::with_capacity(len);
        let mut clusters = Vec::with_capacity(len / CLUSTER_BYTES);
        let mut passed = passed.iter().peekable();
        for (number, cluster) in loaded.buffer[..len].chunks_exact(CLUSTER_BYTES).enumerate() {
            let body = passed.next_if(|(of, _)| *of == number).map(|(_, range)| &loaded.input[range.clone()]);
            if is_zero(cluster) {
                clusters.push(Cluster::Zero);
                continue;
            }
            let compressed = match body {
                Some(body) => Some(body),
                None => self.encoder.compress(cluster, &mut self.scratch).map(|len| &self.scratch[..len]),
            };
            match compressed.filter(|bytes| bytes.len() < CLUSTER_BYTES) {
                Some(bytes) => {
                    packed.extend_from_slice(bytes);
                    clusters.push(Cluster::Packed(u32::try_from(bytes.len()).expect("below 64 KiB")));
                }
                None => clusters.push(Cluster::Plain),
            }
        }
        Content::Packed { packed, clusters }
    }
}

impl Encoder {
    fn new(compression: Compression, level: Option<u32>) -> Result<Self, std::io::Error> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Zlib => {
                let level = i32::try_from(level.unwrap_or(ZLIB_LEVEL).clamp(1, 12)).expect("at most 12");
                Self::Deflate(Compressor::new(CompressionLvl::new(level).expect("libdeflate has levels 0 to 12")))
            }
            Compression::ZlibStrict => {
                // At level 1 with a small output buffer zlib-rs panics.
                let level = flate2::Compression::new(level.unwrap_or(ZLIB_LEVEL).clamp(2, 9));
                Self::Strict(Compress::new_with_window_bits(level, false, STRICT_WINDOW_LOG))
            }
            Compression::Zstd => {
                let level = i32::try_from(level.unwrap_or(ZSTD_LEVEL).clamp(1, 22)).expect("at most 22");
                Self::Zstd(zstd::bulk::Compressor::new(level)?)
            }
        })
    }

    /// Compresses a cluster into `target` and returns the length; `None` where it does not fit.
    fn compress(&mut self, cluster: &[u8], target: &mut [u8]) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Deflate(compressor) => compressor.deflate_compress(cluster, target).ok(),
            Self::Strict(compress) => {
                compress.reset();
                match compress.compress(cluster, target, FlushCompress::Finish) {
                    Ok(Status::StreamEnd) => usize::try_from(compress.total_out()).ok(),
                    _ => None,
                }
            }
            // Compression fails only where `target` is too small.
            Self::Zstd(compressor) => compressor.compress_to_buffer(cluster, target).ok(),
        }
    }
}

/// The runs of units in the first `len` bytes that are not all zeros; the last may end within a unit.
fn runs(buffer: &[u8], len: usize, unit: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for start in (0..len).step_by(unit) {
        let end = (start + unit).min(len);
        if is_zero(&buffer[start..end]) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}
