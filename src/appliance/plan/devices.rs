// SPDX-License-Identifier: Apache-2.0
//! Names devices by what they hold, where a file names them by their place: fstab, crypttab, boot loaders.

use std::collections::BTreeMap;

use super::{Act, Plan, Refusal};
use crate::appliance::mounted::Mounted;
use crate::conversion::guest::{FixKind, Guest, Naming};

const FSTAB: &str = "/etc/fstab";
const CRYPTTAB: &str = "/etc/crypttab";
/// Where initramfs-tools keeps the device that it resumes from.
const RESUME: &str = "/etc/initramfs-tools/conf.d/resume";
/// First line of GRUB's environment block, and its length, which GRUB writes to in place.
const GRUBENV: &str = "# GRUB Environment Block\n";
const GRUBENV_BYTES: usize = 1024;

/// By device as it is written: what names the same by content.
type Names = BTreeMap<String, String>;

/// Plans the changes of all files that the inspection found.
pub(super) fn plan(guest: &Guest, files: &Mounted, plan: &mut Plan) -> Result<(), Refusal> {
    let mut names = Names::new();
    let mounts = guest.mounts.iter().map(|mount| (&mount.device, mount.naming, &mount.volume));
    let boots = guest.boot.iter().map(|boot| (&boot.root, boot.naming, &boot.volume));
    for (device, naming, volume) in mounts.chain(boots) {
        if matches!(naming, Naming::Name | Naming::Path)
            && let Some(name) = volume.as_deref().and_then(|volume| by_content(guest, volume))
        {
            names.insert(device.clone(), name);
        }
    }
    let mut edit = |path: &str, edited: &dyn Fn(&str) -> Option<String>| -> Result<(), Refusal> {
        let Some(text) = files.text(path)? else { return Ok(()) };
        match edited(&text) {
            Some(changed) if changed != text => {
                plan.change(FixKind::DeviceNames, path, Act::Write(changed.into_bytes()));
            }
            Some(_) => {}
            None => plan.leave(path, "Its block of 1024 bytes has no room for a device's UUID."),
        }
        Ok(())
    };
    let is_named = |naming| matches!(naming, Naming::Name | Naming::Path);
    if guest.mounts.iter().any(|mount| mount.file == FSTAB && is_named(mount.naming)) {
        edit(FSTAB, &|text| Some(columns(text, 0, &names)))?;
    }
    if guest.mounts.iter().any(|mount| mount.file == CRYPTTAB && is_named(mount.naming)) {
        edit(CRYPTTAB, &|text| Some(columns(text, 1, &names)))?;
    }
    let mut done = Vec::new();
    let early = early_names(guest, &names);
    for boot in guest.boot.iter().filter(|boot| is_named(boot.naming)) {
        if boot.file.to_ascii_lowercase().ends_with(".efi") {
            let message = format!(
                "{} names {} in its command line, which is within a unified kernel image.",
                boot.file, boot.root
            );
            return Err(Refusal::unsupported(message));
        }
        if !done.contains(&&boot.file) {
            done.push(&boot.file);
            edit(&boot.file, &|text| environment(text, &arguments(text, &["root=", "resume="], &early)))?;
        }
    }
    edit(RESUME, &|text| Some(arguments(text, &["RESUME="], &names)))?;
    unresolved(guest, files, &names, plan)
}

/// `UUID=…` of a volume.
fn by_content(guest: &Guest, volume: &str) -> Option<String> {
    let uuid = guest.volumes.iter().find(|held| held.name == volume)?.uuid.as_ref()?;
    Some(format!("UUID={uuid}"))
}

/// The same names for the kernel's command line: without an initramfs only partitions have an identity there.
fn early_names(guest: &Guest, names: &Names) -> Names {
    if guest.kernels.iter().all(|kernel| kernel.initramfs.is_some()) {
        return names.clone();
    }
    let partition = |volume: &str| {
        let (disk, number) = volume.strip_prefix("disk ")?.split_once(" partition ")?;
        let disk = guest.disks.get(disk.parse::<usize>().ok()?)?;
        let number: u32 = number.parse().ok()?;
        let found = disk.partitions.iter().find(|partition| partition.number == number)?;
        (!found.uuid.is_empty()).then(|| format!("PARTUUID={}", found.uuid))
    };
    let roots = guest.boot.iter().filter(|boot| names.contains_key(&boot.root));
    roots.filter_map(|boot| Some((boot.root.clone(), partition(boot.volume.as_deref()?)?))).collect()
}

/// A table's text with the devices of its column `column` named otherwise; all else stays as it is.
fn columns(text: &str, column: usize, names: &Names) -> String {
    let change = |line: &str| -> Option<String> {
        if line.trim_start().starts_with('#') {
            return None;
        }
        let word = line.split_ascii_whitespace().nth(column)?;
        let name = names.get(word.trim_matches('"'))?;
        // Where the word stands: it is a slice of the line.
        let at = word.as_ptr() as usize - line.as_ptr() as usize;
        Some(format!("{}{name}{}", &line[..at], &line[at + word.len()..]))
    };
    text.split_inclusive('\n').map(|line| change(line).unwrap_or_else(|| line.to_owned())).collect()
}

/// A text with the devices behind `keys` named otherwise, where a key begins a word and the device ends it.
fn arguments(text: &str, keys: &[&str], names: &Names) -> String {
    let is_end = |c: char| c.is_ascii_whitespace() || c == '"' || c == '\'';
    let change = |line: &str| -> String {
        let mut changed = String::with_capacity(line.len() + 64);
        let mut rest = line;
        while !rest.is_empty() {
            let begins = changed.is_empty() || changed.ends_with(|c: char| is_end(c) || c == '=');
            let key = keys.iter().find(|key| begins && rest.starts_with(**key));
            let device = key.map(|key| rest[key.len()..].split(is_end).next().unwrap_or_default());
            if let (Some(key), Some(device)) = (key, device)
                && let Some(name) = names.get(device)
            {
                changed.push_str(key);
                changed.push_str(name);
                rest = &rest[key.len() + device.len()..];
                continue;
            }
            let next = rest.chars().next().map_or(0, char::len_utf8);
            changed.push_str(&rest[..next]);
            rest = &rest[next..];
        }
        changed
    };
    let lines = text.split_inclusive('\n');
    lines.map(|line| if line.trim_start().starts_with('#') { line.to_owned() } else { change(line) }).collect()
}

/// The same with GRUB's environment block as long as it was; `None` where it has no room.
fn environment(before: &str, after: &str) -> Option<String> {
    if !before.starts_with(GRUBENV) || before.len() != GRUBENV_BYTES {
        return Some(after.to_owned());
    }
    let content = after.trim_end_matches('#');
    let room = GRUBENV_BYTES.checked_sub(content.len())?;
    Some(format!("{content}{}", "#".repeat(room)))
}

/// What still names a device by its place: left where the guest starts without it, else a refusal.
fn unresolved(guest: &Guest, files: &Mounted, names: &Names, plan: &mut Plan) -> Result<(), Refusal> {
    let fstab = files.text(FSTAB)?.unwrap_or_default();
    for mount in guest.mounts.iter().filter(|mount| matches!(mount.naming, Naming::Name | Naming::Path)) {
        if names.contains_key(&mount.device) {
            continue;
        }
        let line = fstab.lines().find(|line| line.split_ascii_whitespace().next() == Some(&mount.device));
        let options = line.and_then(|line| line.split_ascii_whitespace().nth(3)).unwrap_or_default();
        let is_optional = options.split(',').any(|option| matches!(option, "nofail" | "noauto"))
            || matches!(mount.target.as_str(), "none" | "swap")
            || mount.file != FSTAB;
        let why = format!("It names {}, and what that is was not found on the disks.", mount.device);
        if is_optional {
            plan.leave(&mount.file, why);
        } else {
            return Err(Refusal::unsupported(format!(
                "{} names {} for {}, and what that is was not found on the disks.",
                mount.file, mount.device, mount.target
            )));
        }
    }
    for boot in guest.boot.iter().filter(|boot| matches!(boot.naming, Naming::Name | Naming::Path)) {
        if !names.contains_key(&boot.root) {
            let message = format!("{} has root={}, and what that is was not found on the disks.", boot.file, boot.root);
            return Err(Refusal::unsupported(message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        [("/dev/sda1", "UUID=aaaa"), ("/dev/sda5", "UUID=5555"), ("/dev/sda", "UUID=whole")]
            .map(|(device, name)| (device.to_owned(), name.to_owned()))
            .into()
    }

    #[test]
    fn only_the_device_of_a_line_changes() {
        for (column, before, after) in [
            (0, "/dev/sda1 / ext4 defaults 0 1\n", "UUID=aaaa / ext4 defaults 0 1\n"),
            (0, "\t/dev/sda1\t/\text4", "\tUUID=aaaa\t/\text4"),
            (0, "\"/dev/sda1\" / ext4", "UUID=aaaa / ext4"),
            (0, "# /dev/sda1 / ext4\r\n/dev/sda1 / ext4\r\n", "# /dev/sda1 / ext4\r\nUUID=aaaa / ext4\r\n"),
            (0, "/dev/sda10 /a ext4\n", "/dev/sda10 /a ext4\n"),
            (0, "/dev/sdb1 /dev/sda1 ext4\n\n", "/dev/sdb1 /dev/sda1 ext4\n\n"),
            (0, "/dev/sda5 none swap sw # /dev/sda5\n", "UUID=5555 none swap sw # /dev/sda5\n"),
            (1, "data /dev/sda5 none luks\n", "data UUID=5555 none luks\n"),
            (1, "data\n", "data\n"),
        ] {
            assert_eq!(columns(before, column, &names()), after);
        }
    }

    #[test]
    fn only_whole_words_of_a_command_line_change() {
        for (before, after) in [
            ("linux /vmlinuz root=/dev/sda1 ro quiet\n", "linux /vmlinuz root=UUID=aaaa ro quiet\n"),
            ("root=/dev/sda1", "root=UUID=aaaa"),
            ("GRUB_CMDLINE_LINUX=\"root=/dev/sda1\"\n", "GRUB_CMDLINE_LINUX=\"root=UUID=aaaa\"\n"),
            ("options root=/dev/sda1 resume=/dev/sda5\n", "options root=UUID=aaaa resume=UUID=5555\n"),
            ("kernelopts=root=/dev/sda1 ro\n", "kernelopts=root=UUID=aaaa ro\n"),
            ("# root=/dev/sda1\n", "# root=/dev/sda1\n"),
            ("root=/dev/sda10 noroot=/dev/sda1 root=/dev/sdb1\n", "root=/dev/sda10 noroot=/dev/sda1 root=/dev/sdb1\n"),
            ("set root='hd0,msdos1' # ü root=/dev/sda1\n", "set root='hd0,msdos1' # ü root=UUID=aaaa\n"),
        ] {
            assert_eq!(arguments(before, &["root=", "resume="], &names()), after);
        }
    }

    #[test]
    fn grubs_environment_keeps_its_length() {
        let block = |text: &str| format!("{GRUBENV}{text}{}", "#".repeat(GRUBENV_BYTES - GRUBENV.len() - text.len()));
        let before = block("kernelopts=root=/dev/sda1\n");
        let changed = environment(&before, &arguments(&before, &["root="], &names())).unwrap();
        assert_eq!(changed, block("kernelopts=root=UUID=aaaa\n"));
        let long = format!("kernelopts=root=/dev/sda1 {}\n", "x".repeat(GRUBENV_BYTES - GRUBENV.len() - 28));
        let before = block(&long);
        let after = before.replace("/dev/sda1", "UUID=5d6f3a3b-1111-2222-3333-444455556666");
        assert_eq!(environment(&before, &after), None);
        assert_eq!(environment("a", "b").as_deref(), Some("b"));
    }
}
