// SPDX-License-Identifier: Apache-2.0
//! A message in the format that its receiver expects.

use serde_json::{Map, Value, json};

use super::event::{Level, Message};

/// Name of the sender, in generic payloads and footers.
const SOURCE: &str = "hyper2kvm-daemon";

/// Limits of a Discord embed (Discord developer documentation, *Embed Limits*), in characters and fields.
const DISCORD_VALUE: usize = 1024;
const DISCORD_DESCRIPTION: usize = 4096;
const DISCORD_FIELDS: usize = 25;
/// Slack cuts or refuses longer texts (Slack API, *secondary attachments*).
const SLACK_TEXT: usize = 3000;

/// For programs that read JSON: the details at the top level and once more below `details`, with the texts of the
/// message.
pub(super) fn generic(message: &Message) -> Value {
    let details: Map<String, Value> =
        message.details.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let mut body = details.clone();
    body.insert("title".to_owned(), message.title.into());
    body.insert("message".to_owned(), message.text.as_str().into());
    body.insert("level".to_owned(), message.level.as_str().into());
    body.insert("source".to_owned(), SOURCE.into());
    body.insert("details".to_owned(), details.into());
    body.into()
}

/// A Slack message with one attachment.
pub(super) fn slack(message: &Message) -> Value {
    let color = match message.level {
        Level::Success => "#36a64f",
        Level::Warning => "#ff9900",
        Level::Error => "#ff0000",
    };
    let fields: Vec<Value> = message
        .details
        .iter()
        .map(|(key, value)| json!({"title": key, "value": escaped(&shown(value), SLACK_TEXT), "short": true}))
        .collect();
    json!({"attachments": [{
        "color": color,
        "title": message.title,
        "text": escaped(&message.text, SLACK_TEXT),
        "fields": fields,
        "footer": SOURCE,
        "ts": message.at.as_second(),
    }]})
}

/// A Discord message with one embed.
pub(super) fn discord(message: &Message) -> Value {
    let color = match message.level {
        Level::Success => 3_066_993,
        Level::Warning => 16_776_960,
        Level::Error => 15_158_332,
    };
    let fields: Vec<Value> = message
        .details
        .iter()
        .take(DISCORD_FIELDS)
        .map(|(key, value)| {
            let value = shown(value);
            // Discord refuses an empty value.
            let value = if value.is_empty() { "-".to_owned() } else { cut(&value, DISCORD_VALUE) };
            json!({"name": key, "value": value, "inline": true})
        })
        .collect();
    json!({"embeds": [{
        "title": message.title,
        "description": cut(&message.text, DISCORD_DESCRIPTION),
        "color": color,
        "fields": fields,
        "footer": {"text": SOURCE},
        "timestamp": format!("{:.0}", message.at),
    }]})
}

/// The text of a mail.
pub(super) fn mail(message: &Message) -> String {
    let mut text = format!("{}\n\n", message.text);
    for (key, value) in &message.details {
        text.extend([*key, ": ", &shown(value), "\n"]);
    }
    text
}

/// A value without quotation marks.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// At most `limit` characters, the last an ellipsis where something was cut.
fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit - 1).chain(['…']).collect()
}

/// Cuts a text and escapes what Slack takes for markup (Slack API, *Escaping text*): a file may be called `<!channel>`.
fn escaped(text: &str, limit: usize) -> String {
    cut(text, limit).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Event;
    use super::*;

    fn success() -> Message {
        Event::Success {
            filename: "web01.vmdk".to_owned(),
            duration: Duration::from_millis(125_340),
            output_path: "/out/2026-01-17/web01".to_owned(),
            at: "2026-01-17T09:45:00.5Z".parse().unwrap(),
        }
        .message()
    }

    fn failure(filename: &str, error: &str) -> Message {
        Event::Failure {
            filename: filename.to_owned(),
            error: error.to_owned(),
            retry_count: 3,
            at: "2026-01-17T09:45:00Z".parse().unwrap(),
        }
        .message()
    }

    fn stalled() -> Message {
        Event::Stalled {
            queue_depth: 5,
            idle: Duration::from_secs(3700),
            last_activity: None,
            at: "2026-01-17T09:45:00Z".parse().unwrap(),
        }
        .message()
    }

    #[test]
    fn a_generic_payload_has_its_details_at_both_places() {
        assert_eq!(
            generic(&success()),
            json!({
                "event": "conversion_success",
                "filename": "web01.vmdk",
                "duration_seconds": 125.34,
                "output_path": "/out/2026-01-17/web01",
                "timestamp": "2026-01-17T09:45:00Z",
                "title": "✅ Conversion Successful",
                "message": "Successfully converted web01.vmdk in 125.3s",
                "level": "success",
                "source": "hyper2kvm-daemon",
                "details": {
                    "event": "conversion_success",
                    "filename": "web01.vmdk",
                    "duration_seconds": 125.34,
                    "output_path": "/out/2026-01-17/web01",
                    "timestamp": "2026-01-17T09:45:00Z",
                },
            })
        );
    }

    #[test]
    fn an_attachment_for_slack() {
        assert_eq!(
            slack(&failure("<!channel>.ova", "a < b & c")),
            json!({"attachments": [{
                "color": "#ff0000",
                "title": "❌ Conversion Failed",
                "text": "Failed to convert &lt;!channel&gt;.ova: a &lt; b &amp; c",
                "fields": [
                    {"title": "event", "value": "conversion_failure", "short": true},
                    {"title": "filename", "value": "&lt;!channel&gt;.ova", "short": true},
                    {"title": "error", "value": "a &lt; b &amp; c", "short": true},
                    {"title": "retry_count", "value": "3", "short": true},
                    {"title": "timestamp", "value": "2026-01-17T09:45:00Z", "short": true},
                ],
                "footer": "hyper2kvm-daemon",
                "ts": 1_768_643_100,
            }]})
        );
        assert_eq!(slack(&success())["attachments"][0]["color"], "#36a64f");
        assert_eq!(slack(&stalled())["attachments"][0]["color"], "#ff9900");
    }

    #[test]
    fn an_embed_for_discord() {
        assert_eq!(
            discord(&stalled()),
            json!({"embeds": [{
                "title": "⚠️ Daemon Stalled",
                "description": "Daemon idle for 61 minutes with 5 items in queue",
                "color": 16_776_960,
                "fields": [
                    {"name": "event", "value": "daemon_stalled", "inline": true},
                    {"name": "queue_depth", "value": "5", "inline": true},
                    {"name": "idle_minutes", "value": "61", "inline": true},
                    {"name": "last_activity", "value": "-", "inline": true},
                    {"name": "timestamp", "value": "2026-01-17T09:45:00Z", "inline": true},
                ],
                "footer": {"text": "hyper2kvm-daemon"},
                "timestamp": "2026-01-17T09:45:00Z",
            }]})
        );
        assert_eq!(discord(&success())["embeds"][0]["color"], 3_066_993);
        assert_eq!(discord(&failure("a", "b"))["embeds"][0]["color"], 15_158_332);
    }

    #[test]
    fn an_embed_keeps_to_discords_limits() {
        let embed = &discord(&failure("", &"é".repeat(9000)))["embeds"][0];
        assert_eq!(embed["description"].as_str().unwrap().chars().count(), 4096);
        assert_eq!(embed["fields"][1]["value"], "-");
        assert_eq!(embed["fields"][2]["value"], format!("{}…", "é".repeat(1023)));
    }

    #[test]
    fn a_mail_lists_its_details() {
        assert_eq!(
            mail(&failure("web01.vmdk", "web01.vmdk: grain table beyond the end")),
            "Failed to convert web01.vmdk: grain table beyond the end\n\n\
             event: conversion_failure\nfilename: web01.vmdk\nerror: web01.vmdk: grain table beyond the end\nretry_count: 3\n\
             timestamp: 2026-01-17T09:45:00Z\n"
        );
    }

    #[test]
    fn a_full_volume_is_told_with_both_figures() {
        let message = Event::OutputFull {
            needed_bytes: 2000,
            free_bytes: 1000,
            output_path: "/out".to_owned(),
            at: "2026-01-17T09:45:00Z".parse().unwrap(),
        }
        .message();
        assert_eq!(
            message,
            Message {
                title: "⚠️ Output Volume Full",
                text: "/out has 1000 bytes free, 2000 are needed: the queue holds".to_owned(),
                level: Level::Warning,
                details: vec![
                    ("event", json!("output_full")),
                    ("needed_bytes", json!(2000)),
                    ("free_bytes", json!(1000)),
                    ("output_path", json!("/out")),
                    ("timestamp", json!("2026-01-17T09:45:00Z")),
                ],
                at: "2026-01-17T09:45:00Z".parse().unwrap(),
            }
        );
    }
}
