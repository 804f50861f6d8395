// SPDX-License-Identifier: Apache-2.0
//! Names, labels, mount points and variables that controller, watcher, sidecar and worker agree on.

use std::collections::BTreeMap;

use crate::conversion::{Attempt, ConversionId};

/// Value of `app.kubernetes.io/managed-by` on everything the controller makes.
pub const MANAGED_BY: &str = "hyper2kvm-operator";

pub const LABEL_NAME: &str = "app.kubernetes.io/name";
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Name of the `HyperConversion`.
pub const LABEL_QUEUE: &str = "hyper2kvm.io/queue";
/// Name of the `ConversionJob`.
pub const LABEL_CONVERSION: &str = "hyper2kvm.io/conversion";
/// Number of the attempt.
pub const LABEL_ATTEMPT: &str = "hyper2kvm.io/attempt";
/// Kueue's label for the `LocalQueue` that admits a Job.
pub const LABEL_KUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Digest of the pod template that a Job was made from; a different digest means that the specification has changed
/// since.
pub const ANNOTATION_TEMPLATE: &str = "hyper2kvm.io/template";

/// Whether a claim holds the whole disk that it was made for: `false` or `true`.
pub const LABEL_COMPLETE: &str = "hyper2kvm.io/complete";
/// UID of the `ConversionJob` that a claim or a machine was made for.
pub const ANNOTATION_CONVERSION_UID: &str = "hyper2kvm.io/conversion-uid";
/// Name of the disk that a claim holds.
pub const ANNOTATION_DISK: &str = "hyper2kvm.io/disk";
/// Digest of the same template without its image.
pub const ANNOTATION_SPECIFICATION: &str = "hyper2kvm.io/specification";

pub const COMPONENT_WATCHER: &str = "watcher";
pub const COMPONENT_WORKER: &str = "worker";
/// Claims that hold disks.
pub const COMPONENT_DISK: &str = "disk";

/// Field manager of the controller's writes.
pub const MANAGER_CONTROLLER: &str = "hyper2kvm-controller";
/// Field manager of the watcher's writes.
pub const MANAGER_WATCHER: &str = "hyper2kvm-watcher";
/// Field manager of the progress that the watcher copies: written more often than everything else, and by itself.
pub const MANAGER_PROGRESS: &str = "hyper2kvm-progress";
/// Field manager of the plan that the watcher copies, once.
pub const MANAGER_PLAN: &str = "hyper2kvm-plan";
/// Field manager of what the sidecar writes: `spec.runState` and nothing else.
pub const MANAGER_SIDECAR: &str = "hyper2kvm-sidecar";

/// Where the watcher's pod sees the queue's directory.
pub const QUEUE_DIR: &str = "/var/lib/hyper2kvm/queue";
/// Where the watcher's pod sees the output directory.
pub const OUTPUT_DIR: &str = "/var/lib/hyper2kvm/output";
/// In-memory volume that the watcher and its sidecar share: the snapshot, and the socket where the output's volume
/// refuses one.
pub const RUN_DIR: &str = crate::control::FALLBACK_DIR;
/// Directory below which the watcher finds the Secrets of its notifications.
pub const SECRETS_DIR: &str = "/etc/hyper2kvm";
/// Directory below [`SECRETS_DIR`] with the webhook's URL in the file `url`.
pub const WEBHOOK_DIR: &str = "webhook";
/// The same with one file per webhook header.
pub const WEBHOOK_HEADERS_DIR: &str = "webhook-headers";
/// The same with the files `username` and `password`.
pub const EMAIL_CREDENTIALS_DIR: &str = "email";
/// Directory with further certificates to trust.
pub const TRUSTED_CA_DIR: &str = "/etc/hyper2kvm/trusted-ca";

/// Where a worker sees its claim, read-only.
pub const CLAIM_DIR: &str = "/claim";
/// Where a worker sees its attempt's work directory.
pub const WORK_DIR: &str = "/work";
/// Where a worker finds virtio's drivers for Windows.
pub const VIRTIO_WIN_DIR: &str = "/virtio-win";
/// The kubelet's default path of a container's termination message.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Container that converts.
pub const CONTAINER_WORKER: &str = "worker";
/// Container that moves files.
pub const CONTAINER_WATCHER: &str = "watcher";
/// Native sidecar that answers the control socket.
pub const CONTAINER_SIDECAR: &str = "sidecar";

/// Name of the Lease of a controller that is not told another.
pub const LEASE: &str = "hyper2kvm-operator";

/// Directory below [`SECRETS_DIR`] with further certificates to trust, and the file in it.
pub const TRUSTED_CA: &str = "trusted-ca/ca.crt";

/// Variable with what a release sets for queues that leave it out, as JSON.
pub const VARIABLE_DEFAULTS: &str = "HYPER2KVM_QUEUE_DEFAULTS";

/// Variable with the collector that traces are sent to: OpenTelemetry's own name for it.
pub const VARIABLE_TRACES: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Subcommand by which the kubelet asks whether a watcher works.
pub const COMMAND_PROBE: &str = "probe";

/// Name of the watcher's stateful set, service account, role, role binding and network policy.
#[must_use]
pub fn watcher(queue: &str) -> String {
    format!("{queue}-watcher")
}

/// Name of the workers' network policy.
#[must_use]
pub fn worker_policy(queue: &str) -> String {
    format!("{queue}-worker")
}

/// Name of an attempt's batch Job.
#[must_use]
pub fn job(conversion: &ConversionId, attempt: Attempt) -> String {
    format!("{conversion}-{attempt}")
}

/// Labels of everything that belongs to a queue, by component.
#[must_use]
pub fn labels(queue: &str, component: &str) -> BTreeMap<String, String> {
    let mut labels = selector(queue, component);
    labels.insert(LABEL_NAME.into(), "hyper2kvm".into());
    labels.insert(LABEL_MANAGED_BY.into(), MANAGED_BY.into());
    labels
}

/// The labels that select a queue's pods of one component; they never change, for selectors are immutable.
#[must_use]
pub fn selector(queue: &str, component: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_QUEUE.into(), queue.into()), (LABEL_COMPONENT.into(), component.into())])
}
