// SPDX-License-Identifier: Apache-2.0
//! What a seed says will happen: the settings of a queue, and acts with their times.

use std::time::Duration;

use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::RetryPolicy;
use crate::conversion::retention::Retention;
use crate::files::Method;
use crate::files::volume::simulated::{Fault, Keeps, Random};
use crate::queue::identity::Role;

/// Something that happens beside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A file is dropped.
    Drop,
    /// A descriptor and its extent are dropped, in either order.
    DropGroup,
    /// A folder is dropped: whole, or without a file that comes with the next one.
    DropFolder,
    /// A file is dropped under a name that was used before.
    DropAgain,
    /// A descriptor is dropped that names a file that was dropped before.
    DropLate,
    /// Somebody renames, lengthens, touches, closes or removes a file that waits in the queue.
    Rename,
    Grow,
    Chmod,
    /// Somebody makes such a file immovable, or makes all movable again.
    Deny,
    Allow,
    Remove,
    /// Somebody moves a file, or a folder, from `.errors/` back into the queue.
    Retry,
    RetryFolder,
    /// Somebody changes a file in `.errors/`.
    Correct,
    /// Somebody writes to a file that was opened before it was claimed.
    WriteOn,
    /// Somebody begins to write a file piece by piece, in a file that grows or has its whole length from the start.
    Upload(Growth),
    /// The next piece of such a file is written, or it is truncated and begun anew, or its rest is written and it is
    /// closed.
    Continue,
    Restart,
    Finish,
    Command(RunState),
    /// Somebody deletes a conversion (in a cluster).
    Delete,
    /// Somebody asks for a file by its path (in a cluster).
    Ask,
    /// Somebody sets the clock, so many seconds from where it would be.
    Clock(i64),
    /// The process dies, and somebody deletes the ledger before the next start.
    LoseLedger,
    /// Changes of files begin to fail, or stop failing.
    Fault(Option<Fault>),
    /// The output volume is full, or has room again.
    Full(bool),
    /// The volume of the queue, or that of the output, goes away; or all come back.
    Away(Role),
    Back,
    /// The process dies at once, or in the middle of its next step.
    Die,
    DieIn(u64),
    /// The process dies with the machine.
    Cut(Keeps),
    CutIn(u64, Keeps),
}

/// How an upload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    Grows,
    Preallocated,
}

/// A queue, and what happens to it.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub is_cluster: bool,
    pub method: Method,
    pub limit: usize,
    pub archive_processed: bool,
    pub deduplicate: bool,
    pub deduplicate_by_md5: bool,
    pub emit_domain_xml: bool,
    pub policy: RetryPolicy,
    pub retention: Retention,
    /// In the order of their times.
    pub acts: Vec<(Duration, Act)>,
}

/// How far a clock is set: an hour for a zone, a day, the years of an empty battery; and back to where it would be.
const JUMPS: [i64; 7] = [0, 3600, -3600, 86_400, -86_400, 10 * 366 * 86_400, -10 * 366 * 86_400];

/// Milliseconds over which the acts are spread.
const SPAN_MS: u64 = 60_000;

impl Script {
    pub(super) fn of(random: &mut Random) -> Self {
        let is_cluster = random.once_in(2);
        let policy = RetryPolicy {
            enabled: !random.once_in(8),
            max_retries: u32::try_from(random.below(4)).expect("a small number"),
            retry_delay: Duration::from_millis(500 + random.below(8000)),
            backoff_multiplier: 1.5,
        };
        let mut acts = Vec::new();
        let at = |random: &mut Random| Duration::from_millis(random.below(SPAN_MS));
        for _ in 0..=random.below(4) {
            acts.push((Duration::from_millis(random.below(10_000)), drop_of(random)));
        }
        for _ in 0..random.below(24) {
            let act = act(random, is_cluster);
            acts.push((at(random), act));
            // The act is followed by the one that ends it.
            let end = match act {
                Act::Fault(Some(_)) => Act::Fault(None),
                Act::Full(true) => Act::Full(false),
                Act::Away(_) => Act::Back,
                Act::Deny => {
                    if random.once_in(2) {
                        flap(random, &mut acts);
                    }
                    Act::Allow
                }
                Act::Upload(_) => {
                    for _ in 0..random.below(4) {
                        let further = random.pick(&[Act::Continue, Act::Continue, Act::Restart]);
                        acts.push((at(random), further));
                    }
                    Act::Finish
                }
                _ => continue,
            };
            acts.push((at(random), end));
        }
        acts.sort_by_key(|(at, _)| *at);
        Self {
            is_cluster,
            method: random.pick(&[Method::NoReplace, Method::Fallback]),
            limit: usize::try_from(1 + random.below(3)).expect("a small number"),
            archive_processed: !random.once_in(4),
            deduplicate: random.once_in(3),
            deduplicate_by_md5: random.once_in(2),
            emit_domain_xml: random.once_in(3),
            policy,
            retention: retention(random),
            acts,
        }
    }
}

/// Rights that come and go every other second.
fn flap(random: &mut Random, acts: &mut Vec<(Duration, Act)>) {
    let begin = random.below(SPAN_MS);
    for n in 0..6 {
        acts.push((Duration::from_millis(begin + 2000 * n), if n % 2 == 0 { Act::Deny } else { Act::Allow }));
    }
}

fn retention(random: &mut Random) -> Retention {
    let mut days = || random.once_in(3).then(|| u32::try_from(1 + random.below(4)).expect("a small number"));
    Retention { processed_days: days(), errors_days: days(), outputs_days: days() }
}

fn drop_of(random: &mut Random) -> Act {
    match random.below(4) {
        0 => Act::DropGroup,
        1 => Act::DropFolder,
        _ => Act::Drop,
    }
}

fn act(random: &mut Random, is_cluster: bool) -> Act {
    match random.below(28) {
        0..=2 => drop_of(random),
        3 => Act::DropAgain,
        4 => random.pick(&[Act::Rename, Act::Grow, Act::Chmod, Act::Deny, Act::Remove]),
        5 => random.pick(&[Act::Retry, Act::RetryFolder, Act::Correct, Act::WriteOn]),
        6 | 7 => {
            Act::Command(random.pick(&[RunState::Running, RunState::Paused, RunState::Draining, RunState::Stopped]))
        }
        8 if is_cluster => random.pick(&[Act::Delete, Act::Ask]),
        9 => Act::Full(true),
        8 | 10 => Act::Fault(Some(random.pick(&[Fault::Io(2), Fault::Io(8), Fault::NoSpace, Fault::ReadOnly]))),
        11 => Act::Die,
        12..=15 => Act::DieIn(1 + random.below(60)),
        16 => Act::Cut(random.pick(&[Keeps::Prefix, Keeps::Any])),
        20 | 21 => Act::DropLate,
        23..=25 => Act::Upload(random.pick(&[Growth::Grows, Growth::Preallocated])),
        26 => Act::Clock(random.pick(&JUMPS)),
        27 => random.pick(&[Act::LoseLedger, Act::DropLate]),
        22 => Act::Away(random.pick(&[Role::Queue, Role::Output])),
        _ => Act::CutIn(1 + random.below(60), random.pick(&[Keeps::Prefix, Keeps::Any])),
    }
}
