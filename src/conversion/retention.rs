// SPDX-License-Identifier: Apache-2.0
//! How long what ended conversions left is kept, and which of it may be removed.
//!
//! A machine lies in two places at the end: as source, and as output. Retention removes one of them only while the other
//! is there, unless a limit is set for both: then whoever set them has said how long each is kept. An output that
//! another one supersedes needs that one to be there, whatever is set. Whatever is in use, or holds files of other
//! people, stays.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many days each kind of files is kept after its conversion ended; `None`: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Sources in `.processed/`.
    pub processed_days: Option<u32>,
    /// Sources in `.errors/`.
    pub errors_days: Option<u32>,
    /// Published directories.
    pub outputs_days: Option<u32>,
}

impl Retention {
    /// The shortest limit that is set, in days.
    #[must_use]
    pub fn shortest_days(&self) -> Option<u32> {
        [self.processed_days, self.errors_days, self.outputs_days].into_iter().flatten().min()
    }

    /// The limit of one kind of files, in days.
    #[must_use]
    pub const fn days_of(&self, what: Removal) -> Option<u32> {
        match what {
            Removal::Processed => self.processed_days,
            Removal::Errors => self.errors_days,
            Removal::Output => self.outputs_days,
        }
    }
}

/// A kind of files that retention removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    Processed,
    Errors,
    Output,
}

/// Where the sources of an ended conversion lie, those that nobody changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// None of them is where it was left.
    Gone,
    /// In the queue directory, where they stay (`archive_processed: false`).
    InPlace,
    /// In `.processed/`; `is_whole`: every member.
    Processed { is_whole: bool },
    /// In `.errors/`.
    Errors,
}

/// The output of an ended conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Another one's, which was made of the same content and is there: the conversion is a duplicate.
    Shared,
    /// It has none, or it is gone, moved or damaged.
    Gone,
    /// It is there, as it was published.
    Published(Published),
}

/// A published output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Whether the output that supersedes it is there; absent where it is not superseded.
    pub is_superseder_there: Option<bool>,
    /// Why it can't be removed, whatever its age.
    pub bar: Option<Bar>,
}

/// Why an output is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It holds files that are not ours.
    Strangers,
    /// A process has one of its disks open for writing, or a disk was written to since.
    InUse,
}

/// What is known of an ended conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Time since its end, as far as two clocks agree on it.
    pub age: Duration,
    pub sources: Sources,
    pub output: Output,
}

/// What to do about an ended conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is old enough.
    Keep,
    /// Something is old enough, and is kept for this reason.
    Hold(&'static str),
    Remove(Removal),
}

/// Decides what of an ended conversion is to be removed next, where a day lasts `day`.
#[must_use]
pub fn decide(retention: &Retention, day: Duration, kept: &Kept) -> Decision {
    let is_due = |what: Removal| retention.days_of(what).is_some_and(|days| kept.age >= day * days);
    let are_both_limited = retention.processed_days.is_some() && retention.outputs_days.is_some();
    let mut held = None;
    if let Output::Published(published) = kept.output
        && is_due(Removal::Output)
    {
        let is_source_there = matches!(kept.sources, Sources::InPlace | Sources::Processed { is_whole: true });
        match (published.bar, published.is_superseder_there) {
            (Some(Bar::Strangers), _) => held = Some("its output holds files that are not ours"),
            (Some(Bar::InUse), _) => held = Some("its output is in use, or was written to since"),
            (None, Some(false)) => held = Some("what supersedes its output is not there"),
            (None, Some(true)) => return Decision::Remove(Removal::Output),
            (None, None) if is_source_there || are_both_limited => return Decision::Remove(Removal::Output),
            (None, None) => held = Some("its source is not there, so that its output is the last copy"),
        }
    }
    match kept.sources {
        Sources::Errors if is_due(Removal::Errors) => return Decision::Remove(Removal::Errors),
        Sources::Processed { .. } if is_due(Removal::Processed) => {
            if are_both_limited || kept.output != Output::Gone {
                return Decision::Remove(Removal::Processed);
            }
            held = Some("its output is not there, so that its source is the last copy");
        }
        Sources::Gone | Sources::InPlace | Sources::Processed { .. } | Sources::Errors => {}
    }
    held.map_or(Decision::Keep, Decision::Hold)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    const fn limits(processed_days: Option<u32>, errors_days: Option<u32>, outputs_days: Option<u32>) -> Retention {
        Retention { processed_days, errors_days, outputs_days }
    }

    fn output(is_superseder_there: Option<bool>, bar: Option<Bar>) -> Output {
        Output::Published(Published { is_superseder_there, bar })
    }

    #[test]
    fn the_last_copy_of_a_machine_stays_unless_both_copies_have_a_limit() {
        let (there, gone) = (Sources::Processed { is_whole: true }, Sources::Gone);
        let published = output(None, None);
        let (none, sources, outputs, both) = (
            limits(None, None, None),
            limits(Some(7), None, None),
            limits(None, None, Some(7)),
            limits(Some(7), None, Some(7)),
        );
        let remove = Decision::Remove;
        let hold = |retention: &Retention, sources, output| {
            let decided = decide(retention, DAY, &Kept { age: DAY * 8, sources, output });
            assert!(matches!(decided, Decision::Hold(_)), "{decided:?}");
        };
        for (retention, days, sources, output, decision) in [
            (&none, 9999, there, published, Decision::Keep),
            (&sources, 6, there, published, Decision::Keep),
            (&sources, 7, there, published, remove(Removal::Processed)),
            (&sources, 7, Sources::Processed { is_whole: false }, published, remove(Removal::Processed)),
            (&sources, 7, there, Output::Shared, remove(Removal::Processed)),
            (&sources, 7, Sources::InPlace, published, Decision::Keep),
            (&sources, 7, Sources::Errors, Output::Gone, Decision::Keep),
            (&outputs, 6, there, published, Decision::Keep),
            (&outputs, 7, there, published, remove(Removal::Output)),
            (&outputs, 7, Sources::InPlace, published, remove(Removal::Output)),
            (&outputs, 7, there, Output::Shared, Decision::Keep),
            (&both, 7, there, published, remove(Removal::Output)),
            (&both, 7, there, Output::Gone, remove(Removal::Processed)),
            (&both, 7, gone, published, remove(Removal::Output)),
            (&both, 7, gone, Output::Gone, Decision::Keep),
            (&limits(None, Some(7), None), 7, Sources::Errors, Output::Gone, remove(Removal::Errors)),
            (&limits(None, Some(7), None), 6, Sources::Errors, Output::Gone, Decision::Keep),
            (&limits(Some(3), None, Some(9)), 7, there, published, remove(Removal::Processed)),
        ] {
            let kept = Kept { age: DAY * days, sources, output };
            assert_eq!(decide(retention, DAY, &kept), decision, "{retention:?} {kept:?}");
        }
        hold(&sources, there, Output::Gone);
        hold(&outputs, gone, published);
        hold(&outputs, Sources::Processed { is_whole: false }, published);
    }

    #[test]
    fn a_superseded_output_waits_for_what_supersedes_it_whatever_is_set() {
        let age = DAY * 99;
        for retention in [limits(None, None, Some(1)), limits(Some(1), Some(1), Some(1))] {
            for sources in [Sources::Gone, Sources::InPlace] {
                let decided =
                    |there| decide(&retention, DAY, &Kept { age, sources, output: output(Some(there), None) });
                assert_eq!(decided(true), Decision::Remove(Removal::Output));
                assert!(matches!(decided(false), Decision::Hold(_)));
            }
        }
    }

    #[test]
    fn an_output_that_is_used_or_holds_other_files_stays_and_its_source_may_go() {
        let retention = limits(Some(1), None, Some(1));
        for bar in [Bar::Strangers, Bar::InUse] {
            let output = output(None, Some(bar));
            let kept = Kept { age: DAY, sources: Sources::Processed { is_whole: true }, output };
            assert_eq!(decide(&retention, DAY, &kept), Decision::Remove(Removal::Processed));
            let alone = Kept { sources: Sources::Gone, ..kept };
            assert!(matches!(decide(&retention, DAY, &alone), Decision::Hold(_)));
        }
    }
}
