// SPDX-License-Identifier: Apache-2.0
//! An outbox without an engine: what a test announces is recorded, and delivered as a daemon does it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use hyper2kvm::ledger::{Ledger, Writer};
use hyper2kvm::notification::{Event, NotificationConfig};
use hyper2kvm::queue::engine::outbox::{Deliveries, Outbox, Patience};
use hyper2kvm::stats::NotificationTotals;

/// How long a request may take here.
pub(super) const IMPATIENT: Patience = Patience {
    timeout: Duration::from_millis(300),
    pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(40),
    give_up: Duration::from_secs(60),
};

pub(super) struct Post {
    pub outbox: Outbox,
    deliveries: Deliveries,
    ledger: Writer,
    _directory: tempfile::TempDir,
}

impl Post {
    pub(super) fn start(config: NotificationConfig, patience: Patience) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ledger = Writer::start(Ledger::open(&directory.path().join("ledger.db")).expect("a new ledger"));
        let (outbox, deliveries) = Outbox::start(config, ledger.clone(), patience);
        Self { outbox, deliveries, ledger, _directory: directory }
    }

    pub(super) async fn announce(&self, event: &Event) {
        self.announce_as_of(event, Timestamp::now()).await;
    }

    pub(super) async fn announce_as_of(&self, event: &Event, decided_at: Timestamp) {
        let rows = self.outbox.announce(event, decided_at);
        self.ledger.call(move |ledger| ledger.post(&rows)).await.expect("it is recorded");
        self.outbox.posted();
    }

    pub(super) async fn totals(&self) -> NotificationTotals {
        self.ledger.call(|ledger| ledger.notification_totals()).await.expect("they are counted")
    }

    /// Waits up to `limit` until nothing is pending, and ends.
    pub(super) async fn finish(self, limit: Duration) -> NotificationTotals {
        let until = Instant::now() + limit;
        while self.totals().await.pending > 0 && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
        let totals = self.totals().await;
        self.deliveries.end(Duration::from_secs(1)).await;
        totals
    }
}
