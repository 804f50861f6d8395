// SPDX-License-Identifier: Apache-2.0
//! Claiming artifacts of the directory: compared with earlier conversions, recorded, claimed.

use jiff::Timestamp;
use std::collections::HashSet;

use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Observation, advance};
use crate::conversion::{CONTRACT_VERSION, Claim, ConversionId, ConversionStatus, Failure, Member, Reason, chain};
use crate::executor::{Executor, Submission};
use crate::files::paths::Paths;
use crate::ledger::{Change, ClaimState, Content, ConversionRow, NewConversion};
use crate::queue::claim::{self, ClaimError, Taken};
use crate::queue::failpoint::{self, Step};
use crate::queue::scan::{self, Entry};

use super::duplicates::Verdict;
use super::intake::Artifact;
use super::{CLAIMED_AHEAD, Conversion, Engine, PAUSE, Result};

impl<E: Executor> Engine<E> {
    /// Recalls members that were claimed alone, for a descriptor that names them and came later.
    pub(super) async fn recall(&mut self) {
        for recall in self.intake.recalls() {
            let message = format!("{} names {} and came after it", recall.primary, recall.member);
            tracing::info!(conversion = %recall.id, "{message}; the conversion is given back");
            if let Some(conversion) = self.conversions.get(&recall.id) {
                let stamps = conversion.row.claim.members.iter().map(|member| (member.stamp(), recall.id.clone()));
                self.recalled.extend(stamps);
            }
            if let Err(error) = self.executor.cancel(&recall.id, Failure::new(Reason::Recalled, message)).await {
                tracing::warn!(conversion = %recall.id, error = %chain(&error), "cannot recall");
            }
        }
    }

    /// Claims what is ready while there is room for it.
    pub(super) async fn claim_ready(&mut self) {
        if self.now() < self.claim_pause {
            return;
        }
        if self.intake.ready().len() == 0 {
            return self.claims_go_on();
        }
        let requests: HashSet<String> = self.executor.requests().into_iter().map(|request| request.path).collect();
        let mut room = self.room();
        let mut at = 0;
        while room > 0 {
            let Some(primary) = self.intake.primary_at(at) else { return };
            // Requested files are claimed by their request, not by the scan.
            let is_requested = |name: &str| requests.contains(name);
            let folder = scan::folder_of(primary);
            if !self.may_take(primary) || is_requested(primary) || folder.is_some_and(is_requested) {
                at += 1;
                continue;
            }
            let Some(artifact) = self.intake.ready_at(at) else { return };
            if self.is_being_claimed(&artifact) {
                at += 1;
                continue;
            }
            match self.claim_one(&artifact).await {
                // The artifact is no longer among those that are ready.
                Ok(true) => room -= 1,
                Ok(false) => at += 1,
                Err(error) if error.is_full_queue() => {
                    self.hold_full_queue(&error);
                    self.claim_pause = self.now() + PAUSE;
                    return;
                }
                Err(error) => {
                    self.hold_claims(&artifact.primary, &error);
                    self.claim_pause = self.now() + PAUSE;
                    return;
                }
            }
        }
    }

    /// How many more may be claimed. Conversions that wait for a retry, or for room on the output, take up no place:
    /// what fits goes first.
    pub(super) fn room(&self) -> usize {
        let takes_place = |c: &&Conversion| {
            // A conversion that has ended but whose files can't be moved to their place keeps nobody from starting.
            let is_over = matches!(c.row.state, ClaimState::Terminal { .. } | ClaimState::Returning { .. });
            !is_over && c.has_room && !matches!(c.row.state, ClaimState::Parked { .. })
        };
        let unfinished = self.conversions.values().filter(takes_place).count();
        (self.settings.limit + CLAIMED_AHEAD).saturating_sub(unfinished)
    }

    fn may_take(&self, primary: &str) -> bool {
        match self.run_state {
            RunState::Running | RunState::Paused => true,
            RunState::Draining => self.drain.as_ref().is_some_and(|drain| drain.contains(primary)),
            RunState::Stopped => false,
        }
    }

    /// Whether some member is on its way into or out of a claim, by a move that could not be carried out yet.
    fn is_being_claimed(&self, artifact: &Artifact) -> bool {
        let moving = |c: &&Conversion| matches!(c.row.state, ClaimState::Claimed | ClaimState::Returning { .. });
        let mut members = self.conversions.values().filter(moving).flat_map(|c| &c.row.claim.members);
        members.any(|member| artifact.entries().any(|other| other.inode == member.inode))
    }

    /// `false` where the artifact has to wait.
    async fn claim_one(&mut self, artifact: &Artifact) -> Result<bool> {
        let (content, duplicate_of, output) = match self.check_duplicate(artifact).await? {
            Verdict::New(content) => (content, None, None),
            Verdict::Duplicate { content, of, output } => (content, Some(of), output),
            Verdict::Later => return Ok(false),
        };
        self.confirm()?;
        self.cancel_parked(artifact).await?;
        if !self.mark_written_in_place(artifact, output.as_deref()).await? {
            return Ok(true);
        }
        let mut claim = self.new_claim(artifact, &content);
        claim.beginning = self.beginning(&claim).map(Box::new);
        let id = claim.id.clone();
        let row = self.record_claim(claim, content.md5, duplicate_of).await?;
        self.space.queue_has_room();
        self.claims_go_on();
        let conversion = Conversion { rejected: artifact.failure.clone(), ..Conversion::new(row) };
        self.conversions.insert(id.clone(), conversion);
        self.intake.claimed(artifact);
        // The conversion goes as far as its first work directory: a free slot does not wait for the claims that follow.
        if let Err(error) = self.advance_one(&id).await {
            self.note_error(&id, &error);
        } else if !self.conversions.contains_key(&id) {
            let now = self.now();
            self.intake.disturbed(artifact, now);
        }
        Ok(true)
    }

    /// Writes claim.json and records the claim in the ledger, before any member is moved.
    pub(super) async fn record_claim(
        &mut self,
        claim: Claim,
        md5: Option<String>,
        duplicate_of: Option<String>,
    ) -> Result<ConversionRow> {
        let paths = &self.settings.paths;
        let id = claim.id.clone();
        let filepath = claim::origin(paths, &claim).join(&claim.primary).to_string_lossy().into_owned();
        // A restart would resume a failed claim that left its record: the record is removed before the files are
        // claimed anew.
        while let Some(id) = self.failed_claims.first() {
            remove_failed(paths, id)?;
            self.failed_claims.pop_first();
        }
        if let Err(error) = claim::record(paths, &claim) {
            self.remove_failed(id);
            return Err(error.into());
        }
        failpoint::reach(paths, Step::ClaimWritten);
        let new = NewConversion { claim, filepath, md5, duplicate_of };
        match self.ledger.call(move |ledger| ledger.claim(new)).await {
            Ok(row) => {
                failpoint::reach(&self.settings.paths, Step::ClaimNoted);
                Ok(row)
            }
            Err(error) => {
                self.remove_failed(id);
                Err(error.into())
            }
        }
    }

    /// Removes a claim that could not be recorded as a whole. If that fails, it is removed before the next claim is
    /// made.
    fn remove_failed(&mut self, id: ConversionId) {
        if remove_failed(&self.settings.paths, &id).is_err() {
            self.failed_claims.insert(id);
        }
    }

    /// When the first member of an artifact was seen.
    fn seen_at(&self, artifact: &Artifact, wall: Timestamp) -> Option<Timestamp> {
        let first = self.intake.first_sight(artifact)?;
        wall.checked_sub(self.now().saturating_sub(first)).ok()
    }

    fn new_claim(&mut self, artifact: &Artifact, content: &Content) -> Claim {
        let now = self.wall();
        let id = loop {
            let id = ConversionId::for_file(artifact.entry_name(), self.settings.world.random());
            if !self.conversions.contains_key(&id) && !self.settings.paths.claim_dir(&id).exists() {
                break id;
            }
        };
        let mut members = members_of(artifact);
        self.mark_recalled(&mut members);
        Claim {
            contract_version: CONTRACT_VERSION,
            id,
            queue_uid: self.settings.home.queue_uid().to_owned(),
            origin: String::new(),
            folder: artifact.folder.as_ref().map(|folder| folder.entry.member()),
            disks: artifact
                .folder
                .iter()
                .flat_map(|folder| &folder.disks)
                .map(|name| name.as_ref().to_owned())
                .collect(),
            primary: artifact.primary.as_ref().to_owned(),
            members,
            claimed_at: now,
            seen_at: self.seen_at(artifact, now),
            complete_by: artifact.complete_by,
            beginning: None,
            fingerprint: content.fingerprint.clone(),
            emit: None,
            date: now.to_zoned(self.settings.zone.clone()).date().to_string(),
        }
    }

    /// Cancels a conversion that waits for its retry, if a newer file of the same name takes its place.
    async fn cancel_parked(&mut self, artifact: &Artifact) -> Result<()> {
        let parked: Vec<ConversionId> = self
            .conversions
            .values()
            .filter(|c| matches!(c.row.state, ClaimState::Parked { .. }))
            .filter(|c| c.row.claim.entry_name() == artifact.entry_name().as_ref())
            .map(|c| c.row.id.clone())
            .collect();
        for id in parked {
            let message = format!("{} was dropped again; its retry is off", artifact.entry_name());
            self.executor.cancel(&id, Failure::new(Reason::Cancelled, message)).await?;
        }
        Ok(())
    }

    /// Moves the members into the claim and registers the conversion. If a member changed in the meantime, all members
    /// go back and the conversion is forgotten.
    pub(super) async fn complete_claim(&mut self, id: &ConversionId) -> Result<()> {
        let Some(conversion) = self.conversions.get(id) else { return Ok(()) };
        let row = conversion.row.clone();
        let status = initial_status(&row, conversion.rejected.as_ref(), &self.settings.policy, self.wall());
        let taken = match claim::resume(&self.settings.paths, &row.claim, self.settings.method) {
            Ok(taken) => taken,
            Err(error) => return self.deny(id, error).await,
        };
        match taken {
            Taken::Whole => {
                failpoint::reach(&self.settings.paths, Step::MembersTaken);
                self.remove_reports_of_taken_back(&row.claim)?;
            }
            Taken::Reversed { changed } => {
                self.confirm()?;
                tracing::info!(conversion = %id, ?changed, "files changed while they were claimed; they settle anew");
                self.forget_row(id).await?;
                self.intake.regroup();
                return Ok(());
            }
        }
        self.forget_denial(&row.claim)?;
        self.change(id, Change::Submitted(status)).await?;
        failpoint::reach(&self.settings.paths, Step::SubmissionNoted);
        self.submit(id).await?;
        failpoint::reach(&self.settings.paths, Step::Submitted);
        Ok(())
    }

    /// Registers a conversion with the executor, which then shows its status. If that fails, it is tried again.
    pub(super) async fn submit(&mut self, id: &ConversionId) -> Result<()> {
        let Some(conversion) = self.conversions.get_mut(id) else { return Ok(()) };
        conversion.is_submitted = false;
        let row = &conversion.row;
        let submission = Submission {
            claim: row.claim.clone(),
            duplicate_of: row.duplicate_of.clone(),
            status: row.status.clone(),
            uid: row.uid.clone(),
        };
        self.executor.submit(submission).await?;
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.is_submitted = true;
        }
        Ok(())
    }
}

/// The primary first, the others in the order of their names.
fn members_of(artifact: &Artifact) -> Vec<Member> {
    let taken_back = artifact
        .taken_back
        .iter()
        .map(|taken| Member { alone: Some(Box::new(taken.alone.clone())), ..taken.entry.member() });
    let mut members: Vec<Member> = artifact.members.iter().map(Entry::member).chain(taken_back).collect();
    members.sort_by(|a, b| (a.name != *artifact.primary, &a.name).cmp(&(b.name != *artifact.primary, &b.name)));
    members
}

fn remove_failed(paths: &Paths, id: &ConversionId) -> Result<()> {
    match claim::remove(paths, id) {
        // Members lie in the directory: it belongs to another claim, which had the id before.
        Ok(()) | Err(ClaimError::NotEmpty { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What is known of a conversion before any attempt.
fn initial_status(
    row: &ConversionRow,
    rejected: Option<&Failure>,
    policy: &crate::conversion::lifecycle::RetryPolicy,
    now: Timestamp,
) -> ConversionStatus {
    let observation = match (&row.duplicate_of, rejected) {
        (Some(_), _) => Observation::Duplicate,
        (None, Some(failure)) => Observation::Rejected(failure.clone()),
        (None, None) => return row.status.clone(),
    };
    advance(row.status.clone(), observation, policy, now).0
}
