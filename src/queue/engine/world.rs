// SPDX-License-Identifier: Apache-2.0
//! What the engine needs of the machine besides files: the time, random numbers, and a thread to hash on.

use std::time::Duration;

use jiff::Timestamp;

use crate::ledger::Clock;

/// Where time, random numbers and threads come from.
#[derive(Clone, Debug, Default)]
pub enum World {
    /// The machine itself.
    #[default]
    Machine,
    /// A simulation, in which one seed decides everything that happens.
    #[cfg(test)]
    Simulated(super::simulation::Simulated),
}

impl World {
    /// Whether files are written by processes that the system tells of.
    pub(super) fn has_processes(&self) -> bool {
        matches!(self, Self::Machine)
    }

    /// The wall clock.
    pub(super) fn now(&self) -> Timestamp {
        match self {
            Self::Machine => Timestamp::now(),
            #[cfg(test)]
            Self::Simulated(simulated) => simulated.now(),
        }
    }

    /// The wall clock, and the time since boot, which nobody sets.
    pub(super) fn clock(&self) -> Clock {
        match self {
            Self::Machine => {
                let read = |path| std::fs::read_to_string(path).unwrap_or_default();
                // Seconds with two decimals, then the idle time (proc(5)).
                let uptime = read("/proc/uptime").split(['.', ' ']).next().and_then(|text| text.parse().ok());
                Clock {
                    wall: Timestamp::now(),
                    boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
                    uptime: Duration::from_secs(uptime.unwrap_or_default()),
                }
            }
            #[cfg(test)]
            Self::Simulated(simulated) => {
                Clock { wall: simulated.now(), boot_id: "simulated".to_owned(), uptime: simulated.uptime() }
            }
        }
    }

    /// Digits that make a name unique; no secret.
    pub(super) fn random(&self) -> u32 {
        match self {
            Self::Machine => {
                use std::hash::{BuildHasher as _, Hasher as _, RandomState};
                let bits = RandomState::new().build_hasher().finish();
                u32::try_from(bits >> 32).unwrap_or_default()
            }
            #[cfg(test)]
            Self::Simulated(simulated) => simulated.random(),
        }
    }

    /// Does long, blocking work beside everything else.
    pub(super) fn beside(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Machine => drop(tokio::task::spawn_blocking(work)),
            #[cfg(test)]
            Self::Simulated(_) => work(),
        }
    }
}
