//! The controller: both reconcilers and what they decide with.

pub mod outcome;
