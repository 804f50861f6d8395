// SPDX-License-Identifier: Apache-2.0
//! Memory that direct I/O takes, and its reuse.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Alignment of memory, length and file offset that direct I/O gets: the page, which every block size divides.
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
        // An allocation that can't tell its alignment is only slower: direct I/O refuses it, buffered I/O does not.
        let start = if start > ALIGNMENT { 0 } else { start };
        Self { bytes, start, len }
    }

    /// Bytes that it can have without new memory.
    #[must_use]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len().saturating_sub(ALIGNMENT)
    }

    /// Makes it `len` bytes long. The first of them stay as they are; what is new has any content.
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

    /// Under test, what may have any content from `start` on is not zero.
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

/// Buffers that were used once, kept for the next: fresh memory costs a page fault every 4 KiB.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Buffer>>,
}

impl Pool {
    /// Buffers kept at most.
    const MAX_FREE: usize = 16;
    /// Largest buffer kept, in bytes.
    const MAX_LEN: usize = 1 << 20;

    /// A buffer of `len` bytes with any content.
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
    // Comparing is the C library's, which is as fast as the processor whatever this program is optimised for.
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
