// SPDX-License-Identifier: Apache-2.0
//! What became of an attempt: one decision over its Job, its pods and the worker's own message.

use k8s_openapi::api::batch::v1::JobCondition;

use super::starting::{clean, condition, waiting, words};
use crate::cluster::containers::{phase, worker_end, worker_has_started, worker_is_over, worker_succeeded};
use crate::cluster::seen::{Job, Pod, PodCondition};
use crate::conversion::guest::outcome::GuestOutcome;
use crate::conversion::lifecycle::{ONLY_FOLDER, Observation};
use crate::conversion::verdict::{self, Exit};
use crate::conversion::{Attempt, Class, Failure, Reason, SuccessMessage, TerminationMessage};

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ended; nothing about it changes any more.
    Ended(Observation),
    /// Its container runs.
    Running { pod_name: String, node_name: Option<String> },
    /// None of its containers has started; the reason, if known.
    Waiting(Option<Failure>),
}

/// Decides how far `attempt` is, by its Job and the pods of that Job. `ran` is the pod that was seen running before.
///
/// Looks at these in order, because the later ones are consequences of the earlier: success, whatever was to befall the
/// pod; disruption and suspension; the worker's message; its exit code; the container's status; the pod's and the Job's
/// conditions. What is called a success is inspected on the volume before anything is published.
#[must_use]
pub(super) fn outcome_of(attempt: Attempt, job: &Job, pods: &[&Pod], ran: Option<&str>) -> Outcome {
    let failed = |failure| Outcome::Ended(Observation::Failed { attempt, failure });
    let winner = pods.iter().find(|pod| worker_succeeded(pod));
    if winner.is_none() {
        if let Some(condition) = pods.iter().find_map(|pod| disruption(pod).filter(|_| is_ending(pod))) {
            return failed(Failure::new(Reason::Disrupted, words(condition)));
        }
        if is_suspended(job) && (ran.is_some() || pods.iter().any(|pod| worker_has_started(pod))) {
            return failed(Failure::new(Reason::Suspended, "the Job was suspended while it ran"));
        }
    }
    if let Some(folder) = winner.and_then(|pod| pod.metadata.name.clone()) {
        return Outcome::Ended(Observation::Done { attempt, folder });
    }
    if let Some(failure) = newest(pods).and_then(pod_failure) {
        return failed(failure);
    }
    if let Some(failure) = job_failure(job) {
        return failed(failure);
    }
    if pods.is_empty() && job_condition(job, &["Complete"]).is_some() {
        // The folder on the volume is the witness: it has the pod's name, and is found without it.
        let folder = ran.unwrap_or(ONLY_FOLDER).to_owned();
        return Outcome::Ended(Observation::Done { attempt, folder });
    }
    match newest(pods) {
        Some(pod) if worker_has_started(pod) => Outcome::Running {
            pod_name: pod.metadata.name.clone().unwrap_or_default(),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        },
        Some(pod) => Outcome::Waiting(waiting(pod)),
        None => Outcome::Waiting(None),
    }
}

/// Whether any container of these pods ever ran.
#[must_use]
pub(super) fn any_started(pods: &[&Pod]) -> bool {
    pods.iter().any(|pod| worker_has_started(pod))
}

/// What the worker that succeeded tells of the guest that it was to fix.
#[must_use]
pub(super) fn guest(pods: &[&Pod]) -> Option<GuestOutcome> {
    let winner = pods.iter().find(|pod| worker_succeeded(pod))?;
    let message: SuccessMessage = serde_json::from_str(worker_end(winner)?.message.as_deref()?).ok()?;
    Some(message.guest.believed(clean))
}

/// Name and node of the pod whose container runs or ran, if any did.
#[must_use]
pub(super) fn pod_and_node(pods: &[&Pod]) -> Option<(String, Option<String>)> {
    let started: Vec<&Pod> = pods.iter().copied().filter(|pod| worker_has_started(pod)).collect();
    let pod = newest(&started)?;
    Some((pod.metadata.name.clone()?, pod.spec.as_ref().and_then(|spec| spec.node_name.clone())))
}

/// Whether the Job has finished, but none of these pods has: the caches run at different speeds, and a Job's status
/// does not hold the worker's message.
#[must_use]
pub(super) fn awaits_its_pods(job: &Job, pods: &[&Pod]) -> bool {
    is_finished(job) && !pods.iter().any(|pod| worker_is_over(pod))
}

fn newest<'a>(pods: &[&'a Pod]) -> Option<&'a Pod> {
    let key = |pod: &&&Pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone());
    pods.iter().max_by_key(key).copied()
}

fn disruption(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "DisruptionTarget", "True")
}

/// Whether the pod is ending or gone: an announced disruption may still be called off.
fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" || worker_end(pod).is_some()
}

fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true) && !is_finished(job)
}

/// Whether the Job controller has finished a Job, or is about to.
#[must_use]
pub(super) fn is_finished(job: &Job) -> bool {
    job_condition(job, &["Complete", "Failed"]).is_some()
}

fn job_condition<'a>(job: &'a Job, kinds: &[&str]) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| kinds.contains(&c.type_.as_str()) && c.status == "True")
}

/// Why a pod that has ended ended without success; `None` while it hasn't.
fn pod_failure(pod: &Pod) -> Option<Failure> {
    let ended = worker_end(pod);
    if phase(pod) != "Failed" && ended.is_none() {
        return None;
    }
    if let Some(failure) = ended.and_then(|t| t.message.as_deref()).and_then(read_message) {
        return Some(failure);
    }
    if let Some(failure) = ended.and_then(|t| verdict::by_exit(Exit::Code(t.exit_code), "message")) {
        return Some(failure);
    }
    if ended.is_some_and(|t| t.reason.as_deref() == Some("OOMKilled")) {
        return Some(Failure::new(Reason::OutOfMemory, "the kernel killed the worker at its memory limit"));
    }
    let status = pod.status.as_ref();
    let message = clean(status.and_then(|s| s.message.as_deref()).unwrap_or_default());
    match (status.and_then(|s| s.reason.as_deref()), ended) {
        (Some("DeadlineExceeded"), _) => Some(Failure::new(
            Reason::DeadlineExceeded,
            "the attempt took longer than conversion.activeDeadlineSeconds",
        )),
        // An eviction for lack of the node's resources has DisruptionTarget; without it, one of our limits was
        // exceeded.
        (Some("Evicted"), _) => {
            Some(Failure { class: Class::Permanent, ..Failure::new(Reason::Killed, format!("evicted: {message}")) })
        }
        (Some(reason), _) => Some(Failure::new(Reason::Killed, format!("{reason}: {message}"))),
        (None, Some(t)) if t.exit_code == 0 => None,
        (None, Some(t)) => {
            Some(Failure::new(Reason::Killed, format!("the worker was killed (exit code {})", t.exit_code)))
        }
        (None, None) => Some(Failure::new(Reason::Killed, "the pod was deleted before its worker had run")),
    }
}

/// The worker's own failure, where it left one that can be trusted.
fn read_message(text: &str) -> Option<Failure> {
    let message: TerminationMessage = serde_json::from_str(text).ok()?;
    verdict::believed(&message.failure, clean)
}

/// The failure of a Job that failed although no pod shows why.
fn job_failure(job: &Job) -> Option<Failure> {
    let condition = job_condition(job, &["Failed"])?;
    let text = clean(condition.message.as_deref().unwrap_or_default());
    let why = condition.reason.as_deref().unwrap_or("Failed");
    let reason = if why == "DeadlineExceeded" { Reason::DeadlineExceeded } else { Reason::Killed };
    Some(Failure::new(reason, format!("{why}: {text}")))
}

#[cfg(test)]
mod tests;
