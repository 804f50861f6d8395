// SPDX-License-Identifier: Apache-2.0
//! `make bench-convert`: every pair of source, output and compression against `qemu-img convert` at its best flags.
//!
//! The two run in turn, and begin in turn, round after round, on the same file system, each with its source out of the page
//! cache and nothing left to do for the disk; what is printed are medians and the ratios pair by pair, slow rows too. Every
//! output of the first round is compared with its source and checked by qemu-img, and that of the last round with it. Where
//! more than one round disagrees with the others about what is demanded, three times as many are run. Without words those pairs
//! run of which something is demanded; `--all` adds every other. Choose rows among all by their names, or by a part of several
//! names, and rounds (`inspect` chooses what a look costs):
//!
//! ```text
//! cargo bench --bench convert -- --rounds 3 --size 1 stream
//! ```

mod buffered;
mod images;
mod looks;
mod measure;
mod rows;
#[path = "../../tests/images/vmdk.rs"]
mod vmdk;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper2kvm::worker::progress::{Meter, Ticker};
use nix::sys::resource::UsageWho;

use crate::measure::{Figures, Place, allocated, measure, text_of};
use crate::rows::{BUFFERED, Peer, Row, demanded, further};

/// The peer's best flags: 16 coroutines, writes out of order, no page cache.
const PEER: [&str; 7] = ["convert", "-q", "-m", "16", "-W", "-t", "none"];
/// Resident memory that no row may reach, in KiB.
const MEMORY: i64 = 64 << 10;
/// Share of a CPU that telling progress stays below.
const PROGRESS: f64 = 0.005;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let result = match arguments.first().map(String::as_str) {
        Some("--measure") => measure::child(&arguments[1..]),
        Some(BUFFERED) => buffered::child(&arguments[1..]),
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

struct Choice {
    rounds: usize,
    /// Size of the file-system image in GiB of virtual disk.
    size: u64,
    /// Rows without a demand too.
    all: bool,
    /// Parts of names; empty: not chosen by name.
    rows: Vec<String>,
    directory: PathBuf,
}

fn choose(arguments: &[String]) -> Result<Choice> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-convert");
    let mut choice = Choice { rounds: 5, size: 8, all: false, rows: Vec::new(), directory: scratch };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => choice.rounds = value()?.parse()?,
            "--size" => choice.size = value()?.parse()?,
            "--directory" => choice.directory = value()?.into(),
            "--all" => choice.all = true,
            row => choice.rows.push(row.to_owned()),
        }
    }
    choice.directory.push(format!("{}-gib", choice.size));
    Ok(choice)
}

fn bench(arguments: &[String]) -> Result<()> {
    let choice = choose(arguments)?;
    fs::create_dir_all(&choice.directory)?;
    let others = if choice.all || !choice.rows.is_empty() { further() } else { Vec::new() };
    let rows: Vec<Row> = demanded().into_iter().chain(others).collect();
    let is_whole = |part: &str| rows.iter().any(|row| row.name == part);
    let chooses = |part: &String, row: &&Row| row.name == *part || !is_whole(part) && row.name.contains(part.as_str());
    let chosen: Vec<&Row> =
        rows.iter().filter(|row| choice.rows.is_empty() || choice.rows.iter().any(|part| chooses(part, row))).collect();
    for row in &chosen {
        let peer = match row.peer {
            Peer::Ourselves(source, _) | Peer::Slower(source) => source,
            _ => row.source,
        };
        for name in [row.source, row.truth, peer].into_iter().filter(|name| !name.is_empty()) {
            images::make(&choice.directory, name, choice.size)?;
        }
    }
    println!("machine: {} CPUs; {}", std::thread::available_parallelism()?, text_of("qemu-img", &["--version"])?);
    println!("source: {} GiB virtual; {} rounds", choice.size, choice.rounds);
    println!("| row | s | peer s | wall | CPU | MiB | size | demand | met |");
    println!("|---|--:|--:|--:|--:|--:|--:|---|---|");
    chosen.iter().try_for_each(|row| run_row(row, &choice))?;
    let is_chosen = |name: &str| choice.rows.is_empty() || choice.rows.iter().any(|part| name.contains(part.as_str()));
    looks::run(&choice.directory, choice.rounds, choice.size, &is_chosen)?;
    if choice.rows.is_empty() || choice.rows.iter().any(|part| "progress".contains(part.as_str())) {
        tell_progress(&choice.directory.join("progress.json"))?;
    }
    Ok(())
}

/// What it costs that a worker tells how far it is: processor time of its progress file alone, which changes all along.
fn tell_progress(path: &Path) -> Result<()> {
    const SECONDS: u64 = 10;
    let meter = Arc::new(Meter::default());
    let before = measure::processor_time(UsageWho::RUSAGE_SELF)?;
    let ticker = Ticker::write_file(Arc::clone(&meter), path.to_owned());
    for second in 0..SECONDS {
        meter.set_total(second + 1);
        thread::sleep(Duration::from_secs(1));
    }
    drop(ticker);
    let share = (measure::processor_time(UsageWho::RUSAGE_SELF)? - before) / Duration::from_secs(SECONDS).as_secs_f64();
    let met = if share < PROGRESS { "yes" } else { "**no**" };
    println!(
        "progress.json while {SECONDS} s pass: {:.3} % of a CPU, demand {:.1} %, met: {met}",
        share * 100.0,
        PROGRESS * 100.0
    );
    Ok(fs::remove_file(path)?)
}

/// The command line of this program, and those of the peer: the slowest of them counts.
fn commands(row: &Row, choice: &Choice) -> (Vec<String>, Vec<Vec<String>>) {
    let text = |name: &str| choice.directory.join(name).display().to_string();
    let ourselves = |source: &str, words: &[&str], output: &str| {
        let mut command = vec![env!("CARGO_BIN_EXE_hyper2kvm"), "convert", "--progress=none"];
        let benchmark = env::current_exe().expect("a running program has a path").display().to_string();
        if words.contains(&BUFFERED) {
            command = vec![&benchmark];
        }
        command.extend(words);
        let mut command: Vec<String> = command.into_iter().map(str::to_owned).collect();
        command.extend([text(source), "-o".into(), text(output)]);
        command
    };
    let peer = match &row.peer {
        Peer::Nobody => Vec::new(),
        Peer::Ourselves(source, words) => vec![ourselves(source, words, "theirs.out")],
        Peer::OneThread => {
            let words: Vec<_> = row.ours.iter().copied().filter(|word| !word.starts_with("--threads=")).collect();
            vec![ourselves(row.source, &[&words[..], &["--threads=1"]].concat(), "theirs.out")]
        }
        Peer::Slower(source) => {
            let digest = ["openssl", "dgst", "-sha256"].map(str::to_owned);
            vec![[&digest[..], &[text(source)]].concat(), ourselves(source, &row.ours, "theirs.out")]
        }
        Peer::Qemu(format, words) => {
            // It can't read inside an OVA: it gets the disk as a file.
            let source = if row.source == "stream.ova" { "stream.vmdk" } else { row.source };
            let mut command = vec!["qemu-img"];
            command.extend(PEER);
            command.extend(["-f", format]);
            command.extend(words);
            let mut command: Vec<String> = command.into_iter().map(str::to_owned).collect();
            command.extend([text(source), text("theirs.out")]);
            vec![command]
        }
    };
    (ourselves(row.source, &row.ours, "ours.out"), peer)
}

fn run_row(row: &Row, choice: &Choice) -> Result<()> {
    let at = |name: &str| choice.directory.join(name);
    let (ours, theirs, source) = (at("ours.out"), at("theirs.out"), at(row.source));
    let (mine, peers) = commands(row, choice);
    let peer_place = if matches!(row.peer, Peer::Qemu(..)) { &row.place } else { &Place::Anywhere };
    let mut pairs: Vec<(Figures, Option<Figures>)> = Vec::new();
    let (mut size, mut kept, mut digest) = (None, None, None);
    let mut rounds = if matches!(row.peer, Peer::OneThread | Peer::Nobody) { 1 } else { choice.rounds };
    while pairs.len() < rounds {
        let round = pairs.len();
        let remove = |path: &Path| if path.exists() { fs::remove_file(path) } else { Ok(()) };
        let run_ours = || {
            remove(&ours)?;
            measure(&row.place, &source, &mine)
        };
        let run_others = || {
            remove(&theirs)?;
            let others = peers.iter().map(|peer| measure(peer_place, &peer_source(peer, choice), peer));
            others.collect::<Result<Vec<Figures>>>()
        };
        // Whoever begins a round takes a few hundredths longer, even against itself.
        let (one, others) = if round.is_multiple_of(2) {
            let one = run_ours()?;
            (one, run_others()?)
        } else {
            let others = run_others()?;
            (run_ours()?, others)
        };
        let other = others.into_iter().max_by(|a, b| a.wall.total_cmp(&b.wall));
        if round == 0 {
            if !row.truth.is_empty() {
                check(&ours, row.output, &at(row.truth))?;
            }
            #[expect(clippy::cast_precision_loss, reason = "a ratio for a table")]
            let ratio = |theirs: u64| -> Result<f64> { Ok(allocated(&ours)? as f64 / theirs as f64) };
            kept = Some(ratio(allocated(&source)?)?);
            size = if other.is_some() { Some(ratio(allocated(&theirs)?)?) } else { None };
        }
        pairs.push((one, other));
        if pairs.len() == choice.rounds && disagree(&pairs, row.demand.wall) {
            rounds = 3 * choice.rounds;
        }
        if matches!(row.peer, Peer::OneThread) {
            ensure!(digest_of(&ours)? == digest_of(&theirs)?, "{}: one thread makes other bytes", row.name);
        } else if round == 0 || pairs.len() == rounds {
            // The same source and options make the same bytes each time.
            let now = digest_of(&ours)?;
            ensure!(*digest.get_or_insert_with(|| now.clone()) == now, "{}: the last round made other bytes", row.name);
        }
    }
    for path in [&ours, &theirs] {
        let _ = fs::remove_file(path);
    }
    print_row(row, &pairs, size, kept)
}

/// Whether more than one pair is on the other side of a demand on wall time than most: chance has a say then.
fn disagree(pairs: &[(Figures, Option<Figures>)], most: Option<f64>) -> bool {
    let Some(most) = most else { return false };
    let ratios = pairs.iter().filter_map(|(one, other)| Some(one.wall / other.as_ref()?.wall));
    let missed = ratios.filter(|ratio| *ratio > most).count();
    missed.min(pairs.len() - missed) > 1
}

/// The SHA-256 of a file.
fn digest_of(path: &Path) -> Result<String> {
    let line = text_of("openssl", &["dgst", "-sha256", "-r", &path.display().to_string()])?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// The source in a command line of this program or of the peer: the first word that lies among the sources.
fn peer_source(command: &[String], choice: &Choice) -> PathBuf {
    let source = command.iter().map(PathBuf::from).find(|path| path.starts_with(&choice.directory));
    source.expect("every command has a source")
}

fn print_row(row: &Row, pairs: &[(Figures, Option<Figures>)], size: Option<f64>, kept: Option<f64>) -> Result<()> {
    let of = |value: &dyn Fn(&Figures, &Figures) -> f64| {
        median(pairs.iter().filter_map(|(one, other)| Some(value(one, other.as_ref()?))).collect())
    };
    let seconds = median(pairs.iter().map(|(one, _)| one.wall).collect());
    let theirs = of(&|_, other| other.wall);
    let (wall, cpu) = (of(&|one, other| one.wall / other.wall), of(&|one, other| one.cpu / other.cpu));
    let peak = pairs.iter().map(|(one, _)| one.peak).max().unwrap_or(0);
    let most = row.demand;
    let demands = [
        ("wall", wall, most.wall),
        ("CPU", cpu, most.cpu),
        ("size", size, most.size),
        ("of the source", kept, most.kept),
        ("s", seconds, most.seconds),
    ];
    let missed: Vec<_> = demands
        .iter()
        .filter(|(_, found, most)| matches!((found, most), (Some(found), Some(most)) if found > most))
        .map(|(name, ..)| *name)
        .chain((peak >= MEMORY).then_some("memory"))
        .collect();
    let demand: Vec<_> = demands.iter().filter_map(|(name, _, most)| Some(format!("{name} {:.2}", (*most)?))).collect();
    let shown = |value: Option<f64>, digits: usize| value.map_or("–".to_owned(), |value| format!("{value:.digits$}"));
    println!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        row.name,
        shown(seconds, 2),
        shown(theirs, 2),
        shown(wall, 3),
        shown(cpu, 3),
        peak >> 10,
        shown(size, 3),
        if demand.is_empty() { "–".to_owned() } else { demand.join(", ") },
        if missed.is_empty() { "yes".to_owned() } else { format!("**no: {}**", missed.join(", ")) },
    );
    Ok(io::stdout().flush()?)
}

/// qemu-img finds the output whole and equal to the raw truth.
fn check(output: &Path, format: &str, truth: &Path) -> Result<()> {
    let (output, truth) = (output.display().to_string(), truth.display().to_string());
    text_of("qemu-img", &["compare", "-q", "-f", format, "-F", "raw", &output, &truth])?;
    if format != "raw" {
        text_of("qemu-img", &["check", "-q", "-f", format, &output])?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
