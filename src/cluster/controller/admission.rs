// SPDX-License-Identifier: Apache-2.0
//! Which conversions may start their next attempt: one task for the whole controller, oldest first.
//!
//! Reconcilers run side by side and their caches lag behind their own writes, so none of them can count by itself.
//! The task receives every change of conversions, Jobs and queues, and gives each slot away once: a reservation
//! stands until the caches show the attempt that it became.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Display, Formatter};

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::cache::Scope;
use crate::conversion::admission::{RunState, admit};
use crate::conversion::{Attempt, ConversionId};

/// A namespaced name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// Where an object lies.
    pub(super) fn of(object: &impl ResourceExt) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a conversion needs of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotNeed {
    /// Its next attempt may start.
    Ready(Attempt),
    /// An attempt is recorded and has not ended.
    Open(Attempt),
    /// Neither: it waits for its watcher, or has ended.
    Idle,
}

/// What the task receives.
#[derive(Debug)]
pub(super) enum Message {
    /// A queue's specification.
    Queue { queue: Key, limit: usize, run_state: RunState },
    /// A queue is gone.
    QueueGone { queue: Key },
    /// A conversion as the cache now shows it.
    Conversion { queue: Key, id: ConversionId, created: Timestamp, need: SlotNeed },
    /// A conversion is gone.
    ConversionGone { namespace: String, id: ConversionId },
    /// A Job as the cache now shows it.
    Job { queue: Key, id: ConversionId, attempt: Attempt, finished: bool },
    /// A Job is gone.
    JobGone { queue: Key, id: ConversionId, attempt: Attempt },
    /// All caches of this namespace, or of all, were filled once: before that, slots in use would be given away.
    Warm(Scope),
    /// A reconcile of this conversion failed. What it holds goes to others, and it asks again when it is tried again.
    Failed { namespace: String, id: ConversionId },
    /// Asks whether this attempt holds a slot.
    MayStart { queue: Key, id: ConversionId, attempt: Attempt, answer: oneshot::Sender<bool> },
}

#[derive(Debug, Default)]
struct Queue {
    /// Absent until its specification is known: nothing starts.
    wanted: Option<(usize, RunState)>,
    /// Waiting, oldest first; those created in one second by name.
    ready: BTreeMap<(Timestamp, ConversionId), Attempt>,
    /// Granted, but not yet seen as an open attempt.
    reserved: BTreeSet<(ConversionId, Attempt)>,
    /// Recorded attempts that have not ended.
    open: BTreeSet<(ConversionId, Attempt)>,
    /// Jobs that have not finished.
    jobs: BTreeSet<(ConversionId, Attempt)>,
}

impl Queue {
    /// Attempts that hold a slot.
    fn taken(&self) -> usize {
        let both: BTreeSet<_> = self.reserved.union(&self.open).collect();
        both.len() + self.jobs.iter().filter(|job| !both.contains(job)).count()
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_none() && self.ready.is_empty() && self.open.is_empty() && self.jobs.is_empty()
    }
}

/// The task's whole state: messages in, granted conversions out.
#[derive(Debug, Default)]
pub(super) struct Slots {
    warm: BTreeSet<Scope>,
    queues: BTreeMap<Key, Queue>,
    /// Where each conversion was last seen, to find it again.
    seen: HashMap<(String, ConversionId), (Key, Timestamp)>,
}

impl Slots {
    /// Updates the state by a message; returns the conversions that got a slot by it.
    pub(super) fn receive(&mut self, message: Message) -> Vec<(Key, ConversionId)> {
        match message {
            Message::Warm(scope) => {
                self.warm.insert(scope);
                let keys: Vec<_> = self.queues.keys().cloned().collect();
                keys.into_iter().flat_map(|key| self.grant(&key)).collect()
            }
            Message::Queue { queue, limit, run_state } => {
                self.queues.entry(queue.clone()).or_default().wanted = Some((limit, run_state));
                self.grant(&queue)
            }
            Message::QueueGone { queue } => {
                if let Some(state) = self.queues.get_mut(&queue) {
                    state.wanted = None;
                    state.reserved.clear();
                }
                self.grant(&queue)
            }
            Message::Conversion { queue, id, created, need } => {
                self.unlist(&queue.namespace, &id, |reserved| need == SlotNeed::Ready(reserved));
                self.place(&queue, id, created, need);
                self.grant(&queue)
            }
            Message::ConversionGone { namespace, id } => {
                self.unlist(&namespace, &id, |_| false).map(|queue| self.grant(&queue)).unwrap_or_default()
            }
            Message::Job { queue, id, attempt, finished } => {
                let state = self.queues.entry(queue.clone()).or_default();
                if finished {
                    state.jobs.remove(&(id, attempt));
                } else {
                    state.jobs.insert((id, attempt));
                }
                self.grant(&queue)
            }
            Message::JobGone { queue, id, attempt } => {
                if let Some(state) = self.queues.get_mut(&queue) {
                    state.jobs.remove(&(id, attempt));
                }
                self.grant(&queue)
            }
            Message::Failed { namespace, id } => self.withdraw(namespace, &id),
            Message::MayStart { queue, id, attempt, answer } => {
                let granted = self.ask_again(&queue, &id, attempt);
                let held = self.queues.get(&queue).is_some_and(|state| state.reserved.contains(&(id, attempt)));
                // A reconciler that has ended meanwhile asks again when it runs next.
                let _ = answer.send(held);
                granted
            }
        }
    }

    /// Attempts that hold a slot, and those that wait for one, over all queues.
    #[must_use]
    pub(super) fn totals(&self) -> (usize, usize) {
        self.queues.values().fold((0, 0), |(taken, ready), state| (taken + state.taken(), ready + state.ready.len()))
    }

    /// Takes a conversion off the lists of the queue where it was last seen, and returns that queue. Of its reservations
    /// those stay that `keeps` names: a reservation outlives a view of the cache that is older than it.
    fn unlist(&mut self, namespace: &str, id: &ConversionId, keeps: impl Fn(Attempt) -> bool) -> Option<Key> {
        let (queue, created) = self.seen.remove(&(namespace.to_owned(), id.clone()))?;
        let state = self.queues.get_mut(&queue)?;
        state.ready.remove(&(created, id.clone()));
        state.open.retain(|(other, _)| other != id);
        state.reserved.retain(|(other, attempt)| other != id || keeps(*attempt));
        if state.is_empty() {
            self.queues.remove(&queue);
        }
        Some(queue)
    }

    /// Gives away the slots that a conversion was granted and has not used.
    fn withdraw(&mut self, namespace: String, id: &ConversionId) -> Vec<(Key, ConversionId)> {
        let Some((queue, _)) = self.seen.get(&(namespace, id.clone())).cloned() else { return Vec::new() };
        if let Some(state) = self.queues.get_mut(&queue) {
            state.reserved.retain(|(other, _)| other != id);
        }
        self.grant(&queue)
    }

    /// Lists a conversion again that had withdrawn.
    fn ask_again(&mut self, queue: &Key, id: &ConversionId, attempt: Attempt) -> Vec<(Key, ConversionId)> {
        let seen = self.seen.get(&(queue.namespace.clone(), id.clone()));
        let Some((_, created)) = seen.filter(|(known, _)| known == queue).cloned() else { return Vec::new() };
        let Some(state) = self.queues.get_mut(queue) else { return Vec::new() };
        let is_known = |list: &BTreeSet<(ConversionId, Attempt)>| list.contains(&(id.clone(), attempt));
        if is_known(&state.reserved) || is_known(&state.open) {
            return Vec::new();
        }
        state.ready.insert((created, id.clone()), attempt);
        self.grant(queue)
    }

    fn place(&mut self, queue: &Key, id: ConversionId, created: Timestamp, need: SlotNeed) {
        match need {
            SlotNeed::Ready(attempt) => {
                let state = self.queues.entry(queue.clone()).or_default();
                if !state.reserved.contains(&(id.clone(), attempt)) {
                    state.ready.insert((created, id.clone()), attempt);
                }
            }
            SlotNeed::Open(attempt) => {
                self.queues.entry(queue.clone()).or_default().open.insert((id.clone(), attempt));
            }
            // Idle conversions are not remembered: there may be ten thousand of them.
            SlotNeed::Idle => return,
        }
        self.seen.insert((queue.namespace.clone(), id), (queue.clone(), created));
    }

    fn grant(&mut self, key: &Key) -> Vec<(Key, ConversionId)> {
        let is_warm = self.warm.contains(&None) || self.warm.contains(&Some(key.namespace.clone()));
        let Some(state) = self.queues.get_mut(key).filter(|_| is_warm) else { return Vec::new() };
        let Some((limit, run_state)) = state.wanted else { return Vec::new() };
        let free = limit.saturating_sub(state.taken());
        let ready: Vec<_> = state.ready.keys().take(free).map(|(_, id)| id.clone()).collect();
        let admitted = admit(&ready, 0, free, run_state).len();
        let mut granted = Vec::new();
        for _ in 0..admitted {
            let Some(((_, id), attempt)) = state.ready.pop_first() else { break };
            state.reserved.insert((id.clone(), attempt));
            granted.push((key.clone(), id));
        }
        granted
    }
}

/// A handle to the task.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    messages: mpsc::UnboundedSender<Message>,
}

impl Admission {
    /// Starts the task. It sends conversions that get a slot to `granted`, and calls `totals` with the slots in use
    /// and the conversions that wait.
    pub(super) fn start(
        granted: mpsc::UnboundedSender<(Key, ConversionId)>,
        totals: impl Fn(usize, usize) + Send + 'static,
    ) -> Self {
        let (messages, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut slots = Slots::default();
            while let Some(message) = inbox.recv().await {
                for grant in slots.receive(message) {
                    // The receiver is gone only while the controller shuts down.
                    let _ = granted.send(grant);
                }
                let (taken, waiting) = slots.totals();
                totals(taken, waiting);
            }
        });
        Self { messages }
    }

    /// Sends the task a message.
    pub(super) fn send(&self, message: Message) {
        // The task ends only with the controller.
        let _ = self.messages.send(message);
    }

    /// Whether this attempt holds a slot; if not, its conversion is granted one later.
    pub(super) async fn may_start(&self, queue: Key, id: ConversionId, attempt: Attempt) -> bool {
        let (answer, answered) = oneshot::channel();
        self.send(Message::MayStart { queue, id, attempt, answer });
        answered.await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests;
