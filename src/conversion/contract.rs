// SPDX-License-Identifier: Apache-2.0
//! What the processes of one conversion agree on: names of files and variables, limits and exit codes.
//!
//! During an upgrade, a queue's engine, the executors and the worker are programs of different versions. Everything
//! that one writes for another to read is named here once.

use super::{Attempt, ConversionId};

/// Version of the files that workers and watchers exchange: claim.json, metadata.json, failure.json,
/// progress.json and the termination message. Old workers meet new watchers during an upgrade.
///
/// 1: the first. 2: metadata.json lists machines, claim.json names platforms. A claim tells what its watcher knows, and
/// the worker writes no newer metadata.json than that; a watcher reads all that are not newer than its own.
pub const CONTRACT_VERSION: u32 = 2;

/// Name of a claim's record in its directory.
pub const CLAIM_FILE: &str = "claim.json";
/// Name of the record that completes an attempt's folder.
pub const METADATA_FILE: &str = "metadata.json";
/// Names of the markers in an attempt's folder: its disks are copied, are fixed, are verified, have their digests.
pub const COPIED_FILE: &str = "copied.json";
pub const FIXED_FILE: &str = "fixed.json";
pub const VERIFIED_FILE: &str = "verified.json";
pub const DIGESTED_FILE: &str = "digested.json";
/// Name of the folder, with markers, that an earlier attempt left and a later one may go on with.
pub const KEPT_DIR: &str = "kept";
/// Longest marker that is read, in bytes.
pub const MAX_MARKER_BYTES: usize = 4 << 20;
/// Name of a failed attempt's report in its work directory.
pub const FAILURE_FILE: &str = "failure.json";
/// Name of a running attempt's progress in its work directory.
pub const PROGRESS_FILE: &str = "progress.json";

/// Name of a plan step's result in its work directory, and the longest one that is read, in bytes.
pub const PLAN_FILE: &str = "plan.json";
pub const MAX_PLAN_BYTES: usize = 64 << 10;
/// Directory of the appliance that changes guests, unless another is named: `vmlinuz` and `initrd`.
pub const APPLIANCE_DIR: &str = "/usr/lib/hyper2kvm/appliance";

/// Longest file name that Linux file systems take, in bytes.
pub const NAME_MAX: usize = 255;

/// Most files of one artifact: a split disk's descriptor and the extents that it may name.
pub const MAX_MEMBERS: usize = 1 + MAX_EXTENTS;

/// Extents that a split disk's descriptor may name: 16 TiB in pieces of 2 GiB.
pub const MAX_EXTENTS: usize = 8192;

/// Longest claim.json that is read, in bytes: [`MAX_MEMBERS`] with the longest names fit, however JSON escapes them.
pub const MAX_CLAIM_BYTES: usize = 16 << 20;

/// A control character of a name takes six bytes in JSON; the other fields of a member with their indentation take
/// less than 160, and the claim's own fields less than two members.
const _: () = assert!((MAX_MEMBERS + 2) * (6 * NAME_MAX + 160) <= MAX_CLAIM_BYTES);

/// Path of a claim below the queue's directory.
#[must_use]
pub fn claim_path(conversion: &ConversionId) -> String {
    format!("{PROCESSING_DIR}/{conversion}")
}

/// Path of an attempt's work directory below the output directory.
#[must_use]
pub fn work_path(conversion: &ConversionId, attempt: Attempt) -> String {
    format!("{WORK_DIR}/{conversion}/{attempt}")
}

/// Directory of the claims, below the queue's directory.
pub const PROCESSING_DIR: &str = ".processing";
/// Directory of the attempts, below the output directory.
pub const WORK_DIR: &str = ".work";

/// Ending of a file that we are still receiving.
pub const PART: &str = ".part";
/// Endings of uploads that are under way, in lower case.
pub const UNFINISHED: [&str; 7] = [PART, ".tmp", ".filepart", ".crdownload", ".partial", ".download", ".upload"];

/// Values of [`variable::STEP`].
pub const STEP_PLAN: &str = "plan";
pub const STEP_CONVERT: &str = "convert";

/// Environment variables that a worker is started with: a command line would show paths to `pgrep -f`.
pub mod variable {
    /// Directory of claim.json and the members.
    pub const CLAIM: &str = "HYPER2KVM_CLAIM";
    /// The attempt's work directory.
    pub const WORK: &str = "HYPER2KVM_WORK";
    /// Name of the folder to make in it.
    pub const FOLDER: &str = "HYPER2KVM_FOLDER";
    /// JSON of [`ConversionOptions`](crate::conversion::ConversionOptions).
    pub const OPTIONS: &str = "HYPER2KVM_OPTIONS";
    /// Number of the attempt.
    pub const ATTEMPT: &str = "HYPER2KVM_ATTEMPT";
    /// Which step to do: [`STEP_PLAN`](super::STEP_PLAN) or [`STEP_CONVERT`](super::STEP_CONVERT); absent: the latter.
    pub const STEP: &str = "HYPER2KVM_STEP";
    /// JSON of the [targets](crate::conversion::target) that the disks go into; absent: they are files in the folder.
    pub const TARGETS: &str = "HYPER2KVM_TARGETS";
    /// Where the termination message goes, in a pod.
    pub const TERMINATION_LOG: &str = "HYPER2KVM_TERMINATION_LOG";
    /// `1` to refuse a kernel without Landlock.
    pub const REQUIRE_LANDLOCK: &str = "HYPER2KVM_REQUIRE_LANDLOCK";
    /// Process ID of the daemon: the worker ends with it.
    pub const PARENT: &str = "HYPER2KVM_PARENT";
    /// Directory of the appliance that changes guests.
    pub const APPLIANCE: &str = "HYPER2KVM_APPLIANCE";

    /// Prefix of the variables for test faults; builds without debug assertions ignore them.
    pub const TEST_PREFIX: &str = "HYPER2KVM_TEST_";
    /// `<Reason>[:<attempts>]`: the first attempts (all without a number) fail in the middle of the copy.
    pub const TEST_FAIL: &str = "HYPER2KVM_TEST_FAIL";
    /// Set: no progress is made from the middle of the copy on.
    pub const TEST_HANG: &str = "HYPER2KVM_TEST_HANG";
    /// `<marker>[:<attempts>]`: the first attempts (all without a number) are killed once they have left this marker.
    pub const TEST_DIE: &str = "HYPER2KVM_TEST_DIE";
}

/// Exit codes of a worker, and of a conversion by hand.
pub mod exit_code {
    /// A fault of the program.
    pub const INTERNAL: u8 = 1;
    /// The image is refused: another attempt would fail in the same way.
    pub const REFUSED: u8 = 10;
    /// Something around the conversion must be corrected.
    pub const CONFIGURATION: u8 = 11;
    /// Another attempt may go well.
    pub const TRANSIENT: u8 = 12;
    /// The source changed after it was claimed.
    pub const SOURCE_CHANGED: u8 = 13;
    /// How a shell reports SIGKILL.
    pub const KILLED: u8 = 137;
    /// How a shell reports SIGTERM.
    pub const ENDED: u8 = 143;
}
