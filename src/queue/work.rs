// SPDX-License-Identifier: Apache-2.0
//! The work directories of a conversion: made before an attempt, cleared after it.
//!
//! ```text
//!  .work/<id>/<n>/<folder>/   an attempt that ended with a whole copy
//!            │ clear: one rename, then the rest is removed
//!  .work/<id>/kept/
//!            │ prepare: one rename, before the attempt is staged
//!  .work/<id>/<m>/kept/       the next attempt goes on with it, if it believes its markers
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::conversion::contract::KEPT_DIR;
use crate::conversion::{Attempt, ConversionId};
use crate::files::paths::Paths;
use crate::files::{volume, waste};

/// Why a work directory is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error("cannot look into {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove {}", .path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make {}", .path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes the work directory of an attempt, with what an earlier one left to go on with. No worker of the conversion may
/// be running.
pub fn prepare(paths: &Paths, id: &ConversionId, attempt: Attempt) -> Result<(), WorkError> {
    clear(paths, id)?;
    let work = paths.work_dir(id, attempt);
    // Not synced: if a power cut takes it, nothing was published and the attempt is made again.
    volume::create_dir_all(&work, 0o755).map_err(|source| WorkError::Make { path: work.clone(), source })?;
    let kept = paths.work_of(id).join(KEPT_DIR);
    match volume::rename(&kept, &work.join(KEPT_DIR)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(WorkError::Make { path: work, source }),
        _ => Ok(()),
    }
}

/// Removes what earlier attempts left, except one whole copy. The directory of all attempts stays: when a pod is
/// starting while its attempt ends, the kubelet makes whatever directory is missing, and root owns it.
pub fn clear(paths: &Paths, id: &ConversionId) -> Result<(), WorkError> {
    let all = paths.work_of(id);
    let kept = all.join(KEPT_DIR);
    let remove =
        |path: &Path| waste::remove(path).map_err(|source| WorkError::Remove { path: path.to_owned(), source });
    if !waste::holds_copy(&kept) {
        remove(&kept)?;
        let copy = whole_copy(&all);
        // A worker may have taken our right to move the copy. Then it is waste, like the rest.
        if copy.is_none_or(|copy| volume::rename(&copy, &kept).is_err()) {
            return waste::empty(&all).map_err(|source| WorkError::Remove { path: all, source });
        }
    }
    let others = entries(&all).map_err(|source| WorkError::Look { path: all, source })?;
    others.iter().filter(|path| **path != kept).try_for_each(|path| remove(path))
}

/// Removes every work directory of the conversion: waste, once it has ended.
pub fn remove(paths: &Paths, id: &ConversionId) -> Result<(), WorkError> {
    let path = paths.work_of(id);
    waste::remove(&path).map_err(|source| WorkError::Remove { path, source })
}

/// A folder with a whole copy, of the latest attempt that left one. A folder that a worker has closed to us holds none.
fn whole_copy(all: &Path) -> Option<PathBuf> {
    let mut attempts = entries(all).unwrap_or_default();
    attempts.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let mut folders =
        attempts.iter().rev().filter(|path| !path.is_symlink()).flat_map(|path| entries(path).unwrap_or_default());
    folders.find(|folder| !folder.is_symlink() && waste::holds_copy(folder))
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::tempdir;

    use super::*;
    use crate::conversion::contract::COPIED_FILE;

    /// What attempt `n` left, with or without a whole copy.
    fn left(paths: &Paths, id: &ConversionId, n: u32, folder: &str, is_whole: bool) -> PathBuf {
        let folder = paths.work_dir(id, Attempt(n)).join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("vm.raw"), format!("copied by {n}")).unwrap();
        fs::write(folder.with_file_name("failure.json"), "{}").unwrap();
        if is_whole {
            fs::write(folder.join(COPIED_FILE), "{}").unwrap();
        }
        folder
    }

    /// Every file below `dir`, by its path and text.
    fn tree(dir: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for path in entries(dir).unwrap() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                found.extend(tree(&path).into_iter().map(|(below, text)| (format!("{name}/{below}"), text)));
            } else {
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
        found.sort();
        found
    }

    fn copy(at: &str, n: u32) -> Vec<(String, String)> {
        vec![(format!("{at}/{COPIED_FILE}"), "{}".to_owned()), (format!("{at}/vm.raw"), format!("copied by {n}"))]
    }

    #[test]
    fn the_next_attempt_gets_the_whole_copy_of_the_latest_and_nothing_else() {
        let dir = tempdir().unwrap();
        let (paths, id) = (Paths::new(dir.path(), dir.path()), "vm-0000002a".parse().unwrap());
        for (n, is_whole) in [(2, true), (9, true), (10, true), (11, false)] {
            left(&paths, &id, n, "pod", is_whole);
        }
        clear(&paths, &id).unwrap();
        assert_eq!(tree(&paths.work_of(&id)), copy("kept", 10));
        clear(&paths, &id).unwrap();
        prepare(&paths, &id, Attempt(12)).unwrap();
        assert_eq!(tree(&paths.work_of(&id)), copy("12/kept", 10));
        // Died before the attempt was staged, or before its worker took the copy over.
        prepare(&paths, &id, Attempt(12)).unwrap();
        assert_eq!(tree(&paths.work_of(&id)), copy("12/kept", 10));
        prepare(&paths, &id, Attempt(13)).unwrap();
        assert_eq!(tree(&paths.work_of(&id)), copy("13/kept", 10));
        remove(&paths, &id).unwrap();
        remove(&paths, &id).unwrap();
        assert!(!paths.work_of(&id).exists());
    }

    #[test]
    fn between_attempts_the_directory_of_all_of_them_stays() {
        let dir = tempdir().unwrap();
        let (paths, id) = (Paths::new(dir.path(), dir.path()), "vm-0000002a".parse().unwrap());
        clear(&paths, &id).unwrap();
        left(&paths, &id, 1, "worker", false);
        clear(&paths, &id).unwrap();
        assert_eq!(entries(&paths.work_of(&id)).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn nothing_outside_is_moved_or_removed_whatever_a_worker_planted() {
        let dir = tempdir().unwrap();
        let (paths, id) = (Paths::new(dir.path(), dir.path()), "vm-0000002a".parse().unwrap());
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join(COPIED_FILE), "kept").unwrap();
        let work = paths.work_dir(&id, Attempt(1));
        fs::create_dir_all(&work).unwrap();
        symlink(&canary, work.join("pod")).unwrap();
        symlink(&canary, work.join(KEPT_DIR)).unwrap();
        prepare(&paths, &id, Attempt(2)).unwrap();
        assert_eq!(tree(&paths.work_of(&id)), vec![]);
        assert_eq!(fs::read_to_string(canary.join(COPIED_FILE)).unwrap(), "kept");
    }
}
