// SPDX-License-Identifier: Apache-2.0
//! A conversion's claims: names, creation, completion, removal.

use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::next::{Claim, Stage};
use super::size::request_bytes;
use super::{Delivery, Look, Progress, SOON, target};
use crate::cluster::api::{ConditionType, ConversionJob, MachineState, MachineStatus, TargetVolume, VolumeState};
use crate::cluster::controller::error::Error;
use crate::cluster::controller::objects;
use crate::cluster::controller::starting::unbound_from_events;
use crate::cluster::machine::{MAX_MACHINE_NAME, wanted_name};
use crate::cluster::names;
use crate::cluster::seen::PersistentVolumeClaim;
use crate::conversion::{Failure, Reason};

/// Most numbers that are tried for a name that others have.
const MOST_NUMBERS: u32 = 1000;

/// What is there under a claim's recorded name.
pub(super) fn claim_of(conversion: &ConversionJob, volume: &TargetVolume, found: Option<&ObjectMeta>) -> Claim {
    let Some(found) = found else { return Claim::Absent };
    let uid = found.uid.clone().unwrap_or_default();
    let owners = found.owner_references.as_deref().unwrap_or_default();
    let is_owned = owners
        .iter()
        .any(|owner| Some(&owner.uid) == conversion.metadata.uid.as_ref() && owner.kind == ConversionJob::kind(&()));
    let is_ours = match &volume.uid {
        Some(known) => *known == uid,
        None => is_owned,
    };
    if !is_ours {
        // The one that was ours is gone, and the name is another's.
        return Claim::Foreign;
    }
    if found.deletion_timestamp.is_some() {
        return Claim::Going;
    }
    let label = found.labels.as_ref().and_then(|labels| labels.get(names::LABEL_COMPLETE));
    match label.map(String::as_str) {
        Some("false") => Claim::Ours { uid, complete: false },
        Some("true") => Claim::Ours { uid, complete: true },
        // Somebody has taken it over.
        _ => Claim::Foreign,
    }
}

impl Delivery<'_> {
    fn claims_api(&self) -> Api<PersistentVolumeClaim> {
        self.context.api(&self.namespace())
    }

    /// Reads what is there under the recorded names.
    pub(super) async fn look(&self, stage: Stage) -> Result<Look, Error> {
        let status = self.status();
        let api = self.claims_api();
        let found = status.volumes.iter().map(|volume| api.get_metadata_opt(&volume.claim_name));
        let found = try_join_all(found).await.map_err(Error::api("read a PersistentVolumeClaim"))?;
        let claims = status.volumes.iter().zip(found).map(|(volume, found)| {
            let meta = found.map(|found| found.metadata);
            (claim_of(&self.conversion, volume, meta.as_ref()), meta.unwrap_or_default())
        });
        let claims = claims.collect();
        let (machine, unknown) = match stage {
            Stage::Ended => (super::Machine::Absent, String::new()),
            Stage::Before { .. } | Stage::After => self.find_machine().await?,
        };
        Ok(Look { claims, machine, unknown })
    }

    /// Chooses a name that nobody has, for the machine and its claims alike, and records it.
    pub(super) async fn name(&mut self) -> Result<(), Error> {
        let (plan, status) = (self.plan(), self.status());
        let wanted = wanted_name(&self.conversion, &plan);
        let wants_machine = self.wants_machine();
        let names_claims = status.volumes.is_empty();
        let mut name = wanted.clone();
        for number in 2..MOST_NUMBERS {
            let claim_taken = names_claims && self.is_taken(&claim_name(&name, 0)).await?;
            let is_taken = claim_taken || (wants_machine && self.is_machine_taken(&name).await?);
            if !is_taken {
                break;
            }
            name = numbered(&wanted, number, MAX_MACHINE_NAME);
        }
        let target = target(&self.conversion, self.queue).unwrap_or_default();
        self.record(|status| {
            if names_claims {
                status.volumes = plan
                    .disks
                    .iter()
                    .enumerate()
                    .map(|(n, disk)| TargetVolume {
                        claim_name: claim_name(&name, n),
                        request_bytes: request_bytes(disk.virtual_size_bytes, &target, 0, None),
                        ..TargetVolume::default()
                    })
                    .collect();
                status.target = Some(target);
            }
            if wants_machine {
                status.virtual_machine = Some(MachineStatus { name, ..MachineStatus::default() });
            }
        })
        .await
    }

    async fn is_taken(&self, claim: &str) -> Result<bool, Error> {
        let found = self.claims_api().get_metadata_opt(claim).await;
        Ok(found.map_err(Error::api("read a PersistentVolumeClaim"))?.is_some())
    }

    /// Records another name for a claim.
    pub(super) async fn rename_claim(&mut self, n: usize) -> Result<(), Error> {
        let wanted = claim_name(&wanted_name(&self.conversion, &self.plan()), n);
        let mut name = wanted.clone();
        for number in 2..MOST_NUMBERS {
            if !self.is_taken(&name).await? {
                break;
            }
            name = numbered(&wanted, number, 63);
        }
        let uid = self.status().volumes[n].uid.clone();
        tracing::info!(conversion = %self.conversion.name_any(), ?uid, name, "a claim's name is taken by another");
        self.record(|status| {
            let volume = &mut status.volumes[n];
            (volume.claim_name, volume.uid, volume.state) = (name, None, VolumeState::Planned);
        })
        .await
    }

    /// Why a claim has no volume: a pod that has to wait for it is not what a person can mend.
    pub(in crate::cluster::controller) async fn unbound(&self) -> Result<Option<Failure>, Error> {
        for volume in self.status().volumes {
            let found = self.claims_api().get_opt(&volume.claim_name).await;
            let Some(claim) = found.map_err(Error::api("read a PersistentVolumeClaim"))? else { continue };
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound") {
                continue;
            }
            if let Some(words) = unbound_from_events(self.context, &claim.metadata).await? {
                let message = format!("claim {} is not bound: {words}", volume.claim_name);
                return Ok(Some(Failure::new(Reason::TargetPending, message)));
            }
        }
        Ok(None)
    }

    pub(super) async fn create_claim(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        let status = self.status();
        let settings = status.target.clone().unwrap_or_default();
        let disk = self.plan().disks.get(n).map(|disk| disk.file.clone()).unwrap_or_default();
        let claim = objects::target::claim(&self.conversion, &settings, &status.volumes[n], &disk);
        let created: Result<PersistentVolumeClaim, _> = self.context.create(&claim).await;
        match created {
            Ok(created) => {
                look.claims[n] =
                    (Claim::Ours { uid: created.uid().unwrap_or_default(), complete: false }, created.metadata);
                Ok(None)
            }
            // There since the look: ours, of a call whose answer was lost, or somebody else's.
            Err(error) if error.is_conflict() => {
                self.look_again(n, look).await?;
                // A quota that was counted at the same moment is a conflict, too.
                Ok((look.claims[n].0 == Claim::Absent).then_some(Progress::Wait(SOON)))
            }
            Err(error) => match error.refused() {
                Some(words) => {
                    let message = format!("claim {} is refused: {words}", status.volumes[n].claim_name);
                    let failure = Failure::new(Reason::TargetPending, message);
                    self.hold(ConditionType::TargetReady, failure).await.map(Some)
                }
                None => Err(error),
            },
        }
    }

    async fn look_again(&self, n: usize, look: &mut Look) -> Result<(), Error> {
        let volume = self.status().volumes[n].clone();
        let found = self.claims_api().get_metadata_opt(&volume.claim_name).await;
        let meta = found.map_err(Error::api("read a PersistentVolumeClaim"))?.map(|found| found.metadata);
        look.claims[n] = (claim_of(&self.conversion, &volume, meta.as_ref()), meta.unwrap_or_default());
        Ok(())
    }

    /// Records a claim that was too small with a larger size.
    pub(super) async fn enlarge(&mut self, n: usize) -> Result<(), Error> {
        let plan = self.plan();
        let Some(disk) = plan.disks.get(n) else { return Ok(()) };
        let told = self.state().failure.and_then(|failure| failure.needed_bytes);
        // A worker does not say which disk it means: where only one can be meant, it is believed.
        let needed = told.filter(|_| plan.disks.len() == 1 || disk.is_estimate);
        let size = disk.virtual_size_bytes;
        self.record(|status| {
            let target = status.target.clone().unwrap_or_default();
            let volume = &mut status.volumes[n];
            volume.remade += 1;
            volume.request_bytes = request_bytes(size, &target, volume.remade, needed);
            (volume.uid, volume.state) = (None, VolumeState::Planned);
        })
        .await
    }

    /// Deletes a claim of ours that is not complete, and no other that has its name by now.
    pub(super) async fn delete_claim(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        let volume = self.status().volumes[n].clone();
        let meta = &look.claims[n].1;
        let preconditions = Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match self.claims_api().delete(&volume.claim_name, &params).await.map_err(Error::api("delete a claim")) {
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            other => drop(other?),
        }
        self.look_again(n, look).await?;
        // A deletion that changed nothing is no reason to go on at once.
        Ok(matches!(look.claims[n].0, Claim::Ours { .. }).then_some(Progress::Wait(SOON)))
    }

    /// Says that a claim holds its disk, and takes the conversion off its owners: from here on it is its users'.
    pub(super) async fn complete_claim(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        let volume = self.status().volumes[n].clone();
        let meta = look.claims[n].1.clone();
        let uid = self.conversion.uid();
        let owners: Vec<_> =
            meta.owner_references.into_iter().flatten().filter(|owner| Some(&owner.uid) != uid.as_ref()).collect();
        let patch = json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version,
            "labels": {names::LABEL_COMPLETE: "true"}, "ownerReferences": owners,
        }});
        let params =
            PatchParams { field_manager: Some(names::MANAGER_CONTROLLER.to_owned()), ..PatchParams::default() };
        let patched = self.claims_api().patch_metadata(&volume.claim_name, &params, &Patch::Merge(patch)).await;
        match patched.map_err(Error::api("complete a claim")) {
            Ok(patched) => {
                look.claims[n] = (claim_of(&self.conversion, &volume, Some(&patched.metadata)), patched.metadata);
            }
            Err(error) if error.is_not_found() || error.is_conflict() => self.look_again(n, look).await?,
            Err(error) => match error.refused() {
                Some(words) => {
                    let message = format!("claim {} can't be called complete: {words}", volume.claim_name);
                    let failure = Failure::new(Reason::TargetPending, message);
                    return self.hold(ConditionType::TargetReady, failure).await.map(Some);
                }
                None => return Err(error),
            },
        }
        Ok(None)
    }

    pub(super) async fn record_machine(&mut self, uid: String) -> Result<(), Error> {
        let said = self.created_condition();
        let generation = self.conversion.metadata.generation;
        self.record(|status| {
            if let Some(machine) = &mut status.virtual_machine {
                (machine.uid, machine.state) = (Some(uid), MachineState::Created);
            }
            let now = jiff::Timestamp::now();
            crate::cluster::api::set_condition(
                &mut status.conditions,
                ConditionType::MachineCreated,
                said,
                generation,
                now,
            );
        })
        .await
    }
}

fn claim_name(machine: &str, n: usize) -> String {
    format!("{machine}-disk-{n}")
}

/// The name with a number, at most `most` characters.
pub(super) fn numbered(name: &str, number: u32, most: usize) -> String {
    let suffix = format!("-{number}");
    let kept = &name[..name.floor_char_boundary(most.saturating_sub(suffix.len()))];
    format!("{}{suffix}", kept.trim_end_matches('-'))
}
