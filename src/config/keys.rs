// SPDX-License-Identifier: Apache-2.0
//! The keys of a configuration: their names and other names, and suggestions for misspelt ones.

/// A key: the section it stands in (empty at the top), its name, and further names for it.
pub(super) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// Whether its value must not be shown.
    pub secret: bool,
}

const fn key(section: &'static str, name: &'static str, aliases: &'static [&'static str]) -> Key {
    Key { section, name, aliases, secret: false }
}

const fn secret(name: &'static str, aliases: &'static [&'static str]) -> Key {
    Key { section: NOTIFICATIONS, name, aliases, secret: true }
}

pub(super) const RETRY_POLICY: &str = "retry_policy";
pub(super) const RETENTION: &str = "retention";
pub(super) const NOTIFICATIONS: &str = "notifications";

/// Keys whose value is a mapping of further keys.
pub(super) const SECTIONS: [&str; 3] = [RETENTION, RETRY_POLICY, NOTIFICATIONS];

/// Every key that takes effect.
pub(super) const KEYS: &[Key] = &[
    key("", "watch_dir", &[]),
    key("", "output_dir", &[]),
    key("", "workdir", &["work_dir"]),
    key("", "max_concurrent_jobs", &[]),
    key("", "file_stable_timeout", &[]),
    key("", "companion_timeout", &[]),
    key("", "quiet_period", &[]),
    key("", "max_virtual_size", &[]),
    key("", "require_landlock", &[]),
    key("", "appliance_dir", &[]),
    key("", "archive_processed", &[]),
    key("", "enable_deduplication", &[]),
    key("", "deduplication_use_md5", &[]),
    key("", "log_file", &[]),
    key("", "verbose", &[]),
    key("", "out_format", &[]),
    key("", "compress", &[]),
    key("", "compress_level", &[]),
    key("", "checksum", &[]),
    key("", "to_output", &[]),
    key("", "emit", &[]),
    key("", "emit_domain_xml", &[]),
    key("", "vm_name", &[]),
    key("", "vm_memory", &["memory"]),
    key("", "vm_vcpus", &["vcpus"]),
    key("", "vm_uefi", &["uefi"]),
    key("", "machine", &[]),
    key("", "disk_bus", &[]),
    key("", "net_model", &[]),
    key("", "libvirt_network", &[]),
    key("", "fix_guest", &[]),
    key("", "guest_names", &[]),
    key("", "virtio_win", &[]),
    key("", "boot_check", &[]),
    key("", "boot_check_timeout", &[]),
    key("", "accelerator", &[]),
    key(RETENTION, "processed_days", &["processedDays"]),
    key(RETENTION, "errors_days", &["errorsDays"]),
    key(RETENTION, "outputs_days", &["outputsDays"]),
    key(RETRY_POLICY, "enabled", &[]),
    key(RETRY_POLICY, "max_retries", &[]),
    key(RETRY_POLICY, "retry_delay", &[]),
    key(RETRY_POLICY, "backoff_multiplier", &[]),
    key(NOTIFICATIONS, "enabled", &[]),
    key(NOTIFICATIONS, "on_success", &["notify_on_success"]),
    key(NOTIFICATIONS, "on_duplicate", &["notify_on_duplicate"]),
    key(NOTIFICATIONS, "on_failure", &["notify_on_failure"]),
    key(NOTIFICATIONS, "on_stalled", &["notify_on_stall"]),
    key(NOTIFICATIONS, "stall_threshold_minutes", &[]),
    secret("webhook_url", &[]),
    key(NOTIFICATIONS, "webhook_url_file", &[]),
    key(NOTIFICATIONS, "webhook_type", &[]),
    secret("webhook_headers", &[]),
    key(NOTIFICATIONS, "webhook_headers_file", &[]),
    key(NOTIFICATIONS, "email_enabled", &[]),
    key(NOTIFICATIONS, "email_smtp_host", &["smtp_server"]),
    key(NOTIFICATIONS, "email_smtp_port", &["smtp_port"]),
    key(NOTIFICATIONS, "email_use_tls", &["smtp_use_tls"]),
    key(NOTIFICATIONS, "email_from", &[]),
    key(NOTIFICATIONS, "email_to", &[]),
    key(NOTIFICATIONS, "email_username", &["smtp_username"]),
    key(NOTIFICATIONS, "email_username_file", &["smtp_username_file"]),
    secret("email_password", &["smtp_password"]),
    key(NOTIFICATIONS, "email_password_file", &["smtp_password_file"]),
    key(NOTIFICATIONS, "email_subject_prefix", &[]),
];

/// Keys whose only use is to say that this is a daemon's configuration.
pub(super) const MODES: [&str; 3] = ["cmd", "command", "daemon"];

/// Keys of the original that have no effect here.
const WITHOUT_EFFECT: [&str; 5] = ["flatten", "flatten_format", "parallel_processing", "enable_recovery", "report"];

/// Keys of the original for changing the guest, which is not done here.
const GUEST: [&str; 17] = [
    "fstab_mode",
    "regen_initramfs",
    "update_grub",
    "no_grub",
    "remove_vmware_tools",
    "resize",
    "win_virtio",
    "virtio_drivers_dir",
    "cloud_init_config",
    "guest_os",
    "use_v2v",
    "post_v2v",
    "v2v_parallel",
    "v2v_concurrency",
    "virsh_define",
    "libvirt_test",
    "qemu_test",
];
const GUEST_PREFIX: &str = "luks_";

/// What a key means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// Index into [`KEYS`].
    Key(usize),
    Section(&'static str),
    Mode,
    WithoutEffect,
    Guest,
    Unknown,
}

/// The same key with dashes or underscores.
pub(super) fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

/// What the (normalized) `name` means in `section`.
pub(super) fn meaning(section: &str, name: &str) -> Meaning {
    let known = KEYS.iter().position(|k| k.section == section && (k.name == name || k.aliases.contains(&name)));
    if let Some(index) = known {
        return Meaning::Key(index);
    }
    if !section.is_empty() {
        return Meaning::Unknown;
    }
    if let Some(section) = SECTIONS.into_iter().find(|s| *s == name) {
        return Meaning::Section(section);
    }
    if MODES.contains(&name) {
        Meaning::Mode
    } else if WITHOUT_EFFECT.contains(&name) {
        Meaning::WithoutEffect
    } else if GUEST.contains(&name) || name.starts_with(GUEST_PREFIX) {
        Meaning::Guest
    } else {
        Meaning::Unknown
    }
}

/// The known key that the unknown `name` in `section` looks most like; the same key elsewhere counts as near, and so
/// does the last word alone (`from` of `email_from`).
pub(super) fn nearest(section: &str, name: &str) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    let sections = SECTIONS.iter().map(|s| ("", *s));
    let names = KEYS.iter().flat_map(|k| [&k.name].into_iter().chain(k.aliases).map(|n| (k.section, *n)));
    for (place, candidate) in names.chain(sections) {
        let elsewhere = usize::from(place != section);
        let is_end = candidate.strip_suffix(name).is_some_and(|start| start.ends_with('_'));
        let distance = if is_end { 1 } else { edits(name, candidate) } + elsewhere;
        if distance <= 1 + candidate.len() / 4 && best.as_ref().is_none_or(|(least, _)| distance < *least) {
            let shown = if place.is_empty() { candidate.to_owned() } else { format!("{place}.{candidate}") };
            best = Some((distance, shown));
        }
    }
    best.map(|(_, shown)| shown)
}

/// Insertions, deletions and replacements between two words.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_recognised() {
        for (section, name, expected) in [
            ("", "max_concurent_jobs", Some("max_concurrent_jobs")),
            ("", "max_retries", Some("retry_policy.max_retries")),
            ("", "notification", Some("notifications")),
            (NOTIFICATIONS, "webhok_url", Some("notifications.webhook_url")),
            (NOTIFICATIONS, "from", Some("notifications.email_from")),
            (NOTIFICATIONS, "username", Some("notifications.email_username")),
            ("retention", "processed_day", Some("retention.processed_days")),
            (RETRY_POLICY, "delay", Some("retry_policy.retry_delay")),
            (RETRY_POLICY, "backoff", None),
            ("", "zzz", None),
        ] {
            assert_eq!(nearest(section, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn no_name_stands_for_two_keys() {
        let mut seen = std::collections::BTreeSet::new();
        for key in KEYS {
            for name in key.aliases.iter().chain([&key.name]) {
                assert!(seen.insert((key.section, *name)), "{name} twice");
                assert_eq!(normalized(name), *name);
            }
        }
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
