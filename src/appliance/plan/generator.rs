// SPDX-License-Identifier: Apache-2.0
//! By what an initramfs was made, and where it runs something before it looks for disks: from its entries alone.

use std::collections::BTreeMap;

use crate::guest::InitramfsEntry;

/// Kinds of files in a mode (stat(2)).
const KINDS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// Where dracut keeps its hooks; which of them depends on its version and on whether /usr is merged.
const DRACUT_HOOKS: [&str; 3] = ["usr/lib/dracut/hooks", "lib/dracut/hooks", "var/lib/dracut/hooks"];
/// Where udev keeps its rules.
const UDEV_RULES: [&str; 2] = ["usr/lib/udev/rules.d", "lib/udev/rules.d"];
/// Programs that load a module from a file when they are called `insmod`.
const LOADERS: [&str; 11] = [
    "usr/bin/kmod",
    "bin/kmod",
    "usr/sbin/kmod",
    "sbin/kmod",
    "usr/sbin/insmod",
    "sbin/insmod",
    "usr/bin/insmod",
    "bin/insmod",
    "usr/bin/busybox",
    "bin/busybox",
    "usr/lib/initcpio/busybox",
];

/// The programs that make initramfs, and where each takes a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Generator {
    /// Its init reads every file of `conf/conf.d`, before it loads drivers.
    InitramfsTools,
    /// Directories of its hooks; it runs those of `pre-udev`, with systemd by a service of its own.
    Dracut(Vec<&'static str>),
    /// Its hooks stand in a file that cannot be added to, so a rule of udev does it: the directory of the rules.
    Mkinitcpio(&'static str),
    /// Its init has no place for hooks, and loads drivers by the lists of modules that stand beside them.
    Mkinitfs,
}

/// An initramfs as it is once the kernel has unpacked it.
#[derive(Debug)]
pub(super) struct Unpacked<'a> {
    by_path: BTreeMap<&'a str, &'a InitramfsEntry>,
}

impl<'a> Unpacked<'a> {
    pub(super) fn new(entries: &'a [InitramfsEntry]) -> Self {
        let by_path = entries.iter().map(|entry| (entry.path.trim_start_matches("./").trim_start_matches('/'), entry));
        Self { by_path: by_path.collect() }
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.by_path.contains_key(path)
    }

    pub(super) fn is_directory(&self, path: &str) -> bool {
        self.by_path.get(path).is_some_and(|entry| entry.mode & KINDS == DIRECTORY)
    }

    /// Whether any entry is below the directory `path`.
    pub(super) fn has_below(&self, path: &str) -> bool {
        let start = format!("{path}/");
        self.by_path.range(start.as_str()..).next().is_some_and(|(found, _)| found.starts_with(&start))
    }

    /// The first directory above `path` that is a link here: a real one, unpacked before it, would take its place.
    pub(super) fn link_above(&self, path: &str) -> Option<String> {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let mut links = above.filter(|above| self.by_path.get(above).is_some_and(|entry| entry.mode & KINDS == LINK));
        links.next().map(str::to_owned)
    }

    /// The program that loads modules.
    pub(super) fn loader(&self) -> Option<&'static str> {
        LOADERS.into_iter().find(|path| self.has(path))
    }

    /// By what it was made; an error names what it looks like instead.
    pub(super) fn generator(&self) -> Result<Generator, &'static str> {
        if self.has("scripts/functions") && (self.has("conf/initramfs.conf") || self.has("conf/arch.conf")) {
            return Ok(Generator::InitramfsTools);
        }
        let hooks: Vec<_> = DRACUT_HOOKS.into_iter().filter(|path| self.is_directory(path)).collect();
        if !hooks.is_empty() {
            return Ok(Generator::Dracut(hooks));
        }
        if self.has("init_functions") || self.has("buildconfig") {
            let rules = UDEV_RULES.into_iter().find(|path| self.is_directory(path));
            return rules.map(Generator::Mkinitcpio).ok_or("made by mkinitcpio without udev");
        }
        if self.has("sbin/nlplug-findfs") || self.has("usr/sbin/nlplug-findfs") {
            return Ok(Generator::Mkinitfs);
        }
        Err(if self.has("run_all.sh") || self.has("config/start.sh") {
            "made by SUSE's old mkinitrd"
        } else {
            "made by a program that is not known"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(paths: &[&str]) -> Vec<InitramfsEntry> {
        let entry = |path: &&str| match path.split_once(" -> ") {
            Some((path, target)) => {
                InitramfsEntry { path: path.into(), mode: LINK | 0o777, target: Some(target.to_owned()) }
            }
            None if path.ends_with('/') => {
                InitramfsEntry { path: path.trim_end_matches('/').into(), mode: DIRECTORY | 0o755, target: None }
            }
            None => InitramfsEntry { path: (*path).to_owned(), mode: 0o100_644, target: None },
        };
        paths.iter().map(entry).collect()
    }

    #[test]
    fn each_generator_is_known_by_its_files() {
        for (paths, expected) in [
            (&["conf/arch.conf", "./scripts/functions"][..], Ok(Generator::InitramfsTools)),
            (&["usr/lib/dracut/hooks/", "lib -> usr/lib"], Ok(Generator::Dracut(vec!["usr/lib/dracut/hooks"]))),
            (&["lib/dracut/hooks/"], Ok(Generator::Dracut(vec!["lib/dracut/hooks"]))),
            (
                &["var/lib/dracut/hooks/", "usr/lib/dracut/hooks -> /var/lib/dracut/hooks"],
                Ok(Generator::Dracut(vec!["var/lib/dracut/hooks"])),
            ),
            (&["init_functions", "usr/lib/udev/rules.d/"], Ok(Generator::Mkinitcpio("usr/lib/udev/rules.d"))),
            (&["init_functions"], Err("made by mkinitcpio without udev")),
            (&["init", "sbin/nlplug-findfs"], Ok(Generator::Mkinitfs)),
            (&["run_all.sh"], Err("made by SUSE's old mkinitrd")),
            (&["init"], Err("made by a program that is not known")),
            (&[], Err("made by a program that is not known")),
        ] {
            assert_eq!(Unpacked::new(&entries(paths)).generator(), expected, "{paths:?}");
        }
    }

    #[test]
    fn a_link_above_is_found_however_the_paths_are_written() {
        let listed = entries(&["./usr -> .", "/lib -> usr/lib", "var/", "usr/bin/kmod"]);
        let unpacked = Unpacked::new(&listed);
        assert_eq!(unpacked.link_above("usr/lib/hyper2kvm/order").as_deref(), Some("usr"));
        assert_eq!(unpacked.link_above("lib/x").as_deref(), Some("lib"));
        assert_eq!(unpacked.link_above("var/lib/x"), None);
        assert_eq!(unpacked.loader(), Some("usr/bin/kmod"));
        assert!(unpacked.has_below("usr/bin") && !unpacked.has_below("var"));
    }
}
