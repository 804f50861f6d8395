//! What hands work from thread to thread: a queue bounded in bytes, a window in order, a budget.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};

/// A queue whose content is bounded in bytes.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    room: Condvar,
    limit: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue that takes items up to `limit` bytes, and always at least one.
    pub fn new(limit: usize) -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), room: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of a queue panics")
    }

    /// Adds an item of `bytes`, waiting for room; an item for a closed queue is dropped.
    pub fn push(&self, bytes: usize, item: T) {
        let mut state = self.lock();
        while !state.closed && state.bytes > 0 && state.bytes + bytes > self.limit {
            state = self.room.wait(state).expect("no holder of a queue panics");
        }
        if !state.closed {
            state.bytes += bytes;
            state.items.push_back((bytes, item));
            self.changed.notify_one();
        }
    }

    /// The next item, waiting for it; `None` once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some((bytes, item)) = state.items.pop_front() {
                state.bytes -= bytes;
                self.room.notify_all();
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).expect("no holder of a queue panics");
        }
    }

    /// Takes no more items; what is queued is still handed out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.room.notify_all();
    }

    /// Takes no more items and drops those it has.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        state.bytes = 0;
        drop(state);
        self.changed.notify_all();
        self.room.notify_all();
    }
}

/// Numbered items that arrive in any order and leave in theirs.
#[derive(Debug)]
pub struct InOrder<T> {
    state: Mutex<(BTreeMap<u64, T>, u64, bool)>,
    changed: Condvar,
}

impl<T> InOrder<T> {
    pub fn new() -> Self {
        Self { state: Mutex::new((BTreeMap::new(), 0, false)), changed: Condvar::new() }
    }

    /// Adds item `number`.
    pub fn put(&self, number: u64, item: T) {
        let mut state = self.state.lock().expect("no holder of the window panics");
        state.0.insert(number, item);
        if state.1 == number {
            self.changed.notify_one();
        }
    }

    /// The next item in order, waiting for it; `None` once abandoned.
    pub fn next(&self) -> Option<T> {
        let mut state = self.state.lock().expect("no holder of the window panics");
        loop {
            if state.2 {
                return None;
            }
            let number = state.1;
            if let Some(item) = state.0.remove(&number) {
                state.1 += 1;
                return Some(item);
            }
            state = self.changed.wait(state).expect("no holder of the window panics");
        }
    }

    /// Hands out nothing any more.
    pub fn abandon(&self) {
        self.state.lock().expect("no holder of the window panics").2 = true;
        self.changed.notify_all();
    }
}

/// Bytes of memory that the work in flight may take together.
#[derive(Debug)]
pub struct Budget {
    /// Taken bytes, and whether the work is over.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
    limit: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::new((0, false)), changed: Condvar::new(), limit }
    }

    /// Takes `bytes`, waiting until they fit or nothing else is taken; `false` once abandoned.
    pub fn take(&self, bytes: usize) -> bool {
        let mut state = self.state.lock().expect("no holder of the budget panics");
        while !state.1 && state.0 > 0 && state.0 + bytes > self.limit {
            state = self.changed.wait(state).expect("no holder of the budget panics");
        }
        state.0 += bytes;
        !state.1
    }

    /// Gives `bytes` back.
    pub fn give(&self, bytes: usize) {
        self.state.lock().expect("no holder of the budget panics").0 -= bytes;
        self.changed.notify_all();
    }

    /// Lets nobody wait any more.
    pub fn abandon(&self) {
        self.state.lock().expect("no holder of the budget panics").1 = true;
        self.changed.notify_all();
    }
}
