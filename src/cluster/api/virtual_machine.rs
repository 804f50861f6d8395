// SPDX-License-Identifier: Apache-2.0
//! Which `VirtualMachine` a conversion makes of its disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::settings::InvalidSetting;
use crate::conversion::options::ByteSize;

/// Whether a machine is made, and whether it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineCreation {
    /// None is made: kubectl hyper2kvm vm CONVERSION prints it.
    Never,
    /// It is made, and starts when somebody says so.
    #[default]
    Halted,
    /// It starts at once, unless anything about it was guessed or left out: then it is made Halted.
    Running,
}

/// Which devices the guest gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineDevices {
    /// Those that guests have drivers for by themselves: SATA disks, e1000e cards; virtio where a conversion made the guest
    /// ready for it.
    #[default]
    Compatible,
    /// Virtio where the source had virtio, else as Compatible.
    FromSource,
    /// Virtio throughout: somebody knows that the guest has the drivers.
    Virtio,
}

/// Whether cards keep their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MacAddresses {
    /// Those of the source, so that the guest's network settings still fit.
    #[default]
    Keep,
    /// New ones: the source may run on beside it.
    Generate,
}

/// A NetworkAttachmentDefinition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MultusNetwork {
    /// Its name, or NAMESPACE/NAME.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub network_name: String,
}

/// Says by its presence what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chosen {}

/// Where a card that was on a network of the source is put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.pod), has(self.multus), has(self.ignore)].filter(chosen, chosen).size() == 1",
    "message": "a network has exactly one of pod, multus and ignore"
}]))]
pub struct NetworkRule {
    /// The network as the source calls it, such as VM Network; * for every other.
    #[schemars(length(min = 1, max = 256))]
    pub source: String,
    /// The pod's network, masqueraded. One card of a machine can have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Chosen>,
    /// A bridge to this NetworkAttachmentDefinition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multus: Option<MultusNetwork>,
    /// The card is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<Chosen>,
}

/// The most that a source may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineLimits {
    /// Processors: sockets by cores.
    #[schemars(range(min = 1, max = 1024))]
    pub cpus: u32,
    /// Memory, such as 512Gi. Binary units alone: Ki, Mi, Gi, Ti, Pi.
    #[schemars(
        length(min = 1, max = 18),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[1-9][0-9]{0,15}(Ki|Mi|Gi|Ti|Pi)?$') && quantity(self).compareTo(quantity('1Pi')) <= 0",
            "message": "memory is a size in binary units, such as 512Gi, and at most 1Pi"
        }])
    )]
    pub memory: String,
}

impl Default for MachineLimits {
    fn default() -> Self {
        Self { cpus: 64, memory: "512Gi".to_owned() }
    }
}

impl MachineLimits {
    /// The memory in bytes.
    ///
    /// # Errors
    /// Where an older schema admitted what is no size.
    pub fn memory_bytes(&self) -> Result<u64, InvalidSetting> {
        let invalid = |error| InvalidSetting { field: "virtualMachine.limits.memory", message: format!("{error}") };
        self.memory.parse::<ByteSize>().map(|size| size.0).map_err(invalid)
    }
}

/// Which VirtualMachine is made of the disks, where KubeVirt is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineSettings {
    /// Never: none. Halted: made, not started. Running: started at once, unless anything about it was guessed or left
    /// out.
    pub create: MachineCreation,
    /// Compatible: SATA disks and e1000e cards, for which guests have drivers by themselves. `FromSource`: virtio where
    /// the source had it. Virtio: virtio throughout.
    pub devices: MachineDevices,
    /// Networks of the cards, the first that fits by its source. A card without one gets the pod's network if it is
    /// the first, and is left out else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub networks: Vec<NetworkRule>,
    /// Keep: the source's addresses. Generate: new ones.
    pub mac_addresses: MacAddresses,
    /// Whether KubeVirt keeps EFI variables and the TPM on a volume of its own, for which it needs a default
    /// StorageClass. Without it a TPM is left out.
    pub persistent_state: bool,
    /// Time zone of the clock that a Windows guest sees, such as Europe/Berlin; left out, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z][A-Za-z0-9_+/-]*$"))]
    pub guest_timezone: Option<String>,
    /// The most that a source may ask for. A conversion whose source asks for more waits, before anything is copied.
    pub limits: MachineLimits,
    /// A VirtualMachineClusterPreference, such as windows.2k22. It settles what the machine itself leaves open: what the
    /// source says comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub preference: Option<String>,
    /// Whether the claims are deleted with their machine: it owns them once it is made. Otherwise they stay.
    pub delete_claims_with_machine: bool,
}

/// Which machine one conversion makes otherwise than its queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineOverrides {
    /// Name of the machine, from which those of its claims are made; left out, the source's name for it. Where it is
    /// taken, it gets a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Never, Halted or Running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create: Option<MachineCreation>,
}

impl MachineOverrides {
    /// The queue's settings with this laid over them.
    #[must_use]
    pub fn over(&self, queue: Option<&MachineSettings>) -> MachineSettings {
        let none = MachineSettings { create: MachineCreation::Never, ..MachineSettings::default() };
        let mut settings = queue.cloned().unwrap_or(none);
        settings.create = self.create.unwrap_or(settings.create);
        settings
    }
}

/// How far a conversion's machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineState {
    /// Its name is chosen.
    #[default]
    Planned,
    /// The API server would take it: it was asked by a dry run before anything was copied.
    Accepted,
    /// It was made. From then on it is its users'.
    Created,
}

/// The VirtualMachine of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineStatus {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its UID, once it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// How far it is.
    pub state: MachineState,
    /// Addresses of its cards that other machines of the namespace have: it gets new ones instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 17)))]
    pub taken_addresses: Vec<String>,
}
