// SPDX-License-Identifier: Apache-2.0
//! What the watcher reports of its queue: conditions and counters in the status, a snapshot for the sidecar.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::notifications::Wrong;
use super::specification::Wanted;
use crate::cluster::api::owners::Writer;
use crate::cluster::api::{ConditionState, ConditionType, HyperConversion, condition, set_by, set_condition};
use crate::cluster::client::told;
use crate::cluster::identity::Identity;
use crate::cluster::snapshot::{self, WatcherSnapshot};
use crate::cluster::{cache, names};
use crate::control::FALLBACK_SOCKET_NAME;
use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::queue::engine::Remote;
use crate::stats::{Shortage, Snapshot};

/// Shortest time between two writes of the status.
const STATUS_WRITE_INTERVAL: Duration = Duration::from_secs(2);
/// How often the sidecar's report of its socket is read.
const SOCKET_POLL: Duration = Duration::from_secs(5);

/// How often it is looked whether the engine turns.
const STANDSTILL_POLL: Duration = Duration::from_secs(5);

/// The reason of `StorageReady` while nothing hinders the work.
const PROBED: &str = "Probed";

/// The reason of `StorageReady` while a volume does not answer.
pub(super) const STANDSTILL: &str = "NotResponding";

/// The reason of `StorageReady` while something on the volumes can't be read or written.
pub(super) const UNREADABLE: &str = "Unreadable";

/// The reason of `StorageReady` while conversions wait for room.
const NO_SPACE: &str = "NoSpace";

/// The reason of `StorageReady` while one volume is not the one that belongs to the other.
pub(super) const OTHER_VOLUME: &str = "OtherVolume";

/// The reason of `Stopped` once the watcher has nothing to do.
const AT_REST: &str = "AtRest";

/// Everything that the watcher reports of its queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    conditions: Vec<Condition>,
    /// Generation of the specification that the report is about.
    generation: Option<i64>,
    /// The newest specification, until the engine obeys its run state.
    requested: Option<(RunState, Option<i64>)>,
    /// Present only while the locks are held.
    snapshot: Option<Snapshot>,
    /// What may keep workers from the volumes, in words that follow those of a volume that is ready.
    foreseen: Option<String>,
}

impl Report {
    fn set(&mut self, kind: ConditionType, status: &'static str, reason: &str, message: impl Into<String>) {
        let state = ConditionState::new(status, reason, message);
        set_condition(&mut self.conditions, kind, state, self.generation, Timestamp::now());
    }

    fn storage_ready(&mut self) {
        let message = format!("both volumes can do what is asked of them{}", self.besides());
        self.set(ConditionType::StorageReady, "True", PROBED, message);
    }

    /// What is to be said besides: of entries of the queue directory that are never taken, and of what is foreseen.
    fn besides(&self) -> String {
        let ignored = match self.snapshot.as_ref().map_or(0, |snapshot| snapshot.ignored) {
            0 => String::new(),
            1 => "; 1 entry of the queue directory is never taken: the watcher's log says why".to_owned(),
            n => format!("; {n} entries of the queue directory are never taken: the watcher's log says why"),
        };
        ignored + self.foreseen.as_deref().unwrap_or_default()
    }

    /// Reports from now on what may keep workers from the volumes.
    pub(super) fn foreseen(&mut self, what: Option<String>) {
        if let Some(what) = &what {
            tracing::warn!("workers may not start{what}");
        }
        self.foreseen = what;
    }

    /// Reports that nothing hinders the work any more.
    pub(super) fn storage_usable(&mut self) {
        if condition(&self.conditions, ConditionType::StorageReady).is_none_or(|storage| storage.status != "True") {
            self.storage_ready();
        }
    }

    pub(super) fn storage_unready(&mut self, reason: &str, message: impl Into<String>) {
        self.set(ConditionType::StorageReady, "False", reason, message);
    }

    fn lacks_space(&self) -> bool {
        condition(&self.conditions, ConditionType::StorageReady)
            .is_some_and(|c| c.status == "False" && c.reason == NO_SPACE)
    }

    fn space(&mut self, volume: &str, shortage: Option<Shortage>) {
        match shortage {
            Some(Shortage { needed_bytes, free_bytes }) => self.storage_unready(
                NO_SPACE,
                format!(
                    "the {volume} volume has {free_bytes} bytes free and {needed_bytes} are needed: make room, and what \
                     waits goes on by itself"
                ),
            ),
            None if self.lacks_space() => self.storage_ready(),
            None => {}
        }
    }

    fn volumes(&mut self, away: Option<&str>) {
        let is_told = condition(&self.conditions, ConditionType::StorageReady)
            .is_some_and(|c| c.status == "False" && c.reason == OTHER_VOLUME);
        match away {
            Some(why) => self.storage_unready(OTHER_VOLUME, format!("{why}; nothing is touched until it is back")),
            None if is_told => self.storage_ready(),
            None => {}
        }
    }

    /// Reports a queue directory that can't be listed, and that it can be again.
    fn listing(&mut self, unreadable: Option<&str>) {
        match unreadable {
            Some(why) => self.storage_unready(
                UNREADABLE,
                format!(
                    "the queue directory cannot be listed: {why}; look at its mode and owner and at the volume's server; it \
                     is tried again by itself"
                ),
            ),
            None if self.snapshot.as_ref().is_some_and(|before| before.unreadable.is_some()) => self.storage_ready(),
            None => {}
        }
    }

    /// Reports where the socket is; whether that is news. The volumes are ready all the same.
    fn socket_elsewhere(&mut self, refused: &str) -> bool {
        if self.lacks_space() {
            return false;
        }
        let before = self.conditions.clone();
        let message = format!(
            "both volumes can do what is asked of them, but the output's takes no socket ({refused}): the control socket \
             is {}/{FALLBACK_SOCKET_NAME}, where hyper2kvmctl in the pod finds it{}",
            names::RUN_DIR,
            self.besides()
        );
        self.set(ConditionType::StorageReady, "True", "SocketElsewhere", message);
        self.conditions != before
    }

    /// `wrong` is what the specification asks for and can't be had; `unusable` is what is wrong with the other
    /// channels.
    pub(super) fn notifications(&mut self, wrong: &[Wrong], unusable: &[String]) {
        let (reason, messages) = match wrong.first() {
            Some(first) => (first.reason(), wrong.iter().map(ToString::to_string).collect()),
            None => ("Unusable", unusable.to_vec()),
        };
        if messages.is_empty() {
            self.set(ConditionType::NotificationsReady, "True", "Configured", "every Secret is there");
        } else {
            self.set(ConditionType::NotificationsReady, "False", reason, messages.join("; "));
        }
    }

    /// The specification is now `queue`. The report is about it as soon as the engine obeys it: clients that wait for
    /// a condition ignore those of an older generation.
    pub(super) fn requested(&mut self, queue: &HyperConversion) {
        self.requested = Some((queue.spec.run_state, queue.metadata.generation));
        self.observe();
    }

    fn observe(&mut self) {
        let obeyed = self.snapshot.as_ref().map(|snapshot| snapshot.run_state);
        if let Some((_, generation)) = self.requested.take_if(|(run_state, _)| obeyed == Some(*run_state)) {
            self.generation = generation;
            for condition in &mut self.conditions {
                condition.observed_generation = generation;
            }
        }
    }

    fn progress(&mut self, snapshot: Snapshot) {
        if snapshot.run_state == RunState::Draining {
            let is_empty = snapshot.queue_depth == 0 && snapshot.retrying == 0 && snapshot.current_jobs.is_empty();
            let (status, reason) = if is_empty { ("True", "Empty") } else { ("False", "Draining") };
            self.set(ConditionType::Drained, status, reason, "what was queued when draining began");
        } else {
            self.conditions.retain(|condition| condition.type_ != ConditionType::Drained.as_str());
        }
        if snapshot.run_state == RunState::Stopped {
            let (status, reason, message) = match snapshot.notifications.pending {
                _ if !snapshot.is_at_rest => ("False", "Ending", "what ran is being ended and cleared away".to_owned()),
                0 => ("True", AT_REST, "nothing is left to be finished: the watcher's pod can go".to_owned()),
                pending => ("False", "Notifying", format!("{pending} notifications are not delivered yet")),
            };
            self.set(ConditionType::Stopped, status, reason, message);
        } else {
            self.conditions.retain(|condition| condition.type_ != ConditionType::Stopped.as_str());
        }
        match (snapshot.shortage, snapshot.queue_shortage) {
            (None, Some(shortage)) => self.space("queue", Some(shortage)),
            (shortage, _) => self.space("output", shortage),
        }
        self.listing(snapshot.unreadable.as_deref());
        self.volumes(snapshot.waiting_for.as_deref());
        self.snapshot = Some(snapshot);
        if condition(&self.conditions, ConditionType::StorageReady).is_some_and(|storage| storage.reason == PROBED) {
            // Its message counts what is ignored.
            self.storage_ready();
        }
        self.observe();
    }

    fn status(&self) -> Value {
        let mut status = json!({"conditions": self.conditions});
        if let Some(snapshot) = &self.snapshot {
            let totals = &snapshot.totals;
            status["queued"] = json!(snapshot.queue_depth);
            status["settling"] = json!(snapshot.settling);
            status["retrying"] = json!(snapshot.retrying);
            status["active"] = json!(snapshot.current_jobs.len());
            status["totals"] = json!({
                "succeeded": totals.all.succeeded, "failed": totals.all.failed, "duplicates": totals.duplicates,
                "retried": totals.retried, "cancelled": totals.cancelled,
            });
            if let Some(time) = snapshot.last_activity {
                status["lastActivityTime"] = json!(time);
            }
        }
        status
    }
}

/// Writes reports, no more often than [`STATUS_WRITE_INTERVAL`], and only changed ones.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    report: watch::Sender<Report>,
    run_dir: PathBuf,
}

impl Reporter {
    /// Starts the task that writes to `queue`, whose newest version is in `there`. Conditions that an earlier watcher
    /// set keep their times.
    pub(super) fn start(client: Client, identity: &Identity, queue: &HyperConversion, there: Wanted) -> Self {
        let conditions = ours(queue).into_iter().cloned().collect();
        let report = Report { conditions, generation: queue.metadata.generation, ..Report::default() };
        let (sender, receiver) = watch::channel(report);
        let api = Api::namespaced(client, &identity.namespace);
        tokio::spawn(write(api, queue.name_any(), queue.uid(), receiver, there));
        Self { report: sender, run_dir: identity.run_dir.clone() }
    }

    /// Changes the report.
    pub(super) fn update(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_modify(change);
    }

    /// The locks are another watcher's, or not ours yet: the sidecar must not act for the directories.
    pub(super) fn unlocked(&self) {
        if let Err(error) = WatcherSnapshot::unlock(&self.run_dir) {
            tracing::warn!(error = %chain(&error), "cannot tell the sidecar that the locks are not held");
        }
    }

    fn report_socket(&self) {
        if let Some(refused) = snapshot::refused_socket(&self.run_dir) {
            self.report.send_if_modified(|report| report.socket_elsewhere(&refused));
        }
    }

    /// Reports an engine that hangs in a volume or the ledger, and that it turns again.
    pub(super) async fn watch_standstill(self, remote: Remote) {
        let mut is_told = false;
        loop {
            sleep(STANDSTILL_POLL).await;
            match remote.standstill() {
                Some(time) if !std::mem::replace(&mut is_told, true) => {
                    let message = format!(
                        "the engine has stood still for {} s: a volume or the ledger does not answer; it goes on by itself",
                        time.as_secs()
                    );
                    tracing::error!("{message}");
                    self.update(|report| report.storage_unready(STANDSTILL, message));
                }
                None if std::mem::replace(&mut is_told, false) => self.update(Report::storage_usable),
                Some(_) | None => {}
            }
        }
    }

    /// Passes the engine's snapshots on, to the status and to the sidecar.
    pub(super) async fn follow(self, mut snapshots: watch::Receiver<Snapshot>) {
        loop {
            let stats = snapshots.borrow_and_update().clone();
            // An engine exists only while the locks are held.
            let left = WatcherSnapshot { locked: true, stats: stats.clone() }.write(&self.run_dir);
            if let Err(error) = left {
                tracing::warn!(error = %chain(&error), "cannot leave the snapshot for the sidecar");
            }
            self.update(|report| report.progress(stats));
            loop {
                self.report_socket();
                match timeout(SOCKET_POLL, snapshots.changed()).await {
                    Ok(Ok(())) => break,
                    Ok(Err(_)) => return,
                    Err(_) => {}
                }
            }
        }
    }
}

async fn write(
    api: Api<HyperConversion>,
    name: String,
    uid: Option<String>,
    mut reports: watch::Receiver<Report>,
    mut there: Wanted,
) {
    let params = PatchParams::apply(names::MANAGER_WATCHER).force();
    let mut last = Value::Null;
    let mut written: Option<HyperConversion> = None;
    loop {
        let is_new = tokio::select! {
            changed = reports.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            Ok(()) = there.changed() => false,
        };
        let report = reports.borrow().clone();
        let status = report.status();
        let is_lost = {
            let there = there.borrow_and_update();
            report.snapshot.is_some()
                && there.as_ref().zip(written.as_ref()).is_some_and(|(there, written)| is_overwritten(there, written))
        };
        if !is_lost && (!is_new || status == last) {
            continue;
        }
        let patch = json!({
            "apiVersion": HyperConversion::api_version(&()), "kind": HyperConversion::kind(&()),
            "metadata": {"name": name, "uid": uid}, "status": status,
        });
        match api.patch_status(&name, &params, &Patch::Apply(patch)).await {
            Ok(now) => (last, written) = (status, Some(now)),
            Err(error) => {
                tracing::warn!(error = told(&error), "cannot write the queue's status");
                reports.mark_changed();
            }
        }
        sleep(STATUS_WRITE_INTERVAL).await;
    }
}

/// Whether another watcher of this queue, one that waits for the locks, has overwritten our conditions.
fn is_overwritten(there: &HyperConversion, written: &HyperConversion) -> bool {
    cache::version(there) > cache::version(written) && ours(there) != ours(written)
}

/// The conditions that are a watcher's.
fn ours(queue: &HyperConversion) -> Vec<&Condition> {
    let conditions = queue.status.as_ref().map_or(&[][..], |status| &status.conditions);
    set_by(conditions, ConditionType::OF_QUEUE, Writer::Watcher)
}
