// SPDX-License-Identifier: Apache-2.0
//! Raw output: the guest's bytes, with holes for zeros.

use std::ops::Range;

use super::coded::{Coded, Coding, Content};
use super::job::WriteJob;
use super::output::Output;
use crate::conversion::Reason;
use crate::disk::buffer::ALIGNMENT;
use crate::disk::{Error, detect};

/// A raw disk being written.
#[derive(Debug)]
pub(crate) struct Raw {
    /// Absent until it is known.
    size: Option<u64>,
    name: String,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// The last piece, where it is no whole block.
    rest: Option<(u64, Vec<u8>)>,
}

impl Raw {
    pub(super) fn new(size: Option<u64>, name: &str) -> Self {
        Self { size, name: name.to_owned(), head: Vec::new(), tail: Vec::new(), rest: None }
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    #[expect(clippy::unused_self, reason = "writers answer for themselves")]
    pub(super) fn coding(&self) -> Coding {
        Coding::Runs { unit: ALIGNMENT }
    }

    pub(super) fn place(&mut self, coded: Coded, jobs: &mut Vec<WriteJob>) -> Result<(), Error> {
        let Coded { guest, buffer, content } = coded;
        let Content::Runs(runs) = content else { unreachable!("this writer asks for runs") };
        let len = usize::try_from(guest.end - guest.start).expect("a batch is a few MiB");
        if guest.start == 0 {
            self.head = buffer[..len.min(detect::HEAD_BYTES)].to_vec();
            // Checked now, so that a bad head does not fail the copy only at its end.
            self.check()?;
        }
        if self.size.is_none_or(|size| size == guest.end) {
            self.tail = buffer[len - len.min(detect::TAIL_BYTES)..len].to_vec();
        }
        let mut parts: Vec<(u64, Range<usize>)> = Vec::with_capacity(runs.len());
        for run in runs {
            let whole = run.start + (run.end - run.start) / ALIGNMENT * ALIGNMENT;
            if whole < run.end {
                self.rest = Some((guest.start + whole as u64, buffer[whole..run.end].to_vec()));
            }
            if run.start < whole {
                parts.push((guest.start + run.start as u64, run.start..whole));
            }
        }
        jobs.push(WriteJob { buffer, parts });
        Ok(())
    }

    pub(super) fn finish(self, output: &Output) -> Result<(), Error> {
        self.check()?;
        output.set_len(self.size.expect("it is set before the end"))?;
        if let Some((at, bytes)) = &self.rest {
            output.buffered()?;
            output.write(bytes, *at)?;
        }
        output.sync()
    }

    fn check(&self) -> Result<(), Error> {
        match detect::would_probe(&self.head, &self.tail) {
            None => Ok(()),
            Some(format) => {
                let message = format!("the guest's disk would itself be taken for a {format} image");
                Err(Error::refuse(Reason::OutputWouldProbe, self.name.clone(), message))
            }
        }
    }
}
