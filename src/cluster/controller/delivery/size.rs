// SPDX-License-Identifier: Apache-2.0
//! How large a claim must be for its disk.

use crate::cluster::api::{TargetSettings, VolumeMode};

const MIB: u128 = 1 << 20;
/// Unit of `filesystemOverhead`: its schema has six decimals.
const MILLIONTHS: u128 = 1_000_000;
/// A claim that was too small is made larger by a quarter: what a file system keeps for itself beyond what was expected.
const GROWTH: (u128, u128) = (5, 4);

/// Bytes to ask for, so that a disk of `virtual_size` bytes fits: whole MiB. A block device is as large as it is asked for;
/// of a file system the given share is its own; where a storage profile decides, CDI adds that share. `remade`: times that this was too little. `needed`: bytes that the worker
/// found missing, where it told.
///
/// `KubeVirt` makes a disk image as large as `(1 - overhead) * size`, in whole MiB, so that this grows no disk.
#[must_use]
pub(super) fn request_bytes(virtual_size: u64, target: &TargetSettings, remade: u32, needed: Option<u64>) -> u64 {
    let mut mib = u128::from(virtual_size.max(needed.unwrap_or(0))).div_ceil(MIB).max(1);
    if target.volume_mode == VolumeMode::Filesystem {
        mib = (mib * MILLIONTHS).div_ceil(MILLIONTHS - overhead(&target.filesystem_overhead));
    }
    for _ in 0..remade {
        mib = (mib * GROWTH.0).div_ceil(GROWTH.1);
    }
    // The API server's quantities are signed.
    u64::try_from(mib * MIB).unwrap_or(u64::MAX).min(i64::MAX.unsigned_abs() & !0xf_ffff)
}

/// The share in millionths; of a text that an older schema admitted, what `KubeVirt` takes without CDI.
fn overhead(text: &str) -> u128 {
    const USUAL: u128 = 55_000;
    const MOST: u128 = 900_000;
    let decimals = text.strip_prefix("0").map(|rest| rest.strip_prefix('.').unwrap_or(rest));
    let digits = decimals.filter(|digits| digits.len() <= 6 && digits.bytes().all(|digit| digit.is_ascii_digit()));
    let padded = digits.map(|digits| format!("{digits:0<6}"));
    padded.and_then(|digits| digits.parse().ok()).filter(|share| *share < MOST).unwrap_or(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn target(volume_mode: VolumeMode, overhead: &str) -> TargetSettings {
        TargetSettings { volume_mode, filesystem_overhead: overhead.to_owned(), ..TargetSettings::default() }
    }

    #[test]
    fn a_claim_is_as_large_as_its_disk_and_the_file_system_s_share() {
        let file_system =
            |size, share: &str| request_bytes(size, &target(VolumeMode::Filesystem, share), 0, None) / (1 << 20);
        for (size, share, mib) in [
            (1, "0", 1),
            (1 << 20, "0", 1),
            ((1 << 20) + 1, "0", 2),
            // 1024 / 0.945 = 1083.6
            (GIB, "0.055", 1084),
            (GIB, "0.06", 1090),
            (GIB, "0.5", 2048),
            (GIB, "0.899999", 10240),
            // What no schema admits.
            (GIB, "nonsense", 1084),
            (GIB, "0.95", 1084),
        ] {
            assert_eq!(file_system(size, share), mib, "{size} {share}");
        }
        let block = target(VolumeMode::Block, "0.055");
        assert_eq!(request_bytes(GIB, &block, 0, None), GIB);
        assert_eq!(request_bytes(GIB - 512, &block, 0, None), GIB);
        assert_eq!(request_bytes(u64::MAX, &block, 2, None), i64::MAX.unsigned_abs() - 0xf_ffff);
    }

    #[test]
    fn kubevirt_grows_no_disk_image_beyond_its_disk() {
        for mib in [1u64, 10, 100, 1024, 10_240, 40_961, 2_097_152] {
            let request = u128::from(request_bytes(mib << 20, &target(VolumeMode::Filesystem, "0.055"), 0, None));
            // possibleGuestSize of KubeVirt: floor of the share, in whole MiB.
            let guest = request * (MILLIONTHS - 55_000) / MILLIONTHS / MIB;
            assert_eq!(guest, u128::from(mib), "{mib}");
        }
    }

    #[test]
    fn a_claim_that_was_too_small_is_made_larger() {
        let block = target(VolumeMode::Block, "0");
        assert_eq!(request_bytes(GIB, &block, 1, None), GIB + GIB / 4);
        assert_eq!(request_bytes(GIB, &block, 1, Some(2 * GIB)), 2 * GIB + GIB / 2);
    }
}
