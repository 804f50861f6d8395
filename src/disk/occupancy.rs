// SPDX-License-Identifier: Apache-2.0
//! Proof that no two extents of an image overlap in its file.
//!
//! Where the offsets ascend, a running maximum is the proof. Otherwise a sorted list of ranges is, as long as they are
//! few; then a bitmap, over one window of the file after the other: memory stays bounded, and only images that are both
//! large and disordered are walked more than once. All walks together cost no more than the source's [`Effort`].
//!
//! Extents that may share a unit must begin at different bytes. One walk compares as many of these as memory allows.

use std::collections::{BTreeMap, BTreeSet};

use super::effort::{Effort, scattered};
use super::{Error, Region};

/// Units a window covers: 8 MiB of bits, which is 4 TiB of 64 KiB clusters or 64 TiB of 1 MiB blocks.
const WINDOW: u64 = 64 << 20;
/// Most walks. The largest VHD (2,040 GiB) in disorder needs 64 windows of sectors; only files that point far out
/// into their holes need more.
const PASSES: u32 = 128;
/// Most ranges that are kept sorted, neighbours joined, in some 15 MiB.
const FEW: usize = 1 << 19;
/// Claims after which their price is paid.
const PRICED: u64 = 1 << 12;
/// Most offsets of shared extents that one walk holds: 64 GiB of the guest in clusters of 64 KiB, in some 20 MiB. Few
/// in tests, whose images are small.
const STARTS: usize = if cfg!(test) { 1000 } else { 1 << 20 };

/// What one walk over an image's tables has claimed so far.
pub(crate) struct Occupancy {
    unit: u64,
    /// What was claimed, as long as that is few ranges; then the window is.
    few: Option<Few>,
    /// First unit of the window.
    start: u64,
    whole: Vec<u64>,
    shared: Vec<u64>,
    /// Claims of this walk that are not paid yet.
    unpaid: u64,
    /// One past the last unit claimed, while all claims ascend.
    frontier: u64,
    ascending: bool,
    last_shared: bool,
    /// The lowest unit claimed beyond the window.
    beyond: Option<u64>,
    /// The lowest offsets of shared extents, from `first_start` on.
    starts: BTreeSet<u64>,
    first_start: u64,
    /// The lowest of those offsets for which there was no room.
    left_out: Option<u64>,
    /// One past the first byte of the last shared extent.
    behind_start: u64,
}

/// A range was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken;

/// Ranges of units, sorted.
#[derive(Default)]
struct Few {
    whole: Spans,
    shared: Spans,
    /// How many of them are few.
    limit: usize,
}

/// Walks the tables of `region`, as often as its size demands. `walk` claims every range, in units of `unit` bytes, and
/// must claim the same each time. Returns what the first walk returned.
pub(crate) fn survey<T>(
    region: &Region,
    unit: u64,
    walk: impl FnMut(&mut Occupancy) -> Result<T, Error>,
) -> Result<T, Error> {
    survey_with(region, unit, FEW, walk)
}

/// The same, where so many ranges are few.
fn survey_with<T>(
    region: &Region,
    unit: u64,
    limit: usize,
    mut walk: impl FnMut(&mut Occupancy) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut occupancy = Occupancy::new(unit, 0, 0);
    occupancy.few = Some(Few { limit, ..Few::default() });
    let answer = walk(&mut occupancy)?;
    for _ in 1..PASSES {
        let Some(next) = occupancy.next() else { return Ok(answer) };
        occupancy = next;
        walk(&mut occupancy)?;
    }
    match occupancy.next() {
        None => Ok(answer),
        Some(_) => Err(scattered(region.name())),
    }
}

impl Occupancy {
    fn new(unit: u64, start: u64, first_start: u64) -> Self {
        Self {
            unit,
            few: None,
            start,
            whole: Vec::new(),
            shared: Vec::new(),
            unpaid: 0,
            frontier: 0,
            ascending: true,
            last_shared: false,
            beyond: None,
            starts: BTreeSet::new(),
            first_start,
            left_out: None,
            behind_start: 0,
        }
    }

    /// Claims `len` bytes from `offset` for one extent alone.
    pub(crate) fn claim(&mut self, offset: u64, len: u64) -> Result<(), Taken> {
        let (first, end) = self.units(offset, len);
        self.ascending &= first >= self.frontier;
        self.frontier = self.frontier.max(end);
        self.last_shared = false;
        if let Some(few) = &mut self.few {
            if few.whole.meets(first, end) || few.shared.meets(first, end) {
                return Err(Taken);
            }
            few.whole.add(first, end);
            self.keep_few();
            return Ok(());
        }
        self.mark_whole(first, end)
    }

    fn mark_whole(&mut self, first: u64, end: u64) -> Result<(), Taken> {
        for (word, mask) in self.window(first, end) {
            if (at(&self.whole, word) | at(&self.shared, word)) & mask != 0 {
                return Err(Taken);
            }
            set(&mut self.whole, word, mask);
        }
        Ok(())
    }

    /// Claims `len` bytes from `offset` for an extent whose units may hold other shared ones, but none that begins where it
    /// does.
    pub(crate) fn share(&mut self, offset: u64, len: u64) -> Result<(), Taken> {
        let (first, end) = self.units(offset, len);
        self.ascending &= first >= self.frontier || (self.last_shared && first + 1 == self.frontier);
        self.ascending &= offset >= self.behind_start;
        self.behind_start = offset.saturating_add(1);
        self.start(offset)?;
        self.frontier = self.frontier.max(end);
        self.last_shared = true;
        if let Some(few) = &mut self.few {
            if few.whole.meets(first, end) {
                return Err(Taken);
            }
            few.shared.add(first, end);
            self.keep_few();
            return Ok(());
        }
        self.mark_shared(first, end)
    }

    /// Pays what the claims since the last payment cost.
    ///
    /// # Errors
    /// `Corrupt` once the budget of `region` is spent.
    pub(crate) fn pay(&mut self, region: &Region) -> Result<(), Error> {
        self.unpaid += 1;
        if self.unpaid < PRICED {
            return Ok(());
        }
        let effort: &Effort = region.effort();
        effort.spend(region.name(), std::mem::take(&mut self.unpaid))
    }

    /// Goes on with the window where the ranges are no longer few.
    fn keep_few(&mut self) {
        let Some(few) = self.few.take_if(|few| few.whole.count() + few.shared.count() > few.limit) else { return };
        for (first, end) in few.whole.0 {
            self.mark_whole(first, end).expect("ranges that are kept do not overlap");
        }
        for (first, end) in few.shared.0 {
            self.mark_shared(first, end).expect("shared ranges meet no other");
        }
    }

    fn mark_shared(&mut self, first: u64, end: u64) -> Result<(), Taken> {
        for (word, mask) in self.window(first, end) {
            if at(&self.whole, word) & mask != 0 {
                return Err(Taken);
            }
            set(&mut self.shared, word, mask);
        }
        Ok(())
    }

    fn start(&mut self, offset: u64) -> Result<(), Taken> {
        if offset < self.first_start || self.left_out.is_some_and(|lowest| offset >= lowest) {
            return Ok(());
        }
        if !self.starts.insert(offset) {
            return Err(Taken);
        }
        if self.starts.len() > STARTS {
            self.left_out = self.starts.pop_last();
        }
        Ok(())
    }

    fn units(&self, offset: u64, len: u64) -> (u64, u64) {
        (offset / self.unit, offset.saturating_add(len).div_ceil(self.unit))
    }

    /// The words and bits of the window that units `first..end` touch.
    fn window(&mut self, first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let limit = self.start + WINDOW;
        if end > limit {
            let outside = first.max(limit);
            self.beyond = Some(self.beyond.map_or(outside, |lowest| lowest.min(outside)));
        }
        let from = first.clamp(self.start, limit) - self.start;
        let to = end.clamp(self.start, limit) - self.start;
        let words = if from < to { from / 64..to.div_ceil(64) } else { 0..0 };
        words.map(move |word| {
            let low = from.saturating_sub(word * 64).min(63);
            let high = (to - word * 64).min(64);
            let mask = (u64::MAX << low) & (u64::MAX >> (64 - high));
            (usize::try_from(word).expect("a window's words fit"), mask)
        })
    }

    /// The state for the next walk; `None` when all is proved.
    fn next(&self) -> Option<Self> {
        let is_window_all = self.few.is_some() || self.beyond.is_none();
        if self.ascending || (is_window_all && self.left_out.is_none()) {
            return None;
        }
        let start = self.beyond.unwrap_or(self.start);
        Some(Self::new(self.unit, start, self.left_out.unwrap_or(self.first_start)))
    }
}

/// Ranges without overlaps, each from its first number to one past its last; neighbours are joined.
#[derive(Debug, Default)]
pub(crate) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Whether a number of `first..end` is in one of them.
    pub(crate) fn meets(&self, first: u64, end: u64) -> bool {
        first < end && self.0.range(..end).next_back().is_some_and(|(_, &behind)| behind > first)
    }

    /// Adds `first..end`, which may overlap others.
    pub(crate) fn add(&mut self, mut first: u64, mut end: u64) {
        if first >= end {
            return;
        }
        while let Some((&start, &behind)) = self.0.range(..=end).next_back()
            && behind >= first
        {
            self.0.remove(&start);
            first = first.min(start);
            end = end.max(behind);
        }
        self.0.insert(first, end);
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

fn at(bits: &[u64], word: usize) -> u64 {
    bits.get(word).copied().unwrap_or(0)
}

fn set(bits: &mut Vec<u64>, word: usize, mask: u64) {
    if bits.len() <= word {
        // Doubled, but never beyond the window, which is a power of two.
        let len = (word + 1).next_power_of_two();
        bits.reserve_exact(len - bits.len());
        bits.resize(len, 0);
    }
    bits[word] |= mask;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conversion::Reason;
    use crate::disk::resolve::region_over;

    fn survey<T>(unit: u64, walk: impl FnMut(&mut Occupancy) -> Result<T, Error>) -> Result<T, Error> {
        survey_with(&region_over(b"x"), unit, 4, walk)
    }

    fn claims(unit: u64, all: &[(u64, u64)]) -> Result<u32, Error> {
        let mut walks = 0;
        survey(unit, |occupancy| {
            walks += 1;
            for &(offset, len) in all {
                occupancy.claim(offset, len).map_err(|Taken| Error::corrupt("x", offset, "taken"))?;
            }
            Ok(())
        })?;
        Ok(walks)
    }

    #[test]
    fn neighbours_do_not_overlap_in_any_order() {
        assert_eq!(claims(512, &[(0, 512), (512, 1 << 20), (513 << 11, 512)]).unwrap(), 1);
        assert_eq!(claims(512, &[(1 << 20, 512), (512, (1 << 20) - 512), (0, 512)]).unwrap(), 1);
    }

    #[test]
    fn overlaps_are_found_whatever_the_order() {
        for all in [
            [(0, 4096), (4096, 4096), (4096, 4096)],
            [(0, 4096), (4096, 4096), (0, 512)],
            [(8192, 4096), (0, 4096), (3584, 512)],
            [(100 * 512, 512), (0, 512), (0, 200 * 512)],
        ] {
            assert!(claims(512, &all).is_err(), "{all:?}");
        }
    }

    #[test]
    fn a_disordered_file_larger_than_a_window_is_walked_again() {
        let far = WINDOW * 512;
        assert_eq!(claims(512, &[(0, 512), (far, 512), (far * 5, 512)]).unwrap(), 1);
        assert_eq!(claims(512, &[(far * 5, 512), (far, 512), (0, 512)]).unwrap(), 1, "few are sorted");
        let many = [(far * 5, 512), (far, 512), (0, 512), (1024, 512), (2048, 512)];
        assert_eq!(claims(512, &many).unwrap(), 3);
        assert!(claims(512, &[&many[..], &[(far * 5, 512)]].concat()).is_err());
        assert!(claims(512, &[(far * 5, 1024), (far * 5 + 512, 512), (0, 512)]).is_err());
        // Across the border between two windows.
        assert!(claims(512, &[(far - 512, 1024), (0, 512), (far, 512)]).is_err());
    }

    #[test]
    fn what_all_walks_cost_together_is_bounded() {
        let region = region_over(b"x");
        let error = super::survey(&region, 512, |occupancy| {
            for number in 0..(1_u64 << 28) {
                occupancy.pay(&region)?;
                if number % (1 << 20) == 0 {
                    occupancy.claim(number * 512, 512).map_err(|Taken| Error::corrupt("x", number, "taken"))?;
                }
            }
            Ok(())
        });
        assert_eq!(error.unwrap_err().remedy, Some(crate::conversion::Remedy::WriteTablesAnew));
    }

    proptest! {
        #[test]
        fn spans_hold_what_was_added(ranges in proptest::collection::vec((0_u64..64, 0_u64..9), 0..20), at in 0_u64..64) {
            let mut spans = Spans::default();
            for &(first, len) in &ranges {
                spans.add(first, first + len);
            }
            let expected = ranges.iter().any(|&(first, len)| (first..first + len).contains(&at));
            prop_assert_eq!(spans.meets(at, at + 1), expected);
            prop_assert_eq!(spans.meets(at, at), false);
        }
    }

    #[test]
    fn pointers_scattered_over_a_huge_hole_are_refused_not_walked_for_ever() {
        let far = WINDOW * 512;
        let all: Vec<_> = (0..200).rev().map(|i| (i * far, 512)).collect();
        let error = claims(512, &all).unwrap_err();
        assert_eq!(error.reason, Reason::Corrupt);
    }

    proptest! {
        #[test]
        fn an_overlap_is_found_where_a_list_of_all_claims_has_one(
            claims in proptest::collection::vec(
                (prop_oneof![Just(0u64), Just(WINDOW - 4), Just(3 * WINDOW)], 0u64..24, 1u64..8, any::<bool>()),
                1..8,
            ),
            sorted in any::<bool>(),
        ) {
            const UNIT: u64 = 512;
            let mut claims: Vec<_> = claims.into_iter().map(|(base, at, len, alone)| (base + at, len, alone)).collect();
            if sorted {
                claims.sort_unstable();
            }
            let overlap = |(a, a_len, a_alone): (u64, u64, bool), (b, b_len, b_alone): (u64, u64, bool)| {
                a < b + b_len && b < a + a_len && (a_alone || b_alone || a == b)
            };
            let naive = (0..claims.len()).any(|one| (0..one).any(|other| overlap(claims[one], claims[other])));
            let found = survey(UNIT, |occupancy| {
                claims.iter().try_for_each(|&(at, len, alone)| {
                    let (at, len) = (at * UNIT, len * UNIT);
                    let claimed = if alone { occupancy.claim(at, len) } else { occupancy.share(at, len) };
                    claimed.map_err(|Taken| Error::corrupt("x", at, "taken"))
                })
            });
            prop_assert_eq!(found.is_err(), naive, "{:?}", claims);
        }
    }

    #[test]
    fn two_that_begin_at_one_byte_are_found_however_many_lie_between() {
        let many = 5 * STARTS as u64;
        let shares = |starts: &[u64]| {
            let mut walks = 0;
            survey(65536, |occupancy| {
                walks += 1;
                let mut starts = starts.iter();
                starts.try_for_each(|&at| occupancy.share(at, 9).map_err(|Taken| Error::corrupt("x", at, "taken")))
            })
            .map(|()| walks)
        };
        let ascending: Vec<_> = (0..many).map(|n| n * 100).collect();
        let descending: Vec<_> = ascending.iter().rev().copied().collect();
        assert_eq!(shares(&ascending).unwrap(), 1);
        assert_eq!(shares(&descending).unwrap(), 5);
        for twice in [0, 1, STARTS - 1, STARTS, STARTS + 1, ascending.len() - 1] {
            for all in [&ascending, &descending] {
                let error = shares(&[&all[..], &[all[twice]]].concat()).unwrap_err();
                assert_eq!(error.offset, Some(all[twice]));
            }
        }
    }

    #[test]
    fn shared_places_may_meet_each_other_but_nothing_else() {
        survey(65536, |occupancy| {
            assert_eq!(occupancy.share(0, 1000), Ok(()));
            assert_eq!(occupancy.share(1000, 70_000), Ok(()));
            assert_eq!(occupancy.share(500, 10), Ok(()));
            assert_eq!(occupancy.claim(65536, 65536), Err(Taken));
            assert_eq!(occupancy.claim(131_072, 65536), Ok(()));
            assert_eq!(occupancy.share(131_073, 1), Err(Taken));
            Ok(())
        })
        .unwrap();
    }
}
