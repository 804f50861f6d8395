//! The table: which source becomes what, against whom, and what is demanded.

use crate::measure::Place;

/// Largest ratios to the peer, and seconds, that are demanded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    pub wall: Option<f64>,
    pub cpu: Option<f64>,
    pub size: Option<f64>,
    pub seconds: Option<f64>,
}

/// Whom a row is compared with.
#[derive(Clone, Debug)]
pub enum Peer {
    /// qemu-img with these words, at its best flags.
    Qemu(&'static str, Vec<&'static str>),
    /// This program, with this source and these words, anywhere.
    Ourselves(&'static str, Vec<&'static str>),
    /// The slower of two: this program with this source and no digest, and a SHA-256 of this source by OpenSSL.
    Slower(&'static str),
    Nobody,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
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

const ZLIB: [&str; 3] = ["-O", "qcow2", "-c"];
const ZSTD: [&str; 5] = ["-O", "qcow2", "-c", "-o", "compression_type=zstd"];
const QCOW2: [&str; 2] = ["-O", "qcow2"];
const RAW: [&str; 2] = ["-O", "raw"];
const VDI: [&str; 2] = ["-O", "vdi"];

fn ratios(wall: f64, cpu: f64) -> Demand {
    Demand { wall: Some(wall), cpu: Some(cpu), ..Demand::default() }
}

/// All rows, in the order of docs/performance.md.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what: &str, source, ours: &[&'static str], peer, demand| {
        rows.push(row(Place::Anywhere, format!("{source} → {what}"), source, ours, peer, demand));
    };
    let qemu = |format, words: &[&'static str]| Peer::Qemu(format, words.to_vec());
    let slack = |demand, size| Demand { size: Some(size), ..demand };

    for source in ["stream.vmdk", "stream.ova"] {
        add("qcow2", source, &[], qemu("vmdk", &QCOW2), ratios(0.30, 0.30));
        add("raw", source, &["--format=raw"], qemu("vmdk", &RAW), ratios(0.30, 0.30));
    }
    let passed = slack(ratios(0.08, 0.08), 1.03);
    add("qcow2 zlib", "stream.vmdk", &["--compress=zlib"], qemu("vmdk", &ZLIB), passed);
    add("qcow2 zlib, peer zstd", "stream.vmdk", &["--compress=zlib"], qemu("vmdk", &ZSTD), ratios(0.15, 0.25));
    let zstd = slack(ratios(0.40, 0.45), 1.02);
    add("qcow2 zstd", "stream.vmdk", &["--compress=zstd"], qemu("vmdk", &ZSTD), zstd);
    let disks = [("disk.raw", "raw"), ("disk.vhd", "vpc"), ("disk.vdi", "vdi"), ("disk.vhdx", "vhdx")];
    let zstd = Demand { wall: Some(0.60), size: Some(1.02), ..Demand::default() };
    for (source, format) in disks {
        add("qcow2 zstd", source, &["--compress=zstd"], qemu(format, &ZSTD), zstd);
    }
    let zlib = Demand { size: Some(1.03), ..Demand::default() };
    add("qcow2 zlib", "disk.raw", &["--compress=zlib"], qemu("raw", &ZLIB), zlib);
    add("qcow2 zlib-strict", "stream.vmdk", &["--compress=zlib-strict"], qemu("vmdk", &ZLIB), Demand::default());
    add("qcow2", "sparse.vmdk", &[], qemu("vmdk", &QCOW2), ratios(0.40, 0.20));
    add("raw", "sparse.vmdk", &["--format=raw"], qemu("vmdk", &RAW), ratios(0.40, 0.20));
    for (source, format) in disks {
        add("qcow2", source, &[], qemu(format, &QCOW2), ratios(1.15, 0.85));
        add("raw", source, &["--format=raw"], qemu(format, &RAW), ratios(1.15, 0.85));
    }
    for source in ["disk.qcow2", "zlib.qcow2", "zstd.qcow2"] {
        add("qcow2", source, &[], qemu("qcow2", &QCOW2), Demand::default());
        add("raw", source, &["--format=raw"], qemu("qcow2", &RAW), Demand::default());
    }
    add("vdi", "stream.vmdk", &["--format=vdi"], qemu("vmdk", &VDI), Demand::default());
    add("vdi", "disk.raw", &["--format=vdi"], qemu("raw", &VDI), Demand::default());
    add("qcow2", "noise.vmdk", &[], qemu("vmdk", &QCOW2), ratios(0.30, 0.30));
    add("qcow2 zlib", "noise.vmdk", &["--compress=zlib"], qemu("vmdk", &ZLIB), passed);
    add("qcow2 zstd", "noise.raw", &["--compress=zstd"], qemu("raw", &ZSTD), zstd);
    add("qcow2", "empty.vmdk", &[], qemu("vmdk", &QCOW2), Demand::default());
    let second = Demand { seconds: Some(1.0), ..Demand::default() };
    add("qcow2", "ends.vhd", &[], qemu("vpc", &QCOW2), second);
    add("qcow2", "ends.vmdk", &[], qemu("vmdk", &QCOW2), second);

    let ourselves = |source, words: &[&'static str]| Peer::Ourselves(source, words.to_vec());
    let wall = |wall| Demand { wall: Some(wall), ..Demand::default() };
    // Noise goes through as many bytes as it has, however little is computed: a copy of it tells what the disk allows.
    let copy = ourselves("noise.raw", &["--format=raw"]);
    add("qcow2, against a copy of the noise", "noise.vmdk", &[], copy.clone(), wall(1.15));
    add("qcow2 zlib, against a copy of the noise", "noise.vmdk", &["--compress=zlib"], copy, wall(1.15));
    add("qcow2, digest against none", "digest.ova", &[], ourselves("stream.ova", &[]), wall(1.05));
    let zstd = ["--compress=zstd"];
    for (what, words) in [("raw", &["--format=raw"]), ("qcow2 zstd", &zstd)] {
        let what = format!("{what}, digest against none");
        add(&what, "digest.ova", words, ourselves("stream.ova", words), wall(1.05));
    }
    add("qcow2, digest, the slower", "digest-sparse.ova", &[], Peer::Slower("sparse.vmdk"), wall(1.15));
    let zlib = ["--compress=zlib"];
    add("qcow2 zlib, digest against none", "digest.ova", &zlib, ourselves("stream.ova", &zlib), wall(1.15));
    add(
        "qcow2, checksum against none",
        "stream.vmdk",
        &["--checksum"],
        ourselves("stream.vmdk", &[]),
        Demand::default(),
    );

    let one = "stream.vmdk → qcow2, one CPU".to_owned();
    rows.push(row(Place::OneCpu, one, "stream.vmdk", &[], qemu("vmdk", &QCOW2), wall(0.45)));
    for (what, source, words) in [
        ("qcow2", "stream.vmdk", &[][..]),
        ("raw", "stream.vmdk", &["--format=raw"]),
        ("qcow2 zlib", "stream.vmdk", &["--compress=zlib"]),
        ("qcow2", "disk.raw", &[]),
        ("qcow2 zstd", "disk.raw", &["--compress=zstd"]),
    ] {
        let name = format!("{source} → {what}, 256 MiB against any");
        rows.push(row(Place::Small, name, source, words, ourselves(source, words), wall(1.15)));
    }
    for (what, source, words) in [
        ("qcow2 zlib", "stream.vmdk", &zlib),
        ("qcow2 zlib", "disk.raw", &zlib),
        ("qcow2 zstd", "stream.vmdk", &zstd),
        ("qcow2 zstd", "disk.raw", &zstd),
    ] {
        let name = format!("{source} → {what}, 8 threads");
        let words = [&words[..], &["--threads=8"]].concat();
        rows.push(row(Place::Anywhere, name, source, &words, Peer::Nobody, Demand::default()));
    }
    let dense = "dense.vmdk → qcow2 zlib".to_owned();
    rows.push(row(Place::Anywhere, dense, "dense.vmdk", &zlib, Peer::Nobody, Demand::default()));
    rows
}

fn row(place: Place, name: String, source: &'static str, ours: &[&'static str], peer: Peer, demand: Demand) -> Row {
    let output = ours.iter().find_map(|word| word.strip_prefix("--format=")).unwrap_or("qcow2");
    Row { name, source, ours: ours.to_vec(), peer, place, output, truth: truth_of(source), demand }
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
