// SPDX-License-Identifier: Apache-2.0
//! Which shared libraries a program needs, by its ELF header: what the appliance's tools are put into an initrd with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where libraries are looked for, as Debian, Red Hat and others have them.
const DIRECTORIES: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib",
];
/// Most libraries of one program; lvm has two dozen.
const MAX_LIBRARIES: usize = 128;

/// Kinds of program headers and of dynamic entries (elf(5)).
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// A program that cannot be taken along.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} is no 64-bit little-endian ELF file")]
    Form(PathBuf),
    #[error("{program} needs the library {library}, which is not in {}", DIRECTORIES.join(", "))]
    Missing { program: PathBuf, library: String },
}

/// What a program says it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    /// Path of the dynamic loader; absent of a static program.
    loader: Option<String>,
    libraries: Vec<String>,
}

/// The files that `program` needs besides itself, by the path under which they are looked for; none of a static one.
pub(super) fn of(program: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![(program.to_owned(), read(program)?)];
    while let Some((path, content)) = ahead.pop() {
        let needs = parse(&content).ok_or_else(|| Error::Form(path.clone()))?;
        if let Some(loader) = needs.loader {
            found.insert(loader.clone(), read(Path::new(&loader))?);
        }
        // A library names the loader, too, which the program names by its path.
        for library in needs.libraries.into_iter().filter(|library| !library.starts_with("ld-linux")) {
            let places = DIRECTORIES.iter().map(|directory| format!("{directory}/{library}"));
            let missing = || Error::Missing { program: program.to_owned(), library: library.clone() };
            let place = places.into_iter().find(|place| Path::new(place).is_file()).ok_or_else(missing)?;
            if !found.contains_key(&place) {
                if found.len() == MAX_LIBRARIES {
                    return Err(missing());
                }
                let content = read(Path::new(&place))?;
                found.insert(place.clone(), content.clone());
                ahead.push((place.into(), content));
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Reads the header of a 64-bit little-endian ELF file.
fn parse(file: &[u8]) -> Option<Needs> {
    if !file.starts_with(b"\x7FELF\x02\x01") {
        return None;
    }
    let headers = usize::try_from(number(file, 32, 8)?).ok()?;
    let (size, count) = (usize::try_from(number(file, 54, 2)?).ok()?, usize::try_from(number(file, 56, 2)?).ok()?);
    let mut loads = Vec::new();
    let mut dynamic = None;
    let mut needs = Needs::default();
    for index in 0..count {
        let at = headers.checked_add(index.checked_mul(size)?)?;
        let kind = u32::try_from(number(file, at, 4)?).ok()?;
        let (offset, address, len) = (number(file, at + 8, 8)?, number(file, at + 16, 8)?, number(file, at + 32, 8)?);
        match kind {
            PT_LOAD => loads.push((address, offset, len)),
            PT_DYNAMIC => dynamic = Some((offset, len)),
            PT_INTERP => needs.loader = Some(text(file, offset)?),
            _ => {}
        }
    }
    let Some((offset, len)) = dynamic else { return Some(needs) };
    let entries = (0..len / 16).map(|index| {
        let at = usize::try_from(offset.checked_add(index * 16)?).ok()?;
        Some((number(file, at, 8)?, number(file, at.checked_add(8)?, 8)?))
    });
    let entries: Vec<(u64, u64)> = entries.collect::<Option<_>>()?;
    let table = entries.iter().find(|(tag, _)| *tag == DT_STRTAB).map(|(_, address)| *address)?;
    // The table's place in memory, turned into its place in the file.
    let place = loads.iter().find_map(|(address, offset, len)| {
        let within = table.checked_sub(*address).filter(|within| within < len)?;
        offset.checked_add(within)
    })?;
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        needs.libraries.push(text(file, place.checked_add(*name)?)?);
    }
    Some(needs)
}

fn number(file: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = file.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The text at `at`, up to its NUL.
fn text(file: &[u8], at: u64) -> Option<String> {
    let rest = file.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().take(4096).position(|byte| *byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_this_program_are_those_that_the_loader_finds() {
        let program = std::env::current_exe().unwrap();
        let listed = std::process::Command::new("ldd").arg(&program).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let mut expected: Vec<_> = listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).collect();
        let names = |paths: &mut dyn Iterator<Item = &str>| {
            let mut names: Vec<_> = paths.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        expected.retain(|word| word.contains(".so"));
        let found = of(&program).unwrap();
        assert_eq!(names(&mut found.keys().map(String::as_str)), names(&mut expected.into_iter()));
        assert!(!found.is_empty());
    }

    #[test]
    fn a_broken_program_is_refused() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        for len in [0, 5, 63, 64, 200] {
            assert_eq!(parse(&program[..len]), None, "{len}");
        }
        let mut far = program[..4096].to_vec();
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&far), None);
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), "#!/bin/sh\n").unwrap();
        assert!(matches!(of(script.path()), Err(Error::Form(_))));
    }
}
