// SPDX-License-Identifier: Apache-2.0
//! What is done to the guest on the disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conversion::options::{GuestFixMode, GuestNames, GuestOptions};

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

/// What is done to the guest on the disks. With another mode than Off, workers run the release's fixer image and get
/// worker.fixResources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestSettings {
    /// Whether the guest is made ready for virtio. Off: nothing is done to it. Best effort: where it can't be, the disks are
    /// published as they were converted, and the condition `GuestFixed` says why. Require: then the conversion fails.
    pub mode: GuestMode,
    /// Keep: network interfaces keep the names that the guest's configuration has. Leave: they get those of their new
    /// cards.
    pub network_names: NetworkNames,
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
}

impl GuestSettings {
    /// The settings with one conversion's laid over them.
    #[must_use]
    pub(super) fn overridden_by(&self, overrides: Option<&GuestOverrides>) -> Self {
        Self {
            mode: overrides.and_then(|own| own.mode).unwrap_or(self.mode),
            network_names: overrides.and_then(|own| own.network_names).unwrap_or(self.network_names),
        }
    }

    /// What the worker is told.
    #[must_use]
    pub(super) fn options(&self) -> GuestOptions {
        GuestOptions {
            fix: match self.mode {
                GuestMode::Off => GuestFixMode::Off,
                GuestMode::BestEffort => GuestFixMode::BestEffort,
                GuestMode::Require => GuestFixMode::Require,
            },
            names: match self.network_names {
                NetworkNames::Keep => GuestNames::Keep,
                NetworkNames::Leave => GuestNames::Leave,
            },
            ..GuestOptions::default()
        }
    }
}
