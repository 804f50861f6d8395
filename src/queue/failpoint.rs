// SPDX-License-Identifier: Apache-2.0
//! Places between two steps at which a test lets this process die. Release builds pass them by.

use std::path::Path;
use std::{fs, io};

use strum::VariantArray;

use crate::files::paths::Paths;

/// Name of the file, below `{output}/.daemon/`, in which a test names the steps to die after, one a line. The first one
/// is removed before this process dies there, so that the next process gets past it and dies at the next one.
pub const ORDER_FILE: &str = "die-after";

/// A step that was just done; what follows from it is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum Step {
    /// claim.json stands; the ledger knows nothing.
    ClaimWritten,
    /// The ledger knows the claim; no member has moved.
    ClaimNoted,
    /// The members lie in the claim.
    MembersTaken,
    /// The ledger says so, or is about to; the executor knows nothing.
    SubmissionNoted,
    /// The executor knows the conversion; the ledger doesn't know its object.
    Submitted,
    /// The work directory stands; nobody knows.
    WorkMade,
    /// The attempt may start; we don't know whether it has.
    Staged,
    /// Where the members are parked is recorded.
    ParkNoted,
    /// They lie there, without error.json.
    Parked,
    /// They lie in the claim again, and the ledger says parked.
    TakenBack,
    /// Where they are given back to is recorded.
    ReturnNoted,
    /// They lie there.
    Returned,
    /// The target is recorded; nothing stands there.
    PublicationNoted,
    /// The disks stand there; the ledger says that they are about to.
    Published,
    /// Where the members end is recorded.
    EndNoted,
    /// They lie there.
    Disposed,
    /// An output of a single member says that it is superseded.
    Superseded,
    /// Everybody knows the end but the ledger.
    Reported,
    /// Nothing is left of the claim but its row.
    Tidied,
    /// What is done with what an ended conversion left is recorded; nothing has moved.
    EndedPlanNoted,
    /// It lies in the queue directory again, or in the trash.
    EndedMoved,
    /// It is gone from the trash, and not counted.
    EndedGone,
}

impl Step {
    /// All of them, in the order in which a conversion reaches them.
    pub const ALL: &'static [Self] = Self::VARIANTS;
}

/// Dies here, at once and without a message, if a test asked for it.
pub fn reach(paths: &Paths, step: Step) {
    #[cfg(test)]
    if crate::files::volume::simulated::current().is_some() {
        // This event can't fail here, but the process may die in it.
        let _ = crate::files::volume::simulated::event(&format!("{step:?}"));
        return;
    }
    if cfg!(debug_assertions) {
        let order = paths.daemon().join(ORDER_FILE);
        let steps = fs::read_to_string(&order).unwrap_or_default();
        let (first, rest) = steps.split_once('\n').unwrap_or((&steps, ""));
        if first == format!("{step:?}") && leave(&order, rest).is_ok() {
            // A container's first process can't send itself SIGKILL.
            std::process::abort();
        }
    }
}

/// The file may be another user's: it is replaced, not written to.
fn leave(order: &Path, steps: &str) -> io::Result<()> {
    if steps.is_empty() {
        return fs::remove_file(order);
    }
    let next = order.with_extension("next");
    fs::write(&next, steps)?;
    fs::rename(next, order)
}
