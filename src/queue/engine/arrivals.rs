// SPDX-License-Identifier: Apache-2.0
//! Whether files that stand still have arrived whole: asks the witnesses, and logs once what each file waits for.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::conversion::{Stamp, Witness};
use crate::disk::descriptor::looks_like_extent;
use crate::disk::ending::{Ending, ending};
use crate::files::store;
use crate::queue::arrival::{Arrival, Observed, Patience, restless_for, settle};
use crate::queue::open_files::OpenFiles;
use crate::queue::scan::{self, Entry, Name, Role};
use crate::queue::writers::{Writer, Writers};

use super::world::World;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Arrivals {
    directory: PathBuf,
    writers: Writers,
    patience: Patience,
    look_interval: Duration,
    files: HashMap<Name, Standing>,
    /// How often each of these changed while it was converted, since one of its name ended otherwise.
    restless: HashMap<Name, u32>,
    /// What processes had open when it was last looked at; absent in a simulation, whose writers are no processes.
    open: Option<(Duration, OpenFiles)>,
}

/// How many restless files are remembered: far more than are ever converted at once.
const MAX_RESTLESS: usize = 100_000;

/// How long a look at all processes is believed.
const OPEN_FOR: Duration = Duration::from_millis(500);

/// A file that stands still.
#[derive(Debug)]
struct Standing {
    stamp: Stamp,
    /// What its format says; absent until it is asked for.
    ending: Option<Ending>,
    last: Option<Arrival>,
}

impl Arrivals {
    pub(super) fn new(
        directory: PathBuf,
        writers: Writers,
        (patience, look_interval): (Patience, Duration),
        world: &World,
    ) -> Self {
        let open = world.has_processes().then(Default::default);
        Self { directory, writers, patience, look_interval, files: HashMap::new(), restless: HashMap::new(), open }
    }

    pub(super) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// A conversion of these was given back, because one of them changed.
    pub(super) fn gave_back<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        if self.restless.len() > MAX_RESTLESS {
            self.restless.clear();
        }
        for name in names {
            *self.restless.entry(name.into()).or_default() += 1;
        }
    }

    /// A conversion of these has ended.
    pub(super) fn ended<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        for name in names {
            self.restless.remove(name);
        }
    }

    /// How long a file must be quiet where neither its writer nor its format decides.
    pub(super) fn quiet_period(&self) -> Duration {
        self.patience.quiet_period
    }

    /// What is known of the writer of a file, or of whoever renamed a folder to this name.
    pub(super) fn writer(&self, name: &str) -> Writer {
        self.writers.of(name)
    }

    /// Decides at the moment `now` about a file that has not changed for `quiet`; `account` is what a program keeps beside
    /// it while it downloads it.
    pub(super) fn look(&mut self, entry: &Entry, account: Option<&Name>, quiet: Duration, now: Duration) -> Arrival {
        let writer = self.writers.of(&entry.name);
        if self.files.get(&entry.name).is_none_or(|standing| standing.stamp != entry.stamp()) {
            let standing = Standing { stamp: entry.stamp(), ending: None, last: None };
            self.files.insert(entry.name.clone(), standing);
        }
        let standing = self.files.get_mut(&entry.name).expect("inserted above");
        // Only images have an end that their format knows. A writer that closes a file may open it again for the next piece,
        // and one that renames it may have been interrupted: there are halves of which no conversion says anything.
        let is_asked = writer != Writer::Open && scan::role(entry) == Role::Candidate;
        let asked = (is_asked && !self.patience.quiet_period.is_zero())
            .then(|| *standing.ending.get_or_insert_with(|| look_at_end(&self.directory, entry)));
        let times = self.restless.get(&entry.name).copied().unwrap_or_default();
        let observed = Observed {
            writer,
            is_download: account.is_some(),
            ending: asked.unwrap_or(Ending::Untold),
            quiet,
            restless: restless_for(times, self.look_interval, self.patience.rest),
        };
        let mut arrival = settle(observed, self.patience);
        if matches!(arrival, Arrival::Complete(_))
            && !matches!(standing.last, Some(Arrival::Complete(_)))
            && is_open(&mut self.open, entry, now)
        {
            arrival = Arrival::Open;
        }
        let last = standing.last.replace(arrival);
        if last.is_none_or(|last| std::mem::discriminant(&last) != std::mem::discriminant(&arrival)) {
            report(entry, account, asked, arrival);
        }
        arrival
    }

    /// Forgets a file that changes or is gone.
    pub(super) fn forget(&mut self, name: &str) {
        self.files.remove(name);
    }

    /// Whether the file stands still and is not complete.
    pub(super) fn is_waiting(&self, name: &str) -> bool {
        self.files.get(name).is_some_and(Standing::is_waiting)
    }

    /// How many files stand still and are not complete.
    pub(super) fn waiting(&self) -> usize {
        self.files.values().filter(|standing| standing.is_waiting()).count()
    }

    /// The witness by which the file is complete.
    pub(super) fn witness(&self, name: &str) -> Option<Witness> {
        match self.files.get(name)?.last? {
            Arrival::Complete(witness) => Some(witness),
            Arrival::Download | Arrival::Open | Arrival::Short(_) | Arrival::Quiet(_) | Arrival::Restless(_) => None,
        }
    }
}

impl Standing {
    fn is_waiting(&self) -> bool {
        self.last.is_some_and(|last| !matches!(last, Arrival::Complete(_)))
    }
}

/// Whether a process has the file open for writing.
fn is_open(open: &mut Option<(Duration, OpenFiles)>, entry: &Entry, now: Duration) -> bool {
    let Some((at, files)) = open else { return false };
    if *at == Duration::ZERO || now > *at + OPEN_FOR {
        (*at, *files) = (now, OpenFiles::look());
    }
    files.has(entry.device, entry.inode)
}

/// Asks the format. A file that can't be read gives no answer: the worker will report why.
fn look_at_end(directory: &std::path::Path, entry: &Entry) -> Ending {
    let (below, name) = entry.name.rsplit_once('/').unwrap_or(("", &entry.name));
    let opened = store::open_dir_below(directory, below)
        .and_then(|dir| store::open_untrusted(dir, &directory.join(below), name));
    opened.map_or(Ending::Untold, |file| ending(file, name))
}

fn report(entry: &Entry, account: Option<&Name>, ending: Option<Ending>, arrival: Arrival) {
    let name = &entry.name;
    let is_disk = scan::role(entry) == Role::Candidate;
    match arrival {
        Arrival::Complete(witness) => {
            tracing::debug!(file = %name, %witness, "complete");
            if is_disk {
                tracing::info!("File stable: {name} ({})", scan::size_text(entry.size));
            }
        }
        Arrival::Download if is_disk => tracing::info!(
            "{name} stands still, and {} says that its download is not whole: it is taken once that file is gone",
            account.map_or("a file beside it", |account| account)
        ),
        Arrival::Open if is_disk => {
            tracing::info!("{name} stands still, and its writer has it open: it is taken once the writer closes it");
        }
        // It waits for its descriptor, which is told where groups are made.
        Arrival::Short(_) | Arrival::Quiet(_) if looks_like_extent(name) => {}
        Arrival::Short(rest) if is_disk && ending == Some(Ending::Blank) => tracing::info!(
            "{name} stands still, and nothing is in it yet: it is taken as it is after {} s without a change",
            rest.as_secs()
        ),
        Arrival::Short(rest) if is_disk => tracing::info!(
            "{name} stands still, and its end is missing: it is taken as it is after {} s without a change",
            rest.as_secs()
        ),
        Arrival::Quiet(rest) if is_disk => tracing::info!(
            "{name} stands still, and nobody can see its writer: it is taken after {} s without a change",
            rest.as_secs().max(1)
        ),
        Arrival::Restless(rest) if is_disk => tracing::info!(
            "{name} stands still, and changed again and again while it was converted: it is taken after {} s without a \
             change",
            rest.as_secs().max(1)
        ),
        Arrival::Download | Arrival::Open | Arrival::Short(_) | Arrival::Quiet(_) | Arrival::Restless(_) => {
            tracing::debug!(file = %name, ?arrival, "not complete");
        }
    }
}
