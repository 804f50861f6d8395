// SPDX-License-Identifier: Apache-2.0
//! The bill of materials of a release, held against the schema of `CycloneDX` 1.5 (<https://cyclonedx.org/docs/1.5/json/>): each
//! key that it has is one of the schema, with a value of its kind, and what the schema demands is there.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

/// What `deploy/release/sbom.py` makes of this package and of a Debian package beside it.
fn bill() -> Value {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(tree)
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let place = tempfile::tempdir().unwrap();
    let beside = place.path().join("packages");
    std::fs::write(&beside, "libc6 2.41-12\nqemu-system-x86 1:10.0.2+ds-2\n").unwrap();
    let mut made = Command::new("python3")
        .arg(tree.join("deploy/release/sbom.py"))
        .arg(beside)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    made.stdin.take().unwrap().write_all(&metadata.stdout).unwrap();
    let output = made.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The object, which has these keys and no others but the optional ones.
fn object<'a>(value: &'a Value, required: &[&str], optional: &[&str]) -> &'a Map<String, Value> {
    let object = value.as_object().unwrap_or_else(|| panic!("{value} is no object"));
    let known = |key: &String| required.contains(&key.as_str()) || optional.contains(&key.as_str());
    assert!(object.keys().all(known) && required.iter().all(|&key| object.contains_key(key)), "{value}");
    object
}

fn text(value: &Value) -> &str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("{value} is no text"))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether it is an SPDX license expression: ids, joined by operators, in balanced parentheses.
fn is_expression(text: &str) -> bool {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let (mut depth, mut wants_id) = (0, true);
    for word in spaced.split_whitespace() {
        match word {
            "(" if wants_id => depth += 1,
            ")" if !wants_id && depth > 0 => depth -= 1,
            "AND" | "OR" | "WITH" if !wants_id => wants_id = true,
            "(" | ")" | "AND" | "OR" | "WITH" => return false,
            id if wants_id && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.+".contains(&b)) => wants_id = false,
            _ => return false,
        }
    }
    depth == 0 && !wants_id
}

/// Checks one component and returns its reference.
fn component(component: &Value) -> &str {
    let found =
        object(component, &["type", "name", "version", "bom-ref", "purl"], &["description", "licenses", "hashes"]);
    assert!(matches!(text(&found["type"]), "application" | "library"), "{component}");
    let (name, purl) = (text(&found["name"]), text(&found["purl"]));
    assert!(["pkg:cargo/", "pkg:deb/debian/"].iter().any(|kind| purl.starts_with(&format!("{kind}{name}@"))), "{purl}");
    assert!(!purl.contains(char::is_whitespace), "{purl}");
    if let Some(licenses) = found.get("licenses") {
        let [license] = &licenses.as_array().unwrap()[..] else { panic!("an expression stands alone: {licenses}") };
        let expression = text(&object(license, &["expression"], &[])["expression"]);
        assert!(is_expression(expression), "{name}: {expression}");
    }
    for hash in found.get("hashes").and_then(Value::as_array).into_iter().flatten() {
        let hash = object(hash, &["alg", "content"], &[]);
        assert!(hash["alg"] == "SHA-256" && is_hex(text(&hash["content"]), 64), "{name}: {hash:?}");
    }
    text(&found["bom-ref"])
}

#[test]
fn a_bill_of_materials_has_the_shape_of_cyclonedx() {
    let bill = bill();
    let required = ["bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"];
    let top = object(&bill, &required, &[]);
    assert_eq!(
        (&top["bomFormat"], &top["specVersion"], &top["version"]),
        (&"CycloneDX".into(), &"1.5".into(), &1.into())
    );
    let serial = text(&top["serialNumber"]).strip_prefix("urn:uuid:").expect("a URN");
    let lengths: Vec<usize> = serial.split('-').map(str::len).collect();
    assert!(lengths == [8, 4, 4, 4, 12] && is_hex(&serial.replace('-', ""), 32), "{serial}");

    let root = component(&object(&top["metadata"], &["component"], &[])["component"]);
    let components = top["components"].as_array().unwrap();
    let mut references: HashSet<&str> = HashSet::from([root]);
    for one in components {
        let reference = component(one);
        assert!(references.insert(reference), "{reference} stands there twice");
    }
    assert!(components.len() > 100, "{}", components.len());
    assert!(references.contains("pkg:deb/debian/qemu-system-x86@1%3A10.0.2%2Bds-2"), "{references:?}");

    let mut of = HashSet::new();
    for dependency in top["dependencies"].as_array().unwrap() {
        let dependency = object(dependency, &["ref", "dependsOn"], &[]);
        assert!(of.insert(text(&dependency["ref"])), "{dependency:?}");
        let on: Vec<&str> = dependency["dependsOn"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(on.iter().collect::<HashSet<_>>().len(), on.len(), "{dependency:?}");
        assert!(on.iter().all(|reference| references.contains(reference)), "{dependency:?}");
    }
    assert!(of.contains(root) && of.is_subset(&references));
}
