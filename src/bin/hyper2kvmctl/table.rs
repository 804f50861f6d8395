// SPDX-License-Identifier: Apache-2.0
//! Aligned columns as kubectl prints them.

use comfy_table::{Table, presets};
use hyper2kvm::conversion::options::ByteSize;
use hyper2kvm::conversion::printable;
use jiff::{SignedDuration, Timestamp};

/// Lines with `header` above them, columns three spaces apart.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        // A cell is one line, whatever its text says.
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

/// A dash for what is not known yet.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Whole bytes in a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// How long ago, as kubectl writes it: with at most two units.
pub(crate) fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "-".to_owned() };
    let seconds = now.duration_since(since).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = [vec!["a-long-name".to_owned(), "1".to_owned()], vec!["b".to_owned(), "-".to_owned()]];
        assert_eq!(table(&["NAME", "N"], rows), "NAME          N\na-long-name   1\nb             -\n");
    }

    #[test]
    fn what_a_cell_says_moves_no_cursor_and_forges_no_line() {
        let rows = [vec!["a\u{1b}[2J\nb\u{202e}".to_owned(), "1".to_owned()]];
        assert_eq!(table(&["NAME", "N"], rows), "NAME                    N\na\\u{1b}[2J\\nb\\u{202e}   1\n");
    }

    #[test]
    fn ages_are_told_in_one_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d"), (-5, "0s")] {
            assert_eq!(age(Some(now - SignedDuration::from_secs(seconds)), now), text);
        }
        assert_eq!(age(None, now), "-");
    }
}
