// SPDX-License-Identifier: Apache-2.0
//! What is written is read back by the reader, and by hivex.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use bolero::{TypeGenerator, check, produce};

use super::keys::{upper, width};
use super::*;
use crate::guest::fields::le16;

const LIMITS: Limits =
    Limits { time: Duration::from_secs(20), read_bytes: 64 << 20, decoded_bytes: 1 << 20, steps: 2_000_000 };
/// Cases of each property.
const CASES: usize = 300;

fn open(bytes: &[u8]) -> Editor {
    Editor::open(bytes.to_vec(), &LIMITS).unwrap()
}

/// What hivex says of a hive; `None` where it is not installed.
fn exported(bytes: &[u8]) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = Command::new("hivexregedit")
        .args(["--export", "--unsafe-printable-strings"])
        .arg(file.path())
        .arg("\\")
        .output();
    let output = output.ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Walks every key: parents, counts and the order of names must be right, and every cell must be in use.
fn walk(editor: &Editor, key: &Key, found: &mut Vec<String>) {
    let hive = &editor.hive;
    let mut keys = Vec::new();
    if le32(&key.cell, 20).unwrap() > 0 {
        leaves(hive, le32(&key.cell, 28).unwrap(), &mut keys);
    }
    assert_eq!(keys.len() as u64, u64::from(le32(&key.cell, 20).unwrap()));
    let names: Vec<String> = keys.iter().map(|offset| hive.named(*offset).unwrap().name().unwrap()).collect();
    assert!(names.is_sorted_by(|a, b| upper(a).lt(upper(b))), "{names:?}");
    for (offset, name) in keys.into_iter().zip(names) {
        let below = hive.named(offset).unwrap();
        assert_eq!(le32(&below.cell, 16).unwrap(), key.offset, "the parent of {name}");
        found.push(name);
        walk(editor, &below, found);
    }
}

fn leaves(hive: &Hive<Vec<u8>>, list: u32, found: &mut Vec<u32>) {
    let cell = hive.cell(list).unwrap();
    let kind = [cell[0], cell[1]];
    for index in 0..usize::from(le16(&cell, 2).unwrap()) {
        match width(kind) {
            Some(width) => found.push(le32(&cell, 4 + index * width).unwrap()),
            None => leaves(hive, le32(&cell, 4 + index * 4).unwrap(), found),
        }
    }
}

/// All cells of all bins, which must fill them exactly.
fn cells(bytes: &[u8]) {
    let bins = usize::try_from(le32(bytes, 40).unwrap()).unwrap();
    let mut bin = 0;
    while bin < bins {
        let start = BIN + bin;
        assert_eq!((&bytes[start..start + 4], le32(bytes, start + 4).unwrap()), (&b"hbin"[..], number(bin)));
        let end = bin + usize::try_from(le32(bytes, start + 8).unwrap()).unwrap();
        let mut at = bin + BIN_HEADER;
        while at < end {
            let len = i32::from_le_bytes(bytes[BIN + at..BIN + at + 4].try_into().unwrap()).unsigned_abs() as usize;
            assert!(len >= CELL && len.is_multiple_of(CELL), "a cell of {len} bytes at {at}");
            at += len;
        }
        assert_eq!(at, end);
        bin = end;
    }
}

#[test]
fn what_is_written_is_what_hivex_reads() {
    for minor in [3, 5, 6] {
        let mut editor = open(&made::empty(minor));
        let long = "x".repeat(600);
        editor.set(&["Select"], "Current", &Value::Number(1)).unwrap();
        let service = ["ControlSet001", "Services", "viostor"];
        editor.set(&service, "Type", &Value::Number(1)).unwrap();
        editor.set(&service, "ImagePath", &Value::Expandable("system32\\drivers\\viostor.sys")).unwrap();
        editor.set(&service, "Group", &Value::Text("SCSI miniport")).unwrap();
        editor.set(&service, "Group", &Value::Text(&long)).unwrap();
        editor.set(&service, "group", &Value::Text("SCSI")).unwrap();
        editor.set(&["DriverDatabase", "DeviceIds"], "", &Value::Texts(&["a.inf", "b.inf"])).unwrap();
        editor.set(&["DriverDatabase"], "Map", &Value::Bytes(&[1, 0xFF, 0, 0, 9])).unwrap();
        let bytes = editor.finish();
        cells(&bytes);
        let again = open(&bytes);
        assert_eq!(again.number(&["SELECT"], "current").unwrap(), Some(1));
        assert_eq!(again.number(&["Nothing"], "current").unwrap(), None);
        assert!(again.has(&service).unwrap() && !again.has(&["Services"]).unwrap());
        let mut found = Vec::new();
        walk(&again, &again.hive.key(&[]).unwrap(), &mut found);
        assert_eq!(found.len(), 6, "{found:?}");
        let Some(text) = exported(&bytes) else { continue };
        for line in [
            "[\\ControlSet001\\Services\\viostor]",
            "\"Type\"=dword:00000001",
            "\"Group\"=str(1):\"SCSI\"",
            "\"ImagePath\"=str(2):\"system32\\drivers\\viostor.sys\"",
            "@=hex(7):61,00,2e,00,69,00,6e,00,66,00,00,00,62,00,2e,00,69,00,6e,00,66,00,00,00,00,00",
            "\"Map\"=hex(3):01,ff,00,00,09",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}

#[test]
fn what_hivex_wrote_stays_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (hive, text) = (directory.path().join("SYSTEM"), directory.path().join("keys.reg"));
    std::fs::write(&hive, made::empty(5)).unwrap();
    let mut keys = "Windows Registry Editor Version 5.00\n\n[\\Services]\n\n".to_owned();
    for n in 0..400 {
        write!(keys, "[\\Services\\Service {n}]\n\"Start\"=dword:{n:08x}\n\"Text\"=\"of {n}\"\n\n").unwrap();
    }
    std::fs::write(&text, keys).unwrap();
    let Ok(merged) = Command::new("hivexregedit").arg("--merge").args([&hive, &text]).status() else { return };
    assert!(merged.success());
    let before = std::fs::read(&hive).unwrap();
    let mut editor = open(&before);
    assert_eq!(editor.number(&["Services", "service 399"], "START").unwrap(), Some(399));
    editor.set(&["Services", "Service 2000"], "Start", &Value::Number(0)).unwrap();
    editor.set(&["Services", "AAA"], "Start", &Value::Number(4)).unwrap();
    let after = editor.finish();
    cells(&after);
    let lines = |bytes: &[u8]| exported(bytes).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines(&before), lines(&after));
    let added: Vec<&String> = new.iter().filter(|line| !old.contains(line) && !line.is_empty()).collect();
    assert_eq!(
        added,
        ["[\\Services\\AAA]", "[\\Services\\Service 2000]"],
        "the start values are lines that were there"
    );
    assert!(old.iter().all(|line| new.contains(line)) && new.len() > old.len());
}

#[test]
fn a_list_of_lists_stays_in_order() {
    let mut editor = open(&made::empty(5));
    for name in ["B", "D", "F", "H"] {
        editor.set(&["Keys", name], "n", &Value::Number(1)).unwrap();
    }
    let key = editor.hive.key(&["Keys"]).unwrap();
    let mut below = Vec::new();
    leaves(&editor.hive, le32(&key.cell, 28).unwrap(), &mut below);
    let mut lists = Vec::new();
    for pair in below.chunks(2) {
        let offsets: Vec<u8> = pair.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        lists.extend(editor.allocate(&[&b"li\x02\0"[..], &offsets].concat()).unwrap().to_le_bytes());
    }
    let index = editor.allocate(&[&b"ri\x02\0"[..], &lists].concat()).unwrap();
    editor.put(key.offset, 28, &index.to_le_bytes()).unwrap();
    for name in ["A", "e", "C", "Z"] {
        editor.set(&["keys", name], "n", &Value::Number(2)).unwrap();
    }
    let again = open(&editor.finish());
    let mut found = Vec::new();
    walk(&again, &again.hive.key(&[]).unwrap(), &mut found);
    assert_eq!(found.join(" "), "Keys A B C D e F H Z");
}

#[test]
fn a_hive_that_nothing_changes_is_the_same_bytes() {
    let mut editor = open(&made::empty(5));
    editor.set(&["A"], "n", &Value::Text("x")).unwrap();
    // Windows leaves room behind the last bin.
    let mut bytes = editor.finish();
    bytes.resize(bytes.len() + 9000, 0xAA);
    let mut editor = open(&bytes);
    editor.set(&["a"], "N", &Value::Text("x")).unwrap();
    assert!(editor.finish() == bytes);
    let mut editor = open(&bytes);
    editor.set(&["a"], "m", &Value::Text("x")).unwrap();
    let after = editor.finish();
    cells(&after);
    assert_eq!((after.len(), u32_at(&after, 4), u32_at(&after, 8)), (bytes.len(), 9, 9));
}

#[test]
fn a_hive_that_cannot_be_trusted_is_not_changed() {
    let good = made::empty(5);
    let with = |at: usize, number: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        if at != CHECKSUM {
            let sum = checksum(&bytes).to_le_bytes();
            bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
        }
        bytes
    };
    let refused = |bytes: Vec<u8>| Editor::open(bytes, &LIMITS).err().map(|error| error.to_string());
    let dirty = Some(HiveError::Dirty.to_string());
    assert_eq!(refused(good.clone()), None);
    assert_eq!(refused(with(4, 8)), dirty);
    assert_eq!(refused(with(CHECKSUM, 8)), dirty);
    assert_eq!(refused(with(20, 2)).unwrap(), "it is of a version that is not known");
    assert_eq!(refused(with(40, 8192)).unwrap(), "it ends before its last bin");
    assert_eq!(refused(Vec::new()).unwrap(), "it is no registry hive");
    let mut editor = open(&good);
    let name = editor.set(&["a\\b"], "n", &Value::Number(1)).unwrap_err();
    assert_eq!(name.to_string(), "it cannot have a name like \"a\\\\b\"");
    assert!(open(&good).set(&["a"], "n", &Value::Bytes(&vec![0; 20_000])).is_err());
    let mut editor = open(&good);
    let filled = (0..1000).try_for_each(|n| editor.set(&[&format!("{n}")], "n", &Value::Bytes(&[0; 16_000])));
    assert_eq!(filled.unwrap_err().to_string(), "it has no room for more bytes");
}

/// A value to set, by numbers.
#[derive(Clone, Debug, TypeGenerator)]
struct Set {
    path: [u8; 2],
    name: u8,
    number: u32,
    len: u16,
}

impl Set {
    fn apply(&self, editor: &mut Editor) -> std::result::Result<(), HiveError> {
        let path = self.path();
        let bytes = vec![self.name; usize::from(self.len % 5000)];
        let value = if self.len.is_multiple_of(3) { Value::Number(self.number) } else { Value::Bytes(&bytes) };
        editor.set(&path.each_ref().map(String::as_str), &self.name(), &value)
    }

    fn path(&self) -> [String; 2] {
        self.path.map(|n| format!("Key {n}"))
    }

    fn name(&self) -> String {
        if self.name == 0 { String::new() } else { format!("v{}", self.name) }
    }
}

#[test]
fn every_value_is_read_back() {
    check!().with_type::<Vec<Set>>().with_iterations(CASES).for_each(|sets| {
        let mut bytes = made::empty(5);
        let mut last = BTreeMap::new();
        for part in sets.chunks(20) {
            let mut editor = open(&bytes);
            for set in part {
                set.apply(&mut editor).unwrap();
                let is_number = set.len.is_multiple_of(3);
                last.insert((set.path(), set.name()), is_number.then_some(set.number));
            }
            bytes = editor.finish();
        }
        cells(&bytes);
        let editor = open(&bytes);
        walk(&editor, &editor.hive.key(&[]).unwrap(), &mut Vec::new());
        for ((path, name), expected) in last {
            let path = path.each_ref().map(String::as_str);
            if let Some(expected) = expected {
                assert_eq!(editor.number(&path, &name).unwrap(), Some(expected));
            }
        }
    });
}

#[test]
fn a_hostile_hive_ends_in_an_error() {
    let mut editor = open(&made::empty(5));
    for n in 0..40 {
        editor.set(&["Services", &format!("S{n}")], "Start", &Value::Number(n)).unwrap();
    }
    let good = editor.finish();
    check!().with_generator(produce::<(Vec<(u16, u32)>, Vec<Set>)>()).with_iterations(CASES).for_each(
        |(flips, sets)| {
            let mut bytes = good.clone();
            for (at, number) in flips {
                let at = usize::from(*at) % (bytes.len() - 4);
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            bytes[8..12].copy_from_slice(&good[4..8]);
            bytes[4..8].copy_from_slice(&good[4..8]);
            let sum = checksum(&bytes).to_le_bytes();
            bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
            let Ok(mut editor) = Editor::open(bytes, &LIMITS) else { return };
            for set in sets.iter().take(8) {
                let _ = set.apply(&mut editor);
                let _ = editor.set(&["Services", "S1", "New"], "n", &Value::Number(set.number));
                let _ = editor.number(&["Services", "S39"], "Start");
            }
            assert!(editor.finish().len() <= good.len() + MAX_GROWTH);
        },
    );
}
