//! Image formats, for hostile input, and the copy pipeline between them.
//!
//! A reader turns bounded metadata into a *map*: an iterator of [`extent::Extent`]s in guest order. A writer turns a
//! stream of extents into a file. The pipeline between them knows neither format.

pub mod descriptor;
pub mod detect;
pub mod error;
pub mod extent;
pub mod region;

pub use error::Error;
pub use extent::{Extent, Location};
pub use region::Region;
