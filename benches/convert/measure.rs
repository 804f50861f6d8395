// SPDX-License-Identifier: Apache-2.0
//! One run of one program: what it took, and where it may run.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::fs::{Advice, fadvise, major, minor};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Where a program runs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Anywhere,
    OneCpu,
    /// In a memory cgroup of 256 MiB.
    Small,
}

/// What one whole process took.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Figures {
    pub wall: f64,
    pub cpu: f64,
    /// Largest resident memory, KiB.
    pub peak: i64,
}

const LIMIT: &str = "268435456";

/// Runs a command as the only child of this process, and prints its figures as JSON.
pub(crate) fn child(words: &[String]) -> Result<()> {
    let [place, words @ ..] = words else { bail!("no place to measure in") };
    if let Some(cpu) = place.strip_prefix("cpu:") {
        let mut set = CpuSet::new();
        set.set(cpu.parse()?);
        sched_setaffinity(None, &set)?;
    } else if !place.is_empty() {
        fs::write(Path::new(place).join("cgroup.procs"), std::process::id().to_string())?;
    }
    let (program, arguments) = words.split_first().context("no command to measure")?;
    let start = Instant::now();
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let wall = start.elapsed().as_secs_f64();
    ensure!(status.success(), "{program} ended with {status}");
    let cpu = processor_time(UsageWho::RUSAGE_CHILDREN)?;
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    println!("{}", serde_json::to_string(&Figures { wall, cpu, peak })?);
    Ok(())
}

/// Processor time so far, in seconds, of this process or of its children that ended.
pub(crate) fn processor_time(who: UsageWho) -> Result<f64> {
    let usage = getrusage(who)?;
    let seconds = |t: nix::sys::time::TimeVal| {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a benchmark")]
        let seconds = t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        seconds
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Measures `command`, whose `source` is on the disk and not in memory when it starts.
pub(crate) fn measure(place: &Place, source: &Path, command: &[String]) -> Result<Figures> {
    settle(source)?;
    let file = fs::File::open(source)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let group = matches!(place, Place::Small).then(Cgroup::new).transpose()?;
    let inside = match (place, &group) {
        (Place::OneCpu, _) => "cpu:0".to_owned(),
        (_, Some(Cgroup(path))) => path.display().to_string(),
        _ => String::new(),
    };
    let output = Command::new(env::current_exe()?)
        .args(["--measure", &inside])
        .args(command)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{} failed", command.join(" "));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until nothing of what went before is left for the disk under `path` to do. What a removed file took may be given
/// back to it (`discard`) long after a sync has returned.
fn settle(path: &Path) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(100);
    const QUIET: u32 = 3;
    const MOST: u32 = 100;
    rustix::fs::sync();
    let device = fs::metadata(path)?.dev();
    let counters = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    // Not every file system has a block device of its own.
    let read = || fs::read_to_string(&counters).ok();
    let (mut last, mut quiet) = (read(), 0);
    for _ in 0..MOST {
        if quiet == QUIET || last.is_none() {
            return Ok(());
        }
        thread::sleep(PAUSE);
        let now = read();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
    eprintln!("bench: something else uses this disk");
    Ok(())
}

/// A memory cgroup of our own, of version 1 or 2.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self> {
        let name = format!("hyper2kvm-bench-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let (parent, key) =
            if first.exists() { (first, "memory.limit_in_bytes") } else { (Path::new("/sys/fs/cgroup"), "memory.max") };
        let group = Self(parent.join(name));
        fs::create_dir(&group.0).context("a memory cgroup needs root")?;
        fs::write(group.0.join(key), LIMIT)?;
        Ok(group)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("bench: {}: {error}", self.0.display());
        }
    }
}

/// Bytes that a file takes on its volume.
pub(crate) fn allocated(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// The first line of what a program prints; an error where it fails.
pub(crate) fn text_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_owned())
}
