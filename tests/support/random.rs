// SPDX-License-Identifier: Apache-2.0
//! Random numbers that can be repeated: `HYPER2KVM_SEED` sets the seed, and every run prints its own.

#[path = "../../src/files/volume/simulated/random.rs"]
mod generator;

pub(crate) use generator::Random;

impl Random {
    /// Seeded by `HYPER2KVM_SEED`, else by the clock.
    pub(crate) fn seeded(test: &str) -> Self {
        let seed = number("HYPER2KVM_SEED").unwrap_or_else(|| {
            let now = jiff::Timestamp::now().as_nanosecond();
            u64::try_from(now & i128::from(u32::MAX)).unwrap()
        });
        eprintln!("{test}: HYPER2KVM_SEED={seed}");
        Self::new(seed)
    }

    /// Incompressible bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
