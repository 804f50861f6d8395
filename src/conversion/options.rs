// SPDX-License-Identifier: Apache-2.0
//! What a conversion makes, and within which limits.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::platform::Emit;

/// Format of the converted disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    #[default]
    Qcow2,
    Raw,
    Vdi,
}

impl OutputFormat {
    /// The file name's extension, and the name by which QEMU and libvirt know the format.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vdi => "vdi",
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Compression of qcow2 clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    #[default]
    None,
    /// Deflate; a source's own deflate streams are passed through once verified.
    Zlib,
    Zstd,
    /// Deflate, every cluster recompressed with a 4 KiB window, for readers that can't take longer distances.
    ZlibStrict,
}

impl Compression {
    /// The word in configuration and specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::ZlibStrict => "zlib-strict",
        }
    }
}

/// Everything that shapes the output of one conversion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConversionOptions {
    pub out_format: OutputFormat,
    pub compress: Compression,
    /// Level of the chosen compression; absent: its usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress_level: Option<u32>,
    /// Largest virtual size accepted, in bytes.
    pub max_virtual_size: u64,
    /// Whether each output's SHA-256 is reported.
    pub checksum: bool,
    /// Platforms that files are written for, beside the disks, at publication. A worker is told as its first contract
    /// version knows it, and writes none of them.
    #[serde(rename = "emitDomainXml", alias = "emit", serialize_with = "Emit::as_flag")]
    pub emit: Emit,
    /// Name of the output instead of the source's, with or without the format's extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_output: Option<String>,
    /// Settings of the machine that override the source's.
    pub domain: DomainOptions,
    /// What is done to the guest. Left out where that is nothing, for older workers.
    #[serde(skip_serializing_if = "is_off")]
    pub guest: GuestOptions,
}

impl Default for ConversionOptions {
    fn default() -> Self {
        Self {
            out_format: OutputFormat::default(),
            compress: Compression::default(),
            compress_level: None,
            max_virtual_size: DEFAULT_MAX_VIRTUAL_SIZE,
            checksum: false,
            emit: Emit::default(),
            to_output: None,
            domain: DomainOptions::default(),
            guest: GuestOptions::default(),
        }
    }
}

/// What is done to the guest on the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GuestOptions {
    pub fix: GuestFixMode,
    pub names: GuestNames,
    /// Directory with virtio-win's drivers for Windows, where the worker sees it. Left out where there is none, for older
    /// workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtio_win: Option<PathBuf>,
    pub boot_check: BootCheck,
    pub accelerator: Accelerator,
}

impl GuestOptions {
    /// Whether programs are run for it: QEMU, on overlays over the disks.
    #[must_use]
    pub fn has_programs(&self) -> bool {
        self.fix != GuestFixMode::Off || self.boot_check.mode != BootCheckMode::Off
    }
}

/// Whether a worker of a version before guests were fixed would do the same.
fn is_off(guest: &GuestOptions) -> bool {
    !guest.has_programs()
}

/// Whether it is tried that the guest boots, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BootCheck {
    pub mode: BootCheckMode,
    /// Seconds until it is given up, from [`BootCheck::LEAST_SECONDS`] to [`BootCheck::MOST_SECONDS`].
    pub timeout_seconds: u32,
}

impl BootCheck {
    /// Firmware alone takes some seconds without KVM.
    pub const LEAST_SECONDS: u32 = 10;
    /// An attempt without progress is ended after ten minutes.
    pub const MOST_SECONDS: u32 = 540;
    /// Six times what a Debian takes without KVM on a busy machine.
    pub const DEFAULT_SECONDS: u32 = 300;
}

impl Default for BootCheck {
    fn default() -> Self {
        Self { mode: BootCheckMode::default(), timeout_seconds: Self::DEFAULT_SECONDS }
    }
}

/// Whether it is tried that the guest boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootCheckMode {
    #[default]
    Off,
    /// Where it does not boot, a warning says so.
    Warn,
    /// Where it does not boot, the conversion fails.
    Require,
}

impl BootCheckMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Off, Self::Warn, Self::Require];

    /// The word in configuration and on command lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Require => "require",
        }
    }
}

/// What runs the code of the appliance and of a guest whose boot is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// KVM where it runs, else QEMU's own translation.
    #[default]
    Auto,
    /// QEMU's own translation, which needs no device.
    Tcg,
    /// `/dev/kvm`; where that does not run, nothing does.
    Kvm,
}

impl Accelerator {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Tcg, Self::Kvm];

    /// The word in configuration and on command lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// Whether the guest is made ready for virtio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestFixMode {
    #[default]
    Off,
    /// Where it can't be, the disks are published as they were converted.
    BestEffort,
    /// Where it can't be, the conversion fails.
    Require,
}

impl GuestFixMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Off, Self::BestEffort, Self::Require];

    /// The word in configuration and on command lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::BestEffort => "best-effort",
            Self::Require => "require",
        }
    }
}

/// What is done about the names of a guest's network interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestNames {
    /// They keep the names that the guest's configuration has.
    #[default]
    Keep,
    Leave,
}

impl GuestNames {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Leave];

    /// The word in configuration and on command lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Leave => "leave",
        }
    }
}

/// 64 TiB: the largest VMDK that vSphere makes is 62 TiB, a VHDX ends at 64 TiB.
pub const DEFAULT_MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// Settings of the machine in the files that are written beside the disks; absent ones come from the source, else from
/// defaults. Name, memory, processors and firmware are every platform's, the others libvirt's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DomainOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uefi: Option<bool>,
    /// Machine type (q35 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Bus of every disk (unless set, what the guest can drive).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<String>,
    /// Model of every network card (unless set, what the guest can drive).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_model: Option<String>,
    /// Libvirt network of every card (`default` unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// A size in bytes written as `64Ti`, `10G`, `512` (binary units; `Ti`, `T` and `TiB` are the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: a whole number, with K, M, G, T or P if need be (64Ti, 10G)")]
pub struct InvalidSize(String);

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let invalid = || InvalidSize(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "ki" | "kib" => 10,
            "m" | "mi" | "mib" => 20,
            "g" | "gi" | "gib" => 30,
            "t" | "ti" | "tib" => 40,
            "p" | "pi" | "pib" => 50,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides the size, else one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut unit = 0;
        let mut scale = 1u64;
        while unit + 1 < UNITS.len() && self.0 / scale >= 1024 {
            scale <<= 10;
            unit += 1;
        }
        if self.0.is_multiple_of(scale) {
            write!(f, "{} {}", self.0 / scale, UNITS[unit])
        } else {
            #[expect(clippy::cast_precision_loss, reason = "one decimal of a size for a person")]
            let value = self.0 as f64 / scale as f64;
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units() {
        for (text, bytes) in [("512", 512), ("64Ti", 64 << 40), ("10G", 10 << 30), ("1 MiB", 1 << 20), ("4k", 4096)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "Ti", "-1", "1.5G", "1X", "99999999999999999999", "999999P"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_for_people() {
        for (bytes, text) in [(0, "0 B"), (1536, "1.5 KiB"), (64 << 40, "64 TiB"), (4_294_967_297, "4.0 GiB")] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
