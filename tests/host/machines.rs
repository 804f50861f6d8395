// SPDX-License-Identifier: Apache-2.0
//! The machine as files: what `hyper2kvm convert --emit` writes, judged by the platforms' own code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const EMIT: &str = "libvirt,kubevirt,proxmox,openstack";

/// A disk of 8 MiB: a GPT with an EFI system partition and no code, or an MBR with code and an active partition, or
/// nothing.
fn disk(place: &Path, name: &str, kind: &str) {
    let mut bytes = vec![0; 8 << 20];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    match kind {
        "efi" => {
            put(450, &[0xee]);
            put(510, &[0x55, 0xaa]);
            put(512, b"EFI PART");
            put(512 + 72, &[2]);
            put(512 + 80, &[128, 0, 0, 0, 128]);
            let system = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
            put(1024, &system);
        }
        "bios" => {
            put(0, &[0xeb, 0x63, 0x90]);
            put(446, &[0x80, 0, 0, 0, 0x83]);
            put(510, &[0x55, 0xaa]);
        }
        _ => {}
    }
    fs::write(place.join(name), bytes).unwrap();
}

fn convert(place: &Path, source: &str, more: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
        .args(["convert", "--json", "--output-dir", "out"])
        .args(more)
        .arg(source)
        .current_dir(place)
        .output()
        .expect("the built binary runs");
    let told = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, told)
}

fn converted(place: &Path, source: &str) -> Value {
    let (output, told) = convert(place, source, &["--emit", EMIT]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    told
}

fn read(place: &Path, name: &str) -> String {
    fs::read_to_string(place.join("out").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Holds a domain to libvirt's schema; says so where that is not installed.
fn validate(path: &Path) {
    match Command::new("virt-xml-validate").arg(path).arg("domain").output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("left out: virt-xml-validate: {error}"),
    }
}

/// The program that judges manifests as `KubeVirt` does; `None`, and a word about it, without Go.
fn kubevirt() -> Option<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/build.sh");
    let output = Command::new(build).arg("kubevirt").output().expect("a shell runs");
    if !output.status.success() {
        eprintln!("left out: KubeVirt's own validation: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let directory = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    Some(directory.join("kubevirt"))
}

/// What the judge says of each manifest: `None` where it takes it. All at once, for it takes seconds to start.
fn refusals(judge: &Path, manifests: &[String]) -> Vec<Option<String>> {
    let place = TempDir::new().unwrap();
    let paths: Vec<_> = (0..manifests.len()).map(|n| place.path().join(format!("{n}.yaml"))).collect();
    for (path, manifest) in paths.iter().zip(manifests) {
        fs::write(path, manifest).unwrap();
    }
    let output = Command::new(judge).args(&paths).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let of = |path: &PathBuf| {
        said.lines().find_map(|line| line.strip_prefix(&format!("{}: ", path.display()))).map(str::to_owned)
    };
    let refusals: Vec<_> = paths.iter().map(of).collect();
    assert_eq!(output.status.success(), refusals.iter().all(Option::is_none), "{said}");
    refusals
}

/// An OVF of one machine with these settings, behind two disks of which the second one is listed first.
fn ovf(name: &str, settings: &str) -> String {
    format!(
        "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1' xmlns:r='r' xmlns:vmw='v'><References>\
         <File ovf:id='f1' ovf:href='data.raw'/><File ovf:id='f2' ovf:href='boot.raw'/></References><DiskSection>\
         <Disk ovf:diskId='d1' ovf:fileRef='f1' ovf:capacity='8388608'/>\
         <Disk ovf:diskId='d2' ovf:fileRef='f2' ovf:capacity='8388608'/></DiskSection>{}</Envelope>",
        system(name, settings, &[("d1", "1"), ("d2", "0")])
    )
}

fn system(name: &str, settings: &str, disks: &[(&str, &str)]) -> String {
    let disks = disks.iter().map(|(disk, unit)| {
        format!(
            "<Item><r:InstanceID>{disk}</r:InstanceID><r:ResourceType>17</r:ResourceType><r:Parent>3</r:Parent>\
             <r:HostResource>ovf:/disk/{disk}</r:HostResource><r:AddressOnParent>{unit}</r:AddressOnParent></Item>"
        )
    });
    format!(
        "<VirtualSystem ovf:id='vm'><Name>{name}</Name>\
         <OperatingSystemSection vmw:osType='windows2019srv_64Guest'/><VirtualHardwareSection>\
         <Item><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>4</r:VirtualQuantity>\
         <vmw:CoresPerSocket>2</vmw:CoresPerSocket></Item>\
         <Item><r:InstanceID>3</r:InstanceID><r:ResourceType>6</r:ResourceType><r:Address>0</r:Address></Item>\
         {}{settings}</VirtualHardwareSection></VirtualSystem>",
        disks.collect::<String>()
    )
}

const CARDS: &str = "<Item><r:ResourceType>10</r:ResourceType><r:Address>00:50:56:01:02:03</r:Address>\
    <r:Connection>LAN</r:Connection><r:ResourceSubType>VmxNet3</r:ResourceSubType></Item>\
    <Item><r:ResourceType>10</r:ResourceType><r:ResourceSubType>E1000</r:ResourceSubType></Item>";

const SECURE: &str = "<vmw:Config vmw:key='firmware' vmw:value='efi'/>\
    <vmw:Config vmw:key='bootOptions.efiSecureBootEnabled' vmw:value='true'/>\
    <Item><r:ResourceType>1</r:ResourceType><r:ResourceSubType>vmware.vtpm</r:ResourceSubType></Item>";

#[test]
fn a_bare_disk_gets_the_firmware_of_its_partition_table() {
    let place = TempDir::new().unwrap();
    for (name, firmware, doubt) in [
        ("efi", "efi", "the firmware is taken for EFI, as the partition table shows"),
        ("bios", "bios", "the firmware is taken for BIOS, as the partition table shows"),
        ("data", "bios", "neither the source nor a partition table tells the firmware: bios is a guess"),
    ] {
        disk(place.path(), &format!("{name}.raw"), name);
        let told = converted(place.path(), &format!("{name}.raw"));
        assert_eq!((&told["contractVersion"], &told["machines"][0]["firmware"]), (&2.into(), &firmware.into()));
        let doubts: Vec<&str> =
            told["machines"][0]["doubts"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(doubts.contains(&doubt), "{doubts:?}");
        for file in ["xml", "virtualmachine.yaml", "proxmox.sh", "openstack.sh", "glance.json"] {
            assert!(read(place.path(), &format!("{name}.{file}")).contains(doubt), "{name}.{file}");
        }
        validate(&place.path().join(format!("out/{name}.xml")));
    }
}

/// Hyper-V's settings of a machine of generation 2 with these disks, as UTF-16.
fn hyperv(name: &str, disks: &[&str]) -> Vec<u8> {
    let drives = disks.iter().enumerate().map(|(unit, disk)| {
        format!("<drive{unit}><pathname type=\"string\">D:\\VMs\\{disk}</pathname><type type=\"string\">VHD</type></drive{unit}>")
    });
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-16\"?><configuration><_a_><ChannelInstanceGuid/><controller0>{}</controller0></_a_>\
         <properties><name type=\"string\">{name}</name><subtype type=\"integer\">1</subtype></properties><settings>\
         <memory><bank><size type=\"integer\">3072</size></bank></memory><processors><count type=\"integer\">3</count>\
         </processors></settings></configuration>",
        drives.collect::<String>()
    );
    [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn an_export_of_hyper_v_is_described_by_the_settings_that_name_its_disk() {
    let guid = |n: u8| format!("1A2B3C4D-0000-1111-2222-0000000000{n:02X}");
    let place = TempDir::new().unwrap();
    let (disks, machines) = (place.path().join("Virtual Hard Disks"), place.path().join("Virtual Machines"));
    for directory in [&disks, &machines] {
        fs::create_dir(directory).unwrap();
    }
    disk(&disks, "raw", "efi");
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "vhdx", "raw", "web01.vhdx"])
        .current_dir(&disks)
        .status();
    let Ok(true) = made.map(|status| status.success()) else { return eprintln!("left out: qemu-img is not installed") };
    fs::write(machines.join(format!("{}.xml", guid(1))), hyperv("of another", &["db01.vhdx"])).unwrap();
    fs::write(machines.join(format!("{}.xml", guid(2))), hyperv("Web 01", &["Web01.vhdx", "data.vhdx"])).unwrap();
    // Not called after a GUID, as a domain that was written beside the disk.
    fs::write(disks.join("web01.xml"), hyperv("a domain", &["web01.vhdx"])).unwrap();
    let told = converted(place.path(), "Virtual Hard Disks/web01.vhdx");
    let machine = &told["machines"][0];
    assert_eq!((&machine["describedBy"], &machine["name"]), (&"hyperv".into(), &"Web 01".into()), "{machine}");
    assert_eq!((&machine["memoryMib"], &machine["coresPerSocket"]), (&3072.into(), &3.into()));
    assert_eq!((&machine["firmware"], machine["disks"].as_array().unwrap().len()), (&"efi".into(), 1));
    assert!(machine["doubts"].to_string().contains("further disks (1)"), "{machine}");
    validate(&place.path().join("out/web01.xml"));

    for (n, settings) in [(3, hyperv("twice", &["web01.vhdx"])), (4, b"binary".to_vec())] {
        fs::write(machines.join(format!("{}.{}", guid(n), if n == 4 { "vmcx" } else { "xml" })), settings).unwrap();
        fs::remove_dir_all(place.path().join("out")).unwrap();
        let machine = converted(place.path(), "Virtual Hard Disks/web01.vhdx")["machines"][0].clone();
        // Two that name it: nobody knows which is meant.
        assert_eq!(machine["describedBy"], "disks", "{machine}");
        for left in fs::read_dir(&machines).unwrap().flatten() {
            fs::remove_file(left.path()).unwrap();
        }
        if n == 4 {
            assert!(machine["doubts"].to_string().contains("only Hyper-V reads"), "{machine}");
        }
    }
}

#[test]
fn the_disk_that_boots_is_first_wherever_it_is_listed() {
    let place = TempDir::new().unwrap();
    disk(place.path(), "data.raw", "data");
    disk(place.path(), "boot.raw", "bios");
    fs::write(place.path().join("vm.ovf"), ovf("vm", CARDS)).unwrap();
    let told = converted(place.path(), "vm.ovf");
    let files: Vec<_> = told["machines"][0]["disks"].as_array().unwrap().iter().map(|disk| &disk["file"]).collect();
    assert_eq!(files, ["vm-disk1.qcow2", "vm-disk0.qcow2"]);
    let xml = read(place.path(), "vm.xml");
    let (first, second) = (xml.find("vm-disk1.qcow2").unwrap(), xml.find("vm-disk0.qcow2").unwrap());
    assert!(first < second && xml.matches("<boot order='1'/>").count() == 1, "{xml}");
    // By address the data disk would be first here: what has nothing to start goes behind.
    let swapped = ovf("vm", CARDS).replace(">1</r:AddressOnParent>", ">x</r:AddressOnParent>");
    let swapped = swapped.replace(">0</r:AddressOnParent>", ">1</r:AddressOnParent>");
    fs::write(place.path().join("swapped.ovf"), swapped).unwrap();
    let told = converted(place.path(), "swapped.ovf");
    assert_eq!(told["machines"][0]["disks"][0]["file"], "swapped-disk1.qcow2");
}

#[test]
fn machines_of_one_ovf_get_files_of_their_own() {
    let place = TempDir::new().unwrap();
    disk(place.path(), "data.raw", "bios");
    disk(place.path(), "boot.raw", "bios");
    let one = ovf("app", "");
    let start = one.find("<VirtualSystem").unwrap();
    let systems = system("app", "", &[("d1", "0")]) + &system("db", "", &[("d2", "0")]);
    let text = format!("{}<VirtualSystemCollection>{systems}</VirtualSystemCollection></Envelope>", &one[..start]);
    fs::write(place.path().join("vapp.ovf"), text).unwrap();
    let told = converted(place.path(), "vapp.ovf");
    assert_eq!(told["machines"].as_array().unwrap().len(), 2);
    for (name, own, other) in [("app", "vapp-disk0", "vapp-disk1"), ("db", "vapp-disk1", "vapp-disk0")] {
        for file in ["xml", "virtualmachine.yaml", "proxmox.sh", "openstack.sh", "glance.json"] {
            let text = read(place.path(), &format!("vapp-{name}.{file}"));
            assert!(text.contains(own) && !text.contains(other), "{name}.{file}: {text}");
        }
    }
    assert!(!place.path().join("out/vapp.xml").exists());
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_copied() {
    let place = TempDir::new().unwrap();
    disk(place.path(), "efi.raw", "efi");
    fs::create_dir(place.path().join("out")).unwrap();
    fs::write(place.path().join("out/efi.proxmox.sh"), "mine").unwrap();
    let (output, _) = convert(place.path(), "efi.raw", &["--emit", "proxmox"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(place.path().join("out")).unwrap().count(), 1);
    let (output, _) = convert(place.path(), "efi.raw", &["--emit", "vmware"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn kubevirt_takes_every_machine_and_refuses_seeded_faults() {
    let Some(judge) = kubevirt() else { return };
    let place = TempDir::new().unwrap();
    disk(place.path(), "data.raw", "data");
    disk(place.path(), "boot.raw", "efi");
    let settings = format!("{SECURE}{CARDS}");
    fs::write(place.path().join("win.ovf"), ovf("on: {off} \u{202e}\"'", &settings)).unwrap();
    fs::write(place.path().join("plain.ovf"), ovf("yes", "")).unwrap();
    let whole = ["win.ovf", "plain.ovf", "boot.raw", "data.raw"].map(|source| {
        converted(place.path(), source);
        let stem = source.split('.').next().unwrap();
        read(place.path(), &format!("{stem}.virtualmachine.yaml"))
    });
    let faults = [
        ("a bus that is refused", "bus: sata", "bus: ide", "IDE"),
        ("secure boot without SMM", "smm:", "pvspinlock:", "SMM"),
        ("a field that is none", "runStrategy: Halted", "runStrategie: Halted", "runStrategie"),
        ("a card's model", "model: e1000e", "model: vmxnet3", "vmxnet3"),
        ("a boot order from 0", "bootOrder: 1", "bootOrder: 0", "bootOrder"),
        ("a machine type", "type: q35", "type: pc", "machine"),
    ];
    let seeded = faults.map(|(what, from, to, _)| {
        let seeded = seed(&whole[0], from, to);
        assert_ne!(seeded, whole[0], "{what}: {}", whole[0]);
        seeded
    });
    let said = refusals(&judge, &[whole.as_slice(), &seeded].concat());
    let (of_whole, of_seeded) = said.split_at(whole.len());
    assert_eq!(of_whole, [const { None }; 4], "{whole:?}");
    for ((what, _, _, cause), said) in faults.iter().zip(of_seeded) {
        let said = said.as_deref().unwrap_or_else(|| panic!("{what} is taken: {seeded:?}"));
        assert!(said.contains(cause), "{what}: {said}");
    }
}

/// Replaces the first line that is `from`, whatever its indentation.
fn seed(text: &str, from: &str, to: &str) -> String {
    let mut is_seeded = false;
    let line = |line: &str| {
        let is_it = line.trim_start_matches(['-', ' ']) == from && !is_seeded;
        is_seeded |= is_it;
        if is_it { line.replace(from, to) } else { line.to_owned() }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}
