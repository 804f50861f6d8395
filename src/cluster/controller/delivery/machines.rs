// SPDX-License-Identifier: Apache-2.0
//! A conversion's `VirtualMachine`: asked about before the copy, created after it, never applied over anything.

use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::{GroupVersionKind, Request};
use kube::{Resource, ResourceExt};
use serde_json::Value;

use super::next::Machine;
use super::{Delivery, Look, Progress, SOON};
use crate::cluster::api::{ConditionState, ConditionType, MachineState, MachineStatus, set_condition};
use crate::cluster::controller::error::Error;
use crate::cluster::machine::{self, MAX_MACHINE_NAME, numbered, wanted_names};
use crate::cluster::names;
use crate::conversion::machine::mac_address;
use crate::conversion::verdict::clean;
use crate::conversion::{Failure, Reason};

/// What is said where the API server refuses a look.
const NO_RIGHT: &str = "the controller has no right to VirtualMachines";
/// Machines that are listed at a time.
const MACHINES_PAGE: u32 = 100;
/// Longest text of a condition, in bytes: its schema holds 32 KiB.
const MAX_SAID: usize = 16 << 10;

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", machine::KIND))
}

impl Delivery<'_> {
    fn machines_api(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.context.client.clone(), &self.namespace(), &resource())
    }

    /// What is there under a machine's recorded name; `unknown` gets why nobody can tell.
    pub(super) async fn find_machine(&self, name: &str, unknown: &mut String) -> Result<Machine, Error> {
        if !*self.context.kubevirt.borrow() {
            "the cluster does not serve kubevirt.io".clone_into(unknown);
            return Ok(Machine::Unknown);
        }
        let found = self.machines_api().get_metadata_opt(name).await;
        let found = match found.map_err(Error::api("read a VirtualMachine")) {
            Err(error) if error.reason() == "Forbidden" => {
                *unknown = format!("{NO_RIGHT}: {}", error.chain());
                return Ok(Machine::Unknown);
            }
            found => found?,
        };
        let Some(found) = found else { return Ok(Machine::Absent) };
        let uid = found.annotations().get(names::ANNOTATION_CONVERSION_UID);
        let id = found.labels().get(names::LABEL_CONVERSION);
        let is_ours = id == Some(&self.conversion.name_any()) && uid == self.conversion.metadata.uid.as_ref();
        Ok(match found.metadata.uid {
            Some(uid) if is_ours => Machine::Ours { uid },
            _ => Machine::Foreign,
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

    /// Records another name for a machine: the API server is asked about it again.
    pub(super) async fn rename_machine(&mut self, n: usize) -> Result<(), Error> {
        let wanted = wanted_names(&self.conversion, &self.plan()).swap_remove(n);
        let status = self.status();
        let is_sibling = |name: &str| status.virtual_machines().any(|machine| machine.name == name);
        let mut name = wanted.clone();
        for number in 2..1000 {
            if !is_sibling(&name) && !self.is_machine_taken(&name).await? {
                break;
            }
            name = numbered(&wanted, number, MAX_MACHINE_NAME);
        }
        self.record(|status| {
            if let Some(machine) = status.virtual_machine_mut(n) {
                (machine.name, machine.uid) = (name, None);
            }
        })
        .await
    }

    /// Records which addresses of a machine others of the namespace have: two machines of one address would disturb each
    /// other, and the source of a copy may be here already. Returns why nobody can tell.
    async fn compare_addresses(&mut self, n: usize) -> Result<Option<Failure>, Error> {
        let kept = machine::kept_addresses(&self.conversion, &self.settings, n);
        if kept.is_empty() {
            return Ok(None);
        }
        let uid = self.conversion.uid();
        let mut taken: Vec<String> = Vec::new();
        let mut page = ListParams::default().limit(MACHINES_PAGE);
        loop {
            let listed = self.machines_api().list(&page).await.map_err(Error::api("list VirtualMachines"));
            let listed = match listed {
                Err(error) if error.reason() == "Forbidden" => {
                    let message = format!("{NO_RIGHT}: {}", error.chain());
                    return Ok(Some(Failure::new(Reason::MachineNotServed, message)));
                }
                listed => listed?,
            };
            let is_ours = |machine: &&DynamicObject| {
                machine.annotations().get(names::ANNOTATION_CONVERSION_UID) == uid.as_ref() && uid.is_some()
            };
            for other in listed.items.iter().filter(|machine| !is_ours(machine)) {
                let addresses = addresses_of(&other.data);
                taken.extend(kept.iter().filter(|mac| addresses.contains(*mac)).cloned());
            }
            match listed.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => break,
            }
        }
        taken.sort();
        taken.dedup();
        let known = self.status().virtual_machines().nth(n).map(|machine| machine.taken_addresses.clone());
        if known.is_some_and(|known| known != taken) {
            self.record(|status| {
                if let Some(machine) = status.virtual_machine_mut(n) {
                    machine.taken_addresses = taken;
                }
            })
            .await?;
        }
        Ok(None)
    }

    /// Asks the API server, its schema and its webhooks, whether they would take the machine.
    pub(super) async fn try_machine(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        if let Some(failure) = self.compare_addresses(n).await? {
            return self.hold(ConditionType::MachineCreated, failure).await.map(Some);
        }
        match self.post(n, true).await? {
            Posted::Made(_) => {
                let generation = self.conversion.metadata.generation;
                let said = ConditionState::new("Unknown", "Accepted", "the API server would take the machine");
                self.record(|status| {
                    if let Some(machine) = status.virtual_machine_mut(n) {
                        machine.state = MachineState::Accepted;
                    }
                    let now = jiff::Timestamp::now();
                    set_condition(&mut status.conditions, ConditionType::MachineCreated, said, generation, now);
                })
                .await?;
                Ok(None)
            }
            Posted::Taken => self.look_at_machine(n, look).await,
            Posted::Refused(failure) => self.hold(ConditionType::MachineCreated, failure).await.map(Some),
        }
    }

    pub(super) async fn create_machine(&mut self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        if let Some(failure) = self.compare_addresses(n).await? {
            return self.hold(ConditionType::MachineCreated, failure).await.map(Some);
        }
        match self.post(n, false).await? {
            Posted::Made(uid) => {
                look.machines[n] = Machine::Ours { uid };
                Ok(None)
            }
            Posted::Taken => self.look_at_machine(n, look).await,
            Posted::Refused(failure) => self.hold(ConditionType::MachineCreated, failure).await.map(Some),
        }
    }

    /// Looks at what has the machine's name since the last look.
    async fn look_at_machine(&self, n: usize, look: &mut Look) -> Result<Option<Progress>, Error> {
        let name = self.status().virtual_machines().nth(n).map(|machine| machine.name.clone()).unwrap_or_default();
        look.machines[n] = self.find_machine(&name, &mut look.unknown).await?;
        // A quota that was counted at the same moment is a conflict, too.
        Ok((look.machines[n] == Machine::Absent).then_some(Progress::Wait(SOON)))
    }

    pub(super) async fn record_machine(&mut self, n: usize, uid: String) -> Result<(), Error> {
        let is_created =
            |(other, machine): (usize, &MachineStatus)| other == n || machine.state == MachineState::Created;
        let said = self.status().virtual_machines().enumerate().all(is_created).then(|| self.created_condition());
        let generation = self.conversion.metadata.generation;
        self.record(|status| {
            if let Some(machine) = status.virtual_machine_mut(n) {
                (machine.uid, machine.state) = (Some(uid), MachineState::Created);
            }
            if let Some(said) = said {
                let now = jiff::Timestamp::now();
                set_condition(&mut status.conditions, ConditionType::MachineCreated, said, generation, now);
            }
        })
        .await
    }

    /// Creates the machine, with unknown fields refused; as a dry run nothing stays of it.
    async fn post(&self, n: usize, dry_run: bool) -> Result<Posted, Error> {
        let manifest = match machine::manifest(&self.conversion, &self.settings, n) {
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

    /// What is said of the machines that are there now.
    pub(super) fn created_condition(&self) -> ConditionState {
        let manifests = machine::manifests(&self.conversion, &self.settings).unwrap_or_default();
        let is = match manifests.len() {
            0 | 1 => "the machine is there".to_owned(),
            several => format!("the {several} machines are there"),
        };
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let doubts = manifests.iter().flat_map(|manifest| {
            let of = if manifests.len() > 1 { format!("{}: ", name(&manifest.object)) } else { String::new() };
            manifest.doubts.iter().map(move |doubt| format!("{of}{doubt}"))
        });
        let doubts: Vec<String> = doubts.collect();
        match doubts.as_slice() {
            [] => ConditionState::new("True", "Created", is),
            doubts => ConditionState::new("True", "Doubts", clean(&format!("{is}. {}", doubts.join(". ")), MAX_SAID)),
        }
    }
}

/// The addresses that a machine's cards are to have, as ours are written.
fn addresses_of(machine: &Value) -> Vec<String> {
    let cards = &machine["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"];
    let addresses = cards.as_array().into_iter().flatten().filter_map(|card| card["macAddress"].as_str());
    addresses.filter_map(mac_address).collect()
}

/// What became of a machine that was to be created.
enum Posted {
    /// Its UID.
    Made(String),
    /// Something has its name.
    Taken,
    Refused(Failure),
}
