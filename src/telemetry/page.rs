// SPDX-License-Identifier: Apache-2.0
//! The page that a person looks at: what runs, what waits and why, what failed with its remedy, and what the last day
//! brought.
//!
//! All of it is rendered here, so that it is complete without a script; the script puts newer renderings in place.
//! Names and messages come from images and their senders: every text is escaped, and a browser that is told otherwise
//! loads nothing from elsewhere ([`POLICY`]).

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::conversion::admission::RunState;
use crate::conversion::options::ByteSize;
use crate::conversion::printable;
use crate::stats::{JobStats, JobStatus, Snapshot, Totals};

/// `Content-Security-Policy` of the page: its own two files and its own events, nothing else.
pub(crate) const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                                 img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) const STYLE: &str = include_str!("page/page.css");
pub(crate) const SCRIPT: &str = include_str!("page/page.js");
const PAGE: &str = include_str!("page/page.html");

/// Hours that the plot shows.
const HOURS: i64 = 24;

/// Longest text that is shown of a message, in characters.
const MAX_TEXT: usize = 600;

/// The whole page.
#[must_use]
pub(crate) fn page(board: &str) -> String {
    PAGE.replace("{board}", board)
}

/// The part of the page that changes.
#[must_use]
pub(crate) fn board(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut html = String::new();
    state(&mut html, snapshot);
    running(&mut html, snapshot, now);
    waiting(&mut html, snapshot);
    failed(&mut html, snapshot);
    last_day(&mut html, &snapshot.totals, now);
    html
}

fn state(html: &mut String, snapshot: &Snapshot) {
    let state = match snapshot.run_state {
        RunState::Running => "Running: it takes what is dropped.",
        RunState::Paused => "Paused: it starts nothing. Next step: hyper2kvmctl resume",
        RunState::Draining => "Draining: it finishes what it has taken and takes nothing new.",
        RunState::Stopped => "Stopping.",
    };
    line(html, "", state);
    if let Some(why) = &snapshot.waiting_for {
        line(html, "bad", &format!("It waits: {why}"));
    }
    for (what, shortage) in [("output", snapshot.shortage), ("queue", snapshot.queue_shortage)] {
        if let Some(shortage) = shortage {
            let (free, needed) = (ByteSize(shortage.free_bytes), ByteSize(shortage.needed_bytes));
            line(html, "bad", &format!("The {what} volume is full: {free} are free and {needed} needed. Make room."));
        }
    }
    let totals = &snapshot.totals;
    let all = format!(
        "Converted {}, failed {}, duplicates {}, cancelled {}; version {}.",
        totals.all.succeeded, totals.all.failed, totals.duplicates, totals.cancelled, snapshot.version
    );
    line(html, "soft", &all);
}

fn running(html: &mut String, snapshot: &Snapshot, now: Timestamp) {
    html.push_str("<h2>What runs</h2>\n");
    if snapshot.current_jobs.is_empty() {
        return line(html, "soft", "Nothing.");
    }
    head(html, &["Source", "Size", "For", "Progress"]);
    for job in &snapshot.current_jobs {
        let name = escape(&job.filename);
        let progress = job.progress_percent.map_or_else(
            || "not known yet".to_owned(),
            |percent| {
                format!(
                    r#"<progress max="100" value="{percent}" aria-label="Progress of {name}"></progress> {percent} %"#
                )
            },
        );
        let since = seconds(now.duration_since(job.start_time).as_secs());
        let _ = writeln!(
            html,
            r#"<tr><td>{name}</td><td class="number">{:.1} MiB</td><td class="number">{since}</td><td>{progress}</td></tr>"#,
            job.file_size_mb
        );
    }
    html.push_str("</tbody></table>\n");
}

/// Why complete files wait while the queue is paused.
const PAUSED: &str = "complete; the queue is paused";

fn waiting(html: &mut String, snapshot: &Snapshot) {
    html.push_str("<h2>What waits, and why</h2>\n");
    let is_paused = snapshot.run_state == RunState::Paused;
    let counts = [
        (snapshot.settling, "still arriving: not complete yet, its writer has it open, or what it names is missing"),
        (snapshot.queue_depth, if is_paused { PAUSED } else { "complete, waiting for a free slot" }),
        (snapshot.retrying, "waiting for the next attempt"),
        (snapshot.ignored, "never taken: the log says of each what to do"),
    ];
    if counts.iter().all(|(count, _)| *count == 0) {
        return line(html, "soft", "Nothing.");
    }
    head(html, &["Files", "Why"]);
    for (count, why) in counts.into_iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(html, r#"<tr><td class="number">{count}</td><td>{why}</td></tr>"#);
    }
    html.push_str("</tbody></table>\n");
    if snapshot.waiting.is_empty() {
        return;
    }
    html.push_str("<h3>Conversions that wait</h3>\n");
    head(html, &["Source", "Why"]);
    for waiting in &snapshot.waiting {
        let _ = writeln!(html, "<tr><td>{}</td><td>{}</td></tr>", escape(&waiting.filename), escape(&waiting.why));
    }
    html.push_str("</tbody></table>\n");
}

fn failed(html: &mut String, snapshot: &Snapshot) {
    html.push_str("<h2>What failed last</h2>\n");
    let failed: Vec<&JobStats> =
        snapshot.recent_completed.iter().rev().filter(|job| job.status == JobStatus::Failed).collect();
    if failed.is_empty() {
        return line(html, "soft", "Nothing among the last that ended.");
    }
    head(html, &["Source", "When", "Why", "What to do"]);
    for job in failed {
        let when = job.end_time.map(|time| format!("{time:.0}")).unwrap_or_default();
        let (why, remedy) = (job.error.as_deref().unwrap_or(""), job.suggestion.as_deref().unwrap_or(""));
        let _ = writeln!(
            html,
            r#"<tr><td>{}</td><td>{when}</td><td class="bad">{}</td><td>{}</td></tr>"#,
            escape(&job.filename),
            escape(why),
            escape(remedy)
        );
    }
    html.push_str("</tbody></table>\n");
}

/// Conversions an hour: a plot, and the same as a table.
pub(crate) fn last_day(html: &mut String, totals: &Totals, now: Timestamp) {
    html.push_str("<h2>The last day</h2>\n");
    let last = now.as_second().div_euclid(3600);
    let hours: Vec<_> =
        (last - HOURS + 1..=last).map(|hour| (hour, totals.by_hour.get(&hour).copied().unwrap_or_default())).collect();
    let conversions: u64 = hours.iter().map(|(_, of_hour)| of_hour.succeeded).sum();
    let bytes: u64 = hours.iter().fold(0, |sum, (_, of_hour)| sum.saturating_add(of_hour.bytes));
    line(html, "", &format!("{conversions} conversions of {} in 24 hours.", ByteSize(bytes)));
    let most = hours.iter().map(|(_, of_hour)| of_hour.succeeded).max().unwrap_or(0).max(1);
    let _ = writeln!(
        html,
        r#"<svg viewBox="0 0 480 96" role="img" aria-label="Conversions an hour over the last 24 hours, at most {most}">
<line x1="0" y1="78.5" x2="480" y2="78.5"/><text x="0" y="10">{most}</text>"#
    );
    for (index, (hour, of_hour)) in (0_u32..).zip(&hours) {
        let label = time_of(*hour);
        #[expect(clippy::cast_precision_loss, reason = "the height of a bar, in pixels")]
        let height = of_hour.succeeded as f64 / most as f64 * 64.0;
        let _ = writeln!(
            html,
            r#"<rect x="{}" y="{:.1}" width="16" height="{height:.1}"><title>{label}: {}</title></rect>"#,
            index * 20 + 2,
            78.0 - height,
            of_hour.succeeded
        );
        if index % 6 == 0 {
            let _ = writeln!(html, r#"<text x="{}" y="93">{label}</text>"#, index * 20 + 2);
        }
    }
    html.push_str("</svg>\n<details id=\"hours\"><summary>As a table</summary>\n");
    head(html, &["Hour (UTC)", "Conversions", "Failed", "Read"]);
    for (hour, of_hour) in hours.iter().rev() {
        let _ = writeln!(
            html,
            r#"<tr><td>{}</td><td class="number">{}</td><td class="number">{}</td><td class="number">{}</td></tr>"#,
            time_of(*hour),
            of_hour.succeeded,
            of_hour.failed,
            ByteSize(of_hour.bytes)
        );
    }
    html.push_str("</tbody></table></details>\n");
}

pub(crate) fn line(html: &mut String, class: &str, text: &str) {
    let _ = writeln!(html, r#"<p class="{class}">{}</p>"#, escape(text));
}

pub(crate) fn head(html: &mut String, columns: &[&str]) {
    html.push_str("<table><thead><tr>");
    for column in columns {
        let _ = write!(html, r#"<th scope="col">{column}</th>"#);
    }
    html.push_str("</tr></thead><tbody>\n");
}

/// `13:00` of an hour since the epoch.
fn time_of(hour: i64) -> String {
    format!("{:02}:00", hour.rem_euclid(24))
}

pub(crate) fn seconds(seconds: i64) -> String {
    match seconds.max(0) {
        short @ ..60 => format!("{short} s"),
        minutes @ 60..3600 => format!("{} min", minutes / 60),
        long => format!("{} h {:02} min", long / 3600, long % 3600 / 60),
    }
}

/// Text as HTML, cut to a bounded length.
pub(crate) fn escape(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_TEXT).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    let mut escaped = String::with_capacity(cut.len());
    for character in printable(&cut).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stats::{Shortage, Waiting};

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_768_641_600 + hours * 3600).expect("a time in 2026")
    }

    #[test]
    fn a_name_from_an_image_is_text_whatever_it_holds() {
        let mut snapshot = Snapshot::new(at(0));
        let name = "<script>alert('1')</script>\"&\u{202e}\u{1b}[31m.ova";
        snapshot.current_jobs.push(JobStats { progress_percent: Some(7), ..JobStats::started(name, 1, 0, at(0)) });
        let failed = JobStats::started(name, 1, 0, at(0)).ended(JobStatus::Failed, Some(name.to_owned()), at(1));
        snapshot.recent_completed.push(JobStats { suggestion: Some(name.to_owned()), ..failed });
        snapshot.waiting.push(Waiting { filename: name.to_owned(), why: name.to_owned() });
        snapshot.waiting_for = Some(name.to_owned());
        snapshot.retrying = 1;
        let page = page(&board(&snapshot, at(1)));
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;1&#39;)").count(), 8, "{page}");
        assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
        assert!(roxmltree::Document::parse(&format!("<main>{}</main>", board(&snapshot, at(1)))).is_ok());
    }

    /// Relative luminance of `#rrggbb`, as WCAG 2.2 defines it.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    #[test]
    fn every_text_stands_out_by_day_and_by_night() {
        let blocks: Vec<&str> = STYLE.match_indices("--ink:").map(|(at, _)| &STYLE[at..][..160]).collect();
        assert_eq!(blocks.len(), 2);
        for block in blocks {
            let colour = |name: &str| &block[block.find(&format!("--{name}: ")).unwrap() + name.len() + 4..][..7];
            for name in ["ink", "soft", "bad", "fill"] {
                let (text, paper) = (luminance(colour(name)), luminance(colour("paper")));
                let contrast = (text.max(paper) + 0.05) / (text.min(paper) + 0.05);
                assert!(contrast >= 4.5, "{name} on paper: {contrast:.2}");
            }
        }
    }

    #[test]
    fn the_plot_shows_the_last_day_and_nothing_older() {
        let mut snapshot = Snapshot::new(at(0));
        for (hour, conversions) in [(-30, 5), (-23, 2), (0, 4)] {
            for _ in 0..conversions {
                snapshot.totals.count_success("a.vmdk", Duration::from_secs(1), 1 << 30, at(hour));
            }
        }
        let board = board(&snapshot, at(0));
        assert!(board.contains("6 conversions of 6 GiB in 24 hours."), "{board}");
        assert!(board.contains("at most 4"), "{board}");
        assert_eq!(board.matches("<rect").count(), 24);
    }

    #[test]
    fn what_waits_and_what_failed_says_what_to_do() {
        let mut snapshot = Snapshot { queue_depth: 2, retrying: 1, ..Snapshot::new(at(0)) };
        snapshot.shortage = Some(Shortage { needed_bytes: 3 << 30, free_bytes: 1 << 20 });
        let failed = JobStats::started("b.vmdk", 1, 3, at(0)).ended(JobStatus::Failed, Some("no end".into()), at(0));
        snapshot.recent_completed.push(JobStats { suggestion: Some("Copy it again".into()), ..failed });
        let board = board(&snapshot, at(0));
        for said in ["waiting for a free slot", "1 MiB are free and 3 GiB needed", "no end", "Copy it again"] {
            assert!(board.contains(said), "{said}: {board}");
        }
        assert!(super::board(&Snapshot::new(at(0)), at(0)).contains("Nothing."));
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!([seconds(-1), seconds(59), seconds(60), seconds(7260)], ["0 s", "59 s", "1 min", "2 h 01 min"]);
    }
}
