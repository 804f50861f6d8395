//! What became of a child: one decision over how it was ended, what it left and how it exited.

use crate::conversion::{Class, Failure, FailureReport, Reason, TerminationMessage};

/// Longest text taken over from a worker, in bytes.
const MAX_TEXT: usize = 4096;

/// Why the executor itself ended a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The daemon stops, or was told to end what runs.
    Stop,
    /// The conversion is cancelled for this.
    Cancel(Failure),
    /// No progress for so many seconds.
    Stalled(u64),
}

/// How a child exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
    /// It could not be waited for.
    Unknown,
}

/// Everything that is known after a child's end.
#[derive(Clone, Debug)]
pub(super) struct Remains {
    pub exit: Exit,
    pub ending: Option<Ending>,
    pub report: Option<FailureReport>,
    pub message: Option<TerminationMessage>,
    /// Whether the kernel killed a process for want of memory meanwhile.
    pub oom_killed: bool,
}

/// `Ok` where the attempt is done and its folder may be looked at.
pub(super) fn judge(remains: Remains) -> Result<(), Failure> {
    if remains.exit == Exit::Code(0) {
        return Ok(());
    }
    match remains.ending {
        Some(Ending::Stop) => return Err(Failure::new(Reason::Disrupted, "the daemon ended the attempt")),
        Some(Ending::Cancel(failure)) => return Err(failure),
        Some(Ending::Stalled(seconds)) => {
            return Err(Failure::new(Reason::Stalled, format!("no progress for {seconds} s")));
        }
        None => {}
    }
    let told = remains.report.map(|report| report.failure).or(remains.message.map(|message| message.failure));
    Err(told.as_ref().and_then(believed).unwrap_or_else(|| by_exit(remains.exit, remains.oom_killed)))
}

/// A worker's own account, where it may be believed: it can't excuse itself from being counted.
fn believed(told: &Failure) -> Option<Failure> {
    if matches!(told.reason.class(), Class::NoAttempt | Class::Cancelled)
        || matches!(told.reason, Reason::DisruptedTooOften | Reason::JobLost | Reason::Killed | Reason::Recalled)
    {
        return None;
    }
    let mut failure = Failure::in_phase(told.reason, told.phase, clean(&told.message));
    failure.stage = told.stage;
    failure.needed_bytes = told.needed_bytes;
    Some(failure)
}

fn by_exit(exit: Exit, oom_killed: bool) -> Failure {
    let internal = |class, code: i32| Failure {
        class,
        ..Failure::new(Reason::Internal, format!("the worker ended with exit code {code} and no readable report"))
    };
    match exit {
        Exit::Code(code @ 10) => internal(Class::Permanent, code),
        Exit::Code(code @ 11) => internal(Class::Configuration, code),
        Exit::Code(13) => Failure::new(Reason::SourceChanged, "the source changed after it was claimed"),
        Exit::Code(143) => Failure::new(Reason::Killed, "somebody ended the worker"),
        Exit::Code(code) => internal(Class::Transient, code),
        Exit::Signal(9) if oom_killed => {
            Failure::new(Reason::OutOfMemory, "the kernel killed the worker for want of memory")
        }
        Exit::Signal(9 | 15) => Failure::new(Reason::Killed, "somebody killed the worker"),
        Exit::Signal(signal) => Failure::new(Reason::Internal, format!("the worker died of signal {signal}")),
        Exit::Unknown => Failure::new(Reason::Internal, "the worker's end could not be learned"),
    }
}

/// Text of a process that isn't trusted, fit for logs and status: no control characters, and not too long.
pub(super) fn clean(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversion::CONTRACT_VERSION;

    fn remains(exit: Exit) -> Remains {
        Remains { exit, ending: None, report: None, message: None, oom_killed: false }
    }

    fn reported(exit: Exit, failure: Failure) -> Remains {
        let report =
            FailureReport { contract_version: CONTRACT_VERSION, failure, error_chain: vec![], log_tail: vec![] };
        Remains { report: Some(report), ..remains(exit) }
    }

    #[test]
    fn an_exit_code_alone_tells_the_class() {
        for (exit, reason, class) in [
            (Exit::Code(10), Reason::Internal, Class::Permanent),
            (Exit::Code(11), Reason::Internal, Class::Configuration),
            (Exit::Code(12), Reason::Internal, Class::Transient),
            (Exit::Code(13), Reason::SourceChanged, Class::GivenBack),
            (Exit::Code(101), Reason::Internal, Class::Transient),
            (Exit::Code(143), Reason::Killed, Class::Transient),
            (Exit::Signal(9), Reason::Killed, Class::Transient),
            (Exit::Signal(11), Reason::Internal, Class::Transient),
            (Exit::Unknown, Reason::Internal, Class::Transient),
        ] {
            let failure = judge(remains(exit)).unwrap_err();
            assert_eq!((failure.reason, failure.class), (reason, class), "{exit:?}");
        }
        let failure = judge(Remains { oom_killed: true, ..remains(Exit::Signal(9)) }).unwrap_err();
        assert_eq!(failure.reason, Reason::OutOfMemory);
        assert_eq!(judge(remains(Exit::Code(0))), Ok(()));
    }

    #[test]
    fn the_workers_own_report_goes_before_its_exit_code() {
        let mut told = Failure::new(Reason::OutputFull, "no room");
        told.needed_bytes = Some(7);
        assert_eq!(judge(reported(Exit::Code(11), told.clone())), Err(told));
    }

    #[test]
    fn a_worker_can_neither_excuse_itself_nor_choose_its_class() {
        for reason in [Reason::Disrupted, Reason::Suspended, Reason::Cancelled, Reason::Recalled, Reason::Killed] {
            let failure = judge(reported(Exit::Code(12), Failure::new(reason, "not me"))).unwrap_err();
            assert_eq!((failure.reason, failure.class), (Reason::Internal, Class::Transient), "{reason}");
        }
        let lie = Failure { class: Class::NoAttempt, ..Failure::new(Reason::Corrupt, "a\u{1b}[31mb\n") };
        let failure = judge(reported(Exit::Code(10), lie)).unwrap_err();
        assert_eq!((failure.class, failure.message.as_str()), (Class::Permanent, "a [31mb "));
    }

    #[test]
    fn what_we_ended_ourselves_is_not_the_workers_fault_and_what_was_done_stays_done() {
        for (ending, reason) in [
            (Ending::Stop, Reason::Disrupted),
            (Ending::Stalled(600), Reason::Stalled),
            (Ending::Cancel(Failure::new(Reason::Recalled, "")), Reason::Recalled),
        ] {
            let ended = Remains { ending: Some(ending), ..remains(Exit::Signal(9)) };
            assert_eq!(judge(ended.clone()).unwrap_err().reason, reason);
            assert_eq!(judge(Remains { exit: Exit::Code(0), ..ended }), Ok(()));
        }
    }
}
