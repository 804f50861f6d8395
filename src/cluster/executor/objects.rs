//! What is written of a conversion: its object, and what the watcher says in its status.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::api::{
    ConversionJob, ConversionJobSpec, ConversionOverrides, HyperConversion, ProgressReport, QueueRef, STALLED, Source,
    condition, set_condition,
};
use crate::cluster::names;
use crate::conversion::{ConversionStatus, Metadata, Stage};
use crate::executor::Submission;
use crate::ledger::ConversionRow;

/// Longest text of `spec.duplicateOf` and `status.duplicateOf`.
const MAX_DUPLICATE_OF: usize = 253;

/// Conditions that the watcher owns.
const OURS: [&str; 3] = ["Published", STALLED, "Succeeded"];

/// What the watcher says in a status.
#[derive(Debug, Default)]
pub struct Said<'a> {
    pub staged: u32,
    /// Condition, status, reason, message.
    pub conditions: Vec<(&'static str, &'static str, String, String)>,
    /// How it ended, where the watcher decided that or carried it out.
    pub end: Option<&'a ConversionStatus>,
    /// Further fields, for the end.
    pub fields: BTreeMap<&'static str, Value>,
}

impl Said<'_> {
    /// The status apply that says it of this version.
    pub fn patch(self, object: &ConversionJob) -> Value {
        let generation = object.meta().generation;
        let mut conditions = object.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let kinds: Vec<_> = self.conditions.iter().map(|(kind, ..)| *kind).collect();
        for (kind, status, reason, message) in self.conditions {
            set_condition(&mut conditions, kind, status, &reason, message, generation, Timestamp::now());
        }
        let ours: Vec<_> =
            OURS.iter().filter(|kind| kinds.contains(kind)).filter_map(|kind| condition(&conditions, kind)).collect();
        let mut status = json!({"staged": self.staged, "conditions": ours});
        let fields = status.as_object_mut().expect("written as an object above");
        if let Some(state) = self.end {
            fields.insert("end".into(), json!(state.end));
            fields.insert("failure".into(), json!(state.failure));
            fields.insert("completionTime".into(), json!(state.completion_time));
        }
        fields.extend(self.fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
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

/// The object that stands for a claim.
pub fn object(queue: &HyperConversion, submission: &Submission) -> ConversionJob {
    let claim = &submission.claim;
    let path = match claim.origin.as_str() {
        "" => claim.primary.clone(),
        origin => format!("{origin}/{}", claim.primary),
    };
    let companions = claim.members.iter().map(|member| member.name.clone()).filter(|name| *name != claim.primary);
    let spec = ConversionJobSpec {
        queue_ref: QueueRef { name: queue.name_any() },
        source: Source { path, companions: companions.collect(), size_bytes: Some(claim.size_bytes()) },
        conversion: ConversionOverrides::default(),
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

/// What a conversion repeats, cut to what its object holds: names and paths may be longer.
pub fn original(duplicate_of: &str) -> String {
    duplicate_of[..duplicate_of.floor_char_boundary(MAX_DUPLICATE_OF)].to_owned()
}

/// The published directory, below the output's.
pub fn published(row: &ConversionRow, output_dir: &Path) -> Option<String> {
    let path = Path::new(row.output_path.as_ref()?);
    Some(path.strip_prefix(output_dir).unwrap_or(path).to_string_lossy().into_owned())
}

/// The published disks, as the status lists them.
pub fn outputs(directory: Option<String>, metadata: Option<&Metadata>) -> Value {
    let (Some(directory), Some(metadata)) = (directory, metadata) else { return Value::Null };
    let disks = metadata.disks.iter().map(|disk| {
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

/// The progress of a conversion that is through: its last step may have been too quick to be seen.
pub fn completed(metadata: Option<&Metadata>) -> Value {
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
pub fn duration(state: &ConversionStatus) -> Option<String> {
    let seconds = state.completion_time?.duration_since(state.start_time?).as_secs().max(0);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    })
}
