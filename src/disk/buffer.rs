// SPDX-License-Identifier: Apache-2.0
//! Aligned buffers for direct I/O, and a pool that reuses them.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Alignment of memory, length and file offset in direct I/O: a page, which is a multiple of every block size.
pub(super) const ALIGNMENT: usize = 4096;

/// Bytes at an aligned address: a slice of a longer vector.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zero bytes.
    #[must_use]
    pub(super) fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        // The address of an allocation may be unknown: the buffer is then unaligned, and I/O through it is buffered.
        let start = if start > ALIGNMENT { 0 } else { start };
        Self { bytes, start, len }
    }

    /// Greatest length, in bytes, that needs no new memory.
    #[must_use]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len().saturating_sub(ALIGNMENT)
    }

    /// Makes it `len` bytes long. Existing bytes stay; the content of new ones is unspecified.
    pub(super) fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            let mut longer = Self::new(len);
            longer[..self.len].copy_from_slice(self);
            *self = longer;
        }
        let kept = self.len.min(len);
        self.len = len;
        self.poison(kept);
    }

    /// In tests, fills the bytes from `start` on whose content is unspecified, so that they are not zero by chance.
    fn poison(&mut self, start: usize) {
        if cfg!(test) {
            self[start..].fill(0xA5);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Used buffers, kept for reuse: fresh memory costs a page fault every 4 KiB.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Buffer>>,
}

impl Pool {
    /// Buffers kept at most.
    const MAX_FREE: usize = 16;
    /// Largest buffer kept, in bytes.
    const MAX_LEN: usize = 1 << 20;

    /// A buffer of `len` bytes with unspecified content.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let mut free = self.free.lock().expect("no holder of the pool panics");
        let fitting = free.iter().rposition(|buffer| buffer.capacity() >= len);
        let Some(mut buffer) = fitting.map(|at| free.swap_remove(at)) else {
            drop(free);
            let mut buffer = Buffer::new(len);
            buffer.poison(0);
            return buffer;
        };
        buffer.len = 0;
        buffer.resize(len);
        buffer
    }

    /// Gives a buffer back.
    pub(super) fn give(&self, buffer: Buffer) {
        let mut free = self.free.lock().expect("no holder of the pool panics");
        if (1..=Self::MAX_LEN).contains(&buffer.capacity()) && free.len() < Self::MAX_FREE {
            free.push(buffer);
        }
    }
}

/// Whether all bytes are zero.
#[must_use]
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    // Slices are compared by the C library, which is fast however this program is optimised.
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_buffer_keeps_its_bytes_and_is_aligned() {
        let mut buffer = Buffer::default();
        buffer.resize(0);
        for len in [3, 5000, 4000, 9000] {
            let kept = buffer.len().min(len);
            buffer.resize(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer[..kept].iter().all(|byte| *byte == 7));
            assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
            buffer.fill(7);
        }
    }
}
