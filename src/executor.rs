// SPDX-License-Identifier: Apache-2.0
//! Who carries attempts out: child processes on one host, ConversionJobs in the cluster.
//!
//! The queue's engine and an executor talk in whole states. The engine registers a conversion, says when attempt n is
//! staged, and what it did with the files; the executor decides by [`crate::conversion::lifecycle::advance`] and
//! shows the conversion's status after each change. Every call is safe to repeat, and is repeated after a crash.
//!
//! ```text
//! engine                                       executor
//!   submit(conversion) ───────────────────────▶  registered
//!   ◀─────────────────────────────────────────  Update { status, … }        next_step = Stage(1)
//!   staged(1) ────────────────────────────────▶  starts when admission allows
//!   ◀─────────────────────────────────────────  Update { progress } …
//!   ◀─────────────────────────────────────────  Update { status }           next_step = Publish, Park, Finish, …
//!   refuse(failure) | report(row) ────────────▶  takes note
//!   requests ─────────────────────────────────▶  what was asked for by name; claimed and submitted, or declined
//!   forget ───────────────────────────────────▶  gone
//! ```

use crate::conversion::admission::RunState;
use crate::conversion::{Attempt, Claim, ConversionId, ConversionStatus, Failure, Metadata, Progress};
use crate::ledger::ConversionRow;

pub mod process;
pub mod progress;

/// A conversion as the executor is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    pub claim: Claim,
    /// What it is a duplicate of, in words: such a conversion ends without an attempt.
    pub duplicate_of: Option<String>,
    /// Its status by the ledger. An executor that keeps the truth elsewhere goes by its own.
    pub status: ConversionStatus,
    /// UID of the object that stands for it, by the ledger.
    pub uid: Option<String>,
}

/// A conversion that somebody asked for by naming a path, as the executor knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name that it was given.
    pub id: ConversionId,
    /// The primary, relative to the queue directory. Nobody has looked at it yet.
    pub path: String,
    /// Names of the other members, beside it; empty where its descriptor tells them.
    pub companions: Vec<String>,
    /// Whether domain.xml is wanted; `None`: as the queue says.
    pub emit_domain_xml: Option<bool>,
    /// Why it can't be had, where that shows without a look at its files.
    pub unfit: Option<Failure>,
}

/// What is known of a conversion now: the newest there is when it is handed out, never older than an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub id: ConversionId,
    /// Its status; `None` when the object that stood for it is gone.
    pub status: Option<ConversionStatus>,
    /// Whether the ledger's row has this status already.
    pub is_recorded: bool,
    /// UID of the object that stands for it (in the cluster).
    pub uid: Option<String>,
    /// How far the running attempt is.
    pub progress: Option<Progress>,
    /// Whether a worker may still be at the files. No file is moved while it may.
    pub may_run: bool,
}

/// Why the executor could not do its part. The engine tries again.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} conversion {id}")]
pub struct Error {
    pub doing: &'static str,
    pub id: ConversionId,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    /// An error of any source.
    pub fn new(
        doing: &'static str,
        id: &ConversionId,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { doing, id: id.clone(), source: source.into() }
    }
}

/// Carries out attempts. One task owns it; its futures need not be `Send`.
#[expect(async_fn_in_trait, reason = "one task owns the executor and awaits it in place")]
pub trait Executor {
    /// Registers a conversion and shows its status soon. Known already: shows it again.
    async fn submit(&mut self, submission: Submission) -> Result<(), Error>;

    /// The claim is complete and the work directory of this attempt exists: it may start.
    async fn staged(&mut self, id: &ConversionId, attempt: Attempt) -> Result<(), Error>;

    /// What may start from now on. [`RunState::Stopped`] ends what runs, uncounted.
    async fn set_run_state(&mut self, run_state: RunState) -> Result<(), Error>;

    /// Ends a conversion as cancelled (or, by the failure's class, as given back), whatever it is at.
    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error>;

    /// What the attempt left can't be published: it failed after all.
    async fn refuse(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error>;

    /// The ledger knows the end and the files lie where they stay: shows it to whoever looks at the conversion.
    /// `metadata` is what was published.
    async fn report(&mut self, row: &ConversionRow, metadata: Option<&Metadata>) -> Result<(), Error>;

    /// Nothing more will be asked of this conversion.
    async fn forget(&mut self, id: &ConversionId) -> Result<(), Error>;

    /// Conversions that somebody asked for and that are neither submitted nor ended. None where nobody can ask.
    fn requests(&self) -> Vec<Request> {
        Vec::new()
    }

    /// What was asked for can't be: it ends so, without ever having been submitted.
    async fn decline(&mut self, _id: &ConversionId, _failure: Failure) -> Result<(), Error> {
        Ok(())
    }

    /// The next thing that became known. Dropping the future loses nothing.
    async fn next(&mut self) -> Update;

    /// The same where it is known already, without waiting.
    fn take_next(&mut self) -> Option<Update>;
}
