// SPDX-License-Identifier: Apache-2.0
//! Whether a guest boots, judged by what its machine is seen to do: it writes to its disks, and sends frames.
//!
//! ```text
//!  QEMU ──▶ Seen, Seen, Seen … ──▶ Watch ──▶ BootReport
//! ```
//!
//! A guest that writes has found its disk and mounted it. Loaders write, too, before any system runs: GRUB its block of
//! variables, Windows' boot manager its status, systemd-boot a seed. They write little, and those that BIOS runs never
//! flush a disk's cache, which a file system does whenever it commits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr};

use crate::conversion::machine::Firmware;

/// Fewest writes that no loader makes. A Linux that only mounts its root makes more before it is done.
const SYSTEM_WRITES: u64 = 8;
/// Most times that a machine may start anew before it has booted: a loader's fallback does once, a relabelling once.
const MOST_RESETS: u32 = 4;
/// How long a booted guest is watched for its first frame.
const FRAME_WAIT_MS: u64 = 60_000;
/// Most bytes that a booted guest may write while its first frame is waited for.
const MOST_WRITTEN: u64 = 256 << 20;

/// What a boot check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootReport {
    /// booted: it wrote to its disks, or sent a frame, as a system does. notBooting: it did not. unchecked: it could not be
    /// tried.
    pub result: BootResult,
    /// Why not, in a sentence; absent for a guest that booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Milliseconds until the system first wrote to a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_write_ms: Option<u64>,
    /// Milliseconds until it first sent a frame; absent also where it has no network card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_frame_ms: Option<u64>,
    /// What ran its code: `kvm` or `tcg`; absent where nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
}

/// How a boot check ended.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
pub enum BootResult {
    Booted,
    NotBooting,
    /// It could not be tried.
    #[default]
    Unchecked,
}

/// What has been seen of a machine since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Milliseconds since its start.
    pub at_ms: u64,
    /// Sums over its disks.
    pub reads: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    /// Whether it has sent a frame.
    pub has_sent: bool,
    /// How often it has started anew.
    pub resets: u32,
    /// Whether it has powered itself off.
    pub is_off: bool,
}

/// Judges a machine while it runs.
#[derive(Clone, Debug)]
pub struct Watch {
    firmware: Firmware,
    has_cards: bool,
    limit_ms: u64,
    first_write_ms: Option<u64>,
    first_frame_ms: Option<u64>,
    booted_ms: Option<u64>,
}

impl Watch {
    /// A machine that has `limit_ms` to boot.
    #[must_use]
    pub const fn new(firmware: Firmware, has_cards: bool, limit_ms: u64) -> Self {
        Self { firmware, has_cards, limit_ms, first_write_ms: None, first_frame_ms: None, booted_ms: None }
    }

    /// Takes what was seen, and returns the report once nothing more is to be waited for. Counters never fall.
    pub fn look(&mut self, seen: &Seen) -> Option<BootReport> {
        let first = |known: Option<u64>, is_there: bool| known.or_else(|| is_there.then_some(seen.at_ms));
        self.first_write_ms = first(self.first_write_ms, seen.writes > 0 && seen.flushes > 0);
        self.first_frame_ms = first(self.first_frame_ms, seen.has_sent);
        self.booted_ms = first(self.booted_ms, self.has_booted(seen));
        let is_late = seen.at_ms >= self.limit_ms;
        let Some(booted_ms) = self.booted_ms else {
            let is_hopeless = is_late || seen.is_off || seen.resets >= MOST_RESETS;
            return is_hopeless.then(|| self.report(BootResult::NotBooting, Some(why(seen))));
        };
        let is_enough = !self.has_cards
            || self.first_frame_ms.is_some()
            || seen.at_ms - booted_ms >= FRAME_WAIT_MS
            || seen.written_bytes > MOST_WRITTEN;
        (is_enough || is_late || seen.is_off).then(|| self.report(BootResult::Booted, None))
    }

    /// Firmware of EFI sends frames of its own; BIOS has no driver here that does.
    fn has_booted(&self, seen: &Seen) -> bool {
        let is_seen_on_network = seen.has_sent && self.firmware == Firmware::Bios;
        let is_seen_on_disk = seen.writes >= SYSTEM_WRITES && seen.flushes > 0;
        is_seen_on_network || is_seen_on_disk || seen.is_off && seen.writes > 0
    }

    const fn report(&self, result: BootResult, message: Option<String>) -> BootReport {
        let (first_write_ms, first_frame_ms) = (self.first_write_ms, self.first_frame_ms);
        BootReport { result, message, first_write_ms, first_frame_ms, accelerator: None }
    }
}

/// Why a machine that was seen so has not booted.
fn why(seen: &Seen) -> String {
    let seconds = seen.at_ms / 1000;
    let ended = if seen.is_off {
        format!("it powered itself off after {seconds} s")
    } else if seen.resets >= MOST_RESETS {
        format!("it started anew {} times in {seconds} s", seen.resets)
    } else {
        format!("it did not write to its disks in {seconds} s")
    };
    let disks = match (seen.reads, seen.writes) {
        (0, _) => "the firmware read none of its disks".to_owned(),
        (reads, 0) => format!("its disks were read {reads} times and never written"),
        (_, writes) => format!("its disks were written {writes} times, as loaders do"),
    };
    format!("{ended}: {disks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(firmware: Firmware, has_cards: bool, seen: &[Seen]) -> Option<BootReport> {
        let mut watch = Watch::new(firmware, has_cards, 100_000);
        seen.iter().find_map(|seen| watch.look(seen))
    }

    fn at(at_s: u64) -> Seen {
        Seen { at_ms: at_s * 1000, reads: 900, ..Seen::default() }
    }

    fn booted(first_write_ms: Option<u64>, first_frame_ms: Option<u64>) -> BootReport {
        BootReport { result: BootResult::Booted, first_write_ms, first_frame_ms, ..BootReport::default() }
    }

    #[test]
    fn a_guest_that_writes_and_sends_has_booted() {
        let wrote = Seen { writes: 26, flushes: 2, ..at(22) };
        let seen = [at(10), wrote, Seen { has_sent: true, at_ms: 30_000, ..wrote }];
        assert_eq!(judge(Firmware::Bios, true, &seen), Some(booted(Some(22_000), Some(30_000))));
        assert_eq!(judge(Firmware::Efi, true, &seen), Some(booted(Some(22_000), Some(30_000))));
        assert_eq!(judge(Firmware::Bios, false, &seen), Some(booted(Some(22_000), None)), "without a card");
    }

    #[test]
    fn a_booted_guest_without_a_frame_is_waited_for_and_not_for_ever() {
        let wrote = Seen { writes: 26, flushes: 2, ..at(22) };
        assert_eq!(judge(Firmware::Bios, true, &[wrote, Seen { at_ms: 81_999, ..wrote }]), None);
        for last in [
            Seen { at_ms: 82_000, ..wrote },
            Seen { at_ms: 30_000, written_bytes: MOST_WRITTEN + 1, ..wrote },
            Seen { at_ms: 30_000, is_off: true, ..wrote },
        ] {
            assert_eq!(judge(Firmware::Bios, true, &[wrote, last]), Some(booted(Some(22_000), None)), "{last:?}");
        }
    }

    #[test]
    fn what_loaders_and_firmware_do_is_no_boot() {
        let grub = Seen { writes: 4, ..at(5) };
        let windows = Seen { writes: 130, ..at(5) };
        let seed = Seen { writes: 7, flushes: 3, ..at(5) };
        let pxe = Seen { has_sent: true, ..at(5) };
        for (firmware, seen) in
            [(Firmware::Bios, grub), (Firmware::Bios, windows), (Firmware::Efi, seed), (Firmware::Efi, pxe)]
        {
            let report = judge(firmware, true, &[seen, Seen { at_ms: 100_000, ..seen }]).unwrap();
            assert_eq!(report.result, BootResult::NotBooting, "{seen:?}");
        }
    }

    #[test]
    fn a_guest_that_does_not_boot_is_given_up_with_what_it_did() {
        for (seen, why) in [
            (
                Seen { reads: 0, ..at(100) },
                "it did not write to its disks in 100 s: the firmware read none of its disks",
            ),
            (at(100), "it did not write to its disks in 100 s: its disks were read 900 times and never written"),
            (
                Seen { writes: 4, ..at(100) },
                "it did not write to its disks in 100 s: its disks were written 4 times, as loaders do",
            ),
            (
                Seen { resets: 4, ..at(40) },
                "it started anew 4 times in 40 s: its disks were read 900 times and never written",
            ),
            (
                Seen { is_off: true, ..at(7) },
                "it powered itself off after 7 s: its disks were read 900 times and never written",
            ),
        ] {
            let report = judge(Firmware::Bios, true, &[at(1), seen]).unwrap();
            assert_eq!((report.result, report.message.as_deref()), (BootResult::NotBooting, Some(why)));
        }
        assert_eq!(judge(Firmware::Bios, true, &[at(99), Seen { resets: 3, ..at(50) }]), None);
    }
}
