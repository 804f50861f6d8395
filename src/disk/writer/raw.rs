// SPDX-License-Identifier: Apache-2.0
//! Raw output: the guest's bytes, with holes for zeros.

use std::ops::Range;

use super::coded::{Coded, Coding, Content};
use super::ends::Ends;
use super::job::WriteJob;
use super::output::Output;
use crate::disk::Error;
use crate::disk::buffer::ALIGNMENT;

/// A raw disk being written.
#[derive(Debug)]
pub(crate) struct Raw {
    /// Absent until it is known.
    size: Option<u64>,
    /// The file's length is a multiple of it.
    unit: u64,
    name: String,
    ends: Ends,
    /// The last piece, where it is no whole block.
    rest: Option<(u64, Vec<u8>)>,
}

impl Raw {
    pub(super) fn new(size: Option<u64>, unit: u64, name: &str) -> Self {
        Self { size, unit, name: name.to_owned(), ends: Ends::default(), rest: None }
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    #[expect(clippy::unused_self, reason = "writers answer for themselves")]
    pub(super) fn coding(&self) -> Coding {
        Coding::Runs { unit: ALIGNMENT }
    }

    pub(super) fn place(&mut self, coded: Coded, jobs: &mut Vec<WriteJob>) -> Result<(), Error> {
        self.ends.keep(&coded, self.size, &self.name)?;
        let Coded { guest, buffer, content } = coded;
        let Content::Runs(runs) = content else { unreachable!("this writer asks for runs") };
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
        jobs.push(WriteJob { buffer, parts, zeros: Vec::new() });
        Ok(())
    }

    pub(super) fn finish(self, output: &Output) -> Result<(), Error> {
        self.ends.check(&self.name)?;
        let size = self.size.expect("it is set before the end");
        output.set_len(size.checked_next_multiple_of(self.unit).unwrap_or(size))?;
        if let Some((at, bytes)) = &self.rest {
            output.buffered()?;
            output.write(bytes, *at)?;
        }
        output.sync()
    }
}
