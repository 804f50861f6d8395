// SPDX-License-Identifier: Apache-2.0
//! The time limit of the end: a daemon that was told to stop is gone within ten seconds, whatever hangs.
//!
//! ```text
//!  told to stop ──▶ the engine ends by itself ──────────────────────▶ end, 0
//!               ──▶ 7.5 s: it is left where it stands ──▶ services ─▶ end, 0
//!               ──▶ 9.5 s: something hangs in the kernel ─────────▶ end, 1
//! ```
//!
//! Every step of the engine is safe to repeat, and children die with the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// When an engine that has not ended is left where it stands: children are killed after five seconds, and notifications
/// are waited for for two more.
const CUT: Duration = Duration::from_millis(7500);

/// How long everything else may take from then on.
const REST: Duration = Duration::from_secs(2);

/// The time limit, which begins when the daemon is told to stop. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Deadline {
    has_begun: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl Deadline {
    /// Begins the time limit. Only the first call counts.
    pub(super) fn begin(&self) {
        if self.has_begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let cut = self.cut.clone();
        // It has a thread of its own, which waits for nothing but the clock.
        let started = thread::Builder::new().name("deadline".to_owned()).spawn(move || {
            thread::sleep(CUT);
            cut.cancel();
            thread::sleep(REST);
            // The log may be what hangs.
            thread::spawn(|| {
                tracing::error!(
                    "a volume or the ledger does not answer; ending at once, the next start goes on from there"
                );
            });
            thread::sleep(Duration::from_millis(100));
            std::process::exit(1);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "the end is not bounded");
        }
    }

    /// Returns when the engine is to be left where it stands.
    pub(super) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    pub(super) fn has_cut(&self) -> bool {
        self.cut.is_cancelled()
    }
}
