// SPDX-License-Identifier: Apache-2.0
//! Answers that many ask for at once, each fetched once for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as Fetching;
use tokio::time::Instant;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(3);

type Slot<V> = Arc<Fetching<Option<(Instant, V)>>>;

/// Answers by name. One that is fresh is given to all who ask; while one is fetched, the others wait for it.
#[derive(Debug)]
pub(super) struct Shared<V> {
    slots: Mutex<HashMap<String, Slot<V>>>,
}

impl<V> Default for Shared<V> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<V: Clone> Shared<V> {
    /// The answer of that name.
    ///
    /// # Errors
    /// The error of `fetch`; who asks next fetches again.
    pub(super) async fn get<E>(&self, name: &str, fetch: impl Future<Output = Result<V, E>>) -> Result<V, E> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever fetches holds its slot.
            slots.retain(|held, slot| held == name || slot.try_lock().map_or(true, |answer| is_fresh(answer.as_ref())));
            Arc::clone(slots.entry(name.to_owned()).or_default())
        };
        let mut answer = slot.lock().await;
        if let Some((_, value)) = answer.as_ref().filter(|answer| is_fresh(Some(answer))) {
            return Ok(value.clone());
        }
        let value = fetch.await?;
        *answer = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}

fn is_fresh<V>(answer: Option<&(Instant, V)>) -> bool {
    answer.is_some_and(|(since, _)| since.elapsed() < FRESH)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hundred_who_ask_at_once_cost_one_request_and_later_ones_another() {
        let (shared, asked) = (Shared::default(), AtomicU32::new(0));
        let fetch = || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, ()>(asked.fetch_add(1, Ordering::Relaxed))
        };
        for round in 0..2 {
            let answers = join_all((0..100).map(|_| shared.get("a", fetch()))).await;
            assert!(answers.iter().all(|answer| *answer == Ok(round)), "{answers:?}");
            tokio::time::advance(FRESH).await;
        }
        assert_eq!(shared.get("b", async { Err(1) }).await, Err(1));
        assert_eq!(shared.get("b", async { Ok::<_, ()>(7) }).await, Ok(7));
        assert_eq!(shared.slots.lock().unwrap().len(), 1, "what is old takes no room");
    }
}
