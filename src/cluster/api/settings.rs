// SPDX-License-Identifier: Apache-2.0
//! How a queue converts, and what a single conversion may override.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guest::{GuestOverrides, GuestSettings};
use crate::conversion::options::ByteSize;
use crate::conversion::{Compression, ConversionOptions, Emit, OutputFormat, Platform};

/// A value that the schema admits but the program can't use: an object stored before a rule was added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct InvalidSetting {
    /// Path of the field below `spec`.
    pub field: &'static str,
    pub message: String,
}

/// What a conversion of this queue makes, and within which limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.compress == 'none' || self.outFormat == 'qcow2'",
        "message": "compress needs outFormat qcow2: raw and vdi have no compression; set compress to none"
    },
    {
        "rule": "!has(self.compressLevel) || self.compress != 'none'",
        "message": "compressLevel needs compress zlib, zstd or zlib-strict"
    },
    {
        "rule": "!has(self.compressLevel) || self.compressLevel <= 12 || self.compress == 'zstd'",
        "message": "compressLevel above 12 exists for zstd alone"
    },
    {
        "rule": "(self.guest.mode == 'Off' && self.guest.bootCheck.mode == 'Off') || self.stallTimeoutSeconds >= 600",
        "message": "fixing a guest may take nine minutes without other progress, and so may trying whether it boots: set stallTimeoutSeconds to 600 or more"
    },
]))]
pub struct ConversionSettings {
    /// Format of the converted disks.
    pub out_format: OutputFormat,
    /// Compression of qcow2 clusters. `zlib-strict` recompresses all with a small window, for old readers.
    pub compress: Compression,
    /// Level of the compression; left out, its usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 19))]
    pub compress_level: Option<u32>,
    /// Whether each disk's SHA-256 is reported in status and metadata.json.
    pub checksum: bool,
    /// Platforms that files are written for, beside the disks: libvirt (domain.xml), kubevirt (virtualmachine.yaml),
    /// proxmox (proxmox.sh), openstack (glance.json, openstack.sh).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub emit: Vec<Platform>,
    /// Whether a libvirt domain.xml is written beside the disks: the same as libvirt in emit.
    pub emit_domain_xml: bool,
    /// Largest virtual size of a disk that is accepted, such as 64Ti. Binary units alone: Ki, Mi, Gi, Ti, Pi.
    #[schemars(
        length(min = 1, max = 18),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[1-9][0-9]{0,15}(Ki|Mi|Gi|Ti|Pi)?$') && quantity(self).compareTo(quantity('1Pi')) <= 0",
            "message": "maxVirtualSize is a size in binary units, such as 64Ti or 512Gi, and at most 1Pi"
        }])
    )]
    pub max_virtual_size: String,
    /// What is done to the guest on the disks.
    pub guest: GuestSettings,
    /// Seconds after which an attempt is ended for good.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub active_deadline_seconds: u32,
    /// Seconds without progress after which an attempt is ended and tried again.
    #[schemars(range(min = 10, max = 86_400))]
    pub stall_timeout_seconds: u32,
}

impl Default for ConversionSettings {
    fn default() -> Self {
        Self {
            out_format: OutputFormat::default(),
            compress: Compression::default(),
            compress_level: None,
            checksum: false,
            emit: Vec::new(),
            emit_domain_xml: false,
            max_virtual_size: "64Ti".to_owned(),
            guest: GuestSettings::default(),
            active_deadline_seconds: 86_400,
            stall_timeout_seconds: 600,
        }
    }
}

/// What one conversion does otherwise than its queue; what is left out is the queue's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.compress) || self.compress == 'none' || !has(self.outFormat) || self.outFormat == 'qcow2'",
    "message": "compress needs outFormat qcow2: raw and vdi have no compression; set compress to none"
}]))]
pub struct ConversionOverrides {
    /// Format of the converted disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_format: Option<OutputFormat>,
    /// Compression of qcow2 clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compression>,
    /// Level of the compression.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 19))]
    pub compress_level: Option<u32>,
    /// Whether each disk's SHA-256 is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<bool>,
    /// Platforms that files are written for, beside the disks, instead of the queue's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub emit: Option<Vec<Platform>>,
    /// Whether a libvirt domain.xml is written beside the disks: adds libvirt to the platforms, or takes it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emit_domain_xml: Option<bool>,
    /// Largest virtual size of a disk that is accepted, such as 64Ti.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 18),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[1-9][0-9]{0,15}(Ki|Mi|Gi|Ti|Pi)?$') && quantity(self).compareTo(quantity('1Pi')) <= 0",
            "message": "maxVirtualSize is a size in binary units, such as 64Ti or 512Gi, and at most 1Pi"
        }])
    )]
    pub max_virtual_size: Option<String>,
    /// What is done to the guest on the disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestOverrides>,
    /// Seconds after which an attempt is ended for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub active_deadline_seconds: Option<u32>,
}

impl ConversionOverrides {
    /// The platforms that files are written for, where `queue` is the queue's settings.
    #[must_use]
    pub fn emit(&self, queue: &ConversionSettings) -> Emit {
        let listed = self.emit.as_ref().map(|platforms| platforms.iter().copied().collect());
        listed.unwrap_or_else(|| queue.emit()).with_domain_xml(self.emit_domain_xml)
    }

    /// Whether it says anything about platforms.
    #[must_use]
    pub const fn names_platforms(&self) -> bool {
        self.emit.is_some() || self.emit_domain_xml.is_some()
    }
}

impl ConversionSettings {
    /// Time without progress after which an attempt is ended.
    #[must_use]
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_seconds.into())
    }

    /// The platforms that files are written for.
    #[must_use]
    pub fn emit(&self) -> Emit {
        self.emit.iter().copied().collect::<Emit>().with_domain_xml(self.emit_domain_xml.then_some(true))
    }

    /// The queue's settings with one conversion's overrides laid over them.
    ///
    /// An output format that can't be compressed takes the queue's compression away with it.
    #[must_use]
    pub fn overridden_by(&self, overrides: &ConversionOverrides) -> Self {
        let out_format = overrides.out_format.unwrap_or(self.out_format);
        let compress = match out_format {
            OutputFormat::Qcow2 => overrides.compress.unwrap_or(self.compress),
            OutputFormat::Raw | OutputFormat::Vdi => Compression::None,
        };
        let (emit, emit_domain_xml) = if overrides.names_platforms() {
            (overrides.emit(self).platforms().collect(), false)
        } else {
            (self.emit.clone(), self.emit_domain_xml)
        };
        let level_of_queue = self.compress_level.filter(|_| compress == self.compress);
        Self {
            out_format,
            compress,
            compress_level: overrides.compress_level.or(level_of_queue).filter(|_| compress != Compression::None),
            checksum: overrides.checksum.unwrap_or(self.checksum),
            emit,
            emit_domain_xml,
            max_virtual_size: overrides.max_virtual_size.clone().unwrap_or_else(|| self.max_virtual_size.clone()),
            guest: self.guest.overridden_by(overrides.guest.as_ref()),
            active_deadline_seconds: overrides.active_deadline_seconds.unwrap_or(self.active_deadline_seconds),
            stall_timeout_seconds: self.stall_timeout_seconds,
        }
    }

    /// What the worker is told.
    pub fn options(&self) -> Result<ConversionOptions, InvalidSetting> {
        let max: ByteSize = self
            .max_virtual_size
            .parse()
            .map_err(|error| InvalidSetting { field: "conversion.maxVirtualSize", message: format!("{error}") })?;
        Ok(ConversionOptions {
            out_format: self.out_format,
            compress: self.compress,
            compress_level: self.compress_level,
            max_virtual_size: max.0,
            checksum: self.checksum,
            emit: self.emit(),
            guest: self.guest.options(),
            ..ConversionOptions::default()
        })
    }
}

/// Whether a file that was converted before is skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Deduplication {
    /// Whether files of the same name and size as one converted before are skipped.
    pub enabled: bool,
    /// Whether files of the same MD5 under other names are skipped too; each file is read once more for that.
    pub use_md5: bool,
}

impl Default for Deduplication {
    fn default() -> Self {
        Self { enabled: true, use_md5: false }
    }
}
