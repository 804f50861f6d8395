// SPDX-License-Identifier: Apache-2.0
//! Descriptors as VMware and QEMU write them, and hostile ones.

use proptest::prelude::*;

use super::*;

fn text(create_type: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"{create_type}\"\n\n# Extent description\n{extents}\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"20\"\n"
    )
}

fn reason(bytes: impl AsRef<[u8]>) -> Reason {
    parse("vm.vmdk", bytes.as_ref()).unwrap_err().reason
}

#[test]
fn an_embedded_descriptor_is_read_and_its_label_left_alone() {
    let bytes = text("streamOptimized", "RDONLY 8388608 SPARSE \"generated-stream.vmdk\"").into_bytes();
    let padded = [bytes, vec![0; 700]].concat();
    let descriptor = parse("vm.vmdk", &padded).unwrap();
    assert_eq!(descriptor.create_type, CreateType::StreamOptimized);
    assert_eq!(
        descriptor.extents,
        [ExtentLine {
            sectors: 8_388_608,
            kind: ExtentKind::Sparse,
            name: b"generated-stream.vmdk".to_vec(),
            encoding: None,
            offset: 0
        }]
    );
    assert_eq!(descriptor.virtual_size(), 4 << 30);
    parse("vm.vmdk", text("monolithicSparse", "RW 63 SPARSE \"/any/label\"").as_bytes()).unwrap();
}

#[test]
fn a_split_disk_names_its_extents_in_order() {
    let lines = "RW 4192256 SPARSE \"vm-s001.vmdk\"\r\nRW 100 ZERO\r\nrw 20 sparse vm disk-s002.vmdk";
    let descriptor = parse("vm.vmdk", text("twoGbMaxExtentSparse", lines).as_bytes()).unwrap();
    assert_eq!(descriptor.virtual_size(), (4_192_256 + 100 + 20) * 512);
    let references = descriptor.references("vm.vmdk").unwrap();
    assert_eq!(references.required, ["vm-s001.vmdk", "vm disk-s002.vmdk"]);
    assert_eq!(references.optional, Vec::<String>::new());
    // A sparse file is as long as it is.
    assert_eq!(references.sizes.len(), 0);
}

#[test]
fn quotes_and_case_may_vary_and_offsets_count() {
    for (line, name, offset) in [
        ("RW 8 FLAT \"vm-flat.vmdk\" 0", "vm-flat.vmdk", 0),
        ("RW 8 FLAT vm-flat.vmdk 16", "vm-flat.vmdk", 16),
        ("RW 8 FLAT vm-flat.vmdk", "vm-flat.vmdk", 0),
        ("rdonly 8 flat \"a b-flat.vmdk\"", "a b-flat.vmdk", 0),
        ("RW\t8\tFLAT\t\"vm-flat.vmdk\"\t128", "vm-flat.vmdk", 128),
    ] {
        let descriptor = parse("vm.vmdk", text("MONOLITHICFLAT", line).as_bytes()).unwrap();
        assert_eq!(descriptor.references("vm.vmdk").unwrap().required, [name], "{line}");
        assert_eq!(descriptor.extents[0].offset, offset, "{line}");
        let least = StatedSize::AtLeast((offset + 8) * 512);
        assert_eq!(descriptor.references("vm.vmdk").unwrap().sizes.get(name), Some(&least), "{line}");
    }
    let esx = text("vmfs", "RW 8 VMFS \"vm-flat.vmdk\"").replace('"', "");
    assert_eq!(parse("vm.vmdk", esx.as_bytes()).unwrap().create_type, CreateType::Vmfs);
}

#[test]
fn a_parent_is_refused_however_it_is_written() {
    let good = text("monolithicSparse", "RW 8 SPARSE \"vm.vmdk\"");
    for bad in [
        good.replace("parentCID=ffffffff", "parentCID=12345678"),
        good.replace("parentCID=ffffffff", "PARENTCID = \"00000000\""),
        good.replace("parentCID=ffffffff", "parentCID=ffffffff\nparentFileNameHint=\"/secret/base.vmdk\""),
        good.replace("parentCID=ffffffff", "parentCID=ffffffff\nPARENTFILENAMEHINT=x"),
        good.replace("#DDB", "# parentFileNameHint=\"x\""),
        good.replace("parentCID=ffffffff", "parentCID=ffffffff\nparentCID=1"),
    ] {
        assert_eq!(reason(&bad), Reason::UnsafeReference, "{bad}");
    }
    parse("vm.vmdk", good.as_bytes()).unwrap();
}

#[test]
fn extents_outside_the_group_are_refused() {
    for name in ["/etc/shadow", "../x", "sub/x", "..", "c:\\x", "nbd://host/x", "vm.vmdk", "x\\y"] {
        let bytes = text("monolithicFlat", &format!("RW 8 FLAT \"{name}\" 0"));
        let error = parse("vm.vmdk", bytes.as_bytes()).unwrap().references("vm.vmdk").unwrap_err();
        assert_eq!(error.reason, Reason::UnsafeReference, "{name}");
    }
    let twice = text("twoGbMaxExtentFlat", "RW 8 FLAT \"a.vmdk\" 0\nRW 8 FLAT \"a.vmdk\" 8");
    assert_eq!(parse("v", twice.as_bytes()).unwrap().references("v").unwrap_err().reason, Reason::UnsafeReference);
    for kind in ["VMFSRDM", "VMFSRAW"] {
        assert_eq!(reason(text("vmfs", &format!("RW 8 {kind} \"a.vmdk\""))), Reason::UnsafeReference);
    }
    let second = text("monolithicSparse", "RW 8 SPARSE \"vm.vmdk\"\nRW 8 FLAT \"victim.raw\" 0");
    assert_eq!(reason(second), Reason::UnsafeReference);
    for create_type in ["fullDevice", "vmfsRawDeviceMap"] {
        assert_eq!(reason(text(create_type, "RW 8 FLAT \"a.vmdk\" 0")), Reason::UnsafeReference);
    }
}

#[test]
fn what_contradicts_itself_is_corrupt() {
    let line = "RW 8 SPARSE \"vm.vmdk\"";
    for bad in [
        text("monolithicSparse", ""),
        text("monolithicSparse", "RW 8 FLAT \"vm.vmdk\" 0"),
        text("monolithicFlat", line),
        text("monolithicSparse", "RW 0 SPARSE \"vm.vmdk\""),
        text("monolithicSparse", "RW x SPARSE \"vm.vmdk\""),
        text("monolithicSparse", "RW 8 SPARSE \"vm.vmdk"),
        text("monolithicSparse", "RW 8 SPARSE"),
        text("monolithicSparse", "RW 99999999999999999999 SPARSE \"vm.vmdk\""),
        text("monolithicSparse", "RW 18446744073709551615 SPARSE \"vm.vmdk\""),
        text("monolithicSparse", line).replace("version=1", "CREATETYPE=monolithicSparse"),
        text("monolithicSparse", line).replace("createType", "type"),
        "x".repeat(MAX_BYTES + 1),
    ] {
        assert_eq!(reason(&bad), Reason::Corrupt, "{}", &bad[..bad.len().min(400)]);
    }
    assert_eq!(reason(text("custom", line)), Reason::UnsupportedFormat);
    assert_eq!(reason(text("seSparse", "RW 8 SESPARSE \"x.vmdk\"")), Reason::UnsupportedFormat);
    assert_eq!(reason(text("vmfsSparse", "RW 8 VMFSSPARSE \"x.vmdk\"")), Reason::UnsupportedFormat);
    let encrypted = text("monolithicSparse", line).replace("#DDB", "encryptionKeys=\"vmware:key/list\"");
    assert_eq!(reason(encrypted), Reason::Encrypted);
}

/// A flat descriptor that says this encoding and has these bytes for a name.
fn encoded(label: &str, name: &[u8]) -> Vec<u8> {
    let text = text("monolithicFlat", "RW 8 FLAT \"@\" 0").replace("UTF-8", label);
    let at = text.find('@').unwrap();
    [&text.as_bytes()[..at], name, &text.as_bytes()[at + 1..]].concat()
}

#[test]
fn names_are_in_the_encoding_that_the_descriptor_says() {
    for (label, bytes, names) in [
        ("GBK", b"\xB4\xC5\xC5\xCC-flat.vmdk".as_slice(), ("磁盘-flat.vmdk", None)),
        ("windows-936-2000", b"\xB4\xC5\xC5\xCC-flat.vmdk", ("磁盘-flat.vmdk", None)),
        // The second byte of one of these characters is a backslash in ASCII.
        ("Shift_JIS", b"\x83\x5C\x83\x74\x83\x67.vmdk", ("ソフト.vmdk", None)),
        ("Big5", b"\xBA\xCF\xBA\xD0.vmdk", ("磁碟.vmdk", None)),
        ("windows-1252", b"f\xFCr.vmdk", ("für.vmdk", None)),
        ("ISO-8859-1", b"f\xFCr.vmdk", ("für.vmdk", None)),
        ("windows-1251", b"\xE4.vmdk", ("д.vmdk", None)),
        ("UTF-8", "für.vmdk".as_bytes(), ("für.vmdk", None)),
        ("UTF-16", "für.vmdk".as_bytes(), ("für.vmdk", None)),
        ("klingon", "für.vmdk".as_bytes(), ("für.vmdk", None)),
        // Whoever renamed the files and the names in the descriptor left the encoding.
        ("windows-1252", "für.vmdk".as_bytes(), ("fÃ¼r.vmdk", Some("für.vmdk"))),
        ("GBK", b"vm-flat.vmdk", ("vm-flat.vmdk", None)),
    ] {
        let descriptor = parse("vm.vmdk", &encoded(label, bytes)).unwrap();
        let references = descriptor.references("vm.vmdk").unwrap();
        assert_eq!(references.required, [names.0], "{label}");
        assert_eq!(references.written.get(names.0).map(String::as_str), names.1, "{label}");
    }
}

#[test]
fn a_name_in_an_unknown_encoding_names_no_member_and_a_path_in_any_is_unsafe() {
    for (label, bytes, reason) in [
        ("UTF-8", b"f\xFCr.vmdk".as_slice(), Reason::MissingMember),
        ("klingon", b"f\xFCr.vmdk", Reason::MissingMember),
        ("GBK", b"\xFF.vmdk", Reason::MissingMember),
        ("windows-1252", b"/etc/f\xFCr", Reason::UnsafeReference),
        ("klingon", b"/etc/f\xFCr", Reason::UnsafeReference),
        ("windows-1252", b"a\x1b.vmdk", Reason::UnsafeReference),
    ] {
        let descriptor = parse("vm.vmdk", &encoded(label, bytes)).unwrap();
        assert_eq!(descriptor.extents[0].name, bytes);
        assert_eq!(descriptor.references("vm.vmdk").unwrap_err().reason, reason, "{label}");
    }
}

#[test]
fn texts_are_known_by_their_first_line() {
    for head in ["# Disk DescriptorFile\n", "\n# disk descriptorfile\r\n", "# x\n\n version=1\n", "Version=2"] {
        assert!(is_text(head.as_bytes()), "{head:?}");
    }
    for head in ["", "KDMV", "# Disk", "#!/bin/sh\nset -e\n", "\0# Disk DescriptorFile"] {
        assert!(!is_text(head.as_bytes()), "{head:?}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse("vm.vmdk", &bytes).and_then(|d| d.references("vm.vmdk"));
    }

    #[test]
    fn no_damage_makes_it_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let mut bytes = text("twoGbMaxExtentSparse", "RW 8 SPARSE \"a-s001.vmdk\"\nRW 8 ZERO").into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut % 40);
        if let Ok(descriptor) = parse("vm.vmdk", &bytes) {
            prop_assert!(descriptor.virtual_size() >= 512);
        }
    }
}
