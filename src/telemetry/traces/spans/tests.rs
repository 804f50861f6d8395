// SPDX-License-Identifier: Apache-2.0
//! The spans of conversions that ended in each way.

use super::*;
use crate::conversion::report::{SourceReport, StageReport};
use crate::conversion::{Attempt, ConversionId, Failure, Reason, Stage, Witness};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_768_651_200 + second).unwrap()
}

fn claim() -> Claim {
    Claim {
        contract_version: 1,
        id: ConversionId::for_file("web01.ova", 7),
        queue_uid: String::new(),
        origin: String::new(),
        folder: None,
        disks: Vec::new(),
        primary: "web01.ova".to_owned(),
        members: Vec::new(),
        claimed_at: at(3),
        seen_at: Some(at(0)),
        complete_by: Some(Witness::Writer),
        beginning: None,
        fingerprint: None,
        emit: None,
        date: "2026-01-17".to_owned(),
    }
}

fn attempt(number: u32, start: i64, end: i64, reason: Option<Reason>) -> AttemptRecord {
    AttemptRecord {
        number: Attempt(number),
        kind: None,
        job_name: None,
        job_uid: None,
        pod_name: Some(format!("pod-{number}")),
        node_name: None,
        start_time: Some(at(start)),
        end_time: Some(at(end)),
        reason,
    }
}

fn report(stages: &[(Stage, i64)], end: i64) -> Metadata {
    let stages = stages.iter().map(|(stage, start)| StageReport { stage: *stage, start_time: at(*start) });
    Metadata {
        contract_version: 2,
        id: "web01-00000007".to_owned(),
        tool_version: String::new(),
        start_time: at(0),
        end_time: at(end),
        duration_ms: 0,
        source: SourceReport { name: String::new(), size_bytes: 0, format: "ova".to_owned(), sha256: None },
        disks: Vec::new(),
        hardware: None,
        machines: Vec::new(),
        guest: None,
        stages: stages.collect(),
        side_files: Vec::new(),
        warnings: Vec::new(),
        superseded_by: None,
        source_changed_at: None,
    }
}

/// Name, start and end in seconds of each span.
fn times(spans: &[SpanData]) -> Vec<(String, i64, i64)> {
    let second = |time| Timestamp::try_from(time).unwrap().as_second() - at(0).as_second();
    spans.iter().map(|span| (span.name.to_string(), second(span.start_time), second(span.end_time))).collect()
}

#[test]
fn a_success_after_a_failure_shows_what_it_waited_for() {
    let claim = claim();
    let attempts = vec![attempt(1, 4, 6, Some(Reason::Killed)), attempt(2, 16, 20, None)];
    let status = ConversionStatus { attempts, ..ConversionStatus::default() };
    let report = report(&[(Stage::Inspect, 16), (Stage::Copy, 17), (Stage::Verify, 19)], 20);
    let ended = Ended { claim: &claim, status: &status, end: End::Succeeded, metadata: Some(&report), at: at(21) };
    let spans = ended.spans();
    let expected = [
        ("conversion", 0, 21),
        ("settle", 0, 3),
        ("wait", 3, 4),
        ("attempt", 4, 6),
        ("wait", 6, 16),
        ("attempt", 16, 20),
        ("inspect", 16, 17),
        ("copy", 17, 19),
        ("verify", 19, 20),
        ("publish", 20, 21),
    ];
    assert_eq!(times(&spans), expected.map(|(name, from, to)| (name.to_owned(), from, to)));
    assert_eq!(spans[3].status, Status::error("Killed"));
    let ids: Vec<_> = spans.iter().map(|span| span.span_context.span_id()).collect();
    let parents: Vec<_> = spans.iter().map(|span| span.parent_span_id).collect();
    let (root, second) = (ids[0], ids[5]);
    let expected = [SpanId::INVALID, root, root, root, root, root, second, second, second, root];
    assert_eq!(parents, expected);
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len(), "every span has its own id");
    let trace = TraceId::of(&claim).to_string();
    assert!(spans.iter().all(|span| span.span_context.trace_id().to_string() == trace));
    assert_eq!(spans, ended.spans(), "sent again, they are the same spans");
}

#[test]
fn a_failure_says_why_and_publishes_nothing() {
    let claim = Claim { seen_at: None, ..claim() };
    let failure = Failure::new(Reason::Corrupt, "web01.ova: bad magic");
    let attempts = vec![attempt(1, 4, 2, Some(Reason::Corrupt))];
    let status = ConversionStatus { attempts, failure: Some(failure), ..ConversionStatus::default() };
    let ended = Ended { claim: &claim, status: &status, end: End::Failed, metadata: None, at: at(7) };
    let spans = ended.spans();
    // The clock that said when the attempt ended was behind.
    let expected = [("conversion", 3, 7), ("wait", 3, 4), ("attempt", 4, 4)];
    assert_eq!(times(&spans), expected.map(|(name, from, to)| (name.to_owned(), from, to)));
    assert_eq!(spans[0].status, Status::error("web01.ova: bad magic"));
    assert!(spans[0].attributes.contains(&text("error.type", "Corrupt")));
    assert!(spans[0].attributes.contains(&text("hyper2kvm.outcome", "failed")));
}
