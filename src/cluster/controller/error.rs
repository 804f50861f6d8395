// SPDX-License-Identifier: Apache-2.0
//! Why a reconcile failed: the reason and the text of its condition and its event.

use std::time::Duration;

use crate::cluster::api::{ConditionState, InvalidSetting};
use crate::cluster::client::{MAX_WORDS, passes, told};
use crate::conversion::{InvalidId, chain, verdict};

/// Longest time that a reconcile may take.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Why a reconcile failed. An error that a person has to mend names the field, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot {action}")]
    Api {
        action: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("spec.{0}")]
    InvalidSpec(InvalidSetting),
    /// The API server refuses the pod: our schema can't express everything that Kubernetes demands of one.
    #[error("spec.{part}: Kubernetes refuses the pod that it asks for: {message}; correct it there")]
    InvalidPod { part: &'static str, message: String },
    #[error("metadata.name: {0}; delete this ConversionJob and make one of another name")]
    InvalidName(InvalidId),
    #[error(
        "spec.queueRef.name: there is no HyperConversion {name} in namespace {namespace}; make it, or delete this \
         ConversionJob and make one that names a queue that is there"
    )]
    QueueNotFound { name: String, namespace: String },
    #[error(
        "spec.{field} is a directory of HyperConversion {other} too (its spec.{theirs}), or one of the two lies in the \
         other: give it a claimName or subPath of its own, or delete HyperConversion {other}"
    )]
    DirectoryTaken { field: &'static str, other: String, theirs: &'static str },
    #[error(
        "spec.{field}.claimName: claim {claim} has the access mode ReadWriteOncePod, and watcher and workers have to share \
         it; name a claim of ReadWriteMany, or of ReadWriteOnce"
    )]
    AccessMode { field: &'static str, claim: String },
    #[error("a Job {0} is there that is not this conversion's: delete it, and the attempt starts by itself")]
    NameTaken(String),
    #[error(
        "a {kind} {name} is there that is not this queue's, and the queue's watcher needs the name: delete that {kind}, or \
         make the HyperConversion under another name; nothing of it was changed"
    )]
    ObjectTaken { kind: String, name: String },
    #[error(
        "the {kind} {name} of an earlier HyperConversion of this name is still there; the queue begins once it is gone"
    )]
    OfEarlierQueue { kind: String, name: String },
    #[error(
        "the reconcile took longer than {} s and is made again by itself; if it stays so, look at the API server's load",
        TIME_LIMIT.as_secs()
    )]
    TimedOut,
}

/// What a reconcile that failed means for its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub state: ConditionState,
    /// Whether it passes by itself, and says nothing of the object.
    pub passes: bool,
}

impl Error {
    /// Everything that [`Self::reason`] may say.
    pub(super) const REASONS: [&str; 10] = [
        "Forbidden",
        "ApiRefused",
        "ApiUnreachable",
        "InvalidSpec",
        "InvalidName",
        "QueueNotFound",
        "DirectoryTaken",
        "AccessMode",
        "NameTaken",
        "TimedOut",
    ];

    /// Those of them by which the API server refuses a Job whatever conversion it is for.
    pub(super) const OF_JOBS: [&str; 3] = ["Forbidden", "ApiRefused", "InvalidSpec"];

    /// What it means for the object.
    #[must_use]
    pub(super) fn refusal(&self) -> Refusal {
        Refusal { state: ConditionState::new("False", self.reason(), self.chain()), passes: self.passes() }
    }

    /// Whether it passes by itself: the API server is busy or away.
    fn passes(&self) -> bool {
        match self {
            Self::Api { source, .. } => passes(source),
            Self::TimedOut => true,
            _ => false,
        }
    }

    /// Wraps an API error with the action that failed.
    pub(super) fn api(action: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { action, source: Box::new(source) }
    }

    /// The same error, unless the API server refuses a pod that `part` of the specification shapes: then
    /// `InvalidPod`.
    pub(super) fn of_part(part: &'static str) -> impl FnOnce(Self) -> Self {
        move |error| match &error {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if matches!(status.code, 400 | 422) => {
                    Self::InvalidPod { part, message: status.message.clone() }
                }
                _ => error,
            },
            _ => error,
        }
    }

    /// The reason for conditions and metrics.
    #[must_use]
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 403 => "Forbidden",
                kube::Error::Api(_) => "ApiRefused",
                _ => "ApiUnreachable",
            },
            Self::InvalidSpec(_) | Self::InvalidPod { .. } => "InvalidSpec",
            Self::InvalidName(_) => "InvalidName",
            Self::QueueNotFound { .. } => "QueueNotFound",
            Self::DirectoryTaken { .. } => "DirectoryTaken",
            Self::AccessMode { .. } => "AccessMode",
            Self::NameTaken(_) | Self::ObjectTaken { .. } | Self::OfEarlierQueue { .. } => "NameTaken",
            Self::TimedOut => "TimedOut",
        }
    }

    /// Whether another writer was first: no real error, but a decision on an outdated object.
    #[must_use]
    pub(super) fn is_conflict(&self) -> bool {
        self.api_code() == Some(409)
    }

    /// Whether the object is gone.
    #[must_use]
    pub(super) fn is_not_found(&self) -> bool {
        self.api_code() == Some(404)
    }

    /// What the API server says where it refuses what it was sent: its schema, a webhook, a policy, a quota or a right.
    #[must_use]
    pub(super) fn refused(&self) -> Option<String> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                // 500 is that of a webhook that can't be called.
                kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422 | 500) => {
                    Some(verdict::clean(&status.message, MAX_WORDS))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn api_code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error and its causes on one line. What the API server says is said once, in its own words alone.
    #[must_use]
    pub(super) fn chain(&self) -> String {
        match self {
            Self::Api { source, .. } => {
                let again = if self.api_code() == Some(403) { "; it is tried again by itself" } else { "" };
                format!("{self}: {}{again}", told(source))
            }
            _ => chain(self),
        }
    }
}

impl From<InvalidSetting> for Error {
    fn from(invalid: InvalidSetting) -> Self {
        Self::InvalidSpec(invalid)
    }
}
