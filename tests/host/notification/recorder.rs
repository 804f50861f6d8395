// SPDX-License-Identifier: Apache-2.0
//! Records what a test logs.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Log lines of this thread while it lives.
pub(super) struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(super) fn collect() -> Self {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(lines.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_max_level(tracing::Level::TRACE)
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Everything, of every level and of every library.
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.lines.0.lock().expect("nobody panicked with it").clone()).expect("UTF-8")
    }

    /// The lines that begin so.
    pub(super) fn lines(&self, level: &str) -> Vec<String> {
        self.text()
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(level))
            .map(|l| l.trim().to_owned())
            .collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
