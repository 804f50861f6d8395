// SPDX-License-Identifier: Apache-2.0
//! Properties of the API types that need no API server.

use serde_json::{Value, json};

use super::*;
use crate::conversion::{Compression, OutputFormat};

#[test]
fn the_smallest_queue_has_every_default_of_the_specification() {
    let spec: HyperConversionSpec = serde_json::from_value(json!({
        "queue": {"claimName": "images", "subPath": "queue"},
        "output": {"claimName": "images", "subPath": "output"},
    }))
    .unwrap();
    insta::assert_yaml_snapshot!(spec);
}

#[test]
fn the_definitions_in_the_tree_are_the_program_s_output() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    for (file, crd) in MANIFESTS.into_iter().zip(crds()) {
        let held = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert!(held == to_yaml(&crd), "crds/{file} is stale: run `make generate`");
    }
}

#[test]
fn the_reference_in_the_tree_is_the_program_s_output() {
    let held = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md"));
    assert!(held.unwrap_or_default() == reference(), "docs/api.md is stale: run `make generate`");
}

/// Calls `visit` with path and schema of every field below `schema`, except inside Kubernetes' own types.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    const KUBERNETES_OWN: [&str; 8] = [
        "resources",
        "fixResources",
        "sidecarResources",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "imagePullSecrets",
        "annotations",
    ];
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, field);
        if !KUBERNETES_OWN.contains(&name.as_str()) {
            walk(&path, field, visit);
            if field["items"].is_object() {
                walk(&format!("{path}[]"), &field["items"], visit);
            }
        }
    }
}

#[test]
fn every_field_is_documented_and_bounded() {
    for crd in crds() {
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut bad = Vec::new();
        walk("", schema, &mut |path, field| {
            let bounded = match field["type"].as_str() {
                Some("string") => ["maxLength", "enum", "format"].iter().any(|bound| !field[bound].is_null()),
                Some("array") => !field["maxItems"].is_null(),
                Some("integer") => path.starts_with(".status") || !field["minimum"].is_null(),
                _ => true,
            };
            if field["description"].as_str().is_none_or(str::is_empty) || !bounded {
                bad.push(path.to_owned());
            }
        });
        assert_eq!(bad, Vec::<String>::new());
    }
}

#[test]
fn a_job_s_status_holds_the_conversion_s_state_without_loss() {
    use crate::conversion::status::{EarlierAttempts, End};
    use crate::conversion::{Attempt, AttemptRecord, ConversionStatus, Failure, Reason};
    let record = AttemptRecord {
        kind: None,
        number: Attempt(2),
        job_name: Some("web01-3fa9c1d2-2".into()),
        job_uid: Some("uid".into()),
        pod_name: Some("web01-3fa9c1d2-2-x".into()),
        node_name: Some("node1".into()),
        start_time: Some("2026-01-17T09:45:00Z".parse().unwrap()),
        end_time: None,
        reason: Some(Reason::SourceIO),
    };
    let state = ConversionStatus {
        staged: 2,
        attempts: vec![record],
        earlier_attempts: EarlierAttempts { total: 1, counted: 1, disrupted: 0, out_of_memory: 0 },
        next_retry_time: Some("2026-01-17T09:50:00Z".parse().unwrap()),
        failure: Some(Failure::new(Reason::SourceIO, "EIO")),
        converted: Some("web01-3fa9c1d2-2-x".into()),
        end: Some(End::Succeeded),
        start_time: Some("2026-01-17T09:45:00Z".parse().unwrap()),
        completion_time: Some("2026-01-17T09:55:00Z".parse().unwrap()),
    };
    let status = ConversionJobStatus { state, phase: Some(JobPhase::Retrying), ..Default::default() };
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["attempts"][0]["jobUID"], "uid");
    assert_eq!(serde_json::from_value::<ConversionJobStatus>(json).unwrap(), status);
    assert_eq!(serde_json::from_value::<ConversionJobStatus>(json!({})).unwrap(), ConversionJobStatus::default());
}

#[test]
fn an_override_replaces_the_queue_s_word_and_nothing_else() {
    let queue = ConversionSettings {
        compress: Compression::Zlib,
        compress_level: Some(9),
        checksum: true,
        ..ConversionSettings::default()
    };
    assert_eq!(queue.overridden_by(&ConversionOverrides::default()), queue);

    let raw = ConversionOverrides { out_format: Some(OutputFormat::Raw), ..ConversionOverrides::default() };
    let settings = queue.overridden_by(&raw);
    assert_eq!(
        (settings.out_format, settings.compress, settings.compress_level),
        (OutputFormat::Raw, Compression::None, None)
    );
    assert!(settings.checksum);

    let drivers = json!({"claimName": "drivers", "path": "virtio-win"});
    let of_queue = json!({"mode": "BestEffort", "networkNames": "Leave", "virtioWin": drivers,
                          "bootCheck": {"mode": "Warn", "timeoutSeconds": 60}});
    let of_own = json!({"mode": "Require", "accelerator": "KVM", "bootCheck": {"mode": "Require"}});
    let own: ConversionOverrides = serde_json::from_value(json!({"guest": of_own})).unwrap();
    let guest: GuestSettings = serde_json::from_value(of_queue).unwrap();
    let guest = ConversionSettings { guest, ..queue.clone() }.overridden_by(&own).guest;
    let together = json!({"mode": "Require", "networkNames": "Leave", "virtioWin": drivers, "accelerator": "KVM",
                          "bootCheck": {"mode": "Require", "timeoutSeconds": 60}});
    assert_eq!(serde_json::to_value(guest).unwrap(), together);

    let zstd = ConversionOverrides { compress: Some(Compression::Zstd), ..ConversionOverrides::default() };
    let settings = queue.overridden_by(&zstd);
    assert_eq!((settings.compress, settings.compress_level), (Compression::Zstd, None));
}

#[test]
fn an_override_replaces_the_platforms_and_the_flag_of_old_adds_or_takes_away_libvirt() {
    use crate::conversion::Platform::{Kubevirt, Libvirt, Proxmox};
    let queue = ConversionSettings { emit: vec![Proxmox], emit_domain_xml: true, ..ConversionSettings::default() };
    for (emit, emit_domain_xml, platforms) in [
        (None, None, &[Libvirt, Proxmox][..]),
        (Some(vec![Kubevirt]), None, &[Kubevirt]),
        (Some(vec![]), None, &[]),
        (Some(vec![Kubevirt]), Some(true), &[Libvirt, Kubevirt]),
        (None, Some(false), &[Proxmox]),
    ] {
        let overrides = ConversionOverrides { emit, emit_domain_xml, ..ConversionOverrides::default() };
        let found: Vec<_> = queue.overridden_by(&overrides).emit().platforms().collect();
        assert_eq!(found, platforms, "{overrides:?}");
        assert_eq!(overrides.emit(&queue), platforms.iter().copied().collect());
    }
}

#[test]
fn what_the_schema_admits_the_program_understands() {
    assert_eq!(ConversionSettings::default().options().unwrap(), crate::conversion::ConversionOptions::default());
    assert_eq!(RetrySettings::default().policy().unwrap(), crate::conversion::lifecycle::RetryPolicy::default());
    let absurd = ConversionSettings { max_virtual_size: "9999999999999999Pi".into(), ..ConversionSettings::default() };
    assert_eq!(absurd.options().unwrap_err().field, "conversion.maxVirtualSize");
}
