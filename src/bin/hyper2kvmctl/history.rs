// SPDX-License-Identifier: Apache-2.0
//! The conversions that have ended, from the ledger: as a table, or as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use hyper2kvm::conversion::printable_json;
use hyper2kvm::ledger::{LEDGER_FILE, MAX_PAGE, Page, PastConversion};

use crate::socket::{OUTPUT_DIR, print};
use crate::table::{or_dash, table};

/// How many are shown where nothing is asked for.
const LIMIT: u32 = 50;

fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("{text:?} is no whole number"))
}

/// Which conversions are shown.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Window {
    /// How many, newest first: 1 to 1000
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAGE)))]
    pub(crate) limit: u32,

    /// Only those that ended before the one with this number
    #[arg(long, value_name = "NUMBER", value_parser = number)]
    pub(crate) before: Option<i64>,
}

/// Prints a page of the history below this output directory; returns the exit code.
pub(crate) fn run(output_dir: &Path, window: Window, json: bool) -> ExitCode {
    let ledger = output_dir.join(".daemon").join(LEDGER_FILE);
    let page = match Page::read(&ledger, window.before, window.limit) {
        Ok(page) => page,
        Err(error) => {
            eprintln!("Error: {}; is {} the output directory?", told_once(&error), output_dir.display());
            return ExitCode::FAILURE;
        }
    };
    let page = below(page, output_dir);
    let text = if json {
        let text = serde_json::to_string_pretty(&page).expect("numbers and texts have a JSON form");
        printable_json(&text).into_owned() + "\n"
    } else {
        shown(&page, window, &command(output_dir, window))
    };
    if print(&text) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The command that shows this history again.
fn command(output_dir: &Path, window: Window) -> String {
    let directory = match output_dir.display().to_string() {
        usual if usual == OUTPUT_DIR => String::new(),
        plain if plain.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c)) => format!(" --output-dir {plain}"),
        // A shell's quotes.
        other => format!(" --output-dir '{}'", other.replace('\'', r"'\''")),
    };
    let limit = if window.limit == LIMIT { String::new() } else { format!(" --limit {}", window.limit) };
    format!("hyper2kvmctl{directory} history{limit}")
}

/// The error with its causes, without a cause that says the same again.
fn told_once(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if more.starts_with(&text) { more } else { format!("{text}: {more}") };
        }
        cause = error.source();
    }
    text
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
pub(crate) fn shown(page: &Page, window: Window, command: &str) -> String {
    if page.conversions.is_empty() {
        let before = window.before.map(|number| format!("None ended before number {number}.\n"));
        return before.unwrap_or_else(|| "No conversion has ended.\n".to_owned());
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
