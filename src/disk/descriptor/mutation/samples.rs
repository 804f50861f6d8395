// SPDX-License-Identifier: Apache-2.0
//! A good text of each kind, with as many of its words as one file can have.

pub(super) const VSPHERE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="e" xmlns:ovf="e" xmlns:rasd="r" xmlns:vssd="s" xmlns:vmw="v">
  <References><File ovf:id="file1" ovf:href="win-1.vmdk" ovf:size="70144"/><File ovf:id="file2" ovf:href="win%202.vmdk"/>
    <File ovf:id="file3" ovf:href="win-3.nvram" ovf:size="270840"/></References>
  <DiskSection><Info>d</Info>
    <Disk ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:capacity="60" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
    <Disk ovf:capacity="1073741824" ovf:diskId="vmdisk2" ovf:fileRef="file2"/>
    <Disk ovf:capacity="10" ovf:capacityAllocationUnits="GiB" ovf:diskId="vmdisk3"/></DiskSection>
  <NetworkSection><Info>n</Info><Network ovf:name="VM Network"><Description>d</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="win"><Info>i</Info><Name>win &amp; 01</Name>
    <AnnotationSection><Info>a</Info><Annotation>made by hand</Annotation></AnnotationSection>
    <OperatingSystemSection ovf:id="1" vmw:osType="windows2022srvNext_64Guest"><Info>o</Info></OperatingSystemSection>
    <VirtualHardwareSection ovf:transport="com.vmware.guestInfo"><Info>h</Info>
      <System><vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemType>vmx-20</vssd:VirtualSystemType></System>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity>
        <vmw:CoresPerSocket ovf:required="false">2</vmw:CoresPerSocket></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>8192</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item ovf:required="false"><rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>vmware.vtpm</rasd:ResourceSubType><rasd:ResourceType>1</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>10</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource>
        <rasd:InstanceID>9</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:Address>00:50:56:aa:bb:cc</rasd:Address><rasd:Connection>VM Network</rasd:Connection>
        <rasd:InstanceID>11</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
      <vmw:ExtraConfig ovf:required="false" vmw:key="nvram" vmw:value="ovf:/file/file3"/>
    </VirtualHardwareSection>
    <vmw:BootOrderSection vmw:instanceId="9" vmw:type="disk"><Info>b</Info></vmw:BootOrderSection>
  </VirtualSystem>
</Envelope>"#;

pub(super) const VIRTUALBOX: &str = r#"<?xml version="1.0"?>
<Envelope ovf:version="2.0" xmlns="e" xmlns:ovf="e" xmlns:rasd="r" xmlns:sasd="s" xmlns:epasd="p" xmlns:vbox="b">
  <References><File ovf:id="file1" ovf:href="deb-disk001.vmdk"/></References>
  <DiskSection><Disk ovf:capacity="21474836480" ovf:diskId="vmdisk1" ovf:fileRef="file1" vbox:uuid="a"/></DiskSection>
  <VirtualSystem ovf:id="deb"><Info>i</Info>
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
      <EthernetPortItem><epasd:Connection>NAT</epasd:Connection><epasd:InstanceID>10</epasd:InstanceID>
        <epasd:ResourceSubType>E1000</epasd:ResourceSubType><epasd:ResourceType>10</epasd:ResourceType></EthernetPortItem>
    </VirtualHardwareSection>
    <vbox:Machine ovf:required="false" version="1.19-linux" uuid="{420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11}" name="deb">
      <Hardware><CPU count="2"/><Memory RAMSize="2048"/><Firmware type="EFI"/>
        <BIOS><NVRAM path="deb.nvram"/><SecureBoot enabled="false"/></BIOS><TrustedPlatformModule type="v2_0" location=""/>
        <Network><Adapter slot="0" enabled="true" MACAddress="080027AABBCC" type="82540EM"><NAT/></Adapter>
          <Adapter slot="1" enabled="false" MACAddress="080027AABBCD"/></Network></Hardware></vbox:Machine>
  </VirtualSystem>
</Envelope>"#;

/// Deployment options, chunks, a packed file, and two machines.
pub(super) const OPTIONS: &str = r#"<ovf:Envelope xmlns:ovf="e" xmlns:rasd="r">
  <ovf:References><ovf:File ovf:id="f1" ovf:href="a.vmdk" ovf:size="3000" ovf:chunkSize="1000"/>
    <ovf:File ovf:id="f2" ovf:href="b.vmdk.gz" ovf:compression="gzip" ovf:size="100"/><ovf:File ovf:id="f3" ovf:href="c.vmdk"/></ovf:References>
  <ovf:DiskSection><ovf:Disk ovf:diskId="a" ovf:fileRef="f1" ovf:capacity="${size.a}"/>
    <ovf:Disk ovf:diskId="b" ovf:fileRef="f2" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20"/>
    <ovf:Disk ovf:diskId="c" ovf:fileRef="f3" ovf:capacity="1" ovf:parentRef=""/></ovf:DiskSection>
  <ovf:DeploymentOptionSection><ovf:Info>o</ovf:Info>
    <ovf:Configuration ovf:id="small"><ovf:Label>Small</ovf:Label><ovf:Description>for tests</ovf:Description></ovf:Configuration>
    <ovf:Configuration ovf:id="large" ovf:default="true"><ovf:Label>Large</ovf:Label></ovf:Configuration></ovf:DeploymentOptionSection>
  <ovf:VirtualSystemCollection ovf:id="both"><ovf:VirtualSystem ovf:id="one"><ovf:Name>one</ovf:Name>
    <ovf:ProductSection ovf:class="size" ovf:instance=""><ovf:Property ovf:key="a" ovf:type="uint64" ovf:value="1048576">
      <ovf:Value ovf:value="2097152" ovf:configuration="small large"/></ovf:Property></ovf:ProductSection>
    <ovf:VirtualHardwareSection>
      <ovf:Item ovf:configuration="small"><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity></ovf:Item>
      <ovf:Item ovf:configuration="large"><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>8</rasd:VirtualQuantity></ovf:Item>
      <ovf:Item ovf:bound="max"><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>64</rasd:VirtualQuantity></ovf:Item>
      <ovf:Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></ovf:Item>
      <ovf:Item><rasd:HostResource>ovf:/disk/a</rasd:HostResource><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
      <ovf:Item ovf:configuration="small"><rasd:HostResource>ovf:/file/f3</rasd:HostResource><rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType></ovf:Item></ovf:VirtualHardwareSection></ovf:VirtualSystem>
  <ovf:VirtualSystem ovf:id="two"><ovf:VirtualHardwareSection>
      <ovf:Item><rasd:HostResource>ovf:/disk/b</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
    </ovf:VirtualHardwareSection></ovf:VirtualSystem></ovf:VirtualSystemCollection>
</ovf:Envelope>"#;

/// The version before 1.0, with types where others have elements.
pub(super) const OVIRT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="o" xmlns:rasd="r" xmlns:vssd="s" xmlns:xsi="x" ovf:version="0.9">
  <References><File ovf:href="6f0a/11aa" ovf:id="11aa" ovf:size="1073741824" ovf:description="Active VM"/></References>
  <Section xsi:type="ovf:NetworkSection_Type"><Info>n</Info><Network ovf:name="ovirtmgmt"/></Section>
  <Section xsi:type="ovf:DiskSection_Type"><Info>d</Info>
    <Disk ovf:diskId="11aa" ovf:size="1" ovf:capacity="1073741824" ovf:fileRef="6f0a/11aa" ovf:volume-format="COW"
      ovf:boot="true" ovf:disk-interface="VirtIO_SCSI"/></Section>
  <Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>web</Name><Description>of the shop</Description>
    <BiosType>2</BiosType><VmType>1</VmType>
    <Section ovf:id="96" xsi:type="ovf:OperatingSystemSection_Type"><Info>o</Info><Description>debian_9</Description></Section>
    <Section xsi:type="ovf:VirtualHardwareSection_Type"><Info>h</Info>
      <Item><rasd:Caption>2 virtual cpu</rasd:Caption><rasd:InstanceId>1</rasd:InstanceId><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:num_of_sockets>2</rasd:num_of_sockets><rasd:cpu_per_socket>1</rasd:cpu_per_socket></Item>
      <Item><rasd:InstanceId>2</rasd:InstanceId><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceId>11aa</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>
        <rasd:HostResource>6f0a/11aa</rasd:HostResource><rasd:Parent>0</rasd:Parent></Item>
      <Item><rasd:InstanceId>3</rasd:InstanceId><rasd:ResourceType>10</rasd:ResourceType><rasd:ResourceSubType>3</rasd:ResourceSubType>
        <rasd:Connection>ovirtmgmt</rasd:Connection><rasd:MACAddress>56:6f:1a:00:00:01</rasd:MACAddress><rasd:Linked>true</rasd:Linked></Item>
    </Section></Content>
</ovf:Envelope>"#;

/// What Nutanix and `XenCenter` say in words of their own.
pub(super) const OTHERS: &str = r#"<Envelope xmlns="e" xmlns:ovf="e" xmlns:rasd="r" xmlns:nutanix="n" xmlns:xenovf="x">
  <References><File ovf:id="f1" ovf:href="web.qcow2"/></References>
  <DiskSection><Disk ovf:capacity="10" ovf:capacityAllocationUnits="byte*2^30" ovf:diskId="d1" ovf:fileRef="f1"/></DiskSection>
  <VirtualSystem ovf:id="id"><Name>web 01</Name><VirtualHardwareSection>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte*2^30</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>IDE</rasd:ResourceSubType><rasd:ResourceType>5</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d1</rasd:HostResource>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:Address>02:00:00:00:00:01</rasd:Address><rasd:Connection>lan</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></Item>
      <nutanix:Config ovf:key="boot_type" ovf:value="SECURE_BOOT"/><nutanix:Config ovf:key="is_vtpm_enabled" ovf:value="true"/>
      <nutanix:BootType>UEFI</nutanix:BootType><nutanix:SecureBoot>false</nutanix:SecureBoot>
      <xenovf:VirtualSystemOtherConfigurationData Name="HVM_boot_params"><xenovf:Value>order=dc;firmware=uefi;</xenovf:Value>
      </xenovf:VirtualSystemOtherConfigurationData></VirtualHardwareSection></VirtualSystem>
</Envelope>"#;

pub(super) const VMX: &str = r#".encoding = "UTF-8"
displayName = "Web |2201|22"
numvcpus = "4"
cpuid.coresPerSocket = "2"
memSize = "4096"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
vtpm.present = "TRUE"
uuid.bios = "56 4d aa bb cc dd ee ff-00 11 22 33 44 55 66 77"
guestOS = "ubuntu-64"
annotation = "first|0Asecond"
scsi0.virtualDev = "pvscsi"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/vmfs/volumes/x/web.vmdk"
nvme1:0.present = "TRUE"
nvme1:0.fileName = "data.vmdk"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "web.iso"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.generatedAddress = "00:0c:29:aa:bb:cc"
ethernet0.startConnected = "FALSE"
serial0.present = "TRUE"
"#;

pub(super) const HYPERV: &str = r#"<?xml version="1.0" encoding="UTF-16" standalone="yes"?>
<configuration>
  <_83f8638b-8dca-4152-9eda-2ca8b33039b4_><controller0><drive0><pathname type="string">D:\VMs\Web.vhdx</pathname>
    <type type="string">VHD</type></drive0><drive1><pathname type="string">D:\VMs\data.vhdx</pathname>
    <type type="string">VHD</type></drive1></controller0>
    <controller1><drive0><pathname type="string">C:\iso\setup.iso</pathname><type type="string">ISO</type></drive0></controller1>
  </_83f8638b-8dca-4152-9eda-2ca8b33039b4_>
  <_d422512d-2bf2-4752-809d-7b82b5fcb1b4_><FriendlyName type="string">SCSI Controller</FriendlyName>
    <controller0><drive3><pathname type="string">E:\web_1A2B3C4D-0000-0000-0000-000000000001.avhdx</pathname>
    <type type="string">VHD</type></drive3></controller0></_d422512d-2bf2-4752-809d-7b82b5fcb1b4_>
  <_2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778_><ChannelInstanceGuid type="string">{y}</ChannelInstanceGuid>
    <Connection><AltSwitchName type="string">LAN &amp; DMZ</AltSwitchName></Connection>
    <FriendlyName type="string">Network Adapter</FriendlyName><IsConnected type="bool">False</IsConnected>
    <MacAddress type="string">00-15-5D-01-02-03</MacAddress></_2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778_>
  <properties><name type="string">Web 01</name><notes type="string">of the shop</notes><subtype type="integer">1</subtype></properties>
  <settings><memory><bank><dynamic_memory_enabled type="bool">True</dynamic_memory_enabled>
    <limit type="integer">8192</limit><size type="integer">2048</size></bank></memory>
    <processors><count type="integer">4</count></processors></settings>
  <bios><bios_guid type="string">{420A5C1E-5F0E-4B3E-9A0C-7F0D3B9C2A11}</bios_guid></bios>
  <secure_boot_enabled type="bool">True</secure_boot_enabled>
</configuration>"#;

pub(super) const DESCRIPTOR: &str = "# Disk DescriptorFile
version=1
encoding=\"UTF-8\"
CID=fffffffe
parentCID=ffffffff
createType=\"twoGbMaxExtentFlat\"

# Extent description
RW 4192256 FLAT \"web-f001.vmdk\" 0
RW 100 ZERO
RDONLY 20 FLAT web-f002.vmdk 128
NOACCESS 8 ZERO

# The Disk Data Base
#DDB
ddb.virtualHWVersion = \"4\"
ddb.geometry.cylinders = \"20\"
ddb.longContentID = \"0123456789abcdef0123456789abcdef\"
";

/// Digests of `abc`, in the spellings of several writers.
pub(super) const MANIFEST: &str = "# made by hand
SHA1(d.vmdk)= a9993e364706816aba3e25717850c26c9cd0d89d
SHA2-256 (d.vmdk) = ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7 *d.vmdk
sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  ./d.vmdk
SHA512/256(\"d.vmdk\")= 53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23
MD5(other.vmdk)= 900150983cd24fb0d6963f7d28e17f72
SHA1(absent.vmdk)= a9993e364706816aba3e25717850c26c9cd0d89d
";
