// SPDX-License-Identifier: Apache-2.0
//! Hostile names through every file: the real parsers read back what was meant, and nothing else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::conversion::machine::{MAX_ANNOTATION, MAX_NAME, one_line};

/// Texts that mean something to XML, YAML, JSON or a shell, and any other.
fn hostile() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "",
        " ",
        "-",
        "--",
        "---",
        "-->",
        "<!--",
        "]]>",
        "&amp;",
        "<a b='c'/>",
        "'; touch pwned; '",
        "$(touch pwned)",
        "`touch pwned`",
        "\\",
        "'",
        "\"",
        "\n",
        "a\nb: c",
        "a: b",
        "- a",
        "# c",
        "a #c",
        "yes",
        "NO",
        "on",
        "y",
        "~",
        "null",
        "true",
        "0x1F",
        "1e3",
        "1_000",
        "22:22:22",
        "2001-01-01",
        "=",
        "<<",
        "!!str a",
        "&a",
        "*a",
        "|",
        ">",
        "%YAML",
        "{a}",
        "[a]",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{202e}abc",
        "\u{0}",
        "\u{7f}",
        "\u{1b}[2J",
        "ü🙂",
        "--help",
        "..",
        "/",
        "a/b",
        "a,b=c",
        "${HOME}",
        "%s%n",
    ]);
    prop_oneof![known.prop_map(str::to_owned), any::<String>(), "[ -~]{0,40}", "\\PC{0,20}"]
}

/// A name that a file can have.
fn file_name() -> impl Strategy<Value = String> {
    hostile().prop_map(|text| {
        let name: String = text.chars().filter(|c| !matches!(c, '/' | '\0')).take(60).collect();
        format!("{name}.qcow2")
    })
}

prop_compose! {
    fn machine_with_hostile_texts()(
        name in hostile(), guest_os in hostile(), annotation in hostile(), network in hostile(), model in hostile(),
        doubt in hostile(), file in file_name(), efi: bool, tpm: bool, cores in 0u32..4000, sockets in 0u32..4000,
        mac in hostile(), uuid in hostile(), source in hostile(),
    ) -> (Metadata, String) {
        let mut machine = Machine {
            name: Some(name.clone()), guest_os: Some(guest_os), annotation: Some(annotation), tpm,
            firmware: Some(if efi { Firmware::Efi } else { Firmware::Bios }), secure_boot: Some(efi),
            sockets: Some(sockets), cores_per_socket: Some(cores), uuid: Some(uuid),
            disks: vec![MachineDisk { file: file.clone(), ..MachineDisk::default() }],
            cards: vec![Card { mac: Some(mac), network: Some(network), model: Some(model), ..Card::default() }; 2],
            doubts: vec![doubt],
            ..Machine::default()
        };
        decide(&mut machine, Drivers::default());
        let mut made = metadata(vec![machine.bounded()], &[(&file, OutputFormat::Qcow2)]);
        made.source.name = source;
        (made, name)
    }
}

/// The texts that a machine's files have to hold.
fn meant(metadata: &Metadata) -> (String, Option<String>, String) {
    let machine = &metadata.machines[0];
    let name = machine.name.clone().unwrap_or_else(|| {
        let source = one_line(&metadata.source.name, MAX_NAME);
        one_line(crate::conversion::file_name::stem(&source), MAX_NAME)
    });
    let name = if name.is_empty() { "vm".to_owned() } else { name };
    (name, machine.annotation.clone(), metadata.disks[0].file.clone())
}

fn check_domain(metadata: &Metadata, text: &str) {
    let document = roxmltree::Document::parse(text).unwrap();
    let (name, annotation, file) = meant(metadata);
    let only = |tag: &str| {
        let found: Vec<_> = document.descendants().filter(|n| n.has_tag_name(tag)).collect();
        assert!(found.len() <= 1, "{tag}: {text}");
        found.first().and_then(roxmltree::Node::text).map(str::to_owned)
    };
    let safe: String = name.trim().chars().map(|c| if c == '/' { '-' } else { c }).take(128).collect();
    let safe = if matches!(safe.as_str(), "." | ".." | "") { "vm".to_owned() } else { safe };
    assert_eq!(only("name"), Some(safe), "{text}");
    assert_eq!(only("description"), annotation);
    let sources: Vec<_> = document.descendants().filter_map(|n| n.attribute("file")).collect();
    let legal = |c: char| (!c.is_control() || matches!(c, '\n' | '\t' | '\r')) && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let path = format!("/out/2026-01-17/it's/{file}").chars().filter(|c| legal(*c)).collect::<String>();
    assert_eq!(sources, [path.as_str()]);
    assert_eq!(document.descendants().filter(|n| n.has_tag_name("interface")).count(), 2);
}

fn check_yaml(metadata: &Metadata, text: &str) {
    use serde::Deserialize as _;
    assert!(
        text.is_ascii() || text.lines().filter(|line| !line.is_ascii()).all(|line| line.starts_with('#')),
        "{text}"
    );
    let documents: Vec<Value> =
        serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap()).collect();
    let [claim, machine] = documents.as_slice() else { panic!("{} documents: {text}", documents.len()) };
    let (name, annotation, file) = meant(metadata);
    let annotations = &machine["metadata"]["annotations"];
    assert_eq!(annotations["hyper2kvm.io/source-name"], Value::String(name));
    assert_eq!(annotations.get("description").cloned(), annotation.map(Value::String));
    assert_eq!(annotations["hyper2kvm.io/source"], Value::String(one_line(&metadata.source.name, MAX_NAME)));
    assert_eq!(claim["metadata"]["annotations"]["hyper2kvm.io/disk"], Value::String(file));
    let claimed = &machine["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"];
    assert_eq!(claimed, &claim["metadata"]["name"]);
    let label = machine["metadata"]["name"].as_str().unwrap();
    let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    assert!(label.len() <= 50 && label.chars().all(is_label) && !label.starts_with('-') && !label.ends_with('-'));
    assert_eq!(machine["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"].as_array().unwrap().len(), 1);
}

fn check_json(metadata: &Metadata, text: &str) {
    let file: Value = serde_json::from_str(text).unwrap();
    let (name, _, disk) = meant(metadata);
    let expected = name.trim_start_matches('-').trim_start();
    assert_eq!(file["images"][0]["name"], if expected.is_empty() { "vm" } else { expected });
    assert_eq!(file["images"][0]["file"], disk);
}

/// Runs a script whose `command` writes its arguments down, each ended by a NUL byte, and returns them.
fn run(directory: &Path, script: &str, command: &str, arguments: &[&str]) -> Vec<String> {
    let bin = directory.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let recorder = bin.join(command);
    std::fs::write(&recorder, "#!/bin/sh\nprintf '%s\\0' \"$@\" >>\"$RECORD\"\n").unwrap();
    std::fs::set_permissions(&recorder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let place = directory.join("a b's");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("script.sh"), script).unwrap();
    let record = directory.join("record");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .arg(place.join("script.sh"))
        .args(arguments)
        .current_dir(directory)
        .env("PATH", path)
        .env("RECORD", &record)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    let told = std::fs::read(record).unwrap();
    let mut words: Vec<String> = told.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    words.pop();
    words
}

fn after<'a>(words: &'a [String], option: &str) -> Vec<&'a str> {
    let pairs = words.windows(2).filter(|pair| pair[0] == option);
    pairs.map(|pair| pair[1].as_str()).collect()
}

fn check_proxmox(metadata: &Metadata, script: &str) {
    let directory = tempfile::tempdir().unwrap();
    // What the links led to is looked at while they are there.
    let script = script.replace("qm create", "readlink \"$links\"/* >\"$here\"/led; qm create");
    let words = run(directory.path(), &script, "qm", &["101", "local-lvm"]);
    let (name, annotation, file) = meant(metadata);
    assert_eq!(words[..2], ["create", "101"]);
    let source = one_line(&metadata.source.name, MAX_NAME);
    let note = annotation.map(|text| format!("\n{text}")).unwrap_or_default();
    assert_eq!(after(&words, "--description"), [format!("{name} from {source}{note}")]);
    let [import] = after(&words, "--sata0")[..] else { panic!("{words:?}") };
    assert!(import.starts_with("local-lvm:0,import-from=/") && import.ends_with("/disk-0.qcow2"), "{import}");
    let led = std::fs::read_to_string(directory.path().join("a b's/led")).unwrap();
    assert_eq!(led, format!("{}/{file}\n", directory.path().join("a b's").display()));
    assert_eq!(after(&words, "--net0").len() + after(&words, "--net1").len(), 2);
    assert!(!directory.path().join("pwned").exists() && !directory.path().join("a b's/pwned").exists());
}

fn check_openstack(metadata: &Metadata, script: &str) {
    let directory = tempfile::tempdir().unwrap();
    let words = run(directory.path(), script, "openstack", &[]);
    let (name, _, file) = meant(metadata);
    let expected = name.trim_start_matches('-').trim_start();
    assert_eq!(words.last().unwrap(), if expected.is_empty() { "vm" } else { expected });
    assert_eq!(after(&words, "--file"), [format!("{}/{file}", directory.path().join("a b's").display())]);
    assert!(!directory.path().join("pwned").exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn parsers_read_back_exactly_what_was_meant((metadata, _) in machine_with_hostile_texts()) {
        for file in emitted(&metadata, &DomainOptions::default()) {
            match file.name.as_str() {
                "domain.xml" => check_domain(&metadata, &file.text),
                "virtualmachine.yaml" => check_yaml(&metadata, &file.text),
                "glance.json" => check_json(&metadata, &file.text),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_shell_runs_exactly_the_command_that_was_meant((metadata, _) in machine_with_hostile_texts()) {
        for file in emitted(&metadata, &DomainOptions::default()) {
            match file.name.as_str() {
                "proxmox.sh" => check_proxmox(&metadata, &file.text),
                "openstack.sh" => check_openstack(&metadata, &file.text),
                _ => {}
            }
        }
    }

    #[test]
    fn libvirt_takes_every_domain((metadata, _) in machine_with_hostile_texts()) {
        // The schema has no file names of several lines.
        prop_assume!(!metadata.disks[0].file.contains(char::is_control));
        validate(&emitted(&metadata, &DomainOptions::default())[0].text);
    }

    #[test]
    fn what_is_bounded_stays_so(text in hostile()) {
        let line = one_line(&text, MAX_ANNOTATION);
        prop_assert_eq!(one_line(&line, MAX_ANNOTATION), line.clone());
        prop_assert!(!line.chars().any(char::is_control));
    }
}
