//! Image formats, for hostile input, and the copy pipeline between them.
//!
//! A reader turns bounded metadata into a *map*: an iterator of [`extent::Extent`]s in guest order. A writer turns a
//! stream of extents into a file. The pipeline between them knows neither format.

pub mod buffer;
mod coalesce;
mod control;
mod copy;
pub mod descriptor;
pub mod detect;
mod digest;
pub mod error;
pub mod extent;
mod fields;
mod frame;
pub mod gzip;
mod holes;
pub mod image;
pub mod manifest;
mod occupancy;
pub mod ova;
pub mod qcow2;
pub mod raw;
pub mod region;
pub mod replay;
#[cfg(test)]
mod resolve;
pub mod source;
mod table;
mod units;
pub mod vdi;
mod verify;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
pub mod writer;

pub use control::CopyControl;
pub use copy::options::{CopyOptions, MAX_THREADS, available_threads};
pub use copy::{Copied, copy};
pub use digest::digest;
pub use error::Error;
pub use extent::{Extent, Location};
pub use image::{Image, Layout};
pub use region::{Cancellation, Region};
pub use verify::verify;

#[cfg(test)]
#[path = "../tests/images/ova.rs"]
pub(crate) mod sample_ova;
#[cfg(test)]
#[path = "../tests/images/vmdk.rs"]
pub(crate) mod sample_vmdk;
