// SPDX-License-Identifier: Apache-2.0
//! Who writes which part of a status.
//!
//! Each process applies its own fields by server-side apply, under a field manager of its own. The watcher applies
//! `progress` under a second one while an attempt runs, because it is written more often than everything else. It merges
//! `supersededBy` into a status that has ended: nothing else of that is written any more.
//!
//! | `ConversionJob` | controller | watcher |
//! |---|---|---|
//! | `observedGeneration`, `phase`, `attempts`, `earlierAttempts`, `attemptCount`, `nextRetryTime`, `converted`, `startTime` | ✓ | |
//! | `staged`, `progress`, `outputs`, `machine`, `otherMachines`, `sourceLocation`, `duplicateOf`, `duration`, `traceID` | | ✓ |
//! | `target`, `volumes`, `virtualMachine`, `otherVirtualMachines`, `guest` | ✓ | |
//! | `plan`, under a third manager | | ✓ |
//! | `failure`, `end`, `completionTime` | ✓ | ✓ |
//! | conditions `Admitted`, `Planned`, `TargetReady`, `MachineCreated`, `Converted`, `GuestFixed`, `BootChecked`, `Reconciling`, `Stalled`, `Complete`, `Failed` | ✓ | |
//! | conditions `Published`, `Progressing`, `Succeeded` | | ✓ |
//!
//! | `HyperConversion` | controller | watcher |
//! |---|---|---|
//! | `observedGeneration` | ✓ | |
//! | `queued`, `settling`, `retrying`, `active`, `totals`, `lastActivityTime` | | ✓ |
//! | conditions `Ready`, `WatcherAvailable`, `Reconciled`, `Admitting` | ✓ | |
//! | conditions `StorageReady`, `NotificationsReady`, `Drained`, `Stopped` | | ✓ |
//!
//! Three fields have two writers, because both may end a conversion: the controller by an attempt that failed for good,
//! the watcher by publishing, by cancelling or as a duplicate. That is sound because
//! - both compute them by [`crate::conversion::lifecycle::advance`] from the status that they read, and send its resource
//!   version: a writer that decided on an older status is refused, reads again and decides anew;
//! - these fields of a status that has ended never change again, so a later writer applies the same values;
//! - the watcher applies them only together with the end.

/// Who applies a part of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Controller,
    Watcher,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::Writer::{self, Controller, Watcher};
    use crate::cluster::api::{ConditionType, crds};

    /// Fields of a `ConversionJob`'s status but its conditions, and who applies each.
    pub(crate) const OF_CONVERSION: [(&str, &[Writer]); 27] = [
        ("observedGeneration", &[Controller]),
        ("phase", &[Controller]),
        ("attempts", &[Controller]),
        ("earlierAttempts", &[Controller]),
        ("attemptCount", &[Controller]),
        ("nextRetryTime", &[Controller]),
        ("converted", &[Controller]),
        ("startTime", &[Controller]),
        ("staged", &[Watcher]),
        ("outputs", &[Watcher]),
        ("machine", &[Watcher]),
        ("otherMachines", &[Watcher]),
        ("sourceLocation", &[Watcher]),
        ("duplicateOf", &[Watcher]),
        ("duration", &[Watcher]),
        ("traceID", &[Watcher]),
        ("failure", &[Controller, Watcher]),
        ("end", &[Controller, Watcher]),
        ("completionTime", &[Controller, Watcher]),
        ("progress", &[Watcher]),
        ("target", &[Controller]),
        ("volumes", &[Controller]),
        ("virtualMachine", &[Controller]),
        ("guest", &[Controller]),
        ("otherVirtualMachines", &[Controller]),
        // Applied by itself, once.
        ("plan", &[]),
        // Merged by itself, after the end.
        ("supersededBy", &[]),
    ];

    /// The same of a `HyperConversion`'s status.
    pub(crate) const OF_QUEUE: [(&str, &[Writer]); 7] = [
        ("observedGeneration", &[Controller]),
        ("queued", &[Watcher]),
        ("settling", &[Watcher]),
        ("retrying", &[Watcher]),
        ("active", &[Watcher]),
        ("totals", &[Watcher]),
        ("lastActivityTime", &[Watcher]),
    ];

    /// Fails unless `status`, a patch in which every field is set, has exactly the fields and conditions of this
    /// writer.
    #[track_caller]
    pub(crate) fn assert_whole(
        status: &Value,
        table: &[(&str, &[Writer])],
        conditions: &[ConditionType],
        writer: Writer,
    ) {
        let fields: BTreeSet<_> = status.as_object().unwrap().keys().map(String::as_str).collect();
        let mut owned: BTreeSet<_> =
            table.iter().filter(|(_, writers)| writers.contains(&writer)).map(|(field, _)| *field).collect();
        owned.insert("conditions");
        assert_eq!(fields, owned);
        let set: Vec<_> =
            status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
        let owned: Vec<_> =
            conditions.iter().filter(|kind| kind.writer() == writer).map(|kind| kind.as_str()).collect();
        assert_eq!(set, owned);
    }

    #[test]
    fn every_field_and_every_condition_of_a_status_has_an_owner() {
        let fields: [&[(&str, &[Writer])]; 2] = [&OF_QUEUE, &OF_CONVERSION];
        let conditions = [ConditionType::OF_QUEUE, ConditionType::OF_CONVERSION];
        for ((crd, table), conditions) in crds().iter().zip(fields).zip(conditions) {
            let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
            let mut fields: BTreeSet<_> = status.as_object().unwrap().keys().map(String::as_str).collect();
            assert!(fields.remove("conditions"));
            assert_eq!(fields, table.iter().map(|(field, _)| *field).collect());
            let documented = status["conditions"]["description"].as_str().unwrap_or_default();
            for condition in conditions {
                assert!(documented.contains(condition.as_str()), "{condition:?} in {documented:?}");
            }
        }
    }
}
