// SPDX-License-Identifier: Apache-2.0
//! Which conversions may start an attempt now.

use super::ConversionId;

/// Whether new work is taken up.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub enum RunState {
    /// Everything goes on.
    #[default]
    Running,
    /// Running attempts finish, nothing new starts.
    Paused,
    /// What is queued is finished, no new file is taken.
    Draining,
    /// Running attempts are ended, nothing starts.
    Stopped,
}

impl RunState {
    /// Whether attempts may start.
    #[must_use]
    pub const fn starts_attempts(self) -> bool {
        matches!(self, Self::Running | Self::Draining)
    }
}

/// The conversions in `ready` (oldest first) that may start, given how many attempts are unfinished already.
#[must_use]
pub fn admit(ready: &[ConversionId], unfinished: usize, limit: usize, run_state: RunState) -> &[ConversionId] {
    if !run_state.starts_attempts() {
        return &[];
    }
    let free = limit.saturating_sub(unfinished);
    &ready[..free.min(ready.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_start_first_and_never_more_than_the_limit() {
        let ready: Vec<_> = (0..4).map(|n| ConversionId::for_file("a.vmdk", n)).collect();
        for (unfinished, limit, run_state, admitted) in [
            (0, 3, RunState::Running, 3),
            (2, 3, RunState::Running, 1),
            (3, 3, RunState::Running, 0),
            (5, 3, RunState::Running, 0),
            (0, 10, RunState::Draining, 4),
            (0, 3, RunState::Paused, 0),
            (0, 3, RunState::Stopped, 0),
        ] {
            assert_eq!(admit(&ready, unfinished, limit, run_state), &ready[..admitted], "{run_state:?}");
        }
    }
}
