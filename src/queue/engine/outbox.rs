// SPDX-License-Identifier: Apache-2.0
//! From the decision to announce something to its delivery.
//!
//! ```text
//!  the end of a conversion ──┐ one transaction       a task for each channel
//!                            ├─▶ rows of the ledger ──▶ oldest first ──▶ sent ───────────▶ row removed
//!  a stalled or full queue ──┘                            ▲    │        refused, too old ─▶ row removed, logged
//!                                                         └────┘ not taken: after a pause
//! ```
//!
//! Delivery of a row is tried for a day, over restarts. While one waits for its next try, those after it wait as well:
//! the order within a channel is kept. What can't be recorded, because the volume is full for example, is sent from
//! memory.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::conversion::chain;
use crate::executor::Executor;
use crate::ledger::{self, Fate, Ledger, NewNotification};
use crate::notification::{self, Again, Channel, Event, Message, NotificationConfig};

use super::Engine;

/// Greatest number of messages from memory that wait for one channel: there is one for each episode.
const FROM_MEMORY: usize = 16;

/// How long notifications delay the end, once nothing else does. A stop is to take ten seconds at most, of which
/// children have had five. A drain has more time.
pub(super) const WAIT_AT_STOP: Duration = Duration::from_secs(2);
pub(super) const WAIT_AT_DRAIN: Duration = Duration::from_secs(60);

/// How long servers are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one request, from connecting to the end of its answer; a mail may take three times as long.
    pub timeout: Duration,
    /// Before the second try; each further pause is twice as long.
    pub pause: Duration,
    /// The longest pause, unless the server asks for more.
    pub longest_pause: Duration,
    /// Age at which a notification is given up.
    pub give_up: Duration,
}

impl Default for Patience {
    /// Greylisting usually lasts five minutes.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            pause: Duration::from_secs(2),
            longest_pause: Duration::from_secs(300),
            give_up: Duration::from_secs(24 * 3600),
        }
    }
}

/// The engine's side: what is announced, and through which channels.
#[derive(Debug)]
pub struct Outbox {
    config: NotificationConfig,
    channels: Vec<(&'static str, mpsc::Sender<Message>)>,
    unusable: Vec<String>,
    posted: watch::Sender<()>,
    closed: Arc<Notify>,
    give_up: Duration,
}

/// The tasks that deliver. Dropping this ends them where they stand.
#[derive(Debug)]
pub struct Deliveries {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    ledger: ledger::Writer,
}

impl Outbox {
    /// Starts a task for each channel of `config`. Must be called within a tokio runtime, after a TLS provider was
    /// installed (`telemetry::install_crypto`).
    #[must_use]
    pub fn start(config: NotificationConfig, ledger: ledger::Writer, patience: Patience) -> (Self, Deliveries) {
        let (open, unusable) = notification::open(&config, patience.timeout);
        let (posted, _) = watch::channel(());
        let closed = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut channels = Vec::new();
        for channel in open {
            let (sender, from_memory) = mpsc::channel(FROM_MEMORY);
            channels.push((channel.name(), sender));
            let delivery = Delivery {
                channel,
                ledger: ledger.clone(),
                patience,
                posted: posted.subscribe(),
                from_memory,
                stop: stop.clone(),
                closed: Arc::clone(&closed),
            };
            tasks.spawn(delivery.run());
        }
        let outbox = Self { config, channels, unusable, posted, closed, give_up: patience.give_up };
        (outbox, Deliveries { tasks, stop, ledger })
    }

    /// One channel to which nothing is delivered.
    #[cfg(test)]
    pub(super) fn kept(config: NotificationConfig) -> Self {
        let channels = vec![("kept", mpsc::channel(FROM_MEMORY).0)];
        let (posted, closed) = (watch::channel(()).0, Arc::new(Notify::new()));
        Self { config, channels, unusable: Vec::new(), posted, closed, give_up: Patience::default().give_up }
    }

    /// What is wrong with the channels that can never announce anything.
    #[must_use]
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }

    /// The rows that announce `event`: one for each channel, none where the configuration does not want it.
    #[must_use]
    pub fn announce(&self, event: &Event, now: Timestamp) -> Vec<NewNotification> {
        if !event.is_wanted(&self.config) {
            return Vec::new();
        }
        let event = serde_json::to_string(event).expect("texts, numbers and times have a JSON form");
        let row = |channel| NewNotification { channel, event: event.clone(), decided_at: now };
        self.channels.iter().map(|(channel, _)| row(channel)).collect()
    }

    /// Wakes the tasks after rows were recorded.
    pub fn posted(&self) {
        self.posted.send_replace(());
    }

    /// Sends what could not be recorded; a restart will not know of it.
    fn send_from_memory(&self, notifications: &[NewNotification]) {
        for new in notifications {
            let Some((_, sender)) = self.channels.iter().find(|(channel, _)| *channel == new.channel) else { continue };
            let Ok(event) = serde_json::from_str::<Event>(&new.event) else { continue };
            match sender.try_send(event.message()) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    tracing::warn!("Failed to send {}: too many wait already, dropped: {}", new.channel, message.title);
                }
                Err(TrySendError::Closed(_)) => tracing::error!("Failed to send {}: its task is gone", new.channel),
            }
        }
    }
}

impl Deliveries {
    /// Begins no further delivery, waits up to `limit` for those under way, and records on the disk what was delivered.
    /// The next start delivers the others.
    pub async fn end(mut self, limit: Duration) {
        self.stop.cancel();
        let all = async {
            while self.tasks.join_next().await.is_some() {}
            self.ledger.call(Ledger::flush).await
        };
        match timeout(limit, all).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %chain(&error), "the outbox is behind"),
            Err(_) => tracing::debug!("a delivery was cut off; the next start repeats it"),
        }
    }
}

/// The task of one channel.
struct Delivery {
    channel: Channel,
    ledger: ledger::Writer,
    patience: Patience,
    posted: watch::Receiver<()>,
    from_memory: mpsc::Receiver<Message>,
    stop: CancellationToken,
    closed: Arc<Notify>,
}

impl Delivery {
    /// Delivers until told to stop.
    async fn run(mut self) {
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            if let Ok(message) = self.from_memory.try_recv() {
                self.deliver(&message, Timestamp::now(), None).await;
                continue;
            }
            self.posted.mark_unchanged();
            let name = self.channel.name();
            let pause = match self.ledger.call(move |ledger| ledger.next_notification(name)).await {
                Ok(Some(row)) => {
                    self.deliver_row(&row).await;
                    continue;
                }
                Ok(None) => Duration::MAX,
                Err(error) => {
                    tracing::debug!(error = %chain(&error), "the outbox cannot be read; trying again");
                    self.patience.pause
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                // The engine is gone: nothing more will come.
                changed = self.posted.changed() => if changed.is_err() { stop.cancelled().await },
                Some(message) = self.from_memory.recv() => {
                    self.deliver(&message, Timestamp::now(), None).await;
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Delivers a row and removes it, or leaves it when told to stop.
    async fn deliver_row(&self, row: &ledger::Notification) {
        let fate = match serde_json::from_str::<Event>(&row.event) {
            Ok(event) => self.deliver(&event.message(), row.decided_at, Some(row)).await,
            Err(error) => {
                tracing::error!("Failed to send {}: cannot read what was recorded: {error}", self.channel.name());
                Some(Fate::GivenUp)
            }
        };
        let (Some(fate), number) = (fate, row.number) else { return };
        let close = move |ledger: &mut Ledger| {
            ledger.close_notification(number, fate);
            Ok(())
        };
        if let Err(error) = self.ledger.call(close).await {
            tracing::debug!(error = %chain(&error), "a delivery cannot be noted; the next start repeats it");
            self.stop.cancelled().await;
        }
        self.closed.notify_one();
    }

    /// Tries until the message is accepted, refused or too old; `None` when told to stop before that.
    async fn deliver(
        &self,
        message: &Message,
        decided_at: Timestamp,
        row: Option<&ledger::Notification>,
    ) -> Option<Fate> {
        let (name, title) = (self.channel.name(), message.title);
        let begun = Instant::now();
        let left = || left(decided_at, Timestamp::now(), begun.elapsed(), self.patience.give_up);
        if let Some(until) = row.and_then(|row| row.not_before) {
            let wait = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
            self.rest(wait.min(left())).await?;
        }
        let mut pause = self.patience.pause;
        let mut is_told = false;
        loop {
            let Err(error) = self.channel.send(message).await else {
                tracing::info!("{} sent: {title}", self.channel.title());
                return Some(Fate::Sent);
            };
            let Some(delay) = next_try(error.again, pause, self.patience.pause, left()) else {
                let why = if error.again == Again::Never { "refused" } else { "too old" };
                tracing::error!(notification = title, why, "Failed to send {name}: {error}");
                return Some(Fate::GivenUp);
            };
            if std::mem::replace(&mut is_told, true) {
                tracing::debug!(channel = name, %error, ?delay, "a notification is tried again");
            } else {
                tracing::warn!(notification = title, ?delay, "Failed to send {name}: {error}; trying again");
            }
            if let (Again::After(_), Some(row)) = (error.again, row) {
                self.hold(row.number, delay).await;
            }
            self.rest(delay).await?;
            pause = (pause * 2).min(self.patience.longest_pause);
        }
    }

    /// Records for a later start that the server asked not to be tried for this long.
    async fn hold(&self, number: i64, delay: Duration) {
        let Ok(until) = Timestamp::now().checked_add(delay) else { return };
        let held = self.ledger.call(move |ledger| ledger.hold_notification(number, until)).await;
        if let Err(error) = held {
            tracing::debug!(error = %chain(&error), "a restart will ask the server earlier than it wants");
        }
    }

    /// Waits; `None` when told to stop.
    async fn rest(&self, pause: Duration) -> Option<()> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = sleep(pause) => Some(()),
        }
    }
}

/// How long a notification is still tried. It is as old as the wall clock says, but never younger than the time it was
/// tried for.
fn left(decided_at: Timestamp, now: Timestamp, tried_for: Duration, give_up: Duration) -> Duration {
    let age = Duration::try_from(now.duration_since(decided_at).max(SignedDuration::ZERO)).unwrap_or_default();
    give_up.saturating_sub(age.max(tried_for))
}

/// Time until a message that was not accepted is tried again, if ever. The last try is made when nothing is left.
fn next_try(again: Again, pause: Duration, least: Duration, left: Duration) -> Option<Duration> {
    match again {
        Again::Never => None,
        Again::Later | Again::After(_) if left.is_zero() => None,
        Again::Later => Some(pause.min(left)),
        Again::After(asked) => Some(asked.max(least).min(left)),
    }
}

impl<E: Executor> Engine<E> {
    /// Announces an event that belongs to no conversion's row.
    pub(super) fn notify(&mut self, event: &Event) {
        let now = self.wall();
        self.unposted.extend(self.outbox.announce(event, now));
    }

    /// Records what was announced in this round.
    pub(super) async fn post(&mut self) {
        if self.unposted.is_empty() {
            return;
        }
        let rows = std::mem::take(&mut self.unposted);
        let recorded = rows.clone();
        match self.ledger.call(move |ledger| ledger.post(&recorded)).await {
            Ok(()) => self.outbox.posted(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a notification cannot be recorded; it is sent all the same");
                self.outbox.send_from_memory(&rows);
            }
        }
        self.refresh_notifications().await;
        self.show();
    }

    /// Whether notifications still delay the end, which they do for `limit` at most.
    pub(super) fn outbox_holds(&mut self, now: Duration, limit: Duration) -> bool {
        let pending = self.view.notifications.pending;
        let until = *self.outbox_until.get_or_insert_with(|| {
            if pending > 0 {
                tracing::info!(pending, "waiting up to {} s for notifications", limit.as_secs());
            }
            now + limit
        });
        if pending > 0 && now >= until {
            tracing::warn!(pending, "notifications were left unsent at the end; the next start sends them");
        }
        pending > 0 && now < until
    }

    /// Waits until a notification was sent or given up.
    pub(super) fn notification_closed(&self) -> impl Future<Output = ()> + use<E> {
        let closed = Arc::clone(&self.outbox.closed);
        async move { closed.notified().await }
    }

    /// Reads anew how many notifications wait and what became of the others.
    pub(super) async fn refresh_notifications(&mut self) {
        match self.ledger.call(|ledger| ledger.notification_totals()).await {
            Ok(totals) => self.view.notifications = totals,
            Err(error) => tracing::debug!(error = %chain(&error), "the outbox cannot be counted"),
        }
    }

    /// Gives up old notifications for channels that no longer exist.
    pub(super) async fn prune_outbox(&mut self) {
        let Ok(before) = SignedDuration::try_from(self.outbox.give_up)
            .map_or(Ok(Timestamp::MIN), |age| self.wall().checked_sub(age))
        else {
            return;
        };
        let channels: Vec<&str> = self.outbox.channels.iter().map(|(channel, _)| *channel).collect();
        match self.ledger.call(move |ledger| ledger.give_up_notifications(before, &channels)).await {
            Ok(0) => {}
            Ok(rows) => tracing::warn!(rows, "notifications of channels that are not configured any more are given up"),
            Err(error) => tracing::warn!(error = %chain(&error), "cannot give notifications up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_day_ends_by_the_clock_or_by_trying_and_a_clock_set_back_ends_none() {
        for (now, tried_for, left_seconds) in
            [(0, 0, 86400), (100, 0, 86300), (100, 200, 86200), (-5000, 7, 86393), (86400, 0, 0), (400_000, 0, 0)]
        {
            assert_eq!(left(at(0), at(now), seconds(tried_for), DAY), seconds(left_seconds), "{now} {tried_for}");
        }
    }

    #[test]
    fn the_receiver_is_asked_when_it_wants_and_once_more_before_the_day_ends() {
        let (pause, least) = (seconds(64), seconds(2));
        for (again, left, next) in [
            (Again::Never, DAY, None),
            (Again::Later, DAY, Some(seconds(64))),
            (Again::Later, seconds(10), Some(seconds(10))),
            (Again::Later, Duration::ZERO, None),
            (Again::After(seconds(25)), DAY, Some(seconds(25))),
            (Again::After(Duration::ZERO), DAY, Some(seconds(2))),
            (Again::After(DAY * 7), seconds(3600), Some(seconds(3600))),
            (Again::After(seconds(25)), Duration::ZERO, None),
        ] {
            assert_eq!(next_try(again, pause, least, left), next, "{again:?} {left:?}");
        }
    }
}
