// SPDX-License-Identifier: Apache-2.0
//! What a release sets for every queue that leaves it out. Controller and watcher fill it in where they read a queue, so
//! that everything behind sees one specification.

use k8s_openapi::api::core::v1::LocalObjectReference;
use serde::{Deserialize, Serialize};

use super::api::{
    HyperConversionSpec, PodSecurity, RetentionSettings, WatcherSettings, WorkerSettings, completed_resources,
};

/// Fields of a queue's specification, as it has them; what is left out here too stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct QueueDefaults {
    pub security_context: PodSecurity,
    pub worker: WorkerSettings,
    pub watcher: WatcherSettings,
    pub image_pull_secrets: Vec<LocalObjectReference>,
    pub log: String,
    pub retention: RetentionSettings,
}

impl QueueDefaults {
    /// Reads them from JSON; nothing, where there is none.
    ///
    /// # Errors
    /// What is wrong with the text, and where.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        if text.is_empty() { Ok(Self::default()) } else { serde_json::from_str(text) }
    }

    /// The part that a watcher needs by itself, as it is given to it; `None` where that is nothing.
    pub(crate) fn of_watcher(&self) -> Option<String> {
        let retention = Some(&self.retention).filter(|retention| **retention != RetentionSettings::default())?;
        Some(serde_json::json!({ "retention": retention }).to_string())
    }

    /// Fills in what `spec` leaves out.
    pub(crate) fn apply(&self, spec: &mut HyperConversionSpec) {
        let Self { security_context, worker, watcher, image_pull_secrets, log, retention } = self;
        fill(&mut spec.image_pull_secrets, image_pull_secrets);
        fill(&mut spec.log, log);
        let (own, set) = (&mut spec.retention, retention);
        fill(&mut own.processed_days, &set.processed_days);
        fill(&mut own.errors_days, &set.errors_days);
        fill(&mut own.outputs_days, &set.outputs_days);
        let (own, set) = (&mut spec.security_context, security_context);
        fill(&mut own.run_as_user, &set.run_as_user);
        fill(&mut own.run_as_group, &set.run_as_group);
        fill(&mut own.fs_group, &set.fs_group);
        fill(&mut own.supplemental_groups, &set.supplemental_groups);
        fill(&mut own.se_linux_options, &set.se_linux_options);
        let (own, set) = (&mut spec.worker, worker);
        own.resources = completed_resources(&own.resources, &set.resources);
        own.fix_resources = completed_resources(&own.fix_resources, &set.fix_resources);
        fill(&mut own.node_selector, &set.node_selector);
        fill(&mut own.tolerations, &set.tolerations);
        fill(&mut own.affinity, &set.affinity);
        fill(&mut own.topology_spread_constraints, &set.topology_spread_constraints);
        fill(&mut own.priority_class_name, &set.priority_class_name);
        fill(&mut own.runtime_class_name, &set.runtime_class_name);
        fill(&mut own.labels, &set.labels);
        fill(&mut own.annotations, &set.annotations);
        fill(&mut own.job_labels, &set.job_labels);
        fill(&mut own.queue_name, &set.queue_name);
        own.require_landlock |= set.require_landlock;
        let (own, set) = (&mut spec.watcher, watcher);
        own.resources = completed_resources(&own.resources, &set.resources);
        own.sidecar_resources = completed_resources(&own.sidecar_resources, &set.sidecar_resources);
        fill(&mut own.node_selector, &set.node_selector);
        fill(&mut own.tolerations, &set.tolerations);
        fill(&mut own.affinity, &set.affinity);
        fill(&mut own.topology_spread_constraints, &set.topology_spread_constraints);
        fill(&mut own.priority_class_name, &set.priority_class_name);
        fill(&mut own.runtime_class_name, &set.runtime_class_name);
        fill(&mut own.labels, &set.labels);
        fill(&mut own.annotations, &set.annotations);
        fill(&mut own.proxy, &set.proxy);
        fill(&mut own.trusted_ca_config_map_ref, &set.trusted_ca_config_map_ref);
        fill(&mut own.traces, &set.traces);
    }
}

fn fill<T: Default + PartialEq + Clone>(field: &mut T, default: &T) {
    if *field == T::default() {
        field.clone_from(default);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(change: &Value) -> HyperConversionSpec {
        let mut whole = json!({"queue": {"claimName": "q"}, "output": {"claimName": "o"}});
        whole.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_queue_keeps_what_it_says_and_gets_what_it_leaves_out() {
        let text = json!({
            "securityContext": {"fsGroup": 65532, "seLinuxOptions": {"level": "s0:c1,c2"}},
            "worker": {
                "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
                "fixResources": {"limits": {"memory": "2Gi"}},
                "nodeSelector": {"pool": "convert"}, "tolerations": [{"key": "t", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}}, "priorityClassName": "low", "runtimeClassName": "gvisor",
                "labels": {"a": "b"}, "annotations": {"a": "b"}, "jobLabels": {"a": "b"}, "queueName": "local",
                "requireLandlock": true,
            },
            "watcher": {
                "resources": {"limits": {"memory": "512Mi"}}, "sidecarResources": {"limits": {"memory": "99Mi"}},
                "nodeSelector": {"pool": "watch"}, "proxy": {"httpsProxy": "http://p:1"},
                "trustedCaConfigMapRef": {"name": "ca"},
            },
            "imagePullSecrets": [{"name": "of-all"}], "log": "debug",
            "retention": {"processedDays": 30, "outputsDays": 90},
        });
        let defaults = QueueDefaults::parse(&text.to_string()).unwrap();
        let mut silent = spec(&json!({}));
        defaults.apply(&mut silent);
        assert_eq!((&silent.worker, &silent.watcher), (&defaults.worker, &defaults.watcher));
        assert_eq!((&silent.security_context, &silent.retention), (&defaults.security_context, &defaults.retention));
        assert_eq!(
            (silent.image_pull_secrets, silent.log),
            (defaults.image_pull_secrets.clone(), defaults.log.clone())
        );

        let own = json!({
            "securityContext": {"fsGroup": 1000}, "retention": {"processedDays": 1}, "log": "info",
            "worker": {"resources": {"limits": {"cpu": "8"}}, "nodeSelector": {"disk": "fast"}},
        });
        let mut outspoken = spec(&own);
        defaults.apply(&mut outspoken);
        let worker = json!(outspoken.worker.resources);
        assert_eq!(worker, json!({"limits": {"cpu": "8", "memory": "1Gi"}}), "cpu is the queue's alone");
        assert_eq!(json!(outspoken.worker.node_selector), json!({"disk": "fast"}));
        assert_eq!((outspoken.security_context.fs_group, outspoken.log.as_str()), (Some(1000), "info"));
        assert_eq!((outspoken.retention.processed_days, outspoken.retention.outputs_days), (Some(1), Some(90)));
    }

    #[test]
    fn a_release_without_defaults_changes_nothing_and_a_wrong_one_says_what_is_wrong() {
        let mut plain = spec(&json!({"log": "info"}));
        let before = plain.clone();
        QueueDefaults::parse("").unwrap().apply(&mut plain);
        assert_eq!(plain, before);
        let error = QueueDefaults::parse(r#"{"worker": {}, "retentions": {}}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `retentions`"), "{error}");
        assert_eq!(QueueDefaults::default().of_watcher(), None);
        let kept = QueueDefaults::parse(r#"{"log": "debug", "retention": {"errorsDays": 7}}"#).unwrap();
        assert_eq!(kept.of_watcher().as_deref(), Some(r#"{"retention":{"errorsDays":7}}"#));
    }
}
