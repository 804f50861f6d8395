// SPDX-License-Identifier: Apache-2.0
//! Whole Debians with host-only dracut, made on another hypervisor: none boots from virtio, and each does after a fix, with
//! its network under its old names and its files whole. For `make test-long`: a boot takes a minute or more without KVM.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::boots::{appliance, boot, cache, convert, guest, is_wide, tail, told};

/// How long a guest gets to boot by its own systemd, read all its files and power off.
const BOOT: Duration = Duration::from_secs(900);
/// How long it is waited for a guest that does not boot. One that does says its first word in a minute.
const NO_BOOT: Duration = Duration::from_secs(300);

const MACS: [&str; 2] = ["00:50:56:01:02:03", "00:50:56:01:02:04"];

/// An OVF of `disks` with their sizes, and cards with these addresses.
fn ovf(disks: &[(&str, u64)], macs: &[&str]) -> String {
    let (mut files, mut described, mut items) = (String::new(), String::new(), String::new());
    for (n, (file, size)) in disks.iter().enumerate() {
        let _ = write!(files, "<File ovf:id='f{n}' ovf:href='{file}'/>");
        let _ = write!(described, "<Disk ovf:diskId='d{n}' ovf:fileRef='f{n}' ovf:capacity='{size}'/>");
        let _ = write!(
            items,
            "<Item><r:InstanceID>1{n}</r:InstanceID><r:ResourceType>17</r:ResourceType><r:Parent>3</r:Parent>\
             <r:HostResource>ovf:/disk/d{n}</r:HostResource><r:AddressOnParent>{n}</r:AddressOnParent></Item>"
        );
    }
    for mac in macs {
        let _ = write!(
            items,
            "<Item><r:ResourceType>10</r:ResourceType><r:Address>{mac}</r:Address><r:Connection>LAN</r:Connection>\
             <r:ResourceSubType>VmxNet3</r:ResourceSubType></Item>"
        );
    }
    format!(
        "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1' xmlns:r='r'><References>{files}</References>\
         <DiskSection>{described}</DiskSection><VirtualSystem ovf:id='vm'><Name>web</Name><VirtualHardwareSection>\
         <Item><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>1</r:VirtualQuantity></Item>\
         <Item><r:ResourceType>4</r:ResourceType><r:VirtualQuantity>1024</r:VirtualQuantity></Item>\
         <Item><r:InstanceID>3</r:InstanceID><r:ResourceType>6</r:ResourceType><r:ResourceSubType>lsilogic\
         </r:ResourceSubType><r:Address>0</r:Address></Item>{items}\
         </VirtualHardwareSection></VirtualSystem></Envelope>"
    )
}

/// Makes a guest of this kind, and returns the digest of its files.
fn whole(place: &Path, kind: &str) -> Option<String> {
    // Makes what the others are made of.
    fs::create_dir(place.join("first")).unwrap();
    guest(&place.join("first"), &["bios", "broken"])?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/whole.sh");
    let made = Command::new(script).arg(cache()).arg(place).arg(kind).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(fs::read_to_string(place.join("sums")).unwrap().trim().to_owned())
}

/// A guest of `kind` whose root is `root` afterwards, and which has these cards: name, address by DHCP or its own.
fn is_fixed(kind: &str, root: &str, cards: &[(&str, &str)]) {
    if !is_wide() {
        return;
    }
    let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = place.path();
    let Some(sums) = whole(here, kind) else { return };
    let macs = &MACS[..cards.len()];
    let size = |name: &str| fs::metadata(here.join(name)).map(|found| found.len());
    let disks = ["system.raw", "data.raw"].map(|name| size(name).map(|size| (name, size)));
    let disks: Vec<_> = disks.into_iter().flatten().collect();
    fs::write(here.join("web.ovf"), ovf(&disks, macs)).unwrap();

    convert(here, "web.ovf", &[]);
    let xml = fs::read_to_string(here.join("out/web.xml")).unwrap();
    let on_virtio = xml.replace("bus='sata'", "bus='virtio'");
    assert!(xml != on_virtio, "{xml}");
    let console = boot(&on_virtio, here, NO_BOOT);
    assert_eq!(told(&console), [""; 0], "{}", tail(&console));

    fs::create_dir(here.join("appliance")).unwrap();
    appliance(here);
    let words = ["--fix-guest=require", "--appliance", "appliance", "--force", "--accelerator", "tcg"];
    let report = convert(here, "web.ovf", &words);
    println!("{kind}: fixed in {} ms: {:#}", report["guest"]["durationMs"], report["guest"]["changes"]);
    let xml = fs::read_to_string(here.join("out/web.xml")).unwrap();
    let console = boot(&xml, here, BOOT);
    let told = told(&console);
    let says = |line: &str| assert!(told.iter().any(|told| told == line), "{line}: {told:?}\n{}", tail(&console));
    says(&format!("root {root}"));
    for ((name, address), mac) in cards.iter().zip(macs) {
        says(&format!("card {name} {mac} UP {address}"));
    }
    says(&format!("firmware {}", if kind == "efi" { "efi" } else { "bios" }));
    says("failed");
    says(&format!("sums {sums}"));
    says("end");
}

#[test]
fn a_debian_with_dracut_boots_from_virtio_after_a_fix() {
    is_fixed("bios", "/dev/vda1 ext4", &[("ens192", "10.0.2.15/24")]);
}

#[test]
fn a_debian_with_an_efi_system_partition_and_no_fallback_boots_after_a_fix() {
    is_fixed("efi", "/dev/vda2 ext4", &[("ens192", "10.0.2.15/24")]);
}

#[test]
fn a_debian_on_xfs_on_lvm_of_two_disks_boots_after_a_fix() {
    is_fixed("lvm", "/dev/mapper/rl-root xfs", &[("ens192", "10.0.2.15/24")]);
}

#[test]
fn a_debian_of_two_cards_keeps_both_names() {
    is_fixed("cards", "/dev/vda1 ext4", &[("ens192", "10.0.2.15/24"), ("ens224", "192.0.2.7/24")]);
}
