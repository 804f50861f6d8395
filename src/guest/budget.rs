// SPDX-License-Identifier: Apache-2.0
//! What one inspection may cost. Every reader spends from the same budget, so that a hostile guest costs no more than a
//! good one.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::error::{Error, Result};

/// Limits of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub time: Duration,
    /// Guest bytes that may be asked for.
    pub read_bytes: u64,
    /// Bytes that may come out of compressed files.
    pub decoded_bytes: u64,
    /// Steps of any kind: directory entries, nodes of trees, cells of hives, extents.
    pub steps: u64,
}

impl Default for Limits {
    /// What an ordinary guest with several kernels needs, times four; the time is the bound that a person notices.
    fn default() -> Self {
        Self { time: Duration::from_secs(1), read_bytes: 2 << 30, decoded_bytes: 4 << 30, steps: 2_000_000 }
    }
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    end: Instant,
    read: Cell<u64>,
    decoded: Cell<u64>,
    steps: Cell<u64>,
    /// Calls until the clock is looked at again.
    patience: Cell<u32>,
    late: Cell<bool>,
}

impl Budget {
    /// Steps between two looks at the clock.
    const PATIENCE: u32 = 64;

    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            end: Instant::now() + limits.time,
            read: Cell::new(limits.read_bytes),
            decoded: Cell::new(limits.decoded_bytes),
            steps: Cell::new(limits.steps),
            patience: Cell::new(0),
            late: Cell::new(false),
        }
    }

    pub(super) fn read(&self, bytes: usize) -> Result<()> {
        self.tick(8)?;
        spend(&self.read, bytes as u64, "too many bytes were read")
    }

    pub(super) fn decoded(&self, bytes: usize) -> Result<()> {
        self.tick(8)?;
        spend(&self.decoded, bytes as u64, "too many bytes were unpacked")
    }

    pub(super) fn step(&self) -> Result<()> {
        self.steps(1)
    }

    pub(super) fn steps(&self, count: u64) -> Result<()> {
        self.tick(1)?;
        spend(&self.steps, count, "too many steps were taken")
    }

    /// Fails once the time is over.
    fn tick(&self, weight: u32) -> Result<()> {
        let patience = self.patience.get();
        if patience >= weight && !self.late.get() {
            self.patience.set(patience - weight);
            return Ok(());
        }
        self.patience.set(Self::PATIENCE);
        if self.late.get() || Instant::now() >= self.end {
            self.late.set(true);
            return Err(Error::Spent("its time is over"));
        }
        Ok(())
    }
}

fn spend(left: &Cell<u64>, amount: u64, what: &'static str) -> Result<()> {
    let Some(rest) = left.get().checked_sub(amount) else {
        left.set(0);
        return Err(Error::Spent(what));
    };
    left.set(rest);
    Ok(())
}
