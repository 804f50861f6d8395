// SPDX-License-Identifier: Apache-2.0
//! Who asked the API server for what, from its audit log.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

/// One request that was answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub user: String,
    pub verb: String,
    /// `resource.group`, or `resource/subresource.group`, as in a rule.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub field_manager: String,
    /// Whether nothing was to be stored.
    pub is_dry_run: bool,
    pub code: i64,
    /// Whether authorization let it pass.
    pub allowed: bool,
    pub received: Timestamp,
    pub answered: Timestamp,
}

/// The requests in the log of the cluster in `state` by users for whom `wanted` is true.
pub(crate) fn requests(state: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Request> {
    let log = fs::read_to_string(state.join("logs/audit.log")).expect("the API server writes it");
    log.lines().filter_map(|line| request(&serde_json::from_str(line).ok()?)).filter(|r| wanted(&r.user)).collect()
}

fn request(event: &Value) -> Option<Request> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |field: &str| event[field].as_str()?.parse().ok();
    let of = &event["objectRef"];
    let resource = [of["resource"].as_str(), of["subresource"].as_str()].into_iter().flatten().collect::<Vec<_>>();
    let group = of["apiGroup"].as_str().map(|group| format!(".{group}")).unwrap_or_default();
    let mut asked = event["requestURI"].as_str()?.split(['?', '&']);
    let is_dry_run = asked.clone().any(|part| part.starts_with("dryRun="));
    let manager = asked.find_map(|part| part.strip_prefix("fieldManager="));
    Some(Request {
        user: text(&event["user"]["username"]),
        verb: text(&event["verb"]),
        resource: format!("{}{group}", resource.join("/")),
        namespace: text(&of["namespace"]),
        name: text(&of["name"]),
        field_manager: manager.unwrap_or_default().to_owned(),
        is_dry_run,
        code: event["responseStatus"]["code"].as_i64()?,
        allowed: event["annotations"]["authorization.k8s.io/decision"] == "allow",
        received: time("requestReceivedTimestamp")?,
        answered: time("stageTimestamp")?,
    })
}

/// `verb resource` of each.
pub(crate) fn used<'a>(requests: impl IntoIterator<Item = &'a Request>) -> BTreeSet<String> {
    requests.into_iter().map(|request| format!("{} {}", request.verb, request.resource)).collect()
}

/// `verb resource` of everything that the rules of a role allow.
pub(crate) fn granted(rules: &[Value]) -> BTreeSet<String> {
    let list = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut all = BTreeSet::new();
    for rule in rules {
        for group in list(rule, "apiGroups") {
            let suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
            for resource in list(rule, "resources") {
                all.extend(list(rule, "verbs").iter().map(|verb| format!("{verb} {resource}{suffix}")));
            }
        }
    }
    all
}
