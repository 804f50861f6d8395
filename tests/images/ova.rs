// SPDX-License-Identifier: Apache-2.0
//! Makes OVAs: whole ones, and the pieces of broken ones.
#![allow(dead_code, clippy::format_collect, reason = "each test binary uses another part")]

use std::fmt::Write as _;

use sha1::Digest;

/// A tar header of the POSIX kind, its checksum right.
pub(crate) fn header(name: &[u8], size: u64, flag: u8) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", size & 0o777_7777_7777).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = flag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut header);
    header
}

/// Sets the checksum of a header that was changed.
pub(crate) fn sum(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A header, the content, and zeros up to the next block.
pub(crate) fn entry(header: &[u8; 512], content: &[u8]) -> Vec<u8> {
    let mut bytes = [header, content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A regular member.
pub(crate) fn member(name: &str, content: &[u8]) -> Vec<u8> {
    entry(&header(name.as_bytes(), content.len() as u64, b'0'), content)
}

/// An extended header with these records, for the member after it.
pub(crate) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length =
            (1..9).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l).expect("a fixed point");
        writeln!(content, "{length} {key}={value}").expect("a String takes every write");
    }
    entry(&header(b"PaxHeader", content.len() as u64, b'x'), content.as_bytes())
}

/// The end of every tar: two blocks of zeros.
pub(crate) const END: [u8; 1024] = [0; 1024];

/// A whole tar.
pub(crate) fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.iter().flat_map(|(name, content)| member(name, content)).collect();
    bytes.extend(END);
    bytes
}

/// An OVF with 2 vCPUs, 2 GiB, one SCSI controller, one network card, and a disk for each (href, capacity in bytes).
pub(crate) fn ovf(disks: &[(&str, u64)]) -> String {
    let (mut files, mut list, mut items) = (String::new(), String::new(), String::new());
    for (n, (href, capacity)) in disks.iter().enumerate() {
        writeln!(files, "    <File ovf:href=\"{href}\" ovf:id=\"file{n}\"/>").expect("a String takes every write");
        writeln!(list, "    <Disk ovf:capacity=\"{capacity}\" ovf:diskId=\"disk{n}\" ovf:fileRef=\"file{n}\"/>")
            .expect("a String takes every write");
        writeln!(
            items,
            "      <Item><rasd:AddressOnParent>{n}</rasd:AddressOnParent>\
             <rasd:HostResource>ovf:/disk/disk{n}</rasd:HostResource><rasd:InstanceID>{}</rasd:InstanceID>\
             <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>",
            n + 10
        )
        .expect("a String takes every write");
    }
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{files}  </References>
  <DiskSection>
    <Info>Disks</Info>
{list}  </DiskSection>
  <VirtualSystem ovf:id="sample">
    <Info>A machine</Info>
    <Name>sample</Name>
    <OperatingSystemSection ovf:id="96" vmw:osType="debian12_64Guest"><Info>System</Info></OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType></Item>
{items}      <Item><rasd:Address>00:50:56:01:02:03</rasd:Address><rasd:Connection>VM Network</rasd:Connection>
        <rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"#
    )
}

/// A manifest with the SHA256 of each member.
pub(crate) fn manifest(members: &[(&str, &[u8])]) -> String {
    let line = |(name, content): &(&str, &[u8])| format!("SHA256({name})= {}\n", hex(&sha2::Sha256::digest(content)));
    members.iter().map(line).collect()
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A whole OVA called `stem`: the OVF, its manifest, the disks (href, content, capacity in bytes).
pub(crate) fn ova(stem: &str, disks: &[(&str, &[u8], u64)]) -> Vec<u8> {
    let listed: Vec<_> = disks.iter().map(|(href, _, capacity)| (*href, *capacity)).collect();
    let (ovf, name) = (ovf(&listed), format!("{stem}.ovf"));
    let mut members = vec![(name.as_str(), ovf.as_bytes())];
    members.extend(disks.iter().map(|(href, content, _)| (*href, *content)));
    let (manifest, manifest_name) = (manifest(&members), format!("{stem}.mf"));
    members.insert(1, (&manifest_name, manifest.as_bytes()));
    tar(&members)
}
