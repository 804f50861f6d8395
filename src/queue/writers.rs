// SPDX-License-Identifier: Apache-2.0
//! Who writes the files of the queue directory, as far as the kernel's file events tell.
//!
//! ```text
//!             modified                 closed by a writer, or renamed here
//!  unknown ────────────▶ open ─────────────────────────────────────────────▶ closed, or moved here
//!     ▲                    ▲                                                    │
//!     └─ gone, or events   └────────────────────── modified ◀───────────────────┘
//!        were lost
//! ```
//!
//! A file that was there before we watched, or that another machine writes to a network volume, has no events: its
//! writer stays unknown. An event of opening says nothing, because readers open files too; and a writer that has opened
//! a file and not modified it has changed nothing. A writer that uses a mapping is seen when it sets the file's length,
//! and when it closes the file as the mapping goes (inotify(7)).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most files whose writers are remembered: as many as a listing takes.
const MAX_FILES: usize = super::scan::MAX_ENTRIES;

/// What is known of the writer of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// No event told.
    Unknown,
    /// It has the file open: it has modified it since it was last closed.
    Open,
    /// It has closed the file.
    Closed,
    /// It has renamed the file to this name: it says itself that the file is whole.
    Moved,
}

/// What an event tells of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Its content or length changed.
    Modified,
    /// Somebody who had it open for writing closed it.
    Closed,
    /// It was renamed to this name.
    Arrived,
    /// It was removed, or renamed to another name.
    Gone,
}

/// Writers by the names of their files. Clones share what they know.
#[derive(Clone, Debug, Default)]
pub struct Writers(Arc<Mutex<HashMap<String, Writer>>>);

impl Writers {
    /// Records what an event told of the file `name`.
    pub fn observe(&self, name: &str, sign: Sign) {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = match sign {
            Sign::Modified => Writer::Open,
            Sign::Closed => Writer::Closed,
            Sign::Arrived => Writer::Moved,
            Sign::Gone => Writer::Unknown,
        };
        if writer == Writer::Unknown {
            writers.remove(name);
        } else if let Some(known) = writers.get_mut(name) {
            *known = writer;
        } else if writers.len() < MAX_FILES {
            writers.insert(name.to_owned(), writer);
        }
    }

    /// Events were lost: nothing is known any more.
    pub fn forget_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is known of the writer of this file. Where nothing is, but the folder that it lies in was renamed to its name,
    /// the file came with the folder.
    #[must_use]
    pub fn of(&self, name: &str) -> Writer {
        let writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = || writers.get(name.split_once('/')?.0);
        writers.get(name).or_else(folder).copied().unwrap_or(Writer::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_open_from_its_first_change_until_it_closes_the_file() {
        let writers = Writers::default();
        for (sign, known) in [
            (Sign::Modified, Writer::Open),
            (Sign::Modified, Writer::Open),
            (Sign::Closed, Writer::Closed),
            (Sign::Modified, Writer::Open),
            (Sign::Arrived, Writer::Moved),
            (Sign::Gone, Writer::Unknown),
        ] {
            writers.observe("vm.raw", sign);
            assert_eq!(writers.of("vm.raw"), known, "{sign:?}");
            assert_eq!(writers.of("another.raw"), Writer::Unknown);
        }
        writers.observe("web01", Sign::Arrived);
        writers.observe("web01/vm.raw", Sign::Modified);
        assert_eq!(["web01/vm.raw", "web01/other.raw"].map(|name| writers.of(name)), [Writer::Open, Writer::Moved]);
        writers.observe("vm.raw", Sign::Closed);
        writers.forget_all();
        assert_eq!(writers.of("vm.raw"), Writer::Unknown);
    }
}
