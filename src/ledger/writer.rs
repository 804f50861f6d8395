//! The ledger's own thread: one writer, whose waiting for the disk holds up nobody else.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{Error, Ledger, Result};
use crate::conversion::chain;

/// What is done, and why the ledger is of no more use where that came out.
type Work = Box<dyn FnOnce(&mut Ledger) -> Option<String> + Send>;

/// How long what was deferred waits for a transaction that takes it along.
const DEFER_AT_MOST: Duration = Duration::from_millis(200);

/// Sends work to the thread that owns the ledger. Work is done in the order in which it was sent.
#[derive(Clone, Debug)]
pub struct Writer {
    sender: mpsc::Sender<Work>,
    /// Closed when the thread has ended.
    broken: watch::Receiver<Option<String>>,
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
        Self { sender, broken }
    }

    /// Waits until an error says that the ledger is of no use before somebody sets it right; why. Errors that pass by
    /// themselves are those of the work alone.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.clone();
        match broken.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => Error::Closed.to_string(),
        }
    }

    /// Waits until the ledger is closed, which it is when all other writers are dropped, too.
    pub async fn ended(self) {
        let Self { sender, mut broken } = self;
        drop(sender);
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
        self.sender.send(work).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Does `work` and blocks until it is done: for whoever may block, in the middle of what can't be awaited.
    pub fn wait<T: Send + 'static>(&self, work: impl FnOnce(&mut Ledger) -> Result<T> + Send + 'static) -> Result<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let work: Work = Box::new(move |ledger| {
            let (done, broken) = judged(ledger, work);
            // Nobody waits any more: the work is done all the same.
            let _ = reply.send(done);
            broken
        });
        self.sender.send(work).map_err(|_| Error::Closed)?;
        answer.recv().map_err(|_| Error::Closed)?
    }
}

/// Does the work, and says why the ledger is of no more use where that came out.
fn judged<T>(ledger: &mut Ledger, work: impl FnOnce(&mut Ledger) -> Result<T>) -> (Result<T>, Option<String>) {
    let done = work(ledger).map_err(|error| ledger.explained(error));
    let broken = done.as_ref().err().filter(|error| error.is_lasting()).map(|error| chain(error));
    (done, broken)
}

/// Until the last sender is gone and nothing is deferred any more.
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
