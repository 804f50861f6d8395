// SPDX-License-Identifier: Apache-2.0
//! One watcher per queue and per output directory, also where a lock does not reach over the network.
//!
//! A lock belongs to an open file description (flock(2), which network file systems carry as byte-range locks) and
//! ends with its holder. Not every file system shows it to another machine, and two volume claims may export one
//! directory, so an owner file with a heartbeat lies beside it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::identity::{Away, Volumes};
use super::probe;
use crate::files::paths::Paths;
use crate::files::store::{self, StoreError};

/// How often [`Locks::beat`] is to be called.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How long another's heartbeat must stand still, on our clock, before we take over.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const LOCK_FILE: &str = ".lock";
const OWNER_FILE: &str = ".owner.json";
const MAX_OWNER_BYTES: usize = 4 << 10;

/// The holder of a directory: content of the owner file beside the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Pod or host and process, for a person.
    pub holder: String,
    /// UID of the `HyperConversion` whose watcher it is; empty on one host. The field has the name that earlier
    /// releases wrote.
    #[serde(default)]
    pub stateful_set: String,
    /// The kernel's boot ID: a lock is seen by everybody who has the same.
    pub boot_id: String,
    /// Random, one per process: distinguishes our file from our predecessor's.
    pub token: String,
    /// Rises with every heartbeat.
    pub beat: u64,
    /// Time of the last heartbeat, on the holder's clock; for a person.
    pub time: Timestamp,
}

/// Why a directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else works on this directory.
    #[error("{} is in use by {holder}", .dir.display())]
    Held { dir: PathBuf, holder: String },
    /// It was ours, and is no longer: nothing in it may be touched any more.
    #[error("{} was taken over by {holder}", .dir.display())]
    Lost { dir: PathBuf, holder: String },
    /// The file system or its server has no locks.
    #[error("cannot lock {}", .path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel doesn't say which boot this is.
    #[error("cannot tell this machine from others by {BOOT_ID}")]
    Machine(#[source] io::Error),
    /// The lock file can't be looked at, or is missing: it is not known whose the directory is.
    #[error("cannot look at {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The lock lies on the mount before, and everything else that is open does, too: only a new start can go on.
    #[error(transparent)]
    Anew(Away),
    #[error("cannot keep the owner file of {}", .dir.display())]
    Owner {
        dir: PathBuf,
        #[source]
        source: StoreError,
    },
}

impl LockError {
    /// Whether only a person can mend it, by ending another daemon or choosing other directories. Every other error may
    /// pass by itself.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Held { .. } => true,
            Self::Lock { source, .. } => probe::is_lasting(source),
            Self::Lost { .. } | Self::Anew(_) | Self::Machine(_) | Self::Look { .. } | Self::Owner { .. } => false,
        }
    }
}

/// Whether we may take a directory whose lock we got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Take,
    /// Another's owner file lies there; look again at that time at the latest.
    Wait {
        until: Duration,
    },
}

/// What was last seen of another's heartbeat, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    token: String,
    beat: u64,
    since: Duration,
}

/// Decides whether `me` may take a directory whose owner file says `found`. Between processes that see each other's
/// locks, the lock has decided already: those of one boot, and pods of one StatefulSet, of which there is never more
/// than one. `watched` carries over from one call to the next; `now` is of our monotonic clock.
pub fn decide(found: Option<&Owner>, me: &Owner, watched: &mut Option<Watched>, now: Duration) -> Decision {
    let Some(owner) = found else { return Decision::Take };
    let is_one_set = !me.stateful_set.is_empty() && owner.stateful_set == me.stateful_set;
    if owner.boot_id == me.boot_id || is_one_set {
        return Decision::Take;
    }
    let since = match watched {
        Some(last) if (&last.token, last.beat) == (&owner.token, owner.beat) => last.since,
        _ => {
            *watched = Some(Watched { token: owner.token.clone(), beat: owner.beat, since: now });
            now
        }
    };
    let until = since + TAKE_OVER_AFTER;
    if now >= until { Decision::Take } else { Decision::Wait { until } }
}

impl Owner {
    /// This process on this machine.
    pub fn this(
        holder: impl Into<String>,
        stateful_set: impl Into<String>,
        token: impl Into<String>,
    ) -> Result<Self, LockError> {
        let boot_id = std::fs::read_to_string(BOOT_ID).map_err(LockError::Machine)?;
        Ok(Self {
            holder: holder.into(),
            stateful_set: stateful_set.into(),
            boot_id: boot_id.trim().to_owned(),
            token: token.into(),
            beat: 0,
            time: Timestamp::now(),
        })
    }
}

/// A process that wants both directories of a queue.
#[derive(Debug)]
pub struct Contender {
    me: Owner,
    queue: Directory,
    output: Directory,
}

/// The result of [`Contender::poll`].
#[derive(Debug)]
pub enum Contest {
    /// Both are ours.
    Won(Locks),
    /// Ask again then: another's heartbeat must stand still until that moment.
    Waiting { contender: Contender, until: Duration, holder: String },
}

/// Both directories of a queue, for as long as this value lives.
#[derive(Debug)]
pub struct Locks {
    me: Owner,
    queue: Directory,
    output: Directory,
}

/// What shows that the directories are ours, without the locks themselves: for whoever may touch them only while they
/// are.
#[derive(Clone, Debug)]
pub struct Ownership {
    token: String,
    directories: [Held; 2],
}

/// A directory and its lock file's device and inode.
#[derive(Clone, Debug)]
struct Held {
    path: PathBuf,
    lock: (u64, u64),
}

/// What a heartbeat found out.
#[derive(Debug)]
pub enum Beat {
    /// Both directories are ours.
    Held,
    /// They are ours, but others can't see that we live.
    Unseen(LockError),
    /// It is not known whose they are. It is tried again until the lease's time is over.
    Doubtful(LockError),
    /// A volume is away. Nobody may touch anything until it is back; then the next beat finds out whose it is.
    Away(Away),
    /// They are another's, must be assumed to be, or were mounted anew: nothing may be touched any more.
    Lost(LockError),
}

/// Shows that we live, for as long as the directories are ours.
#[derive(Debug)]
pub struct Keeper {
    locks: Locks,
    volumes: Volumes,
    /// When the directories were last known to be ours, on the caller's monotonic clock.
    held_at: Duration,
}

impl Keeper {
    /// `now` is of any monotonic clock, always the same one.
    #[must_use]
    pub fn new(locks: Locks, volumes: Volumes, now: Duration) -> Self {
        Self { locks, volumes, held_at: now }
    }

    /// To be called every [`HEARTBEAT_INTERVAL`]; after [`Beat::Lost`] nothing may be touched.
    pub fn beat(&mut self, wall: Timestamp, now: Duration) -> Beat {
        match self.volumes.look() {
            Ok(()) => {}
            Err(away @ Away::Anew(_)) => return Beat::Lost(LockError::Anew(away)),
            Err(away) => {
                self.held_at = now;
                return Beat::Away(away);
            }
        }
        match self.locks.beat(wall) {
            Ok(()) => {
                self.held_at = now;
                Beat::Held
            }
            Err(error @ LockError::Lost { .. }) => match self.volumes.look() {
                Ok(()) => Beat::Lost(error),
                // The volume went between the two looks: the directory under the mount was seen.
                Err(away) => Beat::Away(away),
            },
            // The directories were checked before this: only the heartbeat could not be written.
            Err(error @ LockError::Owner { source: StoreError::Write { .. }, .. }) => {
                self.held_at = now;
                Beat::Unseen(error)
            }
            Err(error) if now.saturating_sub(self.held_at) >= TAKE_OVER_AFTER => Beat::Lost(error),
            Err(error) => Beat::Doubtful(error),
        }
    }

    /// The locks, to be released.
    #[must_use]
    pub fn into_locks(self) -> Locks {
        self.locks
    }
}

/// A directory whose lock we hold.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
    /// Its device and inode.
    place: (u64, u64),
    watched: Option<Watched>,
}

/// Makes sure that no process of this machine works on one of these directories, without taking them. `Held` where one
/// does; a directory that can't be looked at is nobody's.
pub fn check_unused(paths: &Paths) -> Result<(), LockError> {
    for dir in [paths.processing(), paths.daemon()] {
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc_nofollow()).open(dir.join(LOCK_FILE));
        if opened.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))) {
            return Err(held(dir));
        }
    }
    Ok(())
}

fn held(dir: PathBuf) -> LockError {
    let holder = owner(&dir).ok().flatten().map_or_else(|| "another process".to_owned(), |owner| owner.holder);
    LockError::Held { dir, holder }
}

impl Contender {
    /// Locks `.processing/` and `{output}/.daemon/`, which must exist. `Held` where somebody has one of them: at once.
    pub fn new(paths: &Paths, me: Owner) -> Result<Self, LockError> {
        let queue = Directory::lock(paths.processing())?;
        let output = Directory::lock(paths.daemon())?;
        Ok(Self { me, queue, output })
    }

    /// Takes over both directories, or says when to ask again. `now` is of any monotonic clock, always the same one.
    pub fn poll(mut self, now: Duration) -> Result<Contest, LockError> {
        let mut waiting = None;
        // Both at every look, so that both waits run side by side.
        for directory in [&mut self.queue, &mut self.output] {
            let found = directory.owner()?;
            if let Decision::Wait { until } = decide(found.as_ref(), &self.me, &mut directory.watched, now) {
                waiting = Some((until, found.map_or_else(String::new, |owner| owner.holder)));
            }
        }
        if let Some((until, holder)) = waiting {
            // A heartbeat in between starts the wait anew: look at least this often.
            let until = until.min(now + HEARTBEAT_INTERVAL);
            return Ok(Contest::Waiting { contender: self, until, holder });
        }
        let mut locks = Locks { me: self.me, queue: self.queue, output: self.output };
        locks.me.beat += 1;
        locks.write_owner_files()?;
        Ok(Contest::Won(locks))
    }
}

impl Locks {
    /// Shows that we live, and makes sure that both directories are still ours. To be called every
    /// [`HEARTBEAT_INTERVAL`]; after `Lost` nothing may be touched.
    pub fn beat(&mut self, now: Timestamp) -> Result<(), LockError> {
        self.check()?;
        self.me.beat += 1;
        self.me.time = now;
        self.write_owner_files()
    }

    /// What shows that both directories are ours.
    #[must_use]
    pub fn ownership(&self) -> Ownership {
        let held = |directory: &Directory| Held { path: directory.path.clone(), lock: directory.place };
        Ownership { token: self.me.token.clone(), directories: [held(&self.queue), held(&self.output)] }
    }

    /// Makes sure that both directories are still ours.
    pub fn check(&self) -> Result<(), LockError> {
        self.ownership().check()
    }

    /// Gives both directories up, so that whoever comes next need not wait.
    pub fn release(self) -> Result<(), LockError> {
        self.check()?;
        for directory in [&self.output, &self.queue] {
            let removed = store::remove(&directory.path.join(OWNER_FILE));
            removed.map_err(|source| LockError::Owner { dir: directory.path.clone(), source })?;
        }
        Ok(())
    }

    fn write_owner_files(&self) -> Result<(), LockError> {
        for directory in [&self.queue, &self.output] {
            let written = store::replace_json(&directory.path.join(OWNER_FILE), &self.me);
            written.map_err(|source| LockError::Owner { dir: directory.path.clone(), source })?;
        }
        Ok(())
    }
}

impl Directory {
    fn lock(path: PathBuf) -> Result<Self, LockError> {
        let file_path = path.join(LOCK_FILE);
        let cannot = |source| LockError::Lock { path: file_path.clone(), source };
        loop {
            // 0600: whoever can open a file can lock it.
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc_nofollow())
                .open(&file_path)
                .map_err(cannot)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(path)),
                Err(TryLockError::Error(source)) => return Err(cannot(source)),
            }
            // Somebody removed the file between our opening and locking it: the file that we hold no longer lies there.
            let place = lock.metadata().map(|held| (held.dev(), held.ino())).map_err(cannot)?;
            match std::fs::symlink_metadata(&file_path) {
                Ok(there) if (there.dev(), there.ino()) == place => {
                    return Ok(Self { path, _lock: lock, place, watched: None });
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
                _ => {}
            }
        }
    }

    fn owner(&self) -> Result<Option<Owner>, LockError> {
        owner(&self.path).map_err(|source| LockError::Owner { dir: self.path.clone(), source })
    }
}

impl Ownership {
    /// Makes sure that both directories are still ours. `Lost` where another's lock or owner file was seen there; any
    /// other error leaves open whose they are.
    pub fn check(&self) -> Result<(), LockError> {
        for Held { path, lock } in &self.directories {
            let lost = |holder: String| LockError::Lost { dir: path.clone(), holder };
            let file = path.join(LOCK_FILE);
            let there = std::fs::symlink_metadata(&file).map_err(|source| LockError::Look { path: file, source })?;
            if (there.dev(), there.ino()) != *lock {
                return Err(lost("whoever replaced its lock file".to_owned()));
            }
            match owner(path).map_err(|source| LockError::Owner { dir: path.clone(), source })? {
                Some(owner) if owner.token != self.token => return Err(lost(owner.holder)),
                // Removed by a person: the next heartbeat writes it again.
                _ => {}
            }
        }
        Ok(())
    }
}

/// The owner file in `dir`. A malformed one counts as none: we never write one like that.
fn owner(dir: &Path) -> Result<Option<Owner>, StoreError> {
    match store::read_json(dir, OWNER_FILE, MAX_OWNER_BYTES) {
        Err(StoreError::Malformed { .. }) => Ok(None),
        read => read,
    }
}

fn libc_nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

#[cfg(test)]
mod tests;
