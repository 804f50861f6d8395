//! A bounded window on a source file: a whole image, or one member of an OVA.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
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
    cancellation: Cancellation,
    #[cfg(test)]
    before_read: Option<BeforeRead>,
}

/// Ends the work of whoever holds a clone of it.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Ends the work.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
        Self {
            file,
            name: name.into(),
            start: 0,
            len,
            cancellation: Cancellation::default(),
            #[cfg(test)]
            before_read: None,
        }
    }

    /// The same until `cancellation`: nothing is read after it, by whatever table check, digest or copy.
    #[must_use]
    pub fn until(&self, cancellation: &Cancellation) -> Self {
        Self { cancellation: cancellation.clone(), ..self.clone() }
    }

    /// The whole of a file of `len` bytes that stands for this region: it has its name and its cancellation.
    #[must_use]
    pub fn unpacked(&self, file: Arc<File>, len: u64) -> Self {
        Self::whole(file, Arc::clone(&self.name), len).until(&self.cancellation)
    }

    /// A part of this region, called `name`; `None` where it would pass the end.
    pub fn part(&self, name: impl Into<Arc<str>>, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self {
            file: Arc::clone(&self.file),
            name: name.into(),
            start: self.start + start,
            len,
            cancellation: self.cancellation.clone(),
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

    /// The open file behind it, and where in that file the region starts.
    #[must_use]
    pub fn file(&self) -> (&Arc<File>, u64) {
        (&self.file, self.start)
    }

    /// Whether both are the same bytes of the same file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && (self.start, self.len) == (other.start, other.len)
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `Truncated` where the region ends before, `SourceIO` where the system fails, `Cancelled`.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let wanted = buffer.len() as u64;
        if offset.checked_add(wanted).is_none_or(|end| end > self.len) {
            let message = format!("needs {wanted} bytes, but the file ends at byte {}", self.len);
            return Err(Error::truncated(self.name(), offset, message));
        }
        self.cancellation.check(self.name())?;
        #[cfg(test)]
        if let Some(BeforeRead(hook)) = &self.before_read {
            hook(buffer.len());
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
