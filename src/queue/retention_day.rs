// SPDX-License-Identifier: Apache-2.0
//! How long a day of retention lasts.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Milliseconds that replace it in builds with debug assertions.
const DAY_VARIABLE: &str = "HYPER2KVM_TEST_RETENTION_DAY_MS";

/// A day, unless a test wants less.
#[must_use]
pub fn retention_day() -> Duration {
    if cfg!(debug_assertions) {
        let of_a_test = std::env::var(DAY_VARIABLE).ok().and_then(|text| text.parse().ok());
        return of_a_test.map_or(DAY, Duration::from_millis);
    }
    DAY
}
