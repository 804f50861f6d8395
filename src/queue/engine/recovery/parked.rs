// SPDX-License-Identifier: Apache-2.0
//! Claims that the ledger does not know, whose members wait in `.errors/`: claim.json and error.json together hold what
//! the row did.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::conversion::status::AttemptRecord;
use crate::conversion::{Attempt, Claim, ConversionStatus, Failure};
use crate::files::paths::Paths;
use crate::files::placement::{Placement, PlannedMove};
use crate::queue::error_file::{self, ErrorFile};

/// Greatest number of attempts that is believed: people may write to `.errors/`.
const MAX_ATTEMPTS: u32 = 1000;

/// What lies in `.errors/` with a report beside it, by the id of the conversion.
#[derive(Debug, Default)]
pub(super) struct Reports {
    found: BTreeMap<String, Vec<(PathBuf, ErrorFile)>>,
}

/// The placement and the status that a lost row would have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub placement: Placement,
    pub status: ConversionStatus,
}

impl Reports {
    /// Reads the reports beside files in `.errors/` itself, and beside groups in a directory below it. A file that
    /// can't be read is no report.
    pub(super) fn read(paths: &Paths) -> Self {
        let mut reports = Self::default();
        reports.add(&paths.errors());
        for entry in fs::read_dir(paths.errors()).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                reports.add(&entry.path());
            }
        }
        reports
    }

    fn add(&mut self, dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let primary = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir())
                && let Some(report) = error_file::read(&primary)
            {
                self.found.entry(report.id.clone()).or_default().push((primary, report));
            }
        }
    }

    /// What is known of a claim that waits for its next attempt; `None` where it does not wait, or a member is missing.
    pub(super) fn waiting(&self, paths: &Paths, claim: &Claim) -> Option<Waiting> {
        let candidates = self.found.get(claim.id.as_str())?;
        candidates.iter().find_map(|(primary, report)| {
            let placement = placement(paths, claim, primary)?;
            Some(Waiting { placement, status: status(report)? })
        })
    }
}

fn placement(paths: &Paths, claim: &Claim, primary: &Path) -> Option<Placement> {
    let (dir, from) = (primary.parent()?, paths.claim_dir(&claim.id));
    let is_single = claim.moved().len() == 1;
    let moves: Vec<PlannedMove> = claim
        .moved()
        .iter()
        .map(|member| PlannedMove {
            from: from.join(&member.name),
            // A single file may have got a suffix; the members of a group keep their names.
            to: if is_single { primary.to_owned() } else { dir.join(&member.name) },
            member: member.clone(),
            is_folder: claim.folder.is_some(),
        })
        .collect();
    let is_whole = moves.first().is_some_and(|first| first.to == primary)
        && moves.iter().all(|planned| planned.is_at(&planned.to));
    is_whole.then(|| Placement { dir: dir.to_owned(), moves })
}

/// The status that the report was written from, as far as it tells; `None` where the report is that of the last
/// attempt.
fn status(report: &ErrorFile) -> Option<ConversionStatus> {
    let next_retry_time = Some(report.retry_info.next_retry_at?);
    let made = report.retry_info.retry_count.saturating_add(1).min(MAX_ATTEMPTS);
    let attempt = |number| AttemptRecord {
        kind: None,
        number: Attempt(number),
        job_name: None,
        job_uid: None,
        pod_name: None,
        node_name: None,
        start_time: None,
        end_time: Some(report.timestamp),
        reason: Some(report.reason),
    };
    let failure = Failure {
        reason: report.reason,
        class: report.class,
        phase: report.phase,
        stage: report.stage,
        message: report.error.clone(),
        suggestion: report.suggestion.clone(),
        needed_bytes: None,
        targets: Vec::new(),
        member: None,
    };
    Some(ConversionStatus {
        staged: made,
        attempts: (1..=made).map(attempt).collect(),
        next_retry_time,
        failure: Some(failure),
        start_time: Some(report.timestamp),
        ..ConversionStatus::default()
    })
}
