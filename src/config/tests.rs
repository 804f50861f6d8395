// SPDX-License-Identifier: Apache-2.0
//! Tests of reading, merging, checking and printing configurations.

use std::error::Error as _;

use serde_json::json;

use super::*;
use crate::conversion::options::{
    Accelerator, BootCheck, BootCheckMode, DomainOptions, GuestFixMode, GuestNames, GuestOptions,
};
use crate::conversion::retention::Retention;
use crate::conversion::{Compression, Emit, OutputFormat};
use crate::notification::{Encryption, WebhookKind};

fn nothing(_: &str) -> Option<String> {
    None
}

fn load_texts(texts: &[&str]) -> Result<(Config, Vec<String>), ConfigError> {
    let sources = texts.iter().enumerate().map(|(n, text)| (PathBuf::from(format!("{n}.yaml")), (*text).to_owned()));
    resolve(sources.collect(), &Overrides::default(), nothing)
}

fn load_text(text: &str) -> Config {
    let (config, warnings) = load_texts(&[text]).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    config
}

fn refused(text: &str) -> String {
    load_texts(&[text]).unwrap_err().to_string()
}

#[test]
fn nothing_said_means_the_defaults() {
    assert_eq!(load_text(""), Config::default());
    assert_eq!(load_text("watch_dir:\nretry_policy:\n"), Config::default());
    assert_eq!(load_text("{}"), Config::default());
}

#[test]
fn the_example_names_every_key_and_loads() {
    let text = include_str!("../../docs/examples/daemon.yaml");
    let (_, warnings) = load_texts(&[text]).unwrap();
    assert_eq!(warnings, ["nothing is announced: notifications.enabled is false"]);
    for key in keys::KEYS {
        let written = text.lines().any(|line| {
            let line = line.trim_start().trim_start_matches("# ");
            line.split_once(':').is_some_and(|(name, _)| name == key.name)
        });
        assert!(written, "{}.{} is missing in the example", key.section, key.name);
    }
}

#[test]
fn the_example_shows_the_defaults() {
    let text = include_str!("../../docs/examples/daemon.yaml");
    let (mut config, _) = load_texts(&[text]).unwrap();
    config.workdir = None;
    config.log_file = None;
    config.conversion.domain = DomainOptions::default();
    assert_eq!(config, Config::default());
}

#[test]
#[expect(clippy::too_many_lines, reason = "one value with every key")]
fn every_key_takes_effect() {
    let config = load_text(
        "
watch-dir: /q
output-dir: /o
work_dir: /scratch
max-concurrent-jobs: 7
file_stable_timeout: 12.5
companion_timeout: 60
quiet_period: 5
max_virtual_size: 2T
require_landlock: yes
archive_processed: off
enable_deduplication: true
deduplication_use_md5: true
log_file: /var/log/x.log
verbose: 2
out_format: qcow2
compress: zstd
compress_level: 19
checksum: true
to_output: disk.qcow2
emit_domain_xml: true
vm_name: web01
memory: 2048
vcpus: 4
uefi: true
machine: q35
disk_bus: scsi
net_model: e1000e
libvirt_network: br0
appliance_dir: /opt/appliance
fix_guest: best_effort
guest_names: leave
virtio_win: /opt/virtio-win
boot_check: require
boot_check_timeout: 90
accelerator: tcg
cmd: daemon
daemon: true
retention: {processed_days: 7, errors-days: 30, outputsDays: 90}
retry_policy: {enabled: false, max-retries: 1, retry_delay: 2, backoff_multiplier: 3}
notifications:
  enabled: true
  notify_on_success: true
  on_duplicate: true
  notify_on_failure: false
  notify_on_stall: false
  stall_threshold_minutes: 5
  webhook_type: slack
  webhook_url: https://hooks.example.com/T0/secret
  webhook_headers: {X-Token: abc, X-Number: 5}
  email_enabled: true
  smtp_server: mail.example.com
  smtp_port: 25
  smtp_use_tls: false
  email_from: Daemon <d@example.com>
  email_to: a@example.com
  smtp_username: u
  smtp_password: p
  email_subject_prefix: '[kvm]'
",
    );
    let notifications = &config.notifications;
    let email = notifications.email.as_ref().unwrap();
    let webhook = notifications.webhook.as_ref().unwrap();
    assert_eq!(webhook.url.expose().as_str(), "https://hooks.example.com/T0/secret");
    assert_eq!(webhook.kind, WebhookKind::Slack);
    assert_eq!(webhook.headers["x-token"], "abc");
    assert_eq!(webhook.headers["x-number"], "5");
    assert_eq!((email.host.as_str(), email.port, email.encryption), ("mail.example.com", 25, Encryption::None));
    assert_eq!(email.from.to_string(), "Daemon <d@example.com>");
    assert_eq!(email.to.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a@example.com"]);
    assert_eq!(email.username.as_deref(), Some("u"));
    assert_eq!(email.password.as_ref().map(|p| p.expose().as_str()), Some("p"));
    assert_eq!(email.subject_prefix, "[kvm]");

    let expected = Config {
        watch_dir: "/q".into(),
        output_dir: "/o".into(),
        workdir: Some("/scratch".into()),
        max_concurrent_jobs: 7,
        file_stable_timeout: Duration::from_millis(12_500),
        companion_timeout: Duration::from_secs(60),
        quiet_period: Duration::from_secs(5),
        require_landlock: true,
        appliance_dir: "/opt/appliance".into(),
        archive_processed: false,
        deduplication: Deduplication::Md5,
        retention: Retention { processed_days: Some(7), errors_days: Some(30), outputs_days: Some(90) },
        retry_policy: RetryPolicy {
            enabled: false,
            max_retries: 1,
            retry_delay: Duration::from_secs(2),
            backoff_multiplier: 3.0,
        },
        notifications: NotificationConfig {
            on_success: true,
            on_duplicate: true,
            on_failure: false,
            on_stalled: false,
            stall_after: Duration::from_secs(300),
            webhook: notifications.webhook.clone(),
            email: notifications.email.clone(),
        },
        conversion: ConversionOptions {
            out_format: OutputFormat::Qcow2,
            compress: Compression::Zstd,
            compress_level: Some(19),
            max_virtual_size: 2 << 40,
            checksum: true,
            emit: Emit::domain_xml(true),
            to_output: Some("disk.qcow2".to_owned()),
            domain: DomainOptions {
                name: Some("web01".to_owned()),
                memory_mib: Some(2048),
                vcpus: Some(4),
                uefi: Some(true),
                machine: Some("q35".to_owned()),
                disk_bus: Some("scsi".to_owned()),
                net_model: Some("e1000e".to_owned()),
                network: Some("br0".to_owned()),
            },
            guest: GuestOptions {
                fix: GuestFixMode::BestEffort,
                names: GuestNames::Leave,
                virtio_win: Some("/opt/virtio-win".into()),
                boot_check: BootCheck { mode: BootCheckMode::Require, timeout_seconds: 90 },
                accelerator: Accelerator::Tcg,
            },
        },
        log_file: Some("/var/log/x.log".into()),
        verbose: 2,
    };
    assert_eq!(config, expected);
}

#[test]
fn the_later_file_wins_key_by_key_and_the_command_line_over_all() {
    let texts = [
        "watch_dir: /a\nretry_policy: {max_retries: 9, retry_delay: 9}\nverbose: 1\nworkdir: /w\nvcpus: 1\n",
        r#"{"watch-dir": "/b", "retry-policy": {"max_retries": 2}, "workdir": null, "vm_vcpus": 2}"#,
    ];
    let (config, _) = load_texts(&texts).unwrap();
    assert_eq!(config.watch_dir, Path::new("/b"));
    assert_eq!(config.retry_policy.max_retries, 2);
    assert_eq!(config.retry_policy.retry_delay, Duration::from_secs(9));
    assert_eq!((config.verbose, config.workdir, config.conversion.domain.vcpus), (1, None, Some(2)));

    let overrides = Overrides { watch_dir: Some("/c".into()), output_dir: Some("/out".into()), verbose: Some(3) };
    let (config, _) = resolve(vec![("x".into(), texts[0].to_owned())], &overrides, nothing).unwrap();
    assert_eq!((config.watch_dir, config.output_dir, config.verbose), ("/c".into(), "/out".into(), 3));
}

#[test]
fn compression_has_many_names() {
    for (word, compression) in [
        ("false", Compression::None),
        ("no", Compression::None),
        ("none", Compression::None),
        ("true", Compression::Zlib),
        ("zlib", Compression::Zlib),
        ("zstd", Compression::Zstd),
        ("zlib-strict", Compression::ZlibStrict),
    ] {
        assert_eq!(load_text(&format!("compress: {word}")).conversion.compress, compression, "{word}");
    }
}

#[test]
fn a_wrong_setting_is_refused_with_its_place_and_what_is_allowed() {
    for (text, message) in [
        ("a: 1", "0.yaml:1: unknown key \"a\""),
        (
            "\n\nmax_concurent_jobs: 3",
            "0.yaml:3: unknown key \"max_concurent_jobs\"; did you mean \"max_concurrent_jobs\"?",
        ),
        (
            "notifications:\n  webhook_uri: x",
            "0.yaml:2: unknown key \"notifications.webhook_uri\"; did you mean \"notifications.webhook_url\"?",
        ),
        (
            "notifications:\n  from: a@b.c",
            "0.yaml:2: unknown key \"notifications.from\"; did you mean \"notifications.email_from\"?",
        ),
        ("max_retries: 3", "0.yaml:1: unknown key \"max_retries\"; did you mean \"retry_policy.max_retries\"?"),
        ("vcpus: 1\nvm-vcpus: 2", "0.yaml:2: \"vm-vcpus\" is given twice in this file, as \"vcpus\" too"),
        (
            "verbose: 0\nmax-concurrent-jobs: 0",
            "0.yaml:2: max-concurrent-jobs is 0, allowed: a whole number from 1 to 1000",
        ),
        (
            "max_concurrent_jobs: three",
            "0.yaml:1: max_concurrent_jobs is \"three\", allowed: a whole number from 1 to 1000",
        ),
        ("verbose: 4", "0.yaml:1: verbose is 4, allowed: a whole number from 0 to 3"),
        ("archive_processed: maybe", "0.yaml:1: archive_processed is \"maybe\", allowed: true or false"),
        ("file_stable_timeout: -1", "0.yaml:1: file_stable_timeout is -1, allowed: seconds from 0 to 31536000"),
        (
            "retry_policy:\n  backoff_multiplier: 0.5",
            "0.yaml:2: retry_policy.backoff_multiplier is 0.5, allowed: a number from 1 to 1000",
        ),
        ("retry_policy: on", "0.yaml:1: retry_policy is \"on\", allowed: a mapping of keys to values"),
        ("out_format: vmdk", "0.yaml:1: out_format is \"vmdk\", allowed: qcow2, raw or vdi"),
        (
            "compress: lzma",
            "0.yaml:1: compress is \"lzma\", allowed: false, true (zlib), none, zlib, zstd or zlib-strict",
        ),
        ("compress: zlib\ncompress_level: 19", "0.yaml:2: compress_level is 19, allowed: a whole number from 1 to 9"),
        ("max_virtual_size: big", "0.yaml:1: max_virtual_size is \"big\", allowed: bytes, or a size like 64Ti or 500G"),
        ("to_output: /etc/passwd", "0.yaml:1: to_output is \"/etc/passwd\", allowed: a file name without directories"),
        ("to_output: ..", "0.yaml:1: to_output is \"..\", allowed: a file name without directories"),
        ("cmd: convert", "0.yaml:1: cmd is \"convert\", allowed: daemon"),
        ("daemon: false", "0.yaml:1: daemon is false, allowed: true"),
        ("watch_dir: 5", "0.yaml:1: watch_dir is 5, allowed: a path"),
        (
            "vm_name: a/b",
            "0.yaml:1: vm_name is \"a/b\", allowed: a word of letters, digits, '.', '_', '+', ':' and '-'",
        ),
        (
            "watch_dir: /srv\noutput_dir: /srv/out",
            "watch_dir /srv and output_dir /srv/out must not contain one another: put them side by side",
        ),
        ("- a", "0.yaml holds no mapping of keys to values"),
        ("a: [", "0.yaml is neither YAML nor JSON"),
        (
            "notifications: {enabled: true, email_enabled: true, email_smtp_host: h, email_from: a@b.c}",
            "notifications.email_to is missing: email_enabled is true",
        ),
        (
            "notifications: {email_to: [a@b.c, nobody]}",
            "0.yaml:1: notifications.email_to is [\"a@b.c\",\"nobody\"], allowed: an address, or a list of addresses",
        ),
    ] {
        assert_eq!(refused(text), message, "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_text_is_told_once() {
    let error = load_texts(&["a: ["]).unwrap_err();
    let cause = serde_yaml::from_str::<serde_json::Value>("a: [").unwrap_err();
    assert_eq!(crate::conversion::chain(&error), format!("0.yaml is neither YAML nor JSON: {cause}"));
}

#[test]
fn an_error_never_shows_a_secret() {
    for text in [
        "notifications: {enabled: true, webhook_url: hunter2}",
        "notifications: {enabled: true, webhook_url: 'ftp://u:hunter2@h/'}",
        "notifications: {enabled: true, webhook_headers: hunter2}",
        "notifications: {enabled: true, webhook_headers: {'bad name': hunter2}}",
        "notifications: {enabled: true, email_enabled: true, email_password: [hunter2]}",
    ] {
        let error = load_texts(&[text]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        assert!(error.to_string().contains("is ***, allowed: "), "{error}");
    }
}

#[test]
fn what_the_original_knows_and_has_no_meaning_here_is_one_warning() {
    let texts =
        ["flatten: true\nreport: x\nregen_initramfs: true\n", "luks_passphrase: s\nflatten: false\nqemu-test: 1\n"];
    let (config, warnings) = load_texts(&texts).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(
        warnings,
        [
            "no effect here: flatten, report",
            "no effect here; use fix_guest instead (docs/guest-fixing.md): luks_passphrase, qemu-test, regen_initramfs",
        ]
    );
}

#[test]
fn settings_that_contradict_each_other_are_warned_about() {
    for (text, warning) in [
        ("out_format: raw\ncompress: true", "compress has no effect with out_format raw: only qcow2 is compressed"),
        ("compress_level: 6", "compress_level has no effect: compress is none"),
        (
            "vm_vcpus: 2",
            "settings of the domain (vm_name, vm_memory, vm_vcpus, vm_uefi, machine, disk_bus, net_model, \
             libvirt_network) have no effect: emit_domain_xml is false and emit is empty",
        ),
        (
            "enable_deduplication: false\ndeduplication_use_md5: true",
            "deduplication_use_md5 has no effect: enable_deduplication is false",
        ),
        (
            "notifications: {enabled: true}",
            "notifications are enabled, but neither webhook_url nor email_enabled is set",
        ),
        ("notifications: {email_enabled: true}", "nothing is announced: notifications.enabled is false"),
    ] {
        let (config, warnings) = load_texts(&[text]).unwrap();
        assert_eq!(warnings, [warning]);
        assert_eq!((config.notifications.webhook, config.notifications.email), (None, None));
    }
}

#[test]
fn secrets_come_from_files_and_the_environment_wins() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let text = format!(
        "notifications: {{enabled: true, webhook_url: 'https://direct/', webhook_url_file: {}, \
         webhook_headers_file: {}, email_enabled: true, smtp_server: h, email_from: a@b.c, email_to: a@b.c, \
         email_username_file: {}, smtp_password_file: {}}}",
        file("url", "https://from-file/\n"),
        file("headers", "Authorization: Bearer t\n"),
        file("user", "u\n"),
        file("password", "two words \n"),
    );
    let config = load_text(&text);
    let (webhook, email) = (config.notifications.webhook.unwrap(), config.notifications.email.unwrap());
    assert_eq!(webhook.url.expose().as_str(), "https://from-file/");
    assert_eq!(webhook.headers["authorization"], "Bearer t");
    assert_eq!(email.username.as_deref(), Some("u"));
    assert_eq!(email.password.unwrap().expose(), "two words ");

    let environment = |name: &str| match name {
        "HYPER2KVM_WEBHOOK_URL" => Some("https://from-environment/".to_owned()),
        "HYPER2KVM_EMAIL_PASSWORD" => Some("e".to_owned()),
        _ => None,
    };
    let (config, _) = resolve(vec![("x".into(), text)], &Overrides::default(), environment).unwrap();
    assert_eq!(config.notifications.webhook.unwrap().url.expose().as_str(), "https://from-environment/");
    assert_eq!(config.notifications.email.unwrap().password.unwrap().expose(), "e");
}

#[test]
fn a_secret_file_is_only_read_where_it_is_needed() {
    let text = |enabled| format!("notifications:\n  enabled: {enabled}\n  webhook_url_file: /nonexistent/url\n");
    load_texts(&[&text(false)]).unwrap();
    let error = load_texts(&[&text(true)]).unwrap_err();
    assert_eq!(error.to_string(), "0.yaml:3: notifications.webhook_url_file: cannot read /nonexistent/url");
    assert!(error.source().is_some());
}

#[test]
fn nothing_prints_a_secret() {
    let text = "notifications:
  enabled: true
  webhook_url: https://hooks.example.com/hunter2
  webhook_headers: {Authorization: Bearer hunter2}
  email_enabled: true
  email_smtp_host: h
  email_from: a@b.c
  email_to: [a@b.c]
  email_username: u
  email_password: hunter2
";
    let config = load_text(text);
    for shown in [config.to_yaml(), format!("{config:?}"), format!("{config:#?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let shown = yaml::read_value(&config.to_yaml()).unwrap();
    assert_eq!(
        shown["notifications"],
        json!({
            "enabled": true, "on_success": false, "on_duplicate": false, "on_failure": true, "on_stalled": true,
            "stall_threshold_minutes": 60,
            "webhook_url": "***", "webhook_type": "generic", "webhook_headers": {"authorization": "***"},
            "email_enabled": true, "email_smtp_host": "h", "email_smtp_port": 587, "email_use_tls": true,
            "email_from": "a@b.c", "email_to": ["a@b.c"], "email_username": "u", "email_password": "***",
            "email_subject_prefix": "[hyper2kvm]",
        })
    );
}

#[test]
fn what_check_config_prints_can_be_loaded() {
    for text in [
        "",
        "compress: zstd\nmax_virtual_size: 123456789\nfile_stable_timeout: 0.5\nverbose: 1",
        "emit_domain_xml: true\nvm_uefi: true",
        "emit: [proxmox, kubevirt]",
        "emit: openstack",
    ] {
        let config = load_text(text);
        assert_eq!(load_text(&config.to_yaml()), config, "{}", config.to_yaml());
    }
}

#[test]
fn the_effective_configuration_has_every_key_but_secret_files() {
    let shown = yaml::read_value(&Config::default().to_yaml()).unwrap();
    for key in keys::KEYS.iter().filter(|key| !key.name.ends_with("_file") || key.name == "log_file") {
        let section = if key.section.is_empty() { &shown } else { &shown[key.section] };
        assert!(section.get(key.name).is_some(), "{}.{} is not shown", key.section, key.name);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(&["/nonexistent.yaml".into()], &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration /nonexistent.yaml");
}
