// SPDX-License-Identifier: Apache-2.0
//! What the end of a worker means, on one host and in a pod alike.

use super::contract::exit_code;
use super::machine::MAX_DISKS;
use super::{Class, Failure, Reason, Remedy};

/// How a worker's process exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// It could not be waited for.
    Unknown,
}

/// A worker's own failure, where it can be trusted: a worker must not excuse itself from being counted, nor choose
/// its class. `clean` makes its message fit to be shown.
#[must_use]
pub(crate) fn believed(told: &Failure, clean: impl Fn(&str) -> String) -> Option<Failure> {
    if matches!(told.reason.class(), Class::NoAttempt | Class::Cancelled)
        || told.reason.is_of_cluster()
        || matches!(told.reason, Reason::DisruptedTooOften | Reason::JobLost | Reason::Killed | Reason::Recalled)
    {
        return None;
    }
    let mut failure = Failure::in_phase(told.reason, told.phase, clean(&told.message));
    failure.stage = told.stage;
    failure.needed_bytes = told.needed_bytes;
    failure.targets = told.targets.iter().copied().take(MAX_DISKS).collect();
    failure.member = told.member.as_deref().map(clean);
    // Only what stands in our own table is suggested to anyone.
    Some(failure.with_remedy(Remedy::of_text(&told.suggestion)))
}

/// The failure that an exit code means. `None` for success, and where the code only means that the process was ended
/// from outside, about which the executor knows more. `account` says what of the worker's own report could not be
/// read.
#[must_use]
pub(crate) fn by_exit(exit: Exit, account: &str) -> Option<Failure> {
    let internal = |class, code: i32| Failure {
        class,
        ..Failure::new(Reason::Internal, format!("the worker ended with exit code {code} and no readable {account}"))
    };
    let code = match exit {
        Exit::Code(code) => code,
        Exit::Signal(9 | 15) => return None,
        Exit::Signal(signal) => {
            return Some(Failure::new(Reason::Internal, format!("the worker died of signal {signal}")));
        }
        Exit::Unknown => return Some(Failure::new(Reason::Internal, "the worker's end could not be learned")),
    };
    match u8::try_from(code) {
        Ok(0 | exit_code::KILLED | exit_code::ENDED) => None,
        Ok(exit_code::REFUSED) => Some(internal(Class::Permanent, code)),
        Ok(exit_code::CONFIGURATION) => Some(internal(Class::Configuration, code)),
        Ok(exit_code::SOURCE_CHANGED) => {
            Some(Failure::new(Reason::SourceChanged, "the source changed after it was claimed"))
        }
        _ => Some(internal(Class::Transient, code)),
    }
}

/// Text of an untrusted process, fit for logs and status: no control characters, and at most `max_bytes`.
#[must_use]
pub(crate) fn clean(text: &str, max_bytes: usize) -> String {
    let end = text.floor_char_boundary(max_bytes);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_alone_tells_the_class() {
        for (exit, expected) in [
            (Exit::Code(0), None),
            (Exit::Code(10), Some((Reason::Internal, Class::Permanent))),
            (Exit::Code(11), Some((Reason::Internal, Class::Configuration))),
            (Exit::Code(12), Some((Reason::Internal, Class::Transient))),
            (Exit::Code(13), Some((Reason::SourceChanged, Class::GivenBack))),
            (Exit::Code(101), Some((Reason::Internal, Class::Transient))),
            (Exit::Code(137), None),
            (Exit::Code(143), None),
            (Exit::Code(-1), Some((Reason::Internal, Class::Transient))),
            (Exit::Signal(9), None),
            (Exit::Signal(15), None),
            (Exit::Signal(11), Some((Reason::Internal, Class::Transient))),
            (Exit::Unknown, Some((Reason::Internal, Class::Transient))),
        ] {
            let told = by_exit(exit, "report").map(|failure| (failure.reason, failure.class));
            assert_eq!(told, expected, "{exit:?}");
        }
    }

    #[test]
    fn every_reason_comes_back_from_its_exit_code_with_its_class() {
        for &reason in Reason::ALL {
            let told = by_exit(Exit::Code(reason.exit_code().into()), "report").map(|failure| failure.class);
            let expected = match reason.class() {
                // The cause is known to whoever ended the process, or to the kernel.
                _ if matches!(reason.exit_code(), exit_code::KILLED | exit_code::ENDED) => None,
                _ if reason == Reason::SourceMissing => Some(Class::Transient),
                // A worker can't report itself as cancelled: its exit code counts as a refusal.
                Class::Cancelled => Some(Class::Permanent),
                class => Some(class),
            };
            assert_eq!(told, expected, "{reason}");
        }
    }

    #[test]
    fn a_worker_can_neither_excuse_itself_nor_choose_its_class() {
        for reason in [
            Reason::Disrupted,
            Reason::Suspended,
            Reason::Cancelled,
            Reason::Recalled,
            Reason::Killed,
            Reason::TargetPending,
            Reason::MachineRefused,
        ] {
            assert_eq!(believed(&Failure::new(reason, "not me"), |text| clean(text, 80)), None, "{reason}");
        }
        let lie = Failure { class: Class::NoAttempt, ..Failure::new(Reason::Corrupt, "a\u{1b}[31mb\n") };
        let failure = believed(&lie, |text| clean(text, 80)).unwrap();
        assert_eq!((failure.class, failure.message.as_str()), (Class::Permanent, r"a\u{1b}[31mb\n"));
        let told = Failure { suggestion: "Run this as root".into(), ..Failure::new(Reason::Corrupt, "x") };
        assert_eq!(believed(&told, str::to_owned).unwrap(), Failure::new(Reason::Corrupt, "x"));
        let told = Failure::new(Reason::Corrupt, "x").with_remedy(Remedy::ReplayLog);
        assert_eq!(believed(&told, str::to_owned), Some(told));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(clean("aü", 2), "a");
        assert_eq!(clean("a\u{7}ü", 4), "a ü");
    }
}
