// SPDX-License-Identifier: Apache-2.0
//! What is done to the guest on the disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::names;
use crate::conversion::options::{self, BootCheck, GuestFixMode, GuestNames, GuestOptions};

use super::rules::{NO_DOTS, RELATIVE_PATH};

/// Whether the guest is made ready for virtio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GuestMode {
    /// Nothing is done to it.
    #[default]
    Off,
    /// Where it can't be, the disks are published as they were converted.
    BestEffort,
    /// Where it can't be, the conversion fails.
    Require,
}

/// What is done about the names of a guest's network interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkNames {
    /// They keep the names that the guest's configuration has.
    #[default]
    Keep,
    Leave,
}

/// Whether it is tried that the guest boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BootCheckMode {
    /// It is not tried.
    #[default]
    Off,
    /// Where it does not boot, a warning says so.
    Warn,
    /// Where it does not boot, the conversion fails.
    Require,
}

/// What runs the code of the appliance and of a guest that is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Accelerator {
    /// QEMU's own translation.
    #[default]
    #[serde(rename = "TCG")]
    Tcg,
    /// The node's `/dev/kvm`.
    #[serde(rename = "KVM")]
    Kvm,
}

/// Whether it is tried that the guest boots, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootCheckSettings {
    /// Whether the finished disks are started on a throw-away layer, in a machine without a way out. The guest's own code
    /// runs there. Off: it is not tried. Warn: where it does not boot, the condition `BootChecked` says so. Require: then
    /// the conversion fails.
    pub mode: BootCheckMode,
    /// Seconds until a guest that does not boot is given up.
    #[schemars(range(min = BootCheck::LEAST_SECONDS, max = BootCheck::MOST_SECONDS))]
    pub timeout_seconds: u32,
}

impl Default for BootCheckSettings {
    fn default() -> Self {
        Self { mode: BootCheckMode::default(), timeout_seconds: BootCheck::DEFAULT_SECONDS }
    }
}

/// Where virtio's drivers for Windows lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtioWin {
    /// The PersistentVolumeClaim, in the same namespace. It is mounted read-only, where the workers run.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: String,
    /// Directory below the volume's root that has what virtio-win's ISO has, not the ISO itself; empty, the root.
    #[serde(default)]
    #[schemars(
        length(max = 1024),
        extend("x-kubernetes-validations" = [
            {
                "rule": RELATIVE_PATH,
                "message": "path is relative to the volume's root: no slash at either end, none doubled, no control characters"
            },
            {
                "rule": NO_DOTS,
                "message": "path is relative to the volume's root: no part of it is . or .."
            }
        ])
    )]
    pub path: String,
}

/// What is done to the guest on the disks. With another mode than Off here or in bootCheck, workers run the release's fixer
/// image and get worker.fixResources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestSettings {
    /// Whether the guest is made ready for virtio. Off: nothing is done to it. `BestEffort`: where it can't be, the disks are
    /// published as they were converted, and the condition `GuestFixed` says why. Require: then the conversion fails.
    pub mode: GuestMode,
    /// Keep: network interfaces keep the names that the guest's configuration has. Leave: they get those of their new
    /// cards.
    pub network_names: NetworkNames,
    /// Whether it is tried that the guest boots.
    pub boot_check: BootCheckSettings,
    /// What runs the code of the appliance and of a guest that is tried. TCG: QEMU's own translation, which needs no device.
    /// KVM: the node's /dev/kvm, as the resource devices.kubevirt.io/kvm; where it does not run, nothing does.
    pub accelerator: Accelerator,
    /// Where virtio's drivers for Windows lie, for guests that are made ready for virtio. Left out, those of Windows stay as
    /// they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtio_win: Option<VirtioWin>,
}

/// Whether one conversion tries that its guest boots, otherwise than its queue says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootCheckOverrides {
    /// Whether it is tried that the guest boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<BootCheckMode>,
    /// Seconds until a guest that does not boot is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = BootCheck::LEAST_SECONDS, max = BootCheck::MOST_SECONDS))]
    pub timeout_seconds: Option<u32>,
}

/// What is done to one conversion's guest otherwise than its queue says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestOverrides {
    /// Whether the guest is made ready for virtio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<GuestMode>,
    /// Whether network interfaces keep their names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_names: Option<NetworkNames>,
    /// Whether it is tried that the guest boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_check: Option<BootCheckOverrides>,
    /// What runs the code of the appliance and of a guest that is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
}

impl GuestSettings {
    /// The settings with one conversion's laid over them.
    #[must_use]
    pub(super) fn overridden_by(&self, overrides: Option<&GuestOverrides>) -> Self {
        let check = overrides.and_then(|own| own.boot_check.as_ref());
        Self {
            mode: overrides.and_then(|own| own.mode).unwrap_or(self.mode),
            network_names: overrides.and_then(|own| own.network_names).unwrap_or(self.network_names),
            boot_check: BootCheckSettings {
                mode: check.and_then(|own| own.mode).unwrap_or(self.boot_check.mode),
                timeout_seconds: check.and_then(|own| own.timeout_seconds).unwrap_or(self.boot_check.timeout_seconds),
            },
            accelerator: overrides.and_then(|own| own.accelerator).unwrap_or(self.accelerator),
            virtio_win: self.virtio_win.clone(),
        }
    }

    /// What the worker is told.
    #[must_use]
    pub(super) fn options(&self) -> GuestOptions {
        let fix = match self.mode {
            GuestMode::Off => GuestFixMode::Off,
            GuestMode::BestEffort => GuestFixMode::BestEffort,
            GuestMode::Require => GuestFixMode::Require,
        };
        let boot_check = BootCheck {
            mode: match self.boot_check.mode {
                BootCheckMode::Off => options::BootCheckMode::Off,
                BootCheckMode::Warn => options::BootCheckMode::Warn,
                BootCheckMode::Require => options::BootCheckMode::Require,
            },
            timeout_seconds: self.boot_check.timeout_seconds,
        };
        let options = GuestOptions {
            fix,
            names: match self.network_names {
                NetworkNames::Keep => GuestNames::Keep,
                NetworkNames::Leave => GuestNames::Leave,
            },
            virtio_win: self
                .virtio_win
                .as_ref()
                .filter(|_| fix != GuestFixMode::Off)
                .map(|_| names::VIRTIO_WIN_DIR.into()),
            boot_check,
            // What decides by itself would depend on the node.
            accelerator: match self.accelerator {
                Accelerator::Tcg => options::Accelerator::Tcg,
                Accelerator::Kvm => options::Accelerator::Kvm,
            },
        };
        if options.has_programs() { options } else { GuestOptions::default() }
    }
}
