// SPDX-License-Identifier: Apache-2.0
//! The configuration in effect, for a person to read: every key, secrets masked.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Config, Deduplication, yaml};
use crate::conversion::Platform;
use crate::conversion::options::ByteSize;
use crate::notification::Encryption;

const MASK: &str = "***";

/// The keys in the order in which they are documented. What it writes, masks aside, can be loaded again.
#[derive(Serialize)]
struct Effective {
    watch_dir: Value,
    output_dir: Value,
    workdir: Value,
    max_concurrent_jobs: usize,
    file_stable_timeout: Value,
    companion_timeout: Value,
    quiet_period: Value,
    max_virtual_size: Value,
    require_landlock: bool,
    appliance_dir: Value,
    archive_processed: bool,
    enable_deduplication: bool,
    deduplication_use_md5: bool,
    log_file: Value,
    verbose: u8,
    out_format: &'static str,
    compress: &'static str,
    compress_level: Option<u32>,
    checksum: bool,
    to_output: Option<String>,
    emit: Vec<&'static str>,
    emit_domain_xml: bool,
    vm_name: Option<String>,
    vm_memory: Option<u64>,
    vm_vcpus: Option<u32>,
    vm_uefi: Option<bool>,
    machine: Option<String>,
    disk_bus: Option<String>,
    net_model: Option<String>,
    libvirt_network: Option<String>,
    fix_guest: &'static str,
    guest_names: &'static str,
    virtio_win: Option<String>,
    boot_check: &'static str,
    boot_check_timeout: u32,
    accelerator: &'static str,
    retention: RetentionKeys,
    retry_policy: RetryKeys,
    notifications: NotificationKeys,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the keys of the configuration")]
struct RetentionKeys {
    processed_days: Option<u32>,
    errors_days: Option<u32>,
    outputs_days: Option<u32>,
}

#[derive(Serialize)]
struct RetryKeys {
    enabled: bool,
    max_retries: u32,
    retry_delay: Value,
    backoff_multiplier: Value,
}

#[derive(Serialize)]
struct NotificationKeys {
    enabled: bool,
    on_success: bool,
    on_duplicate: bool,
    on_failure: bool,
    on_stalled: bool,
    stall_threshold_minutes: u64,
    webhook_url: Option<&'static str>,
    webhook_type: Option<&'static str>,
    webhook_headers: Value,
    email_enabled: bool,
    email_smtp_host: Option<String>,
    email_smtp_port: Option<u16>,
    email_use_tls: Option<bool>,
    email_from: Option<String>,
    email_to: Option<Vec<String>>,
    email_username: Option<String>,
    email_password: Option<&'static str>,
    email_subject_prefix: Option<String>,
}

pub(super) fn to_yaml(config: &Config) -> String {
    yaml::write(&effective(config)).expect("plain values can be written")
}

/// The keys at the top level whose values differ, by their names; a secret that changed is not seen.
pub(super) fn changed(before: &Config, after: &Config) -> Vec<String> {
    let keys = |config| match serde_json::to_value(effective(config)) {
        Ok(Value::Object(keys)) => keys,
        _ => unreachable!("a struct of plain values is an object"),
    };
    let before = keys(before);
    keys(after).into_iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, _)| key).collect()
}

fn effective(config: &Config) -> Effective {
    let conversion = &config.conversion;
    let domain = &conversion.domain;
    Effective {
        watch_dir: json!(config.watch_dir.to_string_lossy()),
        output_dir: json!(config.output_dir.to_string_lossy()),
        workdir: json!(config.workdir.as_ref().map(|path| path.to_string_lossy())),
        max_concurrent_jobs: config.max_concurrent_jobs,
        file_stable_timeout: number(config.file_stable_timeout.as_secs_f64()),
        companion_timeout: number(config.companion_timeout.as_secs_f64()),
        quiet_period: number(config.quiet_period.as_secs_f64()),
        max_virtual_size: size(conversion.max_virtual_size),
        require_landlock: config.require_landlock,
        appliance_dir: json!(config.appliance_dir.to_string_lossy()),
        archive_processed: config.archive_processed,
        enable_deduplication: config.deduplication != Deduplication::Off,
        deduplication_use_md5: config.deduplication == Deduplication::Md5,
        log_file: json!(config.log_file.as_ref().map(|path| path.to_string_lossy())),
        verbose: config.verbose,
        out_format: conversion.out_format.as_str(),
        compress: conversion.compress.as_str(),
        compress_level: conversion.compress_level,
        checksum: conversion.checksum,
        to_output: conversion.to_output.clone(),
        emit: conversion.emit.platforms().map(Platform::as_str).collect(),
        emit_domain_xml: conversion.emit.contains(Platform::Libvirt),
        vm_name: domain.name.clone(),
        vm_memory: domain.memory_mib,
        vm_vcpus: domain.vcpus,
        vm_uefi: domain.uefi,
        machine: domain.machine.clone(),
        disk_bus: domain.disk_bus.clone(),
        net_model: domain.net_model.clone(),
        libvirt_network: domain.network.clone(),
        fix_guest: conversion.guest.fix.as_str(),
        guest_names: conversion.guest.names.as_str(),
        virtio_win: conversion.guest.virtio_win.as_ref().map(|path| path.to_string_lossy().into_owned()),
        boot_check: conversion.guest.boot_check.mode.as_str(),
        boot_check_timeout: conversion.guest.boot_check.timeout_seconds,
        accelerator: conversion.guest.accelerator.as_str(),
        retention: RetentionKeys {
            processed_days: config.retention.processed_days,
            errors_days: config.retention.errors_days,
            outputs_days: config.retention.outputs_days,
        },
        retry_policy: RetryKeys {
            enabled: config.retry_policy.enabled,
            max_retries: config.retry_policy.max_retries,
            retry_delay: number(config.retry_policy.retry_delay.as_secs_f64()),
            backoff_multiplier: number(config.retry_policy.backoff_multiplier),
        },
        notifications: notifications(config),
    }
}

fn notifications(config: &Config) -> NotificationKeys {
    let config = &config.notifications;
    let webhook = config.webhook.as_ref();
    let email = config.email.as_ref();
    let headers = webhook.map(|webhook| {
        let masked = webhook.headers.keys().map(|name| (name.to_string(), MASK.into()));
        Value::Object(masked.collect())
    });
    NotificationKeys {
        enabled: webhook.is_some() || email.is_some(),
        on_success: config.on_success,
        on_duplicate: config.on_duplicate,
        on_failure: config.on_failure,
        on_stalled: config.on_stalled,
        stall_threshold_minutes: config.stall_after.as_secs() / 60,
        webhook_url: webhook.map(|_| MASK),
        webhook_type: webhook.map(|webhook| webhook.kind.as_str()),
        webhook_headers: headers.unwrap_or(Value::Null),
        email_enabled: email.is_some(),
        email_smtp_host: email.map(|email| email.host.clone()),
        email_smtp_port: email.map(|email| email.port),
        email_use_tls: email.map(|email| email.encryption != Encryption::None),
        email_from: email.map(|email| email.from.to_string()),
        email_to: email.map(|email| email.to.iter().map(ToString::to_string).collect()),
        email_username: email.and_then(|email| email.username.clone()),
        email_password: email.and_then(|email| email.password.as_ref()).map(|_| MASK),
        email_subject_prefix: email.map(|email| email.subject_prefix.clone()),
    }
}

/// Whole numbers without a point.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "compared with the original right after")]
    let whole = value as i64;
    #[expect(clippy::cast_precision_loss, reason = "compared with the original")]
    let same = (whole as f64).to_bits() == value.to_bits();
    if same { whole.into() } else { value.into() }
}

/// In the largest unit where that is exact, else in bytes.
fn size(bytes: u64) -> Value {
    let text = ByteSize(bytes).to_string();
    if text.contains('.') { bytes.into() } else { text.into() }
}
