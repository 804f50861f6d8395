// SPDX-License-Identifier: Apache-2.0
//! Random numbers that can be repeated: `HYPER2KVM_SEED` sets the seed, and every run prints its own.

/// `SplitMix64`.
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by `HYPER2KVM_SEED`, else by the clock.
    pub(crate) fn seeded(test: &str) -> Self {
        let seed = number("HYPER2KVM_SEED").unwrap_or_else(|| {
            let now = jiff::Timestamp::now().as_nanosecond();
            u64::try_from(now & i128::from(u32::MAX)).unwrap()
        });
        eprintln!("{test}: HYPER2KVM_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
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
