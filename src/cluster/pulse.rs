// SPDX-License-Identifier: Apache-2.0
//! Whether a watcher works now: it leaves a pulse in the directory that it shares with its sidecar, and the kubelet's
//! probe reads that.
//!
//! The API server hears nothing of it as long as the watcher works: a heartbeat written there would be, for hundreds of
//! queues, the most frequent request of all. The kubelet reports a change, and the controller says why.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use super::client::Contact;
use crate::conversion::chain;
use crate::files::store::{self, StoreError};

/// The pulse's file below [`super::names::RUN_DIR`].
const PULSE_FILE: &str = "pulse.json";
/// Longest file that is read, in bytes.
const MAX_LENGTH: usize = 4096;
/// How often the pulse is written: one small file in memory.
const PULSE_INTERVAL: Duration = Duration::from_secs(10);
/// How old a pulse of a process that works may be, on the busiest node.
const PULSE_LIMIT: Duration = Duration::from_secs(60);
/// How long the API server may be unheard: each watch is made anew after a minute, however little happens.
const CONTACT_LIMIT: Duration = Duration::from_secs(100);

/// What the watcher leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pulse {
    /// When its process started.
    started: Timestamp,
    /// When it wrote this.
    beat: Timestamp,
    /// When the API server answered it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heard: Option<Timestamp>,
}

/// Why a watcher does not work now. The probe prints it as JSON, and the controller reads it from the kubelet's event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Reason of `WatcherAvailable`.
    pub reason: SilenceReason,
    pub message: String,
}

/// What a watcher that does not work lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SilenceReason {
    /// The process stands still.
    Silent,
    /// It can't reach the API server.
    NoApiAccess,
}

impl SilenceReason {
    /// As a condition spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "Silent",
            Self::NoApiAccess => "NoApiAccess",
        }
    }
}

/// Decides by the pulse whether the watcher works now. A time in the future is a clock that was set back, not an age.
fn silence(pulse: Option<&Pulse>, now: Timestamp) -> Option<Silence> {
    let age = |time: Timestamp| Duration::try_from(now.duration_since(time)).unwrap_or_default();
    let silent = |reason, message| Some(Silence { reason, message });
    let Some(pulse) = pulse else {
        return silent(SilenceReason::Silent, "the watcher has not begun yet".to_owned());
    };
    if age(pulse.beat) > PULSE_LIMIT {
        let message = format!(
            "the watcher's process has stood still for {} s: look at the load of its node, and at its volumes",
            age(pulse.beat).as_secs()
        );
        return silent(SilenceReason::Silent, message);
    }
    let unheard = match pulse.heard {
        Some(heard) if age(heard) <= CONTACT_LIMIT => return None,
        Some(heard) => format!("for {} s", age(heard).as_secs()),
        None => format!("since it started {} s ago", age(pulse.started).as_secs()),
    };
    let message = format!(
        "the watcher has not reached the API server {unheard}: let the namespace's NetworkPolicies allow its pod egress to \
         the API server and to DNS, and look at the pod's log"
    );
    silent(SilenceReason::NoApiAccess, message)
}

/// Leaves a pulse in `run_dir` as long as this task runs.
pub async fn leave(run_dir: &Path, contact: Contact) {
    let started = Timestamp::now();
    let mut ticks = interval(PULSE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The first answer of the API server is told at once: the pod is not ready before.
        tokio::select! {
            _ = ticks.tick() => {}
            () = contact.first() => {}
        }
        let pulse = Pulse { started, beat: Timestamp::now(), heard: contact.last() };
        if let Err(error) = store::replace_json(&run_dir.join(PULSE_FILE), &pulse) {
            tracing::warn!(error = %chain(&error), "cannot leave a pulse for the kubelet's probe");
        }
    }
}

/// Whether the watcher whose pulse lies in `run_dir` works now.
///
/// # Errors
/// Why it does not, or where its pulse can't be read.
pub fn probe(run_dir: &Path) -> Result<Option<Silence>, StoreError> {
    let pulse: Option<Pulse> = store::read_json(run_dir, PULSE_FILE, MAX_LENGTH)?;
    Ok(silence(pulse.as_ref(), Timestamp::now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_watcher_is_silent_when_its_process_stands_still_or_hears_nothing_of_the_api_server() {
        let pulse =
            |beat, heard: Option<i64>| Pulse { started: second(0), beat: second(beat), heard: heard.map(second) };
        for (now, pulse, expected) in [
            (0, None, Some((SilenceReason::Silent, "has not begun"))),
            (1000, Some(pulse(990, Some(940))), None),
            (1000, Some(pulse(940, Some(930))), None),
            (1000, Some(pulse(939, Some(939))), Some((SilenceReason::Silent, "stood still for 61 s"))),
            (1000, Some(pulse(995, Some(899))), Some((SilenceReason::NoApiAccess, "the API server for 101 s"))),
            (30, Some(pulse(30, None)), Some((SilenceReason::NoApiAccess, "since it started 30 s ago"))),
            // The clock was set back.
            (10, Some(pulse(990, Some(990))), None),
        ] {
            let found = silence(pulse.as_ref(), second(now));
            let Some((reason, words)) = expected else {
                assert_eq!(found, None, "{pulse:?} at {now}");
                continue;
            };
            let found = found.unwrap_or_else(|| panic!("{pulse:?} at {now} works"));
            assert!(found.reason == reason && found.message.contains(words), "{found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_is_left_at_once_and_tells_of_the_first_answer() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(probe(run.path()).unwrap().unwrap().reason, SilenceReason::Silent);
        let contact = Contact::default();
        let leaving = leave(run.path(), contact.clone());
        let looking = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(probe(run.path()).unwrap().unwrap().reason, SilenceReason::NoApiAccess);
            contact.note();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(probe(run.path()).unwrap(), None);
        };
        tokio::select! {
            () = leaving => panic!("it ends"),
            () = looking => {}
        }
    }
}
