// SPDX-License-Identifier: Apache-2.0
//! What an engine is given at its start.

use std::time::Duration;

use jiff::tz::TimeZone;

use crate::conversion::ConversionOptions;
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::RetryPolicy;
use crate::conversion::retention::Retention;
use crate::files::moves::Method;
use crate::files::paths::Paths;
use crate::queue::guard::Guard;
use crate::telemetry::traces::Traces;

use super::intake::Pace;
use super::world::World;

/// Where a queue lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// On one host: a pause is remembered in the ledger, and a drained or stopped engine ends.
    Host,
    /// In a pod: the API server says what is asked of the queue. A drained or stopped engine waits to be resumed.
    Cluster {
        /// UID of the `HyperConversion`.
        uid: String,
        /// Revision of what is asked: it rises with each change.
        revision: i64,
    },
}

impl Home {
    /// What claims of this queue are marked with; empty on one host.
    pub(super) fn queue_uid(&self) -> &str {
        match self {
            Self::Host => "",
            Self::Cluster { uid, .. } => uid,
        }
    }
}

/// What an engine is given at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    pub paths: Paths,
    /// Asked before anything in the directories is touched.
    pub guard: Guard,
    pub home: Home,
    /// How moves are done, as the probe of both directories found.
    pub method: Method,
    /// Greatest number of attempts at one time.
    pub limit: usize,
    /// Whether sources go to `.processed/`.
    pub archive_processed: bool,
    pub deduplicate: bool,
    pub deduplicate_by_md5: bool,
    /// Time between two looks at a file that is to settle.
    pub look_interval: Duration,
    pub file_stable_timeout: Duration,
    pub companion_timeout: Duration,
    /// How long a file must be quiet where neither its writer nor its format decides.
    pub quiet_period: Duration,
    pub policy: RetryPolicy,
    /// What is removed by its age.
    pub retention: Retention,
    /// How long a day of retention lasts.
    pub retention_day: Duration,
    pub options: ConversionOptions,
    /// Time zone of the dates by which directories are named.
    pub zone: TimeZone,
    /// How long files may wait while nothing happens, before a stall is announced.
    pub stall_threshold: Duration,
    /// What is asked of the engine from the start; on one host the ledger may also know of a pause.
    pub run_state: RunState,
    /// Where time and chance come from.
    pub world: World,
    /// Told of each conversion that ended.
    pub traces: Traces,
}

impl Settings {
    pub(super) fn pace(&self) -> Pace {
        Pace {
            look_interval: self.look_interval,
            stable_timeout: self.file_stable_timeout,
            companion_timeout: self.companion_timeout,
            quiet_period: self.quiet_period,
        }
    }
}
