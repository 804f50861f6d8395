// SPDX-License-Identifier: Apache-2.0
//! A conversion's disks on claims of their own, and the machine that has them: looks at what is there, decides by
//! [`next::next`] alone, does it.

mod claims;
mod conditions;
mod machines;
mod next;
mod size;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::ResourceExt;

use super::context::Context;
use super::error::Error;
use super::objects::target::Task;
use super::{recording, starting, status};
use crate::cluster::api::{
    ConditionState, ConditionType, ConversionJob, ConversionJobStatus, HyperConversion, MachineCreation,
    MachineSettings, MachineState, MachineStatus, TargetSettings, VolumeMode, VolumeState, condition, set_condition,
};
use crate::cluster::machine;
use crate::cluster::names;
use crate::cluster::seen::{Job, Pod};
use crate::conversion::plan::Plan;
use crate::conversion::{Attempt, AttemptKind, ConversionStatus, Failure, Reason};
use next::{Claim, Fault, Machine, Next, Stage, View};

pub(super) use conditions::say;

/// How soon something that a person or another controller must do is looked at again.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// The same of what is being deleted.
const SOON: Duration = Duration::from_secs(2);
/// Most steps in one reconcile: a conversion of 256 disks takes two for each.
const MAX_STEPS: u32 = 1200;

/// What the open attempt does, or the next one will.
#[must_use]
pub(super) fn task(conversion: &ConversionJob, queue: &HyperConversion) -> Task {
    let status = conversion.status.as_ref();
    let state = status.map(|status| status.state.clone()).unwrap_or_default();
    if let Some(open) = state.open_attempt() {
        return match open.kind {
            Some(AttemptKind::Plan) => Task::Plan,
            None if status.is_some_and(|status| !status.volumes.is_empty()) => Task::Claims,
            None => Task::Files,
        };
    }
    if target(conversion, queue).is_none() {
        Task::Files
    } else if status.is_some_and(|status| status.plan.is_some()) {
        Task::Claims
    } else {
        Task::Plan
    }
}

/// The target of a conversion: once its claims are named, as it was then. One that began with files ends with files.
fn target(conversion: &ConversionJob, queue: &HyperConversion) -> Option<TargetSettings> {
    let status = conversion.status.as_ref();
    if let Some(target) = status.and_then(|status| status.target.clone()) {
        return Some(target);
    }
    let has_files = status.is_some_and(|status| status.state.attempts.iter().any(|attempt| attempt.kind.is_none()));
    if has_files {
        return None;
    }
    conversion.spec.target.clone().unwrap_or_default().over(queue.spec.target.as_ref())
}

/// What a condition says already.
fn said(conditions: &[Condition], kind: ConditionType) -> Option<ConditionState> {
    let said = condition(conditions, kind)?;
    let status = match said.status.as_str() {
        "True" => "True",
        "False" => "False",
        _ => "Unknown",
    };
    Some(ConditionState::new(status, said.reason.clone(), said.message.clone()))
}

/// Where the steps of a delivery ended for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All claims are there: the attempt that converts may start.
    Convert,
    /// A slot is needed.
    AskSlot,
    /// All that is to be done is done.
    Done,
    /// It goes on by itself after this time at the latest.
    Wait(Duration),
    /// A person has to do something, which the conditions say.
    Held(Failure),
    /// A claim that holds a disk is gone.
    Lost(Failure),
}

/// What is there for a conversion.
struct Look {
    claims: Vec<Seen>,
    machines: Vec<Machine>,
    /// Why [`Machine::Unknown`].
    unknown: String,
}

/// A claim as it is there.
struct Seen {
    claim: Claim,
    meta: ObjectMeta,
    mode: VolumeMode,
}

/// The delivery of one conversion.
pub(super) struct Delivery<'a> {
    pub context: &'a Context,
    pub queue: &'a HyperConversion,
    pub conversion: ConversionJob,
    settings: MachineSettings,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(context: &'a Context, queue: &'a HyperConversion, conversion: ConversionJob) -> Self {
        let settings = machine::settings(&conversion, queue);
        Self { context, queue, conversion, settings }
    }

    /// Before an attempt that converts: names, the machine's dry run and, with a slot, the claims.
    pub(super) async fn prepare(&mut self, has_slot: bool) -> Result<Progress, Error> {
        let fault = self.fault();
        self.run(Stage::Before { fault, has_slot }).await
    }

    /// What the last attempt found wrong with claims.
    fn fault(&self) -> Option<Fault> {
        let state = self.state();
        let last = state.attempts.last()?;
        let too_small = match last.reason? {
            Reason::TargetTooSmall => true,
            Reason::TargetLost => false,
            _ => return None,
        };
        let claims = state.failure.map(|failure| failure.targets).unwrap_or_default();
        Some(Fault { attempt: last.number.0, claims, too_small })
    }

    /// After the worker's success: completes the claims and makes the machine.
    pub(super) async fn deliver(&mut self) -> Result<Progress, Error> {
        self.run(Stage::After).await
    }

    /// After an end without success: removes claims that are not complete.
    pub(super) async fn discard(&mut self) -> Result<Progress, Error> {
        self.run(Stage::Ended).await
    }

    /// Records that the worker has written all disks, with `state`, which names its pod.
    pub(super) async fn written(&mut self, state: ConversionStatus) -> Result<(), Error> {
        if self.status().is_written() {
            return Ok(());
        }
        self.record(|status| {
            status.state = state;
            status.volumes.iter_mut().for_each(|volume| volume.state = VolumeState::Written);
        })
        .await
    }

    fn status(&self) -> ConversionJobStatus {
        self.conversion.status.clone().unwrap_or_default()
    }

    fn state(&self) -> ConversionStatus {
        self.status().state
    }

    fn namespace(&self) -> String {
        self.conversion.namespace().unwrap_or_default()
    }

    fn plan(&self) -> Plan {
        self.status().plan.unwrap_or_default()
    }

    async fn run(&mut self, stage: Stage) -> Result<Progress, Error> {
        if matches!(stage, Stage::Before { .. })
            && let Some(held) = self.beyond_limits()
        {
            return self.hold(ConditionType::MachineCreated, held).await;
        }
        let mut look = self.look(&stage).await?;
        for _ in 0..MAX_STEPS {
            let status = self.status();
            let claims: Vec<Claim> = look.claims.iter().map(|seen| seen.claim.clone()).collect();
            let machines: Vec<(&MachineStatus, &Machine)> = status.virtual_machines().zip(&look.machines).collect();
            let owners = self.owners();
            let step = next::next(&View {
                stage: &stage,
                volumes: &status.volumes,
                claims: &claims,
                wanted: self.wanted_machines(),
                machines: &machines,
                owners: &owners.iter().map(Option::as_deref).collect::<Vec<_>>(),
                has_pods: self.has_workers(),
            });
            tracing::debug!(conversion = %self.conversion.name_any(), ?step, "delivery");
            if let Some(progress) = self.act(&stage, step, &mut look).await? {
                return Ok(progress);
            }
        }
        Ok(Progress::Wait(SOON))
    }

    /// Does a step; `None` where another follows.
    async fn act(&mut self, stage: &Stage, step: Next, look: &mut Look) -> Result<Option<Progress>, Error> {
        match step {
            Next::Name => self.name().await?,
            Next::RenameClaim(n) => self.rename_claim(n).await?,
            Next::RenameMachine(n) => self.rename_machine(n).await?,
            Next::TryMachine(n) => return self.try_machine(n, look).await,
            Next::CreateClaim(n) => return self.create_claim(n, look).await,
            Next::Adopt(found) => {
                self.record(|status| {
                    for (n, uid) in found {
                        let volume = &mut status.volumes[n];
                        (volume.uid, volume.state) = (Some(uid), VolumeState::Created);
                        volume.volume_mode = Some(look.claims[n].mode);
                    }
                })
                .await?;
                return Ok(None);
            }
            Next::Forget(n) => {
                self.record(|status| {
                    let volume = &mut status.volumes[n];
                    (volume.uid, volume.state) = (None, VolumeState::Planned);
                })
                .await?;
                return Ok(None);
            }
            Next::Remake(n) => {
                if let Stage::Before { fault: Some(fault), .. } = stage {
                    self.remake(n, fault).await?;
                }
                return Ok(None);
            }
            Next::DeleteClaim(n) => return self.delete_claim(n, look).await,
            Next::RecordDeleted(gone) => {
                self.record(|status| gone.iter().for_each(|n| status.volumes[*n].state = VolumeState::Deleted)).await?;
                return Ok(None);
            }
            Next::RecordComplete(complete) => {
                self.record(|status| complete.iter().for_each(|n| status.volumes[*n].state = VolumeState::Complete))
                    .await?;
                return Ok(None);
            }
            Next::Complete(n) => return self.complete_claim(n, look).await,
            Next::CreateMachine(n) => return self.create_machine(n, look).await,
            Next::RecordMachine(n, uid) => {
                self.record_machine(n, uid).await?;
                return Ok(None);
            }
            Next::HandOver(claims) => {
                let owners = self.owners();
                return self.hand_over(&claims, &owners, look).await;
            }
            Next::RemoveWorkers => {
                self.remove_workers().await?;
                return Ok(Some(Progress::Wait(AGAIN)));
            }
            Next::AwaitClaim(_) => return Ok(Some(Progress::Wait(SOON))),
            Next::AwaitKubevirt => {
                let failure = Failure::new(Reason::MachineNotServed, look.unknown.clone());
                return self.hold(ConditionType::MachineCreated, failure).await.map(Some);
            }
            Next::Lost(n) => return Ok(Some(Progress::Lost(self.lost(n)))),
            Next::AskSlot => return Ok(Some(Progress::AskSlot)),
            Next::Convert => return Ok(Some(Progress::Convert)),
            Next::Done => return Ok(Some(Progress::Done)),
        }
        // Names have changed.
        *look = self.look(stage).await?;
        Ok(None)
    }

    /// How many machines are to be made: each of the source, or none.
    fn wanted_machines(&self) -> usize {
        if self.settings.create == MachineCreation::Never { 0 } else { self.plan().machines.len() }
    }

    /// UID of the machine that each claim is to be given to.
    fn owners(&self) -> Vec<Option<String>> {
        let (status, plan) = (self.status(), self.plan());
        let owner = |disk: usize| {
            let machine = status.virtual_machines().nth(machine::place_of(&plan, disk).0)?;
            let is_there = machine.state == MachineState::Created && self.wanted_machines() > 0;
            machine.uid.clone().filter(|_| is_there && self.settings.delete_claims_with_machine)
        };
        (0..status.volumes.len()).map(owner).collect()
    }

    /// Why the machine is not made, where the source asks for more than the queue allows: before names are taken.
    fn beyond_limits(&self) -> Option<Failure> {
        if self.wanted_machines() == 0 {
            return None;
        }
        let refused = machine::limits(&self.conversion, &self.settings).err()?;
        Some(Failure { suggestion: String::new(), ..Failure::new(Reason::MachineRefused, refused.to_string()) })
    }

    /// The open attempt and why it ends, where no node has reached its claims for long: their volumes are a node's that is
    /// gone. Incomplete claims hold nothing, and are made anew.
    pub(super) fn out_of_reach(&self, pods: &[&Pod], now: Timestamp) -> Option<(Attempt, Failure)> {
        let status = self.status();
        let open = status.state.open_attempt().filter(|open| open.kind.is_none() && open.pod_name.is_none())?;
        let limit = status.target.as_ref().filter(|_| !status.volumes.is_empty())?.lost_after_seconds;
        let (since, words) = pods.iter().find_map(|pod| starting::out_of_reach(pod))?;
        let waited = Duration::try_from(now.duration_since(since)).ok()?;
        if waited < Duration::from_secs(limit.into()) {
            return None;
        }
        let message = format!("no node has reached the claims' volumes for {} s: {words}", waited.as_secs());
        Some((open.number, Failure::new(Reason::TargetLost, message)))
    }

    fn lost(&self, n: usize) -> Failure {
        let status = self.status();
        let claim = status.volumes.get(n).map_or("", |volume| volume.claim_name.as_str());
        let any_complete = status.volumes.iter().any(|volume| volume.state == VolumeState::Complete);
        let message = format!("claim {claim}, which a disk was written to, is gone");
        let targets = u32::try_from(n).into_iter().collect();
        let failure = Failure { targets, ..Failure::new(Reason::TargetLost, message) };
        if any_complete {
            // A complete claim is never written again.
            return Failure {
                class: crate::conversion::Class::Permanent,
                suggestion: "The other claims are complete and stay: delete them, and convert the source again"
                    .to_owned(),
                ..failure
            };
        }
        failure
    }

    /// Says why it waits for a person.
    async fn hold(&mut self, about: ConditionType, failure: Failure) -> Result<Progress, Error> {
        let before = condition(&self.status().conditions, about).map(|c| c.reason.clone());
        let state = ConditionState::new("False", failure.reason.to_string(), failure.advice());
        let generation = self.conversion.metadata.generation;
        self.record(|status| set_condition(&mut status.conditions, about, state, generation, Timestamp::now())).await?;
        if before.as_deref() != Some(&failure.reason.to_string()) {
            self.context.warn(&self.conversion, "Deliver", &failure.reason.to_string(), &failure.advice()).await;
        }
        Ok(Progress::Held(failure))
    }

    /// Writes a change of the status, with what follows from it, and goes on with the written object.
    async fn record(&mut self, change: impl FnOnce(&mut ConversionJobStatus)) -> Result<(), Error> {
        let now = Timestamp::now();
        let mut changed = self.conversion.clone();
        change(changed.status.get_or_insert_default());
        let state = changed.status.clone().unwrap_or_default().state;
        // Whether it may start is said by whoever lets it.
        let admitted = changed.status.as_ref().and_then(|status| said(&status.conditions, ConditionType::Admitted));
        let mut wanted = status::revised(&changed, state, admitted, None, now);
        say(&mut wanted, self.conversion.metadata.generation, now);
        if let Some(written) = recording::write(&self.conversion, &wanted, self.context).await? {
            self.conversion = written;
        }
        Ok(())
    }

    /// The conversion's Jobs, which it owns by its UID: a label proves nothing, anybody may set it.
    fn jobs(&self) -> Vec<Arc<Job>> {
        let uid = self.conversion.metadata.uid.as_ref();
        let is_ours = |job: &Job| job.owner_references().iter().any(|owner| Some(&owner.uid) == uid);
        self.context.caches.jobs.state_filter(is_ours)
    }

    /// Whether Jobs or pods of the conversion are there. A pod may outlive its Job: of one that only has the label it is
    /// waited, and it is not touched.
    fn has_workers(&self) -> bool {
        let has_label = |pod: &Pod| {
            pod.metadata.namespace == self.conversion.metadata.namespace
                && pod.labels().get(names::LABEL_CONVERSION) == Some(&self.conversion.name_any())
        };
        !self.jobs().is_empty() || !self.context.caches.pods.state_filter(has_label).is_empty()
    }

    async fn remove_workers(&self) -> Result<(), Error> {
        for job in self.jobs() {
            recording::remove_job(&job, self.context).await?;
        }
        Ok(())
    }
}
