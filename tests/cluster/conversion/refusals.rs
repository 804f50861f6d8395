// SPDX-License-Identifier: Apache-2.0
//! Images that can't be converted: each fails at once, is reported everywhere it should be, and reveals nothing else.

use std::fs;

use hyper2kvm::cluster::api::JobPhase;
use hyper2kvm::conversion::{Class, Reason};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::conversion::disks::guest;
use crate::conversion::stage::{Operator, Queue, files};
use crate::harness::run;
use crate::support::server::{Manner, Server};
use crate::support::vmdk;

/// A QCOW2 disk that continues in another file.
fn backed_by(path: &str) -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    disk[..4].copy_from_slice(b"QFI\xfb");
    disk[4..8].copy_from_slice(&2u32.to_be_bytes());
    disk[8..16].copy_from_slice(&512u64.to_be_bytes());
    disk[16..20].copy_from_slice(&u32::try_from(path.len()).unwrap().to_be_bytes());
    disk[20..24].copy_from_slice(&16u32.to_be_bytes());
    disk[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
    disk[36..40].copy_from_slice(&1u32.to_be_bytes());
    disk[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
    disk[48..56].copy_from_slice(&(1u64 << 16).to_be_bytes());
    disk[56..60].copy_from_slice(&1u32.to_be_bytes());
    disk[512..512 + path.len()].copy_from_slice(path.as_bytes());
    disk
}

#[tokio::test]
async fn what_can_not_be_converted_fails_at_once_and_says_what_to_do() {
    const CANARY: &str = "canary-5d1c9a";
    let Some(operator) = Operator::shared() else { return };
    let server = Server::start_at(operator.cluster.host(), Manner::Answers);
    operator.namespace.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hooks"}, "stringData": {"url": server.url()}})
            .to_string(),
    );
    let webhook = json!({"type": "generic", "urlSecretRef": {"name": "hooks", "key": "url"}});
    let queue = Queue::open("refusals", json!({"notifications": {"webhook": webhook}}), json!({})).await.unwrap();
    queue.says("NotificationsReady", "True", "Configured").await;
    let disk = guest(1, 3);
    let mut corrupt = vmdk::built(&vmdk::Sparse::monolithic_sparse(disk.len() as u64), &disk);
    // The grain directory lies behind the end of the file.
    corrupt[56..64].copy_from_slice(&0x00ff_ffff_u64.to_le_bytes());
    fs::write(queue.queue(".canary"), CANARY.repeat(1024)).unwrap();
    let extent = vmdk::descriptor("monolithicFlat", 4096)
        .replace("SPARSE \"generated-stream.vmdk\"", "FLAT \"../../.canary\" 0");
    queue.bring("corrupt.vmdk", &corrupt);
    queue.bring("outside.vmdk", extent.as_bytes());
    queue.bring("backed.qcow2", &backed_by("/var/lib/hyper2kvm/queue/.canary"));

    let mut told = Vec::new();
    queue.counted([0, 3, 0, 0, 0]).await;
    let mut posted: Vec<Value> = (0..3).map(|_| server.next()).collect();
    for (name, reason) in [
        ("corrupt.vmdk", Reason::Truncated),
        ("outside.vmdk", Reason::UnsafeReference),
        ("backed.qcow2", Reason::UnsafeReference),
    ] {
        let over = queue.ended(name, JobPhase::Failed).await;
        let status = over.status.clone().unwrap();
        let failure = status.state.failure.unwrap();
        assert_eq!((failure.reason, failure.class), (reason, Class::Permanent), "{name}: {}", failure.message);
        assert!(!failure.suggestion.is_empty() && failure.message.contains(name), "{failure:?}");
        let succeeded = status.conditions.iter().find(|c| c.type_ == "Succeeded").unwrap();
        assert_eq!(succeeded.message, failure.advice());
        assert_eq!((status.state.attempts.len(), status.state.next_retry_time), (1, None), "{name}");
        assert_eq!(status.source_location.as_deref(), Some(format!(".errors/{name}").as_str()));
        let error = queue.error_file(name);
        assert_eq!((&error["reason"], &error["suggestion"]), (&json!(reason), &json!(failure.suggestion)), "{error}");
        let columns = run(queue.kubectl().args(["get", "hcj", &over.name_any(), "-o", "wide"]));
        assert!(columns.contains(&reason.to_string()), "{columns}");
        let post = posted.iter().position(|post| post["filename"] == name).map(|n| posted.remove(n)).expect(name);
        assert_eq!((&post["event"], &post["error"]), (&json!("conversion_failure"), &error["error"]), "{post}");
        assert!(post["error"].as_str().unwrap().contains(&failure.message), "{post}");
        told.push(post.to_string());
    }
    assert_eq!(queue.conversions().await.len(), 3);

    // The content of files outside appears nowhere.
    let read = |path: &String| String::from_utf8_lossy(&fs::read(queue.output(path)).unwrap()).into_owned();
    told.extend(files(&queue.output("")).iter().map(read));
    for words in
        [&["get", "events,hcj,hconv,jobs,pods", "-o", "yaml"][..], &["logs", "refusals-watcher-0", "--all-containers"]]
    {
        told.push(run(queue.kubectl().args(words)));
    }
    let workers = ListParams::default().labels("hyper2kvm.io/queue=refusals,app.kubernetes.io/component=worker");
    for pod in queue.api::<Pod>().list(&workers).await.unwrap() {
        told.push(run(queue.kubectl().args(["logs", &pod.name_any()])));
    }
    assert!(told.len() > 6 && !told.iter().any(|text| text.contains(CANARY)));
}
