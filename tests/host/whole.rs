// SPDX-License-Identifier: Apache-2.0
//! Whole Debians with host-only dracut, made on another hypervisor: none boots from virtio, and each does after a fix, with
//! its network under its old names and its files whole. For `make test-long`: a boot takes a minute or more without KVM.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::boots::{appliance, boot, cache, convert, guest, is_wide, tail, told, worker};

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

/// Kills attempts with the real appliance, in turns at a moment of the fix and at one of the merge.
#[test]
fn kills_of_a_real_fix_leave_the_disk_converted_or_fixed_and_never_between() {
    if !is_wide() {
        return;
    }
    let kills: u32 = std::env::var("HYPER2KVM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = place.path();
    if guest(here, &["bios", "broken"]).is_none() {
        return;
    }
    fs::create_dir(here.join("appliance")).unwrap();
    appliance(here);
    let options = serde_json::json!({"guest": {"fix": "require", "accelerator": "tcg"}});
    let mut attempt = worker(here, &options);
    let folder = here.join("work/pod");
    let has = |name: &str| folder.join(name).exists();
    let begun = Instant::now();
    let output = attempt.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let takes = begun.elapsed();
    let (mut between, mut fixed) = (0, 0);
    for n in 0..kills {
        let _ = fs::remove_dir_all(&folder);
        let mut child = attempt.spawn().unwrap();
        let is_running = |child: &mut std::process::Child| child.try_wait().unwrap().is_none();
        while is_running(&mut child) && !has("copied.json") {
            sleep(Duration::from_millis(2));
        }
        if n % 2 == 0 {
            sleep(takes * (n * 7919 % kills) / kills);
        } else {
            while is_running(&mut child) && has("copied.json") {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_millis(u64::from(n * 7919 % kills) * 200 / u64::from(kills)));
        }
        let _ = child.kill();
        child.wait().unwrap();
        let disk = folder.join("system.qcow2");
        if has("fixed.json") {
            fixed += 1;
            assert!(is_whole(&disk, here), "kill {n}");
        } else if has("copied.json") {
            let same = Command::new("qemu-img").arg("compare").arg(here.join("claim/system.raw")).arg(&disk).output();
            assert!(same.unwrap().status.success(), "kill {n}: between, and taken for converted");
        } else {
            between += 1;
        }
        if n % 10 == 9 {
            let output = attempt.output().unwrap();
            assert!(output.status.success(), "kill {n}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(is_whole(&disk, here) && has("metadata.json") && !has("fix.tmp"), "kill {n}");
        }
    }
    println!("{kills} kills: {between} in the merge, which is done anew; {fixed} behind it");
}

/// Whether a fixed disk has no fault: its tables, and its file system.
fn is_whole(disk: &Path, place: &Path) -> bool {
    let raw = place.join("checked.raw");
    let status = |program: &str, words: &[&str]| Command::new(program).args(words).output().unwrap().status.success();
    let (disk, raw) = (disk.to_str().unwrap(), raw.to_str().unwrap());
    // The file system begins at sector 20480.
    status("qemu-img", &["check", "-q", disk])
        && status("qemu-img", &["convert", "-O", "raw", disk, raw])
        && status("/sbin/e2fsck", &["-fn", &format!("{raw}?offset={}", 20_480 * 512)])
}
