// SPDX-License-Identifier: Apache-2.0
//! JSON schemas for what the chart renders, made from Kubernetes's and our own definitions.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use hyper2kvm::cluster::api;
use serde_json::{Map, Value, json};

/// Writes a schema for every kind of `swagger`, and for both of ours, under the names that kubeconform looks for.
pub(super) fn write(swagger: &Path, directory: &Path) {
    let text = fs::read(swagger).expect("a file that was just checked");
    let swagger: Value = serde_json::from_slice(&text).expect("an OpenAPI description is JSON");
    let mut definitions = swagger["definitions"].as_object().expect("a description has definitions").clone();
    for (name, kind) in [("pkg.util.intstr.IntOrString", "integer"), ("pkg.api.resource.Quantity", "number")] {
        // Both may be strings or numbers; the description has only one type.
        definitions[&format!("io.k8s.apimachinery.{name}")] = json!({"type": ["string", kind]});
    }
    for definition in definitions.values_mut() {
        refuse_unknown(definition);
    }
    for (name, definition) in &definitions {
        for id in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let mut schema = json!({"$ref": format!("#/definitions/{name}")});
            schema["definitions"] = Value::Object(reachable(&definitions, name));
            let text = |field: &str| id[field].as_str().expect("a group, a version and a kind").to_owned();
            store(directory, &text("group"), &text("version"), &text("kind"), &schema);
        }
    }
    for crd in api::crds() {
        let version = &crd["spec"]["versions"][0];
        let mut schema = version["schema"]["openAPIV3Schema"].clone();
        refuse_unknown(&mut schema);
        for (field, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
            schema["properties"][field] = json!({"type": kind});
        }
        let text = |value: &Value| value.as_str().expect("a group, a version and a kind").to_owned();
        store(
            directory,
            &text(&crd["spec"]["group"]),
            &text(&version["name"]),
            &text(&crd["spec"]["names"]["kind"]),
            &schema,
        );
    }
}

fn store(directory: &Path, group: &str, version: &str, kind: &str, schema: &Value) {
    let group = group.split('.').next().filter(|group| !group.is_empty());
    let group = group.map(|group| format!("{group}-")).unwrap_or_default();
    let file = directory.join(format!("{}-{group}{version}.json", kind.to_lowercase()));
    fs::write(file, schema.to_string()).expect("a directory of ours");
}

/// Forbids unknown fields wherever fields are listed.
fn refuse_unknown(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("properties").is_some_and(Value::is_object) {
                map.entry("additionalProperties").or_insert(json!(false));
            }
            map.values_mut().for_each(refuse_unknown);
        }
        Value::Array(list) => list.iter_mut().for_each(refuse_unknown),
        _ => {}
    }
}

/// The definition of that name, and those that it refers to.
fn reachable(definitions: &Map<String, Value>, name: &str) -> Map<String, Value> {
    fn references(schema: &Value, found: &mut BTreeSet<String>) {
        match schema {
            Value::Object(map) => {
                if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                    found.insert(name.trim_start_matches("#/definitions/").to_owned());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut open = BTreeSet::from([name.to_owned()]);
    let mut reached = Map::new();
    while let Some(name) = open.pop_first() {
        if !reached.contains_key(&name) {
            references(&definitions[&name], &mut open);
            reached.insert(name.clone(), definitions[&name].clone());
        }
    }
    reached
}
