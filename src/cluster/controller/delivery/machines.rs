// SPDX-License-Identifier: Apache-2.0
//! A conversion's `VirtualMachine`: asked about before the copy, created after it, never applied over anything.

use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::core::{GroupVersionKind, Request};
use kube::{Resource, ResourceExt};
use serde_json::Value;

use super::claims::numbered;
use super::next::Machine;
use super::{Delivery, Look, Progress, SOON};
use crate::cluster::api::{ConditionState, ConditionType, MachineState, set_condition};
use crate::cluster::controller::error::Error;
use crate::cluster::machine::{self, MAX_MACHINE_NAME, wanted_name};
use crate::cluster::names;
use crate::conversion::{Failure, Reason};

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", machine::KIND))
}

impl Delivery<'_> {
    fn machines_api(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.context.client.clone(), &self.namespace(), &resource())
    }

    /// What is there under the machine's recorded name, and why nobody can tell.
    pub(super) async fn find_machine(&self) -> Result<(Machine, String), Error> {
        if !self.wants_machine() {
            return Ok((Machine::Absent, String::new()));
        }
        if !*self.context.kubevirt.borrow() {
            return Ok((Machine::Unknown, "the cluster does not serve kubevirt.io".to_owned()));
        }
        let status = self.status();
        let Some(named) = &status.virtual_machine else { return Ok((Machine::Absent, String::new())) };
        let found = self.machines_api().get_metadata_opt(&named.name).await;
        let found = match found.map_err(Error::api("read a VirtualMachine")) {
            Err(error) if error.reason() == "Forbidden" => {
                return Ok((
                    Machine::Unknown,
                    format!("the controller has no right to VirtualMachines: {}", error.chain()),
                ));
            }
            found => found?,
        };
        let Some(found) = found else { return Ok((Machine::Absent, String::new())) };
        let uid = found.annotations().get(names::ANNOTATION_CONVERSION_UID);
        let id = found.labels().get(names::LABEL_CONVERSION);
        let is_ours = id == Some(&self.conversion.name_any()) && uid == self.conversion.metadata.uid.as_ref();
        Ok(match found.metadata.uid {
            Some(uid) if is_ours => (Machine::Ours { uid }, String::new()),
            _ => (Machine::Foreign, String::new()),
        })
    }

    pub(super) async fn is_machine_taken(&self, name: &str) -> Result<bool, Error> {
        if !*self.context.kubevirt.borrow() {
            return Ok(false);
        }
        match self.machines_api().get_metadata_opt(name).await.map_err(Error::api("read a VirtualMachine")) {
            // That is said when the machine is tried.
            Err(error) if error.reason() == "Forbidden" => Ok(false),
            found => Ok(found?.is_some()),
        }
    }

    /// Records another name for the machine: the API server is asked about it again.
    pub(super) async fn rename_machine(&mut self) -> Result<(), Error> {
        let wanted = wanted_name(&self.conversion, &self.plan());
        let mut name = wanted.clone();
        for number in 2..1000 {
            if !self.is_machine_taken(&name).await? {
                break;
            }
            name = numbered(&wanted, number, MAX_MACHINE_NAME);
        }
        self.record(|status| {
            if let Some(machine) = &mut status.virtual_machine {
                (machine.name, machine.uid) = (name, None);
            }
        })
        .await
    }

    /// Asks the API server, its schema and its webhooks, whether they would take the machine.
    pub(super) async fn try_machine(&mut self, look: &mut Look) -> Result<Option<Progress>, Error> {
        match self.post(true).await? {
            Posted::Made(_) => {
                let generation = self.conversion.metadata.generation;
                let said = ConditionState::new("Unknown", "Accepted", "the API server would take the machine");
                self.record(|status| {
                    Self::set_machine(status, MachineState::Accepted);
                    let now = jiff::Timestamp::now();
                    set_condition(&mut status.conditions, ConditionType::MachineCreated, said, generation, now);
                })
                .await?;
                Ok(None)
            }
            Posted::Taken => self.look_at_machine(look).await,
            Posted::Refused(failure) => self.hold(ConditionType::MachineCreated, failure).await.map(Some),
        }
    }

    pub(super) async fn create_machine(&mut self, look: &mut Look) -> Result<Option<Progress>, Error> {
        match self.post(false).await? {
            Posted::Made(uid) => {
                look.machine = Machine::Ours { uid };
                Ok(None)
            }
            Posted::Taken => self.look_at_machine(look).await,
            Posted::Refused(failure) => self.hold(ConditionType::MachineCreated, failure).await.map(Some),
        }
    }

    /// Looks at what has the machine's name since the last look.
    async fn look_at_machine(&self, look: &mut Look) -> Result<Option<Progress>, Error> {
        (look.machine, look.unknown) = self.find_machine().await?;
        // A quota that was counted at the same moment is a conflict, too.
        Ok((look.machine == Machine::Absent).then_some(Progress::Wait(SOON)))
    }

    /// Creates the machine, with unknown fields refused; as a dry run nothing stays of it.
    async fn post(&self, dry_run: bool) -> Result<Posted, Error> {
        let manifest = match self.manifest() {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Posted::Refused(Failure::new(Reason::MachineRefused, error.to_string()))),
        };
        let path = DynamicObject::url_path(&resource(), Some(&self.namespace()));
        let params = PostParams { dry_run, field_manager: Some(names::MANAGER_CONTROLLER.to_owned()) };
        let body = serde_json::to_vec(&manifest.object).expect("a value serialises");
        let request = Request::new(path).create(&params, body);
        let mut request = request.map_err(kube::Error::BuildRequest).map_err(Error::api("create a VirtualMachine"))?;
        let strict = format!("{}&fieldValidation=Strict", request.uri());
        *request.uri_mut() = strict.parse().expect("a valid address with one more parameter is valid");
        let made: Result<Value, _> = self.context.client.request(request).await;
        match made.map_err(Error::api("create a VirtualMachine")) {
            Ok(made) => Ok(Posted::Made(made["metadata"]["uid"].as_str().unwrap_or_default().to_owned())),
            Err(error) if error.is_conflict() => Ok(Posted::Taken),
            Err(error) if error.is_not_found() => {
                let message = "the cluster serves kubevirt.io, but no VirtualMachine of version v1";
                Ok(Posted::Refused(Failure::new(Reason::MachineNotServed, message)))
            }
            Err(error) => match error.refused() {
                Some(words) => Ok(Posted::Refused(Failure::new(Reason::MachineRefused, words))),
                None => Err(error),
            },
        }
    }

    /// What is said of the machine that is there now.
    pub(super) fn created_condition(&self) -> ConditionState {
        let doubts = self.manifest().map(|manifest| manifest.doubts).unwrap_or_default();
        match doubts.as_slice() {
            [] => ConditionState::new("True", "Created", "the machine is there"),
            doubts => ConditionState::new("True", "Doubts", format!("the machine is there. {}", doubts.join(". "))),
        }
    }
}

/// What became of a machine that was to be created.
enum Posted {
    /// Its UID.
    Made(String),
    /// Something has its name.
    Taken,
    Refused(Failure),
}
