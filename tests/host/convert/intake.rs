// SPDX-License-Identifier: Apache-2.0
//! Appliances as people have them: manifests, archives, envelopes and descriptors of many writers. Each is taken with the
//! right bytes, or refused with the reason that fits.

mod spelled;

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::{hyper2kvm, text};
use crate::support::ova::{END, entry, header, hex, member, ova, ovf, tar};
use crate::support::vmdk::{GRAIN, Sparse, built};

const CAPACITY: u64 = GRAIN * 2;

/// A guest's disk of two grains, filled with this byte.
fn guest(byte: u8) -> Vec<u8> {
    vec![byte; usize::try_from(CAPACITY).unwrap()]
}

/// The same as a streamOptimized VMDK.
fn disk(byte: u8) -> Vec<u8> {
    built(&Sparse::stream_optimized(CAPACITY), &guest(byte))
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn inspect(source: &Path, flags: &[&str]) -> Value {
    let told = hyper2kvm(&[["inspect", text(source), "--json"].as_slice(), flags].concat());
    serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&told.stderr)))
}

/// Converts `name` in `folder`, and checks that its disks are filled with these bytes. Returns the warnings.
#[track_caller]
fn becomes(folder: &TempDir, name: &str, flags: &[&str], fillings: &[u8]) -> Vec<String> {
    let source = folder.path().join(name);
    let output = tempfile::tempdir().unwrap();
    let mut arguments =
        vec!["convert", text(&source), "--output-dir", text(output.path()), "--format", "raw", "--json"];
    arguments.extend(flags);
    let converted = hyper2kvm(&arguments);
    assert!(converted.status.success(), "{name}: {}", String::from_utf8_lossy(&converted.stderr));
    let report: Value = serde_json::from_slice(&converted.stdout).unwrap();
    let disks: Vec<_> = report["disks"].as_array().unwrap().iter().map(|disk| disk["file"].as_str().unwrap()).collect();
    assert_eq!(disks.len(), fillings.len(), "{report}");
    for (disk, byte) in disks.iter().zip(fillings) {
        let bytes = fs::read(output.path().join(disk)).unwrap();
        assert!(!bytes.is_empty() && bytes.iter().all(|found| found == byte), "{disk} is not filled with {byte}");
    }
    let told = inspect(&source, flags);
    assert_eq!((&told["accepted"], &told["warnings"]), (&true.into(), &report["warnings"]), "{told}");
    let warnings = report["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned());
    warnings.inspect(|warning| assert!(!warning.contains(char::is_control), "{warning:?}")).collect()
}

/// Checks that `name` is refused for `reason`. Returns the message.
#[track_caller]
fn refused(folder: &TempDir, name: &str, flags: &[&str], reason: &str) -> String {
    let source = folder.path().join(name);
    let output = tempfile::tempdir().unwrap();
    let converted =
        hyper2kvm(&[["convert", text(&source), "--output-dir", text(output.path())].as_slice(), flags].concat());
    let said = String::from_utf8_lossy(&converted.stderr).into_owned();
    assert_eq!(converted.status.code(), Some(10), "{said}");
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
    // A digest is only compared by the conversion.
    if reason != "ManifestMismatch" {
        assert_eq!(inspect(&source, flags)["refusal"]["reason"], reason, "{said}");
    }
    said
}

/// An envelope with one disk of two grains, whose file entry and disk are these.
fn envelope(file: &str, disk: &str, rest: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><Envelope xmlns=\"o\" xmlns:ovf=\"o\" xmlns:xsi=\"i\"><References>{file}</References>\
         <DiskSection><Info/>{disk}</DiskSection>{rest}</Envelope>"
    )
}

#[test]
fn a_manifest_of_any_writer_is_verified_and_its_odd_lines_are_warnings() {
    use sha2::Digest;
    let (text, disk) = (ovf(&[("d.vmdk", CAPACITY)]), disk(1));
    let sha1 = hex(&sha1::Sha1::digest(&disk));
    let sha256 = hex(&sha2::Sha256::digest(&disk));
    let sha384 = hex(&sha2::Sha384::digest(&disk));
    let sha512 = hex(&sha2::Sha512::digest(&disk));
    let wrong = |line: &str| {
        let digits = [&sha1, &sha256, &sha384, &sha512];
        digits.iter().fold(line.to_owned(), |line, hex| line.replace(*hex, &"0".repeat(hex.len())))
    };
    for line in [
        format!("SHA2-256(d.vmdk)= {sha256}\n"),
        format!("SHA-1 (./d.vmdk) = {sha1}\r\n"),
        format!("sha384(d.vmdk)= {sha384}"),
        format!("\u{feff}SHA512(export/d.vmdk)= {sha512}\n"),
        format!("{sha256}  d.vmdk\n"),
        format!("# sums\n{sha512} *./d.vmdk\n"),
    ] {
        let with = |line: &str| folder(&[("vm.ovf", text.as_bytes()), ("vm.mf", line.as_bytes()), ("d.vmdk", &disk)]);
        assert_eq!(becomes(&with(&line), "vm.ovf", &[], &[1]), Vec::<String>::new(), "{line}");
        refused(&with(&wrong(&line)), "vm.ovf", &[], "ManifestMismatch");
        let packed = |line: &str| {
            let members = [("vm.ovf", text.as_bytes()), ("d.mf", line.as_bytes()), ("d.vmdk", disk.as_slice())];
            folder(&[("vm.ova", &tar(&members))])
        };
        assert_eq!(becomes(&packed(&line), "vm.ova", &[], &[1]), Vec::<String>::new(), "{line}");
        refused(&packed(&wrong(&line)), "vm.ova", &[], "ManifestMismatch");
    }
    let odd = format!(
        "\u{1b}[31mgarbage\nMD5(d.vmdk)= {}\nSHA1(gone.iso)= {sha1}\nSHA1(vm.mf)= {sha1}\nSHA1(d.vmdk)= {sha1}\n",
        "0".repeat(32)
    );
    let folder = folder(&[("vm.ovf", text.as_bytes()), ("vm.mf", odd.as_bytes()), ("d.vmdk", &disk)]);
    assert_eq!(becomes(&folder, "vm.ovf", &[], &[1]).len(), 4);
}

#[test]
fn each_disk_may_have_a_manifest_of_its_own() {
    use sha2::Digest;
    let text = ovf(&[("a.vmdk", CAPACITY), ("b.vmdk", CAPACITY)]);
    let (a, b) = (disk(1), disk(2));
    let line = |name: &str, bytes: &[u8]| format!("SHA1({name})= {}\n", hex(&sha1::Sha1::digest(bytes)));
    let (first, second, wrong) = (line("a.vmdk", &a), line("b.vmdk", &b), line("b.vmdk", &a));
    for (second, is_right) in [(&second, true), (&wrong, false)] {
        let files: [(&str, &[u8]); 5] = [
            ("vm.ovf", text.as_bytes()),
            ("a.mf", first.as_bytes()),
            ("b.mf", second.as_bytes()),
            ("a.vmdk", &a),
            ("b.vmdk", &b),
        ];
        let packed = folder(&[("vm.ova", &tar(&files))]);
        if is_right {
            assert_eq!(becomes(&packed, "vm.ova", &[], &[1, 2]), Vec::<String>::new());
            assert_eq!(becomes(&folder(&files), "vm.ovf", &[], &[1, 2]), Vec::<String>::new());
        } else {
            refused(&packed, "vm.ova", &[], "ManifestMismatch");
            refused(&folder(&files), "vm.ovf", &[], "ManifestMismatch");
        }
    }
}

#[test]
fn a_hand_packed_archive_is_taken_where_it_is_plain_whose_its_disk_is() {
    let (text, one, two) = (ovf(&[("d.vmdk", CAPACITY)]), disk(1), disk(2));
    let directory = |name: &str| entry(&header(name.as_bytes(), 0, b'5'), b"");
    let envelope = |path: &str| member(path, text.as_bytes());
    for (what, parts) in [
        ("./", vec![directory("./"), envelope("./vm.ovf"), member("./d.vmdk", &one)]),
        ("a folder", vec![directory("vm/"), envelope("vm/vm.ovf"), member("vm/d.vmdk", &one)]),
        ("two folders", vec![envelope("vm/vm.ovf"), directory("vm/disks"), member("vm/disks/d.vmdk", &one)]),
        (
            "macOS",
            vec![envelope("vm.ovf"), member("./._vm.ovf", b"x"), member("._d.vmdk", b"x"), member("d.vmdk", &one)],
        ),
        ("another folder", vec![envelope("vm.ovf"), member("d.vmdk", &one), member("old/d.vmdk", &two)]),
        ("capitals", vec![envelope("VM.OVF"), member("D.VMDK", &one)]),
        ("notes", vec![envelope("vm.ovf"), member("docs/12:30.txt", b"x"), member("d.vmdk", &one)]),
    ] {
        println!("{what}");
        let packed = folder(&[("vm.ova", &[parts.concat(), END.to_vec()].concat())]);
        becomes(&packed, "vm.ova", &[], &[1]);
    }
    for (what, reason, parts) in [
        ("two candidates", "Corrupt", vec![envelope("vm.ovf"), member("a/d.vmdk", &one), member("b/d.vmdk", &two)]),
        ("a double", "Corrupt", vec![envelope("vm.ovf"), member("d.vmdk", &one), member("./d.vmdk", &two)]),
        ("two envelopes", "Corrupt", vec![envelope("vm.ovf"), envelope("old/vm.ovf"), member("d.vmdk", &one)]),
        ("a link", "UnsafeReference", vec![envelope("vm.ovf"), entry(&header(b"d.vmdk", 0, b'2'), b"")]),
        ("upwards", "UnsafeReference", vec![envelope("vm.ovf"), member("../d.vmdk", &one)]),
    ] {
        println!("{what}");
        refused(&folder(&[("vm.ova", &[parts.concat(), END.to_vec()].concat())]), "vm.ova", &[], reason);
    }
}

#[test]
fn an_envelope_of_any_dialect_is_taken() {
    let file = "<File ovf:id=\"f\" ovf:href=\"d.vmdk\"/>";
    let plain = format!("<Disk ovf:diskId=\"d\" ovf:capacity=\"{CAPACITY}\" ovf:fileRef=\"f\"/>");
    let sections = envelope(file, &plain, "<VirtualSystem ovf:id=\"x\"/>")
        .replace("<DiskSection>", "<Section xsi:type=\"ovf:DiskSection_Type\">")
        .replace("</DiskSection>", "</Section>")
        .replace("<VirtualSystem ovf:id=\"x\"/>", "<Content ovf:id=\"x\" xsi:type=\"ovf:VirtualSystem_Type\"/>");
    let utf16 = |text: &str| -> Vec<u8> {
        std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    };
    let latin = envelope(file, &plain, "<Info>f@r</Info>").replace("?>", " encoding=\"ISO-8859-1\"?>");
    let latin: Vec<u8> = latin.bytes().map(|byte| if byte == b'@' { 0xFC } else { byte }).collect();
    for (what, text) in [
        ("as it should be", envelope(file, &plain, "").into_bytes()),
        ("oVirt", envelope(file, &plain.replace("ovf:fileRef", "ovf:parentRef=\"\" ovf:fileRef"), "").into_bytes()),
        ("OVF 0.9", sections.into_bytes()),
        (
            "other case",
            envelope(file, &plain.replace("capacity", "Capacity").replace("fileRef", "FILEREF"), "").into_bytes(),
        ),
        ("UTF-16", utf16(&envelope(file, &plain, ""))),
        ("Latin 1", latin),
        (
            "an ISO elsewhere",
            envelope(&format!("{file}<File id=\"i\" href=\"http://x/cd.iso\"/>"), &plain, "").into_bytes(),
        ),
        ("NVRAM without a name", envelope(&format!("{file}<File id=\"i\" href=\"\"/>"), &plain, "").into_bytes()),
        (
            "a EULA in a folder",
            envelope(&format!("{file}<File id=\"i\" href=\"eula/en.txt\"/>"), &plain, "").into_bytes(),
        ),
    ] {
        println!("{what}");
        let disk = disk(1);
        assert_eq!(
            becomes(&folder(&[("vm.ovf", &text), ("d.vmdk", &disk)]), "vm.ovf", &[], &[1]),
            Vec::<String>::new()
        );
        becomes(&folder(&[("vm.ova", &tar(&[("vm.ovf", &text), ("d.vmdk", &disk)]))]), "vm.ova", &[], &[1]);
    }
    // A blank disk beside it, of a property's size.
    let blank = format!(
        "{plain}<Disk diskId=\"e\" fileRef=\"\" capacity=\"${{size}}\" capacityAllocationUnits=\"byte * 2^10\"/>"
    );
    let product = "<ProductSection><Property ovf:key=\"size\" ovf:type=\"uint32\" ovf:value=\"64\"/></ProductSection>";
    let text = envelope(file, &blank, product);
    becomes(&folder(&[("vm.ovf", text.as_bytes()), ("d.vmdk", &disk(1))]), "vm.ovf", &[], &[1, 0]);
}

#[test]
fn a_disk_s_path_or_url_is_refused_with_what_to_do() {
    for (href, words) in [
        ("disks/d.vmdk", "Put the disk beside the OVF"),
        ("http://host/d.vmdk", "Download the disk"),
        ("file:///d.vmdk", "Download the disk"),
        ("", "Export the machine again"),
    ] {
        let text = ovf(&[(href, CAPACITY)]);
        for (name, bytes) in [("vm.ovf", text.clone().into_bytes()), ("vm.ova", tar(&[("vm.ovf", text.as_bytes())]))] {
            let said = refused(&folder(&[(name, &bytes)]), name, &[], "UnsafeReference");
            assert!(said.contains(words), "{said}");
        }
    }
}

#[test]
fn a_percent_sign_is_decoded_or_meant() {
    let text = ovf(&[("my%20disk.vmdk", CAPACITY)]);
    let disk = disk(1);
    for name in ["my disk.vmdk", "my%20disk.vmdk"] {
        let files = [("vm.ovf", text.as_bytes()), (name, disk.as_slice())];
        becomes(&folder(&files), "vm.ovf", &[], &[1]);
        becomes(&folder(&[("vm.ova", &tar(&files))]), "vm.ova", &[], &[1]);
    }
}

#[test]
fn a_deployment_option_is_chosen_by_name_and_listed() {
    let files = "<File id=\"f\" href=\"a.vmdk\"/><File id=\"g\" href=\"b.vmdk\"/>";
    let disks =
        "<Disk diskId=\"a\" fileRef=\"f\"/><Disk diskId=\"b\" fileRef=\"g\"/><Disk diskId=\"c\" fileRef=\"f\"/>";
    let item = |option: &str, disk: &str| {
        format!(
            "<Item ovf:configuration=\"{option}\"><HostResource>ovf:/disk/{disk}</HostResource><ResourceType>17</ResourceType></Item>"
        )
    };
    let rest = format!(
        "<DeploymentOptionSection><Configuration ovf:id=\"small\"><Label>Small</Label></Configuration>\
         <Configuration ovf:id=\"large\" ovf:default=\"true\"/></DeploymentOptionSection><VirtualSystem>\
         <VirtualHardwareSection>{}{}{}</VirtualHardwareSection></VirtualSystem>",
        item("small", "a"),
        item("large", "b"),
        item("large", "c")
    );
    let text = envelope(files, disks, &rest);
    let (one, two) = (disk(1), disk(2));
    let files: [(&str, &[u8]); 3] = [("vm.ovf", text.as_bytes()), ("a.vmdk", &one), ("b.vmdk", &two)];
    let packed = tar(&files);
    let folder = folder(&[files.as_slice(), &[("vm.ova", packed.as_slice())]].concat());
    for name in ["vm.ovf", "vm.ova"] {
        becomes(&folder, name, &[], &[2, 1]);
        becomes(&folder, name, &["--ovf-option", "small"], &[1]);
        let options = inspect(&folder.path().join(name), &["--ovf-option", "small"])["ovfOptions"].clone();
        assert_eq!(
            options,
            serde_json::json!([{"name": "small", "label": "Small", "chosen": true}, {"name": "large", "chosen": false}])
        );
        let said = refused(&folder, name, &["--ovf-option", "huge"], "UnsupportedFormat");
        assert!(said.contains("\"small\", \"large\""), "{said}");
    }
    let shown = hyper2kvm(&["inspect", text_of(&folder, "vm.ova").as_str()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("option         small: Small\noption         large (taken)\n"), "{shown}");
    refused(&folder, "a.vmdk", &["--ovf-option", "small"], "UnsupportedFormat");
}

fn text_of(folder: &TempDir, name: &str) -> String {
    text(&folder.path().join(name)).to_owned()
}

#[test]
fn chunks_are_joined_in_an_archive_and_as_files() {
    let disk = disk(1);
    let chunk = disk.len() / 3 + 1;
    let names: Vec<String> = (0..3).map(|n| format!("d.vmdk.{n:09}")).collect();
    let chunks: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(disk.chunks(chunk)).collect();
    let plain = ovf(&[("d.vmdk", CAPACITY)]);
    let stating = |attributes: &str| plain.replace("ovf:id=\"file0\"", &format!("ovf:id=\"file0\" {attributes}"));
    let both = stating(&format!("ovf:chunkSize=\"{chunk}\" ovf:size=\"{}\"", disk.len()));
    for text in [&both, &stating(&format!("ovf:chunkSize=\"{chunk}\"")), &plain] {
        let files = [[("vm.ovf", text.as_bytes())].as_slice(), &chunks].concat();
        if text.contains("size=") || text == &plain {
            assert_eq!(becomes(&folder(&files), "vm.ovf", &[], &[1]), Vec::<String>::new(), "{text}");
        }
        assert_eq!(becomes(&folder(&[("vm.ova", &tar(&files))]), "vm.ova", &[], &[1]), Vec::<String>::new(), "{text}");
    }
    // Somebody joined them.
    becomes(&folder(&[("vm.ovf", both.as_bytes()), ("d.vmdk", &disk)]), "vm.ovf", &[], &[1]);
    // One is missing, and one is of another size.
    for files in [&chunks[..2], &chunks[1..]] {
        let files = [[("vm.ovf", both.as_bytes())].as_slice(), files].concat();
        refused(&folder(&files), "vm.ovf", &[], "MissingMember");
        refused(&folder(&[("vm.ova", &tar(&files))]), "vm.ova", &[], "MissingMember");
    }
    let text = stating(&format!("ovf:chunkSize=\"{}\"", chunk - 1));
    let files = [[("vm.ovf", text.as_bytes())].as_slice(), &chunks].concat();
    refused(&folder(&[("vm.ova", &tar(&files))]), "vm.ova", &[], "Corrupt");
}

#[test]
fn a_chunk_has_a_digest_of_its_own_or_the_whole_file_has_one() {
    use sha2::Digest;
    let disk = disk(1);
    let text = ovf(&[("d.vmdk", CAPACITY)]);
    let (first, second) = disk.split_at(1000);
    let line = |name: &str, bytes: &[u8]| format!("SHA256({name})= {}\n", hex(&sha2::Sha256::digest(bytes)));
    let parts = [line("d.vmdk.000000000", first), line("d.vmdk.000000001", second)].concat();
    for (manifest, is_right) in [
        (parts.clone(), true),
        (line("d.vmdk", &disk), true),
        (parts.replace(&hex(&sha2::Sha256::digest(second)), &"0".repeat(64)), false),
        (line("d.vmdk", second), false),
    ] {
        let files: [(&str, &[u8]); 4] = [
            ("vm.ovf", text.as_bytes()),
            ("vm.mf", manifest.as_bytes()),
            ("d.vmdk.000000000", first),
            ("d.vmdk.000000001", second),
        ];
        let packed = folder(&[("vm.ova", &tar(&files))]);
        if is_right {
            assert_eq!(becomes(&packed, "vm.ova", &[], &[1]), Vec::<String>::new());
        } else {
            refused(&packed, "vm.ova", &[], "ManifestMismatch");
        }
    }
}

fn descriptor(kind: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"GBK\"\nCID=1\nparentCID=ffffffff\ncreateType=\"{kind}\"\n{extents}\n"
    )
}

#[test]
fn extents_are_named_in_the_descriptor_s_encoding() {
    let text = descriptor("monolithicFlat", "RW 256 FLAT \"@-flat.vmdk\" 0");
    let (before, after) = text.split_once('@').unwrap();
    let gbk = [before.as_bytes(), b"\xB4\xC5\xC5\xCC", after.as_bytes()].concat();
    let utf8 = text.replace('@', "磁盘");
    for text in [gbk.as_slice(), utf8.as_bytes()] {
        becomes(&folder(&[("vm.vmdk", text), ("磁盘-flat.vmdk", &guest(1))]), "vm.vmdk", &[], &[1]);
    }
    let unknown: Vec<u8> = String::from_utf8_lossy(&gbk).replace("GBK", "x").into_bytes();
    let said = refused(&folder(&[("vm.vmdk", &unknown)]), "vm.vmdk", &[], "MissingMember");
    assert!(said.contains("which is not beside it"), "{said}");
}

#[test]
fn the_last_part_of_a_split_disk_may_be_larger_than_its_descriptor_says() {
    let part = |capacity: u64, byte: u8| {
        let content = vec![byte; usize::try_from(capacity).unwrap()];
        built(&Sparse { descriptor: None, ..Sparse::monolithic_sparse(capacity) }, &content)
    };
    let text = descriptor("twoGbMaxExtentSparse", "RW 256 SPARSE \"vm-s001.vmdk\"\nRW 130 SPARSE \"vm-s002.vmdk\"");
    let files = |last: u64| {
        folder(&[("vm.vmdk", text.as_bytes()), ("vm-s001.vmdk", &part(CAPACITY, 1)), ("vm-s002.vmdk", &part(last, 1))])
    };
    for last in [130 * 512, CAPACITY, CAPACITY * 2] {
        let folder = files(last);
        becomes(&folder, "vm.vmdk", &[], &[1]);
        let told = inspect(&folder.path().join("vm.vmdk"), &[]);
        assert_eq!(told["disks"][0]["virtualSizeBytes"], (256 + 130) * 512, "{told}");
    }
    refused(&files(128 * 512), "vm.vmdk", &[], "Corrupt");
}

#[test]
fn a_lone_flat_extent_says_what_it_lacks() {
    let said = refused(&folder(&[("vm-flat.vmdk", &guest(1))]), "vm-flat.vmdk", &[], "MissingMember");
    assert!(said.contains("bring the descriptor (vm.vmdk)") && said.contains("rename it to vm.raw"), "{said}");
    assert!(said.contains(&format!("{CAPACITY} bytes")), "{said}");
    assert!(said.contains("\n  Bring the descriptor (NAME.vmdk"), "{said}");
    let said = refused(&folder(&[("vm-f001.vmdk", &guest(1))]), "vm-f001.vmdk", &[], "MissingMember");
    assert!(said.contains("bring the descriptor (vm.vmdk)") && !said.contains("rename"), "{said}");
}

#[test]
fn what_no_disk_needs_is_not_opened() {
    let disk = disk(1);
    let archive = ova("vm", &[("d.vmdk", &disk, CAPACITY)]);
    let text = ovf(&[("d.vmdk", CAPACITY)]).replace("</References>", "<File id=\"n\" href=\"vm.nvram\"/></References>");
    let folder = folder(&[("vm.ovf", text.as_bytes()), ("d.vmdk", &disk), ("vm.nvram", b""), ("vm.ova", &archive)]);
    becomes(&folder, "vm.ovf", &[], &[1]);
    becomes(&folder, "vm.ova", &[], &[1]);
    // The manifest is read, so it must be one.
    std::os::unix::fs::symlink("vm.ovf", folder.path().join("vm.mf")).unwrap();
    refused(&folder, "vm.ovf", &[], "UnsupportedFormat");
}
