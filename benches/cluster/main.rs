// SPDX-License-Identifier: Apache-2.0
//! `make bench-cluster`: the operator's figures, on a real API server and a real node, with the release's binaries.
//!
//! ```text
//! cargo bench --bench cluster -- --finished 10000 --artifacts 1000 --waiting 10000 --mib 2765 sizes start claims many memory idle
//! ```

#[path = "../../tests/cluster/audit.rs"]
mod audit;
mod claims;
#[path = "../../tests/cluster/harness.rs"]
mod harness;
mod node;
#[path = "../../tests/images/ova.rs"]
mod ova;
mod played;
#[path = "../../tests/cluster/replica.rs"]
mod replica;
mod sizes;
#[path = "../../tests/cluster/volumes.rs"]
mod volumes;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// How many objects the figures are measured with.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub finished: usize,
    pub artifacts: usize,
    pub waiting: usize,
    /// Data of an appliance that goes onto claims.
    pub mib: usize,
}

fn main() -> ExitCode {
    let mut scale = Scale { finished: 10_000, artifacts: 1_000, waiting: 10_000, mib: 2_765 };
    let mut rows = Vec::new();
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let number = match word.as_str() {
            "--finished" => &mut scale.finished,
            "--artifacts" => &mut scale.artifacts,
            "--waiting" => &mut scale.waiting,
            "--mib" => &mut scale.mib,
            _ => {
                rows.push(word);
                continue;
            }
        };
        *number = words.next().and_then(|text| text.parse().ok()).unwrap_or(*number);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be had");
    println!("{:64} {:>12} {:>12}  met", "figure", "measured", "demand");
    let mut failed = false;
    // The ten thousand objects of `memory` are removed while what comes after them is measured.
    for name in ["sizes", "start", "claims", "many", "memory", "idle"] {
        if !rows.is_empty() && !rows.iter().any(|row| row == name) {
            continue;
        }
        let measured = runtime.block_on(async {
            match name {
                "sizes" => sizes::measure(),
                "start" => node::measure().await,
                "claims" => claims::measure(scale.mib).await,
                "memory" => played::memory(scale.finished).await,
                "many" => played::many(scale.artifacts).await,
                _ => played::idle(scale.waiting).await,
            }
        });
        if let Err(error) = measured.context(name) {
            println!("{error:#}");
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One row: what was measured, and the most that it may be.
fn line(what: &str, measured: f64, demand: f64, unit: &str) {
    let verdict = if measured <= demand { "yes" } else { "NO" };
    println!("{what:64} {:>12} {:>12}  {verdict}", format!("{measured:.2} {unit}"), format!("≤ {demand} {unit}"));
}

/// Resident memory of a process in MiB: now, and at its most.
fn resident(pid: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// Processor time that a process used so far, in seconds.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}
