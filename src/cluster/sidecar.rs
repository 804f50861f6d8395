// SPDX-License-Identifier: Apache-2.0
//! The watcher's sidecar: control socket and stats.json, from the snapshot that the watcher keeps.
//!
//! While the watcher restarts, it answers with the last snapshot. A command changes `spec.runState` of the queue's
//! object, which the watcher obeys whoever changed it. Socket and stats.json exist only while the snapshot says that
//! the watcher holds its locks; otherwise another watcher may use the directory.

mod handler;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use super::snapshot::{SocketReport, WatcherSnapshot};
use crate::control::{BindError, FALLBACK_SOCKET_NAME, Listener, SOCKET};
use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::stats::{self, Snapshot, Totals};

use handler::QueueControl;

/// Where stats.json lies below the output.
const STATS: &str = ".daemon/stats.json";
/// How often the snapshot is polled: one `open` and `read` of some hundred bytes in memory.
const SNAPSHOT_POLL: Duration = Duration::from_millis(250);
/// Greatest age of stats.json.
const STATS_INTERVAL: Duration = Duration::from_secs(60);

/// Answers and writes until `shutdown`.
pub async fn run(client: Client, identity: Identity, shutdown: CancellationToken) {
    let (publish, snapshots) = watch::channel(None);
    let mut sidecar = Sidecar {
        control: QueueControl::new(client, &identity, snapshots),
        identity,
        publish,
        served: None,
        written: None,
        problem: None,
    };
    let mut polls = interval(SNAPSHOT_POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = polls.tick() => sidecar.poll().await,
        }
    }
    sidecar.write_stats();
    sidecar.close().await;
}

struct Sidecar {
    identity: Identity,
    control: QueueControl,
    publish: watch::Sender<Option<WatcherSnapshot>>,
    served: Option<Served>,
    /// When stats.json was written last, and the content whose change is written at once.
    written: Option<(Instant, (Totals, RunState))>,
    /// The last warning: a persistent problem is logged once.
    problem: Option<String>,
}

/// A socket that is answered.
struct Served {
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Sidecar {
    async fn poll(&mut self) {
        match WatcherSnapshot::read(&self.identity.run_dir) {
            Ok(Some(found)) => {
                self.publish.send_if_modified(|known| {
                    let is_new = known.as_ref() != Some(&found);
                    if is_new {
                        *known = Some(found);
                    }
                    is_new
                });
            }
            // The watcher has not written a snapshot yet.
            Ok(None) => {}
            Err(error) => self.warn(&format!("cannot read the watcher's snapshot: {}", chain(&error))),
        }
        let is_locked = self.publish.borrow().as_ref().is_some_and(|snapshot| snapshot.locked);
        if !is_locked {
            self.close().await;
            return;
        }
        if self.served.is_none() {
            self.open();
        }
        if self.is_stats_due() {
            self.write_stats();
        }
    }

    /// Serves the socket below the output, or where the volume refuses it, the one in the shared directory.
    fn open(&mut self) {
        let mut report = SocketReport { path: self.identity.output_dir.join(SOCKET), refused: None };
        let bound = Listener::bind(&report.path).or_else(|error| match error {
            // A predecessor on this node that is about to end.
            BindError::InUse { .. } => Err(error),
            error => {
                report.refused = Some(chain(&error));
                report.path = self.identity.run_dir.join(FALLBACK_SOCKET_NAME);
                Listener::bind(&report.path)
            }
        });
        let listener = match bound {
            Ok(listener) => listener,
            Err(error) => return self.warn(&format!("cannot serve the control socket: {}", chain(&error))),
        };
        if let Some(refused) = &report.refused {
            tracing::warn!(path = %report.path.display(), error = %refused, "the output's volume refuses the control socket");
        } else {
            tracing::info!(path = %report.path.display(), "the control socket is served");
        }
        if let Err(error) = report.write(&self.identity.run_dir) {
            self.warn(&format!("cannot tell the watcher where the socket is: {}", chain(&error)));
        }
        let end = CancellationToken::new();
        let task = tokio::spawn(listener.serve(self.control.clone(), end.clone()));
        self.served = Some(Served { end, task });
    }

    async fn close(&mut self) {
        let Some(Served { end, task }) = self.served.take() else { return };
        end.cancel();
        if let Err(error) = task.await {
            tracing::error!(%error, "the control socket ended badly");
        }
        // The next watcher that holds the locks may have other counts.
        self.written = None;
    }

    fn is_stats_due(&self) -> bool {
        let known = self.publish.borrow();
        match (&self.written, known.as_ref()) {
            (Some((when, told)), Some(snapshot)) => {
                when.elapsed() >= STATS_INTERVAL || *told != urgent(&snapshot.stats)
            }
            (None, _) => true,
            (_, None) => false,
        }
    }

    fn write_stats(&mut self) {
        let Some(snapshot) = self.publish.borrow().clone().filter(|snapshot| snapshot.locked) else { return };
        let path = self.identity.output_dir.join(STATS);
        if let Err(error) = stats::write(&path, &snapshot.stats.file_report(Timestamp::now())) {
            self.warn(&format!("cannot write the statistics: {}", chain(&error)));
        }
        self.written = Some((Instant::now(), urgent(&snapshot.stats)));
    }

    fn warn(&mut self, problem: &str) {
        if self.problem.as_deref() != Some(problem) {
            tracing::warn!("{problem}");
            self.problem = Some(problem.to_owned());
        }
    }
}

/// The parts of stats.json whose change is written at once: completions, and the run state.
fn urgent(stats: &Snapshot) -> (Totals, RunState) {
    (stats.totals.clone(), stats.run_state)
}
