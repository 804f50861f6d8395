// SPDX-License-Identifier: Apache-2.0
//! While a volume is away, nothing is touched: a file that is not seen then is not gone.

use std::time::Duration;

use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::executor::Executor;

use crate::queue::identity::Away;

use super::{Engine, Result};

/// How often a volume that is away is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a volume is away, and when it is looked for next.
#[derive(Debug, Default)]
pub(super) struct Absence {
    why: Option<String>,
    next_look: Duration,
}

impl Absence {
    /// Why nothing is touched, for a person; `None` while both volumes are there.
    pub(super) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// When the volume is looked for next.
    pub(super) fn next_look(&self) -> Option<Duration> {
        self.why.is_some().then_some(self.next_look)
    }
}

impl<E: Executor> Engine<E> {
    /// Whether a round may be made. Logs once when rounds have to stop, and once when they go on.
    pub(super) async fn may_touch(&mut self, now: Duration) -> bool {
        let guard = &self.settings.guard;
        if self.absence.why.is_none() {
            let Err(away) = guard.look() else { return true };
            let why = chain(&away);
            match away {
                // The heartbeat sees it too, and starts the process anew.
                Away::Anew(_) => tracing::error!("{why}; nothing is touched until this process has begun anew"),
                Away::Gone(_) | Away::Look { .. } => tracing::error!("{why}; nothing is touched until it is back"),
            }
            self.absence = Absence { why: Some(why), next_look: now + LOOK };
            self.tell_executor().await;
            return false;
        }
        if now < self.absence.next_look {
            return false;
        }
        match guard.look_again() {
            Ok(()) => {
                tracing::info!("the volumes are there again; going on");
                self.absence = Absence::default();
                // Nobody looked while the volume was away: that is no stall.
                self.last_activity = Some(self.wall());
                self.tell_executor().await;
                true
            }
            Err(barred) => {
                self.absence = Absence { why: Some(chain(&barred)), next_look: now + LOOK };
                false
            }
        }
    }

    /// Tells the executor what may start: nothing, while what a worker would read or write is away.
    pub(super) async fn tell_executor(&mut self) {
        let is_held = self.absence.why.is_some() && self.run_state.starts_attempts();
        let run_state = if is_held { RunState::Paused } else { self.run_state };
        if let Err(error) = self.executor.set_run_state(run_state).await {
            tracing::error!(error = %chain(&error), "cannot tell the executor of the run state");
        }
    }

    /// Makes sure that both volumes are there, before something is done, and before a file that was not found is called
    /// gone.
    pub(super) fn confirm(&self) -> Result<()> {
        Ok(self.settings.guard.look()?)
    }

    /// Whether the executor's updates are received. What follows from them is recorded on the volumes, so not while one
    /// is away; but a stop needs to hear that the workers have ended.
    pub(super) fn takes_updates(&self) -> bool {
        self.absence.why.is_none() || self.run_state == RunState::Stopped
    }
}
