// SPDX-License-Identifier: Apache-2.0
//! What the first version left: a queue with a conversion of every phase, its volume and its ledger.
//!
//! `stored.json` was recorded from an installation of commit 68fb792: the objects as its API server kept them, the files of
//! its volume, and its ledger. Only the Jobs and pods are missing, as after a restore, and the time of the retry has come.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase};
use hyper2kvm::conversion::Reason;
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::conversion::stage::{Operator, Queue, own, reasons};
use crate::harness::{Cluster, Namespace, Need, in_tree, run};

/// A file of the volume.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    #[serde(default)]
    text: String,
    /// The byte that a disk is made of, and how many.
    fill: Option<char>,
    #[serde(default)]
    size: usize,
    mtime_ns: u64,
    /// By which claims and ledger know it.
    inode: Option<u64>,
}

#[derive(Deserialize)]
struct Recorded {
    objects: Vec<Value>,
    files: BTreeMap<String, Stored>,
    ledger: Vec<String>,
}

/// The record, in this namespace and with UIDs that no other run has.
fn recorded(namespace: &str) -> Recorded {
    let text = fs::read_to_string(in_tree("tests/cluster/upgrade/stored.json")).unwrap();
    let first: Recorded = serde_json::from_str(&text).unwrap();
    let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() & 0xffff_ffff_ffff;
    let mut text = text.replace(r#""namespace": "recorded""#, &format!(r#""namespace": "{namespace}""#));
    for object in &first.objects {
        let uid = object["metadata"]["uid"].as_str().unwrap();
        text = text.replace(uid, &format!("{}{unique:012x}", &uid[..24]));
    }
    serde_json::from_str(&text).unwrap()
}

impl Recorded {
    /// Lays the volume out as it was: claims and ledger know the files by inode and time.
    fn lay_out(&mut self, volume: &Path) {
        let mut inodes = Vec::new();
        // Disks first: texts name their inodes.
        for pass in [true, false] {
            for (path, stored) in self.files.iter().filter(|(_, stored)| stored.fill.is_some() == pass) {
                let (place, is_directory) = (path.trim_end_matches('/'), path.ends_with('/'));
                let path = volume.join(place);
                fs::create_dir_all(if is_directory { &path } else { path.parent().unwrap() }).unwrap();
                if is_directory {
                    continue;
                }
                let disk = stored.fill.map(|fill| vec![u8::try_from(fill).unwrap(); stored.size]);
                fs::write(&path, disk.unwrap_or_else(|| with_inodes(&stored.text, &inodes).into_bytes())).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                let time = UNIX_EPOCH + Duration::from_nanos(stored.mtime_ns);
                file.set_times(FileTimes::new().set_modified(time)).unwrap();
                inodes.extend(stored.inode.map(|inode| (inode, file.metadata().unwrap().ino())));
            }
        }
        for statement in &mut self.ledger {
            *statement = with_inodes(statement, &inodes);
        }
        let daemon = volume.join("output/.daemon");
        fs::create_dir_all(&daemon).unwrap();
        let ledger = Connection::open(daemon.join("deduplication.db")).unwrap();
        ledger.execute_batch(&self.ledger.join("\n")).unwrap();
        drop(ledger);
        give(volume);
    }

    /// Puts the objects where the API server keeps them; returns where it serves each.
    fn store(&self, namespace: &Namespace) -> Vec<String> {
        let place = |object: &Value| {
            let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
            (plural, object["metadata"]["name"].as_str().unwrap().to_owned())
        };
        let put = |object: &Value| {
            let (plural, name) = place(object);
            let key = format!("/registry/hyper2kvm.io/{plural}/{}/{name}", namespace.name);
            let mut store = Command::new(in_tree("tests/cluster/store.sh"));
            let mut store = store.arg(key).stdin(Stdio::piped()).spawn().unwrap();
            store.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
            assert!(store.wait().unwrap().success());
            format!("/apis/hyper2kvm.io/v1alpha1/namespaces/{}/{plural}/{name}", namespace.name)
        };
        self.objects.iter().map(put).collect()
    }
}

/// The text with the inodes of now.
fn with_inodes(text: &str, inodes: &[(u64, u64)]) -> String {
    let mut text = text.to_owned();
    for (then, now) in inodes {
        text = text.replace(&then.to_string(), &now.to_string());
    }
    text
}

/// Makes the image's user the owner of everything.
fn give(directory: &Path) {
    own(directory, (65532, 0));
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            give(&entry.path());
        } else {
            chown(entry.path(), Some(65532), Some(0)).unwrap();
        }
    }
}

/// Where `found` lacks something of `stored`, or has it otherwise.
fn lost(stored: &Value, found: &Value, place: &str, losses: &mut Vec<String>) {
    match (stored, found) {
        (Value::Object(stored), Value::Object(found)) => {
            for (key, value) in stored {
                lost(value, found.get(key).unwrap_or(&Value::Null), &format!("{place}.{key}"), losses);
            }
        }
        (Value::Array(stored), Value::Array(found)) if stored.len() == found.len() => {
            for (number, (stored, found)) in stored.iter().zip(found).enumerate() {
                lost(stored, found, &format!("{place}[{number}]"), losses);
            }
        }
        // An empty list and none are one.
        (Value::Array(stored), Value::Null) if stored.is_empty() => {}
        _ if stored == found => {}
        _ => losses.push(format!("{place}: {stored} became {found}")),
    }
}

#[tokio::test]
async fn what_the_first_version_stored_is_read_whole_and_goes_on() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    let Some(image) = cluster.image() else { return };
    let namespace = cluster.namespace("stored");
    let mut recorded = recorded(&namespace.name);
    recorded.lay_out(&namespace.volume("q", "ReadWriteMany"));
    let served = recorded.store(&namespace);

    let mut losses = Vec::new();
    let mut phases = Vec::new();
    for (stored, path) in recorded.objects.iter().zip(&served) {
        let text = run(namespace.kubectl().args(["get", "--raw", path]));
        let found: Value = serde_json::from_str(&text).unwrap();
        lost(stored, &found, path, &mut losses);
        // The programs see all of it, too.
        let parsed = if stored["kind"] == "HyperConversion" {
            json!(serde_json::from_value::<HyperConversion>(found).unwrap())
        } else {
            json!(serde_json::from_value::<ConversionJob>(found).unwrap())
        };
        lost(&stored["spec"], &parsed["spec"], &format!("{path} spec"), &mut losses);
        lost(&stored["status"], &parsed["status"], &format!("{path} status"), &mut losses);
        phases.extend(stored["status"]["phase"].as_str().map(str::to_owned));
    }
    assert!(losses.is_empty(), "{losses:#?}");
    phases.sort();
    let all = ["Converting", "Duplicate", "Failed", "Pending", "Publishing", "Queued", "Retrying", "Succeeded"];
    assert_eq!(phases, all);
    // All of them can be written.
    run(namespace.kubectl().args(["annotate", "hconv,hcj", "--all", "example.com/seen=yes"]));
    let patch = json!({"spec": {"maxConcurrentJobs": 3, "retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 0}}});
    run(namespace.kubectl().args(["patch", "hconv", "q", "--type=merge", "--patch", &patch.to_string()]));

    let operator = Arc::new(Operator::install(cluster, &image, namespace, None));
    let queue = Queue::prepare(&operator, "q", (65532, 0)).await;
    queue.ready();
    for (source, fill, earlier) in [
        ("publishing.img", b'e', vec![]),
        ("queued.img", b'f', vec![]),
        ("converting.img", b'd', vec![Reason::JobLost]),
        ("retrying.img", b'b', vec![Reason::SourceIO]),
        ("pending.img", b'g', vec![]),
    ] {
        let ended = queue.ended(source, JobPhase::Succeeded).await;
        let failed: Vec<_> = reasons(&ended).into_iter().flatten().collect();
        assert_eq!(failed, earlier, "{source}");
        let disk = &ended.status.as_ref().unwrap().outputs[0];
        let is_raw = ended.spec.conversion.out_format.is_none();
        assert!(!is_raw || fs::read(queue.output(&disk.path)).unwrap() == vec![fill; 65536], "{source}");
    }
    // What had ended is told as it was.
    let mut losses = Vec::new();
    for (stored, path) in recorded.objects.iter().zip(&served) {
        if !["Succeeded", "Failed", "Duplicate"].iter().any(|phase| stored["status"]["phase"] == *phase) {
            continue;
        }
        let mut stored = stored["status"].clone();
        stored.as_object_mut().unwrap().remove("conditions");
        let found: Value = serde_json::from_str(&run(queue.kubectl().args(["get", "--raw", path]))).unwrap();
        lost(&stored, &found["status"], path, &mut losses);
    }
    assert!(losses.is_empty(), "{losses:#?}");
    queue.counted([6, 1, 1, 2, 1]).await;
}
