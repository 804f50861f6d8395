// SPDX-License-Identifier: Apache-2.0
//! The table: which source becomes what, against whom, and what is demanded.

use crate::measure::Place;

/// Largest ratios to the peer, and seconds, that are demanded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    pub wall: Option<f64>,
    pub cpu: Option<f64>,
    pub size: Option<f64>,
    /// Largest ratio of the output's size to the source's: grains that are passed through get no larger.
    pub kept: Option<f64>,
    pub seconds: Option<f64>,
}

/// Whom a row is compared with.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// qemu-img with this source format and these words, at its best flags.
    Qemu(&'static str, Vec<&'static str>),
    /// This program, with this source and these words, anywhere.
    Ourselves(&'static str, Vec<&'static str>),
    /// This program with one thread, in one round: it must make the same bytes.
    OneThread,
    /// The slower of two: this program with this source and no digest, and a SHA-256 of this source by OpenSSL.
    Slower(&'static str),
    Nobody,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub name: String,
    pub source: &'static str,
    pub ours: Vec<&'static str>,
    pub peer: Peer,
    pub place: Place,
    /// The output's format, and the raw image that it must equal; empty: not compared.
    pub output: &'static str,
    pub truth: &'static str,
    pub demand: Demand,
}

/// What a source becomes.
#[derive(Clone, Copy, Debug)]
enum Output {
    Qcow2,
    Raw,
    Vdi,
    Zlib,
    Strict,
    Zstd,
}

use Output::{Qcow2, Raw, Strict, Vdi, Zlib, Zstd};

const OUTPUTS: [Output; 6] = [Qcow2, Raw, Vdi, Zlib, Strict, Zstd];
const SOURCES: [&str; 12] = [
    "stream.vmdk",
    "stream.ova",
    "sparse.vmdk",
    "disk.raw",
    "disk.vhd",
    "disk.vdi",
    "disk.vhdx",
    "disk.qcow2",
    "zlib.qcow2",
    "zstd.qcow2",
    "noise.raw",
    "noise.vmdk",
];
/// Disks of data that nobody compressed.
const DISKS: [&str; 4] = ["disk.raw", "disk.vhd", "disk.vdi", "disk.vhdx"];
/// A word of the benchmark instead of the program's: see [`crate::buffered`].
pub(crate) const BUFFERED: &str = "--buffered";

impl Output {
    fn what(self) -> &'static str {
        match self {
            Qcow2 => "qcow2",
            Raw => "raw",
            Vdi => "vdi",
            Zlib => "qcow2 zlib",
            Strict => "qcow2 zlib-strict",
            Zstd => "qcow2 zstd",
        }
    }

    fn ours(self) -> &'static [&'static str] {
        match self {
            Qcow2 => &[],
            Raw => &["--format=raw"],
            Vdi => &["--format=vdi"],
            Zlib => &["--compress=zlib"],
            Strict => &["--compress=zlib-strict"],
            Zstd => &["--compress=zstd"],
        }
    }

    fn theirs(self) -> &'static [&'static str] {
        match self {
            Qcow2 => &["-O", "qcow2"],
            Raw => &["-O", "raw"],
            Vdi => &["-O", "vdi"],
            Zlib | Strict => &["-O", "qcow2", "-c"],
            Zstd => &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        }
    }
}

/// What is demanded of a pair.
fn demand(source: &str, output: Output) -> Demand {
    let is_stream = matches!(source, "stream.vmdk" | "stream.ova" | "noise.vmdk");
    let is_plain = source == "noise.raw" || DISKS.contains(&source);
    let (wall, cpu) = match output {
        Qcow2 | Raw if is_stream => (Some(0.30), Some(0.30)),
        Qcow2 | Raw if source == "sparse.vmdk" => (Some(0.40), Some(0.20)),
        Qcow2 | Raw if is_plain => (Some(1.15), Some(0.85)),
        Zlib if is_stream => (Some(0.08), Some(0.08)),
        Zstd if is_stream => (Some(0.40), Some(0.45)),
        Zstd if is_plain => (Some(0.60), None),
        _ => (None, None),
    };
    let size = match output {
        Zlib | Strict => Some(1.03),
        Zstd => Some(1.02),
        Qcow2 | Raw | Vdi => None,
    };
    let kept = (is_stream && matches!(output, Zlib)).then_some(1.0);
    Demand { wall, cpu, size, kept, seconds: None }
}

fn wall(most: f64) -> Demand {
    Demand { wall: Some(most), ..Demand::default() }
}

/// The rows that have a demand, and cheap ones beside them, in the order of docs/performance.md.
pub(crate) fn demanded() -> Vec<Row> {
    let mut rows = pairs();
    rows.extend(digests());
    let dense = "dense.vmdk → qcow2 zlib".to_owned();
    rows.push(row(Place::Anywhere, dense, "dense.vmdk", Zlib.ours(), Peer::Nobody, Demand::default()));
    rows.extend(places());
    rows.extend(against_ourselves());
    rows.extend(threads());
    rows
}

/// Every other pair of source, output and compression, and what else takes long.
pub(crate) fn further() -> Vec<Row> {
    let known: Vec<String> = demanded().into_iter().map(|row| row.name).collect();
    let all = SOURCES.into_iter().flat_map(|source| OUTPUTS.map(|output| pair(source, output)));
    let mut rows: Vec<Row> = all.filter(|row| !known.contains(&row.name)).collect();
    rows.push(peer_zstd("stream.ova"));
    for (name, disk) in [("digest-vdi.ova", "disk.vdi"), ("digest-qcow2.ova", "disk.qcow2")] {
        rows.push(slower(name, disk, Qcow2));
    }
    rows.push(slower("digest-vhd.ova", "disk.vhd", Zlib));
    let checksum = "stream.vmdk → qcow2, checksum against none".to_owned();
    let none = Peer::Ourselves("stream.vmdk", Vec::new());
    rows.push(row(Place::Anywhere, checksum, "stream.vmdk", &["--checksum"], none, Demand::default()));
    rows
}

/// Against qemu-img.
fn pairs() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |source, outputs: &[Output]| rows.extend(outputs.iter().map(|&output| pair(source, output)));
    add("stream.vmdk", &[Qcow2, Raw, Zlib, Zstd]);
    add("stream.ova", &[Qcow2, Raw]);
    for source in DISKS {
        add(source, &[Zstd]);
    }
    add("disk.raw", &[Vdi]);
    for source in ["sparse.vmdk"].into_iter().chain(DISKS) {
        add(source, &[Qcow2, Raw]);
    }
    add("disk.qcow2", &[Qcow2, Raw]);
    add("noise.vmdk", &[Qcow2, Zlib]);
    add("noise.raw", &[Qcow2, Raw, Zstd]);
    rows.push(peer_zstd("stream.vmdk"));
    for (source, seconds) in [("empty.vmdk", None), ("ends.vhd", Some(1.0)), ("ends.vmdk", Some(1.0))] {
        rows.push(Row { demand: Demand { seconds, ..Demand::default() }, ..pair(source, Qcow2) });
    }
    rows
}

/// Noise goes through as many bytes as it has, however little is computed: a copy of it tells what the disk allows.
fn against_ourselves() -> Vec<Row> {
    let against_copy = |output: Output| {
        let name = format!("noise.vmdk → {}, against a copy of the noise", output.what());
        let copy = Peer::Ourselves("noise.raw", Raw.ours().to_vec());
        row(Place::Anywhere, name, "noise.vmdk", output.ours(), copy, wall(1.15))
    };
    [Qcow2, Zlib].map(against_copy).to_vec()
}

fn digests() -> Vec<Row> {
    let mut rows = Vec::new();
    for (output, most) in [(Qcow2, 1.05), (Raw, 1.05), (Zstd, 1.05), (Zlib, 1.15)] {
        let name = format!("digest.ova → {}, digest against none", output.what());
        let none = Peer::Ourselves("stream.ova", output.ours().to_vec());
        rows.push(row(Place::Anywhere, name, "digest.ova", output.ours(), none, wall(most)));
    }
    rows.push(slower("digest-sparse.ova", "sparse.vmdk", Qcow2));
    rows.push(slower("digest-vhd.ova", "disk.vhd", Qcow2));
    rows
}

/// With little of the machine.
fn places() -> Vec<Row> {
    let one = pair("stream.vmdk", Qcow2);
    let name = format!("{}, one CPU", one.name);
    let mut rows = vec![Row { name, place: Place::OneCpu, demand: wall(0.45), ..one }];
    let small = |what: &str, source, words: &[&'static str]| {
        let peer = Peer::Ourselves(source, words.to_vec());
        row(Place::Small, format!("{source} → {what}, 256 MiB against any"), source, words, peer, wall(1.15))
    };
    for (source, output) in
        [("stream.vmdk", Qcow2), ("stream.vmdk", Raw), ("stream.vmdk", Zlib), ("disk.raw", Qcow2), ("disk.raw", Zstd)]
    {
        rows.push(small(output.what(), source, output.ours()));
        let buffered = [&[BUFFERED], output.ours()].concat();
        rows.push(small(&format!("{}, no direct I/O", output.what()), source, &buffered));
    }
    rows
}

/// As many threads as there may be: the most memory, and the same bytes.
fn threads() -> Vec<Row> {
    let eight = |(source, output): (&'static str, Output)| {
        let words = [output.ours(), &["--threads=8"]].concat();
        let name = format!("{source} → {}, 8 threads against one", output.what());
        row(Place::Anywhere, name, source, &words, Peer::OneThread, Demand::default())
    };
    let of_stream = OUTPUTS.map(|output| ("stream.vmdk", output));
    [&of_stream[..], &[("disk.raw", Zlib), ("disk.raw", Zstd), ("zlib.qcow2", Qcow2)]]
        .concat()
        .into_iter()
        .map(eight)
        .collect()
}

fn pair(source: &'static str, output: Output) -> Row {
    let peer = Peer::Qemu(format_of(source), output.theirs().to_vec());
    row(Place::Anywhere, format!("{source} → {}", output.what()), source, output.ours(), peer, demand(source, output))
}

/// Grains passed through, which the peer inflates and compresses with zstd, its quickest way to compressed output.
fn peer_zstd(source: &'static str) -> Row {
    let peer = Peer::Qemu(format_of(source), Zstd.theirs().to_vec());
    let demand = Demand { wall: Some(0.15), cpu: Some(0.25), ..Demand::default() };
    row(Place::Anywhere, format!("{source} → qcow2 zlib, peer zstd"), source, Zlib.ours(), peer, demand)
}

fn slower(ova: &'static str, disk: &'static str, output: Output) -> Row {
    let name = format!("{ova} → {}, digest, the slower", output.what());
    row(Place::Anywhere, name, ova, output.ours(), Peer::Slower(disk), wall(1.15))
}

fn row(place: Place, name: String, source: &'static str, ours: &[&'static str], peer: Peer, demand: Demand) -> Row {
    let output = ours.iter().find_map(|word| word.strip_prefix("--format=")).unwrap_or("qcow2");
    Row { name, source, ours: ours.to_vec(), peer, place, output, truth: truth_of(source), demand }
}

/// What qemu-img calls the source's format.
fn format_of(source: &str) -> &'static str {
    match source.rsplit_once('.').map(|(_, extension)| extension) {
        Some("vmdk" | "ova") => "vmdk",
        Some("vhd") => "vpc",
        Some("vhdx") => "vhdx",
        Some("vdi") => "vdi",
        Some("qcow2") => "qcow2",
        _ => "raw",
    }
}

fn truth_of(source: &str) -> &'static str {
    match source {
        "noise.raw" | "noise.vmdk" => "noise.raw",
        "empty.vmdk" => "empty.raw",
        "ends.vhd" => "ends-2040.raw",
        "ends.vmdk" => "ends-2048.raw",
        // There is no raw image of 512 GiB, and comparing them would take longer than the row.
        "dense.vmdk" => "",
        _ => "disk.raw",
    }
}
