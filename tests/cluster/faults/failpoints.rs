// SPDX-License-Identifier: Apache-2.0
//! Watchers that die exactly between two steps, at every step; their successors finish correctly.

use std::collections::BTreeSet;
use std::fs;

use hyper2kvm::cluster::api::JobPhase;
use hyper2kvm::conversion::Reason;
use hyper2kvm::queue::failpoint::{ORDER_FILE, Step};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{FAIL, annotate};
use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, files, reasons};
use crate::harness::{Cluster, Need};

/// A conversion during which the watcher dies again and again.
struct Life {
    /// Name of the queue, which has only this conversion.
    name: &'static str,
    /// The reason that its worker is told to fail with.
    fault: Option<&'static str>,
    /// The steps at which the watcher dies, in the order in which a watcher that lives reaches them.
    deaths: &'static [Step],
    /// How each attempt of the conversion ends; the last one ends the conversion.
    attempts: &'static [Option<Reason>],
    end: JobPhase,
    seed: u64,
}

/// Every step is in one of them. The steps of one life are far enough apart that a restart reaches the next one,
/// whatever reached the disk before the last death.
const LIVES: [Life; 5] = [
    Life {
        name: "dies-claiming",
        fault: None,
        deaths: &[
            Step::ClaimWritten,
            Step::MembersTaken,
            Step::SubmissionNoted,
            Step::WorkMade,
            Step::PublicationNoted,
            Step::EndNoted,
            Step::Reported,
        ],
        attempts: &[None],
        end: JobPhase::Succeeded,
        seed: 40,
    },
    Life {
        name: "dies-submitting",
        fault: None,
        deaths: &[Step::ClaimNoted, Step::Submitted, Step::Staged, Step::Published, Step::Disposed, Step::Tidied],
        attempts: &[None],
        end: JobPhase::Succeeded,
        seed: 41,
    },
    Life {
        name: "dies-parking",
        fault: Some("SourceIO:1"),
        deaths: &[Step::ParkNoted, Step::Parked, Step::TakenBack],
        attempts: &[Some(Reason::SourceIO), None],
        end: JobPhase::Succeeded,
        seed: 42,
    },
    Life {
        name: "dies-returning",
        fault: Some("SourceChanged"),
        deaths: &[Step::ReturnNoted, Step::Returned],
        attempts: &[None],
        end: JobPhase::Succeeded,
        seed: 43,
    },
    Life {
        name: "dies-failing",
        fault: Some("Corrupt"),
        deaths: &[Step::EndNoted, Step::Disposed, Step::Reported, Step::Tidied],
        attempts: &[Some(Reason::Corrupt)],
        end: JobPhase::Failed,
        seed: 44,
    },
];

#[tokio::test]
async fn watchers_that_die_between_any_two_steps_are_followed_by_ones_that_finish() {
    let tried: BTreeSet<String> = LIVES.iter().flat_map(|life| life.deaths).map(|step| format!("{step:?}")).collect();
    // These are done by the same code on one host, where they are tried.
    let others = [Step::Superseded, Step::EndedPlanNoted, Step::EndedMoved, Step::EndedGone];
    assert_eq!(tried.len() + others.len(), Step::ALL.len(), "a step is not tried");
    // Elsewhere a container that died four times waits for minutes.
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let Some(operator) = Operator::shared() else { return };
    let mut queues = Vec::new();
    for life in &LIVES {
        let queue = Queue::prepare(&operator, life.name, (65532, 0)).await;
        let annotations = life.fault.map_or_else(|| json!({}), |fault| json!({FAIL: fault}));
        // Long enough that no retry is due before the artifact was parked.
        queue.declare(&json!({"retryPolicy": {"maxRetries": 3, "retryDelaySeconds": 5}}), &annotations);
        queues.push(queue);
    }
    for (queue, life) in queues.iter().zip(&LIVES) {
        queue.ready();
        let deaths: Vec<String> = life.deaths.iter().map(|step| format!("{step:?}")).collect();
        fs::write(queue.output(".daemon").join(ORDER_FILE), deaths.join("\n")).unwrap();
        queue.bring("disk.img", &guest(1, life.seed));
    }
    // In parallel, because the end of one must not depend on another.
    futures::future::join_all(queues.iter().zip(&LIVES).map(|(queue, life)| finishes(queue, life))).await;
}

/// Waits for all deaths, and for the end that the conversion would have had without them.
async fn finishes(queue: &Queue, life: &Life) {
    let order = queue.output(".daemon").join(ORDER_FILE);
    let is_given_back = life.deaths.contains(&Step::Returned);
    if is_given_back {
        // The annotation is read when a worker's pod is made; the next pod belongs to another conversion.
        queue.conversion("disk.img", "given back", |c| reasons(c) == [Some(Reason::SourceChanged)]).await;
        annotate(queue, FAIL, Value::Null);
    }
    queue.eventually(&format!("{}: dead at each step", life.name), || !order.exists()).await;
    let over = queue.ended("disk.img", life.end).await;
    assert_eq!(reasons(&over), life.attempts, "{}", life.name);
    let deaths = i32::try_from(life.deaths.len()).unwrap();
    queue.until::<Pod>(&queue.pod(), &format!("dead {deaths} times"), |pod| restarts(pod) == Some(deaths)).await;

    // One object (and one of the conversion that was given back), one published directory or none, the source in one
    // place, nothing else.
    let others: Vec<_> = queue.conversions().await.into_iter().filter(|c| c.uid() != over.uid()).collect();
    assert!(others.iter().all(|c| reasons(c) == [Some(Reason::SourceChanged)]), "{}: {others:#?}", life.name);
    assert_eq!(others.is_empty(), !is_given_back, "{}: {others:#?}", life.name);
    let status = over.status.unwrap();
    let source = status.source_location.unwrap();
    let (mut published, mut in_queue) = (Vec::new(), vec![source.clone()]);
    let retries = u64::try_from(life.attempts.len()).unwrap() - 1;
    if life.end == JobPhase::Failed {
        queue.counted([0, 1, 0, retries, 0]).await;
        assert_eq!(source, ".errors/disk.img");
        in_queue.push(".errors/disk.img.error.json".to_owned());
    } else {
        queue.counted([1, 0, 0, retries, 0]).await;
        let disk = queue.output(&status.outputs[0].path);
        holds(&disk, &guest(1, life.seed));
        let directory = disk.parent().unwrap().strip_prefix(queue.output("")).unwrap().to_owned();
        published.extend(["disk.qcow2", "metadata.json"].map(|name| directory.join(name).display().to_string()));
    }
    let is_shown = |path: &String| !path.split('/').next_back().unwrap().starts_with('.');
    let kept = |below: &str| files(&queue.volume.join(below)).into_iter().filter(is_shown).collect::<Vec<_>>();
    let outputs = || kept("output").into_iter().filter(|path| !path.starts_with(".daemon")).collect::<Vec<_>>();
    queue.eventually("tidied up", || outputs() == published).await;
    assert_eq!(kept("queue"), in_queue, "{}", life.name);
    assert!(fs::read(queue.queue(&source)).unwrap() == guest(1, life.seed), "{}", life.name);
    if life.end == JobPhase::Failed {
        // The last writer of the report still knew what the worker had left.
        let error = queue.error_file("disk.img");
        assert!(error["reason"] == "Corrupt" && error["exception_traceback"].is_string(), "{error}");
    }
}

/// How often the watcher was started again.
fn restarts(pod: &Pod) -> Option<i32> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|status| status.name == "watcher")?;
    Some(status.restart_count)
}
