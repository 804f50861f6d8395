// SPDX-License-Identifier: Apache-2.0
//! From a dropped appliance to a guest that runs: a real Debian, exported as a vendor would, becomes claims and a machine,
//! and boots in QEMU by exactly what the machine says. No hand is on it between the drop and the boot.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper2kvm::cluster::api::VolumeState;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::plugin;
use super::stage::{Operator, Queue};
use crate::harness::{in_tree, left_out, run};
use crate::support;
use crate::volumes::Volumes;

/// Sizes of the guest's disks, in MiB: that of its system and that of its data.
const DISKS: [usize; 2] = [1024, 40];

/// How long all of it may be converted, and how long the guest may take to boot and to read its files without KVM.
const CONVERT: &str = "--timeout=600s";
const BOOT: Duration = Duration::from_secs(900);

/// Makes the disks of a guest in `place` (`system.raw`, `data.raw`) and returns the digest of its files; `None`, and a word
/// about it, where it can't be made.
fn guest(place: &Path, firmware: &str) -> Option<String> {
    let needed = ["debootstrap", "qemu-system-x86_64", "qemu-img", "mkfs.ext4", "sfdisk", "mcopy"];
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let has = |name: &&str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        left_out(&format!("a real Debian on claims: {missing} is not installed"));
        return None;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is target/tmp").join("guests/bootable");
    let script = in_tree("tests/guests/debian.sh");
    let made = Command::new(script).arg(&cache).arg(place).args([firmware, "data"]).output().expect("a shell runs");
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(!cache.join("tree").exists(), "{said}");
        left_out(&format!("a real Debian on claims: {said}"));
        return None;
    }
    Some(fs::read_to_string(place.join("sums")).unwrap().trim().to_owned())
}

/// An OVF as vSphere writes one: the disk that boots is the second file, by its place behind the controller the first.
fn ovf(firmware: &str, sizes: [u64; 2]) -> String {
    let item = |body: &str| format!("<Item>{body}</Item>");
    let disk = |instance: u32, disk: u32, unit: u32| {
        item(&format!(
            "<rasd:AddressOnParent>{unit}</rasd:AddressOnParent><rasd:ElementName>Hard disk {disk}</rasd:ElementName>\
             <rasd:HostResource>ovf:/disk/vmdisk{disk}</rasd:HostResource><rasd:InstanceID>{instance}</rasd:InstanceID>\
             <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType>"
        ))
    };
    let quantity = |instance: u32, kind: u32, units: &str, quantity: u32, more: &str| {
        item(&format!(
            "<rasd:AllocationUnits>{units}</rasd:AllocationUnits><rasd:InstanceID>{instance}</rasd:InstanceID>\
             <rasd:ResourceType>{kind}</rasd:ResourceType><rasd:VirtualQuantity>{quantity}</rasd:VirtualQuantity>{more}"
        ))
    };
    let items = [
        quantity(1, 3, "hertz * 10^6", 2, "<vmw:CoresPerSocket ovf:required=\"false\">2</vmw:CoresPerSocket>"),
        quantity(2, 4, "byte * 2^20", 512, ""),
        item(
            "<rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>\
             <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType>",
        ),
        disk(4, 1, 1),
        disk(5, 2, 0),
        item(
            "<rasd:Address>00:50:56:01:02:03</rasd:Address><rasd:AddressOnParent>7</rasd:AddressOnParent>\
             <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation><rasd:Connection>VM Network</rasd:Connection>\
             <rasd:InstanceID>6</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>\
             <rasd:ResourceType>10</rasd:ResourceType>",
        ),
    ];
    let [first, second] = sizes;
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" \
         xmlns:vmw=\"http://www.vmware.com/schema/ovf\"><References>\
         <File ovf:id=\"file1\" ovf:href=\"web01-1.vmdk\" ovf:size=\"{first}\"/>\
         <File ovf:id=\"file2\" ovf:href=\"web01-2.vmdk\" ovf:size=\"{second}\"/></References><DiskSection>\
         <Info>Virtual disks</Info>\
         <Disk ovf:capacity=\"{data}\" ovf:capacityAllocationUnits=\"byte * 2^20\" ovf:diskId=\"vmdisk1\" ovf:fileRef=\"file1\"/>\
         <Disk ovf:capacity=\"{system}\" ovf:capacityAllocationUnits=\"byte * 2^20\" ovf:diskId=\"vmdisk2\" ovf:fileRef=\"file2\"/>\
         </DiskSection><NetworkSection><Info>Networks</Info><Network ovf:name=\"VM Network\"/></NetworkSection>\
         <VirtualSystem ovf:id=\"web01\"><Info>A virtual machine</Info><Name>web01</Name>\
         <OperatingSystemSection ovf:id=\"96\" vmw:osType=\"debian12_64Guest\"><Info>Guest</Info></OperatingSystemSection>\
         <VirtualHardwareSection><Info>Virtual hardware</Info>{items}\
         <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"{firmware}\"/>\
         </VirtualHardwareSection></VirtualSystem></Envelope>\n",
        system = DISKS[0],
        data = DISKS[1],
        items = items.concat(),
    )
}

/// The guest as an OVA: description, digests, disks packed as streams.
fn export(place: &Path, firmware: &str) -> PathBuf {
    let mut sizes = [0; 2];
    let mut digests = String::new();
    for (n, disk) in ["data.raw", "system.raw"].into_iter().enumerate() {
        let member = format!("web01-{}.vmdk", n + 1);
        let pack = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, &member];
        run(Command::new("qemu-img").args(pack).current_dir(place));
        fs::remove_file(place.join(disk)).unwrap();
        sizes[n] = fs::metadata(place.join(&member)).unwrap().len();
    }
    fs::write(place.join("web01.ovf"), ovf(firmware, sizes)).unwrap();
    let members = ["web01.ovf", "web01-1.vmdk", "web01-2.vmdk"];
    for member in members {
        let said = run(Command::new("sha256sum").arg(member).current_dir(place));
        writeln!(digests, "SHA256({member})= {}", said.split_whitespace().next().unwrap()).unwrap();
    }
    fs::write(place.join("web01.mf"), digests).unwrap();
    let order = [members[0], "web01.mf", members[1], members[2]];
    run(Command::new("tar").args(["--format=ustar", "-cf", "web01.ova"]).args(order).current_dir(place));
    for member in order {
        fs::remove_file(place.join(member)).unwrap();
    }
    place.join("web01.ova")
}

/// QEMU's arguments for a machine: everything that it says, in its order, and nothing that it does not say.
fn arguments(machine: &Value, place: &Path, device: impl Fn(&str) -> PathBuf) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"].map(Into::into).into();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    let pod = &machine["spec"]["template"]["spec"];
    let domain = &pod["domain"];
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value} in {machine:#}")).to_owned();
    let features = domain["features"].as_object().unwrap();
    assert_eq!(features.keys().collect::<Vec<_>>(), ["acpi"], "no other is known here");
    let kind = text(&domain["machine"]["type"]);
    add(&[
        "-machine",
        &format!("{kind},accel=tcg"),
        "-cpu",
        "max",
        "-m",
        &text(&domain["memory"]["guest"]).replace("Mi", "M"),
    ]);
    let cpu = &domain["cpu"];
    add(&["-smp", &format!("sockets={},cores={},threads={}", cpu["sockets"], cpu["cores"], cpu["threads"])]);
    if let Some(uuid) = domain["firmware"]["uuid"].as_str() {
        add(&["-uuid", uuid]);
    }
    let loader = domain["firmware"]["bootloader"].as_object().unwrap();
    match (loader.contains_key("efi"), loader.contains_key("bios")) {
        (true, false) => {
            assert_eq!(loader["efi"], json!({"secureBoot": false}));
            let variables = place.join("vars.fd");
            fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).unwrap();
            add(&["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
            add(&["-drive", &format!("if=pflash,format=raw,file={}", variables.display())]);
        }
        (false, true) => {}
        _ => panic!("{loader:?}"),
    }
    assert_eq!(domain["clock"], json!({"utc": {}}));
    add(&["-rtc", "base=utc"]);
    let devices = &domain["devices"];
    for (n, disk) in devices["disks"].as_array().unwrap().iter().enumerate() {
        let name = text(&disk["name"]);
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name.as_str()).unwrap();
        let claim = text(&volume["persistentVolumeClaim"]["claimName"]);
        add(&["-drive", &format!("if=none,id={name},format=raw,file={}", device(&claim).display())]);
        let (kind, at) = match text(&disk["disk"]["bus"]).as_str() {
            // q35 has one SATA controller by itself.
            "sata" => ("ide-hd", format!(",bus=ide.{n}")),
            "virtio" => ("virtio-blk-pci", String::new()),
            other => panic!("bus {other}"),
        };
        let order = disk["bootOrder"].as_u64().map(|order| format!(",bootindex={order}")).unwrap_or_default();
        add(&["-device", &format!("{kind},drive={name},serial={}{at}{order}", text(&disk["serial"]))]);
    }
    for card in devices["interfaces"].as_array().unwrap() {
        let (name, model) = (text(&card["name"]), text(&card["model"]));
        let network = pod["networks"].as_array().unwrap().iter().find(|network| network["name"] == name.as_str());
        assert_eq!((&network.unwrap()["pod"], &card["masquerade"]), (&json!({}), &json!({})));
        let model = if model == "virtio" { "virtio-net-pci" } else { &model };
        let device = format!("{model},netdev={name},mac={}", text(&card["macAddress"]));
        add(&["-netdev", &format!("user,id={name},restrict=on"), "-device", &device]);
    }
    assert_eq!(devices["inputs"], json!([{"bus": "usb", "name": "tablet", "type": "tablet"}]));
    assert_eq!(devices["rng"], json!({}));
    // KubeVirt adds a VGA card and a serial port to what does not refuse them.
    add(&["-device", "qemu-xhci", "-device", "usb-tablet", "-device", "virtio-rng-pci", "-device", "VGA"]);
    arguments
}

/// Boots the machine and returns what the guest said on its serial console.
fn boot(arguments: &[String], place: &Path) -> String {
    let console = support::guest::boot(arguments, place, BOOT);
    format!("{console}\n{}", fs::read_to_string(place.join("qemu.log")).unwrap())
}

async fn boots(test: &str, firmware: &str) {
    let Some(operator) = Operator::delivering(test) else { return };
    let place = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(sums) = guest(place.path(), firmware) else { return };
    let image = export(place.path(), firmware);
    let [system, data] = DISKS;
    // Of the next larger GiB and half, as storage hands them out.
    let Some(volumes) = Volumes::new(&operator.namespace, "Block", &[(system + 64, system + 64), (data + 8, data + 8)])
    else {
        return;
    };
    let spec = json!({
        "target": {"storageClassName": volumes.class, "volumeMode": "Block"},
        "virtualMachine": {"networks": [{"source": "VM Network", "pod": {}}]},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;

    let dropped = Instant::now();
    plugin(&queue, &["put", image.to_str().unwrap(), &queue.name]);
    println!("uploaded in {:?}", dropped.elapsed());
    let conversion = queue.conversion("web01.ova", "made", |_| true).await.name_any();
    let object = format!("hcj/{conversion}");
    run(queue.kubectl().args(["wait", "--for=condition=Succeeded", CONVERT, &object]));
    println!("drop to machine: {:?}", dropped.elapsed());
    fs::remove_file(&image).unwrap();
    let over = queue.until(&conversion, "complete", |_| true).await;
    let over: hyper2kvm::cluster::api::ConversionJob = over;
    let status = over.status.unwrap();
    assert_eq!(status.volumes.iter().map(|volume| volume.state).collect::<Vec<_>>(), [VolumeState::Complete; 2]);
    let created = status.conditions.iter().find(|c| c.type_ == "MachineCreated").unwrap();
    println!("MachineCreated: {}: {}", created.reason, created.message);

    let machine = run(queue.kubectl().args(["get", "virtualmachines.kubevirt.io", "web01", "-o", "json"]));
    let machine: Value = serde_json::from_str(&machine).unwrap();
    let mut bound = std::collections::BTreeMap::new();
    for volume in &status.volumes {
        let claim = queue.until::<PersistentVolumeClaim>(&volume.claim_name, "there", |_| true).await;
        let name = claim.spec.unwrap().volume_name.unwrap();
        bound.insert(volume.claim_name.clone(), volumes.devices[&name].path.clone());
    }
    let arguments = arguments(&machine, place.path(), |claim| bound[claim].clone());
    let console = boot(&arguments, place.path());
    let told: Vec<&str> = console.lines().filter_map(|line| line.trim().strip_prefix("TEST ")).collect();
    let tail = &console[console.floor_char_boundary(console.len().saturating_sub(3000))..];
    let says = |line: &str| assert!(told.contains(&line), "{line}: {told:?}\n{arguments:?}\n{tail}");
    // The kernel names disks in the order in which they answer: the serial number tells which is which.
    let disk = |n: usize| {
        let serial = machine["spec"]["template"]["spec"]["domain"]["devices"]["disks"][n]["serial"].as_str().unwrap();
        let found = told.iter().find_map(|line| line.strip_prefix("serial ")?.strip_suffix(serial).map(str::trim));
        found.unwrap_or_else(|| panic!("{serial}: {told:?}\n{arguments:?}\n{tail}"))
    };
    // The disk that starts is the first.
    let partition = if firmware == "efi" { 2 } else { 1 };
    says(&format!("root /dev/{}{partition} data /dev/{}1", disk(0), disk(1)));
    says(&format!("firmware {firmware}"));
    says(&format!("sums {sums}"));
    says("end");
    let cards: Vec<_> = told.iter().filter(|line| line.starts_with("card ")).collect();
    assert_eq!(cards, [&"card e1000e 00:50:56:01:02:03"], "{tail}");
}

#[tokio::test]
async fn wide_debian_that_is_dropped_as_an_appliance_boots_by_bios_from_its_claims() {
    if std::env::var_os("HYPER2KVM_GUESTS").is_none() {
        return left_out("a real Debian on claims by BIOS (make test-long)");
    }
    boots("boots-bios", "bios").await;
}

#[tokio::test]
async fn wide_debian_that_is_dropped_as_an_appliance_boots_by_efi_from_its_claims() {
    if std::env::var_os("HYPER2KVM_GUESTS").is_none() {
        return left_out("a real Debian on claims by EFI (make test-long)");
    }
    boots("boots-efi", "efi").await;
}
