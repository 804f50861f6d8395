// SPDX-License-Identifier: Apache-2.0
//! `make bench`: the daemon's figures, measured from outside on the built binaries.
//!
//! ```text
//! cargo bench --bench daemon -- --many 10000 ready waiting
//! ```

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A daemon over an empty queue of its own; ended and removed when dropped.
struct Daemon {
    child: Child,
    place: tempfile::TempDir,
    started: Instant,
}

impl Daemon {
    fn start(more: &str) -> Result<Self> {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        for name in ["queue", "output"] {
            fs::create_dir(place.path().join(name))?;
        }
        Self::start_in(place, more)
    }

    fn start_in(place: tempfile::TempDir, more: &str) -> Result<Self> {
        let (queue, output) = (place.path().join("queue"), place.path().join("output"));
        let config = place.path().join("config.yaml");
        fs::write(&config, format!("watch_dir: {}\noutput_dir: {}\n{more}", queue.display(), output.display()))?;
        let log = fs::File::create(place.path().join("log"))?;
        let started = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
            .args(["daemon", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { child, place, started })
    }

    fn queue(&self) -> PathBuf {
        self.place.path().join("queue")
    }

    fn output(&self) -> PathBuf {
        self.place.path().join("output")
    }

    fn ask(&self, command: &str) -> Result<Value> {
        let output = self.output().display().to_string();
        let asked = Command::new(env!("CARGO_BIN_EXE_hyper2kvmctl"))
            .args(["--output-dir", &output, "--json", command])
            .output()?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr).trim());
        Ok(serde_json::from_slice(&asked.stdout)?)
    }

    /// Asks until `wanted` holds of a reply, and says how long that took since `since`.
    fn until(&self, command: &str, since: Instant, limit: u64, wanted: impl Fn(&Value) -> bool) -> Result<Duration> {
        self.until_every(Duration::from_millis(2), command, since, limit, wanted)
    }

    /// The same with a pause of choice between two questions: each costs a process, which the daemon's children miss.
    fn until_every(
        &self,
        pause: Duration,
        command: &str,
        since: Instant,
        limit: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        loop {
            let reply = self.ask(command);
            if reply.as_ref().is_ok_and(&wanted) {
                return Ok(since.elapsed());
            }
            if since.elapsed() > Duration::from_secs(limit) {
                let log = fs::read_to_string(self.place.path().join("log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                bail!("not within {limit} s; last reply {reply:?}; log ends {tail:?}");
            }
            thread::sleep(pause);
        }
    }

    fn ready(&self) -> Result<Duration> {
        self.until("status", self.started, 10, |_| true)
    }

    /// Resident memory in MiB.
    fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Processor time used so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One group of figures; the number is how many files `many` stands for.
type Measure = fn(usize) -> Result<()>;

fn main() -> ExitCode {
    let mut many = 10_000;
    let mut rows = Vec::new();
    let mut words = env::args().skip(1).filter(|a| a != "--bench");
    while let Some(word) = words.next() {
        if word == "--many" {
            many = words.next().and_then(|n| n.parse().ok()).unwrap_or(many);
        } else {
            rows.push(word);
        }
    }
    println!("{:52} {:>12} {:>12}  met", "figure", "measured", "demand");
    let all: [(&str, Measure); 5] =
        [("ready", ready), ("start", start), ("twenty", twenty), ("small", small), ("waiting", waiting)];
    let mut failed = false;
    for (name, measure) in all.iter().filter(|(n, _)| rows.is_empty() || rows.iter().any(|r| r == n)) {
        if let Err(error) = measure(many) {
            println!("{name:52} failed: {error:#}");
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn line(what: &str, measured: f64, demand: f64, unit: &str, at_least: bool) {
    let met = if at_least { measured >= demand } else { measured <= demand };
    let sign = if at_least { "≥" } else { "≤" };
    let verdict = if met { "yes" } else { "NO" };
    println!("{what:52} {:>12} {:>12}  {verdict}", format!("{measured:.2} {unit}"), format!("{sign} {demand} {unit}"));
}

/// How often the client is asked for its mean.
const ASKED: u32 = 20;

fn ready(_: usize) -> Result<()> {
    let daemon = Daemon::start("")?;
    line("start → ready", daemon.ready()?.as_secs_f64() * 1e3, 50.0, "ms", false);
    let started = Instant::now();
    for _ in 0..ASKED {
        daemon.ask("status")?;
    }
    line("hyper2kvmctl status", (started.elapsed() / ASKED).as_secs_f64() * 1e3, 10.0, "ms", false);
    line("resident memory, idle", daemon.memory()?, 15.0, "MiB", false);
    Ok(())
}

/// A small raw disk that no other one equals by name and size.
fn drop_image(queue: &Path, name: &str, bytes: usize) -> Result<()> {
    let mut image = vec![0; bytes];
    image[..name.len()].copy_from_slice(name.as_bytes());
    fs::write(queue.join(name), image)?;
    Ok(())
}

fn jobs(reply: &Value) -> u64 {
    let stats = &reply["stats"];
    let number = |key: &str| stats[key].as_u64().unwrap_or(0);
    number("total_processed") + number("total_failed") + number("active_jobs")
}

fn start(_: usize) -> Result<()> {
    let daemon = Daemon::start("")?;
    daemon.ready()?;
    drop_image(&daemon.queue(), "one.raw", 1 << 20)?;
    let written = Instant::now();
    let took = daemon.until("stats", written, 20, |r| jobs(r) >= 1)?;
    line("last write → conversion starts", took.as_secs_f64(), 3.3, "s", false);
    Ok(())
}

fn vetted(reply: &Value) -> u64 {
    reply["stats"]["current_queue_depth"].as_u64().unwrap_or(0) + jobs(reply)
}

fn twenty(_: usize) -> Result<()> {
    let daemon = Daemon::start("")?;
    daemon.ready()?;
    for n in 0..20 {
        drop_image(&daemon.queue(), &format!("disk{n}.raw"), 1 << 20)?;
    }
    let took = daemon.until("stats", Instant::now(), 30, |r| vetted(r) >= 20)?;
    line("20 files at once → all vetted", took.as_secs_f64(), 3.5, "s", false);
    Ok(())
}

fn small(_: usize) -> Result<()> {
    for (count, demand) in [(200, 40.0), (1000, 40.0)] {
        let daemon = Daemon::start("max_concurrent_jobs: 3\n")?;
        daemon.ready()?;
        for n in 0..count {
            drop_image(&daemon.queue(), &format!("disk{n}.raw"), 1 << 20)?;
        }
        let dropped = Instant::now();
        daemon.until("stats", dropped, 30, |r| jobs(r) >= 1)?;
        let first = Instant::now();
        let all = |r: &Value| r["stats"]["total_processed"].as_u64() == Some(count);
        let took = daemon.until_every(Duration::from_millis(50), "stats", first, 120, all)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = count as f64 / took.as_secs_f64();
        line(&format!("small images (1 MiB, 3 slots, {count} files)"), rate, demand, "/s", true);
        if count == 1000 {
            line("resident memory after 1000 conversions", daemon.memory()?, 25.0, "MiB", false);
        }
    }
    Ok(())
}

fn waiting(many: usize) -> Result<()> {
    let daemon = Daemon::start("")?;
    daemon.ready()?;
    daemon.ask("pause")?;
    for n in 0..many {
        drop_image(&daemon.queue(), &format!("disk{n}.raw"), 4096)?;
    }
    let took = daemon.until("stats", Instant::now(), 120, |r| vetted(r) >= many as u64)?;
    line(&format!("{many} files at once → all vetted"), took.as_secs_f64(), 20.0, "s", false);
    thread::sleep(Duration::from_secs(3));
    let (before, started) = (daemon.cpu()?, Instant::now());
    thread::sleep(Duration::from_secs(30));
    let share = (daemon.cpu()? - before) / started.elapsed().as_secs_f64() * 100.0;
    line(&format!("processor time with {many} waiting"), share, 2.0, "%", false);
    line(&format!("resident memory with {many} waiting"), daemon.memory()?, 25.0, "MiB", false);
    Ok(())
}
