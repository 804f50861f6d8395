// SPDX-License-Identifier: Apache-2.0
//! The files of a folder that is uploaded: one machine, with at most one level of folders in it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Refusal;

/// A file of the folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub path: PathBuf,
    /// Its path from the folder.
    pub name: String,
    pub size: u64,
}

/// Lists the files of a folder, in the order of their names. Hidden files and empty ones are left out.
pub(super) fn list(folder: &Path) -> Result<Vec<File>, Refusal> {
    let mut files = Vec::new();
    add(&mut files, folder, "")?;
    if files.is_empty() {
        return Err(format!("{} holds no file with content", folder.display()).into());
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn add(files: &mut Vec<File>, folder: &Path, below: &str) -> Result<(), Refusal> {
    let cannot = |error| format!("cannot read {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let (path, found) = (entry.path(), entry.metadata().map_err(cannot)?);
        let shown = path.display();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(format!("{shown} has a name that is not UTF-8; rename it").into());
        };
        if name.starts_with('.') {
            continue;
        }
        let name = format!("{below}{name}");
        if found.is_dir() && below.is_empty() {
            add(files, &path, &format!("{name}/"))?;
        } else if found.is_dir() {
            return Err(format!("{shown} lies too deep; move its files up, to one level below the folder").into());
        } else if !found.is_file() {
            return Err(format!("{shown} is no regular file; take it out of the folder").into());
        } else if found.len() > 0 {
            files.push(File { path, name, size: found.len() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_level_of_folders_and_regular_files_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("Disks")).unwrap();
        for (name, content) in [("vm.ovf", "x"), ("Disks/a.vhdx", "ab"), (".DS_Store", "x"), ("vm.vmsd", "")] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let names = |files: Vec<File>| files.into_iter().map(|file| (file.name, file.size)).collect::<Vec<_>>();
        assert_eq!(names(list(dir.path()).unwrap()), [("Disks/a.vhdx".to_owned(), 2), ("vm.ovf".to_owned(), 1)]);
        fs::create_dir(dir.path().join("Disks/deep")).unwrap();
        assert!(list(dir.path()).unwrap_err().to_string().contains("too deep"));
        let empty = tempfile::tempdir().unwrap();
        assert!(list(empty.path()).unwrap_err().to_string().contains("no file"));
        std::os::unix::fs::symlink("/etc/passwd", empty.path().join("link")).unwrap();
        assert!(list(empty.path()).unwrap_err().to_string().contains("no regular file"));
    }
}
