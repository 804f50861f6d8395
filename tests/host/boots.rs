// SPDX-License-Identifier: Apache-2.0
//! A real Debian is converted, and boots in QEMU by exactly the devices of its domain.xml, with its files whole. Needs
//! root, debootstrap and QEMU; the guest's files are made once, into `target/guests`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support;

/// How long a guest may take to boot, read all its files and end, without KVM on a busy machine.
const BOOT: Duration = Duration::from_secs(900);

/// Where the guests' files are kept.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is target/tmp").join("guests/bootable")
}

/// Makes the disks of a guest in `place`: its firmware, and `data` or `broken`. Returns the digest of its files; `None`,
/// and a word about it, where it can't be made.
pub(crate) fn guest(place: &Path, kind: &[&str]) -> Option<String> {
    let needed = ["debootstrap", "qemu-system-x86_64", "mkfs.ext4", "sfdisk", "mcopy"];
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let has = |name: &&str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        println!("LEFT OUT: a real Debian that boots: {missing} is not installed");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/debian.sh");
    let made = Command::new(script).arg(cache()).arg(place).args(kind).output().expect("a shell runs");
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(!cache().join("tree").exists(), "{said}");
        println!("LEFT OUT: a real Debian that boots: {said}");
        return None;
    }
    Some(fs::read_to_string(place.join("sums")).unwrap().trim().to_owned())
}

/// An OVF of both disks behind VMware's controller and card, the one that boots listed last.
const OVF: &str = "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1' xmlns:r='r' xmlns:vmw='v'><References>\
    <File ovf:id='f1' ovf:href='data.raw'/><File ovf:id='f2' ovf:href='system.raw'/></References><DiskSection>\
    <Disk ovf:diskId='d1' ovf:fileRef='f1' ovf:capacity='41943040'/>\
    <Disk ovf:diskId='d2' ovf:fileRef='f2' ovf:capacity='1073741824'/></DiskSection>\
    <VirtualSystem ovf:id='vm'><Name>web</Name><VirtualHardwareSection>\
    <Item><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>2</r:VirtualQuantity></Item>\
    <Item><r:ResourceType>4</r:ResourceType><r:VirtualQuantity>512</r:VirtualQuantity></Item>\
    <Item><r:InstanceID>3</r:InstanceID><r:ResourceType>6</r:ResourceType><r:ResourceSubType>lsilogic\
    </r:ResourceSubType><r:Address>0</r:Address></Item>\
    <Item><r:InstanceID>4</r:InstanceID><r:ResourceType>17</r:ResourceType><r:Parent>3</r:Parent>\
    <r:HostResource>ovf:/disk/d1</r:HostResource><r:AddressOnParent>1</r:AddressOnParent></Item>\
    <Item><r:InstanceID>5</r:InstanceID><r:ResourceType>17</r:ResourceType><r:Parent>3</r:Parent>\
    <r:HostResource>ovf:/disk/d2</r:HostResource><r:AddressOnParent>0</r:AddressOnParent></Item>\
    <Item><r:ResourceType>10</r:ResourceType><r:Address>00:50:56:01:02:03</r:Address>\
    <r:Connection>LAN</r:Connection><r:ResourceSubType>VmxNet3</r:ResourceSubType></Item>\
    </VirtualHardwareSection></VirtualSystem></Envelope>";

/// Starts a program as `MemoryDenyWriteExecute=` of our units does (`PR_SET_MDWE` with `PR_MDWE_REFUSE_EXEC_GAIN`, see
/// linux/prctl.h): no memory is both written and run, in it and in what it starts. Kernels before 6.3 don't know it.
const HARDENED: &str =
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])";

/// Converts `source` into `place/out` and returns the report. The look into the guest gets more than a second: this is no
/// optimised build, and other tests run beside it.
pub(crate) fn convert(place: &Path, source: &str, more: &[&str]) -> Value {
    let output = Command::new("python3")
        .args(["-c", HARDENED, env!("CARGO_BIN_EXE_hyper2kvm")])
        .args([
            "convert",
            "--json",
            "--output-dir",
            "out",
            "--emit",
            "libvirt",
            "--guest-limit",
            "60",
            "--progress",
            "none",
        ])
        .args(more)
        .arg(source)
        .current_dir(place)
        .output()
        .expect("the built binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The value of an attribute of the first `element` in `xml`.
fn attribute(xml: &str, element: &str, name: &str) -> Option<String> {
    let start = xml.find(&format!("<{element} "))?;
    let tag = &xml[start..start + xml[start..].find('>')?];
    let value = &tag[tag.find(&format!(" {name}='"))? + name.len() + 3..];
    Some(value[..value.find('\'')?].to_owned())
}

fn text(xml: &str, element: &str) -> String {
    let start = xml.find(&format!("<{element}")).unwrap();
    let start = start + xml[start..].find('>').unwrap() + 1;
    xml[start..start + xml[start..].find('<').unwrap()].to_owned()
}

fn blocks<'a>(xml: &'a str, element: &str) -> Vec<&'a str> {
    let end = format!("</{element}>");
    xml.split(&format!("<{element} ")).skip(1).map(|rest| &rest[..rest.find(&end).unwrap()]).collect()
}

/// QEMU's arguments for the devices of a domain: each one of them, in its order, and nothing that it does not name.
fn arguments(xml: &str, place: &Path) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"].map(Into::into).into();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    let accelerator = if kvm_runs() { "kvm" } else { "tcg" };
    let machine = attribute(xml, "type", "machine").unwrap();
    add(&[
        "-machine",
        &format!("{machine},accel={accelerator}"),
        "-cpu",
        if accelerator == "kvm" { "host" } else { "max" },
    ]);
    add(&["-m", &text(xml, "memory"), "-smp", &text(xml, "vcpu")]);
    if attribute(xml, "os", "firmware").as_deref() == Some("efi") {
        let variables = place.join("vars.fd");
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).unwrap();
        add(&["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
        add(&["-drive", &format!("if=pflash,format=raw,file={}", variables.display())]);
    }
    for (n, disk) in blocks(xml, "disk").into_iter().enumerate() {
        let (file, format) = (attribute(disk, "source", "file").unwrap(), attribute(disk, "driver", "type").unwrap());
        add(&["-drive", &format!("if=none,id=d{n},format={format},file={file}")]);
        let bus = attribute(disk, "target", "bus").unwrap();
        let device = match bus.as_str() {
            "virtio" => "virtio-blk-pci",
            "sata" => "ide-hd",
            "scsi" => "scsi-hd",
            other => panic!("bus {other}"),
        };
        // q35 has one SATA controller by itself, libvirt counts its ports likewise.
        let place = if bus == "sata" { format!(",bus=ide.{n}") } else { String::new() };
        if bus == "scsi" && n == 0 {
            add(&["-device", "virtio-scsi-pci"]);
        }
        let order = attribute(disk, "boot", "order").map(|order| format!(",bootindex={order}")).unwrap_or_default();
        add(&["-device", &format!("{device},drive=d{n}{place}{order}")]);
    }
    for (n, card) in blocks(xml, "interface").into_iter().enumerate() {
        let model = attribute(card, "model", "type").unwrap();
        let device = if model == "virtio" { "virtio-net-pci" } else { &model };
        let mac = attribute(card, "mac", "address").map(|mac| format!(",mac={mac}")).unwrap_or_default();
        add(&["-netdev", &format!("user,id=n{n},restrict=on"), "-device", &format!("{device},netdev=n{n}{mac}")]);
    }
    assert!(xml.contains("<input type='tablet' bus='usb'/>") && xml.contains("<model type='vga'/>"), "{xml}");
    add(&["-device", "qemu-xhci", "-device", "usb-tablet", "-device", "VGA"]);
    arguments
}

/// Whether KVM is to be used: in a virtual machine it may be there and nothing moves.
fn kvm_runs() -> bool {
    std::env::var_os("HYPER2KVM_KVM").is_some()
}

/// Boots the domain of `xml` and returns what the guest said on its serial console.
pub(crate) fn boot(xml: &str, place: &Path, limit: Duration) -> String {
    support::guest::boot(&arguments(xml, place), place, limit)
}

/// What the guest tells of itself in lines that begin with `TEST`.
pub(crate) fn told(console: &str) -> Vec<String> {
    console.lines().filter_map(|line| line.trim().strip_prefix("TEST ").map(str::to_owned)).collect()
}

/// Converts a guest of this kind and boots it.
fn boots(firmware: &str, more: &[&str]) {
    let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (has_data, is_broken) = (more.contains(&"data"), more.contains(&"broken"));
    let kind: Vec<&str> = [firmware].iter().chain(more).copied().collect();
    let Some(sums) = guest(place.path(), &kind) else { return };
    let source = if has_data { "web.ovf" } else { "system.raw" };
    if has_data {
        fs::write(place.path().join(source), OVF).unwrap();
    }
    let report = convert(place.path(), source, &[]);
    let (machine, guest) = (&report["machines"][0], &report["guest"]);
    assert_eq!((&guest["family"], &guest["os"]["id"]), (&"linux".into(), &"debian".into()), "{report:#}");
    let (bus, card) = if is_broken { ("sata", "e1000e") } else { ("virtio", "virtio") };
    assert_eq!(
        (&machine["disks"][0]["bus"], &machine["cards"][0]["device"]),
        (&bus.into(), &card.into()),
        "{report:#}"
    );
    let doubts: Vec<&str> = machine["doubts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let reason = doubts.iter().any(|doubt| doubt.starts_with("not from virtio-blk: /boot/initrd.img-"));
    assert_eq!(reason, is_broken, "{doubts:?}");
    let name = if has_data { "web.xml" } else { "system.xml" };
    let xml = fs::read_to_string(place.path().join("out").join(name)).unwrap();
    assert!(!is_broken || xml.contains("Doubt: not from virtio-blk"), "{xml}");

    let console = boot(&xml, place.path(), BOOT);
    let log = fs::read_to_string(place.path().join("qemu.log")).unwrap();
    let told = told(&console);
    let says =
        |line: &str| assert!(told.iter().any(|told| told == line), "{line}: {told:?}\n{log}\n{}", tail(&console));
    let (one, two) = if is_broken { ("sda", "sdb") } else { ("vda", "vdb") };
    let partition = if firmware == "efi" { 2 } else { 1 };
    let data = if has_data { format!("/dev/{two}1") } else { "none".to_owned() };
    says(&format!("root /dev/{one}{partition} data {data}"));
    says(&format!("firmware {firmware}"));
    says(&format!("sums {sums}"));
    says("end");
    let driver = if is_broken { "e1000e" } else { "virtio_net" };
    let cards: Vec<_> = told.iter().filter(|line| line.starts_with("card ")).collect();
    assert!(matches!(&cards[..], [card] if card.contains(driver)), "{cards:?}");
    assert!(!has_data || cards[0].ends_with(" 00:50:56:01:02:03"), "{cards:?}");
    assert_eq!(told.iter().filter(|line| line.starts_with("disk ")).count(), 1 + usize::from(has_data));
}

pub(crate) fn tail(text: &str) -> &str {
    &text[text.floor_char_boundary(text.len().saturating_sub(3000))..]
}

/// Whether the wide tests run (`make test-long`).
pub(crate) fn is_wide() -> bool {
    let is_wide = std::env::var_os("HYPER2KVM_GUESTS").is_some();
    if !is_wide {
        println!("LEFT OUT: further real Debians that boot (make test-long)");
    }
    is_wide
}

#[test]
fn a_debian_of_two_disks_boots_by_bios_from_its_domain() {
    boots("bios", &["data"]);
}

#[test]
fn a_debian_of_one_disk_boots_by_efi_from_its_domain() {
    boots("efi", &[]);
}

#[test]
fn wide_debians_boot_from_their_domains() {
    if is_wide() {
        boots("bios", &[]);
        boots("efi", &["data"]);
        boots("bios", &["data", "broken"]);
        boots("efi", &["broken"]);
    }
}

/// An appliance made of the guest's own kernel.
pub(crate) fn appliance(place: &Path) {
    let tree = cache().join("tree");
    let one = |below: &str, start: &str| {
        let found = fs::read_dir(tree.join(below)).unwrap().map(|entry| entry.unwrap().path());
        let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(start);
        found.into_iter().find(named).unwrap()
    };
    // With its symbols it fills the memory that unpacked archives get.
    let stripped = Command::new("strip")
        .args(["-o", "init", env!("CARGO_BIN_EXE_hyper2kvm-appliance")])
        .current_dir(place)
        .status();
    assert!(stripped.unwrap().success());
    let made = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
        .args(["appliance", "build", "--output", "appliance", "--init", "init"])
        .arg("--kernel")
        .arg(one("boot", "vmlinuz-"))
        .arg("--modules")
        .arg(one("lib/modules", ""))
        .current_dir(place)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_debian_without_virtio_is_fixed_and_boots_from_virtio() {
    let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(_) = guest(place.path(), &["bios", "data", "broken"]) else { return };
    fs::create_dir(place.path().join("appliance")).unwrap();
    appliance(place.path());
    fs::write(place.path().join("web.ovf"), OVF).unwrap();
    let words = ["--fix-guest=require", "--appliance", "appliance", "--boot-check=400", "--accelerator", "tcg"];
    let report = convert(place.path(), "web.ovf", &words);
    let guest = &report["guest"];
    let check = &guest["bootCheck"];
    assert_eq!((&check["result"], &check["accelerator"]), (&"booted".into(), &"tcg".into()), "{guest:#}");
    println!("tried: {check}");
    assert_eq!(
        (&guest["outcome"], &guest["bus"], &guest["nic"]),
        (&"fixed".into(), &"virtio".into(), &"virtio".into())
    );
    assert_eq!(
        (&guest["kernels"][0]["virtioBefore"], &guest["kernels"][0]["virtioAfter"]),
        (&"no".into(), &"yes".into())
    );
    println!("fixed in {} ms", guest["durationMs"]);
    let xml = fs::read_to_string(place.path().join("out/web.xml")).unwrap();
    let console = boot(&xml, place.path(), BOOT);
    let told = told(&console);
    assert!(told.iter().any(|line| line == "root /dev/vda1 data /dev/vdb1"), "{told:?}\n{}", tail(&console));
    assert!(told.iter().any(|line| line == "end"), "{}", tail(&console));
    assert!(told.iter().any(|line| line.starts_with("card virtio_net ")), "{told:?}");
}

/// Puts system.raw into a claim, and returns a worker's attempt at it with these options.
pub(crate) fn worker(here: &Path, options: &Value) -> Command {
    use std::os::unix::fs::MetadataExt as _;
    for directory in ["claim", "work"] {
        fs::create_dir(here.join(directory)).unwrap();
    }
    let member = here.join("claim/system.raw");
    fs::rename(here.join("system.raw"), &member).unwrap();
    let stat = fs::metadata(&member).unwrap();
    let mtime = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
    let claim = serde_json::json!({
        "contractVersion": 2, "id": "vm-0badcafe", "primary": "system.raw", "claimedAt": "2026-01-17T09:45:00Z",
        "date": "2026-01-17",
        "members": [{"name": "system.raw", "sizeBytes": stat.len(), "mtimeNs": mtime, "inode": stat.ino()}],
    });
    fs::write(here.join("claim/claim.json"), claim.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
    command
        .arg("worker")
        .env("HYPER2KVM_CLAIM", here.join("claim"))
        .env("HYPER2KVM_WORK", here.join("work"))
        .env("HYPER2KVM_FOLDER", "pod")
        .env("HYPER2KVM_OPTIONS", options.to_string())
        .env("HYPER2KVM_ATTEMPT", "1")
        .env("HYPER2KVM_APPLIANCE", here.join("appliance"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_debian_without_virtio_is_seen_not_to_boot_from_it() {
    let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = place.path();
    let Some(_) = guest(here, &["bios", "broken"]) else { return };
    let options = serde_json::json!({
        "domain": {"diskBus": "virtio"},
        "guest": {"bootCheck": {"mode": "require", "timeoutSeconds": 60}, "accelerator": "tcg"},
    });
    let output = worker(here, &options).output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", String::from_utf8_lossy(&output.stderr));
    let failure: Value = serde_json::from_slice(&fs::read(here.join("work/failure.json")).unwrap()).unwrap();
    assert_eq!(failure["failure"]["reason"], "GuestNotBooting", "{failure:#}");
    let message = failure["failure"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("it did not write to its disks in 6") && message.ends_with("never written"),
        "{message}"
    );
}
