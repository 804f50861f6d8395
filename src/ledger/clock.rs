// SPDX-License-Identifier: Apache-2.0
//! By which time rows age: a clock that is years ahead for one start removes nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::OptionalExtension as _;
use serde::{Deserialize, Serialize};

use super::{Ledger, Result, query, to_sql};

/// What a machine's clocks say at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    pub wall: Timestamp,
    /// The machine and boot that the uptime counts from; empty where that is not known.
    pub boot_id: String,
    /// Time since that boot, which nobody sets.
    pub uptime: Duration,
}

/// What was known at the last look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    wall: Timestamp,
    boot_id: String,
    uptime_seconds: u64,
    /// The time that was trusted then.
    trusted: Timestamp,
}

const SETTING: &str = "clock";

/// What the ageing clock knew at its last look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Aged {
    wall: Timestamp,
    boot_id: String,
    uptime_seconds: u64,
    /// What it said.
    age_seconds: u64,
}

const AGE_SETTING: &str = "age";

/// How far the ageing clock advances at most between two boots, in seconds: while a machine is off, nobody sees what its
/// wall clock does. What is kept for some days is kept longer by the days on which the machine was off.
const AGE_BETWEEN_BOOTS: u64 = 24 * 3600;

impl Ledger {
    /// The time by which rows age, which two clocks must confirm: within one boot, the last trusted time plus what has
    /// passed by the monotonic clock; otherwise what the wall clock of the last boot said. Never later than the wall
    /// clock.
    pub(super) fn trusted_time(&self, now: &Clock) -> Result<Timestamp> {
        let text = self.setting(SETTING)?;
        let before: Option<Remembered> = text.and_then(|text| serde_json::from_str(&text).ok());
        let newest = if before.is_none() { self.newest()? } else { None };
        let trusted = trusted(before.as_ref(), newest, now);
        let remembered =
            Remembered { wall: now.wall, boot_id: now.boot_id.clone(), uptime_seconds: now.uptime.as_secs(), trusted };
        let text = serde_json::to_string(&remembered).expect("a struct of texts and numbers has a JSON form");
        self.set_setting(SETTING, &text)?;
        Ok(trusted)
    }

    /// Advances the clock by which retention ages what ended conversions left, and returns what it says: seconds since it
    /// was first looked at. It follows the monotonic clock, which nobody sets, so that a jump of the wall clock ages
    /// nothing by more than a day. Conversions that ended since the last look age from now on.
    pub fn advance_age(&mut self, now: &Clock) -> Result<u64> {
        let text = self.setting(AGE_SETTING)?;
        let before: Option<Aged> = text.and_then(|text| serde_json::from_str(&text).ok());
        let age_seconds = age(before.as_ref(), now);
        let aged =
            Aged { wall: now.wall, boot_id: now.boot_id.clone(), uptime_seconds: now.uptime.as_secs(), age_seconds };
        let text = serde_json::to_string(&aged).expect("a struct of texts and numbers has a JSON form");
        self.set_setting(AGE_SETTING, &text)?;
        self.connection
            .execute("UPDATE ended SET aged_from = ?1 WHERE aged_from IS NULL", [to_sql(age_seconds)])
            .map_err(query("age what ended"))?;
        Ok(age_seconds)
    }

    /// When the last row was written, by the clock of that time; the beginning of time where that can't be read.
    fn newest(&self) -> Result<Option<Timestamp>> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT max(processed_at) FROM processed_files", [], |row| row.get(0))
            .optional()
            .map_err(query("look for the newest row"))?
            .flatten();
        // The original program wrote local time without a zone: a day more or less does not matter here.
        Ok(text.map(|text| {
            let text = text.replacen(' ', "T", 1);
            text.parse().or_else(|_| format!("{text}Z").parse()).unwrap_or(Timestamp::UNIX_EPOCH)
        }))
    }
}

fn trusted(before: Option<&Remembered>, newest: Option<Timestamp>, now: &Clock) -> Timestamp {
    let other = match before {
        Some(before) if !now.boot_id.is_empty() && before.boot_id == now.boot_id => {
            let passed = now.uptime.saturating_sub(Duration::from_secs(before.uptime_seconds));
            let passed = SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
            before.trusted.saturating_add(passed).unwrap_or(Timestamp::MAX)
        }
        Some(before) => before.wall,
        None => newest.unwrap_or(now.wall),
    };
    now.wall.min(other)
}

fn age(before: Option<&Aged>, now: &Clock) -> u64 {
    let Some(before) = before else { return 0 };
    let passed = if !now.boot_id.is_empty() && before.boot_id == now.boot_id {
        now.uptime.as_secs().saturating_sub(before.uptime_seconds)
    } else {
        let passed = now.wall.duration_since(before.wall).as_secs();
        u64::try_from(passed).unwrap_or_default().min(AGE_BETWEEN_BOOTS)
    };
    before.age_seconds.saturating_add(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn at(year: i16) -> Timestamp {
        format!("{year}-01-01T00:00:00Z").parse().unwrap()
    }

    fn clock(year: i16, boot: &str, days: u64) -> Clock {
        Clock { wall: at(year), boot_id: boot.to_owned(), uptime: Duration::from_secs(days * DAY) }
    }

    fn remembered(year: i16, boot: &str, trusted: i16) -> Remembered {
        Remembered { wall: at(year), boot_id: boot.to_owned(), uptime_seconds: DAY, trusted: at(trusted) }
    }

    #[test]
    fn one_clock_alone_is_not_believed_when_it_is_ahead() {
        for (before, newest, now, expected) in [
            // Nothing is known, and there is nothing to lose.
            (None, None, clock(2026, "a", 0), at(2026)),
            (None, Some(at(2025)), clock(2036, "a", 0), at(2025)),
            // One start with a clock ten years ahead, and the next one with a right one.
            (Some(remembered(2026, "a", 2026)), None, clock(2036, "b", 0), at(2026)),
            (Some(remembered(2036, "b", 2026)), None, clock(2026, "c", 0), at(2026)),
            // Two boots agree.
            (Some(remembered(2036, "b", 2026)), None, clock(2036, "c", 0), at(2036)),
            // Several starts of one boot count as one clock; the time that passed since is another.
            (Some(remembered(2036, "b", 2026)), None, clock(2036, "b", 1), at(2026)),
            (Some(remembered(2026, "a", 2026)), None, clock(2036, "a", 366), at(2027)),
            // The clock was set back.
            (Some(remembered(2036, "a", 2036)), None, clock(2026, "a", 2), at(2026)),
        ] {
            assert_eq!(trusted(before.as_ref(), newest, &now), expected, "{before:?} {now:?}");
        }
    }

    #[test]
    fn what_is_kept_ages_by_the_clock_that_nobody_sets() {
        let before = |year, boot: &str, age_seconds| Aged {
            wall: at(year),
            boot_id: boot.to_owned(),
            uptime_seconds: DAY,
            age_seconds,
        };
        for (before, now, expected) in [
            (None, clock(2026, "a", 9), 0),
            (Some(before(2026, "a", 5)), clock(2026, "a", 3), 5 + 2 * DAY),
            // The wall clock jumps ahead, or back.
            (Some(before(2026, "a", 5)), clock(2036, "a", 1), 5),
            (Some(before(2036, "a", 5)), clock(2026, "a", 3), 5 + 2 * DAY),
            // Another boot: a day at most, however long the machine was off, or seems to have been.
            (Some(before(2026, "a", 5)), clock(2036, "b", 0), 5 + DAY),
            (Some(before(2036, "a", 5)), clock(2026, "b", 0), 5),
            (Some(before(2026, "", 5)), clock(2026, "", 9), 5),
        ] {
            assert_eq!(age(before.as_ref(), &now), expected, "{before:?} {now:?}");
        }
    }
}
