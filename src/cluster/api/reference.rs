// SPDX-License-Identifier: Apache-2.0
//! The API's reference for people, written from the definitions' own words.

use std::fmt::Write as _;

use serde_json::Value;

use super::crd::crds;

/// Fields whose parts Kubernetes itself documents.
const KUBERNETES_OWN: [&str; 7] = [
    "resources",
    "fixResources",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "imagePullSecrets",
    "annotations",
];

/// `docs/api.md`: every field of both kinds, with its type, its bounds and its default.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# API reference\n\nWritten from the CustomResourceDefinitions by `make generate`; `kubectl explain` tells the same.\n",
    );
    for crd in crds() {
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let names = &crd["spec"]["names"];
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let _ = write!(
            text,
            "\n## {} (`{}`)\n\n{}\n\n| field | type | default | meaning |\n|---|---|---|---|\n",
            word(&names["kind"]),
            word(&names["shortNames"][0]),
            word(&schema["description"]),
        );
        fields(&mut text, "", schema);
    }
    text
}

fn fields(text: &mut String, path: &str, schema: &Value) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if path.is_empty() && !["spec", "status"].contains(&name.as_str()) {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = if field["default"].is_null() || field["default"].is_object() {
            String::new()
        } else {
            format!("`{}`", field["default"])
        };
        let meaning = field["description"].as_str().unwrap_or_default().replace("\n\n", " ").replace('|', "\\|");
        let _ = writeln!(text, "| `{path}` | {} | {default} | {meaning} |", kind(field));
        if !KUBERNETES_OWN.contains(&name.as_str()) {
            fields(text, &path, field);
            fields(text, &format!("{path}[]"), &field["items"]);
        }
    }
}

/// `integer 1..1000`, `string ≤ 253`, `qcow2, raw, vdi`.
fn kind(field: &Value) -> String {
    if let Some(words) = field["enum"].as_array() {
        let words: Vec<_> = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return words.join(", ");
    }
    let kind = field["type"].as_str().unwrap_or("any");
    let bounds = match (&field["minimum"], &field["maximum"], &field["maxLength"]) {
        (Value::Null, Value::Null, Value::Null) => String::new(),
        (Value::Null, Value::Null, longest) => format!(" ≤ {longest}"),
        (least, Value::Null, _) => format!(" ≥ {least}"),
        (Value::Null, most, _) => format!(" ≤ {most}"),
        (least, most, _) => format!(" {least}..{most}"),
    };
    format!("{kind}{}", bounds.replace(".0", ""))
}
