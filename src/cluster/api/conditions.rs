// SPDX-License-Identifier: Apache-2.0
//! Conditions: a list that merges by type, in metav1's own form and limits.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::owners::Writer;

/// Schema of a condition list: keyed by type, so that each writer applies its own conditions alone.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What is known about the object, one entry per type; see each message for what to do next.",
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "description": "One thing known about the object.",
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {
                    "description": "What is said, such as Ready or Succeeded.",
                    "type": "string",
                    "maxLength": 316,
                    "pattern": "^[A-Za-z]([A-Za-z0-9]*)$",
                },
                "status": {
                    "description": "Whether it holds; Unknown while it is open.",
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                },
                "reason": {
                    "description": "Why, in one word for programs.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {
                    "description": "Why, for a person, with what to do next.",
                    "type": "string",
                    "maxLength": 32768,
                },
                "lastTransitionTime": {
                    "description": "When status last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "observedGeneration": {
                    "description": "Generation of the spec that this was said of.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
            },
        },
    })
}

macro_rules! condition_types {
    ($($list:ident: [$($(#[$about:meta])* $name:ident by $writer:ident),* $(,)?]),* $(,)?) => {
        /// What a condition is about. The name of the variant is the condition's type in the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ConditionType {
            $($($(#[$about])* $name,)*)*
        }

        impl ConditionType {
            $(pub(crate) const $list: &[Self] = &[$(Self::$name),*];)*

            /// As conditions and their readers spell it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$name => stringify!($name),)*)*
                }
            }

            /// The process that sets it.
            pub(crate) const fn writer(self) -> Writer {
                match self {
                    $($(Self::$name => Writer::$writer,)*)*
                }
            }
        }
    };
}

condition_types! {
    OF_QUEUE: [
        /// Whether the queue is watched.
        Ready by Controller,
        /// Whether the watcher works.
        WatcherAvailable by Controller,
        /// Said only while the controller can't look at the queue, which then works on as it did.
        Reconciled by Controller,
        /// Said only while the API server refuses the Jobs of attempts, and why.
        Admitting by Controller,
        /// Whether both volumes can do what is asked of them.
        StorageReady by Watcher,
        /// Whether every channel can be used as it is asked for.
        NotificationsReady by Watcher,
        /// Whether a queue that drains is empty.
        Drained by Watcher,
        /// Whether a queue that is stopped needs its watcher no more.
        Stopped by Watcher,
    ],
    OF_CONVERSION: [
        /// Whether an attempt may start, and why not.
        Admitted by Controller,
        /// Whether the source's headers were read, for the claims; only with a target.
        Planned by Controller,
        /// Whether the claims are there and hold the disks, and why not; only with a target.
        TargetReady by Controller,
        /// Whether the machine was made, and why not; only with a target.
        MachineCreated by Controller,
        /// Whether an attempt succeeded: Unknown while one may.
        Converted by Controller,
        /// Whether the guest is ready for virtio, and why not; only where it was to be made so.
        GuestFixed by Controller,
        /// Whether the guest booted when that was tried, and why not.
        BootChecked by Controller,
        /// Whether the output stands under its final name.
        Published by Watcher,
        /// False while the running attempt makes no progress. The watcher decides that, the controller ends the attempt.
        Progressing by Watcher,
        /// How the conversion ended: Unknown before.
        Succeeded by Watcher,
        /// Said only until the end.
        Reconciling by Controller,
        /// Said only of a conversion that failed for good: kstatus calls that failed.
        Stalled by Controller,
        /// Said only of a conversion that succeeded, or was a duplicate.
        Complete by Controller,
        /// Said only of a conversion that failed for good, or was cancelled.
        Failed by Controller,
    ],
}

impl AsRef<str> for ConditionType {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    pub status: &'static str,
    pub reason: String,
    pub message: String,
}

impl ConditionState {
    pub fn new(status: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), message: message.into() }
    }
}

/// The condition of this type, if it was ever set.
#[must_use]
pub fn condition(conditions: &[Condition], kind: impl AsRef<str>) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == kind.as_ref())
}

/// The conditions of a list that are this writer's.
pub(crate) fn set_by<'a>(conditions: &'a [Condition], kinds: &[ConditionType], writer: Writer) -> Vec<&'a Condition> {
    let own = kinds.iter().filter(|kind| kind.writer() == writer);
    own.filter_map(|kind| condition(conditions, kind)).collect()
}

/// Sets a condition; its transition time moves only when its status does.
pub(crate) fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    state: ConditionState,
    generation: Option<i64>,
    now: Timestamp,
) {
    let ConditionState { status, reason, message } = state;
    let since = condition(conditions, kind).filter(|c| c.status == status).map(|c| c.last_transition_time.clone());
    let set = Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason,
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind.as_str()) {
        Some(held) => *held = set,
        None => conditions.push(set),
    }
}
