//! Image formats, for hostile input, and the copy pipeline between them.
//!
//! A reader turns bounded metadata into a *map*: an iterator of [`extent::Extent`]s in guest order. A writer turns a
//! stream of extents into a file. The pipeline between them knows neither format.

mod coalesce;
pub mod descriptor;
pub mod detect;
pub mod error;
pub mod extent;
mod fields;
pub mod gzip;
pub mod manifest;
mod occupancy;
pub mod ova;
pub mod qcow2;
pub mod region;
#[cfg(test)]
mod resolve;
mod table;
pub mod vdi;
pub mod vhd;

pub use error::Error;
pub use extent::{Extent, Location};
pub use region::Region;

#[cfg(test)]
#[path = "../tests/images/ova.rs"]
pub(crate) mod sample_ova;
