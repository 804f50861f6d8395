// SPDX-License-Identifier: Apache-2.0
//! Images of pieces that are stored in every way there is, and what the guest sees of them.

use super::*;

/// A file that direct I/O reads where it may.
pub(super) fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let direct = File::options().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(file.path());
    Region::whole(Arc::new(file.into_file()), "source", bytes.len() as u64).also_direct(direct.ok().map(Arc::new))
}

/// What a cluster of the guest holds, and how the source stores it.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Absent,
    StoredZeros,
    Stored(u8),
    Random(u32),
    Zlib(u8),
    /// A zlib stream with more bytes behind it.
    ZlibAndJunk(u8),
    Deflate(u8),
    Zstd(u8),
    /// Zeros but for one byte.
    OneByte(u16),
    /// A zlib stream that is longer than what it holds.
    ZlibNoise(u32),
    /// A zlib stream behind a marker; the extent's `reach` is the exact length, or more.
    Framed(u8),
}

pub(super) fn bytes_of(piece: &Piece, len: usize) -> Vec<u8> {
    match piece {
        Piece::Absent | Piece::StoredZeros => vec![0; len],
        Piece::Stored(seed)
        | Piece::Zlib(seed)
        | Piece::ZlibAndJunk(seed)
        | Piece::Deflate(seed)
        | Piece::Zstd(seed)
        | Piece::Framed(seed) => (0..len).map(|at| (at / 7).to_le_bytes()[0].wrapping_mul(*seed)).collect(),
        Piece::OneByte(place) => {
            let mut bytes = vec![0; len];
            bytes[usize::from(*place) % len] = 1;
            bytes
        }
        Piece::Random(seed) | Piece::ZlibNoise(seed) => {
            let mut state = *seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24).to_le_bytes()[0]
            };
            (0..len).map(|_| next()).collect()
        }
    }
}

pub(super) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// How a piece lies in the file: its bytes, and the location it has once it is known where.
pub(super) fn stored(piece: &Piece, start: usize, bytes: &[u8]) -> (Vec<u8>, Box<dyn Fn(u64) -> Location>) {
    let short = |len: usize| u32::try_from(len).unwrap();
    match piece {
        Piece::Absent => (Vec::new(), Box::new(|_| Location::Zero)),
        Piece::StoredZeros | Piece::Stored(_) | Piece::Random(_) | Piece::OneByte(_) => {
            (bytes.to_vec(), Box::new(|offset| Location::Stored { file: 0, offset }))
        }
        Piece::Zlib(_) | Piece::ZlibAndJunk(_) | Piece::ZlibNoise(_) => {
            let mut stream = zlib(bytes);
            if matches!(piece, Piece::ZlibAndJunk(_)) {
                stream.extend_from_slice(b"junk behind the stream");
            }
            let len = short(stream.len());
            (stream, Box::new(move |offset| Location::Deflate { file: 0, offset, len, zlib: true }))
        }
        Piece::Deflate(_) => {
            let stream = zlib(bytes);
            let len = short(stream.len()) + 700;
            let body = stream[2..stream.len() - 4].to_vec();
            (body, Box::new(move |offset| Location::Deflate { file: 0, offset, len, zlib: false }))
        }
        Piece::Zstd(_) => {
            let stream = zstd::bulk::compress(bytes, 1).unwrap();
            let len = short(stream.len()) + 900;
            (stream, Box::new(move |offset| Location::Zstd { file: 0, offset, len }))
        }
        Piece::Framed(seed) => {
            let stream = zlib(bytes);
            let whole = short(stream.len()) + 12;
            let reach = [whole, whole + 300][usize::from(*seed) % 2];
            let marker = [&(start as u64 / 512).to_le_bytes()[..], &short(stream.len()).to_le_bytes()].concat();
            let padding = [0xEE; 300];
            let grain = [&marker[..], &stream, &padding].concat();
            (grain, Box::new(move |offset| Location::Framed { file: 0, offset, reach }))
        }
    }
}

/// An image of pieces of `unit` bytes, the last cut at `size`, and what the guest sees.
pub(super) fn image(pieces: &[Piece], unit: usize, size: usize) -> (Image, Vec<u8>) {
    let (file, image, guest) = image_in_order(100, 1, &(0..pieces.len()).collect::<Vec<_>>(), pieces, unit, size);
    (image(region(&file)), guest)
}

/// The same as a file, the image over it, and what the guest sees. The file has the pieces from `start` on in
/// `order`, each at a multiple of `align`.
pub(super) fn image_in_order(
    start: usize,
    align: usize,
    order: &[usize],
    pieces: &[Piece],
    unit: usize,
    size: usize,
) -> (Vec<u8>, impl Fn(Region) -> Image + use<>, Vec<u8>) {
    let (mut file, mut guest) = (vec![0xEE; start], vec![0; size]);
    let mut extents = Vec::new();
    for &number in order.iter().filter(|&&number| number * unit < size) {
        let (start, end) = (number * unit, size.min((number + 1) * unit));
        let bytes = bytes_of(&pieces[number], unit);
        guest[start..end].copy_from_slice(&bytes[..end - start]);
        let (stored, location) = stored(&pieces[number], start, &bytes);
        file.resize(file.len().next_multiple_of(align), 0xEE);
        extents.push(Extent { guest: start as u64..end as u64, at: location(file.len() as u64) });
        file.extend_from_slice(&stored);
    }
    extents.sort_by_key(|extent| extent.guest.start);
    let image = move |region| Image {
        regions: vec![region],
        reader: Reader::Listed { kind: "listed", extents: extents.clone() },
    };
    (file, image, guest)
}

pub(super) fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        3 => Just(Piece::Absent),
        1 => Just(Piece::StoredZeros),
        2 => any::<u8>().prop_map(Piece::Stored),
        2 => any::<u32>().prop_map(Piece::Random),
        2 => any::<u8>().prop_map(Piece::Zlib),
        1 => any::<u8>().prop_map(Piece::ZlibAndJunk),
        1 => any::<u8>().prop_map(Piece::Deflate),
        1 => any::<u8>().prop_map(Piece::Zstd),
        2 => any::<u8>().prop_map(Piece::Framed),
        1 => any::<u16>().prop_map(Piece::OneByte),
        1 => any::<u32>().prop_map(Piece::ZlibNoise),
    ];
    proptest::collection::vec(piece, 1..40)
}

/// The same, and the order in which they lie in their file: ascending or any other.
pub(super) fn pieces_in_order() -> impl Strategy<Value = (Vec<Piece>, Vec<usize>)> {
    pieces().prop_flat_map(|pieces| {
        let order: Vec<_> = (0..pieces.len()).collect();
        (Just(pieces), prop_oneof![1 => Just(order.clone()), 3 => Just(order).prop_shuffle()])
    })
}
