// SPDX-License-Identifier: Apache-2.0
//! A table of decisions, and a model of the API server in which others act between any two steps.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::*;
use crate::cluster::api::ConversionJob;
use crate::cluster::controller::delivery::claims::claim_of;

fn volume(state: VolumeState) -> TargetVolume {
    TargetVolume { claim_name: "web-disk-0".to_owned(), state, ..TargetVolume::default() }
}

fn ours(complete: bool) -> Claim {
    Claim::Ours { uid: "u".to_owned(), complete }
}

fn machine(state: MachineState) -> MachineStatus {
    MachineStatus { name: "web".to_owned(), state, ..MachineStatus::default() }
}

#[test]
fn each_state_of_a_claim_and_of_the_machine_has_one_next_step() {
    use VolumeState::{Complete, Created, Deleted, Planned, Written};
    let without = &Stage::Before { fault: None, has_slot: false };
    let before = &Stage::Before { fault: None, has_slot: true };
    let fault = |claims: &[u32]| Some(Fault { attempt: 2, claims: claims.to_vec(), too_small: true });
    let small = &Stage::Before { fault: fault(&[]), has_slot: true };
    let small_too = &Stage::Before { fault: fault(&[0, 3]), has_slot: true };
    let other_small = &Stage::Before { fault: fault(&[1]), has_slot: true };
    let (after, ended) = (&Stage::After, &Stage::Ended);
    for (stage, state, claim, pods, expected) in [
        (without, Planned, Claim::Absent, false, Next::AskSlot),
        (before, Planned, Claim::Absent, false, Next::CreateClaim(0)),
        (before, Planned, ours(false), false, Next::Adopt(vec![(0, "u".to_owned())])),
        (before, Planned, Claim::Foreign, false, Next::RenameClaim(0)),
        (before, Created, ours(false), false, Next::Convert),
        (before, Created, Claim::Absent, false, Next::Forget(0)),
        (before, Created, Claim::Going, false, Next::AwaitClaim(0)),
        (before, Created, Claim::Foreign, false, Next::RenameClaim(0)),
        (before, Complete, ours(true), false, Next::Lost(0)),
        (small, Created, ours(false), true, Next::RemoveWorkers),
        (small, Created, ours(false), false, Next::DeleteClaim(0)),
        (small, Created, Claim::Absent, false, Next::Remake(0)),
        (small_too, Created, Claim::Absent, false, Next::Remake(0)),
        (other_small, Created, ours(false), true, Next::Convert),
        (after, Written, ours(false), true, Next::RemoveWorkers),
        (after, Written, ours(false), false, Next::Complete(0)),
        (after, Written, ours(true), false, Next::RecordComplete(vec![0])),
        (after, Written, Claim::Absent, false, Next::Lost(0)),
        (after, Written, Claim::Foreign, false, Next::Lost(0)),
        (after, Complete, ours(true), true, Next::Done),
        // What its users do with it is theirs.
        (after, Complete, Claim::Absent, false, Next::Done),
        (ended, Created, ours(false), true, Next::DeleteClaim(0)),
        (ended, Written, ours(true), false, Next::RecordComplete(vec![0])),
        (ended, Created, Claim::Foreign, false, Next::RecordDeleted(vec![0])),
        (ended, Created, Claim::Going, true, Next::RecordDeleted(vec![0])),
        (ended, Planned, Claim::Absent, false, Next::RecordDeleted(vec![0])),
        (ended, Deleted, Claim::Absent, false, Next::Done),
        (ended, Complete, ours(true), false, Next::Done),
    ] {
        let view = View {
            stage,
            volumes: &[volume(state)],
            claims: std::slice::from_ref(&claim),
            wanted: 0,
            machines: &[],
            owners: &[None],
            has_pods: pods,
        };
        assert_eq!(next(&view), expected, "{stage:?} {state:?} {claim:?} pods: {pods}");
    }
    let uid = || Machine::Ours { uid: "m".to_owned() };
    for (stage, state, recorded, found, expected) in [
        (without, Planned, None, Machine::Absent, Next::Name),
        (without, Planned, Some(MachineState::Planned), Machine::Absent, Next::TryMachine(0)),
        (without, Planned, Some(MachineState::Planned), Machine::Unknown, Next::AwaitKubevirt),
        (without, Planned, Some(MachineState::Planned), Machine::Foreign, Next::RenameMachine(0)),
        (without, Planned, Some(MachineState::Accepted), Machine::Foreign, Next::AskSlot),
        (after, Written, Some(MachineState::Accepted), Machine::Absent, Next::Complete(0)),
        (after, Complete, None, Machine::Absent, Next::Name),
        (after, Complete, Some(MachineState::Accepted), Machine::Absent, Next::CreateMachine(0)),
        (after, Complete, Some(MachineState::Planned), Machine::Absent, Next::CreateMachine(0)),
        (after, Complete, Some(MachineState::Accepted), Machine::Foreign, Next::RenameMachine(0)),
        (after, Complete, Some(MachineState::Accepted), Machine::Unknown, Next::AwaitKubevirt),
        (after, Complete, Some(MachineState::Accepted), uid(), Next::RecordMachine(0, "m".to_owned())),
        (after, Complete, Some(MachineState::Created), Machine::Absent, Next::Done),
    ] {
        let claims = [if stage == after { ours(state == Complete) } else { Claim::Absent }];
        let recorded = recorded.map(machine);
        let machines: Vec<_> = recorded.iter().map(|machine| (machine, &found)).collect();
        let view = View {
            stage,
            volumes: &[volume(state)],
            claims: &claims,
            wanted: 1,
            machines: &machines,
            owners: &[None],
            has_pods: false,
        };
        assert_eq!(next(&view), expected, "{stage:?} {state:?} {recorded:?} {found:?}");
    }
}

#[test]
fn a_claim_that_was_made_anew_for_an_attempt_is_not_made_anew_for_it_again() {
    let stage = &Stage::Before { fault: Some(Fault { attempt: 2, claims: vec![0], too_small: true }), has_slot: true };
    for (after, expected) in [(0, Next::DeleteClaim(0)), (1, Next::DeleteClaim(0)), (2, Next::Convert)] {
        let volumes = [TargetVolume { remade_after: after, ..volume(VolumeState::Created) }];
        let claims = [ours(false)];
        let view = View {
            stage,
            volumes: &volumes,
            claims: &claims,
            wanted: 0,
            machines: &[],
            owners: &[None],
            has_pods: false,
        };
        assert_eq!(next(&view), expected, "after {after}");
    }
}

#[test]
fn claims_are_given_to_their_machine_once_all_machines_are_there() {
    let volumes = [volume(VolumeState::Complete), volume(VolumeState::Complete)];
    let claims = [ours(true), ours(true)];
    let made = |state| MachineStatus { uid: Some("m".to_owned()), ..machine(state) };
    let (first, second) = (made(MachineState::Created), made(MachineState::Accepted));
    let (there, absent) = (Machine::Ours { uid: "m".to_owned() }, Machine::Absent);
    let mut view = View {
        stage: &Stage::After,
        volumes: &volumes,
        claims: &claims,
        wanted: 2,
        machines: &[(&first, &there), (&second, &absent)],
        owners: &[Some("m"), None],
        has_pods: false,
    };
    assert_eq!(next(&view), Next::CreateMachine(1));
    let all = [(&first, &there), (&first, &there)];
    view.machines = &all;
    assert_eq!(next(&view), Next::HandOver(vec![0]));
    let given = TargetVolume { machine_uid: Some("m".to_owned()), ..volume(VolumeState::Complete) };
    let volumes = [given, volume(VolumeState::Complete)];
    view.volumes = &volumes;
    assert_eq!(next(&view), Next::Done);
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Preparing,
    Writing,
    Delivering,
    Ended,
    Succeeded,
}

/// An API server with the claims and machines of a namespace, and what the conversion's status says.
struct World {
    random: u64,
    conversion: ConversionJob,
    doing: Doing,
    attempt: u32,
    fault: Option<Fault>,
    has_slot: bool,
    has_pods: bool,
    volumes: Vec<TargetVolume>,
    /// One for each disk.
    named: Vec<MachineStatus>,
    claims: BTreeMap<String, ObjectMeta>,
    /// Whether each is ours.
    machines: BTreeMap<String, bool>,
    uids: u32,
    /// UIDs of claims that were complete, unless somebody else deleted them.
    complete: Vec<String>,
    foreign: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let conversion = serde_json::from_value(json!({
            "metadata": {"name": "web-00000001", "namespace": "n", "uid": "conversion"},
            "spec": {"queueRef": {"name": "q"}, "source": {"path": "web.ova"}},
        }));
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            conversion: conversion.unwrap(),
            doing: Doing::Preparing,
            attempt: 1,
            fault: None,
            has_slot: false,
            has_pods: false,
            volumes: Vec::new(),
            named: Vec::new(),
            claims: BTreeMap::new(),
            machines: BTreeMap::new(),
            uids: 0,
            complete: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// A number below `n`, by xorshift.
    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n
    }

    fn claim(&mut self, name: &str, owner: Option<&str>, complete: Option<&str>) {
        self.uids += 1;
        let owners = owner.map(|uid| json!([{"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "name": "web-00000001", "uid": uid}]));
        let labels = complete.map(|complete| json!({"hyper2kvm.io/complete": complete}));
        let meta = json!({"name": name, "uid": format!("u{}", self.uids), "ownerReferences": owners, "labels": labels});
        self.claims.insert(name.to_owned(), serde_json::from_value(meta).unwrap());
    }

    /// Somebody else does something.
    fn others_act(&mut self) {
        let names: Vec<String> = self.volumes.iter().map(|volume| volume.claim_name.clone()).collect();
        match self.below(40) {
            0 => {
                // An object of theirs gets a name that we have recorded or would choose.
                let name = names.first().cloned().unwrap_or_else(|| "web-disk-0".to_owned());
                if !self.claims.contains_key(&name) {
                    self.claim(&name, None, Some("true"));
                    self.foreign.push(self.claims[&name].uid.clone().unwrap());
                }
            }
            1 => {
                self.machines.entry("web".to_owned()).or_insert(false);
            }
            // A claim is deleted by hand.
            2 if !names.is_empty() => {
                let index = usize::try_from(self.below(names.len() as u64)).unwrap();
                if let Some(gone) = self.claims.remove(&names[index]) {
                    self.complete.retain(|uid| Some(uid) != gone.uid.as_ref());
                    self.foreign.retain(|uid| Some(uid) != gone.uid.as_ref());
                }
            }
            3 if self.doing != Doing::Succeeded => self.doing = Doing::Ended,
            _ => {}
        }
    }

    fn stage(&self) -> Stage {
        match self.doing {
            Doing::Ended => Stage::Ended,
            Doing::Delivering => Stage::After,
            _ => Stage::Before { fault: self.fault.clone(), has_slot: self.has_slot },
        }
    }

    fn decide(&self) -> Next {
        let seen = |volume: &TargetVolume| claim_of(&self.conversion, volume, self.claims.get(&volume.claim_name));
        let claims: Vec<Claim> = self.volumes.iter().map(seen).collect();
        let found = |machine: &MachineStatus| match self.machines.get(&machine.name) {
            None => Machine::Absent,
            Some(true) => Machine::Ours { uid: format!("of {}", machine.name) },
            Some(false) => Machine::Foreign,
        };
        let found: Vec<Machine> = self.named.iter().map(found).collect();
        let machines: Vec<_> = self.named.iter().zip(&found).collect();
        let owners: Vec<_> =
            (0..self.volumes.len()).map(|n| self.named.get(n).and_then(|m| m.uid.as_deref())).collect();
        next(&View {
            stage: &self.stage(),
            volumes: &self.volumes,
            claims: &claims,
            wanted: 2,
            machines: &machines,
            owners: &owners,
            has_pods: self.has_pods,
        })
    }

    fn free(&self, wanted: &str) -> String {
        let numbered = (2..).map(|n| format!("{wanted}-{n}"));
        let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
        names.find(|name| !self.claims.contains_key(name) && !self.machines.contains_key(name)).unwrap()
    }

    /// Does a step; whether anything is left to do.
    fn act(&mut self, step: Next) -> bool {
        match step {
            Next::Name => {
                if self.volumes.is_empty() {
                    self.volumes = (0..2)
                        .map(|n| TargetVolume {
                            claim_name: self.free(&format!("web-disk-{n}")),
                            ..TargetVolume::default()
                        })
                        .collect();
                }
                let names = [self.free("web"), self.free("db")];
                self.named = names.map(|name| MachineStatus { name, ..MachineStatus::default() }).into();
            }
            Next::RenameClaim(n) => {
                let name = self.free(&format!("web-disk-{n}"));
                let volume = &mut self.volumes[n];
                (volume.claim_name, volume.uid, volume.state) = (name, None, VolumeState::Planned);
            }
            Next::RenameMachine(n) => self.named[n].name = self.free(["web", "db"][n]),
            Next::TryMachine(n) => self.named[n].state = MachineState::Accepted,
            Next::AskSlot => self.has_slot = true,
            Next::CreateClaim(n) => {
                let name = self.volumes[n].claim_name.clone();
                assert!(!self.claims.contains_key(&name), "the API server refuses a second one");
                self.claim(&name, Some("conversion"), Some("false"));
            }
            Next::Adopt(found) => {
                for (n, uid) in found {
                    (self.volumes[n].uid, self.volumes[n].state) = (Some(uid), VolumeState::Created);
                }
            }
            Next::Forget(n) => (self.volumes[n].uid, self.volumes[n].state) = (None, VolumeState::Planned),
            Next::Remake(n) => {
                let fault = self.fault.as_ref().unwrap();
                assert!(fault.claims.is_empty() || fault.claims.contains(&u32::try_from(n).unwrap()));
                self.volumes[n].remade_after = fault.attempt;
                (self.volumes[n].uid, self.volumes[n].state) = (None, VolumeState::Planned);
            }
            Next::DeleteClaim(n) => {
                let name = self.volumes[n].claim_name.clone();
                let gone = self.claims.remove(&name).expect("what was seen a moment ago");
                assert_eq!(gone.labels.unwrap()["hyper2kvm.io/complete"], "false", "a complete claim is deleted");
                assert!(!self.has_pods || self.doing == Doing::Ended, "a worker still writes");
            }
            Next::RecordDeleted(gone) => gone.iter().for_each(|n| self.volumes[*n].state = VolumeState::Deleted),
            Next::AwaitClaim(_) | Next::AwaitKubevirt => unreachable!("nothing goes slowly here"),
            Next::Convert => {
                assert!(self.volumes.iter().all(|volume| volume.uid.is_some()));
                (self.doing, self.has_pods) = (Doing::Writing, true);
            }
            Next::RemoveWorkers => self.has_pods = false,
            Next::Complete(n) => {
                assert!(!self.has_pods, "a worker may still write");
                let claim = self.claims.get_mut(&self.volumes[n].claim_name).unwrap();
                assert_eq!(claim.uid, self.volumes[n].uid);
                claim.labels.get_or_insert_default().insert("hyper2kvm.io/complete".to_owned(), "true".to_owned());
                claim.owner_references = None;
                self.complete.push(claim.uid.clone().unwrap());
            }
            Next::RecordComplete(complete) => {
                for n in complete {
                    self.volumes[n].state = VolumeState::Complete;
                }
            }
            Next::Lost(_) if self.volumes.iter().any(|volume| volume.state == VolumeState::Complete) => {
                self.doing = Doing::Ended;
            }
            Next::Lost(_) if self.doing == Doing::Preparing => self.doing = Doing::Ended,
            Next::Lost(_) => {
                let written = self.volumes.iter_mut().filter(|volume| volume.state == VolumeState::Written);
                written.for_each(|volume| volume.state = VolumeState::Created);
                self.doing = Doing::Preparing;
            }
            Next::CreateMachine(n) => {
                assert!(self.volumes.iter().all(|volume| volume.state == VolumeState::Complete));
                let name = self.named[n].name.clone();
                assert_eq!(self.machines.insert(name, true), None, "the API server refuses a second one");
            }
            Next::RecordMachine(n, uid) => {
                (self.named[n].uid, self.named[n].state) = (Some(uid), MachineState::Created);
            }
            Next::HandOver(claims) => {
                for n in claims {
                    self.volumes[n].machine_uid.clone_from(&self.named[n].uid);
                }
            }
            Next::Done if self.doing == Doing::Delivering => self.doing = Doing::Succeeded,
            Next::Done => return false,
        }
        true
    }

    /// The worker ends.
    fn work(&mut self) {
        self.attempt += 1;
        let claims = [vec![], vec![0], vec![1], vec![0, 1]];
        let claims = claims[usize::try_from(self.below(4)).unwrap()].clone();
        self.fault = None;
        self.doing = match self.below(4) {
            0 => {
                self.fault = Some(Fault { attempt: self.attempt, claims, too_small: self.below(2) == 0 });
                Doing::Preparing
            }
            1 => Doing::Preparing,
            _ => {
                self.volumes.iter_mut().for_each(|volume| volume.state = VolumeState::Written);
                Doing::Delivering
            }
        };
    }

    fn check(&self) {
        let there: Vec<&String> = self.claims.values().filter_map(|claim| claim.uid.as_ref()).collect();
        for uid in self.complete.iter().chain(&self.foreign) {
            assert!(there.contains(&uid), "claim {uid} is gone");
        }
        for claim in self.claims.values() {
            let is_incomplete = claim.labels.as_ref().is_some_and(|labels| labels["hyper2kvm.io/complete"] == "false");
            assert!(!is_incomplete || claim.owner_references.is_some(), "an incomplete claim belongs to nobody");
        }
        assert!(self.machines.values().filter(|is_ours| **is_ours).count() <= 2, "a machine was made twice");
    }
}

#[test]
fn whatever_others_do_between_two_steps_no_disk_is_lost_and_no_machine_made_twice_or_early() {
    let (mut succeeded, mut ended) = (0, 0);
    for seed in 1..=2000 {
        let mut world = World::new(seed);
        let mut steps = 0;
        // Others act for a while; then it must come to an end by itself.
        while world.doing != Doing::Succeeded {
            steps += 1;
            assert!(steps < 400, "seed {seed}: {:?} does not end, next {:?}", world.doing, world.decide());
            if steps < 60 {
                world.others_act();
            }
            if world.doing == Doing::Writing {
                world.work();
                continue;
            }
            // A controller that dies forgets all but the API server's objects: each step begins with a look at them.
            let step = world.decide();
            if !world.act(step) {
                break;
            }
            world.check();
        }
        world.check();
        if world.doing == Doing::Succeeded {
            succeeded += 1;
            assert!(world.volumes.iter().all(|volume| volume.state == VolumeState::Complete));
        } else {
            ended += 1;
            let left = world.claims.values().filter(|claim| claim.owner_references.is_some());
            assert_eq!(left.count(), 0, "seed {seed}: incomplete claims are left");
        }
    }
    assert!(succeeded > 500 && ended > 100, "{succeeded} succeeded, {ended} ended");
}
