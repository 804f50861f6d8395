// SPDX-License-Identifier: Apache-2.0
//! The spans of one conversion, of what is recorded about it.

use std::borrow::Cow;
use std::time::SystemTime;

use jiff::Timestamp;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::conversion::status::End;
use crate::conversion::{AttemptKind, AttemptRecord, Claim, ConversionStatus, Metadata, TraceId};

/// A conversion that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub claim: &'a Claim,
    pub status: &'a ConversionStatus,
    pub end: End,
    /// What was published, if anything was.
    pub metadata: Option<&'a Metadata>,
    pub at: Timestamp,
}

/// One span before it has its context.
struct Part {
    name: Cow<'static, str>,
    /// Distinguishes it from the others of the trace.
    key: String,
    from: Timestamp,
    to: Timestamp,
    attributes: Vec<KeyValue>,
    status: Status,
}

impl Part {
    fn new(name: impl Into<Cow<'static, str>>, key: impl Into<String>, from: Timestamp, to: Timestamp) -> Self {
        Self { name: name.into(), key: key.into(), from, to, attributes: Vec::new(), status: Status::Unset }
    }
}

/// The key of the span that all others lie in.
const ROOT: &str = "conversion";

impl Ended<'_> {
    /// The span of the conversion, then those within it in the order of their starts.
    pub(super) fn spans(&self) -> Vec<SpanData> {
        let trace = TraceId::of(self.claim);
        let mut spans = vec![span(trace, None, self.root())];
        let inside = |part| span(trace, Some(ROOT), part);
        let claimed = self.claim.claimed_at;
        if let Some(seen) = self.claim.seen_at {
            spans.push(inside(self.settle(seen)));
        }
        let mut free = claimed;
        for attempt in &self.status.attempts {
            let Some(start) = attempt.start_time else { continue };
            let number = attempt.number.0;
            spans.push(inside(Part::new("wait", format!("wait {number}"), free, start)));
            let end = attempt.end_time.unwrap_or(self.at);
            spans.push(inside(of_attempt(attempt, start, end)));
            let key = format!("attempt {number}");
            let succeeded = attempt.end_time.is_some() && attempt.reason.is_none() && attempt.kind.is_none();
            let stages = self.metadata.filter(|_| succeeded).map(stages).unwrap_or_default();
            spans.extend(stages.into_iter().map(|stage| span(trace, Some(&key), stage)));
            free = end;
        }
        if self.end == End::Succeeded {
            spans.push(inside(Part::new("publish", "publish", free, self.at)));
        }
        spans
    }

    fn root(&self) -> Part {
        let from = self.claim.seen_at.unwrap_or(self.claim.claimed_at);
        let mut root = Part::new(ROOT, ROOT, from, self.at);
        root.attributes = vec![
            text("hyper2kvm.conversion", self.claim.id.as_str()),
            text("hyper2kvm.source", self.claim.entry_name()),
            number("hyper2kvm.source.bytes", self.claim.size_bytes()),
            text("hyper2kvm.outcome", format!("{:?}", self.end).to_lowercase()),
        ];
        if let Some(metadata) = self.metadata {
            let guest = metadata.disks.iter().map(|disk| disk.virtual_size_bytes).fold(0, u64::saturating_add);
            root.attributes.extend([
                text("hyper2kvm.source.format", &metadata.source.format),
                number("hyper2kvm.disks", metadata.disks.len() as u64),
                number("hyper2kvm.guest.bytes", guest),
            ]);
        }
        if let (End::Failed, Some(failure)) = (self.end, &self.status.failure) {
            root.attributes.push(text("error.type", failure.reason.to_string()));
            root.status = Status::error(failure.message.clone());
        }
        root
    }

    fn settle(&self, seen: Timestamp) -> Part {
        let mut settle = Part::new("settle", "settle", seen, self.claim.claimed_at);
        settle.attributes.extend(self.claim.complete_by.map(|by| text("hyper2kvm.complete_by", by.to_string())));
        settle
    }
}

fn of_attempt(attempt: &AttemptRecord, start: Timestamp, end: Timestamp) -> Part {
    let name = match attempt.kind {
        Some(AttemptKind::Plan) => "plan",
        None => "attempt",
    };
    let mut part = Part::new(name, format!("attempt {}", attempt.number.0), start, end);
    part.attributes.push(number("hyper2kvm.attempt", attempt.number.0.into()));
    part.attributes.extend(attempt.pod_name.iter().map(|pod| text("hyper2kvm.worker", pod)));
    part.attributes.extend(attempt.node_name.iter().map(|node| text("k8s.node.name", node)));
    if let Some(reason) = attempt.reason {
        part.attributes.push(text("error.type", reason.to_string()));
        part.status = Status::error(reason.to_string());
    }
    part
}

/// The worker's stages: each ends where the next begins.
fn stages(metadata: &Metadata) -> Vec<Part> {
    let begun = &metadata.stages;
    let ends = begun.iter().skip(1).map(|next| next.start_time).chain([metadata.end_time]);
    let parts = begun.iter().zip(ends).enumerate();
    parts
        .map(|(n, (stage, end))| Part::new(stage.stage.to_string(), format!("stage {n}"), stage.start_time, end))
        .collect()
}

fn text(key: &'static str, value: impl Into<String>) -> KeyValue {
    KeyValue::new(key, value.into())
}

fn number(key: &'static str, value: u64) -> KeyValue {
    KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX))
}

fn span(trace: TraceId, parent: Option<&str>, part: Part) -> SpanData {
    let id = |key: &str| SpanId::from_bytes(trace.span(key));
    let context = SpanContext::new(
        opentelemetry::TraceId::from_bytes(trace.0),
        id(&part.key),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    SpanData {
        span_context: context,
        parent_span_id: parent.map_or(SpanId::INVALID, id),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: part.name,
        start_time: SystemTime::from(part.from),
        // Clocks of two machines may differ.
        end_time: SystemTime::from(part.to.max(part.from)),
        attributes: part.attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: part.status,
        instrumentation_scope: InstrumentationScope::builder("hyper2kvm")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

#[cfg(test)]
mod tests;
