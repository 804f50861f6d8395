// SPDX-License-Identifier: Apache-2.0
//! Joins adjoining extents, so that not every entry of a table becomes a read of its own.

use super::{Error, Extent, Location};

/// Longest joined extent, in guest bytes. A copy can be cancelled only between two extents, so the walk over an empty
/// table of 64 TiB must not be one step.
const LONGEST: u64 = 16 << 30;

/// Joins neighbouring zeros, and neighbouring stored extents that also adjoin in the file. Ends after the first
/// error.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The location of each unit: equal for two maps that differ only in how they are cut.
    fn units(extents: impl Iterator<Item = Result<Extent, Error>>, unit: u64) -> Vec<(u64, Location)> {
        let of = |extent: Extent| {
            (extent.guest.start..extent.guest.end).step_by(usize::try_from(unit).unwrap()).map(move |guest| {
                let at = match extent.at {
                    Location::Stored { file, offset } => {
                        Location::Stored { file, offset: offset + (guest - extent.guest.start) }
                    }
                    at => at,
                };
                (guest, at)
            })
        };
        extents.map(Result::unwrap).flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn a_joined_map_says_the_same_and_has_no_two_extents_that_go_on(
            kinds in proptest::collection::vec((0usize..5, 0u64..3, 1u64..4), 1..60),
            unit in prop_oneof![Just(512u64), Just(LONGEST / 4)],
        ) {
            let mut guest = 0;
            let mut extents = Vec::new();
            let mut offset = 0;
            for (kind, gap, len) in kinds {
                offset += gap * unit;
                let len = len * unit;
                let at = match kind {
                    0 => Location::Zero,
                    1 => Location::Zstd { file: 0, offset, len: 7 },
                    2 => Location::Stored { file: 1, offset },
                    _ => Location::Stored { file: 0, offset },
                };
                extents.push(Extent { guest: guest..guest + len, at });
                guest += len;
                offset += if at == Location::Zero { 0 } else { len };
            }
            let joined: Vec<_> = coalesce(extents.iter().cloned().map(Ok)).map(Result::unwrap).collect();
            prop_assert_eq!(units(joined.iter().cloned().map(Ok), unit), units(extents.iter().cloned().map(Ok), unit));
            prop_assert!(joined.windows(2).all(|two| !continues(&two[0], &two[1])));
            let longest = extents.iter().map(Extent::len).max().unwrap();
            prop_assert!(joined.iter().all(|extent| extent.len() <= LONGEST.max(longest)));
        }
    }

    #[test]
    fn what_came_before_an_error_comes_before_it() {
        let zero = |guest| Ok(Extent { guest, at: Location::Zero });
        let damage = Error::corrupt("x", 7, "damaged");
        let mut joined = coalesce(vec![zero(0..512), zero(512..1024), Err(damage), zero(1024..2048)].into_iter());
        assert_eq!(joined.next().unwrap().unwrap().guest, 0..1024);
        assert_eq!(joined.next().unwrap().unwrap_err().offset, Some(7));
        assert!(joined.next().is_none());
    }
}
