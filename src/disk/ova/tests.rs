// SPDX-License-Identifier: Apache-2.0
//! Archives as exporters write them, and hostile ones.

use std::io::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::sample_ova::{END, entry, header, member, ova as sample, pax, sum, tar};

fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), "vm.ova", bytes.len() as u64)
}

fn read(member: &OvaMember) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(member.region.len()).unwrap()];
    member.region.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn refused(bytes: &[u8]) -> (Reason, String) {
    let error = open(&region(bytes)).unwrap_err();
    (error.reason, error.to_string())
}

const OVF: (&str, &[u8]) = ("vm.ovf", b"<Envelope/>");

#[test]
fn members_are_windows_on_the_archive() {
    let ova = open(&region(&sample("vm", &[("d1.vmdk", b"first", 512), ("d2.vmdk", b"", 512)]))).unwrap();
    let names: Vec<_> = ova.members.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["vm.ovf", "vm.mf", "d1.vmdk", "d2.vmdk"]);
    assert_eq!((ova.ovf, ova.manifests), (0, vec![1]));
    assert_eq!(read(&ova.members[2]), b"first");
    assert_eq!(ova.members[2].region.name(), "vm.ova:d1.vmdk");
}

#[test]
fn sizes_above_what_octal_holds_are_read() {
    let mut gnu = header(b"d.vmdk", 0, b'0');
    gnu[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    gnu[257..265].copy_from_slice(b"ustar  \0");
    sum(&mut gnu);
    for disk in [
        entry(&gnu, b"hello"),
        [pax(&[("size", "5"), ("mtime", "1.5")]), entry(&header(b"d.vmdk", 0, b'0'), b"hello")].concat(),
        [pax(&[("path", "d.vmdk")]), member("cut off name", b"hello")].concat(),
        [entry(&header(b"././@LongLink", 7, b'L'), b"d.vmdk\0"), member("x", b"hello")].concat(),
        [entry(&header(b"g", 12, b'g'), b"12 comment=\n"), member("d.vmdk", b"hello")].concat(),
    ] {
        let ova = open(&region(&[member(OVF.0, OVF.1), disk, END.to_vec()].concat())).unwrap();
        assert_eq!(ova.members[1].name, "d.vmdk");
        assert_eq!(read(&ova.members[1]), b"hello");
    }
}

#[test]
fn a_member_with_two_names_or_sizes_is_refused() {
    let long = |name: &[u8]| entry(&header(b"././@LongLink", name.len() as u64, b'L'), name);
    let disk = member("x", b"hello");
    for (before, is_good) in [
        (vec![long(b"d.vmdk\0"), pax(&[("path", "d.vmdk")])], true),
        (vec![long(b"d.vmdk\0"), pax(&[("path", "other.vmdk")])], false),
        (vec![pax(&[("path", "other.vmdk")]), long(b"d.vmdk\0")], false),
        (vec![pax(&[("path", "a"), ("path", "b")])], false),
        (vec![pax(&[("path", "a")]), pax(&[("path", "b")])], false),
        (vec![pax(&[("size", "5"), ("size", "6")])], false),
    ] {
        let bytes = [member(OVF.0, OVF.1), before.concat(), disk.clone(), END.to_vec()].concat();
        let opened = open(&region(&bytes));
        assert_eq!(opened.err().map(|e| e.reason), (!is_good).then_some(Reason::Corrupt));
    }
}

#[test]
fn an_archive_without_its_last_zeros_is_read() {
    let whole = tar(&[OVF, ("d.vmdk", b"x")]);
    for cut in [512, 1024, 1024 + 511] {
        assert_eq!(open(&region(&whole[..whole.len() - cut])).unwrap().members.len(), 2, "{cut}");
    }
}

#[test]
fn paths_that_leave_the_archive_control_characters_and_links_are_refused() {
    for name in ["../x.vmdk", "a/../../x", "/etc/shadow", "..", "c:x", "C:\\x", "\\x", "a\nb", "a/\u{1b}b"] {
        assert_eq!(refused(&tar(&[OVF, (name, b"")])).0, Reason::UnsafeReference, "{name:?}");
        let long = [member(OVF.0, OVF.1), pax(&[("path", name)]), member("d", b"")].concat();
        assert_eq!(refused(&long).0, Reason::UnsafeReference, "{name:?} in pax");
    }
    for (flag, reason) in [
        (b'1', Reason::UnsafeReference),
        (b'2', Reason::UnsafeReference),
        (b'3', Reason::UnsafeReference),
        (b'6', Reason::UnsafeReference),
        (b'K', Reason::UnsafeReference),
        (b'S', Reason::Corrupt),
        (b'M', Reason::UnsupportedFormat),
        (b'?', Reason::UnsupportedFormat),
    ] {
        let bytes = [member(OVF.0, OVF.1), entry(&header(b"d.vmdk", 0, flag), b"")].concat();
        assert_eq!(refused(&bytes).0, reason, "{}", char::from(flag));
    }
    for (records, reason) in
        [([("linkpath", "/etc/shadow")], Reason::UnsafeReference), ([("GNU.sparse.major", "1")], Reason::Corrupt)]
    {
        assert_eq!(refused(&[pax(&records), member("d", b"")].concat()).0, reason);
    }
}

#[test]
fn maps_of_sparse_members_that_contradict_themselves_are_refused_with_what_helps() {
    let text = |map: &str, data: usize| [map.as_bytes().to_vec(), vec![0; 512 - map.len() + data]].concat();
    let one = |records: &[(&str, &str)], bytes: &[u8]| {
        let records: Vec<_> = records.iter().map(|(key, value)| (format!("GNU.sparse.{key}"), *value)).collect();
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        members(&region(&[pax(&records), member("x", bytes), END.to_vec()].concat()))
    };
    let before = |len: &'static str| [("major", "1"), ("minor", "0"), ("name", "d.img"), ("realsize", len)];
    let found = one(&before("4096"), &text("2\n512\n512\n4096\n0\n", 512)).unwrap().remove(0);
    assert_eq!((found.name.as_str(), found.region.name(), found.region.len()), ("d.img", "vm.ova:d.img", 4096));
    for (records, bytes) in [
        (before("4096").to_vec(), text("1\n512\n1024\n", 512)),
        (before("4096").to_vec(), text("1\n4096\n512\n", 512)),
        (before("4096").to_vec(), text("1\n100\n512\n", 512)),
        (before("4096").to_vec(), text("99999999\n512\n512\n", 512)),
        (before("4096").to_vec(), text("1\n99999999999999999999\n512\n", 512)),
        (before("4096").to_vec(), text("1\n512\n\n", 512)),
        (before("4096").to_vec(), vec![b'1'; 100]),
        (vec![("major", "2"), ("minor", "0"), ("realsize", "0")], vec![]),
        (vec![("major", "1"), ("minor", "0")], text("0\n", 0)),
        (vec![("size", "512"), ("size", "1024"), ("map", "0,512")], vec![1; 512]),
        (vec![("size", "512"), ("map", "0,512,")], vec![1; 512]),
        (vec![("size", "512"), ("map", "0,512,512")], vec![1; 512]),
        (vec![("size", "512"), ("numbytes", "512"), ("offset", "0")], vec![1; 512]),
        (vec![("size", "512"), ("offset", "+0"), ("numbytes", "512")], vec![1; 512]),
    ] {
        let error = one(&records, &bytes).unwrap_err();
        assert_eq!((error.reason, error.remedy), (Reason::Corrupt, Some(Remedy::PackWithoutHoles)), "{records:?}");
    }
    let endless = entry(&header(b"d.img", 0, b'S'), &[]);
    assert_eq!(members(&region(&endless)).unwrap_err().reason, Reason::Corrupt);
}

#[test]
fn two_sparse_members_of_one_length_are_not_the_same() {
    let sparse = |name: &str| {
        let records = [("GNU.sparse.size", "1024"), ("GNU.sparse.map", "512,512"), ("GNU.sparse.name", name)];
        [pax(&records), member("x", &[7; 512])].concat()
    };
    let found = members(&region(&[sparse("a"), sparse("b"), END.to_vec()].concat())).unwrap();
    assert!(!found[0].region.is_same(&found[1].region));
    assert!(found[0].region.is_same(&found[0].region.clone()));
    assert_eq!(read(&found[1]), [[0; 512], [7; 512]].concat());
    assert_eq!(found[1].end, 2 * 2048);
}

#[test]
fn names_in_directories_of_incremental_archives_are_skipped() {
    let names = entry(&header(b"vm/", 7, b'D'), b"Yd.img\0");
    let found = members(&region(&[names, member("vm/d.img", b"x"), END.to_vec()].concat())).unwrap();
    assert_eq!(found.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["d.img"]);
}

#[test]
fn folders_of_hand_packed_archives_are_no_obstacle() {
    let directory = |name: &str| entry(&header(name.as_bytes(), 0, b'5'), b"");
    let mut prefixed = header(b"d.vmdk", 5, b'0');
    prefixed[345..351].copy_from_slice(b"export");
    sum(&mut prefixed);
    let bytes = [
        directory("./"),
        entry(&header(b"old/", 0, b'0'), b""),
        member("./export/vm.ovf", OVF.1),
        member("./._vm.ovf", b"finder"),
        member("__MACOSX/export/._vm.ovf", b"finder"),
        member("export//./.DS_Store", b"finder"),
        entry(&prefixed, b"first"),
        member("docs\\d.vmdk", b"other"),
        member("docs/12:30.txt", b""),
        entry(&header(b"f\xFCr.txt", 0, b'0'), b""),
        END.to_vec(),
    ]
    .concat();
    let ova = open(&region(&bytes)).unwrap();
    let paths: Vec<_> = ova.members.iter().map(|m| (m.folder.as_str(), m.name.as_str())).collect();
    assert_eq!(
        paths,
        [
            ("export", "vm.ovf"),
            ("export", ".DS_Store"),
            ("export", "d.vmdk"),
            ("docs", "d.vmdk"),
            ("docs", "12:30.txt"),
            ("", "f\u{fffd}r.txt")
        ]
    );
    assert_eq!((ova.ovf, read(&ova.members[2])), (0, b"first".to_vec()));
    assert_eq!(ova.members[2].region.name(), "vm.ova:d.vmdk");
}

#[test]
fn archives_that_contradict_themselves_are_refused() {
    let mut bad_sum = header(b"d.vmdk", 0, b'0');
    bad_sum[0] = b'e';
    let mut negative = header(b"d.vmdk", 0, b'0');
    negative[124..136].fill(0xFF);
    sum(&mut negative);
    let mut huge = header(b"d.vmdk", 0, b'0');
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    sum(&mut huge);
    for (bytes, reason) in [
        (tar(&[OVF, ("a", b"1"), ("a", b"2")]), Reason::Corrupt),
        (tar(&[OVF, ("other.OVF", b"")]), Reason::Corrupt),
        (tar(&[OVF, ("x/a", b"1"), ("./x/a", b"1")]), Reason::Corrupt),
        (tar(&[OVF, ("old/vm.ovf", b"")]), Reason::Corrupt),
        ([entry(&header(b"L", 2, b'L'), b"a\0"), pax(&[("path", "b")]), member("a", b"")].concat(), Reason::Corrupt),
        (entry(&header(b"folder/", 3, b'5'), b"abc"), Reason::Corrupt),
        (tar(&[("a.vmdk", b"")]), Reason::MissingMember),
        (tar(&[("vm.ovf", &vec![b' '; MAX_BYTES + 1])]), Reason::Corrupt),
        (tar(&[OVF, ("vm.mf", &vec![b' '; manifest::MAX_BYTES + 1])]), Reason::Corrupt),
        (bad_sum.to_vec(), Reason::Corrupt),
        (negative.to_vec(), Reason::Corrupt),
        (huge.to_vec(), Reason::Corrupt),
        ([pax(&[("size", "-1")]), member("d", b"")].concat(), Reason::Corrupt),
        (entry(&header(b"x", 3, b'x'), b"99 "), Reason::Corrupt),
        (entry(&header(b"x", 1 << 30, b'x'), b""), Reason::Corrupt),
        (header(b"g", 0, b'g').repeat(5000), Reason::UnsupportedFormat),
        (header(b"d.vmdk", 1000, b'0').to_vec(), Reason::Truncated),
        (tar(&[OVF])[..520].to_vec(), Reason::Truncated),
        (tar(&[OVF])[..1024 + 100].to_vec(), Reason::Truncated),
    ] {
        let (found, message) = refused(&bytes);
        assert_eq!(found, reason, "{message}");
    }
    let many: Vec<u8> = (0..=MAX_MEMBERS).flat_map(|n| member(&format!("{n}"), b"")).collect();
    assert_eq!(refused(&many).0, Reason::UnsupportedFormat);
    let chunks = |many| {
        (0..many).flat_map(|n| member(&format!("d.vmdk.{n:09}"), b"")).chain(member(OVF.0, OVF.1)).collect::<Vec<u8>>()
    };
    assert_eq!(open(&region(&chunks(MAX_PARTS))).unwrap().members.len(), MAX_PARTS + 1);
    assert_eq!(refused(&chunks(MAX_PARTS + 1)).0, Reason::UnsupportedFormat);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_damage_makes_it_panic(at: prop::sample::Index, byte: u8, keep: prop::sample::Index) {
        let whole = sample("vm", &[("d1.vmdk", b"first", 512)]);
        let mut bytes = [pax(&[("size", "5"), ("path", "x.nvram")]), member("x", b"12345"), whole].concat();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if byte % 2 == 0 {
            bytes.truncate(keep.index(bytes.len()) + 1);
        }
        if let Ok(ova) = open(&region(&bytes)) {
            for member in &ova.members {
                read(member);
            }
        }
    }
}
