//! The ledger's own thread: one writer, whose waiting for the disk holds up nobody else.

use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Error, Ledger, Result};

type Work = Box<dyn FnOnce(&mut Ledger) + Send>;

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
            .spawn(move || {
                for work in receiver {
                    work(&mut ledger);
                }
            })
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
