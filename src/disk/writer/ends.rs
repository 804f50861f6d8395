// SPDX-License-Identifier: Apache-2.0
//! The first and last bytes of a raw disk, by which programs guess its format.

use super::coded::Coded;
use crate::conversion::Reason;
use crate::disk::{Error, detect};

/// The ends of a disk, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Ends {
    /// Keeps what a batch has of the ends of a disk of `size` bytes, if that is known yet. The head is checked at once,
    /// so that a bad one does not fail the copy only at its end.
    pub(super) fn keep(&mut self, coded: &Coded, size: Option<u64>, name: &str) -> Result<(), Error> {
        let len = usize::try_from(coded.guest.end - coded.guest.start).expect("a batch is a few MiB");
        if coded.guest.start == 0 {
            self.head = coded.buffer[..len.min(detect::HEAD_BYTES)].to_vec();
            self.check(name)?;
        }
        if size.is_none_or(|size| size == coded.guest.end) {
            self.tail = coded.buffer[len - len.min(detect::TAIL_BYTES)..len].to_vec();
        }
        Ok(())
    }

    /// Refuses a disk that would be taken for another format.
    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        match detect::would_probe(&self.head, &self.tail) {
            None => Ok(()),
            Some(format) => {
                let message = format!("the guest's disk would itself be taken for a {format} image");
                Err(Error::refuse(Reason::OutputWouldProbe, name, message))
            }
        }
    }
}
