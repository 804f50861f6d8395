// SPDX-License-Identifier: Apache-2.0
//! Image formats, for hostile input, and the copy pipeline between them.
//!
//! A reader turns bounded metadata into a *map*: an iterator of [`extent::Extent`]s in guest order. A writer turns a
//! stream of extents into a file. The pipeline between them knows neither format.

mod buffer;
mod coalesce;
mod control;
mod copy;
pub(crate) mod descriptor;
mod detect;
mod device;
mod digest;
mod effort;
pub(crate) mod ending;
mod error;
mod extent;
mod fields;
pub mod first_sectors;
mod frame;
mod gzip;
mod holes;
mod image;
pub mod manifest;
mod occupancy;
mod ova;
mod packed;
mod parallels;
mod peek;
mod qcow2;
mod raw;
mod region;
mod replay;
#[cfg(test)]
pub(crate) mod resolve;
mod segments;
pub mod signature;
pub mod source;
mod table;
mod tar_header;
mod text;
mod units;
mod vdi;
mod verify;
mod vhd;
mod vhdx;
pub mod view;
mod vmdk;
mod writer;

pub use control::CopyControl;
pub use copy::options::{CopyOptions, MAX_THREADS, available_threads};
pub use copy::{Copied, copy};
pub use device::{Geometry, Medium};
pub use digest::digest;
pub use error::Error;
pub use extent::{Extent, Location};
pub use image::{Image, Reader};
pub use region::{Cancellation, Region};
pub use verify::{open_output, verify};

#[cfg(test)]
#[path = "../tests/images/ova.rs"]
pub(crate) mod sample_ova;
#[cfg(test)]
#[path = "../tests/images/vmdk.rs"]
pub(crate) mod sample_vmdk;
