// SPDX-License-Identifier: Apache-2.0
//! `top` and `retry`: the conversions of a queue.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use hyper2kvm::cluster::api::{ConversionJob, ConversionJobSpec, ConversionJobStatus, JobPhase, Source};
use hyper2kvm::conversion::ConversionId;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{ListParams, PostParams};
use serde_json::json;

use super::access::{Access, told};
use super::{NAME, Printer, Refusal};
use crate::table::{age, bytes, or_dash, table};

/// How often `top` refreshes; the status is written at most every 5 s.
const REFRESH: Duration = Duration::from_secs(2);

/// Shows the unfinished conversions; on a terminal again and again.
pub(super) async fn top(access: &Access, queue: &str, once: bool, printer: Printer) -> Result<(), Refusal> {
    access.queues().get(queue).await.map_err(|error| access.about_queue(queue, error))?;
    let again = !once && !printer.is_json && io::stdout().is_terminal();
    loop {
        let of_queue = ListParams::default().fields(&format!("spec.queueRef.name={queue}"));
        let mut found = access.conversions().list(&of_queue).await.map_err(told)?.items;
        found.retain(|conversion| !conversion.status.as_ref().and_then(|s| s.phase).is_some_and(is_end));
        found.sort_by_key(|conversion| (order(conversion), conversion.metadata.creation_timestamp.clone()));
        if again {
            // Moves the cursor home, and clears what is below.
            drop(io::stdout().write_all(b"\x1b[H\x1b[J"));
        }
        let object = json!({ "apiVersion": "v1", "kind": "List", "items": found });
        printer.print(&object, || screen(queue, &found, Timestamp::now()))?;
        if !again {
            return Ok(());
        }
        tokio::time::sleep(REFRESH).await;
    }
}

const fn is_end(phase: JobPhase) -> bool {
    matches!(phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Duplicate | JobPhase::Cancelled)
}

/// Running conversions stand above waiting ones.
fn order(conversion: &ConversionJob) -> u8 {
    match conversion.status.as_ref().and_then(|status| status.phase) {
        Some(JobPhase::Publishing) => 0,
        Some(JobPhase::Converting | JobPhase::Planning | JobPhase::Delivering) => 1,
        Some(JobPhase::Queued) => 2,
        Some(JobPhase::Retrying) => 4,
        _ => 3,
    }
}

fn screen(queue: &str, conversions: &[ConversionJob], now: Timestamp) -> String {
    if conversions.is_empty() {
        return format!("{queue} has no conversion under way; `kubectl hyper2kvm put FILE {queue}` brings one\n");
    }
    let header = ["CONVERSION", "SOURCE", "PHASE", "PROGRESS", "DONE", "OF", "TARGET", "ATTEMPT", "NODE", "AGE"];
    table(&header, conversions.iter().map(|conversion| row(conversion, now)))
}

fn row(conversion: &ConversionJob, now: Timestamp) -> Vec<String> {
    let status = conversion.status.clone().unwrap_or_default();
    let progress = status.progress.as_ref();
    let attempt = status.state.attempts.last();
    vec![
        conversion.name_any(),
        conversion.spec.source.path.clone(),
        or_dash(status.phase.map(|phase| format!("{phase:?}"))),
        or_dash(progress.map(|progress| format!("{}%", progress.percent))),
        or_dash(progress.map(|progress| bytes(progress.bytes_done))),
        or_dash(progress.map(|progress| bytes(progress.bytes_total))),
        or_dash(target(&status)),
        or_dash(attempt.map(|attempt| attempt.number)),
        or_dash(attempt.and_then(|attempt| attempt.node_name.clone())),
        age(conversion.creation_timestamp().map(|created| created.0), now),
    ]
}

/// Where the disks go: the first claim, and how many more there are; of a conversion to files nothing.
fn target(status: &ConversionJobStatus) -> Option<String> {
    let (first, rest) = status.volumes.split_first()?;
    Some(if rest.is_empty() { first.claim_name.clone() } else { format!("{} +{}", first.claim_name, rest.len()) })
}

/// Makes a new conversion of an old one's source.
pub(super) async fn retry(access: &Access, conversion: &str, printer: Printer) -> Result<(), Refusal> {
    let old = access.conversions().get(conversion).await.map_err(|error| access.about_conversion(conversion, error))?;
    let new = again(&old, RandomState::new().hash_one(conversion))?;
    let params = PostParams { field_manager: Some(NAME.to_owned()), ..PostParams::default() };
    let made = access.conversions().create(&params, &new).await.map_err(told)?;
    printer.print(&made, || {
        let (name, namespace) = (made.name_any(), &access.namespace);
        format!(
            "{name} converts {} again\n`kubectl -n {namespace} wait --for=condition=Succeeded --timeout=-1s hcj/{name}` \
             waits for it\n",
            made.spec.source.path
        )
    })
}

/// The same conversion once more, or why that is impossible.
fn again(old: &ConversionJob, random: u64) -> Result<ConversionJob, Refusal> {
    let name = old.name_any();
    let status = old.status.clone().unwrap_or_default();
    if !status.phase.is_some_and(is_end) {
        let queue = &old.spec.queue_ref.name;
        return Err(format!(
            "{name} is not finished, so it is not tried again by hand; `kubectl hyper2kvm top {queue}` shows how far it is"
        )
        .into());
    }
    let Some(path) = status.source_location.filter(|path| !path.is_empty()) else {
        return Err(format!(
            "nobody knows where the source of {name} lies now; bring it again with `kubectl hyper2kvm put FILE {}`",
            old.spec.queue_ref.name
        )
        .into());
    };
    let file = path.rsplit('/').next().unwrap_or(&path);
    #[expect(clippy::cast_possible_truncation, reason = "any 32 bits of it will do")]
    let id = ConversionId::for_file(file, random as u32);
    let spec = ConversionJobSpec {
        queue_ref: old.spec.queue_ref.clone(),
        // The watcher reads the companions from the descriptor: moving them may have changed their names.
        source: Source { path, companions: Vec::new(), size_bytes: None, complete_by: None },
        conversion: old.spec.conversion.clone(),
        target: old.spec.target.clone(),
        virtual_machine: old.spec.virtual_machine.clone(),
        duplicate_of: String::new(),
    };
    Ok(ConversionJob::new(id.as_str(), spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversion(status: &serde_json::Value) -> ConversionJob {
        serde_json::from_value(json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": "web01-3fa9c1d2"},
            "spec": {"queueRef": {"name": "q"}, "source": {"path": "web01.ova", "companions": ["x.vmdk"]},
                     "conversion": {"outFormat": "raw"}},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_retry_is_a_new_object_for_the_source_where_it_lies_now() {
        let old = conversion(&json!({"phase": "Failed", "sourceLocation": ".errors/web01-1.ova"}));
        let new = again(&old, 0x1_0000_002a).unwrap();
        assert_eq!(new.name_any(), "web01-1-0000002a");
        let expected = json!({
            "queueRef": {"name": "q"}, "source": {"path": ".errors/web01-1.ova"}, "conversion": {"outFormat": "raw"},
        });
        assert_eq!(serde_json::to_value(&new.spec).unwrap(), expected);
    }

    #[test]
    fn what_still_runs_or_is_lost_is_not_retried() {
        let running = again(&conversion(&json!({"phase": "Converting"})), 0).unwrap_err().to_string();
        assert!(running.contains("kubectl hyper2kvm top q"), "{running}");
        let lost = again(&conversion(&json!({"phase": "Cancelled"})), 0).unwrap_err().to_string();
        assert!(lost.contains("kubectl hyper2kvm put FILE q"), "{lost}");
    }

    #[test]
    fn a_running_conversion_is_one_line() {
        let running = conversion(&json!({"phase": "Converting", "attempts": [{"number": 2, "nodeName": "node1"}],
            "progress": {"percent": 42, "stage": "copy", "bytesDone": 1u64 << 30, "bytesTotal": 2u64 << 30,
                         "updatedTime": "2026-01-17T09:45:00Z"}}));
        let text = screen("q", &[running], Timestamp::UNIX_EPOCH);
        let cells: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells[..4], ["web01-3fa9c1d2", "web01.ova", "Converting", "42%"]);
        assert_eq!(cells[cells.len() - 4..], ["-", "2", "node1", "-"]);
        let volumes = json!([{"claimName": "web01-disk-0"}, {"claimName": "web01-disk-1"}]);
        let on_claims = conversion(&json!({"phase": "Converting", "volumes": volumes}));
        let text = screen("q", &[on_claims], Timestamp::UNIX_EPOCH);
        assert!(text.contains("TARGET") && text.contains("web01-disk-0 +1"), "{text}");
    }
}
