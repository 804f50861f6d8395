// SPDX-License-Identifier: Apache-2.0
//! How a child ended: one decision over why it was ended, what it left and how it exited.

use crate::conversion::verdict::{Exit, believed, by_exit, clean};
use crate::conversion::{Failure, FailureReport, Reason, TerminationMessage};

/// Longest text taken over from a worker, in bytes.
pub(super) const MAX_TEXT: usize = 4096;

/// Why the executor itself ended a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KillCause {
    /// The daemon stops, or the queue's run state ends running attempts.
    Stop,
    /// The conversion is cancelled with this failure.
    Cancel(Failure),
    /// No progress for so many seconds.
    Stalled(u64),
}

/// Everything that is known after a child's end.
#[derive(Clone, Debug)]
pub(super) struct Remains {
    pub exit: Exit,
    pub cause: Option<KillCause>,
    pub report: Option<FailureReport>,
    pub message: Option<TerminationMessage>,
    /// Whether the kernel killed a process for lack of memory meanwhile.
    pub oom_killed: bool,
    /// Whether the attempt's work directory is there: it is not while the output volume is away.
    pub has_work: bool,
}

/// Decides how the attempt ended: `Ok` where it is done and its folder may be read.
pub(super) fn judge(remains: Remains) -> Result<(), Failure> {
    if remains.exit == Exit::Code(0) {
        return Ok(());
    }
    match remains.cause {
        Some(KillCause::Stop) => return Err(Failure::new(Reason::Disrupted, "the daemon ended the attempt")),
        Some(KillCause::Cancel(failure)) => return Err(failure),
        Some(KillCause::Stalled(seconds)) => {
            return Err(Failure::new(Reason::Stalled, format!("no progress for {seconds} s")));
        }
        None => {}
    }
    if !remains.has_work {
        return Err(Failure::new(Reason::Disrupted, "the attempt's work directory went while it ran"));
    }
    let told = remains.report.map(|report| report.failure).or(remains.message.map(|message| message.failure));
    let told = told.as_ref().and_then(|told| believed(told, |text| clean(text, MAX_TEXT)));
    Err(told.or_else(|| by_exit(remains.exit, "report")).unwrap_or_else(|| ended(remains.exit, remains.oom_killed)))
}

/// The failure of a process that was ended from outside.
fn ended(exit: Exit, oom_killed: bool) -> Failure {
    match exit {
        Exit::Signal(9) if oom_killed => {
            Failure::new(Reason::OutOfMemory, "the kernel killed the worker for want of memory")
        }
        Exit::Signal(_) => Failure::new(Reason::Killed, "somebody killed the worker"),
        Exit::Code(_) | Exit::Unknown => Failure::new(Reason::Killed, "somebody ended the worker"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversion::{CONTRACT_VERSION, Class};

    fn remains(exit: Exit) -> Remains {
        Remains { exit, cause: None, report: None, message: None, oom_killed: false, has_work: true }
    }

    fn reported(exit: Exit, failure: Failure) -> Remains {
        let report =
            FailureReport { contract_version: CONTRACT_VERSION, failure, error_chain: vec![], log_tail: vec![] };
        Remains { report: Some(report), ..remains(exit) }
    }

    #[test]
    fn an_exit_alone_tells_who_ended_it() {
        for (exit, oom_killed, reason) in [
            (Exit::Code(10), false, Reason::Internal),
            (Exit::Code(143), false, Reason::Killed),
            (Exit::Signal(9), false, Reason::Killed),
            (Exit::Signal(9), true, Reason::OutOfMemory),
            (Exit::Signal(15), true, Reason::Killed),
        ] {
            let failure = judge(Remains { oom_killed, ..remains(exit) }).unwrap_err();
            assert_eq!(failure.reason, reason, "{exit:?}");
        }
        assert_eq!(judge(remains(Exit::Code(0))), Ok(()));
    }

    #[test]
    fn an_attempt_whose_work_directory_went_is_not_to_blame() {
        let failure = judge(Remains { has_work: false, ..remains(Exit::Code(10)) }).unwrap_err();
        assert_eq!((failure.reason, failure.class), (Reason::Disrupted, Class::NoAttempt));
    }

    #[test]
    fn the_workers_own_report_goes_before_its_exit_code() {
        let mut told = Failure::new(Reason::OutputFull, "no room");
        told.needed_bytes = Some(7);
        assert_eq!(judge(reported(Exit::Code(11), told.clone())), Err(told));
    }

    #[test]
    fn a_worker_that_excuses_itself_is_judged_by_its_exit() {
        let failure = judge(reported(Exit::Code(12), Failure::new(Reason::Disrupted, "not me"))).unwrap_err();
        assert_eq!((failure.reason, failure.class), (Reason::Internal, Class::Transient));
    }

    #[test]
    fn what_we_ended_ourselves_is_not_the_workers_fault_and_what_was_done_stays_done() {
        for (cause, reason) in [
            (KillCause::Stop, Reason::Disrupted),
            (KillCause::Stalled(600), Reason::Stalled),
            (KillCause::Cancel(Failure::new(Reason::Recalled, "")), Reason::Recalled),
        ] {
            let ended = Remains { cause: Some(cause), ..remains(Exit::Signal(9)) };
            assert_eq!(judge(ended.clone()).unwrap_err().reason, reason);
            assert_eq!(judge(Remains { exit: Exit::Code(0), ..ended }), Ok(()));
        }
    }
}
