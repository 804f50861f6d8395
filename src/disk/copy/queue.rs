// SPDX-License-Identifier: Apache-2.0
//! Hands work from thread to thread: a queue bounded in bytes, a window that restores the order, a memory budget.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// A condition variable that makes no system call while no thread waits. Change the state under the lock that the
/// waiters hold, then wake them.
#[derive(Debug, Default)]
struct Signal {
    condvar: Condvar,
    waiting: AtomicUsize,
}

impl Signal {
    fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        // Counted under the lock, so that a thread that changes the state later sees this waiter.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.condvar.wait(guard).expect("no holder of this lock panics");
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    fn wake_one(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condvar.notify_one();
        }
    }

    fn wake_all(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condvar.notify_all();
        }
    }
}

/// A queue whose content is bounded in bytes.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Signal,
    room: Signal,
    limit: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue that holds items of up to `limit` bytes in all, and always at least one item.
    pub(super) fn new(limit: usize) -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, closed: false };
        Self { state: Mutex::new(state), changed: Signal::default(), room: Signal::default(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of a queue panics")
    }

    /// Adds an item of `bytes`, waiting for room; an item for a closed queue is dropped.
    pub(super) fn push(&self, bytes: usize, item: T) {
        let mut state = self.lock();
        while !state.closed && state.bytes > 0 && state.bytes + bytes > self.limit {
            state = self.room.wait(state);
        }
        if !state.closed {
            state.bytes += bytes;
            state.items.push_back((bytes, item));
            drop(state);
            self.changed.wake_one();
        }
    }

    /// The next item, waiting for it; `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some((bytes, item)) = state.items.pop_front() {
                state.bytes -= bytes;
                drop(state);
                self.room.wake_all();
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state);
        }
    }

    /// Takes no more items; what is queued is still handed out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.wake_all();
        self.room.wake_all();
    }

    /// Takes no more items and drops those it has.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        state.bytes = 0;
        drop(state);
        self.changed.wake_all();
        self.room.wake_all();
    }
}

/// Numbered items that arrive in any order and leave by their numbers.
#[derive(Debug)]
pub(super) struct InOrder<T> {
    window: Mutex<Window<T>>,
    arrived: Signal,
}

#[derive(Debug)]
struct Window<T> {
    items: BTreeMap<u64, T>,
    /// Number of the item that leaves next.
    next: u64,
    closed: bool,
}

impl<T> InOrder<T> {
    pub(super) fn new() -> Self {
        let window = Window { items: BTreeMap::new(), next: 0, closed: false };
        Self { window: Mutex::new(window), arrived: Signal::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Window<T>> {
        self.window.lock().expect("no holder of the window panics")
    }

    /// Adds item `number`.
    pub(super) fn put(&self, number: u64, item: T) {
        let mut window = self.lock();
        window.items.insert(number, item);
        let is_next = window.next == number;
        drop(window);
        if is_next {
            self.arrived.wake_one();
        }
    }

    /// The next item in order, waiting for it; `None` once abandoned.
    pub(super) fn next(&self) -> Option<T> {
        let mut window = self.lock();
        loop {
            if window.closed {
                return None;
            }
            let number = window.next;
            if let Some(item) = window.items.remove(&number) {
                window.next += 1;
                return Some(item);
            }
            window = self.arrived.wait(window);
        }
    }

    /// Hands out no more items.
    pub(super) fn abandon(&self) {
        self.lock().closed = true;
        self.arrived.wake_all();
    }
}

/// Bytes of memory that the work in flight may take together.
#[derive(Debug)]
pub(super) struct Budget {
    spent: Mutex<Spent>,
    returned: Signal,
    limit: usize,
}

#[derive(Debug)]
struct Spent {
    bytes: usize,
    /// Whether the work is over.
    closed: bool,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { spent: Mutex::new(Spent { bytes: 0, closed: false }), returned: Signal::default(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().expect("no holder of the budget panics")
    }

    /// Takes `bytes`, waiting until they fit or nothing else is taken; `false` once abandoned.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let mut spent = self.lock();
        while !spent.closed && spent.bytes > 0 && spent.bytes + bytes > self.limit {
            spent = self.returned.wait(spent);
        }
        spent.bytes += bytes;
        !spent.closed
    }

    /// Gives `bytes` back.
    pub(super) fn give(&self, bytes: usize) {
        self.lock().bytes -= bytes;
        self.returned.wake_all();
    }

    /// Lets every `take` return at once, now and later.
    pub(super) fn abandon(&self) {
        self.lock().closed = true;
        self.returned.wake_all();
    }
}
