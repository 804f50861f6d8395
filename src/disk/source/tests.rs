// SPDX-License-Identifier: Apache-2.0
//! Whole sources, good and hostile.

mod makers;
mod packed;

use std::io::{Cursor, Write as _};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::conversion::Reason;
use crate::disk::replay::{GuestBytes, replay};
use crate::disk::sample_ova::{self, END, member, ovf, tar};
use crate::disk::sample_vmdk::{GRAIN, Sparse};
use crate::disk::{CopyControl, Error, Image, Region};
use crate::disk::{detect, manifest};

const LIMITS: Limits = Limits { max_virtual_size: 1 << 40, max_scratch_bytes: 1 << 26, ovf_option: None };

/// The content of files outside the source; it may appear nowhere.
const CANARY: &str = "CANARY-5f2b";

fn region(name: &str, bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), name, bytes.len() as u64)
}

fn open_with(primary: (&str, &[u8]), siblings: &[(&str, &[u8])], limits: &Limits) -> Result<Source, Error> {
    let siblings: Vec<_> = siblings.iter().map(|(name, bytes)| region(name, bytes)).collect();
    open(&region(primary.0, primary.1), &siblings, limits, &mut || Ok(tempfile::tempfile().unwrap()))
}

fn good(primary: (&str, &[u8]), siblings: &[(&str, &[u8])]) -> Source {
    open_with(primary, siblings, &LIMITS).unwrap()
}

fn refused(primary: (&str, &[u8]), siblings: &[(&str, &[u8])]) -> Reason {
    let error = open_with(primary, siblings, &LIMITS).unwrap_err();
    assert!(!error.to_string().contains(CANARY), "{error}");
    error.reason
}

fn guest(image: &Image) -> Vec<u8> {
    let mut guest = Vec::new();
    replay(image, &CopyControl::default(), |at, found| {
        assert_eq!(at, guest.len() as u64);
        match found {
            GuestBytes::Zero(len) => guest.resize(guest.len() + usize::try_from(len).unwrap(), 0),
            GuestBytes::Data(bytes) => guest.extend_from_slice(bytes),
        }
        Ok(())
    })
    .unwrap();
    guest
}

/// Bytes that differ from disk to disk, every other grain a hole.
fn content(seed: u8, len: usize) -> Vec<u8> {
    let byte = |at: usize| if at / 65536 % 2 == 1 { 0 } else { (at / 7).to_le_bytes()[0] ^ seed };
    (0..len).map(byte).collect()
}

fn sparse(kind: &Sparse, content: &[u8]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let grain = usize::try_from(GRAIN).unwrap();
    kind.write(&mut file, |number| {
        let start = usize::try_from(number).unwrap() * grain;
        let bytes = &content[start..content.len().min(start + grain)];
        bytes.iter().any(|b| *b != 0).then(|| bytes.to_vec())
    })
    .unwrap();
    file.into_inner()
}

fn stream(content: &[u8]) -> Vec<u8> {
    sparse(&Sparse::stream_optimized(content.len() as u64), content)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn text(create_type: &str, extents: &str) -> String {
    format!("# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n{extents}\n")
}

#[test]
fn a_disk_stands_alone() {
    let bytes = content(1, 300_000 / 512 * 512);
    let source = good(("vm.VMDK", &stream(&bytes)), &[]);
    assert_eq!((source.format.as_str(), source.disks.len()), ("vmdk streamOptimized", 1));
    assert_eq!(source.disks[0].member, "vm.VMDK");
    assert!(guest(&source.disks[0].image) == bytes);

    let mut mbr = bytes.clone();
    mbr[510..512].copy_from_slice(&[0x55, 0xAA]);
    for name in ["vm.raw", "vm.img", "vm.ami"] {
        assert!(guest(&good((name, &mbr), &[]).disks[0].image) == mbr, "{name}");
    }
}

#[test]
fn an_ova_gives_its_disks_and_its_machine() {
    let (one, two) = (content(1, 200_704), content(2, 65_536));
    let disks = [("d1.vmdk", stream(&one), 200_704), ("d2.vmdk", stream(&two), 9)];
    let disks: Vec<_> = disks.iter().map(|(name, bytes, size)| (*name, bytes.as_slice(), *size)).collect();
    let source = good(("vm.ova", &sample_ova::ova("vm", &disks)), &[]);
    assert_eq!(source.format, "ova");
    let members: Vec<_> = source.disks.iter().map(|d| d.member.as_str()).collect();
    assert_eq!(members, ["d1.vmdk", "d2.vmdk"]);
    assert!(guest(&source.disks[0].image) == one && guest(&source.disks[1].image) == two);
    assert_eq!(source.hardware.unwrap().disk_controllers[0].disks, ["d1.vmdk", "d2.vmdk"]);
    assert_eq!(source.warnings, ["the OVF gives \"d2.vmdk\" a capacity of 9 bytes, the disk has 65536"]);
    assert_eq!(source.digests.len(), 2);
    assert_eq!(manifest::verify(&source.digests, &manifest::Control::default()).unwrap(), manifest::Outcome::Verified);
}

#[test]
fn an_ovf_finds_its_disks_and_its_manifest_beside_it() {
    let bytes = content(3, 131_072);
    let (disk, envelope) = (stream(&bytes), ovf(&[("d.vmdk", 131_072)]));
    let files = [("vm.ovf", envelope.as_bytes()), ("d.vmdk", disk.as_slice())];
    let manifest = sample_ova::manifest(&files);
    let source = good(files[0], &[files[1], ("vm.mf", manifest.as_bytes()), ("other.vmdk", CANARY.as_bytes())]);
    assert_eq!((source.format.as_str(), source.digests.len()), ("ovf", 1));
    assert!(guest(&source.disks[0].image) == bytes);
    assert_eq!(good(files[0], &[files[1]]).digests.len(), 0);

    assert_eq!(refused(files[0], &[("e.vmdk", &disk)]), Reason::MissingMember);
    let lying = sample_ova::manifest(&[("vm.ovf", b"another")]);
    assert_eq!(refused(files[0], &[files[1], ("vm.mf", lying.as_bytes())]), Reason::ManifestMismatch);
}

#[test]
fn a_wrong_digest_is_found_beside_the_copy() {
    let bytes = content(3, 65_536);
    let (disk, other) = (stream(&bytes), stream(&content(4, 65_536)));
    let envelope = ovf(&[("d.vmdk", 65_536)]);
    let manifest = sample_ova::manifest(&[("vm.ovf", envelope.as_bytes()), ("d.vmdk", &other)]);
    let ova = tar(&[("vm.ovf", envelope.as_bytes()), ("vm.mf", manifest.as_bytes()), ("d.vmdk", &disk)]);
    let source = good(("vm.ova", &ova), &[]);
    let error = manifest::verify(&source.digests, &manifest::Control::default()).unwrap_err();
    assert_eq!((error.reason, error.file.as_str()), (Reason::ManifestMismatch, "vm.ova:d.vmdk"));
}

#[test]
fn gzip_members_are_inflated_and_their_digest_is_of_the_stored_bytes() {
    let bytes = content(5, 131_072);
    let packed = gzip(&stream(&bytes));
    let envelope =
        ovf(&[("d.vmdk.gz", 131_072)]).replace("ovf:id=\"file0\"", "ovf:id=\"file0\" ovf:compression=\"gzip\"");
    let manifest = sample_ova::manifest(&[("vm.ovf", envelope.as_bytes()), ("d.vmdk.gz", &packed)]);
    let files = [("vm.ovf", envelope.as_bytes()), ("vm.mf", manifest.as_bytes()), ("d.vmdk.gz", packed.as_slice())];
    let source = good(("vm.ova", &tar(&files)), &[]);
    assert!(guest(&source.disks[0].image) == bytes);
    manifest::verify(&source.digests, &manifest::Control::default()).unwrap();

    let small = Limits { max_scratch_bytes: 4096, ..LIMITS };
    assert_eq!(open_with(("vm.ova", &tar(&files)), &[], &small).unwrap_err().reason, Reason::TooLarge);
    let undeclared = ovf(&[("d.vmdk", 131_072)]);
    let files = [("vm.ovf", undeclared.as_bytes()), ("d.vmdk", packed.as_slice())];
    assert_eq!(refused(("vm.ova", &tar(&files)), &[]), Reason::FormatMismatch);
}

#[test]
fn a_blank_disk_is_made() {
    let blank = "<Disk ovf:diskId='scratch' ovf:capacity='1' ovf:capacityAllocationUnits='byte * 2^20'/></DiskSection>";
    let envelope = ovf(&[]).replace("</DiskSection>", blank);
    let source = good(("vm.ovf", envelope.as_bytes()), &[]);
    assert_eq!(source.disks[0].member, "scratch");
    assert!(guest(&source.disks[0].image) == vec![0; 1 << 20]);
    let huge = envelope.replace("2^20", "2^50");
    assert_eq!(refused(("vm.ovf", huge.as_bytes()), &[]), Reason::TooLarge);
    assert_eq!(refused(("vm.ovf", ovf(&[]).as_bytes()), &[]), Reason::UnsupportedFormat);
}

#[test]
fn flat_and_split_disks_are_put_together() {
    let (one, two) = (content(1, 65_536), content(2, 4096));
    let flat = text("monolithicFlat", "RW 128 FLAT \"vm-flat.vmdk\" 0");
    let source = good(("vm.vmdk", flat.as_bytes()), &[("vm-flat.vmdk", &one)]);
    assert_eq!(source.format, "vmdk monolithicFlat");
    assert_eq!(source.members, [("vm.vmdk".to_owned(), flat.len() as u64), ("vm-flat.vmdk".to_owned(), 65_536)]);
    assert!(guest(&source.disks[0].image) == one);

    let lines = "RW 120 FLAT \"vm-f001.vmdk\" 8\nRW 16 ZERO\nRW 8 FLAT \"vm-f002.vmdk\" 0";
    let split = text("twoGbMaxExtentFlat", lines);
    let source = good(("vm.vmdk", split.as_bytes()), &[("vm-f002.vmdk", &two), ("vm-f001.vmdk", &one)]);
    assert!(guest(&source.disks[0].image) == [&one[4096..], &[0; 8192], &two].concat());

    let esx = text("vmfs", "RW 8 VMFS vm-flat.vmdk");
    assert!(guest(&good(("vm.vmdk", esx.as_bytes()), &[("vm-flat.vmdk", &two)]).disks[0].image) == two);

    let part =
        |bytes: &[u8]| sparse(&Sparse { descriptor: None, ..Sparse::monolithic_sparse(bytes.len() as u64) }, bytes);
    let lines = "RW 128 SPARSE \"vm-s001.vmdk\"\nRW 8 SPARSE \"vm-s002.vmdk\"";
    let split = text("twoGbMaxExtentSparse", lines);
    let (first, second) = (part(&one), part(&two));
    let source = good(("vm.vmdk", split.as_bytes()), &[("vm-s001.vmdk", &first), ("vm-s002.vmdk", &second)]);
    assert_eq!(source.format, "vmdk twoGbMaxExtentSparse");
    assert!(guest(&source.disks[0].image) == [one.as_slice(), &two].concat());
    let smaller = [("vm-s001.vmdk", second.as_slice()), ("vm-s002.vmdk", second.as_slice())];
    assert_eq!(refused(("vm.vmdk", split.as_bytes()), &smaller), Reason::Corrupt);
    let larger = [("vm-s001.vmdk", first.as_slice()), ("vm-s002.vmdk", first.as_slice())];
    let source = good(("vm.vmdk", split.as_bytes()), &larger);
    assert!(guest(&source.disks[0].image) == [one.as_slice(), &one[..4096]].concat());
    assert_eq!(source.warnings, Vec::<String>::new());
    let much_larger = part(&content(3, 1 << 20));
    let much_larger = [("vm-s001.vmdk", first.as_slice()), ("vm-s002.vmdk", &much_larger)];
    let warnings = good(("vm.vmdk", split.as_bytes()), &much_larger).warnings;
    assert_eq!(warnings, ["vm-s002.vmdk: has 1048576 bytes of a disk, of which its descriptor takes 4096"]);
    assert_eq!(refused(("vm-s001.vmdk", &first), &[]), Reason::MissingMember);
}

#[test]
fn a_descriptor_reaches_nobody_elses_file() {
    let secret = [CANARY.as_bytes(), &[0; 4096]].concat();
    let flat = |name: &str| text("monolithicFlat", &format!("RW 8 FLAT \"{name}\" 0"));
    for name in ["/etc/shadow", "../other.raw", "vm.vmdk", "sub/vm-flat.vmdk"] {
        assert_eq!(refused(("vm.vmdk", flat(name).as_bytes()), &[("other.raw", &secret)]), Reason::UnsafeReference);
    }
    assert_eq!(refused(("vm.vmdk", flat("victim.raw").as_bytes()), &[]), Reason::MissingMember);
    assert_eq!(refused(("vm.vmdk", flat("a-flat.vmdk").as_bytes()), &[("a-flat.vmdk", &[0; 4095])]), Reason::Truncated);
    let victim = stream(&content(1, 65_536));
    assert_eq!(refused(("vm.vmdk", flat("v.vmdk").as_bytes()), &[("v.vmdk", &victim)]), Reason::UnsafeReference);
    for kind in ["monolithicSparse", "streamOptimized"] {
        let outside = text(kind, "RW 8 SPARSE \"v.vmdk\"");
        assert_eq!(refused(("vm.vmdk", outside.as_bytes()), &[("v.vmdk", &victim)]), Reason::Corrupt);
    }
    let child = flat("a-flat.vmdk").replace("parentCID=ffffffff", "parentCID=00000001\nparentFileNameHint=\"v.vmdk\"");
    assert_eq!(refused(("vm.vmdk", child.as_bytes()), &[("v.vmdk", &victim)]), Reason::UnsafeReference);
}

#[test]
fn a_descriptor_inside_an_ova_finds_its_extents_there() {
    let bytes = content(7, 4096);
    let flat = text("monolithicFlat", "RW 8 FLAT \"d-flat.vmdk\" 0");
    let envelope = ovf(&[("d.vmdk", 4096)]);
    let files = [("vm.ovf", envelope.as_bytes()), ("d.vmdk", flat.as_bytes()), ("d-flat.vmdk", bytes.as_slice())];
    assert!(guest(&good(("vm.ova", &tar(&files)), &[]).disks[0].image) == bytes);
    assert_eq!(refused(("vm.ova", &tar(&files[..2])), &[]), Reason::MissingMember);
    let outside = [("d-flat.vmdk", CANARY.as_bytes())];
    assert_eq!(refused(("vm.ova", &tar(&files[..2])), &outside), Reason::MissingMember);
}

#[test]
fn content_must_be_what_the_name_says() {
    let disk = stream(&content(1, 65_536));
    let mut polyglot = vec![0; 4096];
    polyglot[..8].copy_from_slice(b"QFI\xFB\0\0\0\x03");
    polyglot[3584..3592].copy_from_slice(b"conectix");
    let envelope = ovf(&[("d.vmdk", 4096)]);
    for (name, bytes, reason) in [
        ("vm.raw", disk.as_slice(), Reason::FormatMismatch),
        ("vm.ova", &disk, Reason::FormatMismatch),
        ("vm.vmdk", &[0; 512], Reason::Corrupt),
        ("vm.ova", &[0; 512], Reason::Corrupt),
        ("vm.qcow2", &polyglot, Reason::FormatMismatch),
        ("vm.vhd", &polyglot, Reason::FormatMismatch),
        ("vm.vmdk", b"COWD", Reason::UnsupportedFormat),
        ("vm.img", b"QFI\xFB\0\0\0\x01", Reason::UnsupportedFormat),
        ("vm.iso", &disk, Reason::UnsupportedFormat),
        ("vm", &[0; 512], Reason::UnsupportedFormat),
        ("vm.ova", b"\x1F\x8B\x08", Reason::Truncated),
        ("vm.vmdk", b"", Reason::Corrupt),
        ("vm.ovf", envelope.as_bytes(), Reason::MissingMember),
        ("vm.vmdk", envelope.as_bytes(), Reason::FormatMismatch),
    ] {
        assert_eq!(refused((name, bytes), &[]), reason, "{name}");
    }
    for (name, bytes, reason) in [
        ("d.vmdk", [0; 512].as_slice(), Reason::Corrupt),
        ("d.raw", &disk, Reason::FormatMismatch),
        ("d.ova", &sample_ova::ova("x", &[]), Reason::FormatMismatch),
        ("d", &sample_ova::ova("x", &[]), Reason::FormatMismatch),
    ] {
        let envelope = ovf(&[(name, 512)]);
        assert_eq!(refused(("vm.ova", &tar(&[("vm.ovf", envelope.as_bytes()), (name, bytes)])), &[]), reason, "{name}");
    }
    let unnamed = ovf(&[("7f3c", 65_536)]);
    assert_eq!(good(("vm.ova", &tar(&[("vm.ovf", unnamed.as_bytes()), ("7f3c", &disk)])), &[]).disks.len(), 1);
}

#[test]
fn a_disk_above_the_limit_is_too_large() {
    let limits = Limits { max_virtual_size: 65_536, ..LIMITS };
    let error = open_with(("vm.vmdk", &stream(&content(1, 131_072))), &[], &limits).unwrap_err();
    assert_eq!(
        (error.reason, error.message.as_str()),
        (Reason::TooLarge, "has a virtual size of 128 KiB, the limit is 64 KiB")
    );
    open_with(("vm.vmdk", &stream(&content(1, 65_536))), &[], &limits).unwrap();
}

#[test]
fn a_split_disk_above_the_limit_is_too_large_whatever_its_parts_are() {
    let descriptor = text("twoGbMaxExtentSparse", "RW 256 SPARSE \"a.vmdk\"\nRW 256 SPARSE \"b.vmdk\"");
    let limits = Limits { max_virtual_size: 131_072, ..LIMITS };
    let error = open_with(("vm.vmdk", descriptor.as_bytes()), &[("a.vmdk", b"KDMV")], &limits).unwrap_err();
    assert_eq!((error.reason, error.file.as_str()), (Reason::TooLarge, "vm.vmdk"), "{error}");
}

#[test]
fn an_inspection_tells_instead_of_failing() {
    let disk = stream(&content(1, 131_072));
    let ova = sample_ova::ova("vm", &[("d.vmdk", &disk, 131_072)]);
    let look = |name: &str, bytes: &[u8]| {
        inspect(&region(name, bytes), &[], &LIMITS, &mut || Ok(tempfile::tempfile().unwrap()))
    };
    let inspection = look("vm.ova", &ova);
    assert!(inspection.accepted);
    assert_eq!(
        inspection.disks,
        [DiskInspection {
            member: "d.vmdk".to_owned(),
            format: "vmdk streamOptimized".to_owned(),
            virtual_size_bytes: Some(131_072),
            allocated_bytes: Some(65_536),
            compression: "deflate",
        }]
    );
    assert_eq!(inspection.members.len(), 3);
    let inspection = look("vm.vmdk", &ova);
    assert_eq!((inspection.accepted, inspection.format.as_deref()), (false, Some("tar")));
    assert_eq!(inspection.refusal.as_ref().unwrap().reason, Reason::FormatMismatch);
    let inspection = look("vm.ova", &ova[..1024]);
    assert_eq!((inspection.accepted, inspection.format.as_deref()), (false, Some("ova")));
    assert!(serde_json::to_string(&inspection).unwrap().contains("\"sizeBytes\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_damage_makes_it_panic(at: prop::sample::Index, byte: u8, keep: prop::sample::Index) {
        let disk = stream(&content(1, 70_144));
        let mut bytes = sample_ova::ova("vm", &[("d.vmdk", &disk, 70_144)]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if byte % 2 == 0 {
            bytes.truncate(keep.index(bytes.len()) + 1);
        }
        let control = CopyControl::default();
        if let Ok(source) = open_with(("vm.ova", &bytes), &[], &LIMITS) {
            let _ = manifest::verify(&source.digests, &manifest::Control::default());
            for disk in &source.disks {
                let _ = replay(&disk.image, &control, |_, _| Ok(()));
            }
        }
    }

    #[test]
    fn a_cut_ova_never_looks_whole(keep: prop::sample::Index) {
        let disk = stream(&content(1, 70_144));
        let bytes = sample_ova::ova("vm", &[("d.vmdk", &disk, 70_144)]);
        let whole = bytes.len() - END.len();
        let source = open_with(("vm.ova", &bytes[..=keep.index(whole - 512)]), &[], &LIMITS);
        let reason = source.map(|_| ()).unwrap_err().reason;
        let told = [Reason::Truncated, Reason::Corrupt, Reason::MissingMember, Reason::ManifestMismatch];
        prop_assert!(told.contains(&reason), "{reason}");
    }
}

#[test]
fn hostile_members_are_refused_through_the_whole_way() {
    let disk = stream(&content(1, 65_536));
    let envelope = ovf(&[("d.vmdk", 65_536)]);
    let with = |name: &str| tar(&[("vm.ovf", envelope.as_bytes()), ("d.vmdk", &disk), (name, CANARY.as_bytes())]);
    assert_eq!(good(("vm.ova", &with("notes.txt")), &[]).disks.len(), 1);
    for (ova, reason) in [
        (with("../x"), Reason::UnsafeReference),
        (with("/etc/cron.d/x"), Reason::UnsafeReference),
        (with("d.vmdk"), Reason::Corrupt),
        (with("two.ovf"), Reason::Corrupt),
        (tar(&[("vm.ovf", envelope.as_bytes())]), Reason::MissingMember),
        (
            [member("vm.ovf", envelope.replace("<Envelope", "<!DOCTYPE x><Envelope").as_bytes()), END.to_vec()]
                .concat(),
            Reason::UnsupportedFormat,
        ),
        (tar(&[("vm.ovf", ovf(&[("../d.vmdk", 1)]).as_bytes())]), Reason::UnsafeReference),
    ] {
        assert_eq!(refused(("vm.ova", &ova), &[]), reason);
    }
}
