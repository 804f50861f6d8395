// SPDX-License-Identifier: Apache-2.0
//! Reads, checks and assigns every setting.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::error::ConfigError;
use super::keys::{NOTIFICATIONS, RETENTION, RETRY_POLICY};
use super::layers::{Layers, Taken};
use super::{Config, Deduplication, overlap, yaml};
use crate::conversion::lifecycle::RetryPolicy;
use crate::conversion::options::{
    Accelerator, BootCheck, BootCheckMode, ByteSize, DomainOptions, GuestFixMode, GuestNames, GuestOptions,
};
use crate::conversion::retention::Retention;
use crate::conversion::{Compression, ConversionOptions, Emit, OutputFormat, Platform};
use crate::notification::{EmailConfig, Encryption, NotificationConfig, Secret, WebhookConfig, WebhookKind};

/// Longest time that can be configured, in seconds: a longer one is a mistake.
const YEAR: u64 = 365 * 24 * 3600;

/// Reads every key of the table.
pub(super) fn config(layers: &mut Layers) -> Result<Config, ConfigError> {
    let default = Config::default();
    let config = Config {
        watch_dir: path(layers, "watch_dir")?.unwrap_or(default.watch_dir),
        output_dir: path(layers, "output_dir")?.unwrap_or(default.output_dir),
        workdir: path(layers, "workdir")?,
        max_concurrent_jobs: whole(layers, "", "max_concurrent_jobs", 1, 1000)?
            .map_or(default.max_concurrent_jobs, |n| usize::try_from(n).expect("at most 1000")),
        file_stable_timeout: seconds(layers, "", "file_stable_timeout")?.unwrap_or(default.file_stable_timeout),
        companion_timeout: seconds(layers, "", "companion_timeout")?.unwrap_or(default.companion_timeout),
        quiet_period: seconds(layers, "", "quiet_period")?.unwrap_or(default.quiet_period),
        require_landlock: flag(layers, "", "require_landlock")?.unwrap_or(default.require_landlock),
        appliance_dir: path(layers, "appliance_dir")?.unwrap_or(default.appliance_dir),
        archive_processed: flag(layers, "", "archive_processed")?.unwrap_or(default.archive_processed),
        deduplication: deduplication(layers)?,
        retention: retention(layers)?,
        retry_policy: retry_policy(layers)?,
        notifications: notifications(layers)?,
        conversion: conversion(layers)?,
        log_file: path(layers, "log_file")?,
        verbose: whole(layers, "", "verbose", 0, 3)?.map_or(default.verbose, |n| u8::try_from(n).expect("at most 3")),
    };
    if overlap(&config.watch_dir, &config.output_dir) {
        return Err(ConfigError::Overlap { watch_dir: config.watch_dir, output_dir: config.output_dir });
    }
    Ok(config)
}

fn deduplication(layers: &mut Layers) -> Result<Deduplication, ConfigError> {
    let enabled = flag(layers, "", "enable_deduplication")?.unwrap_or(true);
    let md5 = flag(layers, "", "deduplication_use_md5")?.unwrap_or(false);
    if md5 && !enabled {
        layers.warn("deduplication_use_md5 has no effect: enable_deduplication is false".to_owned());
    }
    Ok(match (enabled, md5) {
        (false, _) => Deduplication::Off,
        (true, false) => Deduplication::NameAndSize,
        (true, true) => Deduplication::Md5,
    })
}

fn retention(layers: &mut Layers) -> Result<Retention, ConfigError> {
    let mut days = |name| {
        let days = whole(layers, RETENTION, name, 1, 36_500)?;
        Ok::<_, ConfigError>(days.map(|days| u32::try_from(days).expect("at most a century")))
    };
    Ok(Retention {
        processed_days: days("processed_days")?,
        errors_days: days("errors_days")?,
        outputs_days: days("outputs_days")?,
    })
}

fn retry_policy(layers: &mut Layers) -> Result<RetryPolicy, ConfigError> {
    let default = RetryPolicy::default();
    Ok(RetryPolicy {
        enabled: flag(layers, RETRY_POLICY, "enabled")?.unwrap_or(default.enabled),
        max_retries: whole(layers, RETRY_POLICY, "max_retries", 0, 1000)?
            .map_or(default.max_retries, |n| u32::try_from(n).expect("at most 1000")),
        retry_delay: seconds(layers, RETRY_POLICY, "retry_delay")?.unwrap_or(default.retry_delay),
        backoff_multiplier: read(layers, RETRY_POLICY, "backoff_multiplier", "a number from 1 to 1000", |value| {
            value.as_f64().filter(|factor| (1.0..=1000.0).contains(factor))
        })?
        .unwrap_or(default.backoff_multiplier),
    })
}

fn conversion(layers: &mut Layers) -> Result<ConversionOptions, ConfigError> {
    let default = ConversionOptions::default();
    let out_format = read(layers, "", "out_format", "qcow2, raw or vdi", |value| match value.as_str()? {
        "qcow2" => Some(OutputFormat::Qcow2),
        "raw" => Some(OutputFormat::Raw),
        "vdi" => Some(OutputFormat::Vdi),
        _ => None,
    })?
    .unwrap_or_default();
    let compress = compression(layers)?.unwrap_or_default();
    if compress != Compression::None && out_format != OutputFormat::Qcow2 {
        layers.warn(format!("compress has no effect with out_format {out_format}: only qcow2 is compressed"));
    }
    let levels = if compress == Compression::Zstd { 22 } else { 9 };
    let compress_level = whole(layers, "", "compress_level", 1, levels)?.map(|n| u32::try_from(n).expect("at most 22"));
    if compress == Compression::None && compress_level.is_some() {
        layers.warn("compress_level has no effect: compress is none".to_owned());
    }
    let emit = emit(layers)?;
    let domain = domain(layers)?;
    if emit.is_empty() && domain != DomainOptions::default() {
        layers.warn(
            "settings of the domain (vm_name, vm_memory, vm_vcpus, vm_uefi, machine, disk_bus, net_model, \
                     libvirt_network) have no effect: emit_domain_xml is false and emit is empty"
                .to_owned(),
        );
    }
    Ok(ConversionOptions {
        out_format,
        compress,
        compress_level,
        max_virtual_size: read(layers, "", "max_virtual_size", "bytes, or a size like 64Ti or 500G", |value| {
            let bytes = match value {
                Value::String(text) => text.parse::<ByteSize>().ok()?.0,
                other => other.as_u64()?,
            };
            (bytes > 0).then_some(bytes)
        })?
        .unwrap_or(default.max_virtual_size),
        checksum: flag(layers, "", "checksum")?.unwrap_or(default.checksum),
        emit,
        to_output: read(layers, "", "to_output", "a file name without directories", |value| {
            let name = value.as_str()?;
            let plain = !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.') && name.len() <= 200;
            plain.then(|| name.to_owned())
        })?,
        domain,
        guest: guest(layers)?,
    })
}

/// What is done to guests.
fn guest(layers: &mut Layers) -> Result<GuestOptions, ConfigError> {
    let fix = read(layers, "", "fix_guest", "off, best-effort or require", |value| {
        let word = value.as_str().map(|word| word.replace('_', "-"));
        let named = GuestFixMode::ALL.into_iter().find(|mode| Some(mode.as_str()) == word.as_deref());
        // YAML's own `off`.
        named.or_else(|| (as_flag(value) == Some(false)).then_some(GuestFixMode::Off))
    })?;
    let names = read(layers, "", "guest_names", "keep or leave", |value| {
        GuestNames::ALL.into_iter().find(|names| Some(names.as_str()) == value.as_str())
    })?;
    let virtio_win = path(layers, "virtio_win")?;
    let mode = read(layers, "", "boot_check", "off, warn or require", |value| {
        let mode = BootCheckMode::ALL.into_iter().find(|mode| Some(mode.as_str()) == value.as_str());
        mode.or_else(|| (as_flag(value) == Some(false)).then_some(BootCheckMode::Off))
    })?;
    let (least, most) = (u64::from(BootCheck::LEAST_SECONDS), u64::from(BootCheck::MOST_SECONDS));
    let seconds = whole(layers, "", "boot_check_timeout", least, most)?;
    let accelerator = read(layers, "", "accelerator", "auto, tcg or kvm", |value| {
        Accelerator::ALL.into_iter().find(|one| Some(one.as_str()) == value.as_str())
    })?;
    let fix = fix.unwrap_or_default();
    let names = names.unwrap_or_default();
    let boot_check = BootCheck {
        mode: mode.unwrap_or_default(),
        timeout_seconds: seconds
            .map_or(BootCheck::DEFAULT_SECONDS, |n| u32::try_from(n).expect("at most MOST_SECONDS")),
    };
    if fix == GuestFixMode::Off && names != GuestNames::default() {
        layers.warn("guest_names has no effect: fix_guest is off".to_owned());
    }
    if fix == GuestFixMode::Off && virtio_win.is_some() {
        layers.warn("virtio_win has no effect: fix_guest is off".to_owned());
    }
    if boot_check.mode == BootCheckMode::Off && boot_check.timeout_seconds != BootCheck::DEFAULT_SECONDS {
        layers.warn("boot_check_timeout has no effect: boot_check is off".to_owned());
    }
    let accelerator = accelerator.unwrap_or_default();
    if fix == GuestFixMode::Off && boot_check.mode == BootCheckMode::Off && accelerator != Accelerator::default() {
        layers.warn("accelerator has no effect: fix_guest and boot_check are off".to_owned());
    }
    Ok(GuestOptions { fix, names, virtio_win, boot_check, accelerator })
}

/// Platforms that files are written for; `emit_domain_xml` adds libvirt.
fn emit(layers: &mut Layers) -> Result<Emit, ConfigError> {
    let allowed = "a list of libvirt, kubevirt, proxmox and openstack";
    let platform = |value: &Value| value.as_str().and_then(Platform::from_word);
    let listed = read(layers, "", "emit", allowed, |value| match value {
        Value::Array(list) => list.iter().map(platform).collect::<Option<Emit>>(),
        one => Some(Emit::from_iter([platform(one)?])),
    })?;
    let is_wanted = flag(layers, "", "emit_domain_xml")?.unwrap_or(false);
    Ok(listed.unwrap_or_default().with_domain_xml(is_wanted.then_some(true)))
}

fn compression(layers: &mut Layers) -> Result<Option<Compression>, ConfigError> {
    let allowed = "false, true (zlib), none, zlib, zstd or zlib-strict";
    read(layers, "", "compress", allowed, |value| match value.as_str() {
        Some("none") => Some(Compression::None),
        Some("zlib") => Some(Compression::Zlib),
        Some("zstd") => Some(Compression::Zstd),
        Some("zlib-strict" | "zlib_strict") => Some(Compression::ZlibStrict),
        _ => as_flag(value).map(|on| if on { Compression::Zlib } else { Compression::None }),
    })
}

fn domain(layers: &mut Layers) -> Result<DomainOptions, ConfigError> {
    Ok(DomainOptions {
        name: word(layers, "vm_name")?,
        memory_mib: whole(layers, "", "vm_memory", 1, 64 << 20)?,
        vcpus: whole(layers, "", "vm_vcpus", 1, 4096)?.map(|n| u32::try_from(n).expect("at most 4096")),
        uefi: flag(layers, "", "vm_uefi")?,
        machine: word(layers, "machine")?,
        disk_bus: word(layers, "disk_bus")?,
        net_model: word(layers, "net_model")?,
        network: word(layers, "libvirt_network")?,
    })
}

fn notifications(layers: &mut Layers) -> Result<NotificationConfig, ConfigError> {
    let default = NotificationConfig::default();
    let enabled = flag(layers, NOTIFICATIONS, "enabled")?.unwrap_or(false);
    let email_wanted = flag(layers, NOTIFICATIONS, "email_enabled")?.unwrap_or(false);
    let minutes = whole(layers, NOTIFICATIONS, "stall_threshold_minutes", 1, YEAR / 60)?;
    let mut config = NotificationConfig {
        on_success: flag(layers, NOTIFICATIONS, "on_success")?.unwrap_or(default.on_success),
        on_duplicate: flag(layers, NOTIFICATIONS, "on_duplicate")?.unwrap_or(default.on_duplicate),
        on_failure: flag(layers, NOTIFICATIONS, "on_failure")?.unwrap_or(default.on_failure),
        on_stalled: flag(layers, NOTIFICATIONS, "on_stalled")?.unwrap_or(default.on_stalled),
        stall_after: minutes.map_or(default.stall_after, |minutes| Duration::from_secs(minutes * 60)),
        webhook: webhook(layers, enabled)?,
        email: email(layers, enabled && email_wanted)?,
    };
    let has_channel = config.webhook.is_some() || email_wanted;
    if enabled && !has_channel {
        layers.warn("notifications are enabled, but neither webhook_url nor email_enabled is set".to_owned());
    }
    if !enabled && has_channel {
        layers.warn("nothing is announced: notifications.enabled is false".to_owned());
        config.webhook = None;
    }
    Ok(config)
}

fn webhook(layers: &mut Layers, enabled: bool) -> Result<Option<WebhookConfig>, ConfigError> {
    let kind = read(layers, NOTIFICATIONS, "webhook_type", "slack, discord or generic", |value| {
        [WebhookKind::Slack, WebhookKind::Discord, WebhookKind::Generic]
            .into_iter()
            .find(|kind| value.as_str() == Some(kind.as_str()))
    })?
    .unwrap_or_default();
    let url = secret(layers, "webhook_url", "webhook_url_file", enabled)?
        .map(|said| {
            let url = said.value.as_str().and_then(WebhookConfig::parse_url);
            url.ok_or_else(|| said.refuse("an http or https URL"))
        })
        .transpose()?;
    let headers = headers(layers, enabled)?;
    Ok(url.map(|url| WebhookConfig { kind, url, headers }))
}

fn headers(layers: &mut Layers, enabled: bool) -> Result<HeaderMap, ConfigError> {
    const ALLOWED: &str = "a mapping of header names to values";
    let Some(mut said) = secret(layers, "webhook_headers", "webhook_headers_file", enabled)? else {
        return Ok(HeaderMap::new());
    };
    // In a file it is text.
    if let Value::String(text) = &said.value {
        said.value = yaml::read_value(text).map_err(|_| said.refuse(ALLOWED))?;
    }
    let mut pairs = Vec::new();
    for (name, value) in said.value.as_object().ok_or_else(|| said.refuse(ALLOWED))? {
        match value {
            Value::String(text) => pairs.push((name.as_str(), text.clone())),
            Value::Number(_) | Value::Bool(_) => pairs.push((name.as_str(), value.to_string())),
            _ => return Err(said.refuse(ALLOWED)),
        }
    }
    WebhookConfig::parse_headers(pairs).ok_or_else(|| said.refuse(ALLOWED))
}

fn email(layers: &mut Layers, wanted: bool) -> Result<Option<EmailConfig>, ConfigError> {
    let host = read(layers, NOTIFICATIONS, "email_smtp_host", "a host name or address", |value| {
        value.as_str().map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned)
    })?;
    let port = whole(layers, NOTIFICATIONS, "email_smtp_port", 1, 65535)?
        .map_or(587, |port| u16::try_from(port).expect("at most 65535"));
    let encryption = match flag(layers, NOTIFICATIONS, "email_use_tls")?.unwrap_or(true) {
        _ if port == 465 => Encryption::Tls,
        true => Encryption::Starttls,
        false => Encryption::None,
    };
    let mailbox = |value: &Value| value.as_str().and_then(|text| text.parse::<Mailbox>().ok());
    let from = read(layers, NOTIFICATIONS, "email_from", "an address like operator@example.com", mailbox)?;
    let to = read(layers, NOTIFICATIONS, "email_to", "an address, or a list of addresses", |value| match value {
        Value::Array(list) if !list.is_empty() => list.iter().map(mailbox).collect::<Option<Vec<_>>>(),
        one => Some(vec![mailbox(one)?]),
    })?;
    let text = |said: Taken| match said.value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(said.refuse("a text")),
    };
    let username = secret(layers, "email_username", "email_username_file", wanted)?.map(text).transpose()?;
    let password = secret(layers, "email_password", "email_password_file", wanted)?.map(text).transpose()?;
    let subject_prefix = read(layers, NOTIFICATIONS, "email_subject_prefix", "a text of one line", |value| {
        value.as_str().filter(|text| !text.contains(['\r', '\n'])).map(str::to_owned)
    })?
    .unwrap_or_else(|| "[hyper2kvm]".to_owned());
    if !wanted {
        return Ok(None);
    }
    let missing = |key| ConfigError::Missing { key, because: "email_enabled is true" };
    Ok(Some(EmailConfig {
        host: host.ok_or_else(|| missing("notifications.email_smtp_host"))?,
        port,
        encryption,
        from: from.ok_or_else(|| missing("notifications.email_from"))?,
        to: to.ok_or_else(|| missing("notifications.email_to"))?,
        username: username.filter(|name| !name.is_empty()),
        password: password.map(Secret::new),
        subject_prefix,
    }))
}

/// A secret given directly or as a file that holds it; the file wins. It is only read where it is `needed`.
fn secret(
    layers: &mut Layers,
    name: &'static str,
    file: &'static str,
    needed: bool,
) -> Result<Option<Taken>, ConfigError> {
    let direct = layers.take(NOTIFICATIONS, name);
    let Some(mut from_file) = layers.take(NOTIFICATIONS, file) else { return Ok(direct) };
    let path = from_file.value.as_str().map(PathBuf::from).ok_or_else(|| from_file.refuse("a path"))?;
    if !needed {
        return Ok(direct);
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            from_file.value = text.trim_end_matches(['\r', '\n']).into();
            from_file.hide();
            Ok(Some(from_file))
        }
        Err(source) => Err(ConfigError::SecretFile { place: from_file.place(), key: from_file.key, path, source }),
    }
}

/// Reads a key with `parse`, which returns nothing for a value that isn't `allowed`.
fn read<T>(
    layers: &mut Layers,
    section: &'static str,
    name: &'static str,
    allowed: &str,
    parse: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, ConfigError> {
    let Some(said) = layers.take(section, name) else { return Ok(None) };
    parse(&said.value).map(Some).ok_or_else(|| said.refuse(allowed))
}

/// YAML 1.1, which the original reads, has more words for true and false than YAML 1.2.
fn as_flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(word) => match word.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn flag(layers: &mut Layers, section: &'static str, name: &'static str) -> Result<Option<bool>, ConfigError> {
    read(layers, section, name, "true or false", as_flag)
}

fn whole(
    layers: &mut Layers,
    section: &'static str,
    name: &'static str,
    least: u64,
    most: u64,
) -> Result<Option<u64>, ConfigError> {
    let allowed = format!("a whole number from {least} to {most}");
    read(layers, section, name, &allowed, |value| value.as_u64().filter(|n| (least..=most).contains(n)))
}

fn seconds(layers: &mut Layers, section: &'static str, name: &'static str) -> Result<Option<Duration>, ConfigError> {
    let allowed = format!("seconds from 0 to {YEAR}");
    read(layers, section, name, &allowed, |value| {
        let duration = Duration::try_from_secs_f64(value.as_f64()?).ok()?;
        (duration <= Duration::from_secs(YEAR)).then_some(duration)
    })
}

fn path(layers: &mut Layers, name: &'static str) -> Result<Option<PathBuf>, ConfigError> {
    read(layers, "", name, "a path", |value| {
        let text = value.as_str().filter(|text| !text.is_empty() && !text.contains('\0'))?;
        std::path::absolute(text).ok()
    })
}

/// A value that libvirt could take for a name.
fn word(layers: &mut Layers, name: &'static str) -> Result<Option<String>, ConfigError> {
    read(layers, "", name, "a word of letters, digits, '.', '_', '+', ':' and '-'", |value| {
        let word = value.as_str()?;
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | ':');
        ((1..=200).contains(&word.len()) && word.chars().all(plain)).then(|| word.to_owned())
    })
}
