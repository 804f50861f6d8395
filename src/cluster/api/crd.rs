// SPDX-License-Identifier: Apache-2.0
//! The CustomResourceDefinitions as the API server takes them, and as `crds/` holds them.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::conversion_job::ConversionJob;
use super::hyper_conversion::HyperConversion;
use crate::config::yaml;

/// File names below `crds/`, in the order of [`crds`].
pub const MANIFESTS: [&str; 2] = ["hyper2kvm.io_hyperconversions.yaml", "hyper2kvm.io_conversionjobs.yaml"];

/// Longest string and list in a status field without a tighter bound: what a single object can hold (etcd takes 1.5
/// MiB).
const STATUS_STRING: u64 = 32_768;
const STATUS_LIST: u64 = 2000;

/// Both definitions.
#[must_use]
pub fn crds() -> [Value; 2] {
    [HyperConversion::crd(), ConversionJob::crd()]
        .map(|crd| finished(serde_json::to_value(crd).expect("a definition is plain JSON")))
}

/// The definition as a YAML document, newline at its end.
#[must_use]
pub fn to_yaml(crd: &Value) -> String {
    let mut text = yaml::write(crd).expect("a definition is maps, lists and plain values");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Bounds are floating-point numbers in the definition's type; people read `1`, not `1.0`.
fn write_whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|f| number.is_f64() && f.fract() == 0.0 && f.abs() < 1e15) {
                #[expect(clippy::cast_possible_truncation, reason = "whole and small, as just seen")]
                let whole = float as i64;
                *value = json!(whole);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(write_whole_numbers),
        Value::Object(map) => map.values_mut().for_each(write_whole_numbers),
        _ => {}
    }
}

/// Adds what the derived schema can't express, or expresses in words that the API server doesn't know.
fn finished(mut crd: Value) -> Value {
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    follow_kubernetes(schema);
    bound_status(&mut schema["properties"]["status"]);
    schema["properties"]["spec"]["description"] = json!("What is wanted.");
    schema["properties"]["status"]["description"] = json!("What is so; written by the operator alone.");
    write_whole_numbers(&mut crd);
    crd
}

/// Mends, at every depth:
/// - formats of Rust's integers, which OpenAPI doesn't know and the API server warns about;
/// - `nullable`: without it the API server drops a null, so that it means the same as nothing, in rules too;
/// - line breaks of doc comments inside a paragraph.
fn follow_kubernetes(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            match map.get("format").and_then(Value::as_str) {
                Some("uint8" | "uint16" | "uint32" | "uint") => {
                    map.remove("format");
                    map.entry("maximum").or_insert(json!(u32::MAX));
                }
                Some("uint64") => {
                    map.insert("format".into(), json!("int64"));
                }
                _ => {}
            }
            if map.get("nullable") == Some(&json!(true)) {
                map.remove("nullable");
            }
            if let Some(Value::Array(words)) = map.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                let paragraphs: Vec<_> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
                *text = paragraphs.join("\n\n");
            }
            map.values_mut().for_each(follow_kubernetes);
        }
        Value::Array(list) => list.iter_mut().for_each(follow_kubernetes),
        _ => {}
    }
}

/// Bounds what a status holds, and removes its defaults: a field that a writer left out must stay absent.
fn bound_status(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove("default");
    match map.get("type").and_then(Value::as_str) {
        Some("string") if !map.contains_key("enum") && !map.contains_key("format") => {
            map.entry("maxLength").or_insert(json!(STATUS_STRING));
        }
        Some("array") => {
            map.entry("maxItems").or_insert(json!(STATUS_LIST));
        }
        _ => {}
    }
    if let Some(items) = map.get_mut("items") {
        bound_status(items);
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(bound_status);
    }
}
