// SPDX-License-Identifier: Apache-2.0
//! Why a conversion fails, as data. The table of reasons determines class, exit code, phase and suggestion.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::exit_code;
use super::printable::printable;
use super::remedy::Remedy;

mod reason;
mod suggestion;

pub use reason::{Class, Phase, Reason, Stage};
#[cfg(feature = "cluster")]
pub(crate) use suggestion::refused_pod;

/// A failure as data: the content of error.json, the status and a notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// What that means for a retry.
    pub class: Class,
    /// Where in the conversion.
    pub phase: Phase,
    /// The worker's step at the time, where a worker was at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// What happened, naming the file and the place in it.
    pub message: String,
    /// What a person can do about it.
    #[serde(default)]
    pub suggestion: String,
    /// Free bytes that the output volume must have before another attempt makes sense (`OutputFull`), or bytes that a
    /// target must have (`TargetTooSmall`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_bytes: Option<u64>,
    /// Numbers, from 0, of the disks whose targets it is about (`TargetTooSmall`, `TargetLost`); none where it is about all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub targets: Vec<u32>,
    /// The member that belongs to another machine (`WrongMember`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// The message without the file name with which most of them begin, for a sentence that has named the file already.
#[must_use]
pub(crate) fn without_name<'a>(message: &'a str, filename: &str) -> &'a str {
    message.strip_prefix(filename).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(message)
}

impl Failure {
    /// A failure with the table's class, phase and suggestion for its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self::in_phase(reason, reason.phase(), message)
    }

    /// The same, in a phase that is known more exactly than by the table. What the message says of others' names and
    /// texts is made [`printable`].
    pub fn in_phase(reason: Reason, phase: Phase, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            reason,
            class: reason.class(),
            phase,
            stage: None,
            message: match printable(&message) {
                Cow::Borrowed(_) => message,
                Cow::Owned(shown) => shown,
            },
            suggestion: reason.suggestion(phase),
            needed_bytes: None,
            targets: Vec::new(),
            member: None,
        }
    }

    /// What happened and what a person can do about it, as one text.
    #[must_use]
    pub fn advice(&self) -> String {
        match self.suggestion.as_str() {
            "" => self.message.clone(),
            suggestion => format!("{}. {suggestion}", self.message.trim_end_matches('.')),
        }
    }

    /// Suggests what helps in this case, instead of what mostly helps.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<Option<Remedy>>) -> Self {
        if let Some(remedy) = remedy.into() {
            remedy.text().clone_into(&mut self.suggestion);
            if remedy.is_of_installation() {
                self.class = Class::Configuration;
            }
        }
        self
    }

    /// The exit code of a worker, or of a conversion by hand, that fails so.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.class {
            class if class == self.reason.class() => self.reason.exit_code(),
            Class::Permanent => exit_code::REFUSED,
            Class::Configuration => exit_code::CONFIGURATION,
            _ => self.reason.exit_code(),
        }
    }

    /// Names the worker's step.
    #[must_use]
    pub fn at_stage(mut self, stage: Stage) -> Self {
        self.stage = Some(stage);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_reasons_exit_with_a_code_that_is_retried() {
        for &reason in Reason::ALL {
            let retried = matches!(reason.exit_code(), 1 | 12 | 137);
            assert_eq!(reason.class() == Class::Transient || reason == Reason::SourceMissing, retried, "{reason}");
        }
    }

    #[test]
    fn whatever_a_person_has_to_set_right_names_the_remedy() {
        for &reason in Reason::ALL {
            let is_theirs = matches!(reason.class(), Class::Permanent | Class::Configuration | Class::GivenBack)
                || reason == Reason::SourceMissing;
            let suggestion = reason.suggestion(reason.phase());
            assert!(!is_theirs || !suggestion.is_empty(), "{reason}");
            let advice = Failure::new(reason, "it said so.").advice();
            let expected =
                if suggestion.is_empty() { "it said so.".to_owned() } else { format!("it said so. {suggestion}") };
            assert_eq!(advice, expected);
        }
    }

    #[test]
    fn the_remedy_of_a_reason_fits_its_cause() {
        use crate::conversion::file_name::{EXTENSIONS, PACKED};
        let suggestion = |reason: Reason| reason.suggestion(reason.phase());
        let unsupported = suggestion(Reason::UnsupportedFormat);
        for extension in EXTENSIONS.iter().chain(&PACKED) {
            assert!(unsupported.contains(&format!(".{extension}")), "{extension}: {unsupported}");
        }
        assert_eq!(suggestion(Reason::Truncated), Remedy::CopyAgain.text());
        assert!(suggestion(Reason::OutputIO).contains("output volume"));
        assert!(suggestion(Reason::ManifestMismatch).contains("remove its manifest"));
        let told = Failure::new(Reason::UnsupportedFormat, "unpack it.").with_remedy(Remedy::InMessage);
        assert_eq!(told.advice(), "unpack it.", "no second remedy");
    }

    #[test]
    fn what_only_a_person_sets_right_is_never_retried_whatever_its_reason() {
        let failure = Failure::new(Reason::GuestFixFailed, "no appliance");
        assert_eq!((failure.class, failure.exit_code()), (Class::Transient, 12));
        let failure = failure.with_remedy(Remedy::BuildAppliance);
        assert_eq!((failure.class, failure.exit_code()), (Class::Configuration, 11));
        let failure = Failure::new(Reason::Internal, "256 files").with_remedy(Remedy::RaiseOpenFiles);
        assert_eq!((failure.class, failure.exit_code()), (Class::Configuration, 11));
    }

    #[test]
    fn an_attempt_that_only_waited_for_its_place_is_not_counted() {
        for reason in [
            Reason::OutputFull,
            Reason::TargetPending,
            Reason::TargetTooSmall,
            Reason::MachineRefused,
            Reason::MachineNotServed,
        ] {
            assert!(!reason.is_counted(), "{reason}");
        }
        for reason in [Reason::PermissionDenied, Reason::TargetDenied, Reason::TargetInUse, Reason::TargetLost] {
            assert!(reason.is_counted(), "{reason}");
        }
    }
}
