// SPDX-License-Identifier: Apache-2.0
//! Whether and when a message is sent again, and how a server says it: `Retry-After` (RFC 9110, section 10.2.3).

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Whether and when a message that was not accepted is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Never: the receiver refuses it.
    Never,
    /// After a pause of our choice.
    Later,
    /// After the time that the receiver asks for.
    After(Duration),
}

/// The three forms of a date that receivers have to understand (RFC 9110, section 5.6.7); all of them are in GMT.
const DATES: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// Time from `now` until the next try; zero for a date that has passed, `None` for a text that is neither seconds nor a
/// date.
pub(super) fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit counts as for ever.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let date = DATES.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    let at = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now).max(SignedDuration::ZERO)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_all_else_is_no_answer() {
        let now: Timestamp = "1994-11-06T08:49:12Z".parse().unwrap();
        for (text, seconds) in [
            ("25", Some(25)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(25)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(25)),
            ("Sun Nov  6 08:49:37 1994", Some(25)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Sun, 06 Nov 1994", None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }
}
