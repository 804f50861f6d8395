// SPDX-License-Identifier: Apache-2.0
//! What must hold after every death, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::conversion::Metadata;
use crate::conversion::retention::Retention;
use crate::conversion::status::End;
use crate::ledger::Ledger;

use super::super::executor::{World, converted};
use super::super::script;
use super::{Check, Site, Source, files, mark, names};

impl Site {
    /// Checks that every source lies in one place below the queue, under one name or, where a move was cut short, under
    /// two.
    pub(in crate::queue::engine::simulation) fn check_places(
        &self,
        published: &[Published],
        retention: &Retention,
        is_end: bool,
    ) -> Check {
        let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in files(self.paths.queue(), true) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let content = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let shown = path.strip_prefix(self.paths.queue()).unwrap_or(&path).display().to_string();
            if let Some(mark) = mark(&content) {
                let inode = fs::metadata(&path).map_err(|error| error.to_string())?.ino();
                found.entry(mark.clone()).or_default().insert(inode);
                names.entry(mark).or_default().push(shown);
            } else if !(name == "claim.json" || name.ends_with(".error.json") || name.starts_with('.')) {
                return Err(format!("what is {shown}?"));
            }
        }
        for (mark, source) in &self.sources {
            let places = names.get(mark).map_or(&[][..], Vec::as_slice);
            let inodes = found.get(mark).map_or(0, BTreeSet::len);
            let is_published = published.iter().any(|one| one.marks.contains(mark));
            let may_be_gone = retention.errors_days.is_some()
                || retention.processed_days.is_some() && (is_published || retention.outputs_days.is_some());
            let is_right = match (source.is_removed, is_end) {
                (true, _) => places.is_empty(),
                (false, _) if places.is_empty() => may_be_gone,
                (false, true) => places.len() == 1,
                (false, false) => inodes == 1 && places.len() <= 2,
            };
            if !is_right {
                return Err(format!("{mark} (removed: {}) lies in {places:?}", source.is_removed));
            }
        }
        Ok(())
    }

    /// Checks that every published directory is whole, and returns them.
    pub(in crate::queue::engine::simulation) fn check_published(&self, is_end: bool) -> Result<Vec<Published>, String> {
        let mut published = Vec::new();
        for day in names(self.paths.output()).iter().filter(|name| !name.starts_with('.')) {
            for stem in names(&self.paths.output().join(day)) {
                let dir = self.paths.output().join(day).join(&stem);
                published.push(self.check_one(&dir, is_end).map_err(|why| format!("{day}/{stem}: {why}"))?);
            }
        }
        Ok(published)
    }

    fn check_one(&self, dir: &Path, is_end: bool) -> Result<Published, String> {
        let text = fs::read(dir.join("metadata.json")).map_err(|error| format!("metadata.json: {error}"))?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| format!("metadata.json: {error}"))?;
        let [disk] = metadata.disks.as_slice() else { return Err("not one disk".to_owned()) };
        let expected = BTreeSet::from(["domain.xml".to_owned(), "metadata.json".to_owned(), disk.file.clone()]);
        // Until the end, metadata.json may be in the middle of being replaced.
        let is_odd = |name: &String| !expected.contains(name) && (is_end || !name.starts_with('.'));
        if let Some(other) = names(dir).into_iter().find(is_odd) {
            return Err(format!("{other} lies there"));
        }
        let bytes = fs::read(dir.join(&disk.file)).map_err(|error| format!("{}: {error}", disk.file))?;
        let text = String::from_utf8_lossy(&bytes);
        let marks: Vec<String> = text
            .match_indices("source ")
            .map(|(at, _)| text[at..].split('\n').next().unwrap_or_default().to_owned())
            .collect();
        // The disk holds each of its members, with a content that this member had at some time.
        let mut rest = bytes.as_slice().strip_prefix(b"converted\n").ok_or("its disk has no beginning")?;
        for mark in &marks {
            let source = self.sources.get(mark).ok_or_else(|| format!("made of {mark}"))?;
            // A file that was cut short was longer before: of two contents that fit, the longer one is it.
            let fits = source.contents.iter().filter(|content| rest.starts_with(content));
            let content = fits.max_by_key(|content| content.len());
            let content = content.ok_or_else(|| format!("not what {mark} was"))?;
            // Without the ledger nobody knows of what ended before.
            let is_final = is_end && !self.is_ledger_lost && metadata.source_changed_at.is_none();
            source.check_upload(content, is_final)?;
            rest = &rest[content.len()..];
        }
        let is_wrong = |(descriptor, member): &(String, String)| marks.contains(descriptor) && marks.contains(member);
        if let Some((descriptor, member)) = self.wrong.borrow().iter().find(|pair| is_wrong(pair)) {
            return Err(format!("made of {descriptor} and {member}, which its manifest disproves"));
        }
        if !rest.is_empty() || marks.is_empty() || bytes == converted([]) {
            return Err("its disk is not what was dropped".to_owned());
        }
        let is_superseded = match metadata.superseded_by {
            Some(whole) if !Path::new(&whole).join("metadata.json").exists() => {
                return Err(format!("superseded by {whole}, which is not there"));
            }
            by => by.is_some(),
        };
        Ok(Published { marks, is_superseded })
    }

    /// Checks, once everything has come to rest, that all is in its place and counted.
    pub(in crate::queue::engine::simulation) fn check_end(
        &self,
        world: &World,
        ledger: &mut Ledger,
        script: &script::Script,
    ) -> Check {
        let retention = &script.retention;
        let published = self.check_published(true)?;
        self.check_places(&published, retention, true)?;
        for trash in [self.paths.processing().join(".trash"), self.paths.work().join(".trash")] {
            if !names(&trash).is_empty() {
                return Err(format!("{:?} is left in {}", names(&trash), trash.display()));
            }
        }
        for below in [self.paths.processing(), self.paths.work()] {
            let left: Vec<String> = names(&below).into_iter().filter(|name| !name.starts_with('.')).collect();
            if !left.is_empty() {
                return Err(format!("{left:?} is left in {}", below.display()));
            }
        }
        let rows = ledger.conversions().map_err(|error| error.to_string())?;
        if !rows.is_empty() {
            return Err(format!("{} rows are left", rows.len()));
        }
        self.check_sources(&published, world, script)?;
        let totals = ledger.totals().map_err(|error| error.to_string())?;
        let count = |wanted: End| world.ended.values().filter(|(end, _)| *end == wanted).count() as u64;
        let given_back = world
            .ended
            .values()
            .filter(|(end, failure)| {
                let is_given_back = failure.as_ref().is_some_and(|f| f.class == crate::conversion::Class::GivenBack);
                *end == End::Cancelled && is_given_back
            })
            .count() as u64;
        let counted = [totals.all.succeeded, totals.all.failed, totals.duplicates, totals.cancelled, totals.given_back];
        let cancelled = count(End::Cancelled) - given_back;
        let happened = [count(End::Succeeded), count(End::Failed), count(End::Duplicate), cancelled, given_back];
        if counted != happened {
            return Err(format!(
                "counted {counted:?}, happened {happened:?} (succeeded, failed, duplicate, cancelled, given back)"
            ));
        }
        check_announced(ledger, happened[0], happened[1])?;
        if self.is_ledger_lost {
            return Ok(());
        }
        let superseded = published.iter().filter(|one| one.is_superseded).count() as u64;
        if superseded > totals.superseded || superseded < totals.superseded && retention.outputs_days.is_none() {
            return Err(format!("{superseded} are superseded, {} are counted so", totals.superseded));
        }
        if published.len() as u64 + totals.removed.outputs != happened[0] {
            let removed = totals.removed.outputs;
            return Err(format!("{} published, {removed} removed, {} succeeded", published.len(), happened[0]));
        }
        let limits = [retention.processed_days, retention.errors_days, retention.outputs_days];
        let removed = [totals.removed.processed, totals.removed.errors, totals.removed.outputs];
        if limits.iter().zip(removed).any(|(limit, removed)| limit.is_none() && removed > 0) {
            return Err(format!("removed {removed:?} by {limits:?}"));
        }
        let [succeeded, failed, duplicates, cancelled, _] = happened;
        if removed[0] > succeeded + duplicates || removed[1] > failed + cancelled {
            return Err(format!("removed {removed:?}, happened {happened:?}"));
        }
        Ok(())
    }

    /// Checks that archived sources were published, and sources that nobody touched at most once.
    fn check_sources(&self, published: &[Published], world: &World, script: &script::Script) -> Check {
        let times = |mark: &str| published.iter().flat_map(|one| &one.marks).filter(|of| *of == mark).count();
        let valid = published.iter().filter(|one| !one.is_superseded);
        let valid_times = |mark: &str| valid.clone().flat_map(|one| &one.marks).filter(|of| *of == mark).count();
        for path in files(self.paths.queue(), true) {
            let Some(mark) = fs::read(&path).ok().as_deref().and_then(mark) else { continue };
            let Some(source) = self.sources.get(&mark) else { continue };
            let shown = path.strip_prefix(self.paths.queue()).unwrap_or(&path).to_owned();
            let is_archived = shown.starts_with(".processed");
            let is_failed = shown.starts_with(".errors");
            if valid_times(&mark) > 1 && !source.is_touched {
                return Err(format!("{mark} was published {} times", valid_times(&mark)));
            }
            let has_lost_outputs = script.retention.outputs_days.is_some() || self.is_ledger_lost;
            let has_duplicates = world.ended.values().any(|(end, _)| *end == End::Duplicate);
            if is_archived && times(&mark) == 0 && !has_duplicates && !has_lost_outputs {
                return Err(format!("{mark} is archived and was not published"));
            }
            // A source that a later descriptor names may have been published by itself, without that descriptor.
            let is_half = self.named_late.contains_key(&source.name) && valid_times(&mark) == 1;
            if is_failed && times(&mark) > 0 && !source.is_touched && !is_half {
                return Err(format!("{mark} was published and lies in {}", shown.display()));
            }
            let stays = !script.archive_processed || source.is_extent || source.is_touched;
            if !is_archived && !is_failed && !stays {
                return Err(format!("{mark} is forgotten in {}", shown.display()));
            }
            let is_unpublished = times(&mark) == 0 && !has_duplicates && !has_lost_outputs;
            if !is_archived && !is_failed && !source.is_extent && is_unpublished {
                return Err(format!("{mark} waits for ever in {}", shown.display()));
            }
        }
        Ok(())
    }
}

/// Checks that each success and each failure was announced once.
fn check_announced(ledger: &mut Ledger, succeeded: u64, failed: u64) -> Check {
    let announced = |ledger: &Ledger, kind: &str| ledger.count_notifications(kind).map_err(|error| error.to_string());
    let told = [announced(ledger, "success")?, announced(ledger, "failure")?];
    if told != [succeeded, failed] {
        return Err(format!("announced {told:?}, happened {:?} (succeeded, failed)", [succeeded, failed]));
    }
    Ok(())
}

impl Source {
    /// Checks that a disk that was made of this content is what the writer had written when it closed the file. Where the
    /// engine could not see the writer, a half may be published; it says so in the end (`is_final`: it does not).
    fn check_upload(&self, content: &[u8], is_final: bool) -> Check {
        let Some(upload) = &self.upload else { return Ok(()) };
        let is_whole = upload.is_closed && content == upload.whole;
        // A writer that died with its machine has closed nothing, and nobody knows what it wanted.
        let is_dead = upload.file.is_none() && !upload.is_closed;
        if !is_whole && !is_dead && (upload.is_seen || is_final) {
            let (found, of) = (content.len(), upload.whole.len());
            let closed = if upload.is_closed { "was closed" } else { "is open" };
            return Err(format!("{} {closed}, and was published otherwise ({found} of {of} bytes)", self.name));
        }
        Ok(())
    }
}

/// One published directory.
#[derive(Debug)]
pub(in crate::queue::engine::simulation) struct Published {
    /// Marks of the sources that it was made of.
    marks: Vec<String>,
    /// Whether it says that it is superseded.
    is_superseded: bool,
}
