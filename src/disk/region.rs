// SPDX-License-Identifier: Apache-2.0
//! A bounded window on a source file: a whole image, one member of an OVA, parts of a file joined in place, or a file with
//! holes of which an archive keeps the data.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Error;
use super::effort::Effort;
use super::segments::Segments;
use super::units::{SECTOR, SECTOR_BYTES};
use crate::conversion::Reason;

/// `len` bytes of `file` from `start`. Readers get regions, so that an image inside an OVA is read in place and can
/// never reach beyond its member. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Region {
    file: Arc<File>,
    /// What errors call it: the file's base name, or `vm.ova:disk1.vmdk`.
    name: Arc<str>,
    start: u64,
    len: u64,
    /// The same file, open for direct I/O.
    direct: Option<Arc<File>>,
    layout: Layout,
    cancellation: Cancellation,
    effort: Effort,
    #[cfg(test)]
    before_read: Option<BeforeRead>,
}

/// What `start` counts from.
#[derive(Clone, Debug)]
enum Layout {
    /// The first byte of `file`.
    Plain,
    /// The first part's first byte: the parts in order, each with the place of its first byte. `file` is the first part's.
    Joined(Arc<[(u64, Region)]>),
    /// The first byte of a file with holes. The region has its data, one behind the other, and `file` is that region's.
    Sparse(Arc<(Region, Segments)>),
}

/// Shorter reads go through the page cache: there the kernel reads ahead.
const MIN_DIRECT: usize = 64 << 10;

/// Ends the work of everyone who holds a clone of it, and counts what they do together.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(Arc<Work>);

#[derive(Debug, Default)]
struct Work {
    is_cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

impl Cancellation {
    /// Ends the work.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Relaxed)
    }

    /// Bytes done, and bytes of all passes begun so far.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.0.done.load(Ordering::Relaxed), self.0.total.load(Ordering::Relaxed))
    }

    /// Adds the bytes of another pass to the total.
    pub(super) fn expect(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes to those done.
    pub(super) fn advance(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Fails once it was ended, at the file `name`.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self, name: &str) -> Result<(), Error> {
        if self.is_cancelled() {
            return Err(Error::refuse(Reason::Cancelled, name, "the copy was cancelled"));
        }
        Ok(())
    }
}

/// Called before every read with its length, to count or to delay it.
#[cfg(test)]
#[derive(Clone)]
pub(crate) struct BeforeRead(pub Arc<dyn Fn(usize) + Send + Sync>);

#[cfg(test)]
impl std::fmt::Debug for BeforeRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BeforeRead")
    }
}

impl Region {
    /// The whole of an open regular file of `len` bytes.
    pub fn whole(file: Arc<File>, name: impl Into<Arc<str>>, len: u64) -> Self {
        let region = Self {
            file,
            name: name.into(),
            start: 0,
            len,
            direct: None,
            layout: Layout::Plain,
            cancellation: Cancellation::default(),
            effort: Effort::default(),
            #[cfg(test)]
            before_read: None,
        };
        region.effort.grow(region.stored());
        region
    }

    /// The same, whose tables are checked within `effort`.
    pub(super) fn within(&self, effort: &Effort) -> Self {
        Self { effort: effort.clone(), ..self.clone() }
    }

    /// Bytes that its whole file occupies (stat(2): blocks of 512), or the file's length where that is less. What is joined
    /// from parts counts as those.
    pub(super) fn stored(&self) -> u64 {
        if !self.is_plain() {
            return 0;
        }
        self.file.metadata().map_or(0, |file| file.blocks().saturating_mul(512).min(file.len()))
    }

    /// What checking its tables may still cost.
    pub(super) fn effort(&self) -> &Effort {
        &self.effort
    }

    /// The same, whose file is open a second time in `direct`, for direct I/O.
    #[must_use]
    pub fn also_direct(self, direct: Option<Arc<File>>) -> Self {
        Self { direct, ..self }
    }

    /// The same region, but every read fails after `cancellation`: in table checks, digests and copies alike.
    #[must_use]
    pub fn until(&self, cancellation: &Cancellation) -> Self {
        Self { cancellation: cancellation.clone(), ..self.clone() }
    }

    /// A region over the whole of `file`, `len` bytes, in place of this one: with its name and its cancellation.
    #[must_use]
    pub fn unpacked(&self, file: Arc<File>, len: u64) -> Self {
        let whole = Self::whole(file, Arc::clone(&self.name), len).until(&self.cancellation);
        self.effort.grow(whole.stored());
        whole.within(&self.effort)
    }

    /// The regions `parts`, one behind the other, as one called `name`; `None` where there is none, or where their
    /// lengths overflow.
    pub fn joined(name: impl Into<Arc<str>>, parts: &[Self]) -> Option<Self> {
        let first = parts.first()?;
        let mut len = 0u64;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            placed.push((len, part.clone()));
            len = len.checked_add(part.len)?;
        }
        let whole = Self::whole(Arc::clone(&first.file), name, len).until(&first.cancellation).within(&first.effort);
        Some(Self { layout: Layout::Joined(placed.into()), ..whole })
    }

    /// A file with holes called `name`, whose data are the bytes of `kept`, one behind the other.
    pub(super) fn sparse(name: impl Into<Arc<str>>, kept: &Self, segments: Segments) -> Self {
        let len = segments.len();
        let layout = Layout::Sparse(Arc::new((kept.clone(), segments)));
        Self { name: name.into(), start: 0, len, direct: None, layout, ..kept.clone() }
    }

    /// A part of this region, called `name`; `None` where it would pass the end.
    pub fn part(&self, name: impl Into<Arc<str>>, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self {
            file: Arc::clone(&self.file),
            name: name.into(),
            start: self.start + start,
            len,
            direct: self.direct.clone(),
            layout: self.layout.clone(),
            cancellation: self.cancellation.clone(),
            effort: self.effort.clone(),
            #[cfg(test)]
            before_read: self.before_read.clone(),
        })
    }

    /// The same with a hook.
    #[cfg(test)]
    pub(crate) fn before_reads(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.before_read = Some(BeforeRead(Arc::new(hook)));
        self
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open file behind it, and where in that file the region starts; `None` of a joined region, which lies in
    /// several, and of a sparse one, which does not lie there as it is.
    #[must_use]
    pub fn file(&self) -> Option<(&Arc<File>, u64)> {
        self.is_plain().then_some((&self.file, self.start))
    }

    /// Whether both are the same bytes of the same file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same_layout = match (&self.layout, &other.layout) {
            (Layout::Plain, Layout::Plain) | (Layout::Joined(_), Layout::Joined(_)) => {
                Arc::ptr_eq(&self.file, &other.file)
            }
            (Layout::Sparse(one), Layout::Sparse(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        is_same_layout && (self.start, self.len) == (other.start, other.len)
    }

    fn is_plain(&self) -> bool {
        matches!(self.layout, Layout::Plain)
    }

    /// Of a sparse region: the first data from `at` on; an empty range where there are none. `None` of another region.
    pub(super) fn data_from(&self, at: u64) -> Option<Range<u64>> {
        let Layout::Sparse(sparse) = &self.layout else { return None };
        let place = self.start + at;
        let data = sparse.1.from(place).map_or(place..place, |data| data.start.max(place)..data.end);
        Some(data.start - self.start..data.end - self.start)
    }

    /// Fails once its work was ended.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self) -> Result<(), Error> {
        self.cancellation.check(self.name())
    }

    /// Adds the bytes of a pass over it to the work that is to be done.
    pub(super) fn expect(&self, bytes: u64) {
        self.cancellation.expect(bytes);
    }

    /// Adds bytes to the work that is done.
    pub(super) fn advance(&self, bytes: u64) {
        self.cancellation.advance(bytes);
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `Truncated` where the region ends before, `SourceIO` where the system fails, `Cancelled`.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.begin(buffer.len(), offset)?;
        self.read_cached(buffer, offset)
    }

    /// The same for a part of a table, within the budget of [`Region::within`]. What the file system knows as a hole is
    /// filled with zeros and not read. Returns whether there was anything to read.
    ///
    /// # Errors
    /// As [`Region::read_exact_at`]; `Corrupt` once the budget is spent.
    pub(super) fn read_table_at(&self, buffer: &mut [u8], offset: u64) -> Result<bool, Error> {
        self.begin(buffer.len(), offset)?;
        if !self.is_plain() {
            self.effort.spend_read(self.name(), buffer.len())?;
            return self.read_cached(buffer, offset).map(|()| true);
        }
        let is_hole = match seek(&*self.file, SeekFrom::Data(self.start + offset)) {
            Ok(data) => data >= self.start + offset + buffer.len() as u64,
            // No data up to the file's end, which the read below finds where the file shrank.
            Err(Errno::NXIO) => self.file.metadata().is_ok_and(|file| file.len() >= self.start + self.len),
            Err(_) => false,
        };
        self.effort.spend_read(self.name(), if is_hole { 0 } else { buffer.len() })?;
        if is_hole {
            buffer.fill(0);
            return Ok(false);
        }
        self.read_cached(buffer, offset).map(|()| true)
    }

    /// The same for bytes that are read only once: a long read that suits direct I/O bypasses the page cache.
    ///
    /// # Errors
    /// As [`Region::read_exact_at`].
    pub fn read_once_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.begin(buffer.len(), offset)?;
        let at = self.start + offset;
        // Where the disk's sectors are larger, direct I/O is refused.
        let suits = buffer.len() >= MIN_DIRECT
            && buffer.len().is_multiple_of(SECTOR_BYTES)
            && at.is_multiple_of(SECTOR)
            && buffer.as_ptr().addr().is_multiple_of(SECTOR_BYTES);
        match &self.direct {
            // Where direct I/O fails, the buffered read succeeds or has the error.
            Some(direct) if suits && direct.read_exact_at(buffer, at).is_ok() => Ok(()),
            _ => self.read_cached(buffer, offset),
        }
    }

    /// Checks, before every read, that it is within the region and that nobody cancelled.
    fn begin(&self, wanted: usize, offset: u64) -> Result<(), Error> {
        if offset.checked_add(wanted as u64).is_none_or(|end| end > self.len) {
            let message = format!("needs {wanted} bytes, but the file ends at byte {}", self.len);
            return Err(Error::truncated(self.name(), offset, message));
        }
        self.check()?;
        #[cfg(test)]
        if let Some(BeforeRead(hook)) = &self.before_read {
            hook(wanted);
        }
        Ok(())
    }

    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        match &self.layout {
            Layout::Joined(parts) => return read_parts(parts, buffer, self.start + offset),
            Layout::Sparse(sparse) => return read_sparse(&sparse.0, &sparse.1, buffer, self.start + offset),
            Layout::Plain => {}
        }
        match self.file.read_exact_at(buffer, self.start + offset) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::truncated(self.name(), offset, "the file shrank while it was read"))
            }
            Err(e) => Err(Error::reading(self.name(), offset, e)),
        }
    }
}

/// Fills `buffer`, which lies within `parts`, from the byte `at` of them all.
fn read_parts(parts: &[(u64, Region)], mut buffer: &mut [u8], mut at: u64) -> Result<(), Error> {
    let mut next = parts.partition_point(|(start, _)| *start <= at).saturating_sub(1);
    while !buffer.is_empty() {
        let (start, part) = &parts[next];
        let len = usize::try_from(start + part.len - at).unwrap_or(usize::MAX).min(buffer.len());
        let (now, rest) = buffer.split_at_mut(len);
        part.read_exact_at(now, at - start)?;
        (buffer, at, next) = (rest, at + len as u64, next + 1);
    }
    Ok(())
}

/// Fills `buffer` from the byte `at` of the file whose data `kept` has.
fn read_sparse(kept: &Region, segments: &Segments, mut buffer: &mut [u8], mut at: u64) -> Result<(), Error> {
    while !buffer.is_empty() {
        let data = segments.from(at);
        let end = data.map_or(u64::MAX, |data| if at < data.start { data.start } else { data.end });
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let (now, rest) = buffer.split_at_mut(len);
        match data.filter(|data| data.start <= at) {
            Some(data) => kept.read_exact_at(now, data.at + (at - data.start))?,
            None => now.fill(0),
        }
        (buffer, at) = (rest, at + len as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;

    use super::*;
    use crate::disk::buffer::Buffer;

    /// A file of `len` bytes of the number `content`, open with `flags`.
    fn file(len: usize, content: u8, flags: OFlags) -> Arc<File> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![content; len]).unwrap();
        let flags = flags.bits().cast_signed();
        Arc::new(File::options().read(true).custom_flags(flags).open(file.path()).unwrap())
    }

    #[test]
    fn only_what_suits_direct_io_goes_around_the_page_cache() {
        const LEN: usize = 1 << 20;
        // Two files, to see which one was read.
        let direct = file(LEN, 2, OFlags::DIRECT);
        let region = Region::whole(file(LEN, 1, OFlags::empty()), "file", LEN as u64).also_direct(Some(direct));
        let mut buffer = Buffer::new(2 * MIN_DIRECT);
        let mut read = |region: &Region, start: usize, len: usize, offset: u64| {
            region.read_once_at(&mut buffer[start..start + len], offset).unwrap();
            let first = buffer[start];
            assert!(buffer[start..start + len].iter().all(|byte| *byte == first));
            first
        };
        assert_eq!(read(&region, 0, MIN_DIRECT, 512 << 10), 2);
        assert_eq!(read(&region, 512, MIN_DIRECT, 512), 2);
        // Place, memory, length.
        assert_eq!(read(&region, 0, MIN_DIRECT, 100), 1);
        assert_eq!(read(&region, 7, MIN_DIRECT, 0), 1);
        assert_eq!(read(&region, 0, MIN_DIRECT + 1, 512 << 10), 1);
        assert_eq!(read(&region, 0, MIN_DIRECT - SECTOR_BYTES, 768 << 10), 1);
        // A member that does not begin with a sector.
        let member = region.part("member", 100, 900 << 10).unwrap();
        assert_eq!(read(&member, 0, MIN_DIRECT, 400 << 10), 1);
    }

    #[test]
    fn joined_parts_read_as_one_file() {
        let parts = [5, 0, 1, 7]
            .iter()
            .zip(1..)
            .map(|(len, content)| Region::whole(file(*len, content, OFlags::empty()), "part", *len as u64));
        let whole = Region::joined("whole", &parts.collect::<Vec<_>>()).unwrap();
        let bytes = [1, 1, 1, 1, 1, 3, 4, 4, 4, 4, 4, 4, 4];
        assert_eq!((whole.len(), whole.name()), (13, "whole"));
        for start in 0..13 {
            for end in start..=13 {
                let mut found = vec![0; end - start];
                whole.read_exact_at(&mut found, start as u64).unwrap();
                assert_eq!(found, bytes[start..end]);
                let inner = whole.part("inner", start as u64, (end - start) as u64).unwrap();
                let mut found = vec![0; end - start];
                inner.read_once_at(&mut found, 0).unwrap();
                assert_eq!(found, bytes[start..end]);
            }
        }
        assert_eq!(whole.read_exact_at(&mut [0], 13).unwrap_err().reason, Reason::Truncated);
        assert!(whole.file().is_none());
        assert!(Region::joined("none", &[]).is_none());
    }

    #[test]
    fn where_direct_io_fails_the_page_cache_answers() {
        let short = file(MIN_DIRECT, 2, OFlags::DIRECT);
        let region = Region::whole(file(4 * MIN_DIRECT, 1, OFlags::empty()), "file", 4 * MIN_DIRECT as u64);
        let region = region.also_direct(Some(short));
        let mut buffer = Buffer::new(MIN_DIRECT);
        region.read_once_at(&mut buffer, 2 * MIN_DIRECT as u64).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 1));
        let error = region.read_once_at(&mut buffer, 4 * MIN_DIRECT as u64).unwrap_err();
        assert_eq!(error.reason, Reason::Truncated);
    }
}
