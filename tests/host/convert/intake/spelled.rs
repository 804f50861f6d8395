// SPDX-License-Identifier: Apache-2.0
//! What is there, and is not called or packed as the descriptor says; and what is told to do about what is refused.

use std::os::unix::ffi::OsStrExt as _;

use super::*;

/// Checks that `name` is refused for `reason` with exactly this advice.
#[track_caller]
fn advised(folder: &TempDir, name: &str, reason: &str, advice: &str) {
    refused(folder, name, &[], reason);
    assert_eq!(inspect(&folder.path().join(name), &[])["refusal"]["suggestion"], advice);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_file_that_differs_in_case_or_composition_is_taken_where_it_is_the_only_one() {
    let packed_twice = "caf\u{e9}.vmdk";
    for (named, there) in [("d.vmdk", "D.VMDK"), (packed_twice, "cafe\u{301}.vmdk"), ("cafe\u{301}.vmdk", packed_twice)]
    {
        let envelope = ovf(&[(named, CAPACITY)]);
        let files = [("vm.ovf", envelope.as_bytes()), (there, &disk(3))];
        let warning = format!("the OVF names the file {named:?}, the only one alike is called {there:?}");
        assert_eq!(becomes(&folder(&files), "vm.ovf", &[], &[3]), [warning.as_str()]);
        assert_eq!(becomes(&folder(&[("vm.ova", &tar(&files))]), "vm.ova", &[], &[3]), [warning.as_str()]);
    }
    let envelope = ovf(&[("d.vmdk", CAPACITY)]);
    let files = [("vm.ovf", envelope.as_bytes()), ("D.vmdk", &disk(3)), ("d.VMDK", &disk(4))];
    let said = refused(&folder(&files), "vm.ovf", &[], "MissingMember");
    assert!(said.contains("2 files are called so but for case or accents; rename the one that is meant"), "{said}");
    // One that fits exactly is meant, whatever lies beside it.
    let files = [("vm.ovf", envelope.as_bytes()), ("D.vmdk", &disk(3)), ("d.vmdk", &disk(4))];
    assert_eq!(becomes(&folder(&files), "vm.ovf", &[], &[4]), Vec::<String>::new());
}

#[test]
fn an_extent_that_differs_in_case_is_taken_where_it_is_the_only_one() {
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                      RW 256 FLAT \"vm-flat.vmdk\" 0\n";
    let flat = guest(7);
    assert_eq!(flat.len(), 256 * 512);
    let files = [("vm.vmdk", descriptor.as_bytes()), ("VM-FLAT.VMDK", flat.as_slice())];
    assert_eq!(becomes(&folder(&files), "vm.vmdk", &[], &[7]), Vec::<String>::new());
    let files = [files[0], files[1], ("VM-flat.vmdk", flat.as_slice())];
    refused(&folder(&files), "vm.vmdk", &[], "MissingMember");
}

#[test]
fn a_disk_that_somebody_packed_or_unpacked_after_the_export_is_taken_as_it_is() {
    let said = |compression: &str| {
        let file = format!("<File ovf:id='f' ovf:href='d.vmdk.gz' {compression}/>");
        envelope(&file, &format!("<Disk ovf:diskId='d' ovf:fileRef='f' ovf:capacity='{CAPACITY}'/>"), "")
    };
    let (silent, gzipped) = (said(""), said("ovf:compression='gzip'"));
    let (plain, packed) = (disk(5), gzip(&disk(5)));
    for (envelope, disk, warning) in [
        (&silent, &packed, Some("the OVF does not say that the file \"d.vmdk.gz\" is a gzip, it is one")),
        (&gzipped, &plain, Some("the OVF says that the file \"d.vmdk.gz\" is a gzip, it is not packed")),
        (&gzipped, &packed, None),
    ] {
        let files = [("vm.ovf", envelope.as_bytes()), ("d.vmdk.gz", disk.as_slice())];
        let warnings: Vec<&str> = warning.into_iter().collect();
        assert_eq!(becomes(&folder(&files), "vm.ovf", &[], &[5]), warnings);
        assert_eq!(becomes(&folder(&[("vm.ova", &tar(&files))]), "vm.ova", &[], &[5]), warnings);
    }
    // What is neither a gzip nor an image stays a damaged gzip, and never becomes a raw disk.
    let damaged = folder(&[("vm.ovf", gzipped.as_bytes()), ("d.vmdk.gz", &guest(9))]);
    refused(&damaged, "vm.ovf", &[], "Corrupt");
}

#[test]
fn what_is_refused_is_told_the_remedy_of_its_cause() {
    let unpack = "Unpack it, then bring the disk image in it";
    for name in ["d.img.lzma", "d.raw.lz", "d.vmdk.Z", "d.br"] {
        advised(&folder(&[(name, b"\x5D\x00\xFE packed")]), name, "UnsupportedFormat", unpack);
    }

    let xz = folder(&[("vm.ovf", ovf(&[("d.xz", CAPACITY)]).as_bytes()), ("d.xz", b"\xFD7zXZ\0\0\x04")]);
    let beside = "Unpack the disk beside the OVF, and write its new name into the href of the OVF";
    advised(&xz, "vm.ovf", "UnsupportedFormat", beside);

    let two = "<Disk ovf:diskId='a' ovf:fileRef='f' ovf:capacity='9'/><Disk ovf:diskId='b' ovf:fileRef='f'/>";
    let twice = envelope("<File ovf:id='f' ovf:href='d.vmdk'/>", two, "");
    let twice = folder(&[("vm.ovf", twice.as_bytes()), ("d.vmdk", &disk(1))]);
    let once = "Give each disk of the OVF a file of its own, or take out the disks that are meant only once";
    advised(&twice, "vm.ovf", "Corrupt", once);

    let mut raw = guest(0);
    raw[510..512].copy_from_slice(&[0x55, 0xAA]);
    let rename =
        "If it is a raw disk, rename it to NAME.raw (in its OVF too); else copy it again from where it was made";
    let envelope = ovf(&[("d.vmdk", CAPACITY)]);
    for name in ["vm.ova", "d.vmdk"] {
        let archive = tar(&[("vm.ovf", envelope.as_bytes()), ("d.vmdk", &raw)]);
        advised(&folder(&[("vm.ova", &archive), ("d.vmdk", &raw)]), name, "Corrupt", rename);
    }
}

#[test]
fn an_inspection_tells_of_the_digests_that_it_does_not_compare() {
    use sha2::Digest;
    let (envelope, disk) = (ovf(&[("d.vmdk", CAPACITY)]), disk(1));
    let of_envelope = hex(&sha2::Sha256::digest(envelope.as_bytes()));
    let manifest = format!("SHA256(vm.ovf)= {of_envelope}\nSHA256(d.vmdk)= {}\n", "0".repeat(64));
    let files = folder(&[("vm.ovf", envelope.as_bytes()), ("vm.mf", manifest.as_bytes()), ("d.vmdk", &disk)]);
    let source = files.path().join("vm.ovf");
    assert_eq!(inspect(&source, &[])["digestsLeft"], 1);
    let told = String::from_utf8(hyper2kvm(&["inspect", text(&source)]).stdout).unwrap();
    assert!(told.contains("digests        1 of its manifest, which convert compares\n"), "{told}");
    assert!(told.ends_with("accepted       yes\n"), "{told}");
    fs::remove_file(files.path().join("vm.mf")).unwrap();
    assert_eq!(inspect(&source, &[])["digestsLeft"], Value::Null);
}

#[test]
fn what_describes_a_machine_and_a_name_that_is_no_text_are_told_as_such() {
    let settings = "11111111-2222-3333-4444-555555555555.xml";
    for (name, xml) in
        [("vm.vbox", "<?xml version='1.0'?><VirtualBox/>"), (settings, "<?xml version='1.0'?><configuration/>")]
    {
        let said = refused(&folder(&[(name, xml.as_bytes())]), name, &[], "UnsupportedFormat");
        assert!(said.contains("describes a machine and holds no disk; convert the disk beside it"), "{said}");
    }

    let place = tempfile::tempdir().unwrap();
    let source = place.path().join(std::ffi::OsStr::from_bytes(b"d\xFF.vmdk"));
    fs::write(&source, disk(1)).unwrap();
    let convert = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_hyper2kvm");
        std::process::Command::new(program).arg("convert").arg(&source).args(arguments).output().unwrap()
    };
    let said = String::from_utf8(convert(&[]).stderr).unwrap();
    assert!(said.contains("Rename the file, or name the output by --output FILE"), "{said}");
    assert!(convert(&["--output", text(&place.path().join("d.qcow2"))]).status.success());
}
