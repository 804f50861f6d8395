// SPDX-License-Identifier: Apache-2.0
//! What a watcher needs before it may touch anything: volumes that can do what the engine needs, and the locks of
//! both directories.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::sleep;

use super::report::Reporter;
use crate::cluster::identity::Identity;
use crate::conversion::chain;
use crate::files::{Method, Paths};
use crate::queue::lock::{Contender, Contest, HEARTBEAT_INTERVAL, LockError, Locks, Owner};
use crate::queue::probe;

/// How soon volumes or locks that can't be used are tried again.
const STORAGE_RETRY: Duration = Duration::from_secs(10);

/// Reason of `StorageReady` while something on the volumes can't be read or written.
pub(super) const UNREADABLE: &str = "Unreadable";

/// Tries the volumes until they can do what the engine needs, and reports what they can't.
pub(super) async fn volumes(identity: &Identity, reporter: &Reporter) -> Paths {
    loop {
        let (queue, output) = (identity.queue_dir.clone(), identity.output_dir.clone());
        let tried = tokio::task::spawn_blocking(move || try_volumes(queue, output)).await;
        match tried {
            Ok(Ok(paths)) => return paths,
            Ok(Err((reason, message))) => {
                tracing::error!(reason, "{message}");
                reporter.update(|report| report.storage_unready(reason, message));
            }
            Err(error) => tracing::error!(%error, "the volumes could not be tried"),
        }
        sleep(STORAGE_RETRY).await;
    }
}

fn try_volumes(queue: PathBuf, output: PathBuf) -> Result<Paths, (&'static str, String)> {
    let paths = Paths::new(queue, output);
    match probe::check_directories(&paths) {
        Ok(Ok(())) => {}
        Ok(Err(conflict)) => return Err(("PathConflict", conflict.to_string())),
        Err(error) => return Err((UNREADABLE, format!("cannot look at the volumes: {error}"))),
    }
    probe::probe(&paths, Method::NoReplace).map_err(|error| {
        let reason = if error.is_no_space() {
            "NoSpace"
        } else if error.is_denied() {
            "PermissionDenied"
        } else {
            "Unsuitable"
        };
        (reason, chain(&error))
    })?;
    Ok(paths)
}

/// Locks both directories, waiting as long as another engine holds them.
pub(super) async fn lock(paths: &Paths, identity: &Identity, reporter: &Reporter) -> Locks {
    let token = format!("{}-{}", identity.pod, Timestamp::now().as_nanosecond());
    let begun = Instant::now();
    loop {
        let me = Owner::this(&identity.pod, &identity.queue_uid, token.as_str());
        let refused = match me.and_then(|me| Contender::new(paths, me)) {
            Ok(mut contender) => loop {
                match contender.poll(begun.elapsed()) {
                    Ok(Contest::Won(locks)) => return locks,
                    Ok(Contest::Waiting { contender: again, until, holder }) => {
                        contender = again;
                        reporter.unlocked();
                        reporter.update(|report| {
                            report.storage_unready(
                                "Locked",
                                format!("{holder} had these directories; waiting for its heartbeat to stand still"),
                            );
                        });
                        sleep(until.saturating_sub(begun.elapsed()).max(Duration::from_millis(100))).await;
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        reporter.unlocked();
        let (reason, remedy) = match refused {
            LockError::Held { .. } => ("Locked", ": give this queue directories of its own, or end the other"),
            _ => (UNREADABLE, "; it is tried again by itself"),
        };
        let message = format!("{}{remedy}", chain(&refused));
        tracing::warn!(reason, "{message}");
        reporter.update(|report| report.storage_unready(reason, message));
        sleep(STORAGE_RETRY).await;
    }
}

/// Renews the heartbeat; returns the error by which a lock was lost.
pub(super) async fn beat(mut locks: Locks) -> LockError {
    loop {
        sleep(HEARTBEAT_INTERVAL).await;
        match locks.beat(Timestamp::now()) {
            Ok(()) => {}
            Err(error @ LockError::Lost { .. }) => return error,
            Err(error) => tracing::warn!(error = %chain(&error), "cannot show that this watcher lives"),
        }
    }
}
