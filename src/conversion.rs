// SPDX-License-Identifier: Apache-2.0
//! What a conversion is and how it advances: pure values, no I/O, no clock.

pub mod admission;
pub(crate) mod claim;
pub mod contract;
pub mod emit;
pub(crate) mod failure;
pub(crate) mod file_name;
pub mod guest;
pub(crate) mod hex;
pub(crate) mod id;
pub(crate) mod lifecycle;
pub mod machine;
pub mod options;
pub mod plan;
mod platform;
mod printable;
mod remedy;
pub mod report;
pub mod retention;
pub mod status;
pub mod target;
mod trace;
pub(crate) mod verdict;

pub use claim::{Alone, Claim, Member, Stamp, Witness};
pub use contract::CONTRACT_VERSION;
pub use failure::{Class, Failure, Phase, Reason, Stage, chain};
pub use file_name::stem;
pub use hex::hex;
pub use id::{Attempt, ConversionId, InvalidId};
pub use options::{Compression, ConversionOptions, OutputFormat};
pub use platform::{Emit, Platform};
pub use printable::{printable, printable_json, printable_lines};
pub use remedy::Remedy;
pub use report::{FailureReport, Metadata, Progress, SuccessMessage, TerminationMessage};
pub use status::{AttemptKind, AttemptRecord, ConversionStatus};
pub use trace::TraceId;
