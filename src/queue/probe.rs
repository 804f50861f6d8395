// SPDX-License-Identifier: Apache-2.0
//! Whether the volumes can do what the queue needs, found out by trying it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::identity;
use crate::files::moves::{self, Method, MoveError};
use crate::files::paths::Paths;
use crate::files::waste;

/// How the names of probe files begin: hidden, so that no scan sees them.
const PREFIX: &str = ".probe-";

/// Age at which a probe's leftovers are removed: a probe takes milliseconds, and clocks of servers differ by minutes.
const LEFT_AFTER: Duration = Duration::from_secs(3600);

/// What a volume must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Make directories and files.
    Create,
    /// Move without replacing, between the directories that things are moved between.
    Move,
    /// Lock a file.
    Lock,
    /// Bring files and directories to disk.
    Sync,
}

impl Ability {
    const fn verb(self) -> &'static str {
        match self {
            Self::Create => "create files",
            Self::Move => "move files without replacing others",
            Self::Lock => "lock files",
            Self::Sync => "sync files",
        }
    }
}

/// What a volume can't do: the condition `StorageReady=False`, or the daemon's refusal to start.
#[derive(Debug, thiserror::Error)]
#[error("cannot {} in {}", .ability.verb(), .dir.display())]
pub struct NotReady {
    pub ability: Ability,
    pub dir: PathBuf,
    #[source]
    pub source: io::Error,
}

impl NotReady {
    /// Whether only room is missing.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.source)
    }

    /// Whether a person must choose other directories, or mend the volume.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        is_lasting(&self.source)
    }

    /// Whether we lack the right to do it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        is_denied(&self.source)
    }
}

/// Whether an error of the system says that we lack the right to write.
#[must_use]
pub fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Whether an error of the system says that only room is missing.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a person must mend this error of the system by another directory or another volume. Not where it may pass by
/// itself (a server that does not answer, rights that are being changed, no room).
#[must_use]
pub fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::CrossesDevices
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::Unsupported
            // Errors that we raise ourselves.
            | io::ErrorKind::Other
    )
}

/// Why two directories can't be a queue and its output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathConflict {
    #[error("queue and output are one directory, {}", .0.display())]
    Same(PathBuf),
    #[error("{} lies in {}: queue and output must lie beside one another", .inner.display(), .outer.display())]
    Inside { inner: PathBuf, outer: PathBuf },
    #[error("{} lies in {}, which is a queue: what is written there, it would take; give this one a directory of its own", .inner.display(), .queue.display())]
    InQueue { inner: PathBuf, queue: PathBuf },
}

/// Makes the directories that a queue always has, and tries everything that will be asked of them. Leaves nothing
/// behind. May be repeated at any time, also while a watcher works.
pub fn probe(paths: &Paths, method: Method) -> Result<(), NotReady> {
    for dir in paths.standing() {
        moves::create_dir(&dir).map_err(|e| not_ready(Ability::Create, &dir, e))?;
        remove_left(&dir);
    }
    for dir in [paths.queue(), paths.output()] {
        let scratch = Scratch::new(dir)?;
        scratch.try_all(method)?;
    }
    // `.processing/` may be a volume of its own: files can't be moved there then.
    let scratch = Scratch::new(paths.queue())?;
    for dir in [paths.processing(), paths.errors(), paths.queue().join(".processed")] {
        scratch.try_file_into(&dir, method)?;
    }
    Scratch::new(&paths.work())?.try_dir_into(paths.output(), method)
}

/// Whether these two may be a queue and its output; both must be canonical ([`fs::canonicalize`]).
pub fn check_paths(queue: &Path, output: &Path) -> Result<(), PathConflict> {
    let inside = |inner: &Path, outer: &Path| PathConflict::Inside { inner: inner.to_owned(), outer: outer.to_owned() };
    if queue == output {
        return Err(PathConflict::Same(queue.to_owned()));
    }
    if queue.starts_with(output) {
        return Err(inside(queue, output));
    }
    if output.starts_with(queue) {
        return Err(inside(output, queue));
    }
    Ok(())
}

/// [`check_paths`] for directories that exist, however they are spelled, and also where one is mounted twice; neither may
/// lie in another queue.
pub fn check_directories(paths: &Paths) -> io::Result<Result<(), PathConflict>> {
    let (queue, output) = (fs::canonicalize(paths.queue())?, fs::canonicalize(paths.output())?);
    let inode = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    if inode(&queue)? == inode(&output)? {
        return Ok(Err(PathConflict::Same(queue)));
    }
    let of_another = [&queue, &output].into_iter().find_map(|inner| {
        let outer = inner.ancestors().skip(1).find(|outer| identity::is_queue(outer))?;
        Some(PathConflict::InQueue { inner: inner.clone(), queue: outer.to_owned() })
    });
    Ok(check_paths(&queue, &output).and_then(|()| of_another.map_or(Ok(()), Err)))
}

/// Removes what killed probes left. Best effort: leftovers are hidden and in nobody's way.
fn remove_left(dir: &Path) {
    let is_left = |entry: &fs::DirEntry| {
        let modified = entry.metadata().and_then(|found| found.modified());
        entry.file_name().to_string_lossy().starts_with(PREFIX)
            && modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_AFTER))
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(is_left) {
        waste::remove(&entry.path()).ok();
    }
}

/// A hidden directory of our own, removed when dropped.
struct Scratch {
    parent: PathBuf,
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new(parent: &Path) -> Result<Self, NotReady> {
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent);
        let dir = made.map_err(|source| NotReady { ability: Ability::Create, dir: parent.to_owned(), source })?;
        Ok(Self { parent: parent.to_owned(), dir })
    }

    fn fail(&self, ability: Ability) -> impl Fn(io::Error) -> NotReady {
        move |source| NotReady { ability, dir: self.parent.clone(), source }
    }

    fn try_all(&self, method: Method) -> Result<(), NotReady> {
        let at = |name: &str| self.dir.path().join(name);
        for (name, text) in [("a", "first"), ("b", "second")] {
            fs::write(at(name), text).map_err(self.fail(Ability::Create))?;
        }
        let file = File::open(at("a")).map_err(self.fail(Ability::Create))?;
        file.sync_all().map_err(self.fail(Ability::Sync))?;
        moves::sync_dir(self.dir.path()).map_err(|e| not_ready(Ability::Sync, &self.parent, e))?;
        file.try_lock().map_err(|e| self.fail(Ability::Lock)(e.into()))?;
        file.unlock().map_err(self.fail(Ability::Lock))?;
        let refused = moves::move_file(&at("a"), &at("b"), method);
        self.must_be_refused(refused)?;
        moves::move_file(&at("a"), &at("c"), method).map_err(|e| not_ready(Ability::Move, &self.parent, e))?;
        for name in ["d", "e", "e/full"] {
            fs::create_dir(at(name)).map_err(self.fail(Ability::Create))?;
        }
        self.must_be_refused(moves::move_dir(&at("d"), &at("e"), method))?;
        moves::move_dir(&at("d"), &at("f"), method).map_err(|e| not_ready(Ability::Move, &self.parent, e))
    }

    /// Moves a file into `dir` and out again.
    fn try_file_into(&self, dir: &Path, method: Method) -> Result<(), NotReady> {
        let (here, there) = (self.dir.path().join("file"), dir.join(self.own_name()));
        fs::write(&here, "").map_err(self.fail(Ability::Create))?;
        let moved = moves::move_file(&here, &there, method).and_then(|()| moves::move_file(&there, &here, method));
        fs::remove_file(&there).ok();
        moved.map_err(|e| not_ready(Ability::Move, dir, e))
    }

    /// Moves a directory into `dir` and out again.
    fn try_dir_into(&self, dir: &Path, method: Method) -> Result<(), NotReady> {
        let (here, there) = (self.dir.path().join("dir"), dir.join(self.own_name()));
        fs::create_dir(&here).map_err(self.fail(Ability::Create))?;
        let moved = moves::move_dir(&here, &there, method).and_then(|()| moves::move_dir(&there, &here, method));
        fs::remove_dir(&there).ok();
        moved.map_err(|e| not_ready(Ability::Move, dir, e))
    }

    fn own_name(&self) -> PathBuf {
        self.dir.path().file_name().map(PathBuf::from).unwrap_or_default()
    }

    fn must_be_refused(&self, moved: Result<(), MoveError>) -> Result<(), NotReady> {
        match moved {
            Err(MoveError::Taken(_)) => Ok(()),
            Err(e) => Err(not_ready(Ability::Move, &self.parent, e)),
            Ok(()) => Err(self.fail(Ability::Move)(io::Error::other("it replaced what was there"))),
        }
    }
}

fn not_ready(ability: Ability, dir: &Path, error: MoveError) -> NotReady {
    let source = match error {
        MoveError::Unsupported { source, .. } | MoveError::Move { source, .. } | MoveError::Make { source, .. } => {
            source
        }
        MoveError::Sync { source, .. } => return NotReady { ability: Ability::Sync, dir: dir.to_owned(), source },
        taken_or_gone => io::Error::other(taken_or_gone),
    };
    NotReady { ability, dir: dir.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_sound_volume_is_ready_and_nothing_is_left_on_it() {
        let dir = tempdir().unwrap();
        let paths = Paths::new(dir.path().join("q"), dir.path().join("o"));
        for method in [Method::NoReplace, Method::Fallback] {
            probe(&paths, method).unwrap();
            for path in paths.standing() {
                let left: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
                assert!(left.iter().all(|p| paths.standing().contains(p)), "{left:?}");
            }
        }
    }

    #[test]
    fn what_a_killed_probe_left_goes_and_one_under_way_is_left_alone() {
        let dir = tempdir().unwrap();
        let paths = Paths::new(dir.path().join("q"), dir.path().join("o"));
        let (old, new) = (paths.queue().join(".probe-old"), paths.queue().join(".probe-new"));
        for path in [&old, &new] {
            fs::create_dir_all(path.join("e/full")).unwrap();
        }
        let hours_ago = std::time::SystemTime::now() - LEFT_AFTER * 2;
        File::open(&old).unwrap().set_modified(hours_ago).unwrap();
        probe(&paths, Method::NoReplace).unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("q"), "a file").unwrap();
        let paths = Paths::new(dir.path().join("q"), dir.path().join("o"));
        let not_ready = probe(&paths, Method::NoReplace).unwrap_err();
        assert_eq!((not_ready.ability, not_ready.dir.as_path()), (Ability::Create, paths.queue()));
        assert!(!not_ready.is_no_space() && !not_ready.is_denied());
    }

    #[test]
    fn queue_and_output_lie_beside_one_another_or_apart() {
        for (queue, output, is_ok) in [
            ("/data/queue", "/data/output", true),
            ("/data/q", "/data/q2", true),
            ("/a", "/b", true),
            ("/data", "/data", false),
            ("/data", "/data/output", false),
            ("/data/output/in", "/data/output", false),
        ] {
            assert_eq!(check_paths(Path::new(queue), Path::new(output)).is_ok(), is_ok, "{queue} {output}");
        }
    }

    #[test]
    fn another_spelling_hides_no_conflict() {
        let dir = tempdir().unwrap();
        let queue = dir.path().join("q");
        fs::create_dir_all(queue.join("out")).unwrap();
        symlink(queue.join("out"), dir.path().join("link")).unwrap();
        symlink(&queue, dir.path().join("again")).unwrap();
        for output in ["link", "again", "q/../q", "q/out/.."] {
            let paths = Paths::new(&queue, dir.path().join(output));
            assert!(check_directories(&paths).unwrap().is_err(), "{output}");
        }
        fs::create_dir(dir.path().join("o")).unwrap();
        assert_eq!(check_directories(&Paths::new(&queue, dir.path().join("o"))).unwrap(), Ok(()));
    }
}
