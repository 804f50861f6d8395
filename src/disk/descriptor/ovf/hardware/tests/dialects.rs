// SPDX-License-Identifier: Apache-2.0
//! Envelopes laid out as each exporter lays them out: machine, disks and names must come out right.

use crate::conversion::machine::{Controller, Firmware, Machine};
use crate::disk::descriptor::ovf::parse;

/// The first part of an envelope of DMTF's version 1, with the namespaces that exporters declare.
const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:sasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_StorageAllocationSettingData.xsd"
  xmlns:epasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_EthernetPortAllocationSettingData.xsd"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vbox="http://www.virtualbox.org/ovf/machine"
  xmlns:nutanix="http://www.nutanix.com/schema" xmlns:xenovf="http://schemas.citrix.com/ovf/envelope/1">"#;

/// What must come out.
struct Expected<'a> {
    name: &'a str,
    processors: (u32, u32),
    memory_mib: u64,
    firmware: Option<Firmware>,
    secure_boot: Option<bool>,
    tpm: bool,
    /// File and controller, in their order.
    disks: &'a [(&'a str, Option<Controller>)],
    /// MAC and network.
    cards: &'a [(Option<&'a str>, Option<&'a str>)],
}

fn check(exporter: &str, body: &str, expected: &Expected) {
    let ovf = parse("vm.ovf", format!("{HEAD}{body}</Envelope>").as_bytes(), None).unwrap();
    let [machine] = &ovf.machines[..] else { panic!("{exporter}: {} machines", ovf.machines.len()) };
    let Machine { name, sockets, cores_per_socket, memory_mib, firmware, secure_boot, tpm, .. } = machine;
    assert_eq!(name.as_deref(), Some(expected.name), "{exporter}");
    let (expected_sockets, cores) = expected.processors;
    assert_eq!((*sockets, *cores_per_socket), (Some(expected_sockets), Some(cores)), "{exporter}");
    assert_eq!(*memory_mib, Some(expected.memory_mib), "{exporter}");
    assert_eq!((*firmware, *secure_boot, *tpm), (expected.firmware, expected.secure_boot, expected.tpm), "{exporter}");
    let file = |id: &str| {
        let disk = ovf.disks.iter().find(|disk| disk.id == id).unwrap();
        disk.file.map(|file| ovf.files[file].href.clone()).unwrap_or_default()
    };
    let disks: Vec<_> = machine.disks.iter().map(|disk| (file(&disk.file), disk.controller)).collect();
    let disks: Vec<_> = disks.iter().map(|(file, controller)| (file.as_str(), *controller)).collect();
    assert_eq!(disks, expected.disks, "{exporter}");
    let cards: Vec<_> = machine.cards.iter().map(|card| (card.mac.as_deref(), card.network.as_deref())).collect();
    assert_eq!(cards, expected.cards, "{exporter}");
    assert_eq!((&ovf.warnings[..], &machine.doubts[..]), (&[][..], &[][..]), "{exporter}");
}

#[test]
fn vsphere_with_a_tpm_nvram_and_disks_behind_nvme() {
    let body = r#"
  <References><File ovf:id="file1" ovf:href="win-1.vmdk" ovf:size="70144"/><File ovf:id="file2" ovf:href="win-2.vmdk"/>
    <File ovf:id="file3" ovf:href="win-3.nvram" ovf:size="270840"/></References>
  <DiskSection><Info>List of the virtual disks</Info>
    <Disk ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:capacity="60" ovf:fileRef="file1" ovf:populatedSize="1"/>
    <Disk ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk2" ovf:capacity="10" ovf:fileRef="file2"/></DiskSection>
  <NetworkSection><Info>n</Info><Network ovf:name="VM Network"><Description>d</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="win"><Info>A Virtual system</Info><Name>win</Name>
    <OperatingSystemSection ovf:id="1" vmw:osType="windows2022srvNext_64Guest"><Info>o</Info></OperatingSystemSection>
    <VirtualHardwareSection ovf:transport="com.vmware.guestInfo"><Info>h</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>vmx-20</vssd:VirtualSystemType></System>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity>
        <vmw:CoresPerSocket ovf:required="false">2</vmw:CoresPerSocket></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>8192</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>vmware.nvme.controller</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item ovf:required="false"><rasd:AutomaticAllocation>false</rasd:AutomaticAllocation><rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>vmware.vtpm</rasd:ResourceSubType><rasd:ResourceType>1</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>10</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource>
        <rasd:InstanceID>9</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>VM Network</rasd:Connection><rasd:InstanceID>11</rasd:InstanceID>
        <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
      <vmw:ExtraConfig ovf:required="false" vmw:key="nvram" vmw:value="ovf:/file/file3"/>
    </VirtualHardwareSection></VirtualSystem>"#;
    let expected = Expected {
        name: "win",
        processors: (2, 2),
        memory_mib: 8192,
        firmware: Some(Firmware::Efi),
        secure_boot: Some(true),
        tpm: true,
        disks: &[("win-2.vmdk", Some(Controller::Nvme)), ("win-1.vmdk", Some(Controller::Nvme))],
        cards: &[(None, Some("VM Network"))],
    };
    check("vSphere", body, &expected);
}

#[test]
fn virtualbox_in_the_second_version_of_the_format() {
    let body = r#"
  <References><File ovf:id="file1" ovf:href="deb-disk001.vmdk"/></References>
  <DiskSection><Info>i</Info><Disk ovf:capacity="21474836480" ovf:diskId="vmdisk1" ovf:fileRef="file1"
    ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" vbox:uuid="a"/></DiskSection>
  <VirtualSystem ovf:id="deb"><Info>A virtual machine</Info>
    <OperatingSystemSection ovf:id="96"><Info>o</Info><Description>Debian_64</Description>
      <vbox:OSType ovf:required="false">Debian_64</vbox:OSType></OperatingSystemSection>
    <VirtualHardwareSection><Info>h</Info>
      <Item><rasd:Caption>2 virtual CPU</rasd:Caption><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>AHCI</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
      <StorageItem><sasd:AddressOnParent>0</sasd:AddressOnParent><sasd:HostResource>/disk/vmdisk1</sasd:HostResource>
        <sasd:InstanceID>8</sasd:InstanceID><sasd:Parent>3</sasd:Parent><sasd:ResourceType>17</sasd:ResourceType></StorageItem>
      <EthernetPortItem><epasd:AutomaticAllocation>true</epasd:AutomaticAllocation><epasd:Connection>NAT</epasd:Connection>
        <epasd:InstanceID>10</epasd:InstanceID><epasd:ResourceSubType>E1000</epasd:ResourceSubType>
        <epasd:ResourceType>10</epasd:ResourceType></EthernetPortItem></VirtualHardwareSection>
    <vbox:Machine ovf:required="false" version="1.19-linux" uuid="{420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11}" name="deb">
      <Hardware><CPU count="2"/><Memory RAMSize="2048"/><Firmware type="EFI"/>
        <Display controller="VMSVGA" VRAMSize="16"/><BIOS><NVRAM path="deb.nvram"/><SecureBoot enabled="false"/></BIOS>
        <TrustedPlatformModule type="None" location=""/>
        <Network><Adapter slot="0" enabled="true" MACAddress="080027AABBCC" type="82540EM"><NAT/></Adapter>
          <Adapter slot="1" enabled="false" MACAddress="080027AABBCD"/></Network></Hardware></vbox:Machine></VirtualSystem>"#;
    let expected = Expected {
        name: "deb",
        processors: (1, 2),
        memory_mib: 2048,
        firmware: Some(Firmware::Efi),
        secure_boot: Some(false),
        tpm: false,
        disks: &[("deb-disk001.vmdk", Some(Controller::Sata))],
        cards: &[(Some("08:00:27:aa:bb:cc"), Some("NAT"))],
    };
    check("VirtualBox", body, &expected);
}

/// Settings of a machine with one disk of each exporter that writes no more than this.
fn plain(file: &str, controller: (&str, &str), others: &str) -> String {
    let (kind, model) = controller;
    format!(
        r#"<References><File ovf:id="f1" ovf:href="{file}"/></References>
  <DiskSection><Info>i</Info><Disk ovf:capacity="10" ovf:capacityAllocationUnits="GiB" ovf:diskId="d1" ovf:fileRef="f1"/></DiskSection>
  <VirtualSystem ovf:id="id"><Info>i</Info><Name>web 01</Name>
    <VirtualHardwareSection><Info>h</Info>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte*2^30</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>{model}</rasd:ResourceSubType><rasd:ResourceType>{kind}</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:Address>02:00:00:00:00:01</rasd:Address><rasd:Connection>lan</rasd:Connection>
        <rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>
      {others}</VirtualHardwareSection></VirtualSystem>"#
    )
}

#[test]
fn others_say_the_firmware_in_words_of_their_own() {
    let (efi, bios) = (Some(Firmware::Efi), Some(Firmware::Bios));
    let nutanix = |key: &str, value: &str| format!(r#"<nutanix:Config ovf:key="{key}" ovf:value="{value}"/>"#);
    for (exporter, file, controller, kind, others, firmware, secure_boot, tpm) in [
        ("AWS", "export-i-0a-disk-1.vmdk", ("6", "lsilogic"), Controller::Scsi, String::new(), None, None, false),
        ("Nutanix", "web.qcow2", ("6", "VirtualSCSI"), Controller::Scsi, nutanix("boot_type", "UEFI"), efi, None, false),
        ("Nutanix", "web.vmdk", ("5", "IDE"), Controller::Ide, nutanix("vm.bootType", "LEGACY"), bios, None, false),
        (
            "Nutanix",
            "web.vmdk",
            ("20", "AHCI"),
            Controller::Sata,
            nutanix("boot_type", "SECURE_BOOT") + &nutanix("is_vtpm_enabled", "true"),
            efi,
            Some(true),
            true,
        ),
        (
            "Nutanix",
            "web.vmdk",
            ("20", "AHCI"),
            Controller::Sata,
            "<nutanix:BootType>UEFI</nutanix:BootType><nutanix:SecureBoot>false</nutanix:SecureBoot>".to_owned(),
            efi,
            Some(false),
            false,
        ),
        (
            "XenCenter",
            "0a.vhd",
            ("5", "Ide"),
            Controller::Ide,
            "<xenovf:VirtualSystemOtherConfigurationData Name=\"HVM_boot_params\"><xenovf:Value>order=dc;firmware=uefi;\
             </xenovf:Value></xenovf:VirtualSystemOtherConfigurationData>"
                .to_owned(),
            efi,
            None,
            false,
        ),
    ] {
        let expected = Expected {
            name: "web 01",
            processors: (1, 2),
            memory_mib: 4096,
            firmware,
            secure_boot,
            tpm,
            disks: &[(file, Some(kind))],
            cards: &[(Some("02:00:00:00:00:01"), Some("lan"))],
        };
        check(exporter, &plain(file, controller, &others), &expected);
    }
}
