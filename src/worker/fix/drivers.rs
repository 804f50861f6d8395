// SPDX-License-Identifier: Apache-2.0
//! Chooses drivers for a guest of Windows from a directory of virtio-win: by its release and architecture, as virtio-win names
//! its directories.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::appliance::protocol::{Driver, DriverFile, MAX_DRIVER_BYTES};
use crate::appliance::windows::{BLOCK, NETWORK};
use crate::conversion::guest::OperatingSystem;

/// Where drivers lie in virtio-win's ISO, and in the directory that its package installs.
const LAYOUTS: [&str; 2] = ["", "drivers/by-driver"];
/// Files of a driver; its symbols, which are the largest, are for people.
const KINDS: [&str; 5] = ["inf", "sys", "cat", "dll", "exe"];
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// The drivers that were found.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) drivers: Vec<Driver>,
    pub(super) files: Vec<DriverFile>,
}

/// Drivers that were not found.
#[derive(Debug, thiserror::Error)]
pub(super) enum DriversError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is a file: mount the ISO, or unpack it, and name the directory", .0.display())]
    File(PathBuf),
    #[error("no virtio-win has drivers for {0}")]
    System(String),
    #[error("{} has no {driver} for {system}: looked for {}", directory.display(), looked_for.join(", "))]
    Missing { directory: PathBuf, driver: &'static str, system: String, looked_for: Vec<String> },
    #[error("{} has no {name}", directory.display())]
    Incomplete { directory: PathBuf, name: String },
    #[error("the drivers in {} have more than {} MiB", .0.display(), MAX_DRIVER_BYTES >> 20)]
    Size(PathBuf),
}

/// viostor, which must be there, and netkvm, which may.
pub(super) fn choose(virtio_win: &Path, os: &OperatingSystem) -> Result<Chosen, DriversError> {
    if virtio_win.is_file() {
        return Err(DriversError::File(virtio_win.to_owned()));
    }
    entries(virtio_win)?;
    let system = format!("{} ({})", os.name, os.version);
    let places = places(os).ok_or_else(|| DriversError::System(system.clone()))?;
    let mut chosen = Chosen { drivers: Vec::new(), files: Vec::new() };
    let Some((from, directory)) = find(virtio_win, BLOCK, &places) else {
        let looked_for = places.iter().map(|place| format!("{BLOCK}/{place}")).collect();
        let directory = virtio_win.to_owned();
        return Err(DriversError::Missing { directory, driver: BLOCK, system, looked_for });
    };
    take(BLOCK, from, &directory, &mut chosen)?;
    if let Some((from, directory)) = find(virtio_win, NETWORK, &places) {
        take(NETWORK, from, &directory, &mut chosen)?;
    }
    let bytes: u64 = chosen.files.iter().map(|file| file.content.len() as u64).sum();
    if bytes > MAX_DRIVER_BYTES {
        return Err(DriversError::Size(virtio_win.to_owned()));
    }
    Ok(chosen)
}

/// The directories of a driver that fit, the best first; `None` where no virtio-win has one.
fn places(os: &OperatingSystem) -> Option<Vec<String>> {
    let architecture = match os.architecture.as_deref()? {
        "x86_64" => "amd64",
        "i386" => "x86",
        _ => return None,
    };
    let mut numbers = os.version.split('.').map(|number| number.parse::<u32>().ok());
    let (major, minor, build) = (numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or_default());
    let is_server = os.name.contains("Server");
    // A driver for an older Windows of the same kernel works on a newer one.
    let names: &[&str] = match (major, minor, is_server) {
        (6, 0, _) => &["2k8"],
        (6, 1, false) => &["w7"],
        (6, 1, true) => &["2k8R2"],
        (6, 2, false) => &["w8"],
        (6, 2, true) => &["2k12"],
        (6, 3, false) => &["w8.1"],
        (6, 3, true) => &["2k12R2"],
        (10, 0, false) if build >= 22_000 => &["w11", "w10"],
        (10, 0, false) => &["w10"],
        (10, 0, true) if build >= 26_100 => &["2k25", "2k22", "2k19", "2k16"],
        (10, 0, true) if build >= 20_348 => &["2k22", "2k19", "2k16"],
        (10, 0, true) if build >= 17_763 => &["2k19", "2k16"],
        (10, 0, true) => &["2k16"],
        _ => return None,
    };
    Some(names.iter().map(|name| format!("{name}/{architecture}")).collect())
}

/// The first directory of `driver` that is there: as it is told, and its path.
fn find(virtio_win: &Path, driver: &str, places: &[String]) -> Option<(String, PathBuf)> {
    let candidates = LAYOUTS.iter().flat_map(|layout| places.iter().map(move |place| (layout, place)));
    let mut found = candidates.filter_map(|(layout, place)| {
        let told = format!("{driver}/{place}");
        let mut directory = virtio_win.to_owned();
        for part in layout.split('/').chain(told.split('/')).filter(|part| !part.is_empty()) {
            let names = entries(&directory).ok()?;
            let name = names.into_iter().find(|name| name.eq_ignore_ascii_case(part))?;
            directory.push(name);
        }
        directory.is_dir().then_some((told, directory))
    });
    found.next()
}

/// Reads a driver's files.
fn take(driver: &'static str, from: String, directory: &Path, chosen: &mut Chosen) -> Result<(), DriversError> {
    let mut names = Vec::new();
    for entry in entries(directory)? {
        let path = directory.join(&entry);
        let Some(name) = entry.to_str().map(str::to_ascii_lowercase) else { continue };
        let is_wanted = name.rsplit_once('.').is_some_and(|(_, kind)| KINDS.contains(&kind));
        if !is_wanted || !path.is_file() {
            continue;
        }
        let wrong = |source| DriversError::Read { path: path.clone(), source };
        let mut content = Vec::new();
        let file = File::open(&path).map_err(wrong)?;
        file.take(MAX_DRIVER_BYTES + 1).read_to_end(&mut content).map_err(wrong)?;
        if content.len() as u64 > MAX_DRIVER_BYTES {
            return Err(DriversError::Size(directory.to_owned()));
        }
        names.push(name.clone());
        chosen.files.push(DriverFile { driver: driver.to_owned(), name, content });
    }
    for name in ["inf", "sys"].map(|kind| format!("{driver}.{kind}")) {
        if !names.contains(&name) {
            return Err(DriversError::Incomplete { directory: directory.to_owned(), name });
        }
    }
    chosen.drivers.push(Driver { name: driver.to_owned(), from, files: names });
    Ok(())
}

/// Names in a directory, sorted.
fn entries(directory: &Path) -> Result<Vec<OsString>, DriversError> {
    let wrong = |source| DriversError::Read { path: directory.to_owned(), source };
    let entries = fs::read_dir(directory).map_err(wrong)?.take(MAX_ENTRIES);
    let mut names =
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>().map_err(wrong)?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(name: &str, version: &str, architecture: &str) -> OperatingSystem {
        let architecture = Some(architecture.to_owned());
        OperatingSystem { id: "windows".into(), name: name.into(), version: version.into(), architecture }
    }

    fn put(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "content").unwrap();
    }

    #[test]
    fn a_release_has_its_directories() {
        for (name, version, architecture, expected) in [
            ("Windows Server 2022 Standard", "10.0.20348", "x86_64", Some("2k22/amd64 2k19/amd64 2k16/amd64")),
            ("Windows Server 2016 Datacenter", "10.0.14393", "x86_64", Some("2k16/amd64")),
            ("Windows 11 Pro", "10.0.22631", "x86_64", Some("w11/amd64 w10/amd64")),
            ("Windows 10 Pro", "10.0.19045", "i386", Some("w10/x86")),
            ("Windows Server 2012 R2 Standard", "6.3.9600", "x86_64", Some("2k12R2/amd64")),
            ("Windows 8 Pro", "6.2.9200", "i386", Some("w8/x86")),
            ("Windows Server 2003", "5.2.3790", "x86_64", None),
            ("Windows 11 Pro", "10.0.22631", "aarch64", None),
            ("Windows", "", "x86_64", None),
        ] {
            let found = places(&os(name, version, architecture)).map(|places| places.join(" "));
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn drivers_are_found_in_either_layout_whatever_their_case() {
        let server = os("Windows Server 2022 Standard", "10.0.20348", "x86_64");
        for base in ["", "drivers/by-driver/"] {
            let root = tempfile::tempdir().unwrap();
            for file in ["viostor.inf", "VIOSTOR.SYS", "viostor.cat", "viostor.pdb", "readme.txt"] {
                put(root.path(), &format!("{base}viostor/2k19/amd64/{file}"));
            }
            let only = choose(root.path(), &server).unwrap();
            assert_eq!(only.drivers.len(), 1);
            put(root.path(), &format!("{base}NetKVM/2k22/amd64/netkvm.inf"));
            assert!(
                matches!(choose(root.path(), &server), Err(DriversError::Incomplete { name, .. }) if name == "netkvm.sys")
            );
            put(root.path(), &format!("{base}NetKVM/2k22/amd64/netkvm.sys"));
            let chosen = choose(root.path(), &server).unwrap();
            let told: Vec<_> =
                chosen.drivers.iter().map(|driver| (driver.from.as_str(), driver.files.join(" "))).collect();
            let expected = [
                ("viostor/2k19/amd64", "viostor.sys viostor.cat viostor.inf".to_owned()),
                ("netkvm/2k22/amd64", "netkvm.inf netkvm.sys".to_owned()),
            ];
            assert_eq!(told, expected);
            assert_eq!(chosen.files.len(), 5);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_where_it_was_looked_for() {
        let server = os("Windows Server 2019 Standard", "10.0.17763", "x86_64");
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "viostor/w10/amd64/viostor.inf");
        let place = root.path().display();
        let error = choose(root.path(), &server).unwrap_err().to_string();
        let expected = format!(
            "{place} has no viostor for Windows Server 2019 Standard (10.0.17763): looked for viostor/2k19/amd64, \
             viostor/2k16/amd64"
        );
        assert_eq!(error, expected);
        assert!(matches!(choose(&root.path().join("none"), &server), Err(DriversError::Read { .. })));
        let iso = root.path().join("virtio-win.iso");
        fs::write(&iso, "").unwrap();
        assert!(matches!(choose(&iso, &server), Err(DriversError::File(_))));
        let old = os("Windows Server 2003", "5.2.3790", "i386");
        let error = choose(root.path(), &old).unwrap_err().to_string();
        assert_eq!(error, "no virtio-win has drivers for Windows Server 2003 (5.2.3790)");
    }
}
