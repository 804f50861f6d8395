// SPDX-License-Identifier: Apache-2.0
//! Why a pod doesn't start, or doesn't keep running: in its own words, or in those of its events.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;

use super::context::Context;
use super::error::Error;
use crate::cluster::containers;
use crate::cluster::pulse::Silence;
use crate::cluster::seen::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod, PodCondition};
use crate::conversion::verdict;
use crate::conversion::{Failure, Reason};

/// How soon a pod that doesn't start is looked at again, at first and after a while: each look lists events.
pub(super) const PENDING_POLL: Duration = Duration::from_secs(5);
const LONGEST_POLL: Duration = Duration::from_secs(60);
/// Reasons of the events that are read: why a claim has no volume, a pod does not start or is not made; and what a probe
/// said.
const READ: [&str; 9] = [
    "ProvisioningFailed",
    "FailedBinding",
    "FailedMount",
    "FailedAttachVolume",
    "FailedScheduling",
    "FailedMapVolume",
    "FailedCreate",
    "FailedCreatePodSandBox",
    UNHEALTHY,
];
const UNHEALTHY: &str = "Unhealthy";
/// How long a pod may take before its status and events are searched for a reason: on a busy node many wait a moment
/// for others to end.
const START_GRACE: Duration = Duration::from_secs(5);
/// What to do where the kubelet can't prepare a directory of a volume.
const SUB_PATH_REMEDY: &str = "The kubelet, as root, makes and enters the directories of subPath on the volume. On an NFS \
                               export with root_squash: make them beforehand, and let others enter every one of them \
                               (chmod o+x), or export with no_root_squash";
/// How long after its grace period a pod may take to go before its node is called lost.
pub(super) const OVERDUE: Duration = Duration::from_secs(60);
/// Longest text taken over from a worker or a pod, in bytes: a condition's message holds 32 KiB, people read less.
const MAX_TEXT: usize = 1024;

/// How old an object is; `None` where our clock lags behind the API server's.
fn age(object: &ObjectMeta, now: Timestamp) -> Option<Duration> {
    let made = object.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Duration::try_from(now.duration_since(made)).ok()
}

/// The rest of the time in which an object of this age may still be without a running pod. An object from the future
/// gets none: with a clock that lags, it would be early for as long as that lags.
pub(super) fn early(object: &ObjectMeta, now: Timestamp) -> Option<Duration> {
    START_GRACE.checked_sub(age(object, now)?).filter(|early| !early.is_zero())
}

/// How soon an object whose pod doesn't start is looked at again: a quarter of the time that it has waited.
pub(super) fn next_poll(object: &ObjectMeta, now: Timestamp) -> Duration {
    (age(object, now).unwrap_or_default() / 4).clamp(PENDING_POLL, LONGEST_POLL)
}

/// Why a container of a pod doesn't start, in the pod's own words.
#[must_use]
pub(super) fn waiting(pod: &Pod) -> Option<Failure> {
    if let Some(condition) = condition(pod, "PodScheduled", "False") {
        return Some(Failure::new(Reason::Unschedulable, words(condition)));
    }
    ours_first(pod).find_map(|container| {
        let state = container.state.as_ref()?.waiting.as_ref()?;
        let why = state.reason.as_deref()?;
        let reason = match why {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => Reason::WorkerImage,
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Reason::WorkerConfig,
            _ => return None,
        };
        let message = state.message.as_deref().unwrap_or_default();
        let failure = Failure::new(reason, clean(&format!("{why}: {message}")));
        Some(if is_sub_path(message) { Failure { suggestion: SUB_PATH_REMEDY.to_owned(), ..failure } } else { failure })
    })
}

/// Since when the scheduler finds no node for a pod because volumes of it belong to other nodes, and its words: of a node
/// that is gone or full it says the same, but of one that is full also what is missing there.
#[must_use]
pub(super) fn out_of_reach(pod: &Pod) -> Option<(Timestamp, String)> {
    let unscheduled = condition(pod, "PodScheduled", "False")?;
    let said = unscheduled.message.as_deref()?;
    // ErrReasonNodeConflict of its plugin volumebinding, until 1.33 and since; Insufficient and TooManyPods of noderesources.
    let is_apart = ["volume node affinity conflict", "didn't match PersistentVolume's node affinity"];
    let is_full = ["Insufficient ", "Too many pods"];
    let says = |all: [&str; 2]| all.iter().any(|words| said.contains(words));
    let since = unscheduled.last_transition_time.as_ref()?.0;
    (says(is_apart) && !says(is_full)).then(|| (since, words(unscheduled)))
}

/// Whether the kubelet could not prepare a directory of a volume. It keeps the cause to itself, and its message is all
/// that there is.
fn is_sub_path(message: &str) -> bool {
    message.contains("failed to prepare subPath") || message.contains("failed to create subPath")
}

/// How a container that should keep running ended last, and where to read more; `None` while all of them run, or the
/// pod is being deleted.
#[must_use]
pub(super) fn crashing(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    ours_first(pod).find_map(|container| {
        let state = container.state.as_ref()?;
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let ended = state.terminated.as_ref().or(last.filter(|_| state.waiting.is_some()))?;
        // Injected containers may have finished their work; ours run as long as the pod does.
        if ended.exit_code == 0 && !containers::is_ours(container) {
            return None;
        }
        let (pod, name) = (pod.metadata.name.as_deref()?, container.name.as_deref()?);
        Some(format!("container {name} ended with {}. Read its log: kubectl logs {pod} -c {name}", ending(ended)))
    })
}

/// How the container ended. The end of its log says why.
fn ending(ended: &ContainerStateTerminated) -> String {
    let message = ended.message.as_deref().unwrap_or_default().trim_end();
    let message = &message[message.ceil_char_boundary(message.len().saturating_sub(MAX_TEXT))..];
    let ending = format!("exit code {} ({})", ended.exit_code, ended.reason.as_deref().unwrap_or("Error"));
    match clean(message).as_str() {
        "" => ending,
        message => format!("{ending}: {message}"),
    }
}

/// Whether a container of ours runs or ran.
#[must_use]
pub(super) fn has_begun(pod: &Pod) -> bool {
    containers::all(pod).filter(|container| containers::is_ours(container)).any(|container| {
        let began = |state: &ContainerState| state.running.is_some() || state.terminated.is_some();
        [&container.state, &container.last_state].into_iter().flatten().any(began)
    })
}

/// The containers of a pod, ours first: others may also keep ours from starting.
fn ours_first(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let (ours, others): (Vec<_>, Vec<_>) = containers::all(pod).partition(|container| containers::is_ours(container));
    ours.into_iter().chain(others)
}

/// The newest event that says why one of these objects has no pod that runs.
pub(super) async fn failure_from_events(context: &Context, objects: &[&ObjectMeta]) -> Result<Option<Failure>, Error> {
    for object in objects {
        let told = newest_event(context, object, from_event).await?;
        if told.is_some() {
            return Ok(told);
        }
    }
    Ok(None)
}

/// What the probe of a watcher's pod said last.
pub(super) async fn silence_from_events(context: &Context, pod: &ObjectMeta) -> Result<Option<Silence>, Error> {
    newest_event(context, pod, from_probe).await
}

/// Why a claim has no volume yet, in the words of its newest event.
pub(super) async fn unbound_from_events(context: &Context, claim: &ObjectMeta) -> Result<Option<String>, Error> {
    // WaitForFirstConsumer and its like are no trouble of the claim's.
    let meaning =
        |reason: &str, note: &str| matches!(reason, "ProvisioningFailed" | "FailedBinding").then(|| clean(note));
    newest_event(context, claim, meaning).await
}

/// Events of one namespace that are read at most, in pages.
const MOST_EVENTS: u32 = 10_000;
const EVENTS_PAGE: u32 = 500;

/// The events of a namespace that say why something does not start, oldest first. Events have no cache in the API server: each list of them, whatever it
/// selects, reads all of a namespace's from etcd. So one list is shared by all who look why a pod does not start.
async fn troubles(context: &Context, namespace: &str) -> Result<Arc<Vec<Event>>, Error> {
    let fetch = async {
        let api = context.api::<Event>(namespace);
        let mut params = ListParams::default().limit(EVENTS_PAGE);
        let mut events: Vec<Event> = Vec::new();
        for _ in 0..MOST_EVENTS / EVENTS_PAGE {
            let page = api.list(&params).await.map_err(Error::api("list events"))?;
            let is_read = |event: &Event| event.reason.as_deref().is_some_and(|reason| READ.contains(&reason));
            events.extend(page.items.into_iter().filter(is_read));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        events.sort_by_key(|event| event.last_timestamp.clone().or(event.metadata.creation_timestamp.clone()));
        Ok(Arc::new(events))
    };
    context.troubles.get(namespace, fetch).await
}

/// What the newest event about an object means, of which `meaning` knows one.
async fn newest_event<T>(
    context: &Context,
    object: &ObjectMeta,
    meaning: impl Fn(&str, &str) -> Option<T>,
) -> Result<Option<T>, Error> {
    let (Some(namespace), Some(uid)) = (&object.namespace, &object.uid) else { return Ok(None) };
    let events = troubles(context, namespace).await?;
    let is_about = |event: &&Event| event.involved_object.as_ref().is_some_and(|about| about.uid.as_ref() == Some(uid));
    let mut newest = events.iter().rev().filter(is_about);
    Ok(newest.find_map(|event| meaning(event.reason.as_deref()?, event.message.as_deref().unwrap_or_default())))
}

/// What a watcher's probe said, from the kubelet's event about it.
fn from_probe(reason: &str, note: &str) -> Option<Silence> {
    let said = (reason == UNHEALTHY).then(|| note.find('{')).flatten()?;
    let silence: Silence = serde_json::from_str(&note[said..]).ok()?;
    Some(Silence { message: clean(&silence.message), ..silence })
}

/// Since when a pod is not ready although all containers of ours run.
pub(super) fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let ours: Vec<_> = containers::all(pod).filter(|container| containers::is_ours(container)).collect();
    let runs = |container: &&ContainerStatus| container.state.as_ref().is_some_and(|state| state.running.is_some());
    let unready = condition(pod, "Ready", "False").or_else(|| condition(pod, "Ready", "Unknown"))?;
    (!ours.is_empty() && ours.iter().all(runs)).then(|| unready.last_transition_time.as_ref().map(|time| time.0))?
}

/// That a pod which should be gone is there nevertheless, and what to do: nobody but its node can say that its processes
/// have ended.
pub(super) fn node_lost(pod: &Pod, now: Timestamp) -> Option<String> {
    // The API server adds the grace period to it.
    let due = pod.metadata.deletion_timestamp.as_ref()?.0;
    Duration::try_from(now.duration_since(due)).ok().filter(|late| *late >= OVERDUE)?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("its node");
    Some(format!(
        "pod {name} should have gone at {due}, and node {node} does not say that it has. If the node is off for good: \
         kubectl delete node {node}, or kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    ))
}

/// The rest of the time after which a pod that is being deleted is called lost; `None` where it isn't being deleted, or is
/// lost.
pub(super) fn until_lost(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let due = pod.metadata.deletion_timestamp.as_ref()?.0;
    Duration::try_from((due + OVERDUE).duration_since(now)).ok().filter(|rest| !rest.is_zero())
}

/// The failure that an event means for a pod that doesn't start, or isn't created; `None` where it means none.
fn from_event(reason: &str, note: &str) -> Option<Failure> {
    let reason = match reason {
        "FailedMount" | "FailedAttachVolume" | "FailedScheduling" | "FailedMapVolume" => Reason::Unschedulable,
        "FailedCreate" | "FailedCreatePodSandBox" => Reason::WorkerConfig,
        _ => return None,
    };
    Some(Failure::new(reason, clean(note)))
}

/// A pod's condition of this type, if it has this status.
#[must_use]
pub(super) fn condition<'a>(pod: &'a Pod, kind: &str, status: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == status)
}

/// A pod's condition in its own words.
#[must_use]
pub(super) fn words(condition: &PodCondition) -> String {
    let reason = condition.reason.as_deref().unwrap_or(&condition.type_);
    clean(&format!("{reason}: {}", condition.message.as_deref().unwrap_or_default()))
}

/// Text from outside, fit for a condition: no control characters, bounded.
#[must_use]
pub(super) fn clean(text: &str) -> String {
    let mut text = verdict::clean(text.trim(), MAX_TEXT);
    text.truncate(text.trim_end_matches([' ', ':']).len());
    text
}

#[cfg(test)]
mod tests;
