// SPDX-License-Identifier: Apache-2.0
//! What the watcher writes of a conversion: its object, and its part of the status.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::api::owners::Writer;
use crate::cluster::api::{
    ConditionState, ConditionType, ConversionJob, ConversionJobSpec, ConversionOverrides, HyperConversion, Output,
    ProgressReport, QueueRef, Source, set_by, set_condition,
};
use crate::cluster::names;
use crate::conversion::machine::Machine;
use crate::conversion::{ConversionStatus, Metadata, Stage, TraceId};
use crate::executor::Submission;
use crate::ledger::ConversionRow;

/// Longest text of `spec.duplicateOf` and `status.duplicateOf`.
const MAX_DUPLICATE_OF: usize = 253;

/// Most bytes of all machines but the first in a status: an object of etcd has 1.5 MiB.
const MAX_OTHER_MACHINES: usize = 128 << 10;

/// What the watcher reports in a status.
#[derive(Debug, Default)]
pub(super) struct WatcherStatus<'a> {
    pub staged: u32,
    pub conditions: Vec<(ConditionType, ConditionState)>,
    /// How it ended, if the watcher decided or carried out the end.
    pub end: Option<&'a ConversionStatus>,
    pub trace: Option<TraceId>,
    pub fields: EndFields,
}

/// What is known of a conversion once its files are in their final place; missing values are null.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndFields {
    pub outputs: Value,
    pub machine: Value,
    pub other_machines: Value,
    pub progress: Value,
    pub source_location: Option<String>,
    pub duplicate_of: Option<String>,
    pub duration: Option<String>,
}

impl WatcherStatus<'_> {
    /// The server-side apply that reports it on this version of the object.
    pub(super) fn patch(self, object: &ConversionJob) -> Value {
        let generation = object.meta().generation;
        let mut conditions = object.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let kinds: Vec<_> = self.conditions.iter().map(|(kind, _)| kind.as_str()).collect();
        for (kind, state) in self.conditions {
            set_condition(&mut conditions, kind, state, generation, Timestamp::now());
        }
        // What is not reported now is removed: a stall, for example, when the next attempt is staged.
        conditions.retain(|condition| kinds.contains(&condition.type_.as_str()));
        let conditions = set_by(&conditions, ConditionType::OF_CONVERSION, Writer::Watcher);
        let mut status = json!({"staged": self.staged, "conditions": conditions});
        let fields = status.as_object_mut().expect("written as an object above");
        if let Some(state) = self.end {
            fields.insert("end".into(), json!(state.end));
            fields.insert("failure".into(), json!(state.failure));
            fields.insert("completionTime".into(), json!(state.completion_time));
        }
        if let Value::Object(at_end) = json!(self.fields) {
            fields.extend(at_end);
        }
        fields.insert("traceID".into(), json!(self.trace.map(|trace| trace.to_string())));
        fields.retain(|_, value| !value.is_null());
        json!({
            "apiVersion": ConversionJob::api_version(&()),
            "kind": ConversionJob::kind(&()),
            "metadata": {
                "name": object.name_any(),
                "namespace": object.namespace(),
                "uid": object.uid(),
                "resourceVersion": object.resource_version(),
            },
            "status": status,
        })
    }
}

/// The condition `Succeeded` before the end.
pub(super) fn in_progress(message: impl Into<String>) -> (ConditionType, ConditionState) {
    (ConditionType::Succeeded, ConditionState::new("Unknown", "InProgress", message))
}

/// The object for a claim.
pub(super) fn object(queue: &HyperConversion, submission: &Submission) -> ConversionJob {
    let claim = &submission.claim;
    let path = match claim.origin.as_str() {
        "" => claim.entry_name().to_owned(),
        origin => format!("{origin}/{}", claim.entry_name()),
    };
    // What a folder holds belongs to it.
    let of_file = if claim.folder.is_some() { &[][..] } else { &claim.members };
    let companions = of_file.iter().map(|member| member.name.clone()).filter(|name| *name != claim.primary);
    let spec = ConversionJobSpec {
        queue_ref: QueueRef { name: queue.name_any() },
        source: Source {
            path,
            companions: companions.collect(),
            size_bytes: Some(claim.size_bytes()),
            complete_by: claim.complete_by,
        },
        conversion: ConversionOverrides::default(),
        target: None,
        virtual_machine: None,
        duplicate_of: submission.duplicate_of.as_deref().map(original).unwrap_or_default(),
    };
    let mut object = ConversionJob::new(claim.id.as_str(), spec);
    object.metadata = ObjectMeta {
        namespace: queue.namespace(),
        labels: Some(BTreeMap::from([(names::LABEL_QUEUE.to_owned(), queue.name_any())])),
        owner_references: queue.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..object.metadata
    };
    object
}

/// What a conversion repeats, cut to the length that its object holds: names and paths may be longer.
pub(super) fn original(duplicate_of: &str) -> String {
    duplicate_of[..duplicate_of.floor_char_boundary(MAX_DUPLICATE_OF)].to_owned()
}

/// The published directory, below the output's.
pub(super) fn published(row: &ConversionRow, output_dir: &Path) -> Option<String> {
    let path = Path::new(row.output_path.as_ref()?);
    Some(path.strip_prefix(output_dir).unwrap_or(path).to_string_lossy().into_owned())
}

/// The published disks, as the status lists them.
pub(super) fn outputs(directory: Option<String>, metadata: Option<&Metadata>) -> Value {
    let (Some(directory), Some(metadata)) = (directory, metadata) else { return Value::Null };
    let files = metadata.disks.iter().filter(|disk| disk.target.is_none());
    let disks = files.map(|disk| {
        json!({
            "path": format!("{directory}/{}", disk.file),
            "format": disk.format,
            "virtualSizeBytes": disk.virtual_size_bytes,
            "allocatedBytes": disk.allocated_bytes,
            "sha256": disk.sha256,
        })
    });
    Value::Array(disks.map(without_nulls).collect())
}

/// The outputs of the conversion that a duplicate repeats, where its object is among `all`. `duplicate_of` ends with the
/// directory of its disks, below `output_dir`.
pub(super) fn outputs_of<'a>(
    duplicate_of: &str,
    output_dir: &Path,
    all: impl IntoIterator<Item = &'a ConversionJob>,
) -> Value {
    let is_original = |outputs: &[Output]| {
        let directory = outputs.first().and_then(|output| Path::new(&output.path).parent());
        directory.is_some_and(|dir| duplicate_of.ends_with(&format!(" in {}", output_dir.join(dir).display())))
    };
    let mut published = all.into_iter().filter_map(|object| Some(&object.status.as_ref()?.outputs));
    published.find(|outputs| is_original(outputs)).map_or(Value::Null, |outputs| json!(outputs))
}

/// The machine of the published disks; of several, the first.
pub(super) fn machine(metadata: Option<&Metadata>) -> Value {
    metadata.and_then(|metadata| metadata.machines.first()).map_or(Value::Null, |machine| json!(machine))
}

/// The machines after the first. Of those that would make the object too large, a name, and a doubt that says where the
/// rest is.
pub(super) fn other_machines(metadata: Option<&Metadata>) -> Value {
    let others = metadata.and_then(|metadata| metadata.machines.get(1..)).filter(|others| !others.is_empty());
    let Some(others) = others else { return Value::Null };
    let mut left = MAX_OTHER_MACHINES;
    let told = others.iter().map(|machine| {
        let whole = json!(machine);
        match left.checked_sub(whole.to_string().len()) {
            Some(rest) => {
                left = rest;
                whole
            }
            None => json!(Machine {
                described_by: machine.described_by,
                name: machine.name.clone(),
                doubts: vec!["it is too large to be told here: metadata.json has it".to_owned()],
                ..Machine::default()
            }),
        }
    });
    told.collect()
}

/// The progress of a conversion that has finished: its last step may have been too quick to be seen.
pub(super) fn completed(metadata: Option<&Metadata>) -> Value {
    let Some(metadata) = metadata else { return Value::Null };
    let bytes = metadata.disks.iter().map(|disk| disk.virtual_size_bytes).fold(0, u64::saturating_add);
    let bytes = bytes.min(i64::MAX.unsigned_abs());
    json!(ProgressReport {
        percent: 100,
        stage: Stage::Report,
        bytes_done: bytes,
        bytes_total: bytes,
        updated_time: metadata.end_time,
    })
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    value
}

/// From the first attempt's start to the end, such as `2m5s`.
pub(super) fn duration(state: &ConversionStatus) -> Option<String> {
    let seconds = state.completion_time?.duration_since(state.start_time?).as_secs().max(0);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::api::owners::tests::{OF_CONVERSION, assert_whole};
    use crate::conversion::status::End;
    use crate::conversion::{Failure, Reason};

    #[test]
    fn a_duplicate_has_the_outputs_of_what_it_repeats() {
        let object = |name: &str, directory: &str| -> ConversionJob {
            let outputs = json!([{"path": format!("{directory}/disk.qcow2"), "format": "qcow2", "virtualSizeBytes": 1, "allocatedBytes": 1}]);
            serde_json::from_value(json!({
                "metadata": {"name": name}, "status": {"outputs": outputs},
                "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.raw"}},
            }))
            .unwrap()
        };
        let all = [object("a-00000001", "2026-01-17/web"), object("b-00000002", "2026-01-17/web01")];
        let of = |text: &str| outputs_of(text, Path::new("/out"), &all)[0]["path"].clone();
        assert_eq!(of("web01.ova of 2026-01-17T09:45:00Z in /out/2026-01-17/web01"), "2026-01-17/web01/disk.qcow2");
        assert_eq!(of("web01.ova of 2026-01-17T09:45:00Z in /out/2026-01-17/web0"), Value::Null, "pruned");
    }

    #[test]
    fn a_patch_of_the_watcher_applies_its_own_fields_and_all_of_them() {
        let object: ConversionJob = serde_json::from_value(json!({
            "metadata": {"name": "a-00000001", "generation": 1},
            "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.raw"}},
            "status": {"phase": "Publishing", "attemptCount": 1, "conditions": [{
                "type": "Admitted", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-17T09:00:00Z",
            }]},
        }))
        .unwrap();
        let ended = ConversionStatus {
            end: Some(End::Failed),
            failure: Some(Failure::new(Reason::Corrupt, "m")),
            completion_time: Some(Timestamp::UNIX_EPOCH),
            start_time: Some(Timestamp::UNIX_EPOCH),
            ..ConversionStatus::default()
        };
        let state = || ConditionState::new("False", "R", "m");
        let own = ConditionType::OF_CONVERSION.iter().filter(|kind| kind.writer() == Writer::Watcher);
        let status = WatcherStatus {
            staged: 1,
            conditions: own.map(|kind| (*kind, state())).collect(),
            end: Some(&ended),
            trace: Some(TraceId([7; 16])),
            fields: EndFields {
                outputs: json!([]),
                machine: json!({}),
                other_machines: json!([]),
                progress: json!({}),
                source_location: Some("a.raw".to_owned()),
                duplicate_of: Some("b.raw".to_owned()),
                duration: Some("1s".to_owned()),
            },
        };
        let status = &status.patch(&object)["status"];
        assert_whole(status, &OF_CONVERSION, ConditionType::OF_CONVERSION, Writer::Watcher);
    }
}
