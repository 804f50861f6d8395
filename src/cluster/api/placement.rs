// SPDX-License-Identifier: Apache-2.0
//! Where the pods of a queue run, as whom and with how much.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// As whom watcher and workers run. Left out, the image's user or what the namespace assigns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSecurity {
    /// User ID; never root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub run_as_user: Option<i64>,
    /// Primary group ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_294_i64))]
    pub run_as_group: Option<i64>,
    /// Group that owns the volumes, where their driver supports that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_294_i64))]
    pub fs_group: Option<i64>,
    /// Further groups, such as the one that owns an NFS export.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 0, max = 4_294_967_294_i64)))]
    pub supplemental_groups: Vec<i64>,
    /// `SELinux` label of the pods, where nodes enforce one: watcher and workers share files, so they need the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub se_linux_options: Option<SeLinuxLabel>,
}

/// The part of an `SELinux` label that tells pods apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SeLinuxLabel {
    /// The level, such as s0:c123,c456.
    #[schemars(length(max = 253), regex(pattern = r"^(s[0-9]+(-s[0-9]+)?(:c[0-9]+([.,]c[0-9]+)*)?)?$"))]
    pub level: String,
}

/// The pods that convert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerSettings {
    /// CPU and memory of one conversion. Of what is named neither in requests nor in limits, the release's default holds,
    /// or else requests of 250m and 128Mi and limits of 2 and 256Mi.
    pub resources: ResourceRequirements,
    /// CPU and memory of a conversion whose guest is fixed or tried, in place of resources. Of what is named neither in
    /// requests nor in limits, the release's default holds, or else requests of 250m and 512Mi and limits of 2 and 1Gi; with
    /// a boot check 1Gi and 2560Mi.
    pub fix_resources: ResourceRequirements,
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Attraction to nodes and pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How workers spread over nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub priority_class_name: String,
    /// Runtime class of the pods, such as a sandboxed one.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub runtime_class_name: String,
    /// Labels of the pods, beside the operator's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// Labels of the Jobs, such as kueue.x-k8s.io/priority-class, beside the operator's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub job_labels: BTreeMap<String, String>,
    /// Kueue's LocalQueue that decides when a Job starts; empty, they start at once. Where Kueue is not installed, they
    /// wait for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63), regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"))]
    pub queue_name: String,
    /// Whether a worker refuses to start where the kernel has no Landlock to confine it.
    pub require_landlock: bool,
}

/// What is wanted, and of each resource that it names nowhere the default: a quota refuses a pod with a container that
/// leaves out what it counts.
pub(crate) fn completed_resources(
    wanted: &ResourceRequirements,
    default: &ResourceRequirements,
) -> ResourceRequirements {
    let mut whole = wanted.clone();
    let names = |list: &Option<BTreeMap<String, Quantity>>, name: &String| {
        list.as_ref().is_some_and(|list| list.contains_key(name))
    };
    let is_open = |name: &String| !names(&wanted.requests, name) && !names(&wanted.limits, name);
    for (list, defaults) in [(&mut whole.requests, &default.requests), (&mut whole.limits, &default.limits)] {
        let open = defaults.iter().flatten().filter(|(name, _)| is_open(name));
        let open: BTreeMap<_, _> = open.map(|(name, amount)| (name.clone(), amount.clone())).collect();
        if !open.is_empty() {
            list.get_or_insert_default().extend(open);
        }
    }
    whole
}

/// What a worker gets of what its queue leaves out.
pub(crate) fn worker_resources() -> ResourceRequirements {
    // Three workers and their watcher fit into a quota of eight CPUs.
    cpu_and_memory(["250m", "128Mi"], ["2", "256Mi"])
}

/// The same of a worker that fixes guests.
pub(crate) fn fix_resources() -> ResourceRequirements {
    // The appliance has 384 MiB, and QEMU 64 MiB for what it translates.
    cpu_and_memory(["250m", "512Mi"], ["2", "1Gi"])
}

/// The same of a worker that tries whether guests boot.
pub(crate) fn boot_resources() -> ResourceRequirements {
    // A guest of Windows has 2 GiB, any other 1 GiB, and QEMU 128 MiB for what it translates.
    cpu_and_memory(["250m", "1Gi"], ["2", "2560Mi"])
}

/// The same of a watcher.
pub(crate) fn watcher_resources() -> ResourceRequirements {
    // It holds some 25 MiB, and more with thousands of conversions in its history.
    cpu_and_memory(["25m", "48Mi"], ["1", "256Mi"])
}

/// The same of its sidecar.
pub(crate) fn sidecar_resources() -> ResourceRequirements {
    // It holds some 12 MiB.
    cpu_and_memory(["5m", "16Mi"], ["250m", "64Mi"])
}

/// Requests and limits of CPU and memory.
fn cpu_and_memory(requests: [&str; 2], limits: [&str; 2]) -> ResourceRequirements {
    let quantities = |amounts: [&str; 2]| {
        let named = ["cpu", "memory"].into_iter().zip(amounts);
        Some(named.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect())
    };
    ResourceRequirements { requests: quantities(requests), limits: quantities(limits), claims: None }
}

/// The pod that watches the queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WatcherSettings {
    /// CPU and memory of the watcher. Of what is named neither in requests nor in limits, the release's default holds, or
    /// else requests of 25m and 48Mi and limits of 1 and 256Mi.
    pub resources: ResourceRequirements,
    /// The same of its sidecar, which answers the control socket: requests of 5m and 16Mi, limits of 250m and 64Mi.
    pub sidecar_resources: ResourceRequirements,
    /// Labels that its node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Attraction to nodes and pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How watchers spread over nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub priority_class_name: String,
    /// Runtime class of the pod, such as a sandboxed one.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub runtime_class_name: String,
    /// Labels of the pod, beside the operator's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// HTTP proxy for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// ConfigMap whose key `ca.crt` holds further authorities that notifications trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted_ca_config_map_ref: Option<ConfigMapRef>,
    /// Sends a trace of each conversion that ended: when it was seen, how long it settled and waited, its attempts with
    /// their stages, its publication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,
}

/// Where traces of conversions go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traces {
    /// The collector's endpoint of OTLP over HTTP, such as `http://collector.observability:4318`.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://\S+$"))]
    pub endpoint: String,
}

/// An HTTP proxy for notifications.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Proxy {
    /// The proxy's URL for https.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048), regex(pattern = r"^(https?://\S+)?$"))]
    pub https_proxy: String,
    /// Hosts that are reached without it, separated by commas.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub no_proxy: String,
}

/// A ConfigMap in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ConfigMapRef {
    /// The ConfigMap's name; empty, none.
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub name: String,
}
