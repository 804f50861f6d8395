// SPDX-License-Identifier: Apache-2.0
//! Which bytes of the source the decoders used: no two streams of a qcow2 may share one.
//!
//! A table tells where a stream begins and only roughly where it ends. Were streams allowed to begin within others, a few
//! KiB would decode to gigabytes.

use std::ops::Range;

use crate::disk::occupancy::Spans;
use crate::disk::{Error, Image};

/// Most ranges that are kept, neighbours joined, in some 5 MiB. Images in which more lie apart are checked by the sum
/// of what was used alone: it cannot be more than the file has.
const MANY: usize = if cfg!(test) { 64 } else { 1 << 16 };

/// A stream that was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Consumed {
    /// Number of its file.
    pub file: usize,
    /// Its bytes there.
    pub range: Range<u64>,
    /// The guest byte that it is for.
    pub guest: u64,
}

/// What was used of each file so far.
#[derive(Debug, Default)]
pub(crate) struct Used {
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    /// `None` once they were too many.
    spans: Option<Spans>,
    bytes: u64,
}

impl Default for File {
    fn default() -> Self {
        Self { spans: Some(Spans::default()), bytes: 0 }
    }
}

impl Used {
    /// Adds streams of `image`, in guest order.
    ///
    /// # Errors
    /// `Corrupt` where one of them shares bytes with another.
    pub(crate) fn claim(&mut self, image: &Image, streams: &[Consumed]) -> Result<(), Error> {
        for Consumed { file: number, range, guest } in streams {
            if self.files.len() <= *number {
                self.files.resize_with(number + 1, File::default);
            }
            let (region, file) = (&image.regions[*number], &mut self.files[*number]);
            file.bytes = file.bytes.saturating_add(range.end - range.start);
            let meets = file.spans.as_ref().is_some_and(|spans| spans.meets(range.start, range.end));
            if meets || file.bytes > region.len() {
                let message = format!("the stream for guest byte {guest} shares bytes with another one");
                return Err(Error::corrupt(region.name(), range.start, message));
            }
            if let Some(spans) = &mut file.spans {
                spans.add(range.start, range.end);
            }
            file.spans.take_if(|spans| spans.count() > MANY);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::resolve::region_over;

    fn stream(at: u64, len: u64) -> Consumed {
        Consumed { file: 0, range: at..at + len, guest: 0 }
    }

    #[test]
    fn streams_lie_apart_or_their_sum_tells_that_they_do_not() {
        let image = Image::raw(&region_over(&vec![1; 65536])).unwrap();
        let claim = |streams: &[Consumed]| Used::default().claim(&image, streams).map_err(|e| e.offset);
        assert_eq!(claim(&[stream(100, 50), stream(150, 10), stream(0, 100)]), Ok(()));
        assert_eq!(claim(&[stream(100, 50), stream(149, 1)]), Err(Some(149)));
        assert_eq!(claim(&[stream(100, 50), stream(90, 11)]), Err(Some(90)));
        let mut scattered: Vec<_> = (0..=MANY as u64).map(|n| stream(n * 100, 90)).collect();
        assert_eq!(claim(&scattered), Ok(()));
        scattered.extend(vec![stream(0, 60_000); 2]);
        assert_eq!(claim(&scattered), Err(Some(0)));
    }
}
