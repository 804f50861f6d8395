// SPDX-License-Identifier: Apache-2.0
//! Signals reach the daemon although its main thread hangs in a volume.
//!
//! The kernel gives a signal of the process to the main thread, if that does not block it (signal(7)). A thread that waits
//! for a network or FUSE server is woken, waits on uninterruptibly, and never comes to the handler; no other thread is
//! told. A thread that starts another one changes its signal mask for a moment, whereupon the kernel looks again for
//! signals that wait, and gives them to this one. Blocking them in the main thread would need `unsafe`.

use std::thread;
use std::time::Duration;

/// How long a signal waits at most. The time limit of the end (`deadline.rs`) leaves room for it.
const POLL: Duration = Duration::from_millis(300);

/// Receives, from now on, the signals that the main thread does not.
pub(super) fn receive() {
    let started = thread::Builder::new().name("signals".to_owned()).spawn(|| {
        loop {
            thread::sleep(POLL);
            if let Ok(other) = thread::Builder::new().stack_size(16 << 10).spawn(|| {}) {
                // It cannot panic.
                let _ = other.join();
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "signals are not received while a volume hangs");
    }
}
