// SPDX-License-Identifier: Apache-2.0
//! What a look costs: `inspect` of every source, of many disks, of tables that lie far apart, and of a guest.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;

use crate::measure::{Figures, Place, measure};
use crate::{MEMORY, images, median};

/// A source that is looked at, and what that may take.
pub(crate) struct Look {
    pub source: &'static str,
    words: &'static [&'static str],
    /// Most seconds of a processor, and seconds.
    cpu: Option<f64>,
    wall: Option<f64>,
}

/// Every look. One at a guest is measured with its files in memory, as after a copy.
pub(crate) fn looks() -> Vec<Look> {
    let any =
        ["disk.raw", "disk.vhd", "disk.vhdx", "disk.vdi", "disk.qcow2", "zstd.qcow2", "sparse.vmdk", "stream.vmdk"];
    let large = ["dense.vmdk", "ends.vhd", "ends.vmdk", "digest.ova", "scattered.ovf"];
    let plain = any.into_iter().chain(large).map(|source| Look { source, words: &[], cpu: Some(2.0), wall: None });
    let many = Look { source: "many.ovf", words: &[], cpu: None, wall: Some(10.0) };
    let guest = Look { source: "guest.raw", words: &["--guest"], cpu: None, wall: Some(1.0) };
    plain.chain([many, guest]).collect()
}

impl Look {
    pub(crate) fn name(&self) -> String {
        ["inspect", self.source].iter().chain(self.words).copied().collect::<Vec<_>>().join(" ")
    }
}

/// Runs the looks that `chosen` takes, and prints their table.
pub(crate) fn run(directory: &Path, rounds: usize, gib: u64, chosen: &dyn Fn(&str) -> bool) -> Result<()> {
    let looks: Vec<_> = looks().into_iter().filter(|look| chosen(&look.name())).collect();
    if looks.is_empty() {
        return Ok(());
    }
    for look in &looks {
        images::make(directory, look.source, gib)?;
    }
    println!("| look | s | CPU s | MiB | demand | met |");
    println!("|---|--:|--:|--:|---|---|");
    for look in looks {
        let source = directory.join(look.source);
        // A refusal is an answer, too.
        let line = format!("{} inspect \"$0\" {} || true", env!("CARGO_BIN_EXE_hyper2kvm"), look.words.join(" "));
        let command = ["sh".to_owned(), "-c".to_owned(), line, source.display().to_string()];
        let figures = (0..rounds).map(|_| measure(&Place::Anywhere, &source, &command)).collect::<Result<Vec<_>>>()?;
        print_row(&look, &figures)?;
    }
    Ok(())
}

fn print_row(look: &Look, figures: &[Figures]) -> Result<()> {
    let of = |value: fn(&Figures) -> f64| median(figures.iter().map(value).collect()).unwrap_or_default();
    let (wall, cpu) = (of(|figures| figures.wall), of(|figures| figures.cpu));
    let peak = figures.iter().map(|figures| figures.peak).max().unwrap_or(0);
    let demands = [("s", wall, look.wall), ("CPU s", cpu, look.cpu)];
    let missed =
        demands.iter().filter(|(_, found, most)| most.is_some_and(|most| *found > most)).map(|(name, ..)| *name);
    let missed: Vec<_> = missed.chain((peak >= MEMORY).then_some("memory")).collect();
    let demand: Vec<_> = demands.iter().filter_map(|(name, _, most)| Some(format!("{name} {:.1}", (*most)?))).collect();
    let met = if missed.is_empty() { "yes".to_owned() } else { format!("**no: {}**", missed.join(", ")) };
    println!("| {} | {wall:.2} | {cpu:.2} | {} | {} | {met} |", look.name(), peak >> 10, demand.join(", "));
    Ok(io::stdout().flush()?)
}
