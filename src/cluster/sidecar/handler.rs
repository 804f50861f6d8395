// SPDX-License-Identifier: Apache-2.0
//! The commands of the control socket: answered from the snapshot, or carried out as a patch of the queue's object.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::api::HyperConversion;
use crate::cluster::client::told;
use crate::cluster::identity::Identity;
use crate::cluster::names::MANAGER_SIDECAR;
use crate::cluster::snapshot::WatcherSnapshot;
use crate::control::{Command, Handler, Reply};
use crate::conversion::admission::RunState;

/// Longest call of the API server; stock clients give up after 5 s.
const PATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer waits for the watcher to obey, so that a `status` right after it shows the new state.
const OBEY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Answers for one queue.
#[derive(Clone)]
pub(super) struct QueueControl {
    api: Api<HyperConversion>,
    queue: String,
    uid: String,
    snapshots: watch::Receiver<Option<WatcherSnapshot>>,
}

impl QueueControl {
    pub(super) fn new(
        client: Client,
        identity: &Identity,
        snapshots: watch::Receiver<Option<WatcherSnapshot>>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, &identity.namespace),
            queue: identity.queue.clone(),
            uid: identity.queue_uid.clone(),
            snapshots,
        }
    }

    async fn ask_for(&self, run_state: RunState) -> Result<(), String> {
        let patch = Patch::Apply(intent(&self.queue, &self.uid, run_state));
        // Forced over any other writer of the field, because a person asked for it.
        let params = PatchParams::apply(MANAGER_SIDECAR).force();
        match timeout(PATCH_TIMEOUT, self.api.patch(&self.queue, &params, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error @ kube::Error::Api(_))) => {
                Err(format!("The API server refused to change spec.runState of {}: {}", self.queue, told(&error)))
            }
            Ok(Err(error)) => Err(format!("Cannot reach the API server: {}; try again", told(&error))),
            Err(_) => Err(format!("The API server did not answer within {} s; try again", PATCH_TIMEOUT.as_secs())),
        }
    }
}

/// Everything that the sidecar ever applies.
pub(super) fn intent(queue: &str, uid: &str, run_state: RunState) -> Value {
    let mut metadata = json!({ "name": queue });
    if !uid.is_empty() {
        metadata["uid"] = uid.into();
    }
    json!({
        "apiVersion": HyperConversion::api_version(&()),
        "kind": HyperConversion::kind(&()),
        "metadata": metadata,
        "spec": { "runState": run_state },
    })
}

impl Handler for QueueControl {
    async fn handle(&self, command: Command) -> Reply {
        if let Some(run_state) = command.run_state() {
            if let Err(message) = self.ask_for(run_state).await {
                return Reply::Failed(message);
            }
            let mut snapshots = self.snapshots.clone();
            let obeyed = |known: &Option<WatcherSnapshot>| {
                known.as_ref().is_some_and(|snapshot| snapshot.stats.run_state == run_state)
            };
            // A watcher that is restarting obeys later: the request is recorded.
            drop(timeout(OBEY_TIMEOUT, snapshots.wait_for(obeyed)).await);
            return Reply::accepted(command);
        }
        let Some(WatcherSnapshot { stats, .. }) = self.snapshots.borrow().clone() else {
            return Reply::Failed("The watcher has told nothing yet".to_owned());
        };
        if command == Command::Status { Reply::status(&stats) } else { Reply::stats(&stats, Timestamp::now()) }
    }
}
