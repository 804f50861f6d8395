// SPDX-License-Identifier: Apache-2.0
//! Values remembered for a minute, where asking again or an outdated answer costs little.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const MEMORY: Duration = Duration::from_secs(60);

/// Values by name, each kept until it is forgotten or a minute old.
#[derive(Debug)]
pub(super) struct Recent<V> {
    values: Mutex<HashMap<String, (Instant, V)>>,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { values: Mutex::default() }
    }
}

impl<V: Clone> Recent<V> {
    /// Remembers a value from now on.
    pub(super) fn remember(&self, name: String, value: V) {
        let mut values = self.values();
        // Entries of objects that are gone may never be forgotten explicitly.
        values.retain(|_, (since, _)| since.elapsed() < MEMORY);
        values.insert(name, (Instant::now(), value));
    }

    /// What is remembered under this name.
    pub(super) fn get(&self, name: &str) -> Option<V> {
        self.values().get(name).filter(|(since, _)| since.elapsed() < MEMORY).map(|(_, value)| value.clone())
    }

    /// Forgets what is remembered under this name.
    pub(super) fn forget(&self, name: &str) {
        self.values().remove(name);
    }

    fn values(&self) -> MutexGuard<'_, HashMap<String, (Instant, V)>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_value_is_remembered_for_a_minute_and_takes_no_room_after_it() {
        let recent = Recent::default();
        recent.remember("a".into(), 1);
        tokio::time::advance(MEMORY / 2).await;
        recent.remember("b".into(), 2);
        recent.remember("c".into(), 3);
        recent.forget("c");
        assert_eq!(["a", "b", "c"].map(|name| recent.get(name)), [Some(1), Some(2), None]);
        tokio::time::advance(MEMORY / 2).await;
        assert_eq!(["a", "b"].map(|name| recent.get(name)), [None, Some(2)]);
        recent.remember("d".into(), 4);
        assert_eq!(recent.values().len(), 2);
    }
}
