// SPDX-License-Identifier: Apache-2.0
//! The controller's page: its queues, and of all their conversions what runs, what waits and why, and what failed last with
//! its remedy. It shows what the caches hold of the two kinds, and nothing of Secrets or files.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::context::Caches;
use crate::cluster::api::{ConditionType, ConversionJob, HyperConversion, JobPhase, condition};
use crate::conversion::status::End;
use crate::stats::Totals;
use crate::telemetry::endpoint::Board;
use crate::telemetry::page::{escape, head, last_day, line, seconds};

/// Most rows of a table: a page is for a person.
const MOST_ROWS: usize = 100;
/// How old a rendering may be: of a hundred thousand conversions one takes some time, and many may look.
const FRESH: Duration = Duration::from_secs(2);

/// The board of a replica: its caches', once it leads and has filled them.
pub(super) fn of(caches: Arc<OnceLock<Caches>>) -> Board {
    let last: Mutex<Option<(Instant, String)>> = Mutex::default();
    Arc::new(move |now| {
        let Some(caches) = caches.get() else {
            return "<p>This replica stands by, or has not listed everything yet. Look again in a moment.</p>\n"
                .to_owned();
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, html)) = last.as_ref().filter(|(since, _)| since.elapsed() < FRESH) {
            return html.clone();
        }
        let html = board(&caches.queues.state(), &caches.conversions.state(), now);
        *last = Some((Instant::now(), html.clone()));
        html
    })
}

/// What changes of the page.
fn board(queues: &[Arc<HyperConversion>], conversions: &[Arc<ConversionJob>], now: Timestamp) -> String {
    let mut html = String::new();
    of_queues(&mut html, queues);
    let in_phase = |phases: &[JobPhase]| -> Vec<&ConversionJob> {
        let phase = |conversion: &ConversionJob| conversion.status.as_ref().and_then(|status| status.phase);
        let mut found: Vec<&ConversionJob> = conversions
            .iter()
            .map(AsRef::as_ref)
            .filter(|conversion| phases.contains(&phase(conversion).unwrap_or(JobPhase::Pending)))
            .collect();
        found.sort_by_key(|conversion| (conversion.creation_timestamp(), conversion.name_any()));
        found
    };
    running(&mut html, &in_phase(&[JobPhase::Converting, JobPhase::Publishing]), now);
    waiting(&mut html, &in_phase(&[JobPhase::Pending, JobPhase::Queued, JobPhase::Retrying]));
    failed(&mut html, in_phase(&[JobPhase::Failed]));
    last_day(&mut html, &totals(conversions, now), now);
    html
}

fn of_queues(html: &mut String, queues: &[Arc<HyperConversion>]) {
    html.push_str("<h2>Queues</h2>\n");
    if queues.is_empty() {
        return line(html, "soft", "None. A HyperConversion makes one.");
    }
    let mut queues: Vec<_> = queues.iter().collect();
    queues.sort_by_key(|queue| (queue.namespace(), queue.name_any()));
    head(html, &["Queue", "State", "Ready", "Waits", "Runs", "Converted", "Failed"]);
    for queue in queues.iter().take(MOST_ROWS) {
        let status = queue.status.clone().unwrap_or_default();
        let totals = status.totals.unwrap_or_default();
        let (class, ready) = match condition(&status.conditions, ConditionType::Ready) {
            Some(said) if said.status == "True" => ("", "yes".to_owned()),
            Some(_) if queue.is_at_rest() => ("soft", "stopped, without a pod".to_owned()),
            Some(said) => ("bad", format!("{}: {}", said.reason, said.message)),
            None => ("soft", "not known yet".to_owned()),
        };
        let _ = write!(
            html,
            r#"<tr><td>{}</td><td>{:?}</td><td class="{class}">{}</td>"#,
            escape(&format!("{}/{}", queue.namespace().unwrap_or_default(), queue.name_any())),
            queue.spec.run_state,
            escape(&ready)
        );
        let counts =
            [status.queued.unwrap_or_default(), status.active.unwrap_or_default(), totals.succeeded, totals.failed];
        for count in counts {
            let _ = write!(html, r#"<td class="number">{count}</td>"#);
        }
        html.push_str("</tr>\n");
    }
    end(html, queues.len());
}

fn running(html: &mut String, running: &[&ConversionJob], now: Timestamp) {
    html.push_str("<h2>What runs</h2>\n");
    if running.is_empty() {
        return line(html, "soft", "Nothing.");
    }
    head(html, &["Source", "Queue", "For", "Progress"]);
    for conversion in running.iter().take(MOST_ROWS) {
        let status = conversion.status.clone().unwrap_or_default();
        let name = escape(&conversion.spec.source.path);
        let since = status.state.attempts.last().and_then(|attempt| attempt.start_time);
        let since = since.map(|since| seconds(now.duration_since(since).as_secs())).unwrap_or_default();
        let progress = status.progress.map_or_else(
            || "not known yet".to_owned(),
            |progress| {
                let percent = progress.percent;
                format!(
                    r#"<progress max="100" value="{percent}" aria-label="Progress of {name}"></progress> {percent} %"#
                )
            },
        );
        let _ = writeln!(
            html,
            r#"<tr><td>{name}</td><td>{}</td><td class="number">{since}</td><td>{progress}</td></tr>"#,
            queue_of(conversion)
        );
    }
    end(html, running.len());
}

fn waiting(html: &mut String, waiting: &[&ConversionJob]) {
    html.push_str("<h2>What waits, and why</h2>\n");
    if waiting.is_empty() {
        return line(html, "soft", "Nothing.");
    }
    head(html, &["Source", "Queue", "Why"]);
    for conversion in waiting.iter().take(MOST_ROWS) {
        let conditions = conversion.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let admitted = condition(conditions, ConditionType::Admitted).filter(|said| said.status == "False");
        let why = admitted.or_else(|| condition(conditions, ConditionType::Converted));
        let why = why.map_or("its watcher has not staged it yet", |said| said.message.as_str());
        let (source, why) = (escape(&conversion.spec.source.path), escape(why));
        let _ = writeln!(html, "<tr><td>{source}</td><td>{}</td><td>{why}</td></tr>", queue_of(conversion));
    }
    end(html, waiting.len());
}

fn failed(html: &mut String, mut failed: Vec<&ConversionJob>) {
    html.push_str("<h2>What failed last</h2>\n");
    if failed.is_empty() {
        return line(html, "soft", "Nothing among the ConversionJobs that are kept.");
    }
    let ended =
        |conversion: &&ConversionJob| conversion.status.as_ref().and_then(|status| status.state.completion_time);
    failed.sort_by_key(|conversion| std::cmp::Reverse(ended(conversion)));
    head(html, &["Source", "Queue", "When", "Why", "What to do"]);
    for conversion in failed.iter().take(MOST_ROWS) {
        let when = ended(conversion).map(|time| format!("{time:.0}")).unwrap_or_default();
        let failure = conversion.status.as_ref().and_then(|status| status.state.failure.as_ref());
        let (why, remedy) = failure.map_or(("", ""), |failure| (failure.message.as_str(), failure.suggestion.as_str()));
        let _ = writeln!(
            html,
            r#"<tr><td>{}</td><td>{}</td><td>{when}</td><td class="bad">{}</td><td>{}</td></tr>"#,
            escape(&conversion.spec.source.path),
            queue_of(conversion),
            escape(why),
            escape(remedy)
        );
    }
    end(html, failed.len());
}

fn queue_of(conversion: &ConversionJob) -> String {
    escape(&format!("{}/{}", conversion.namespace().unwrap_or_default(), conversion.spec.queue_ref.name))
}

/// Ends a table of so many rows.
fn end(html: &mut String, rows: usize) {
    html.push_str("</tbody></table>\n");
    if rows > MOST_ROWS {
        line(html, "soft", &format!("And {} more: kubectl get hconv,hcj -A", rows - MOST_ROWS));
    }
}

/// What ended within the last day, of the conversions that are kept.
fn totals(conversions: &[Arc<ConversionJob>], now: Timestamp) -> Totals {
    let mut totals = Totals::default();
    for conversion in conversions {
        let Some(status) = &conversion.status else { continue };
        let Some(at) =
            status.state.completion_time.filter(|at| now.duration_since(*at) < SignedDuration::from_hours(24))
        else {
            continue;
        };
        let source = &conversion.spec.source;
        match status.state.end {
            Some(End::Succeeded) => {
                totals.count_success(&source.path, Duration::ZERO, source.size_bytes.unwrap_or_default(), at);
            }
            Some(End::Failed) => totals.count_failure(&source.path, at),
            _ => {}
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn queue(status: &Value) -> Arc<HyperConversion> {
        let spec = json!({"queue": {"claimName": "q"}, "output": {"claimName": "o"}});
        let object = json!({"metadata": {"namespace": "n", "name": "q"}, "spec": spec, "status": status});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn conversion(source: &str, status: &Value) -> Arc<ConversionJob> {
        let spec = json!({"queueRef": {"name": "q"}, "source": {"path": source, "sizeBytes": 1 << 30}});
        let metadata = json!({"namespace": "n", "name": "a-00000001"});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap())
    }

    #[test]
    fn the_board_shows_queues_and_conversions_with_reasons_and_remedies_and_escapes_all_of_them() {
        let now: Timestamp = "2026-01-17T09:30:00Z".parse().unwrap();
        let said = |kind: &str, status: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": "R", "message": message,
                   "lastTransitionTime": "2026-01-17T09:00:00Z"})
        };
        let failure = json!({"reason": "Corrupt", "class": "Permanent", "phase": "conversion", "message": "<b>broken",
                             "suggestion": "copy it again"});
        let at = "2026-01-17T09:00:00Z";
        let queues = [queue(&json!({"queued": 4, "conditions": [said("Ready", "False", "no <room>")]}))];
        let conversions = [
            conversion(
                "<i>.ova",
                &json!({"phase": "Converting", "attempts": [{"number": 1, "startTime": at}],
                "progress": {"percent": 42, "stage": "copy", "bytesDone": 1, "bytesTotal": 2, "updatedTime": at}}),
            ),
            conversion(
                "waits.ova",
                &json!({"phase": "Queued", "conditions": [said("Admitted", "False", "older ones first")]}),
            ),
            conversion("new.ova", &json!({})),
            conversion(
                "bad.ova",
                &json!({"phase": "Failed", "end": "Failed", "completionTime": at, "failure": failure}),
            ),
            conversion("good.ova", &json!({"phase": "Succeeded", "end": "Succeeded", "completionTime": at})),
            conversion(
                "old.ova",
                &json!({"phase": "Succeeded", "end": "Succeeded", "completionTime": "2026-01-15T09:00:00Z"}),
            ),
        ];
        let html = board(&queues, &conversions, now);
        for part in [
            "R: no &lt;room&gt;",
            "&lt;i&gt;.ova</td><td>n/q</td><td class=\"number\">30 min",
            "42 %",
            "older ones first",
            "its watcher has not staged it yet",
            "&lt;b&gt;broken",
            "copy it again",
            "1 conversions of 1 GiB in 24 hours.",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("<i>") && !html.contains("<b>") && !html.contains("good.ova"), "{html}");
        assert!(roxmltree::Document::parse(&format!("<main>{html}</main>")).is_ok());
        let many: Vec<_> = (0..MOST_ROWS + 7).map(|_| conversion("x", &json!({"phase": "Queued"}))).collect();
        assert!(board(&[], &many, now).contains("And 7 more"));
        assert!(of(Arc::default())(now).contains("stands by"));
    }
}
