//! The ledger's own thread: one writer, whose waiting for the disk holds up nobody else.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Error, Ledger, Result};
use crate::conversion::chain;

type Work = Box<dyn FnOnce(&mut Ledger) + Send>;

/// How long what was deferred waits for a transaction that takes it along.
const DEFER_AT_MOST: Duration = Duration::from_millis(200);

/// Sends work to the thread that owns the ledger. Work is done in the order in which it was sent.
#[derive(Clone, Debug)]
pub struct Writer {
    sender: mpsc::Sender<Work>,
}

impl Writer {
    /// Gives `ledger` to a thread of its own, which ends when the last writer is dropped.
    #[must_use]
    pub fn start(mut ledger: Ledger) -> Self {
        let (sender, receiver) = mpsc::channel::<Work>();
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || work_through(&mut ledger, &receiver))
            .expect("a process that may not start a single thread can do nothing else either");
        Self { sender }
    }

    /// Does `work` on the ledger's thread. Dropping the future does not undo the work.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |ledger| {
            // Nobody waits any more: the work is done all the same.
            let _ = reply.send(work(ledger));
        });
        self.sender.send(work).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Does `work` and blocks until it is done: for whoever may block, in the middle of what can't be awaited.
    pub fn wait<T: Send + 'static>(&self, work: impl FnOnce(&mut Ledger) -> Result<T> + Send + 'static) -> Result<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let work: Work = Box::new(move |ledger| {
            // Nobody waits any more: the work is done all the same.
            let _ = reply.send(work(ledger));
        });
        self.sender.send(work).map_err(|_| Error::Closed)?;
        answer.recv().map_err(|_| Error::Closed)?
    }
}

/// Until the last sender is gone and nothing is deferred any more.
fn work_through(ledger: &mut Ledger, receiver: &Receiver<Work>) {
    let mut is_told = false;
    loop {
        let next = if ledger.has_deferred() {
            receiver.recv_timeout(DEFER_AT_MOST)
        } else {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        if let Ok(work) = next {
            work(ledger);
            continue;
        }
        match ledger.flush() {
            Ok(()) => is_told = false,
            // A full volume, say: the next transaction or the next look takes along what is deferred.
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
