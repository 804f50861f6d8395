// SPDX-License-Identifier: Apache-2.0
//! Whole numbers as arguments.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Reads a whole number within `range`.
///
/// # Errors
/// What is wrong with it, for a person.
pub(crate) fn within<T: FromStr + PartialOrd + Display>(text: &str, range: &RangeInclusive<T>) -> Result<T, String> {
    let number =
        text.parse().map_err(|_| format!("{text:?} is no whole number from {} to {}", range.start(), range.end()))?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(format!("{number} is not from {} to {}", range.start(), range.end()))
}

/// Seconds that a look into a guest may take.
pub(crate) fn look_seconds(text: &str) -> Result<u64, String> {
    within(text, &(1..=3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_or_out_of_its_range_is_told_with_the_range() {
        assert_eq!(look_seconds("3600"), Ok(3600));
        for (text, told) in [
            ("x", "\"x\" is no whole number from 1 to 3600"),
            ("", "\"\" is no whole number from 1 to 3600"),
            ("1.5", "\"1.5\" is no whole number from 1 to 3600"),
            ("0", "0 is not from 1 to 3600"),
        ] {
            assert_eq!(look_seconds(text), Err(told.to_owned()));
        }
    }
}
