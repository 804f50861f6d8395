// SPDX-License-Identifier: Apache-2.0
//! The worker's last log lines, kept for failure.json.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::conversion::printable;

/// How many lines are kept, and the most that is kept of a line.
const LINES: usize = 40;
const LINE_BYTES: usize = 512;

/// Where log lines go: to standard error, and the last few of them into memory.
#[derive(Clone, Debug, Default)]
pub struct LogTail(Arc<Mutex<VecDeque<String>>>);

impl LogTail {
    /// The last lines, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn keep(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line[..line.floor_char_boundary(LINE_BYTES)].trim_end().to_owned());
    }
}

impl Write for LogTail {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // An image's name or text must not end a line or reach a terminal as it is.
        let text = String::from_utf8_lossy(line);
        let text = format!("{}\n", printable(text.trim_end_matches('\n')));
        self.keep(&text);
        // A lost log line is no reason to lose the conversion.
        let _ = io::stderr().write_all(text.as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_and_long_ones_are_cut() {
        let tail = LogTail::default();
        for n in 0..100 {
            tail.keep(&format!("line {n} {}\n", "ü".repeat(400)));
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert!(lines[0].starts_with("line 60 ") && lines.iter().all(|l| l.len() <= LINE_BYTES));
    }
}
