//! What hands work from thread to thread: a queue bounded in bytes, a window in order, a budget.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// A condition variable that makes no system call where nobody waits. Ring it after the state was changed under the lock
/// that its waiters hold.
#[derive(Debug, Default)]
struct Bell {
    condvar: Condvar,
    waiting: AtomicUsize,
}

impl Bell {
    fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        // Under the lock: whoever changes the state later sees it.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.condvar.wait(guard).expect("no holder of this lock panics");
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    fn ring_for_one(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condvar.notify_one();
        }
    }

    fn ring_for_all(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condvar.notify_all();
        }
    }
}

/// A queue whose content is bounded in bytes.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Bell,
    room: Bell,
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
        Self { state: Mutex::new(state), changed: Bell::default(), room: Bell::default(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of a queue panics")
    }

    /// Adds an item of `bytes`, waiting for room; an item for a closed queue is dropped.
    pub fn push(&self, bytes: usize, item: T) {
        let mut state = self.lock();
        while !state.closed && state.bytes > 0 && state.bytes + bytes > self.limit {
            state = self.room.wait(state);
        }
        if !state.closed {
            state.bytes += bytes;
            state.items.push_back((bytes, item));
            drop(state);
            self.changed.ring_for_one();
        }
    }

    /// The next item, waiting for it; `None` once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some((bytes, item)) = state.items.pop_front() {
                state.bytes -= bytes;
                drop(state);
                self.room.ring_for_all();
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state);
        }
    }

    /// Takes no more items; what is queued is still handed out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.ring_for_all();
        self.room.ring_for_all();
    }

    /// Takes no more items and drops those it has.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        state.bytes = 0;
        drop(state);
        self.changed.ring_for_all();
        self.room.ring_for_all();
    }
}

/// Numbered items that arrive in any order and leave in theirs.
#[derive(Debug)]
pub struct InOrder<T> {
    state: Mutex<(BTreeMap<u64, T>, u64, bool)>,
    changed: Bell,
}

impl<T> InOrder<T> {
    pub fn new() -> Self {
        Self { state: Mutex::new((BTreeMap::new(), 0, false)), changed: Bell::default() }
    }

    /// Adds item `number`.
    pub fn put(&self, number: u64, item: T) {
        let mut state = self.state.lock().expect("no holder of the window panics");
        state.0.insert(number, item);
        let is_next = state.1 == number;
        drop(state);
        if is_next {
            self.changed.ring_for_one();
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
            state = self.changed.wait(state);
        }
    }

    /// Hands out nothing any more.
    pub fn abandon(&self) {
        self.state.lock().expect("no holder of the window panics").2 = true;
        self.changed.ring_for_all();
    }
}

/// Bytes of memory that the work in flight may take together.
#[derive(Debug)]
pub struct Budget {
    /// Taken bytes, and whether the work is over.
    state: Mutex<(usize, bool)>,
    changed: Bell,
    limit: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::new((0, false)), changed: Bell::default(), limit }
    }

    /// Takes `bytes`, waiting until they fit or nothing else is taken; `false` once abandoned.
    pub fn take(&self, bytes: usize) -> bool {
        let mut state = self.state.lock().expect("no holder of the budget panics");
        while !state.1 && state.0 > 0 && state.0 + bytes > self.limit {
            state = self.changed.wait(state);
        }
        state.0 += bytes;
        !state.1
    }

    /// Gives `bytes` back.
    pub fn give(&self, bytes: usize) {
        self.state.lock().expect("no holder of the budget panics").0 -= bytes;
        self.changed.ring_for_all();
    }

    /// Lets nobody wait any more.
    pub fn abandon(&self) {
        self.state.lock().expect("no holder of the budget panics").1 = true;
        self.changed.ring_for_all();
    }
}
