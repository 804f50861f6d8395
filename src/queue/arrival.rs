// SPDX-License-Identifier: Apache-2.0
//! Whether a file that stands still has arrived whole. Three witnesses can tell, and the strongest of them decides.
//!
//! ```text
//!  download: a program keeps account of it beside it ─▶ not yet
//!     │ none
//!  writer:  has it open ─▶ not yet      has renamed it here, or closed it ─▶ complete
//!     │ unknown                         but the disk in it goes on behind its end, or nothing is in it (and it was not
//!     │                                 renamed) ─▶ not yet, as for a missing end
//!  format:  its end is missing ─▶ not yet, for as long as companions are waited for      its end is there ─▶ complete
//!     │ has no end that tells
//!  quiet:   without a change for the quiet period ─▶ complete
//! ```
//!
//! Nothing here looks at anything: see [`super::writers`] for the writer, `disk::ending` for the format, and
//! [`super::settle`] for the looks that come before all of them.

use std::time::Duration;

use super::writers::Writer;
use crate::conversion::Witness;
use crate::disk::ending::Ending;

/// What is known of a file that has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    pub writer: Writer,
    /// Whether a program keeps account beside it of a download that is not whole.
    pub is_download: bool,
    /// What the format says.
    pub ending: Ending,
    /// Time since the file last changed.
    pub quiet: Duration,
    /// How long the file must be quiet because it changed again and again while it was converted.
    pub restless: Duration,
}

/// How long the two weaker witnesses wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long a file must be quiet where neither its writer nor its format decides.
    pub quiet_period: Duration,
    /// How long a file must be quiet where its format says that its end is missing.
    pub rest: Duration,
}

/// What to do with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The file is complete; this witness decided.
    Complete(Witness),
    /// A program says that its download is not whole.
    Download,
    /// Its writer has not closed it.
    Open,
    /// Its end may come within this time.
    Short(Duration),
    /// It must stand still for this much longer.
    Quiet(Duration),
    /// The same, because of what it did before.
    Restless(Duration),
}

/// Decides whether the file has arrived.
#[must_use]
pub fn settle(observed: Observed, patience: Patience) -> Arrival {
    let rest = |limit: Duration| limit.checked_sub(observed.quiet).filter(|rest| !rest.is_zero());
    if let Some(rest) = rest(observed.restless).filter(|_| observed.writer != Writer::Open && !observed.is_download) {
        return Arrival::Restless(rest);
    }
    match (observed.writer, observed.ending) {
        _ if observed.is_download => Arrival::Download,
        (Writer::Open, _) => Arrival::Open,
        (_, Ending::Short) | (Writer::Closed | Writer::Unknown, Ending::Blank) | (Writer::Unknown, Ending::Missing) => {
            rest(patience.rest).map_or(Arrival::Complete(Witness::Quiet), Arrival::Short)
        }
        (Writer::Moved | Writer::Closed, _) => Arrival::Complete(Witness::Writer),
        (Writer::Unknown, Ending::Whole) => Arrival::Complete(Witness::Format),
        (Writer::Unknown, Ending::Untold) => {
            rest(patience.quiet_period).map_or(Arrival::Complete(Witness::Quiet), Arrival::Quiet)
        }
    }
}

/// How many looks long a file must stand still that changed twice while it was converted; each further time doubles it.
const RESTLESS_LOOKS: u32 = 12;

/// How long a file must stand still that changed so often while it was converted, at most as long as a missing end is
/// waited for.
#[must_use]
pub fn restless_for(times: u32, look_interval: Duration, limit: Duration) -> Duration {
    match times.checked_sub(2) {
        None => Duration::ZERO,
        Some(doubled) => (look_interval * RESTLESS_LOOKS).saturating_mul(1 << doubled.min(20)).min(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_witness_decides() {
        let second = Duration::from_secs(1);
        let patience = Patience { quiet_period: 60 * second, rest: 3600 * second };
        let complete = Arrival::Complete;
        for (writer, ending, quiet, arrival) in [
            (Writer::Open, Ending::Untold, 3, Arrival::Open),
            (Writer::Open, Ending::Whole, 3, Arrival::Open),
            (Writer::Open, Ending::Missing, 1_000_000, Arrival::Open),
            (Writer::Closed, Ending::Untold, 3, complete(Witness::Writer)),
            (Writer::Closed, Ending::Missing, 3, complete(Witness::Writer)),
            (Writer::Closed, Ending::Short, 3, Arrival::Short(3597 * second)),
            (Writer::Closed, Ending::Short, 3600, complete(Witness::Quiet)),
            (Writer::Moved, Ending::Short, 3, Arrival::Short(3597 * second)),
            (Writer::Moved, Ending::Short, 3600, complete(Witness::Quiet)),
            (Writer::Moved, Ending::Missing, 3, complete(Witness::Writer)),
            (Writer::Moved, Ending::Blank, 3, complete(Witness::Writer)),
            (Writer::Closed, Ending::Blank, 3, Arrival::Short(3597 * second)),
            (Writer::Unknown, Ending::Blank, 3, Arrival::Short(3597 * second)),
            (Writer::Closed, Ending::Blank, 3600, complete(Witness::Quiet)),
            (Writer::Open, Ending::Short, 3600, Arrival::Open),
            (Writer::Unknown, Ending::Short, 3, Arrival::Short(3597 * second)),
            (Writer::Unknown, Ending::Whole, 3, complete(Witness::Format)),
            (Writer::Unknown, Ending::Missing, 3, Arrival::Short(3597 * second)),
            (Writer::Unknown, Ending::Missing, 61, Arrival::Short(3539 * second)),
            (Writer::Unknown, Ending::Missing, 3600, complete(Witness::Quiet)),
            (Writer::Unknown, Ending::Untold, 3, Arrival::Quiet(57 * second)),
            (Writer::Unknown, Ending::Untold, 60, complete(Witness::Quiet)),
        ] {
            let (quiet, restless) = (quiet * second, Duration::ZERO);
            let observed = Observed { writer, is_download: false, ending, quiet, restless };
            assert_eq!(settle(observed, patience), arrival, "{observed:?}");
            assert_eq!(settle(Observed { is_download: true, ..observed }, patience), Arrival::Download);
        }
        let (writer, ending) = (Writer::Unknown, Ending::Untold);
        let (quiet, restless) = (Duration::ZERO, Duration::ZERO);
        let observed = Observed { writer, is_download: false, ending, quiet, restless };
        let none = Patience { quiet_period: Duration::ZERO, ..patience };
        assert_eq!(settle(observed, none), complete(Witness::Quiet), "no quiet period is wanted");
        let restless = Observed { writer: Writer::Closed, quiet: 3 * second, restless: 24 * second, ..observed };
        assert_eq!(settle(restless, none), Arrival::Restless(21 * second));
        assert_eq!(settle(Observed { quiet: 24 * second, ..restless }, none), complete(Witness::Writer));
        assert_eq!(settle(Observed { writer: Writer::Open, ..restless }, none), Arrival::Open);
        let rests = [0, 1, 2, 3, 4, 40].map(|times| restless_for(times, second, 60 * second));
        assert_eq!(rests, [0, 0, 12, 24, 48, 60].map(|seconds| seconds * second));
    }
}
