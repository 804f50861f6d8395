// SPDX-License-Identifier: Apache-2.0
//! Worker, controller and watcher killed at random moments while disks are written into claims and machines are made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, VolumeState};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use serde_json::json;

use super::{PAUSE, POD_EVERY, Victim};
use crate::conversion::disks::guest;
use crate::conversion::stage::{Operator, Queue};
use crate::support::random::{Random, number};
use crate::volumes::Volumes;

/// Kills of each of the three. There are as many volumes, of which each disk takes one.
const KILLS: u64 = 8;

const MIB: usize = 32;

/// Disks under way at a time, and how soon is looked again where nothing could be killed: a worker lives for a second.
const AT_ONCE: u64 = 2;
const SOON: Duration = Duration::from_millis(50);

/// How long all disks may take.
const LONGEST: Duration = Duration::from_secs(2400);

/// What was seen that must never be.
type Sins = Arc<Mutex<Vec<String>>>;

/// Watches the claims of conversions: none that is complete is deleted, none that is not is nobody's.
fn watch_claims(api: Api<PersistentVolumeClaim>, sins: &Sins) {
    let sins = Arc::clone(sins);
    let of_disks = watcher::Config::default().labels("hyper2kvm.io/complete");
    tokio::spawn(async move {
        let mut events = Box::pin(watcher::watcher(api, of_disks));
        while let Some(event) = events.next().await {
            let (claim, is_deleted) = match event {
                Ok(Event::Apply(claim) | Event::InitApply(claim)) => (claim, false),
                Ok(Event::Delete(claim)) => (claim, true),
                _ => continue,
            };
            let is_complete = claim.labels()["hyper2kvm.io/complete"] == "true";
            if is_complete && is_deleted {
                sins.lock().unwrap().push(format!("{} was complete and is deleted", claim.name_any()));
            }
            if !is_complete && claim.owner_references().is_empty() {
                sins.lock().unwrap().push(format!("{} is incomplete and nobody's", claim.name_any()));
            }
        }
    });
}

/// Watches the machines: none is there before its claims are complete.
fn watch_machines(machines: Api<DynamicObject>, claims: Api<PersistentVolumeClaim>, sins: &Sins) {
    let sins = Arc::clone(sins);
    tokio::spawn(async move {
        let mut events = Box::pin(watcher::watcher(machines, watcher::Config::default()));
        while let Some(event) = events.next().await {
            let Ok(Event::Apply(machine) | Event::InitApply(machine)) = event else { continue };
            for volume in machine.data["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten() {
                let name = volume["persistentVolumeClaim"]["claimName"].as_str().unwrap();
                let is_complete = loop {
                    match claims.get_opt(name).await {
                        Ok(claim) => {
                            break claim.is_some_and(|claim| claim.labels()["hyper2kvm.io/complete"] == "true");
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                };
                if !is_complete {
                    sins.lock().unwrap().push(format!("{} has {name}, which is not complete", machine.name_any()));
                }
            }
        }
    });
}

fn machines_of(queue: &Queue, client: kube::Client) -> Api<DynamicObject> {
    let machine = ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachine"));
    Api::namespaced_with(client, &queue.operator.namespace.name, &machine)
}

fn name_of(n: u64) -> String {
    format!("disk{n}.img")
}

fn ended(conversion: &ConversionJob) -> bool {
    conversion.status.as_ref().is_some_and(|status| status.phase == Some(JobPhase::Succeeded))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_no_disk_is_lost_and_no_machine_made_twice_or_before_its_disks() {
    let Some(operator) = Operator::delivering("kills-claims") else { return };
    let kills = number("HYPER2KVM_CLUSTER_KILLS").unwrap_or(KILLS);
    let sizes = vec![(MIB, MIB); usize::try_from(kills).unwrap()];
    let Some(volumes) = Volumes::new(&operator.namespace, "Block", &sizes) else { return };
    let spec = json!({
        "maxConcurrentJobs": AT_ONCE,
        "target": {"storageClassName": volumes.class, "volumeMode": "Block"},
        "virtualMachine": {"create": "Halted"},
        "retryPolicy": {"maxRetries": 100, "retryDelaySeconds": 1, "backoffMultiplier": "1.0"},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;
    let sins = Sins::default();
    let client = operator.cluster.client().await;
    watch_claims(queue.api(), &sins);
    watch_machines(machines_of(&queue, client.clone()), queue.api(), &sins);

    let mut random = Random::seeded("kills at claims");
    let of_queue =
        |component: &str| format!("hyper2kvm.io/queue={},app.kubernetes.io/component={component}", queue.name);
    let release = format!("app.kubernetes.io/instance={}", operator.release().name);
    let mut victims = [("worker", of_queue("worker")), ("controller", release), ("watcher", of_queue("watcher"))]
        .map(|(container, label)| Victim { container, label, left: kills });
    let mut disks = 0;
    let mut done = 0;
    let begun = Instant::now();
    // Disks come as long as there are kills left, so that every kill interrupts work.
    loop {
        assert!(begun.elapsed() < LONGEST, "{done} of {disks} disks are done: {:#?}", queue.conversions().await);
        let any_left = victims.iter().any(|victim| victim.left > 0);
        if any_left && disks < kills && disks < done + AT_ONCE {
            queue.bring(&name_of(disks), &guest(MIB, 500 + disks));
            disks += 1;
        }
        // A worker, where there is one, as often as the two others together.
        let chosen = [0, 0, 1, 2][usize::try_from(random.below(4)).unwrap()];
        let victim = &mut victims[chosen];
        let is_killed = victim.left > 0 && victim.kill(&queue, random.below(POD_EVERY) == 0);
        victim.left -= u64::from(is_killed);
        let pause = if is_killed { Duration::from_millis(random.below(PAUSE)) } else { SOON };
        tokio::time::sleep(pause).await;
        done = queue.conversions().await.iter().filter(|conversion| ended(conversion)).count() as u64;
        if done == disks && (disks == kills || !any_left) {
            break;
        }
    }
    let killed = victims.each_ref().map(|victim| (victim.container, kills - victim.left));
    eprintln!("killed {killed:?} beside {disks} disks within {:?}", begun.elapsed());
    assert!(killed.iter().all(|(_, times)| *times > kills / 2), "{killed:?}");

    queue
        .until::<HyperConversion>(&queue.name, "counting all disks as converted", |queue| {
            let counted = queue.status.as_ref().and_then(|status| status.totals);
            counted.is_some_and(|c| [c.succeeded, c.failed, c.duplicates, c.cancelled] == [disks, 0, 0, 0])
        })
        .await;
    let machines = machines_of(&queue, client).list(&ListParams::default()).await.unwrap().items;
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for machine in &machines {
        *owners.entry(machine.labels()["hyper2kvm.io/conversion"].clone()).or_default() += 1;
    }
    let mut claims = 0;
    for n in 0..disks {
        let over = queue.ended(&name_of(n), JobPhase::Succeeded).await;
        assert_eq!(owners.remove(&over.name_any()), Some(1), "machines of {}", over.name_any());
        for volume in over.status.unwrap().volumes {
            assert_eq!(volume.state, VolumeState::Complete);
            let claim = queue.until::<PersistentVolumeClaim>(&volume.claim_name, "there", |_| true).await;
            assert_eq!((claim.labels()["hyper2kvm.io/complete"].as_str(), claim.owner_references()), ("true", &[][..]));
            let bound = claim.spec.unwrap().volume_name.unwrap();
            assert!(volumes.devices[&bound].bytes() == guest(MIB, 500 + n), "{} of {}", volume.claim_name, name_of(n));
            claims += 1;
        }
    }
    assert_eq!((claims, owners.len()), (disks, 0));
    let sins = sins.lock().unwrap();
    assert!(sins.is_empty(), "{sins:#?}");
}
