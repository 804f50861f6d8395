// SPDX-License-Identifier: Apache-2.0
//! Gives a guest of EFI the loader that firmware starts without NVRAM, which no image brings along.

use super::{Act, Plan};
use crate::appliance::mounted::Mounted;
use crate::conversion::guest::{Answer, FixKind, Guest};

/// The directory of the loader, as firmware writes it.
const WHAT: &str = "\\EFI\\BOOT";
/// Where the EFI system partition may be mounted.
const PARTITIONS: [&str; 3] = ["/boot/efi", "/efi", "/boot"];
/// Loaders of the vendors' directories without their architecture, the best first: shim starts GRUB where Secure Boot is on,
/// and where it is off.
const LOADERS: [&str; 3] = ["shim", "grub", "systemd-boot"];
/// What shim starts from its own directory.
const COMPANIONS: [&str; 2] = ["grub", "mm"];

/// Plans copies of the vendor's loader.
pub(super) fn plan(guest: &Guest, files: &Mounted, plan: &mut Plan) {
    let firmware = &guest.firmware;
    if firmware.efi != Answer::Yes || firmware.fallback_loader != Answer::No {
        return;
    }
    let Some(base) = PARTITIONS.into_iter().map(|path| format!("{path}/EFI")).find(|path| files.is_directory(path))
    else {
        plan.leave(WHAT, "The EFI system partition is not mounted by the guest's fstab.");
        return;
    };
    let Some((vendor, loader, end)) = best(&firmware.loaders) else {
        plan.leave(WHAT, "No loader is known that could be started without NVRAM.");
        return;
    };
    let target = |name: &str| format!("{base}/BOOT/{name}");
    let source = |name: &str| format!("{base}/{vendor}/{name}");
    let name = format!("BOOT{}.EFI", end.to_ascii_uppercase());
    plan.change(FixKind::FallbackLoader, &target(&name), Act::CopyOf(source(loader)));
    if loader.to_ascii_lowercase().starts_with("shim") {
        for companion in COMPANIONS.map(|companion| format!("{companion}{end}.efi")) {
            if files.exists(&source(&companion)) {
                plan.change(FixKind::FallbackLoader, &target(&companion), Act::CopyOf(source(&companion)));
            }
        }
    }
}

/// Vendor, file, and the architecture as loaders are named by it, of the best of `loaders`.
fn best(loaders: &[String]) -> Option<(&str, &str, &'static str)> {
    for start in LOADERS {
        for end in ["x64", "aa64"] {
            let name = format!("{start}{end}.efi");
            let mut parts = loaders.iter().filter_map(|path| path.strip_prefix("\\EFI\\")?.split_once('\\'));
            if let Some((vendor, file)) = parts.find(|(_, file)| file.eq_ignore_ascii_case(&name)) {
                return Some((vendor, file, end));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_goes_with_what_it_starts() {
        let root = tempfile::tempdir().unwrap();
        let vendor = root.path().join("boot/efi/EFI/debian");
        std::fs::create_dir_all(&vendor).unwrap();
        std::fs::write(vendor.join("grubx64.efi"), "grub").unwrap();
        let files = Mounted::new(root.path()).unwrap();
        let mut guest = Guest::default();
        (guest.firmware.efi, guest.firmware.fallback_loader) = (Answer::Yes, Answer::No);
        for (loaders, expected) in [
            (
                &["\\EFI\\debian\\grubx64.efi", "\\EFI\\debian\\shimx64.efi"][..],
                &["BOOTX64.EFI shimx64.efi", "grubx64.efi grubx64.efi"][..],
            ),
            (&["\\EFI\\debian\\grubx64.efi"], &["BOOTX64.EFI grubx64.efi"]),
            (&["\\EFI\\debian\\GRUBAA64.EFI"], &["BOOTAA64.EFI GRUBAA64.EFI"]),
            (&["\\EFI\\debian\\fwupdx64.efi"], &[]),
            (&[], &[]),
        ] {
            guest.firmware.loaders = loaders.iter().map(|path| (*path).to_owned()).collect();
            let mut found = Plan::default();
            plan(&guest, &files, &mut found);
            let pairs = found.changes.iter().map(|change| {
                let Act::CopyOf(source) = &change.act else { panic!("{change:?}") };
                let base = |path: &str| path.rsplit('/').next().unwrap().to_owned();
                assert!(change.path.starts_with("/boot/efi/EFI/BOOT/") && source.starts_with("/boot/efi/EFI/debian/"));
                format!("{} {}", base(&change.path), base(source))
            });
            assert_eq!(pairs.collect::<Vec<_>>(), expected, "{loaders:?}");
            assert_eq!(found.left.len(), usize::from(expected.is_empty()));
        }
        guest.firmware.fallback_loader = Answer::Yes;
        let mut found = Plan::default();
        plan(&guest, &files, &mut found);
        assert!(found.changes.is_empty() && found.left.is_empty());
    }
}
