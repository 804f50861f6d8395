// SPDX-License-Identifier: Apache-2.0
//! The conversions that have ended, from the ledger: as a table, or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use hyper2kvm::conversion::{chain, printable_json};
use hyper2kvm::ledger::{LEDGER_FILE, MAX_PAGE, Page, PastConversion};

use crate::table::{or_dash, table};

/// Which conversions are shown.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Window {
    /// How many, newest first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAGE)))]
    pub(crate) limit: u32,

    /// Only those that ended before the one with this number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) before: Option<i64>,
}

/// Prints a page of the history below this output directory; returns the exit code.
pub(crate) fn run(output_dir: &Path, window: Window, json: bool) -> ExitCode {
    let ledger = output_dir.join(".daemon").join(LEDGER_FILE);
    let page = match Page::read(&ledger, window.before, window.limit) {
        Ok(page) => page,
        Err(error) => {
            eprintln!("Error: {}; is {} the output directory?", chain(&error), output_dir.display());
            return ExitCode::FAILURE;
        }
    };
    let page = below(page, output_dir);
    let text = if json {
        let text = serde_json::to_string_pretty(&page).expect("numbers and texts have a JSON form");
        printable_json(&text).into_owned() + "\n"
    } else {
        shown(&page, "hyper2kvmctl history")
    };
    // The reader may be gone already (`| head -1`): that is no error.
    drop(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()));
    ExitCode::SUCCESS
}

/// The page with its outputs as they lie below the output directory.
fn below(mut page: Page, output_dir: &Path) -> Page {
    for conversion in &mut page.conversions {
        let whole = conversion.output.take();
        conversion.output = whole.map(|path| {
            Path::new(&path).strip_prefix(output_dir).map_or(path.clone(), |below| below.to_string_lossy().into_owned())
        });
    }
    page
}

/// The page as a table, and how to read on.
pub(crate) fn shown(page: &Page, command: &str) -> String {
    if page.conversions.is_empty() {
        return "No conversion has ended.\n".to_owned();
    }
    let header = ["NUMBER", "CONVERSION", "SOURCE", "END", "REASON", "ATTEMPTS", "ENDED", "TOOK", "OUTPUT"];
    let mut text = table(&header, page.conversions.iter().map(row));
    if let Some(next) = page.next {
        let _ = writeln!(text, "Older ones: {command} --before {next}");
    }
    text
}

fn row(past: &PastConversion) -> Vec<String> {
    let took = past.start_time.map(|start| format!("{}s", past.end_time.duration_since(start).as_secs().max(0)));
    vec![
        past.number.to_string(),
        past.id.clone(),
        past.source.clone(),
        format!("{:?}", past.end),
        or_dash(past.reason),
        or_dash(Some(past.attempts).filter(|attempts| *attempts > 0)),
        format!("{:.0}", past.end_time),
        or_dash(took),
        or_dash(past.output.as_deref()),
    ]
}
