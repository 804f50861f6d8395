// SPDX-License-Identifier: Apache-2.0
//! The appliance's answer, written there and read here.

use serde::{Deserialize, Serialize};

use super::MAX_ANSWER;
use crate::conversion::guest::fix::{GuestFix, Outcome, Root};
use crate::conversion::guest::{Doubt, MAX_LIST, MAX_TEXT, OperatingSystem};

/// Bytes that a report may have, so that the steps have room before it.
const MAX_REPORT: usize = MAX_ANSWER - (8 << 10);

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Line {
    /// The appliance is alive, and what it does now.
    Step {
        name: Step,
        /// Milliseconds since the appliance's kernel began.
        at_ms: u64,
    },
    Report(Box<GuestFix>),
}

/// What the appliance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    Start,
    Disks,
    Inspect,
    Plan,
    Apply,
    Check,
}

/// An answer that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("line {line} of the answer is not of the expected form")]
    Form { line: usize, source: serde_json::Error },
    #[error("the answer goes on after its report")]
    AfterReport,
    #[error("the answer ends without a report")]
    NoReport,
    #[error("the report contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// An answer as it comes in.
#[derive(Debug, Default)]
pub struct Answer {
    /// Bytes until now.
    length: usize,
    lines: usize,
    /// The beginning of a line whose end has not come.
    open: Vec<u8>,
    report: Option<GuestFix>,
}

impl Answer {
    /// Takes the next bytes, and gives the last step that they tell. After an error nothing more is to be taken.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Step>, Error> {
        self.length = self.length.saturating_add(bytes.len());
        if self.length > MAX_ANSWER {
            return Err(Error::TooLong);
        }
        let mut last = None;
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.open.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.open);
            last = self.line(line.trim_ascii())?.or(last);
        }
        self.open.extend_from_slice(bytes);
        Ok(last)
    }

    /// Whether the report is there: nothing more can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.report.is_some()
    }

    /// The report, once the appliance has ended.
    pub fn finish(self) -> Result<GuestFix, Error> {
        if self.report.is_some() && !self.open.trim_ascii().is_empty() {
            return Err(Error::AfterReport);
        }
        self.report.ok_or(Error::NoReport)
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Step>, Error> {
        self.lines += 1;
        if line.is_empty() {
            return Ok(None);
        }
        if self.report.is_some() {
            return Err(Error::AfterReport);
        }
        let read = serde_json::from_slice(line).map_err(|source| Error::Form { line: self.lines, source })?;
        match read {
            Line::Step { name, .. } => Ok(Some(name)),
            Line::Report(report) => {
                check(&report).map_err(Error::Contradiction)?;
                self.report = Some(*report);
                Ok(None)
            }
        }
    }
}

/// The line of a step, with its end.
#[must_use]
pub fn step_line(name: Step, at_ms: u64) -> Vec<u8> {
    line(&Line::Step { name, at_ms })
}

/// The line of a report, with its end; where it would be too long, its lists are cut, and `left` says so.
#[must_use]
pub fn report_line(mut report: GuestFix) -> Vec<u8> {
    report.kernels.truncate(MAX_LIST);
    report.left.truncate(MAX_LIST - 1);
    let told = report.changes.len();
    report.changes.truncate(MAX_LIST);
    loop {
        let bytes = line(&Line::Report(Box::new(report.clone())));
        if bytes.len() <= MAX_REPORT && report.changes.len() == told {
            return bytes;
        }
        let is_told = report.left.last().is_some_and(|left| left.what == CUT);
        if is_told {
            report.left.pop();
        }
        if bytes.len() > MAX_REPORT {
            let longest = [report.left.len(), report.changes.len() - 1, report.kernels.len()];
            let longest = longest.into_iter().max().unwrap_or_default();
            let shorter = longest / 2;
            report.left.truncate(shorter);
            report.changes.truncate(shorter + 1);
            report.kernels.truncate(shorter);
        }
        report.left.push(Doubt { what: CUT.into(), why: "It was too long for its answer and has been cut.".into() });
        let bytes = line(&Line::Report(Box::new(report.clone())));
        if bytes.len() <= MAX_REPORT {
            return bytes;
        }
    }
}

/// What `left` names where the report was cut.
const CUT: &str = "report";

fn line(line: &Line) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).expect("an answer has no maps with other keys than texts");
    bytes.push(b'\n');
    bytes
}

/// What contradicts itself in a report, or is beyond the bounds that its types promise.
fn check(report: &GuestFix) -> Result<(), &'static str> {
    let GuestFix { outcome, reason, message, os, root, kernels, changes, left } = report;
    if reason.is_some() != (*outcome == Outcome::Unfixed) {
        return Err("a reason belongs to what is unfixed, and to nothing else");
    }
    if changes.is_empty() == (*outcome == Outcome::Fixed) {
        return Err("changes belong to what is fixed, and to nothing else");
    }
    if [kernels.len(), changes.len(), left.len()].into_iter().any(|len| len > MAX_LIST) {
        return Err("a list has more elements than it may have");
    }
    let mut texts: Vec<&str> = message.iter().map(String::as_str).collect();
    if let Some(OperatingSystem { id, name, version, architecture }) = os {
        texts.extend([id, name, version].into_iter().chain(architecture).map(String::as_str));
    }
    if let Some(Root { volume, content }) = root {
        texts.extend([volume.as_str(), content]);
    }
    texts.extend(kernels.iter().flat_map(|kernel| [kernel.version.as_str(), &kernel.initramfs]));
    texts
        .extend(changes.iter().flat_map(|change| [Some(&change.file), change.backup.as_ref()]).flatten().map(|t| &**t));
    texts.extend(left.iter().flat_map(|left| [left.what.as_str(), &left.why]));
    if texts.iter().any(|text| text.chars().count() > MAX_TEXT || text.contains(char::is_control)) {
        return Err("a text is too long, or has control characters");
    }
    Ok(())
}
