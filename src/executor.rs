// SPDX-License-Identifier: Apache-2.0
//! Carries attempts out: as child processes on one host, as ConversionJobs in the cluster.
//!
//! The queue's engine and an executor exchange whole states. The engine registers a conversion, reports that attempt
//! n is staged, and what it did with the files. The executor decides by `conversion::lifecycle::advance` and
//! publishes the conversion's status after each change. Every call is safe to repeat, and is repeated after a crash.
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
//!   supersede(id) ────────────────────────────▶  shows that an earlier output is replaced
//!   forget ───────────────────────────────────▶  gone
//! ```

use crate::conversion::admission::RunState;
use crate::conversion::{Attempt, Claim, ConversionId, ConversionStatus, Emit, Failure, Metadata, Progress};
use crate::ledger::ConversionRow;

pub mod process;
pub mod progress;

/// A conversion as it is registered with an executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    pub claim: Claim,
    /// What it is a duplicate of, in words: such a conversion ends without an attempt.
    pub duplicate_of: Option<String>,
    /// Its status in the ledger. An executor that keeps the status elsewhere uses its own.
    pub status: ConversionStatus,
    /// UID of its object, from the ledger.
    pub uid: Option<String>,
}

/// A conversion that was requested by naming a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name that it was given.
    pub id: ConversionId,
    /// The primary, relative to the queue directory. Nothing has been checked yet.
    pub path: String,
    /// Names of the other members, beside it; empty where its descriptor names them.
    pub companions: Vec<String>,
    /// Platforms that files are wanted for; `None`: as the queue says.
    pub emit: Option<Emit>,
    /// Why it can't be converted, where that shows without a look at its files.
    pub unfit: Option<Failure>,
}

/// The state of a conversion: the newest at the time, never older than an earlier update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub id: ConversionId,
    /// Its status; `None` when its object is gone.
    pub status: Option<ConversionStatus>,
    /// Whether the ledger's row has this status already.
    pub is_recorded: bool,
    /// UID of its object (in the cluster).
    pub uid: Option<String>,
    /// How far the running attempt is.
    pub progress: Option<Progress>,
    /// Whether a worker may still use the files. No file is moved while that is true.
    pub may_run: bool,
}

/// Why an executor's call failed. The engine repeats it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} conversion {id}")]
pub struct Error {
    pub doing: &'static str,
    pub id: ConversionId,
    /// Whether it passes by itself, and is nobody's concern yet.
    pub passes: bool,
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
        Self { doing, id: id.clone(), passes: false, source: source.into() }
    }
}

/// Carries out attempts. One task owns it; its futures need not be `Send`.
#[expect(async_fn_in_trait, reason = "one task owns the executor and awaits it in place")]
pub trait Executor {
    /// Registers a conversion and publishes its status soon; publishes it again where it is known already.
    async fn submit(&mut self, submission: Submission) -> Result<(), Error>;

    /// The claim is complete and the work directory of this attempt exists: it may start.
    async fn staged(&mut self, id: &ConversionId, attempt: Attempt) -> Result<(), Error>;

    /// What may start from now on. [`RunState::Stopped`] ends what runs, uncounted.
    async fn set_run_state(&mut self, run_state: RunState) -> Result<(), Error>;

    /// Ends a conversion as cancelled (or, by the failure's class, as given back), in whatever step it is.
    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error>;

    /// The output of the attempt can't be published: the attempt failed after all.
    async fn refuse(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error>;

    /// The ledger knows the end and the files are in their final place: publishes both for clients. `metadata` is
    /// what was published.
    async fn report(&mut self, row: &ConversionRow, metadata: Option<&Metadata>) -> Result<(), Error>;

    /// The output of this conversion, which has ended, is replaced by the one in the directory `by`: shows it, if the
    /// conversion is still shown. Nothing where nobody can look.
    async fn supersede(&mut self, _id: &ConversionId, _by: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Forgets a conversion about which the engine asks nothing more.
    async fn forget(&mut self, id: &ConversionId) -> Result<(), Error>;

    /// Conversions that were requested and are neither submitted nor ended. Empty where requests are not possible.
    fn requests(&self) -> Vec<Request> {
        Vec::new()
    }

    /// Ends a request that can't be carried out, without submitting it.
    async fn decline(&mut self, _id: &ConversionId, _failure: Failure) -> Result<(), Error> {
        Ok(())
    }

    /// The next update. Dropping the future loses nothing.
    async fn next(&mut self) -> Update;

    /// The next update if it is there already, without waiting.
    fn take_next(&mut self) -> Option<Update>;
}
