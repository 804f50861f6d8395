//! Joins extents that continue each other, so that one entry of a table is not one read.

use super::{Error, Extent, Location};

/// The longest joined extent: between two of them a copy can be cancelled, and a walk over an empty table of 64 TiB
/// must not be one step.
const LONGEST: u64 = 16 << 30;

/// Joins neighbouring zeros and stored extents that are neighbours in the file as well. Ends after the first error.
pub(crate) fn coalesce<I>(extents: I) -> Coalesce<I>
where
    I: Iterator<Item = Result<Extent, Error>>,
{
    Coalesce { extents, held: None, failed: None, ended: false }
}

pub(crate) struct Coalesce<I> {
    extents: I,
    held: Option<Extent>,
    failed: Option<Error>,
    ended: bool,
}

impl<I> Iterator for Coalesce<I>
where
    I: Iterator<Item = Result<Extent, Error>>,
{
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.extents.next() {
                None => self.ended = true,
                Some(Err(e)) => {
                    self.ended = true;
                    self.failed = Some(e);
                }
                Some(Ok(next)) => match &mut self.held {
                    Some(held) if continues(held, &next) => held.guest.end = next.guest.end,
                    held => {
                        if let Some(whole) = held.replace(next) {
                            return Some(Ok(whole));
                        }
                    }
                },
            }
        }
        self.held.take().map(Ok).or_else(|| self.failed.take().map(Err))
    }
}

fn continues(held: &Extent, next: &Extent) -> bool {
    if next.guest.end - held.guest.start > LONGEST {
        return false;
    }
    match (held.at, next.at) {
        (Location::Zero, Location::Zero) => true,
        (Location::Stored { file, offset }, Location::Stored { file: next_file, offset: next_offset }) => {
            file == next_file && offset + held.len() == next_offset
        }
        _ => false,
    }
}
