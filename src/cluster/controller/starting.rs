// SPDX-License-Identifier: Apache-2.0
//! Why a pod doesn't start, or doesn't keep running: in its own words, or in those of its events.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;

use super::context::Context;
use super::error::Error;
use crate::cluster::containers;
use crate::cluster::seen::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod, PodCondition};
use crate::conversion::verdict;
use crate::conversion::{Failure, Reason};

/// How soon a pod that doesn't start is looked at again.
pub(super) const PENDING_POLL: Duration = Duration::from_secs(5);
/// How long a pod may take before its status and events are searched for a reason: on a busy node many wait a moment
/// for others to end.
const START_GRACE: Duration = Duration::from_secs(5);
/// Longest text taken over from a worker or a pod, in bytes: a condition's message holds 32 KiB, people read less.
const MAX_TEXT: usize = 1024;

/// The rest of the time in which an object of this age may still be without a running pod.
pub(super) fn early(object: &ObjectMeta, now: Timestamp) -> Option<Duration> {
    let made = object.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let age = Duration::try_from(now.duration_since(made)).unwrap_or_default();
    START_GRACE.checked_sub(age).filter(|early| !early.is_zero())
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
        Some(Failure::new(reason, clean(&format!("{why}: {}", state.message.as_deref().unwrap_or_default()))))
    })
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
        let (Some(namespace), Some(uid)) = (&object.namespace, &object.uid) else { continue };
        let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let events = context.api::<Event>(namespace).list(&params).await.map_err(Error::api("list events"))?;
        let time = |event: &Event| event.last_timestamp.clone().or(event.metadata.creation_timestamp.clone());
        let mut events = events.items;
        events.sort_by_key(time);
        let told = events
            .iter()
            .rev()
            .find_map(|event| from_event(event.reason.as_deref()?, event.message.as_deref().unwrap_or_default()));
        if told.is_some() {
            return Ok(told);
        }
    }
    Ok(None)
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
