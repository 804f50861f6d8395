//! The watcher's sidecar: answers the control socket and writes stats.json from the watcher's last snapshot, so that
//! both stay while the watcher restarts. Commands become `spec.runState`, which is all that it ever writes to the API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cluster::api::HyperConversion;
use crate::cluster::names;
use crate::cluster::watcher::{Identity, SNAPSHOT_FILE};
use crate::control::{BindError, Command, Handler, Listener, Reply, SOCKET};
use crate::stats::{self, Snapshot};

/// How often the watcher's snapshot is looked for.
const LOOK: Duration = Duration::from_millis(500);
/// Oldest that stats.json gets.
const STATS_INTERVAL: Duration = Duration::from_secs(60);
/// Name of the statistics below `{output}/.daemon/`: exporters read it.
const STATS_FILE: &str = "stats.json";
/// Name of the socket in our own volume, where the output's volume refuses sockets.
const OWN_SOCKET: &str = "control.sock";

/// Carries commands out by writing what is wanted into the queue's object.
struct Control {
    api: Api<HyperConversion>,
    queue: String,
    snapshot: watch::Receiver<Snapshot>,
}

impl Handler for Control {
    async fn handle(&self, command: Command) -> Reply {
        let snapshot = self.snapshot.borrow().clone();
        let Some(wanted) = command.run_state() else {
            return match command {
                Command::Status => Reply::status(&snapshot),
                _ => Reply::stats(&snapshot, Timestamp::now()),
            };
        };
        let patch = json!({
            "apiVersion": HyperConversion::api_version(&()), "kind": HyperConversion::kind(&()),
            "metadata": {"name": self.queue}, "spec": {"runState": wanted},
        });
        let params = PatchParams { field_manager: Some(names::MANAGER_SIDECAR.to_owned()), ..PatchParams::default() };
        match self.api.patch(&self.queue, &params, &Patch::Merge(patch)).await {
            Ok(_) => Reply::accepted(command),
            Err(error) => {
                tracing::warn!(%error, "cannot write spec.runState");
                Reply::Failed(format!("the API server did not take it: {error}"))
            }
        }
    }
}

/// Serves until `shutdown`. The socket is bound once a watcher that holds its locks has left a snapshot.
pub async fn run(client: Client, identity: Identity, shutdown: CancellationToken) -> Result<(), BindError> {
    let (sender, mut snapshot) = watch::channel(Snapshot::new(Timestamp::now()));
    let daemon = identity.output_dir.join(".daemon");
    tokio::spawn(follow(identity.run_dir.join(SNAPSHOT_FILE), daemon.join(STATS_FILE), sender));
    tokio::select! {
        changed = snapshot.changed() => {
            if changed.is_err() {
                return Ok(());
            }
        }
        () = shutdown.cancelled() => return Ok(()),
    }
    let listener = match Listener::bind(&identity.output_dir.join(SOCKET)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "the output volume takes no socket; it is in {}", identity.run_dir.display());
            Listener::bind(&identity.run_dir.join(OWN_SOCKET))?
        }
    };
    let control = Control { api: Api::namespaced(client, &identity.namespace), queue: identity.queue, snapshot };
    listener.serve(control, shutdown).await;
    Ok(())
}

/// Takes every new snapshot over, and writes stats.json when something ended and every minute.
async fn follow(file: PathBuf, stats_file: PathBuf, sender: watch::Sender<Snapshot>) {
    let mut written: Option<Instant> = None;
    let mut last = Vec::new();
    loop {
        if let Ok(bytes) = tokio::fs::read(&file).await {
            let is_new = bytes != last;
            match serde_json::from_slice::<Snapshot>(&bytes) {
                Ok(snapshot) => {
                    let has_ended = snapshot.totals != sender.borrow().totals;
                    if is_new {
                        sender.send_replace(snapshot.clone());
                        last = bytes;
                    }
                    if has_ended || written.is_none_or(|at| at.elapsed() >= STATS_INTERVAL) {
                        write_stats(&stats_file, &snapshot);
                        written = Some(Instant::now());
                    }
                }
                Err(error) => tracing::warn!(%error, "the watcher's snapshot can't be read"),
            }
        }
        sleep(LOOK).await;
    }
}

fn write_stats(file: &Path, snapshot: &Snapshot) {
    if let Err(error) = stats::write(file, &snapshot.file_report(Timestamp::now())) {
        tracing::warn!(%error, "cannot write stats.json");
    }
}
