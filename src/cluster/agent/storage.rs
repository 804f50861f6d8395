// SPDX-License-Identifier: Apache-2.0
//! What a watcher needs before it may touch anything: volumes that can do what the engine needs, and the locks of
//! both directories.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{sleep, timeout};

use super::report::{OTHER_VOLUME, Reporter, STANDSTILL, UNREADABLE};
use super::specification::Wanted;
use crate::cluster::identity::Identity;
use crate::conversion::chain;
use crate::files::{Method, Paths};
use crate::queue::identity::{self, IdentityError, Volumes};
use crate::queue::lock::{self, Beat, Contender, Contest, HEARTBEAT_INTERVAL, Keeper, LockError, Locks, Owner};
use crate::queue::probe;

/// How soon volumes or locks that can't be used are tried again.
pub(super) const STORAGE_RETRY: Duration = Duration::from_secs(10);

/// How long a look at a volume may block before that is reported.
const BLOCKED_LIMIT: Duration = Duration::from_secs(20);

/// The reason of directories that another engine works in.
const LOCKED: &str = "Locked";

/// Annotation of a HyperConversion whose volumes are a pair from now on, whatever they belonged to.
const ADOPT: &str = "hyper2kvm.io/adopt-volumes";

/// Tries the volumes until they can do what the engine needs, and reports what they can't.
pub(super) async fn volumes(identity: &Identity, reporter: &Reporter, wanted: &Wanted) -> (Paths, Volumes) {
    loop {
        let (queue, output) = (identity.queue_dir.clone(), identity.output_dir.clone());
        let is_meant = wanted.borrow().as_ref().is_some_and(|queue| queue.annotations().contains_key(ADOPT));
        let trying = tokio::task::spawn_blocking(move || try_volumes(queue, output, is_meant));
        let tried = patiently(trying, reporter).await;
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

/// The result of something that blocks on a volume. While that hangs, the report says so.
pub(super) async fn patiently<T>(mut doing: JoinHandle<T>, reporter: &Reporter) -> Result<T, JoinError> {
    if let Ok(done) = timeout(BLOCKED_LIMIT, &mut doing).await {
        return done;
    }
    let message = format!(
        "a volume has not answered for {} s: look at its server, its driver and the kernel's log of the node; it goes on \
         by itself",
        BLOCKED_LIMIT.as_secs()
    );
    tracing::error!("{message}");
    reporter.update(|report| report.storage_unready(STANDSTILL, message));
    doing.await
}

fn try_volumes(queue: PathBuf, output: PathBuf, is_meant: bool) -> Result<(Paths, Volumes), (&'static str, String)> {
    let paths = Paths::new(queue, output);
    match probe::check_directories(&paths) {
        Ok(Ok(())) => {}
        Ok(Err(conflict)) => return Err(("PathConflict", conflict.to_string())),
        Err(error) => return Err((UNREADABLE, format!("cannot look at the volumes: {error}"))),
    }
    let plan = identity::plan(paths.queue(), paths.output(), is_meant);
    // Where an engine works in one of them no volume is missing, and once they are another pair it could not start again.
    if plan.as_ref().map_or_else(|error| matches!(error, IdentityError::Refused(_)), identity::Plan::makes_a_pair) {
        lock::check_unused(&paths).map_err(|error| (LOCKED, in_use(&error)))?;
    }
    let volumes = plan.and_then(|plan| plan.carry_out(&paths)).map_err(|error| match (&error, error.io()) {
        (IdentityError::Refused(_), _) => {
            let text = chain(&error);
            (OTHER_VOLUME, format!("{text} Where these volumes are meant, annotate the HyperConversion with {ADOPT}"))
        }
        (_, Some(source)) if probe::is_no_space(source) => ("NoSpace", chain(&error)),
        (_, Some(source)) if probe::is_denied(source) => ("PermissionDenied", denied(&error)),
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
        (reason, if error.is_denied() { denied(&error) } else { chain(&error) })
    })?;
    Ok((paths, volumes))
}

/// What a volume refuses, and how to be let in.
fn denied(error: &dyn std::error::Error) -> String {
    format!(
        "{}. Set spec.securityContext.fsGroup of the HyperConversion, such as 65532, the image's own group; where the \
         volume's driver knows no fsGroup (NFS, hostPath), give the directory and its parents to user or group of the \
         pods (runAsUser, supplementalGroups)",
        chain(error)
    )
}

/// Locks both directories, waiting as long as another engine holds them.
pub(super) async fn lock(paths: &Paths, identity: &Identity, reporter: &Reporter) -> Locks {
    let token = format!("{}-{}", identity.pod, Timestamp::now().as_nanosecond());
    let begun = Instant::now();
    'contest: loop {
        let me = Owner::this(&identity.pod, &identity.queue_uid, token.as_str());
        let paths = paths.clone();
        let contending = tokio::task::spawn_blocking(move || me.and_then(|me| Contender::new(&paths, me)));
        let contender = match patiently(contending, reporter).await {
            Ok(contender) => contender,
            Err(error) => {
                tracing::error!(%error, "the locks could not be tried");
                sleep(STORAGE_RETRY).await;
                continue;
            }
        };
        let refused = match contender {
            Ok(mut contender) => loop {
                let polling = tokio::task::spawn_blocking(move || contender.poll(begun.elapsed()));
                let Ok(polled) = patiently(polling, reporter).await else { continue 'contest };
                match polled {
                    Ok(Contest::Won(locks)) => return locks,
                    Ok(Contest::Waiting { contender: again, until, holder }) => {
                        contender = again;
                        reporter.unlocked();
                        reporter.update(|report| {
                            report.storage_unready(
                                LOCKED,
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
        let (reason, message) = match &refused {
            LockError::Held { .. } => (LOCKED, in_use(&refused)),
            _ => (UNREADABLE, format!("{}; it is tried again by itself", chain(&refused))),
        };
        tracing::warn!(reason, "{message}");
        reporter.update(|report| report.storage_unready(reason, message));
        sleep(STORAGE_RETRY).await;
    }
}

fn in_use(error: &LockError) -> String {
    format!("{}: give this queue directories of its own, or end the other", chain(error))
}

/// Renews the heartbeat; returns the error by which a lock was lost.
pub(super) async fn beat(mut keeper: Keeper) -> LockError {
    let begun = Instant::now();
    // Each thing once, until it is over.
    let mut said = String::new();
    loop {
        sleep(HEARTBEAT_INTERVAL).await;
        // A volume that hangs must hold nothing but this.
        let beating = tokio::task::spawn_blocking(move || {
            let beat = keeper.beat(Timestamp::now(), begun.elapsed());
            (keeper, beat)
        });
        let (kept, beat) = beating.await.expect("a heartbeat does not panic");
        keeper = kept;
        match beat {
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
