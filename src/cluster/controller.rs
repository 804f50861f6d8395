//! The controller: both reconcilers and what they decide with.

pub mod admission;
pub mod objects;
pub mod outcome;
