// SPDX-License-Identifier: Apache-2.0
//! A conversion's claims: names, creation, completion, removal.

use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::next::{Claim, Fault, Stage};
use super::size::request_bytes;
use super::{Delivery, Look, Progress, SOON, Seen, target};
use crate::cluster::api::{
    ConditionType, ConversionJob, MachineStatus, TargetVolume, VolumeMode, VolumeState, set_condition,
};
use crate::cluster::controller::error::Error;
use crate::cluster::controller::objects;
use crate::cluster::controller::starting::unbound_from_events;
use crate::cluster::machine::{API_VERSION, KIND, MAX_MACHINE_NAME, numbered, place_of, wanted_names};
use crate::cluster::names;
use crate::cluster::seen::PersistentVolumeClaim;
use crate::conversion::plan::Plan;
use crate::conversion::{Failure, Reason};

/// What to do where nobody fills in what `FromStorageProfile` leaves open.
const NO_PROFILE: &str = "Nobody filled in its modes: install CDI, with WebhookPvcRendering among its featureGates and a \
                          StorageProfile of the class that has claimPropertySets, or set target.volumeMode and accessModes and retry the source";

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
    pub(super) async fn look(&self, stage: &Stage) -> Result<Look, Error> {
        let status = self.status();
        let api = self.claims_api();
        let found = status.volumes.iter().map(|volume| api.get_opt(&volume.claim_name));
        let found = try_join_all(found).await.map_err(Error::api("read a PersistentVolumeClaim"))?;
        let claims = status.volumes.iter().zip(found).map(|(volume, found)| self.seen(volume, found)).collect();
        let mut look = Look { claims, machines: Vec::new(), unknown: String::new() };
        if *stage != Stage::Ended {
            for machine in status.virtual_machines().take(self.wanted_machines()) {
                look.machines.push(self.find_machine(&machine.name, &mut look.unknown).await?);
            }
        }
        Ok(look)
    }

    fn seen(&self, volume: &TargetVolume, found: Option<PersistentVolumeClaim>) -> Seen {
        let mode = found.as_ref().and_then(|claim| claim.spec.as_ref()).and_then(|spec| spec.volume_mode.as_deref());
        let mode = VolumeMode::of_claim(mode);
        let meta = found.map(|found| found.metadata);
        Seen { claim: claim_of(&self.conversion, volume, meta.as_ref()), meta: meta.unwrap_or_default(), mode }
    }

    /// Chooses names that nobody has, for each machine and its claims alike, and records them.
    pub(super) async fn name(&mut self) -> Result<(), Error> {
        let (plan, status) = (self.plan(), self.status());
        let wants_machine = self.wanted_machines() > 0;
        let names_claims = status.volumes.is_empty();
        let mut names: Vec<String> = Vec::new();
        let all_wanted = wanted_names(&self.conversion, &plan);
        for (machine, wanted) in all_wanted.iter().enumerate() {
            let mut name = wanted.clone();
            for number in 2..MOST_NUMBERS {
                let is_sibling = names.contains(&name) || all_wanted[machine + 1..].contains(&name);
                let claim_taken = names_claims && self.is_taken(&claim_name(&name, 0)).await?;
                let is_taken = is_sibling || claim_taken || (wants_machine && self.is_machine_taken(&name).await?);
                if !is_taken {
                    break;
                }
                name = numbered(wanted, number, MAX_MACHINE_NAME);
            }
            names.push(name);
        }
        let target = target(&self.conversion, self.queue).unwrap_or_default();
        self.record(|status| {
            if names_claims {
                status.volumes = plan
                    .disks
                    .iter()
                    .enumerate()
                    .map(|(n, disk)| TargetVolume {
                        claim_name: claim_name_of(&plan, &names, n),
                        request_bytes: request_bytes(disk.virtual_size_bytes, &target, 0, None),
                        ..TargetVolume::default()
                    })
                    .collect();
                status.target = Some(target);
            }
            if wants_machine {
                let mut machines = names.into_iter().map(|name| MachineStatus { name, ..MachineStatus::default() });
                status.virtual_machine = machines.next();
                status.other_virtual_machines = machines.collect();
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
        let plan = self.plan();
        let wanted = claim_name_of(&plan, &wanted_names(&self.conversion, &plan), n);
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
                let seen = self.seen(&status.volumes[n], Some(created));
                let uid = seen.meta.uid.clone().unwrap_or_default();
                look.claims[n] = Seen { claim: Claim::Ours { uid, complete: false }, ..seen };
                Ok(None)
            }
            // There since the look: ours, of a call whose answer was lost, or somebody else's.
            Err(error) if error.is_conflict() => {
                self.look_again(n, look).await?;
                // A quota that was counted at the same moment is a conflict, too.
                Ok((look.claims[n].claim == Claim::Absent).then_some(Progress::Wait(SOON)))
            }
            Err(error) => match error.refused() {
                Some(words) => {
                    let message = format!("claim {} is refused: {words}", status.volumes[n].claim_name);
                    let mut failure = Failure::new(Reason::TargetPending, message);
                    if settings.volume_mode == VolumeMode::FromStorageProfile {
                        NO_PROFILE.clone_into(&mut failure.suggestion);
                    }
                    self.hold(ConditionType::TargetReady, failure).await.map(Some)
                }
                None => Err(error),
            },
        }
    }

    async fn look_again(&self, n: usize, look: &mut Look) -> Result<(), Error> {
        let volume = self.status().volumes[n].clone();
        let found = self.claims_api().get_opt(&volume.claim_name).await;
        look.claims[n] = self.seen(&volume, found.map_err(Error::api("read a PersistentVolumeClaim"))?);
        Ok(())
    }

    /// Records a claim that is gone as one to be made anew: of one that was too small with a larger size.
    pub(super) async fn remake(&mut self, n: usize, fault: &Fault) -> Result<(), Error> {
        let plan = self.plan();
        let Some(disk) = plan.disks.get(n) else { return Ok(()) };
        let told = self.state().failure.filter(|failure| failure.targets.len() <= 1 && fault.too_small);
        let is_meant = plan.disks.len() == 1 || !fault.claims.is_empty() || disk.is_estimate;
        let needed = told.and_then(|failure| failure.needed_bytes).filter(|_| is_meant);
        let size = disk.virtual_size_bytes;
        self.record(|status| {
            let target = status.target.clone().unwrap_or_default();
            let volume = &mut status.volumes[n];
            if fault.too_small {
                volume.remade += 1;
                volume.request_bytes = request_bytes(size, &target, volume.remade, needed);
            }
            volume.remade_after = fault.attempt;
            (volume.uid, volume.state, volume.volume_mode) = (None, VolumeState::Planned, None);
        })
        .await
    }

    /// Deletes a claim of ours that is not complete, and no other that has its name by now.
    pub(super) async fn delete_claim(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        let volume = self.status().volumes[n].clone();
        let meta = &look.claims[n].meta;
        let preconditions = Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match self.claims_api().delete(&volume.claim_name, &params).await.map_err(Error::api("delete a claim")) {
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            other => drop(other?),
        }
        self.look_again(n, look).await?;
        // A deletion that changed nothing is no reason to go on at once.
        Ok(matches!(look.claims[n].claim, Claim::Ours { .. }).then_some(Progress::Wait(SOON)))
    }

    /// Says that a claim holds its disk, and takes the conversion off its owners: from here on it is its users'.
    pub(super) async fn complete_claim(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        let volume = self.status().volumes[n].clone();
        let meta = look.claims[n].meta.clone();
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
                look.claims[n].claim = claim_of(&self.conversion, &volume, Some(&patched.metadata));
                look.claims[n].meta = patched.metadata;
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

    /// Gives complete claims to their machines, whose deletion then deletes them, too; what is not there any more needs no
    /// owner.
    pub(super) async fn hand_over(
        &mut self,
        claims: &[usize],
        owners: &[Option<String>],
        look: &mut Look,
    ) -> Result<Option<Progress>, Error> {
        let status = self.status();
        for &n in claims {
            let (volume, seen) = (&status.volumes[n], &look.claims[n]);
            let (Some(uid), Claim::Ours { complete: true, .. }) = (&owners[n], &seen.claim) else { continue };
            let (machine, _) = place_of(&self.plan(), n);
            let Some(machine) = status.virtual_machines().nth(machine) else { continue };
            let mut refs = seen.meta.owner_references.clone().unwrap_or_default();
            if refs.iter().any(|owner| owner.uid == *uid) {
                continue;
            }
            refs.push(OwnerReference {
                api_version: API_VERSION.to_owned(),
                kind: KIND.to_owned(),
                name: machine.name.clone(),
                uid: uid.clone(),
                ..OwnerReference::default()
            });
            let patch = json!({"metadata": {
                "uid": seen.meta.uid, "resourceVersion": seen.meta.resource_version, "ownerReferences": refs,
            }});
            let params =
                PatchParams { field_manager: Some(names::MANAGER_CONTROLLER.to_owned()), ..PatchParams::default() };
            let patched = self.claims_api().patch_metadata(&volume.claim_name, &params, &Patch::Merge(patch)).await;
            match patched.map_err(Error::api("give a claim to its machine")) {
                Ok(_) => {}
                // Somebody else changed or deleted it: what is there now is looked at.
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(Some(Progress::Wait(SOON))),
                Err(error) => match error.refused() {
                    Some(words) => {
                        let message = format!("claim {} can't be given to its machine: {words}", volume.claim_name);
                        let failure = Failure::new(Reason::MachineRefused, message);
                        return self.hold(ConditionType::MachineCreated, failure).await.map(Some);
                    }
                    None => return Err(error),
                },
            }
        }
        let said = self.created_condition();
        let generation = self.conversion.metadata.generation;
        self.record(|status| {
            for &n in claims {
                status.volumes[n].machine_uid.clone_from(&owners[n]);
            }
            let now = jiff::Timestamp::now();
            set_condition(&mut status.conditions, ConditionType::MachineCreated, said, generation, now);
        })
        .await?;
        Ok(None)
    }
}

/// The name of a disk's claim, by the names of the machines.
fn claim_name_of(plan: &Plan, machines: &[String], disk: usize) -> String {
    let (machine, n) = place_of(plan, disk);
    claim_name(machines.get(machine).map_or("disk", String::as_str), n)
}

fn claim_name(machine: &str, n: usize) -> String {
    format!("{machine}-disk-{n}")
}
