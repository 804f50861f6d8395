// SPDX-License-Identifier: Apache-2.0
//! Files that were converted by themselves before the OVF came that names them: where they are, and what becomes of
//! their outputs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::conversion::contract::METADATA_FILE;
use crate::conversion::{Alone, Claim, ConversionId, Member, Metadata, Stamp, chain};
use crate::disk::descriptor::StatedSize;
use crate::executor::Executor;
use crate::files::fingerprint;
use crate::files::paths::Paths;
use crate::files::store::{self, StoreError};
use crate::ledger::{self, AloneSource, ConversionRow};
use crate::queue::companions::{Elsewhere, TakenBack};
use crate::queue::failpoint::{self, Step};
use crate::queue::scan::{self, Kind, Name};
use crate::queue::{error_file, publish};

use super::{Conversion, Engine, Result};

/// How long a source is known by its name and by the size that a descriptor states. Longer than the upload of a machine
/// takes, but not for ever, because disks that aren't compressed have the same size in many machines.
const KNOWN_BY_SIZE: SignedDuration = SignedDuration::from_hours(7 * 24);

impl<E: Executor> Engine<E> {
    pub(super) fn group(&mut self, now: Duration) {
        let search = Search {
            paths: &self.settings.paths,
            ledger: &self.ledger,
            since: self.wall() - KNOWN_BY_SIZE,
            recent: self.wall() - SignedDuration::try_from(self.settings.companion_timeout).unwrap_or(KNOWN_BY_SIZE),
        };
        let (conversions, awaited) = (&self.conversions, RefCell::new(BTreeSet::new()));
        let disproved = self.intake.disproved().clone();
        let elsewhere = |primary: &Name, name: &str, stated: Option<StatedSize>| {
            let is_disproved =
                |stamp: Stamp| disproved.get(&stamp).is_some_and(|primaries| primaries.contains(primary));
            let is_it = |c: &&Conversion| is_alone(c, name, stated) && !is_disproved(c.row.claim.members[0].stamp());
            if let Some(conversion) = conversions.values().find(is_it) {
                awaited.borrow_mut().insert(conversion.row.id.clone());
                let status = &conversion.row.status;
                let is_ending = status.converted.is_some() || status.end.is_some();
                return Some(if is_ending { Elsewhere::Ending } else { Elsewhere::Alone(conversion.row.id.clone()) });
            }
            search.look(name, stated, is_disproved)
        };
        self.intake.group(elsewhere, now);
        self.awaited.append(&mut awaited.into_inner());
    }

    /// Records that a member of the artifact is another machine's, as its manifest says: the primary waits for the right
    /// one.
    pub(super) fn disprove(&mut self, row: &ConversionRow) {
        let Some(failure) = &row.status.failure else { return };
        let is_it = |member: &&Member| member.alone.is_some() && Some(&member.name) == failure.member.as_ref();
        let Some(member) = row.claim.members.iter().find(is_it) else { return };
        if self.intake.disprove(&row.claim.primary, member.stamp()) {
            tracing::warn!(
                conversion = %row.id,
                "{}; it goes back, and {} waits for the right one",
                failure.message,
                row.claim.primary
            );
        }
    }

    /// What the claim says of a member that was recalled from a conversion of its own: like one that was taken back from
    /// where it lies, it is known by name and size alone.
    pub(super) fn mark_recalled(&mut self, members: &mut [Member]) {
        if members.len() < 2 {
            return;
        }
        for member in members.iter_mut().filter(|member| member.alone.is_none()) {
            if let Some(id) = self.recalled.remove(&member.stamp()) {
                let alone = Alone { id, location: member.name.clone(), output_path: None };
                member.alone = Some(Box::new(alone));
            }
        }
    }

    /// An ended conversion of what was only the beginning of this file. Nobody could see that its upload was cut.
    pub(super) fn beginning(&self, claim: &Claim) -> Option<Alone> {
        let ([only], None) = (claim.members.as_slice(), &claim.folder) else { return None };
        let (name, since) = (only.name.clone(), self.wall() - KNOWN_BY_SIZE);
        let found = self.ledger.wait(move |ledger| ledger.alone(&name, since, since));
        let found =
            found.inspect_err(|error| tracing::warn!(error = %chain(error), "cannot look for {}", only.name)).ok()?;
        let is_known = |source: &AloneSource| {
            let mut beginnings = self.conversions.values().filter_map(|other| other.row.claim.beginning.as_deref());
            beginnings.any(|beginning| beginning.id == source.id)
        };
        let mut before = found
            .into_iter()
            .filter(|source| source.output_path.is_some() && !source.is_duplicate && !is_known(source));
        let paths = &self.settings.paths;
        let source = before
            .find(|source| source.size_bytes < only.size_bytes && is_beginning(source, paths.queue(), &only.name))?;
        let location = source.path.strip_prefix(paths.queue()).ok()?.to_str()?.to_owned();
        tracing::warn!("{}: what was converted before, {location}, was only its beginning", only.name);
        Some(Alone { id: source.id, location, output_path: source.output_path })
    }

    /// Removes the reports of members that lay in `.errors/` by themselves.
    pub(super) fn remove_reports_of_taken_back(&self, claim: &Claim) -> Result<()> {
        let paths = &self.settings.paths;
        for alone in claim.members.iter().filter_map(|member| member.alone.as_ref()) {
            let path = paths.queue().join(&alone.location);
            if path.starts_with(paths.errors()) {
                error_file::remove(&path, &paths.errors())?;
            }
        }
        Ok(())
    }

    /// Records in the outputs of single members that the whole artifact supersedes them. Nothing is removed.
    pub(super) async fn mark_superseded(&mut self, row: &ConversionRow) -> Result<()> {
        let Some(whole) = &row.output_path else { return Ok(()) };
        for alone in row.claim.superseded() {
            let Some(output) = &alone.output_path else { continue };
            match mark(Path::new(output), &alone.id, whole) {
                Ok(true) => tracing::info!(conversion = %row.id, "{output} is superseded by {whole}"),
                Ok(false) => {}
                Err(StoreError::Write { path, source }) if is_lasting(&source) => {
                    tracing::warn!(path = %path.display(), error = %source, "cannot mark {output} as superseded");
                }
                Err(error) => return Err(error.into()),
            }
            self.executor.supersede(&alone.id, whole).await?;
            failpoint::reach(&self.settings.paths, Step::Superseded);
        }
        Ok(())
    }
}

/// Whether the source, if it still lies unchanged where it was left, is the beginning of a file of the queue directory.
fn is_beginning(source: &AloneSource, queue: &Path, name: &str) -> bool {
    let open = |directory: &Path, name: &str| store::open_untrusted(store::open_dir(directory)?, directory, name);
    let left = || {
        let (directory, left) = (source.path.parent()?, source.path.file_name()?.to_str()?);
        let found = scan::look(directory, left).ok().flatten()?;
        let is_it = (found.size, found.mtime_ns) == (source.size_bytes, source.mtime_ns);
        if is_it { open(directory, left).ok() } else { None }
    };
    // What can't be read is nobody's beginning: its own conversion says what is wrong.
    let (Some(shorter), Ok(longer)) = (left(), open(queue, name)) else { return false };
    fingerprint::begins(&shorter, &longer).unwrap_or(false)
}

/// Whether the conversion has this file as its only member.
fn is_alone(conversion: &Conversion, name: &str, stated: Option<StatedSize>) -> bool {
    matches!(conversion.row.claim.members.as_slice(), [only] if only.name == name && fits(only.size_bytes, stated))
}

fn fits(size: u64, stated: Option<StatedSize>) -> bool {
    match stated {
        None => true,
        Some(StatedSize::Exactly(bytes)) => size == bytes,
        Some(StatedSize::AtLeast(bytes)) => size >= bytes,
    }
}

/// Looks for ended conversions of single files.
struct Search<'a> {
    paths: &'a Paths,
    ledger: &'a ledger::Writer,
    since: Timestamp,
    recent: Timestamp,
}

impl Search<'_> {
    fn look(&self, name: &str, stated: Option<StatedSize>, is_disproved: impl Fn(Stamp) -> bool) -> Option<Elsewhere> {
        let (asked, since, recent) = (name.to_owned(), self.since, self.recent);
        let found = self.ledger.wait(move |ledger| ledger.alone(&asked, since, recent));
        let found = found.inspect_err(|error| tracing::warn!(error = %chain(error), "cannot look for {name}")).ok()?;
        let is_proved = |source: &AloneSource| stated.is_some_and(|stated| source.size_bytes == stated.bytes());
        let (disproved, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|source| is_disproved(source.stamp()));
        let (fitting, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .filter(|source| source.is_recent || is_proved(source))
            .partition(|source| fits(source.size_bytes, stated));
        let Some(last) = fitting.first() else {
            let other = others.first().map(|source| Elsewhere::Another(source.size_bytes));
            return if disproved.is_empty() { other } else { Some(Elsewhere::Disproved) };
        };
        let mut there: Vec<(&AloneSource, TakenBack)> =
            fitting.iter().filter_map(|source| Some((source, self.taken_back(name, source)?))).collect();
        // A duplicate has the content of the source before it.
        if there.iter().filter(|(source, _)| !source.is_duplicate).count() <= 1 {
            there.truncate(1);
        }
        match there.as_slice() {
            [] => Some(Elsewhere::Lost(describe_gone(name, last))),
            [(_, only)] => Some(Elsewhere::Ended(Box::new(only.clone()))),
            [(_, one), (_, other), ..] => Some(Elsewhere::Lost(format!(
                "{name} was converted by itself more than once, and {} and {} fit equally: move the one that belongs to it \
                 into the queue directory as {name}",
                one.alone.location, other.alone.location
            ))),
        }
    }

    /// The source, if it still lies unchanged where it was left.
    fn taken_back(&self, name: &str, source: &AloneSource) -> Option<TakenBack> {
        let location = source.path.strip_prefix(self.paths.queue()).ok()?.to_str()?.to_owned();
        let (directory, file) = (source.path.parent()?, source.path.file_name()?.to_str()?);
        let found = scan::look(directory, file).ok().flatten()?;
        let is_it = found.kind == Kind::Regular && (found.size, found.mtime_ns) == (source.size_bytes, source.mtime_ns);
        let alone = Alone { id: source.id.clone(), location, output_path: source.output_path.clone() };
        is_it.then(|| TakenBack { entry: scan::Entry { name: name.into(), ..found }, alone })
    }
}

fn describe_gone(name: &str, source: &AloneSource) -> String {
    let output = source.output_path.as_ref().map(|output| format!(", into {output}")).unwrap_or_default();
    format!(
        "{name} arrived first and was already converted by itself{output}, and its source {} is gone or was changed: copy \
         {name} into the queue directory again",
        source.path.display()
    )
}

/// Writes into the metadata.json of the directory `output`, which conversion `id` published, that `whole` supersedes
/// it. `false` where the output is gone, or its metadata.json has that already.
fn mark(output: &Path, id: &ConversionId, whole: &str) -> std::result::Result<bool, StoreError> {
    let Some(metadata) = publish::read_published(output, id) else { return Ok(false) };
    if metadata.superseded_by.as_deref() == Some(whole) {
        return Ok(false);
    }
    let marked = Metadata { superseded_by: Some(whole.to_owned()), ..metadata };
    store::write_json(&output.join(METADATA_FILE), &marked)?;
    Ok(true)
}

/// Whether writing there will fail the next time, too.
fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound
    )
}
