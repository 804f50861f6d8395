// SPDX-License-Identifier: Apache-2.0
//! The reconciler of `HyperConversion`: its watcher, the watcher's rights, and whether it runs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::admission::Key;
use super::context::{ClaimModes, Context, RESYNC_INTERVAL};
use super::error::{Error, Refusal};
use super::objects::target::Task;
use super::objects::worker::{self, JobContext};
use super::objects::{access, network, watcher};
use super::starting::{self, PENDING_POLL};
use super::status;
use crate::cluster::api::owners::Writer;
use crate::cluster::api::{
    ConditionState, ConditionType, ConversionJob, ConversionJobSpec, ConversionOverrides, HyperConversion,
    HyperConversionStatus, QueueRef, Source, VolumePath, condition, set_by, set_condition,
};
use crate::cluster::names;
use crate::cluster::pulse::{Silence, SilenceReason};
use crate::cluster::seen::{Pod, StatefulSet};
use crate::conversion::failure::refused_pod;
use crate::conversion::{Attempt, ConversionId, Failure, Reason};

mod rest;

use rest::Rest;

/// How soon a decision on an outdated object is made again.
const CONFLICT_RETRY: Duration = Duration::from_secs(1);

/// How long a watcher that runs may be without its first word: it waits for the API server and its volumes.
const SILENCE_GRACE: Duration = Duration::from_secs(30);

/// What says how much the containers of a watcher's pod ask for.
const WATCHER_FIELDS: [&str; 2] = ["spec.watcher.resources", "spec.watcher.sidecarResources"];

/// The access mode of a claim that watcher and workers can't share.
const POD_ONLY: &str = "ReadWriteOncePod";

/// Brings one queue's objects in step with its specification.
pub(super) async fn reconcile(queue: Arc<HyperConversion>, context: Arc<Context>) -> Result<Action, Error> {
    if queue.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    match step(&queue, &context).await {
        Err(error) if error.is_not_found() => Ok(Action::await_change()),
        // Another writer was first, or an object was made anew.
        Err(error) if error.is_conflict() => Ok(Action::requeue(CONFLICT_RETRY)),
        done => done.map(Action::requeue),
    }
}

/// Applies the objects and writes the conditions; returns when to look again.
async fn step(queue: &HyperConversion, context: &Context) -> Result<Duration, Error> {
    let modes = context.access_modes(queue).await?;
    let others = context.caches.queues.state();
    validate(queue, &modes, others.iter().map(AsRef::as_ref))?;
    try_worker(queue, context).await?;
    let rest = rest::of(queue, &context.caches.conversions);
    let set = Box::pin(apply_all(queue, context, rest != Rest::Complete)).await?;
    if rest == Rest::Complete {
        let stopped = rest::without_pod(&queue.name_any());
        let states = [ConditionType::WatcherAvailable, ConditionType::Ready].map(|kind| (kind, Some(stopped.clone())));
        report(queue, context, &states).await?;
        return Ok(RESYNC_INTERVAL);
    }
    let name = format!("{}-0", names::watcher(&queue.name_any()));
    let pod = context.caches.pods.get(&ObjectRef::new(&name).within(&Key::of(queue).namespace));
    let now = Timestamp::now();
    let (available, again) = match available(&set, pod.as_deref(), now) {
        Some(available) => (available, RESYNC_INTERVAL),
        None => by_events(&set, pod.as_deref(), context).await?,
    };
    // No event tells that a pod has not gone.
    let lost = pod.as_deref().and_then(|pod| starting::until_lost(pod, now));
    let admitting = refused(queue, &context.caches.conversions);
    // Nor that an attempt which was refused has its Job.
    let again = if admitting.is_some() { again.min(PENDING_POLL * 4) } else { again };
    let again = lost.map_or(again, |rest| again.min(rest));
    // The cache of the conversions may be behind the watcher's word.
    let again = if rest == Rest::Told { again.min(PENDING_POLL) } else { again };
    let storage = queue.status.as_ref().and_then(|status| condition(&status.conditions, ConditionType::StorageReady));
    let ready = ready(&available, storage, queue.metadata.generation);
    let states = [
        (ConditionType::WatcherAvailable, Some(available)),
        (ConditionType::Ready, Some(ready)),
        (ConditionType::Admitting, admitting),
    ];
    report(queue, context, &states).await?;
    Ok(again)
}

/// Why no attempt of the queue starts, where the API server refuses the Job of one.
fn refused(queue: &HyperConversion, conversions: &Store<ConversionJob>) -> Option<ConditionState> {
    let is_refused = |conversion: &ConversionJob| {
        conversion.metadata.namespace == queue.metadata.namespace
            && Some(&conversion.spec.queue_ref.name) == queue.metadata.name.as_ref()
            && status::refused(conversion).is_some()
    };
    let conversion = conversions.find(is_refused)?;
    let said = status::refused(&conversion)?;
    let message = format!("no attempt starts, such as that of {}: {}", conversion.name_any(), said.message);
    Some(ConditionState::new("False", said.reason.clone(), message))
}

/// Applies every object of the queue, but none before all are proved to be the queue's; returns its stateful set.
async fn apply_all(queue: &HyperConversion, context: &Context, has_pod: bool) -> Result<StatefulSet, Error> {
    let (account, role, binding, workers, watchers, set) = tokio::try_join!(
        context.prove(queue, access::service_account(queue)),
        context.prove(queue, access::role(queue)),
        context.prove(queue, access::role_binding(queue)),
        context.prove(queue, network::worker_policy(queue)),
        context.prove(queue, network::watcher_policy(queue)),
        context.prove(queue, watcher::stateful_set(queue, &context.images.own, &context.defaults, has_pod)),
    )?;
    context.apply_proved(&account).await?;
    context.apply_proved(&role).await?;
    context.apply_proved(&binding).await?;
    context.apply_proved(&workers).await?;
    context.apply_proved(&watchers).await?;
    context.apply(&set).await.map_err(Error::of_part("watcher"))
}

/// Creates a worker's Job as a dry run, once for each specification: what the API server refuses is reported before a
/// file comes.
async fn try_worker(queue: &HyperConversion, context: &Context) -> Result<(), Error> {
    let available =
        queue.status.as_ref().and_then(|status| condition(&status.conditions, ConditionType::WatcherAvailable));
    if available.is_some_and(|said| said.observed_generation == queue.metadata.generation) {
        return Ok(());
    }
    let id: ConversionId = "trial".parse().map_err(Error::InvalidName)?;
    let spec = ConversionJobSpec {
        queue_ref: QueueRef { name: queue.name_any() },
        source: Source { path: id.to_string(), companions: Vec::new(), size_bytes: None, complete_by: None },
        conversion: ConversionOverrides::default(),
        target: None,
        virtual_machine: None,
        duplicate_of: String::new(),
    };
    let mut conversion = ConversionJob::new(id.as_str(), spec);
    (conversion.metadata.namespace, conversion.metadata.uid) = (queue.namespace(), queue.uid());
    let job_context = JobContext { images: context.images.clone(), one_node: false };
    let job = worker::job(queue, &conversion, &id, Attempt(1), Task::Files, &job_context)?;
    match context.try_create(&job).await.map_err(Error::of_part("worker")) {
        Err(error @ Error::InvalidPod { .. }) => Err(error),
        // Any other refusal, such as an exhausted quota, is not the specification's fault.
        _ => Ok(()),
    }
}

/// Checks what no schema can express.
fn validate<'a>(
    queue: &HyperConversion,
    claims: &[ClaimModes],
    others: impl Iterator<Item = &'a HyperConversion>,
) -> Result<(), Error> {
    queue.spec.retry_policy.policy()?;
    queue.spec.conversion.options()?;
    if let Some(ClaimModes { claim, .. }) = claims.iter().find(|claim| claim.modes.iter().any(|m| m == POD_ONLY)) {
        let field = if queue.spec.queue.claim_name == *claim { "queue" } else { "output" };
        return Err(Error::AccessMode { field, claim: claim.clone() });
    }
    let older = others.filter(|other| is_older(other, queue));
    let taken = older.filter_map(|other| shared(queue, other).map(|fields| (other.name_any(), fields)));
    match taken.min() {
        None => Ok(()),
        Some((other, (field, theirs))) => Err(Error::DirectoryTaken { field, other, theirs }),
    }
}

/// Whether `other` is older: of two queues that claim one directory, the older one has it.
fn is_older(other: &HyperConversion, queue: &HyperConversion) -> bool {
    let age = |queue: &HyperConversion| (queue.metadata.creation_timestamp.clone(), queue.uid());
    other.namespace() == queue.namespace() && other.uid() != queue.uid() && age(other) < age(queue)
}

/// The directories of a queue, by the field that names each.
fn directories(queue: &HyperConversion) -> [(&'static str, &VolumePath); 2] {
    [("queue", &queue.spec.queue), ("output", &queue.spec.output)]
}

/// The fields by which two queues claim one directory.
fn shared(mine: &HyperConversion, other: &HyperConversion) -> Option<(&'static str, &'static str)> {
    directories(mine).into_iter().find_map(|(field, path)| {
        let (theirs, _) = directories(other).into_iter().find(|(_, other)| contains(path, other))?;
        Some((field, theirs))
    })
}

/// Whether one directory is the other or lies in it, either way.
fn contains(a: &VolumePath, b: &VolumePath) -> bool {
    let within = |inner: &str, outer: &str| {
        outer.is_empty() || inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    a.claim_name == b.claim_name && (within(&a.sub_path, &b.sub_path) || within(&b.sub_path, &a.sub_path))
}

/// Whether the watcher runs, or why not, as far as its pod shows.
fn available(set: &StatefulSet, pod: Option<&Pod>, now: Timestamp) -> Option<ConditionState> {
    let status = set.status.as_ref();
    let current = status.is_some_and(|status| status.observed_generation >= set.metadata.generation);
    let replicas = status.map_or((0, 0), |status| {
        (status.ready_replicas.unwrap_or_default(), status.updated_replicas.unwrap_or_default())
    });
    // A pod of an earlier template may be ready while it waits to be replaced.
    if current && replicas.0 > 0 && replicas.1 > 0 {
        return Some(ConditionState::new("True", "Running", "the watcher runs"));
    }
    if let Some(lost) = pod.and_then(|pod| starting::node_lost(pod, now)) {
        return Some(ConditionState::new("False", "NodeLost", lost));
    }
    if let Some(failure) = pod.and_then(starting::waiting) {
        return Some(unavailable(&failure));
    }
    if let Some(crash) = pod.and_then(starting::crashing) {
        return Some(ConditionState::new("False", "Crashing", crash));
    }
    // Its probe says why.
    let is_unready = pod.is_some_and(|pod| starting::unready_since(pod).is_some());
    (!is_unready && pod.is_some_and(starting::has_begun)).then(not_ready_yet)
}

/// The rest of the time in which a watcher that runs may be without its first word.
fn grace(since: Timestamp, now: Timestamp) -> Option<Duration> {
    let silent = Duration::try_from(now.duration_since(since)).unwrap_or(SILENCE_GRACE);
    SILENCE_GRACE.checked_sub(silent).filter(|rest| !rest.is_zero())
}

/// The same where the pod shows nothing, or there is none: after a while, its events may. Also when to look again.
async fn by_events(
    set: &StatefulSet,
    pod: Option<&Pod>,
    context: &Context,
) -> Result<(ConditionState, Duration), Error> {
    let now = Timestamp::now();
    if let Some((pod, since)) = pod.and_then(|pod| Some((pod, starting::unready_since(pod)?))) {
        if let Some(rest) = grace(since, now) {
            return Ok((not_ready_yet(), rest));
        }
        let told = starting::silence_from_events(context, &pod.metadata).await?;
        return Ok((silent(told, since), PENDING_POLL * 4));
    }
    // Once there is a pod, the set's events about creating it are out of date.
    let about = pod.map_or(&set.metadata, |pod| &pod.metadata);
    if let Some(early) = starting::early(about, now) {
        return Ok((not_ready_yet(), early));
    }
    let told = starting::failure_from_events(context, &[about]).await?;
    Ok((told.as_ref().map_or_else(not_ready_yet, unavailable), starting::next_poll(about, now)))
}

/// A watcher that runs and does not work, in the words of its probe.
fn silent(told: Option<Silence>, since: Timestamp) -> ConditionState {
    let (reason, why) = match told {
        Some(silence) => (silence.reason, silence.message),
        None => (SilenceReason::Silent, "look at its log and at its node".to_owned()),
    };
    ConditionState::new("False", reason.as_str(), format!("the watcher has not been ready since {since}: {why}"))
}

fn not_ready_yet() -> ConditionState {
    ConditionState::new("False", "Starting", "the watcher's pod is not ready yet")
}

/// A failure of a pod, in the words for a watcher.
fn unavailable(failure: &Failure) -> ConditionState {
    let reason = match failure.reason {
        Reason::WorkerImage => "WatcherImage".to_owned(),
        Reason::WorkerConfig => "WatcherConfig".to_owned(),
        other => other.to_string(),
    };
    let advice = match failure.reason {
        Reason::WorkerConfig if failure.suggestion == failure.reason.suggestion(failure.phase) => {
            Failure { suggestion: refused_pod(&WATCHER_FIELDS), ..failure.clone() }.advice()
        }
        _ => failure.advice(),
    };
    ConditionState::new("False", reason, advice)
}

fn ready(available: &ConditionState, storage: Option<&Condition>, generation: Option<i64>) -> ConditionState {
    if available.status != "True" {
        return ConditionState::new("False", "WatcherUnavailable", available.message.clone());
    }
    let is_older = |said: &Condition| said.observed_generation.is_some_and(|said| Some(said) < generation);
    match storage {
        Some(storage) if storage.status == "True" && is_older(storage) => {
            ConditionState::new("Unknown", "SpecificationUnseen", "the watcher has not taken up this specification yet")
        }
        Some(storage) if storage.status == "True" => ConditionState::new("True", "Watching", "the queue is watched"),
        Some(storage) => ConditionState::new("False", storage.reason.clone(), storage.message.clone()),
        None => ConditionState::new("Unknown", "StorageUnchecked", "the watcher has not looked at its volumes yet"),
    }
}

/// Reports on the object what keeps it from being ready, with an event when that is new. What passes by itself keeps
/// nothing from working: the queue stays as ready as it was.
pub(super) async fn refuse(queue: Arc<HyperConversion>, context: Arc<Context>, refusal: Refusal) {
    let Refusal { state, passes } = refusal;
    let kind = if passes { ConditionType::Reconciled } else { ConditionType::Ready };
    let before = queue.status.as_ref().and_then(|status| condition(&status.conditions, kind));
    let is_new = before.is_none_or(|before| before.reason != state.reason);
    if let Err(error) = report(&queue, &context, &[(kind, Some(state.clone()))]).await {
        tracing::debug!(queue = %queue.name_any(), error = %error.chain(), "cannot say what is wrong");
    }
    if is_new {
        context.warn(queue.as_ref(), "Reconcile", &state.reason, &state.message).await;
    }
}

/// Applies the controller's conditions, if any of them changed; `None` takes one away.
async fn report(
    queue: &HyperConversion,
    context: &Context,
    states: &[(ConditionType, Option<ConditionState>)],
) -> Result<(), Error> {
    let before = queue.status.clone().unwrap_or_default();
    let mut after = before.clone();
    after.observed_generation = queue.meta().generation;
    // Said only as long as it is so.
    after.conditions.retain(|condition| condition.type_ != ConditionType::Reconciled.as_str());
    for (kind, state) in states {
        match state.clone() {
            Some(state) => {
                set_condition(&mut after.conditions, *kind, state, after.observed_generation, Timestamp::now());
            }
            None => after.conditions.retain(|condition| condition.type_ != kind.as_str()),
        }
    }
    if after == before {
        return Ok(());
    }
    let api = context.api::<HyperConversion>(&Key::of(queue).namespace);
    let params = PatchParams::apply(names::MANAGER_CONTROLLER).force();
    let written = api.patch_status(&queue.name_any(), &params, &Patch::Apply(patch(queue, &after))).await;
    written.map(drop).map_err(Error::api("write a HyperConversion's status"))
}

/// The patch that applies everything that the controller reports of a queue.
fn patch(queue: &HyperConversion, wanted: &HyperConversionStatus) -> Value {
    let conditions = set_by(&wanted.conditions, ConditionType::OF_QUEUE, Writer::Controller);
    json!({
        "apiVersion": HyperConversion::api_version(&()),
        "kind": HyperConversion::kind(&()),
        "metadata": {"name": queue.name_any(), "namespace": queue.namespace(), "uid": queue.uid()},
        "status": {"observedGeneration": wanted.observed_generation, "conditions": conditions},
    })
}

#[cfg(test)]
mod tests;
