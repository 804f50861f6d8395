// SPDX-License-Identifier: Apache-2.0
//! The reconciler of `ConversionJob`: one batch Job per attempt, its outcome recorded, the Job removed.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1 as batch;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::admission::{Key, Message};
use super::context::{Context, RESYNC_INTERVAL};
use super::decision::{self, Decision, View};
use super::delivery::{self, Delivery, Progress};
use super::error::{Error, Refusal};
use super::objects::target::Task;
use super::objects::worker::{self, JobContext, TemplateDigest};
use super::outcome;
use super::recording::{self, write};
use super::starting::{self, PENDING_POLL};
use super::status;
use crate::cluster::api::{ConditionState, ConditionType, ConversionJob, HyperConversion, VolumeState, condition};
use crate::cluster::names;
use crate::cluster::seen::{Job, Pod};
use crate::conversion::lifecycle::{Observation, RetryPolicy, Step, advance, next_step};
use crate::conversion::{Attempt, ConversionId, ConversionStatus, Failure, Reason};

/// How soon a decision on an outdated object is made again; the newer object mostly arrives sooner by itself.
const CONFLICT_RETRY: Duration = Duration::from_secs(1);
/// How long a new conversion may go without a status: its watcher stages it at once and a slot is mostly free, so
/// that the first status then says more.
const YOUNG: Duration = Duration::from_secs(2);

/// One conversion, with what was read and validated for it.
struct Reconcile<'a> {
    context: &'a Context,
    conversion: ConversionJob,
    id: ConversionId,
    queue: Arc<HyperConversion>,
    policy: RetryPolicy,
}

/// Brings one conversion a step further, in six steps:
///
/// 1. *validate* the conversion's name and its queue's policy;
/// 2. *adopt*: make the queue its owner;
/// 3. *read* the open attempt's Job and that Job's pods, from the caches where these know enough;
/// 4. *decide* what comes next, by [`decision::decide`] alone;
/// 5. *act*: start, create or look for a Job, or record in the status what was observed;
/// 6. *remove* the Jobs of attempts whose end is recorded.
pub(super) async fn reconcile(conversion: Arc<ConversionJob>, context: Arc<Context>) -> Result<Action, Error> {
    if context.writes.is_older(conversion.as_ref()) {
        return Ok(Action::requeue(CONFLICT_RETRY));
    }
    let (id, queue, policy) = validate(&conversion, &context)?;
    let conversion = ConversionJob::clone(&conversion);
    let mut reconcile = Reconcile { context: &context, conversion, id, queue, policy };
    let done = match reconcile.adopt().await {
        Ok(()) => reconcile.run().await,
        Err(error) => Err(error),
    };
    match done {
        Err(error) if error.is_conflict() => Ok(Action::requeue(CONFLICT_RETRY)),
        // Deleted meanwhile: nothing is left to do.
        Err(error) if error.is_not_found() => Ok(Action::await_change()),
        done => done,
    }
}

/// Reports on the object what keeps it from going on, with an event when that is new.
pub(super) async fn refuse(conversion: Arc<ConversionJob>, context: Arc<Context>, refusal: Refusal) {
    if conversion.metadata.deletion_timestamp.is_some() {
        return;
    }
    let before = conversion.status.as_ref().and_then(|s| condition(&s.conditions, ConditionType::Admitted));
    if let Ok(id) = conversion.name_any().parse() {
        let namespace = conversion.namespace().unwrap_or_default();
        context.admission.send(Message::Failed { namespace, id });
    }
    let said = refusal.state;
    let is_new = before.is_none_or(|before| before.reason != said.reason);
    if before.is_some_and(|before| before.reason == said.reason && before.message == said.message) {
        return;
    }
    let ConditionState { reason, message, .. } = said.clone();
    let state = decision::state(&conversion);
    let wanted = status::revised(&conversion, state, Some(said), None, Timestamp::now());
    if let Err(error) = write(&conversion, &wanted, &context).await {
        tracing::debug!(conversion = %conversion.name_any(), error = %error.chain(), "cannot say what is wrong");
    }
    if is_new {
        context.warn(conversion.as_ref(), "Reconcile", &reason, &message).await;
    }
}

fn validate(
    conversion: &ConversionJob,
    context: &Context,
) -> Result<(ConversionId, Arc<HyperConversion>, RetryPolicy), Error> {
    let id = conversion.name_any().parse::<ConversionId>().map_err(Error::InvalidName)?;
    let namespace = conversion.namespace().unwrap_or_default();
    let name = &conversion.spec.queue_ref.name;
    let queue = context.caches.queues.get(&ObjectRef::new(name).within(&namespace));
    let queue = queue.ok_or_else(|| Error::QueueNotFound { name: name.clone(), namespace })?;
    let policy = queue.spec.retry_policy.policy()?;
    Ok((id, queue, policy))
}

impl Reconcile<'_> {
    /// Makes the queue the owner of a conversion without one, so that both are deleted together. The watcher's own
    /// have an owner from the start; one of an earlier queue of this name goes with that queue.
    async fn adopt(&mut self) -> Result<(), Error> {
        let kind = HyperConversion::kind(&());
        if self.conversion.owner_references().iter().any(|owner| owner.kind == kind) {
            return Ok(());
        }
        let owner = self.queue.owner_ref(&());
        let patch = json!({
            "apiVersion": ConversionJob::api_version(&()),
            "kind": ConversionJob::kind(&()),
            "metadata": {"name": self.id.as_str(), "uid": self.conversion.uid(), "ownerReferences": owner.as_slice()},
        });
        let api = self.context.api::<ConversionJob>(&self.conversion.namespace().unwrap_or_default());
        let params = PatchParams::apply(names::MANAGER_CONTROLLER).force();
        let written = api.patch(self.id.as_str(), &params, &Patch::Apply(patch)).await;
        self.conversion = written.map_err(Error::api("give a ConversionJob to its queue"))?;
        self.context.writes.wrote(&self.conversion);
        Ok(())
    }

    async fn run(&mut self) -> Result<Action, Error> {
        let now = Timestamp::now();
        let state = decision::closed(decision::state(&self.conversion), now);
        let template = self.template(&state)?;
        let job = state.open_attempt().and_then(|open| self.cached_job(open.number));
        let pods = self.pods_of(job.as_deref()).await?;
        let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
        let decision = decision::decide(&View {
            conversion: &self.conversion,
            run_state: self.queue.spec.run_state,
            template: &template,
            job: job.as_deref(),
            pods: &pods,
        });
        if let Decision::Record(Observation::Done { .. }) | Decision::Deliver { .. } = &decision
            && let (Some(status), Some(guest)) = (&mut self.conversion.status, outcome::guest(&pods))
        {
            status.guest = Some(guest);
        }
        let action = match decision {
            Decision::Wait if self.conversion.status.is_none() && self.is_young(now) => Action::requeue(YOUNG),
            Decision::Wait => {
                let held = status::held(&state, self.queue.spec.run_state);
                let published = status::newly_published(&self.conversion, now);
                let (lost, again) = self.lost(&state, now);
                self.report(state, held, lost.as_ref()).await?;
                if let Some(directory) = published {
                    self.context.tell(&self.conversion, "Publish", "Published", &directory).await;
                }
                Action::requeue(again)
            }
            Decision::Start(attempt) => self.start(state, attempt).await?,
            Decision::Create(attempt) => self.recreate(attempt).await?,
            Decision::Search(attempt) => self.search(state, attempt).await?,
            Decision::Record(observation) => {
                self.record(decision::witnessed(state, &pods), observation).await?;
                Action::requeue(RESYNC_INTERVAL)
            }
            Decision::Pending(why) => self.pending(state, why, job.as_deref(), &pods).await?,
            Decision::AwaitPlan => {
                self.report(decision::witnessed(state, &pods), None, None).await?;
                Action::requeue(PENDING_POLL)
            }
            Decision::Deliver { attempt, pod } => self.deliver(decision::witnessed(state, &pods), attempt, pod).await?,
            Decision::Discard => self.discard(state).await?,
        };
        let again = self.remove_jobs().await?;
        Ok(again.map_or(action, Action::requeue))
    }

    /// Whether the next attempt waits for a pod of an earlier one whose node does not answer, and when to look again: two
    /// pods must not write to one directory.
    fn lost(&self, state: &ConversionStatus, now: Timestamp) -> (Option<ConditionState>, Duration) {
        if state.attempts.is_empty() || !matches!(next_step(state), Step::Stage(_) | Step::Start(_)) {
            return (None, RESYNC_INTERVAL);
        }
        let namespace = self.conversion.namespace();
        let is_ending = |pod: &Pod| {
            pod.metadata.deletion_timestamp.is_some()
                && pod.metadata.namespace == namespace
                && pod.labels().get(names::LABEL_CONVERSION).is_some_and(|of| of == self.id.as_str())
        };
        let ending = self.context.caches.pods.state_filter(is_ending);
        let lost = ending.iter().find_map(|pod| starting::node_lost(pod, now));
        let lost = lost.map(|why| {
            ConditionState::new(
                "Unknown",
                "WaitingForPod",
                format!("the next attempt waits for the last one's pod: {why}"),
            )
        });
        (lost, if ending.is_empty() { RESYNC_INTERVAL } else { starting::OVERDUE })
    }

    fn is_young(&self, now: Timestamp) -> bool {
        let made = self.conversion.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        Duration::try_from(now.duration_since(made)).is_ok_and(|age| age < YOUNG)
    }

    /// Digests of the template of the open attempt, as the specification builds it now.
    fn template(&self, state: &ConversionStatus) -> Result<TemplateDigest, Error> {
        let Some(open) = state.open_attempt() else { return Ok(TemplateDigest::default()) };
        let task = delivery::task(&self.conversion, &self.queue);
        Ok(worker::digest(&self.queue, &self.conversion, &self.id, open.number, task, &self.context.images)?)
    }

    fn cached_job(&self, attempt: Attempt) -> Option<Arc<Job>> {
        let namespace = self.conversion.namespace().unwrap_or_default();
        self.context.caches.jobs.get(&ObjectRef::new(&names::job(&self.id, attempt)).within(&namespace))
    }

    /// The pods of a Job. Bypasses the cache where that does not yet show how a finished Job ended.
    async fn pods_of(&self, job: Option<&Job>) -> Result<Vec<Arc<Pod>>, Error> {
        let Some((job, uid)) = job.and_then(|job| Some((job, job.metadata.uid.as_deref()?))) else {
            return Ok(Vec::new());
        };
        let owned = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.uid == uid);
        let namespace = self.conversion.namespace();
        let cached = self.context.caches.pods.state_filter(|pod| pod.metadata.namespace == namespace && owned(pod));
        let pods: Vec<&Pod> = cached.iter().map(AsRef::as_ref).collect();
        if !outcome::awaits_its_pods(job, &pods) {
            return Ok(cached);
        }
        let api = self.context.api::<Pod>(&namespace.unwrap_or_default());
        let of_conversion = ListParams::default().labels(&format!("{}={}", names::LABEL_CONVERSION, self.id));
        let live = api.list(&of_conversion).await.map_err(Error::api("list pods"))?;
        Ok(live.items.into_iter().filter(owned).map(Arc::new).collect())
    }

    /// Writes what changed of the status, and continues with the written object.
    async fn report(
        &mut self,
        state: ConversionStatus,
        admitted: Option<ConditionState>,
        waiting: Option<&ConditionState>,
    ) -> Result<(), Error> {
        let now = Timestamp::now();
        let mut wanted = status::revised(&self.conversion, state, admitted, waiting, now);
        delivery::say(&mut wanted, self.conversion.metadata.generation, now);
        if let Some(written) = write(&self.conversion, &wanted, self.context).await? {
            self.conversion = written;
        }
        Ok(())
    }

    /// Records the attempt, creates its Job, records the Job's UID: each before the next, so that a crash in between
    /// is found.
    async fn start(&mut self, state: ConversionStatus, attempt: Attempt) -> Result<Action, Error> {
        let queue = Key { namespace: Key::of(&self.conversion).namespace, name: self.queue.name_any() };
        let task = delivery::task(&self.conversion, &self.queue);
        if task == Task::Claims
            && let Some(action) = self.prepare(false).await?
        {
            return Ok(action);
        }
        if !self.context.admission.may_start(queue, self.id.clone(), attempt).await {
            if self.is_young(Timestamp::now()) {
                return Ok(Action::requeue(YOUNG));
            }
            let limit = self.queue.spec.max_concurrent_jobs;
            let waits = ConditionState::new(
                "False",
                status::WAITING_FOR_SLOT,
                format!("maxConcurrentJobs is {limit}, older ones first"),
            );
            self.report(state, Some(waits), None).await?;
            return Ok(Action::requeue(RESYNC_INTERVAL));
        }
        if task == Task::Claims
            && let Some(action) = self.prepare(true).await?
        {
            // Others may have the slot meanwhile.
            let namespace = Key::of(&self.conversion).namespace;
            self.context.admission.send(Message::Failed { namespace, id: self.id.clone() });
            return Ok(action);
        }
        let job = self.job(attempt, task).await?;
        let starting = Observation::Starting { attempt, job_name: Some(names::job(&self.id, attempt)) };
        let (mut state, _) = advance(state, starting, &self.policy, Timestamp::now());
        if task == Task::Plan {
            (state, _) = advance(state, Observation::Planning(attempt), &self.policy, Timestamp::now());
        }
        self.report(state, Some(ConditionState::new("True", "Admitted", "holds a slot")), None).await?;
        self.create(attempt, &job).await
    }

    /// Creates the Job of a recorded attempt whose Job isn't known, after a crash between the two steps.
    async fn recreate(&mut self, attempt: Attempt) -> Result<Action, Error> {
        // The cache may show the attempt as it was before its Job was created, ran and was removed.
        let api = self.context.api::<ConversionJob>(&self.conversion.namespace().unwrap_or_default());
        let live = api.get(&self.id.to_string()).await.map_err(Error::api("read a ConversionJob"))?;
        if live.resource_version() != self.conversion.resource_version() {
            return Ok(Action::requeue(CONFLICT_RETRY));
        }
        let job = self.job(attempt, delivery::task(&self.conversion, &self.queue)).await?;
        self.create(attempt, &job).await
    }

    /// Makes what an attempt needs that writes into claims; returns when to go on where that waits.
    async fn prepare(&mut self, has_slot: bool) -> Result<Option<Action>, Error> {
        let mut delivery = Delivery::new(self.context, &self.queue, self.conversion.clone());
        let progress = delivery.prepare(has_slot).await;
        self.conversion = delivery.conversion;
        Ok(match progress? {
            Progress::Convert | Progress::AskSlot | Progress::Done => None,
            Progress::Wait(after) => Some(Action::requeue(after)),
            Progress::Held(failure) => {
                let held = ConditionState::new("False", failure.reason.to_string(), failure.advice());
                self.report(decision::state(&self.conversion), Some(held), None).await?;
                Some(Action::requeue(delivery::AGAIN))
            }
            Progress::Lost(failure) => {
                // Complete claims are never written again, whatever became of the conversion's status.
                let (state, _) = advance(
                    decision::state(&self.conversion),
                    Observation::Rejected(failure),
                    &self.policy,
                    Timestamp::now(),
                );
                self.report(state, None, None).await?;
                Some(Action::requeue(RESYNC_INTERVAL))
            }
        })
    }

    /// Records that the disks are written, completes their claims and makes the machine; then the attempt is done.
    async fn deliver(&mut self, state: ConversionStatus, attempt: Attempt, pod: String) -> Result<Action, Error> {
        let mut delivery = Delivery::new(self.context, &self.queue, self.conversion.clone());
        let progress = match delivery.written(state).await {
            Ok(()) => delivery.deliver().await,
            Err(error) => Err(error),
        };
        self.conversion = delivery.conversion;
        let state = decision::state(&self.conversion);
        match progress? {
            Progress::Done => {
                self.record(state, Observation::Done { attempt, folder: pod }).await?;
                Ok(Action::requeue(RESYNC_INTERVAL))
            }
            Progress::Lost(failure) => {
                if let Some(status) = &mut self.conversion.status {
                    // What was written is written again by the next attempt.
                    let written = status.volumes.iter_mut().filter(|volume| volume.state == VolumeState::Written);
                    written.for_each(|volume| volume.state = VolumeState::Created);
                }
                self.record(state, Observation::Failed { attempt, failure }).await?;
                Ok(Action::requeue(RESYNC_INTERVAL))
            }
            Progress::Wait(after) => Ok(Action::requeue(after)),
            Progress::Convert | Progress::AskSlot | Progress::Held(_) => Ok(Action::requeue(delivery::AGAIN)),
        }
    }

    /// Removes the incomplete claims of a conversion that ended.
    async fn discard(&mut self, state: ConversionStatus) -> Result<Action, Error> {
        self.report(state, None, None).await?;
        let mut delivery = Delivery::new(self.context, &self.queue, self.conversion.clone());
        let progress = delivery.discard().await;
        self.conversion = delivery.conversion;
        Ok(match progress? {
            Progress::Wait(after) => Action::requeue(after),
            _ => Action::requeue(RESYNC_INTERVAL),
        })
    }

    async fn job(&self, attempt: Attempt, task: Task) -> Result<batch::Job, Error> {
        let claims = self.context.recent_access_modes(&self.queue).await?;
        let context = JobContext {
            images: self.context.images.clone(),
            one_node: claims.iter().any(|claim| !claim.modes.iter().any(|mode| mode == "ReadWriteMany")),
        };
        Ok(worker::job(&self.queue, &self.conversion, &self.id, attempt, task, &context)?)
    }

    async fn create(&mut self, attempt: Attempt, job: &batch::Job) -> Result<Action, Error> {
        let created: Job = match self.context.create(job).await {
            Err(error) if error.is_conflict() => {
                let api = self.context.api::<Job>(&self.conversion.namespace().unwrap_or_default());
                api.get(&job.name_any()).await.map_err(Error::api("read a Job"))?
            }
            other => other.map_err(Error::of_part("worker"))?,
        };
        let uid = self.conversion.uid().unwrap_or_default();
        if !created.owner_references().iter().any(|owner| owner.uid == uid) {
            return Err(Error::NameTaken(created.name_any()));
        }
        let running = Observation::Running { attempt, job_uid: created.metadata.uid, pod_name: None, node_name: None };
        let (state, _) = advance(decision::state(&self.conversion), running, &self.policy, Timestamp::now());
        self.report(state, None, None).await?;
        tracing::info!(conversion = %self.id, attempt = attempt.0, "attempt started");
        let note = format!("attempt {attempt} is Job {}", job.name_any());
        self.context.tell(&self.conversion, "Convert", "Started", &note).await;
        Ok(Action::requeue(PENDING_POLL))
    }

    /// Looks for the Job of a known UID past the cache. If it is gone, it never comes back.
    async fn search(&mut self, state: ConversionStatus, attempt: Attempt) -> Result<Action, Error> {
        let api = self.context.api::<Job>(&self.conversion.namespace().unwrap_or_default());
        let name = names::job(&self.id, attempt);
        let found = api.get_opt(&name).await.map_err(Error::api("read a Job"))?;
        let known = state.open_attempt().and_then(|open| open.job_uid.clone());
        if found.is_some_and(|job| job.metadata.uid == known) {
            return Ok(Action::requeue(PENDING_POLL));
        }
        let failure = Failure::new(Reason::JobLost, format!("Job {name} is gone"));
        self.record(state, Observation::Failed { attempt, failure }).await?;
        Ok(Action::requeue(RESYNC_INTERVAL))
    }

    /// Advances the state by what was observed, writes it, then counts and publishes it.
    async fn record(&mut self, state: ConversionStatus, observation: Observation) -> Result<(), Error> {
        let open = state.open_attempt().cloned();
        let told = observation.clone();
        let (state, step) = advance(state, observation, &self.policy, Timestamp::now());
        self.report(state, None, None).await?;
        let outcome = match &told {
            Observation::Done { .. } => "Succeeded".to_owned(),
            Observation::Failed { failure, .. } => failure.reason.to_string(),
            _ => return Ok(()),
        };
        tracing::info!(conversion = %self.id, outcome, next = ?step, "attempt ended");
        let started = open.and_then(|open| open.start_time).unwrap_or(Timestamp::UNIX_EPOCH);
        let took = Timestamp::now().duration_since(started);
        self.context.metrics.attempt_ended(outcome, Duration::try_from(took).unwrap_or_default());
        if let Observation::Done { folder, .. } = &told {
            self.context.tell(&self.conversion, "Convert", "Converted", &status::converted_by(folder)).await;
            if let Some((reason, message)) = status::unfixed(&self.conversion) {
                self.context.warn(&self.conversion, "Fix", &reason, &message).await;
            }
            if let Some((reason, message)) = status::not_booted(&self.conversion) {
                self.context.warn(&self.conversion, "Boot", &reason, &message).await;
            }
        }
        if let Observation::Failed { failure, .. } = told {
            self.context.warn(&self.conversion, "Convert", &failure.reason.to_string(), &failure.advice()).await;
        }
        Ok(())
    }

    /// Reports why a pod doesn't start, in its own words or, after a while, in those of its events.
    async fn pending(
        &mut self,
        state: ConversionStatus,
        why: Option<Failure>,
        job: Option<&Job>,
        pods: &[&Pod],
    ) -> Result<Action, Error> {
        let suspended = job.and_then(|job| job.spec.as_ref()).and_then(|spec| spec.suspend) == Some(true);
        if let Some(early) = job.and_then(|job| starting::early(&job.metadata, Timestamp::now())) {
            return Ok(Action::requeue(early));
        }
        let why = match why {
            None if suspended => Some(self.suspended()),
            None => {
                // Once there is a pod, the Job's events about creating it are out of date.
                let job = job.filter(|_| pods.is_empty()).map(|job| &job.metadata);
                let about: Vec<_> = pods.iter().map(|pod| &pod.metadata).chain(job).collect();
                starting::failure_from_events(self.context, &about).await?
            }
            other => other,
        };
        let why = match why {
            Some(failure) if failure.reason == Reason::Unschedulable => {
                let delivery = Delivery::new(self.context, &self.queue, self.conversion.clone());
                let unbound = delivery.unbound().await?;
                if unbound.is_none()
                    && let Some((attempt, failure)) = delivery.out_of_reach(pods, Timestamp::now())
                {
                    self.record(state, Observation::Failed { attempt, failure }).await?;
                    return Ok(Action::requeue(PENDING_POLL));
                }
                Some(unbound.unwrap_or(failure))
            }
            other => other,
        };
        let why = why.map(|failure| status::because("Unknown", &failure));
        self.report(state, None, why.as_ref()).await?;
        let poll = job.map_or(PENDING_POLL, |job| starting::next_poll(&job.metadata, Timestamp::now()));
        Ok(Action::requeue(if suspended { RESYNC_INTERVAL } else { poll }))
    }

    /// Why a suspended Job waits.
    fn suspended(&self) -> Failure {
        let queue_name = &self.queue.spec.worker.queue_name;
        if queue_name.is_empty() || *self.context.kueue.borrow() {
            return Failure::new(Reason::Suspended, "the Job waits, suspended, for who admits it");
        }
        let message = format!("the Job waits for Kueue's queue {queue_name}, and Kueue is not installed");
        Failure::new(Reason::QueueMissing, message)
    }

    /// Removes Jobs of attempts whose end is recorded; returns when the next one is due.
    async fn remove_jobs(&self) -> Result<Option<Duration>, Error> {
        let state = decision::state(&self.conversion);
        let now = Timestamp::now();
        let mut again: Option<Duration> = None;
        for attempt in decision::attempts_with_jobs(&state) {
            let Some(job) = self.cached_job(attempt) else { continue };
            if job.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let Some(due) = decision::removal(&state, &job) else { continue };
            if due > now {
                let wait = Duration::try_from(due.duration_since(now)).unwrap_or_default();
                again = Some(again.map_or(wait, |known| known.min(wait)));
                continue;
            }
            recording::remove_job(&job, self.context).await?;
        }
        Ok(again)
    }
}
