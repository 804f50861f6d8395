// SPDX-License-Identifier: Apache-2.0
//! What a watcher needs before it may touch anything: volumes that can do what the engine needs, and the locks of
//! both directories.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::time::sleep;

use super::report::{OTHER_VOLUME, Reporter};
use super::specification::Wanted;
use crate::cluster::identity::Identity;
use crate::conversion::chain;
use crate::files::{Method, Paths};
use crate::queue::identity::{self, IdentityError, Volumes};
use crate::queue::lock::{Beat, Contender, Contest, HEARTBEAT_INTERVAL, Keeper, LockError, Locks, Owner};
use crate::queue::probe;

/// How soon volumes or locks that can't be used are tried again.
const STORAGE_RETRY: Duration = Duration::from_secs(10);

/// Reason of `StorageReady` while something on the volumes can't be read or written.
pub(super) const UNREADABLE: &str = "Unreadable";

/// Annotation of a HyperConversion whose volumes are a pair from now on, whatever they belonged to.
const ADOPT: &str = "hyper2kvm.io/adopt-volumes";

/// Tries the volumes until they can do what the engine needs, and reports what they can't.
pub(super) async fn volumes(identity: &Identity, reporter: &Reporter, wanted: &Wanted) -> (Paths, Volumes) {
    loop {
        let (queue, output) = (identity.queue_dir.clone(), identity.output_dir.clone());
        let is_meant = wanted.borrow().as_ref().is_some_and(|queue| queue.annotations().contains_key(ADOPT));
        let tried = tokio::task::spawn_blocking(move || try_volumes(queue, output, is_meant)).await;
        match tried {
            Ok(Ok(ready)) => return ready,
            Ok(Err((reason, message))) => {
                tracing::error!(reason, "{message}");
                reporter.update(|report| report.storage_unready(reason, message));
            }
            Err(error) => tracing::error!(%error, "the volumes could not be tried"),
        }
        sleep(STORAGE_RETRY).await;
    }
}

fn try_volumes(queue: PathBuf, output: PathBuf, is_meant: bool) -> Result<(Paths, Volumes), (&'static str, String)> {
    let paths = Paths::new(queue, output);
    match probe::check_directories(&paths) {
        Ok(Ok(())) => {}
        Ok(Err(conflict)) => return Err(("PathConflict", conflict.to_string())),
        Err(error) => return Err((UNREADABLE, format!("cannot look at the volumes: {error}"))),
    }
    let volumes = identity::plan(paths.queue(), paths.output(), is_meant)
        .and_then(|plan| plan.carry_out(&paths))
        .map_err(|error| match (&error, error.io()) {
            (IdentityError::Refused(_), _) => {
                let text = chain(&error);
                (
                    OTHER_VOLUME,
                    format!("{text} Where these volumes are meant, annotate the HyperConversion with {ADOPT}"),
                )
            }
            (_, Some(source)) if probe::is_no_space(source) => ("NoSpace", chain(&error)),
            (_, Some(source)) if probe::is_denied(source) => ("PermissionDenied", chain(&error)),
            _ => (UNREADABLE, chain(&error)),
        })?;
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
    Ok((paths, volumes))
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
pub(super) async fn beat(mut keeper: Keeper) -> LockError {
    let begun = Instant::now();
    // Each thing once, until it is over.
    let mut said = String::new();
    loop {
        sleep(HEARTBEAT_INTERVAL).await;
        match keeper.beat(Timestamp::now(), begun.elapsed()) {
            Beat::Held => said.clear(),
            Beat::Lost(error) => return error,
            Beat::Unseen(error) if said != chain(&error) => {
                said = chain(&error);
                tracing::warn!(error = said, "cannot show that this watcher lives");
            }
            Beat::Doubtful(error) if said != chain(&error) => {
                said = chain(&error);
                tracing::warn!(error = said, "cannot tell whose the directories are; looking again");
            }
            Beat::Unseen(_) | Beat::Doubtful(_) => {}
            // The engine says it.
            Beat::Away(away) => tracing::debug!(error = %chain(&away), "no heartbeat"),
        }
    }
}
