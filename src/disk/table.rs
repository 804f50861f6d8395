//! A table of equal entries in a file, read one page at a time.

use super::Error;

/// How much of a table is held. A block allocation table may have hundreds of MiB; walked in order, it costs one read
/// for each page.
const PAGE: usize = 64 * 1024;

/// `entries` entries of `N` bytes from byte `offset`. The caller has checked that the table lies inside its file.
pub(crate) struct Table<const N: usize> {
    offset: u64,
    entries: u64,
    page: Vec<u8>,
    /// Index of the page's first entry.
    first: u64,
}

impl<const N: usize> Table<N> {
    /// Reads nothing yet.
    pub(crate) fn new(offset: u64, entries: u64) -> Self {
        Self { offset, entries, page: Vec::new(), first: 0 }
    }

    /// Where entry `index` lies in the file, for errors.
    pub(crate) fn place(&self, index: u64) -> u64 {
        self.offset + index * N as u64
    }

    /// Entry `index`, which must be below `entries`. `read` fills a buffer from a place in the file.
    pub(crate) fn entry(
        &mut self,
        index: u64,
        read: impl Fn(&mut [u8], u64) -> Result<(), Error>,
    ) -> Result<[u8; N], Error> {
        debug_assert!(index < self.entries);
        let held = (self.page.len() / N) as u64;
        if index < self.first || index >= self.first + held {
            let per_page = (PAGE / N) as u64;
            let first = index - index % per_page;
            let count = per_page.min(self.entries - first);
            self.page.resize(usize::try_from(count).expect("a page's entries fit") * N, 0);
            let place = self.place(first);
            if let Err(e) = read(&mut self.page, place) {
                self.page.clear();
                return Err(e);
            }
            self.first = first;
        }
        let at = usize::try_from(index - self.first).expect("a page's entries fit") * N;
        Ok(super::fields::array(&self.page, at))
    }
}
