//! `make bench-convert`: every pair of source, output and compression against `qemu-img convert` at its best flags.
//!
//! The two run in turn, round after round, on the same file system; what is printed are medians and the ratios pair by
//! pair, slow rows too. Every output is compared with its source and checked by qemu-img. Choose rows and rounds:
//!
//! ```text
//! cargo bench --bench convert -- --rounds 3 --size 1 stream
//! ```

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// The peer's best flags: 16 coroutines, writes out of order, no page cache.
const PEER: [&str; 7] = ["convert", "-q", "-m", "16", "-W", "-t", "none"];

/// What one whole process took.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Figures {
    wall: f64,
    cpu: f64,
    /// Largest resident memory, KiB.
    peak: i64,
}

/// One line of the table.
struct Row {
    name: String,
    source: String,
    ours: Vec<&'static str>,
    /// Format of the peer's source and its output flags.
    theirs: Vec<&'static str>,
    output: &'static str,
    /// Largest ratios demanded, wall and CPU; 0: none.
    demand: (f64, f64),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let result = match arguments.first().map(String::as_str) {
        Some("--measure") => measure_child(&arguments[1..]),
        _ => bench(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command alone in this process' children, and prints its figures as JSON.
fn measure_child(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command to measure")?;
    let start = Instant::now();
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let wall = start.elapsed().as_secs_f64();
    ensure!(status.success(), "{program} ended with {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |t: nix::sys::time::TimeVal| {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a benchmark")]
        let seconds = t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        seconds
    };
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    println!("{}", serde_json::to_string(&Figures { wall, cpu, peak: usage.max_rss() })?);
    Ok(())
}

fn measure(command: &[String]) -> Result<Figures> {
    let output = Command::new(env::current_exe()?).arg("--measure").args(command).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} failed", command.join(" "));
    Ok(serde_json::from_slice(&output.stdout)?)
}

struct Choice {
    rounds: usize,
    /// Size of the file-system image in GiB of virtual disk.
    size: u64,
    rows: Vec<String>,
    directory: PathBuf,
}

fn choose(arguments: &[String]) -> Result<Choice> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-convert");
    let mut choice = Choice { rounds: 5, size: 8, rows: Vec::new(), directory: scratch };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => choice.rounds = value()?.parse()?,
            "--size" => choice.size = value()?.parse()?,
            "--directory" => choice.directory = value()?.into(),
            row => choice.rows.push(row.to_owned()),
        }
    }
    Ok(choice)
}

fn bench(arguments: &[String]) -> Result<()> {
    let choice = choose(arguments)?;
    fs::create_dir_all(&choice.directory)?;
    let images = Images::make(&choice.directory, choice.size)?;
    println!("machine: {} CPUs; {}", std::thread::available_parallelism()?, text_of("qemu-img", &["--version"])?);
    println!("source: {} GiB virtual, {} MiB of data; {} rounds", choice.size, images.data >> 20, choice.rounds);
    println!(
        "{:44} {:>7} {:>7} {:>6} {:>6} {:>7} {:>7} {:>6}",
        "row", "ours s", "peer s", "wall", "cpu", "MiB", "size", "met"
    );
    for row in
        rows().iter().filter(|r| choice.rows.is_empty() || choice.rows.iter().any(|c| r.name.contains(c.as_str())))
    {
        run_row(row, &images, &choice)?;
    }
    Ok(())
}

/// The demands stand in the order of docs/performance.md.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |name: &str, source: &str, ours: &[&'static str], theirs: &[&'static str], output, demand| {
        let (source, ours, theirs) = (source.to_owned(), ours.to_vec(), theirs.to_vec());
        rows.push(Row { name: name.to_owned(), source, ours, theirs, output, demand });
    };
    for source in ["stream.vmdk", "stream.ova"] {
        row(&format!("{source} → qcow2"), source, &[], &["-f", "vmdk", "-O", "qcow2"], "qcow2", (0.30, 0.30));
        row(
            &format!("{source} → raw"),
            source,
            &["--format", "raw"],
            &["-f", "vmdk", "-O", "raw"],
            "raw",
            (0.30, 0.30),
        );
    }
    let zlib = ["-f", "vmdk", "-O", "qcow2", "-c"];
    let zstd = ["-f", "vmdk", "-O", "qcow2", "-c", "-o", "compression_type=zstd"];
    row("stream.vmdk → qcow2 zlib, peer zlib", "stream.vmdk", &["--compress=zlib"], &zlib, "qcow2", (0.08, 0.08));
    row("stream.vmdk → qcow2 zlib, peer zstd", "stream.vmdk", &["--compress=zlib"], &zstd, "qcow2", (0.15, 0.25));
    row("stream.vmdk → qcow2 zstd", "stream.vmdk", &["--compress=zstd"], &zstd, "qcow2", (0.40, 0.45));
    for (file, format) in [("disk.raw", "raw"), ("disk.vhd", "vpc"), ("disk.vdi", "vdi"), ("disk.vhdx", "vhdx")] {
        let theirs = ["-f", format, "-O", "qcow2", "-c", "-o", "compression_type=zstd"];
        row(&format!("{file} → qcow2 zstd"), file, &["--compress=zstd"], &theirs, "qcow2", (0.60, 0.0));
    }
    row("sparse.vmdk → qcow2", "sparse.vmdk", &[], &["-f", "vmdk", "-O", "qcow2"], "qcow2", (0.40, 0.20));
    row("sparse.vmdk → raw", "sparse.vmdk", &["--format", "raw"], &["-f", "vmdk", "-O", "raw"], "raw", (0.40, 0.20));
    for (file, format) in [("disk.vhd", "vpc"), ("disk.vhdx", "vhdx"), ("disk.vdi", "vdi"), ("disk.raw", "raw")] {
        row(&format!("{file} → qcow2"), file, &[], &["-f", format, "-O", "qcow2"], "qcow2", (1.15, 0.85));
        row(&format!("{file} → raw"), file, &["--format", "raw"], &["-f", format, "-O", "raw"], "raw", (1.15, 0.85));
    }
    rows
}

fn run_row(row: &Row, images: &Images, choice: &Choice) -> Result<()> {
    let source = choice.directory.join(&row.source);
    let (ours, theirs) = (choice.directory.join("ours.out"), choice.directory.join("theirs.out"));
    let text = |path: &Path| path.display().to_string();
    let mut mine =
        vec![env!("CARGO_BIN_EXE_hyper2kvm").to_owned(), "convert".into(), text(&source), "-o".into(), text(&ours)];
    mine.extend(row.ours.iter().map(|&a| a.to_owned()));
    // The peer can't read inside an OVA: it gets the disk as a file.
    let peer_source = if row.source == "stream.ova" { choice.directory.join("stream.vmdk") } else { source.clone() };
    let mut peer: Vec<String> = std::iter::once("qemu-img").chain(PEER).map(str::to_owned).collect();
    peer.extend(row.theirs.iter().map(|&a| a.to_owned()));
    peer.extend([text(&peer_source), text(&theirs)]);
    let (mut walls, mut cpus, mut a, mut b, mut peak) = (vec![], vec![], vec![], vec![], 0);
    let (mut size, mut peer_size) = (0, 0);
    for round in 0..=choice.rounds {
        let remove = |path: &Path| if path.exists() { fs::remove_file(path) } else { Ok(()) };
        remove(&ours)?;
        let one = measure(&mine)?;
        remove(&theirs)?;
        let other = measure(&peer)?;
        if round == 0 {
            check(&ours, row.output, &images.raw)?;
            (size, peer_size) = (allocated(&ours)?, allocated(&theirs)?);
            continue;
        }
        walls.push(one.wall / other.wall);
        cpus.push(one.cpu / other.cpu);
        a.push(one.wall);
        b.push(other.wall);
        peak = peak.max(one.peak);
    }
    let (wall, cpu) = (median(&mut walls), median(&mut cpus));
    let met = |ratio: f64, demand: f64| demand == 0.0 || ratio <= demand;
    let verdict = if met(wall, row.demand.0) && met(cpu, row.demand.1) { "yes" } else { "NO" };
    #[expect(clippy::cast_precision_loss, reason = "a ratio for a table")]
    let smaller = size as f64 / peer_size as f64;
    println!(
        "{:44} {:7.2} {:7.2} {wall:6.3} {cpu:6.3} {:7} {smaller:7.3} {verdict:>6}",
        row.name,
        median(&mut a),
        median(&mut b),
        peak >> 10
    );
    io::stdout().flush()?;
    Ok(())
}

/// qemu-img finds the output whole and equal to the raw truth.
fn check(output: &Path, format: &str, truth: &Path) -> Result<()> {
    let (output, truth) = (output.display().to_string(), truth.display().to_string());
    text_of("qemu-img", &["compare", "-q", "-f", format, "-F", "raw", &output, &truth])?;
    if format == "qcow2" {
        text_of("qemu-img", &["check", "-q", "-f", format, &output])?;
    }
    Ok(())
}

fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)?.blocks() * 512)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn text_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_owned())
}

/// The sources, made once and kept for the next run.
struct Images {
    raw: PathBuf,
    /// Allocated bytes of the raw image.
    data: u64,
}

impl Images {
    fn make(directory: &Path, gib: u64) -> Result<Self> {
        let raw = directory.join("disk.raw");
        if !directory.join(format!("made-{gib}")).exists() {
            eprintln!("bench: making the sources in {}", directory.display());
            make_file_system(&raw, gib)?;
            let path = |name: &str| directory.join(name).display().to_string();
            let from = raw.display().to_string();
            for (name, flags) in [
                ("stream.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"][..]),
                ("sparse.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
                ("disk.vhd", &["-O", "vpc", "-o", "subformat=dynamic,force_size=on"]),
                ("disk.vhdx", &["-O", "vhdx", "-o", "subformat=dynamic"]),
                ("disk.vdi", &["-O", "vdi"]),
            ] {
                let mut arguments = vec!["convert", "-f", "raw"];
                arguments.extend(flags);
                let to = path(name);
                arguments.extend([from.as_str(), to.as_str()]);
                text_of("qemu-img", &arguments)?;
            }
            text_of(env!("CARGO_BIN_EXE_hyper2kvm"), &["--version"])?;
            make_ova(directory, &directory.join("stream.vmdk"), gib << 30)?;
            File::create(directory.join(format!("made-{gib}")))?;
        }
        Ok(Self { data: allocated(&raw)?, raw })
    }
}

/// An ext4 file system with a third of its size in files of this machine: real programs, libraries and texts.
fn make_file_system(raw: &Path, gib: u64) -> Result<()> {
    let files = raw.with_extension("files");
    fs::create_dir_all(&files)?;
    let wanted = (gib * 345) << 20;
    let mut have = 0;
    for (n, tree) in ["/usr/lib", "/usr/bin", "/usr/share", "/usr/local"].iter().cycle().take(64).enumerate() {
        if have >= wanted {
            break;
        }
        have += copy_tree(Path::new(tree), &files.join(n.to_string()), wanted - have)?;
    }
    File::create(raw)?.set_len(gib << 30)?;
    text_of("mke2fs", &["-q", "-t", "ext4", "-F", "-d", &files.display().to_string(), &raw.display().to_string()])?;
    fs::remove_dir_all(&files)?;
    // mke2fs writes zeros of files as data; what a guest's trim would free is freed.
    text_of("fallocate", &["--dig-holes", &raw.display().to_string()])?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, budget: u64) -> Result<u64> {
    fs::create_dir_all(to)?;
    let mut copied = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if copied >= budget {
            break;
        }
        if kind.is_dir() {
            copied += copy_tree(&entry.path(), &to.join(entry.file_name()), budget - copied).unwrap_or(0);
        } else if kind.is_file() {
            copied += fs::copy(entry.path(), to.join(entry.file_name())).unwrap_or(0);
        }
    }
    Ok(copied)
}

/// A plain OVA around the disk: its OVF and the disk, in a ustar archive.
fn make_ova(directory: &Path, disk: &Path, capacity: u64) -> Result<()> {
    let ovf = format!(
        r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File ovf:id="file1" ovf:href="stream.vmdk"/></References>
  <DiskSection><Info>Disks</Info><Disk ovf:diskId="d1" ovf:fileRef="file1" ovf:capacity="{capacity}" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
  <VirtualSystem ovf:id="vm"><Info>A machine</Info></VirtualSystem>
</Envelope>
"#
    );
    fs::write(directory.join("stream.ovf"), ovf)?;
    let at = directory.display().to_string();
    ensure!(disk.exists(), "no disk for the OVA");
    text_of(
        "tar",
        &[
            "--format=ustar",
            "-C",
            &at,
            "-cf",
            &directory.join("stream.ova").display().to_string(),
            "stream.ovf",
            "stream.vmdk",
        ],
    )?;
    Ok(())
}
