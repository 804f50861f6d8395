// SPDX-License-Identifier: Apache-2.0
//! Each value of the chart: what it changes, and that the API server takes what comes of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{CHART, helm};
use crate::harness::{Cluster, Need, in_tree, run};

/// Sets of values that differ from the chart's own; several, for some exclude one another.
const SETS: &str = include_str!("values.json");

fn sets() -> Vec<Value> {
    serde_json::from_str(SETS).expect("sets of values")
}

/// What the chart renders with these values; `None` where it refuses them.
fn rendered(helm: &Path, values: &Value) -> Option<String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), values.to_string()).expect("ours to write");
    let arguments = ["template", "r", "--namespace=values", "-f"];
    let output = Command::new(helm).args(arguments).arg(file.path()).arg(in_tree(CHART)).output();
    let output = output.expect("helm starts");
    output.status.success().then(|| String::from_utf8(output.stdout).expect("helm writes text"))
}

/// The same values without this one; `None` where it is not among them.
fn without(values: &Value, key: &str) -> Option<Value> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut left = values.clone();
    let mut sections = section.split('.').filter(|name| !name.is_empty());
    let holder = sections.try_fold(&mut left, |holder, name| holder.get_mut(name))?;
    holder.as_object_mut()?.remove(name)?;
    Some(left)
}

#[test]
fn each_value_that_is_documented_changes_what_the_chart_renders() {
    let Some(helm) = helm() else { return };
    let documented = fs::read_to_string(in_tree("docs/chart-values.md")).expect("the table of values");
    let keys: Vec<_> = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(keys.len() > 50, "{keys:?}");
    let sets: Vec<_> = sets().into_iter().map(|set| (rendered(&helm, &set), set)).collect();
    assert!(sets.iter().all(|(text, _)| text.is_some()), "a set of values.json is refused");
    let changes = |key: &&str| {
        let mut differing = sets.iter().filter_map(|(text, set)| Some((text, without(set, key)?)));
        differing.any(|(text, left)| rendered(&helm, &left) != *text)
    };
    let dead: Vec<_> = keys.into_iter().filter(|key| !changes(key)).collect();
    assert!(dead.is_empty(), "set in no set of values.json, or without any effect: {dead:?}");
}

#[test]
fn what_each_value_changes_is_taken_by_the_api_server() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(helm) = helm() else { return };
    let namespace = cluster.namespace("values");
    for mut set in sets() {
        let values = set.as_object_mut().expect("an object");
        // Their kinds are Prometheus'; the definitions are tried elsewhere.
        for kind in ["serviceMonitor", "prometheusRule"] {
            values.remove(kind);
        }
        values.insert("crds".to_owned(), serde_json::json!({"install": false}));
        values.insert("namespaceOverride".to_owned(), namespace.name.clone().into());
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), rendered(&helm, &set).expect("the chart takes them")).expect("ours to write");
        let taken = run(cluster.kubectl().args(["apply", "--dry-run=server", "-o", "name", "-f"]).arg(file.path()));
        assert!(taken.contains("deployment.apps/"), "{taken}");
    }
}
