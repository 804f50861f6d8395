// SPDX-License-Identifier: Apache-2.0
//! Signals that end a conversion.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::process::{Signal, pidfd_send_signal};

use super::progress::Meter;

/// Signals that were caught and wait for [`Interrupts::watch`].
#[derive(Debug)]
pub struct Interrupts(UnixStream);

impl Interrupts {
    /// Catches `signals` from now on. Starts no thread, so that a process can still restrict itself.
    ///
    /// # Errors
    /// The system's error.
    pub fn catch(signals: &[i32]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        for &signal in signals {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self(read))
    }

    /// Ends `process` at each signal. The thread lives as long as this process.
    pub fn hand_on(mut self, process: OwnedFd) {
        thread::spawn(move || {
            while self.0.read(&mut [0]).is_ok_and(|bytes| bytes > 0) {
                // It may have ended by itself.
                let _ = pidfd_send_signal(&process, Signal::TERM);
            }
        });
    }

    /// Cancels the conversion at the first signal, or at once if one came earlier. The thread lives as long as the
    /// process.
    pub fn watch(mut self, meter: &Arc<Meter>) {
        let meter = Arc::clone(meter);
        thread::spawn(move || {
            // The writing ends belong to the signal handlers, so this ends by a signal only.
            if self.0.read(&mut [0]).is_ok_and(|bytes| bytes > 0) {
                meter.interrupt();
            }
        });
    }
}
