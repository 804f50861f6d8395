// SPDX-License-Identifier: Apache-2.0
//! The ledger's own thread: a single writer, so that nobody else waits for the disk.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{Error, Ledger, Result};
use crate::conversion::chain;

/// The work, which returns why the ledger can't be used any longer if it found that.
type Work = Box<dyn FnOnce(&mut Ledger) -> Option<String> + Send>;

/// Longest time that a deferred change waits for a transaction that takes it along.
const DEFER_AT_MOST: Duration = Duration::from_millis(200);

/// Sends work to the thread that owns the ledger. Work is done in the order in which it was sent.
#[derive(Clone, Debug)]
pub struct Writer {
    way: Way,
    /// Why the ledger can't be used any longer; closed when the ledger is.
    broken: watch::Receiver<Option<String>>,
}

/// Which thread does the work.
#[derive(Clone, Debug)]
enum Way {
    Thread(mpsc::Sender<Work>),
    /// The caller's thread, at once.
    #[cfg(test)]
    Inline(std::sync::Arc<std::sync::Mutex<Inline>>),
}

/// A ledger without a thread, for tests that decide when anything happens.
#[cfg(test)]
#[derive(Debug)]
struct Inline {
    ledger: Ledger,
    breaks: watch::Sender<Option<String>>,
}

impl Writer {
    /// Gives `ledger` to a thread of its own, which ends when the last writer is dropped.
    #[must_use]
    pub fn start(mut ledger: Ledger) -> Self {
        let (sender, receiver) = mpsc::channel::<Work>();
        let (breaks, broken) = watch::channel(None);
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || work_through(&mut ledger, &receiver, &breaks))
            .expect("a process that may not start a single thread can do nothing else either");
        Self { way: Way::Thread(sender), broken }
    }

    /// Keeps `ledger` without a thread: work is done by the caller, and deferred changes are written only by
    /// [`Ledger::flush`] and by later transactions.
    #[cfg(test)]
    pub(crate) fn inline(ledger: Ledger) -> Self {
        let (breaks, broken) = watch::channel(None);
        Self { way: Way::Inline(std::sync::Arc::new(std::sync::Mutex::new(Inline { ledger, breaks }))), broken }
    }

    /// Waits until an error shows that the ledger can't be used before somebody mends the cause, and returns why.
    /// Errors that pass by themselves are returned to the caller of the work only.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.clone();
        match broken.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => Error::Closed.to_string(),
        }
    }

    /// Waits until the ledger is closed: that is when all other writers are dropped, too.
    pub async fn ended(self) {
        let Self { way, mut broken } = self;
        drop(way);
        while broken.changed().await.is_ok() {}
    }

    /// Does `work` on the ledger's thread. Dropping the future does not undo the work.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |ledger| {
            let (done, broken) = judged(ledger, work);
            // Nobody waits any more: the work is done all the same.
            let _ = reply.send(done);
            broken
        });
        self.give(work)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Does `work` and blocks until it is done: for callers that may block and can't await.
    pub fn wait<T: Send + 'static>(&self, work: impl FnOnce(&mut Ledger) -> Result<T> + Send + 'static) -> Result<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let work: Work = Box::new(move |ledger| {
            let (done, broken) = judged(ledger, work);
            // Nobody waits any more: the work is done all the same.
            let _ = reply.send(done);
            broken
        });
        self.give(work)?;
        answer.recv().map_err(|_| Error::Closed)?
    }

    fn give(&self, work: Work) -> Result<()> {
        match &self.way {
            Way::Thread(sender) => sender.send(work).map_err(|_| Error::Closed),
            #[cfg(test)]
            Way::Inline(inline) => {
                // A disk may be full, or fail, before the work as well as in it.
                crate::files::volume::simulated::event("ledger").map_err(simulated)?;
                let mut inline = inline.lock().expect("a simulated crash drops the ledger with everybody who used it");
                if let Some(why) = work(&mut inline.ledger) {
                    inline.breaks.send_replace(Some(why));
                }
                Ok(())
            }
        }
    }
}

/// The `SQLite` error for an error of a simulated volume.
#[cfg(test)]
fn simulated(_: rustix::io::Errno) -> Error {
    let full = rusqlite::ffi::Error { code: rusqlite::ErrorCode::DiskFull, extended_code: 13 };
    Error::Query { doing: "write", source: rusqlite::Error::SqliteFailure(full, None) }
}

/// Does the work, and returns why the ledger can't be used any longer if it found that.
fn judged<T>(ledger: &mut Ledger, work: impl FnOnce(&mut Ledger) -> Result<T>) -> (Result<T>, Option<String>) {
    let done = work(ledger).map_err(|error| ledger.explained(error));
    let broken = done.as_ref().err().filter(|error| error.is_lasting()).map(|error| chain(error));
    (done, broken)
}

/// Works until the last sender is gone and nothing is deferred any more.
fn work_through(ledger: &mut Ledger, receiver: &Receiver<Work>, breaks: &watch::Sender<Option<String>>) {
    let note = |broken: Option<String>| {
        if broken.is_some() {
            breaks.send_replace(broken);
        }
    };
    let mut is_told = false;
    loop {
        let next = if ledger.has_deferred() {
            receiver.recv_timeout(DEFER_AT_MOST)
        } else {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        if let Ok(work) = next {
            note(work(ledger));
            continue;
        }
        let (flushed, broken) = judged(ledger, Ledger::flush);
        note(broken);
        match flushed {
            Ok(()) => is_told = false,
            // The volume may be full: the next transaction or the next flush takes along what is deferred.
            Err(error) if !std::mem::replace(&mut is_told, true) => {
                tracing::warn!(error = %chain(&error), "the ledger can't be written; trying again");
            }
            Err(_) => {}
        }
        if next.is_err_and(|error| error == RecvTimeoutError::Disconnected) {
            return;
        }
    }
}
