// SPDX-License-Identifier: Apache-2.0
//! Running attempts: a poll of each every second, their progress written at a limited rate, and those that stall.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::api::{ConditionState, ConditionType, ConversionJob, ProgressReport, condition};
use crate::cluster::cache::version;
use crate::cluster::client::told;
use crate::cluster::containers::worker_runs;
use crate::cluster::names;
use crate::cluster::seen::Pod;
use crate::conversion::{ConversionId, chain};

use super::objects::{WatcherStatus, in_progress};
use super::progress::{self, PolledProgress, Running};
use super::state::{ClusterExecutor, Known, Written};

/// The results of the poll under way; waits for ever where there is none.
pub(super) async fn poll_result(poll: &mut Option<JoinHandle<Vec<PolledProgress>>>) -> Vec<PolledProgress> {
    match poll {
        Some(handle) => {
            let polled = handle.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a look at the progress failed");
                Vec::new()
            });
            *poll = None;
            polled
        }
        None => std::future::pending().await,
    }
}

impl ClusterExecutor {
    /// Begins to poll every attempt whose container runs.
    pub(super) fn poll_progress(&mut self) {
        let pods = self.pods.state();
        let running: HashSet<(&str, &str)> = pods
            .iter()
            .filter(|pod| worker_runs(pod))
            .filter_map(|pod| Some((label(pod, names::LABEL_CONVERSION)?, label(pod, names::LABEL_ATTEMPT)?)))
            .collect();
        let of_attempt = |(id, known): (&ConversionId, &Known)| {
            let open = known.newest.as_ref()?.status.as_ref()?.state.open_attempt()?.number;
            let is_running = !known.is_gone && running.contains(&(id.as_str(), open.to_string().as_str()));
            is_running.then(|| Running { id: id.clone(), attempt: open, work: self.paths.work_dir(id, open) })
        };
        let running: Vec<Running> = self.known.iter().filter_map(of_attempt).collect();
        self.progress.keep(&running, Instant::now());
        if !running.is_empty() {
            self.poll = Some(progress::poll(running));
        }
    }

    pub(super) fn receive_poll(&mut self, polled: Vec<PolledProgress>) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        for found in polled {
            let id = found.id.clone();
            if self.progress.receive(found, now, wall) {
                self.publish(&id);
            }
        }
        for (id, report) in self.progress.due(now) {
            self.apply_progress(id, &report);
        }
    }

    /// Progress has a field manager of its own: it is written independently of everything else, on any version.
    fn apply_progress(&mut self, id: ConversionId, report: &ProgressReport) {
        let Some(uid) = self.refresh(&id).and_then(|object| object.uid()) else { return };
        let patch = json!({
            "apiVersion": ConversionJob::api_version(&()),
            "kind": ConversionJob::kind(&()),
            "metadata": {"name": id.as_str(), "namespace": self.queue.namespace(), "uid": uid},
            "status": {"progress": report},
        });
        let api = self.api();
        self.writes.spawn(async move {
            let params = PatchParams::apply(names::MANAGER_PROGRESS).force();
            let written = api.patch_status(id.as_str(), &params, &Patch::Apply(patch)).await;
            (id, written)
        });
    }

    pub(super) fn written(&mut self, (id, written): Written) {
        match written {
            Ok(object) => {
                let Some(known) = self.known.get_mut(&id) else { return };
                if known.newest.as_deref().is_none_or(|newest| version(newest) < version(&object)) {
                    known.newest = Some(Arc::new(object));
                }
            }
            // The next percent is written anyway.
            Err(error) => tracing::debug!(conversion = %id, error = told(&error), "cannot write the progress"),
        }
    }

    /// Reports attempts that have made no progress for too long: the controller ends them. After an interruption they
    /// are reported the next time. Staging the next attempt removes the report.
    pub(super) async fn report_stalled(&mut self) {
        for (id, attempt) in self.progress.stalled() {
            let Some(status) = self.refresh(&id).and_then(|object| object.status.clone()) else { continue };
            let is_open = status.state.open_attempt().is_some_and(|open| open.number == attempt);
            let said = condition(&status.conditions, ConditionType::Progressing);
            if !is_open || said.is_some_and(|c| c.status == "False") {
                continue;
            }
            let seconds = self.queue.spec.conversion.stall_timeout_seconds;
            let message = format!("attempt {attempt} made no progress for {}", in_words(seconds));
            let stalled = ConditionState::new("False", "NoProgress", message.clone());
            let conditions = vec![in_progress(message), (ConditionType::Progressing, stalled)];
            let status = WatcherStatus { staged: status.state.staged, conditions, ..WatcherStatus::default() };
            match self.apply_status("stall", &id, status).await {
                Ok(()) => tracing::warn!(conversion = %id, attempt = attempt.0, "no progress; the attempt is to end"),
                Err(error) => tracing::warn!(conversion = %id, error = %chain(&error), "cannot say that it stalled"),
            }
        }
    }
}

/// Minutes where they are whole.
fn in_words(seconds: u32) -> String {
    if seconds.is_multiple_of(60) { format!("{} minutes", seconds / 60) } else { format!("{seconds} seconds") }
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.labels().get(key).map(String::as_str)
}
