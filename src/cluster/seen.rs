// SPDX-License-Identifier: Apache-2.0
//! The parts of Kubernetes' own objects that are read. The others are not kept, and most of their types are not even
//! compiled in. Objects that the operator makes are built from the whole types.

use std::borrow::Cow;

use k8s_openapi::api::{apps, batch, coordination, core};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;

pub(crate) use core::v1::{ContainerState, ContainerStateTerminated, PodCondition};

/// Defines an object of this name with these parts, requested like the whole type.
macro_rules! seen {
    ($(#[$about:meta])* $name:ident of $whole:ty { $($field:ident: $part:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(crate) struct $name {
            pub metadata: ObjectMeta,
            $(pub $field: Option<$part>,)*
        }

        impl Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                <$whole as Resource>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$whole as Resource>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$whole as Resource>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$whole as Resource>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

/// Defines a part of an object, with the fields that are read.
macro_rules! part {
    ($(#[$about:meta])* $name:ident { $($field:ident: $part:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(crate) struct $name {
            $(pub $field: Option<$part>,)*
        }
    };
}

seen!(
    /// A pod: a worker's or a watcher's.
    Pod of core::v1::Pod { spec: PodSpec, status: PodStatus }
);
part!(
    /// Where a pod runs.
    PodSpec { node_name: String }
);
seen!(
    /// A pod and the labels that its processes get.
    LabelledPod of core::v1::Pod { spec: LabelledSpec }
);
part!(
    /// As whom a pod runs.
    LabelledSpec { security_context: core::v1::PodSecurityContext }
);
part!(
    /// How far a pod is.
    PodStatus {
        phase: String,
        reason: String,
        message: String,
        conditions: Vec<PodCondition>,
        init_container_statuses: Vec<ContainerStatus>,
        container_statuses: Vec<ContainerStatus>,
    }
);
part!(
    /// How far a container is, and how it ended before it was started again.
    ContainerStatus { name: String, state: ContainerState, last_state: ContainerState }
);

seen!(
    /// The batch Job of an attempt.
    Job of batch::v1::Job { spec: JobSpec, status: JobStatus }
);
part!(
    /// Whether a Job waits to be admitted.
    JobSpec { suspend: bool }
);
part!(
    /// What became of a Job.
    JobStatus { conditions: Vec<batch::v1::JobCondition> }
);

seen!(
    /// The `StatefulSet` of a watcher.
    StatefulSet of apps::v1::StatefulSet { status: StatefulSetStatus }
);
part!(
    /// Whether its pod is ready.
    StatefulSetStatus { observed_generation: i64, ready_replicas: i32, updated_replicas: i32 }
);

seen!(
    /// A claim of a queue or of a disk.
    PersistentVolumeClaim of core::v1::PersistentVolumeClaim {
        spec: PersistentVolumeClaimSpec,
        status: PersistentVolumeClaimStatus,
    }
);
part!(
    /// Whether a claim has its volume.
    PersistentVolumeClaimStatus { phase: String }
);
part!(
    /// How a claim may be mounted.
    PersistentVolumeClaimSpec { access_modes: Vec<String>, volume_mode: String }
);

seen!(
    /// What is reported of a pod or a Job that doesn't start.
    Event of core::v1::Event {
        involved_object: core::v1::ObjectReference,
        reason: String,
        message: String,
        last_timestamp: Time,
    }
);

seen!(
    /// What decides which replica leads.
    Lease of coordination::v1::Lease { spec: LeaseSpec }
);
part!(
    /// Who holds a lease, and how long.
    LeaseSpec {
        holder_identity: String,
        renew_time: String,
        lease_duration_seconds: i64,
        lease_transitions: i64,
    }
);
