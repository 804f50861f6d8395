// SPDX-License-Identifier: Apache-2.0
//! The watcher's stateful set: one pod that moves the queue's files, and its sidecar.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EnvVar, ExecAction, KeyToPath, PodSpec, PodTemplateSpec, Probe,
    SecretVolumeSource, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt;

use super::{Image, owned_by_queue, pod};
use crate::cluster::api::{HyperConversion, completed_resources, sidecar_resources, watcher_resources};
use crate::cluster::defaults::QueueDefaults;
use crate::cluster::names;

/// How often the kubelet asks the watcher whether it works, in seconds: each time is a process of some milliseconds.
const PROBE_PERIOD: i32 = 30;
/// The same until it has worked once: a new queue is ready as soon as it can be.
const FIRST_PROBE_PERIOD: i32 = 2;

/// Holds the snapshot (some hundred bytes a running conversion) and the socket.
const RUN_VOLUME_SIZE: &str = "16Mi";

/// A read-only volume of files that may be missing, and where it is mounted.
struct Files {
    volume: Volume,
    directory: String,
}

/// The stateful set of a queue's watcher, with its pod or without. Of `defaults` it gets those that no object of its
/// shows.
#[must_use]
pub(crate) fn stateful_set(
    queue: &HyperConversion,
    image: &Image,
    defaults: &QueueDefaults,
    has_pod: bool,
) -> StatefulSet {
    let name = queue.name_any();
    let settings = &queue.spec.watcher;
    let mut volumes = pod::claim_volumes(queue);
    volumes.push(pod::empty_dir("run", RUN_VOLUME_SIZE, Some("Memory")));
    volumes.push(pod::empty_dir("tmp", RUN_VOLUME_SIZE, None));
    // The sidecar answers and counts; it does not see the sources.
    let mut mounts = vec![
        pod::mount(pod::output_volume(queue), names::OUTPUT_DIR, pod::sub_path(&queue.spec.output, ""), false),
        pod::mount("run", names::RUN_DIR, None, false),
        pod::mount("tmp", "/tmp", None, false),
    ];
    let sidecar = container(image, names::CONTAINER_SIDECAR, environment(queue), mounts.clone());
    let sidecar = Container {
        restart_policy: Some("Always".to_owned()),
        resources: Some(completed_resources(&settings.sidecar_resources, &sidecar_resources())),
        ..sidecar
    };
    mounts.push(pod::mount(pod::QUEUE_VOLUME, names::QUEUE_DIR, pod::sub_path(&queue.spec.queue, ""), false));
    for Files { volume, directory } in files(queue) {
        mounts.push(pod::mount(&volume.name, &directory, None, true));
        volumes.push(volume);
    }
    let mut variables = environment(queue);
    variables.extend(outward(queue));
    variables.extend(defaults.of_watcher().map(|text| pod::env(names::VARIABLE_DEFAULTS, text)));
    let watcher = container(image, names::CONTAINER_WATCHER, variables, mounts);
    let watcher = Container {
        resources: Some(completed_resources(&settings.resources, &watcher_resources())),
        readiness_probe: Some(probe(PROBE_PERIOD, 2)),
        // However long it takes, to begin anew would not help.
        startup_probe: Some(probe(FIRST_PROBE_PERIOD, i32::MAX)),
        ..watcher
    };
    StatefulSet {
        metadata: owned_by_queue(queue, names::watcher(&name), names::COMPONENT_WATCHER),
        spec: Some(StatefulSetSpec {
            replicas: Some(has_pod.into()),
            // With ordered updates, a pod that can't start would block its own replacement.
            pod_management_policy: Some("Parallel".to_owned()),
            selector: LabelSelector {
                match_labels: Some(names::selector(&name, names::COMPONENT_WATCHER)),
                match_expressions: None,
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod::merged(&[], &settings.labels, names::labels(&name, names::COMPONENT_WATCHER))),
                    annotations: Some(pod::merged(
                        &[("kubectl.kubernetes.io/default-container", names::CONTAINER_WATCHER)],
                        &settings.annotations,
                        BTreeMap::new(),
                    )),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    service_account_name: Some(names::watcher(&name)),
                    automount_service_account_token: Some(true),
                    enable_service_links: Some(false),
                    security_context: Some(pod::pod_security(&queue.spec.security_context)),
                    init_containers: Some(vec![sidecar]),
                    containers: vec![watcher],
                    volumes: Some(volumes),
                    node_selector: non_empty_map(&settings.node_selector),
                    tolerations: non_empty(&settings.tolerations),
                    affinity: settings.affinity.clone(),
                    topology_spread_constraints: non_empty(&settings.topology_spread_constraints),
                    priority_class_name: pod::non_empty_text(&settings.priority_class_name),
                    runtime_class_name: pod::non_empty_text(&settings.runtime_class_name),
                    image_pull_secrets: non_empty(&queue.spec.image_pull_secrets),
                    termination_grace_period_seconds: Some(30),
                    ..PodSpec::default()
                }),
            },
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn container(image: &Image, name: &str, env: Vec<EnvVar>, mounts: Vec<VolumeMount>) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.name.clone()),
        image_pull_policy: Some(image.pull_policy.clone()),
        command: Some(vec!["hyper2kvm-operator".to_owned(), name.to_owned()]),
        env: Some(env),
        volume_mounts: Some(mounts),
        security_context: Some(pod::container_security()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// Whether the watcher works now. No liveness probe: to restart it would not mend a volume that hangs, nor bring an API
/// server back.
fn probe(period: i32, failures: i32) -> Probe {
    Probe {
        exec: Some(ExecAction {
            command: Some(vec!["hyper2kvm-operator".to_owned(), names::COMMAND_PROBE.to_owned()]),
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(10),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn environment(queue: &HyperConversion) -> Vec<EnvVar> {
    let own = vec![
        pod::env_field("HYPER2KVM_NAMESPACE", "metadata.namespace"),
        pod::env_field("HYPER2KVM_POD", "metadata.name"),
        pod::env("HYPER2KVM_QUEUE", queue.name_any()),
        // A queue that is made again under the same name is another queue, with another watcher.
        pod::env("HYPER2KVM_QUEUE_UID", queue.uid().unwrap_or_default()),
    ];
    own.into_iter().chain(pod::log(queue)).collect()
}

/// Only notifications and traces go out, and only the watcher sends them.
fn outward(queue: &HyperConversion) -> Vec<EnvVar> {
    let mut variables = Vec::new();
    if let Some(proxy) = &queue.spec.watcher.proxy {
        if !proxy.https_proxy.is_empty() {
            variables.push(pod::env("HTTPS_PROXY", &proxy.https_proxy));
        }
        if !proxy.no_proxy.is_empty() {
            variables.push(pod::env("NO_PROXY", &proxy.no_proxy));
        }
    }
    if let Some(traces) = &queue.spec.watcher.traces {
        variables.push(pod::env(names::VARIABLE_TRACES, &traces.endpoint));
    }
    if trusted_ca(queue).is_some() {
        // Clients that verify certificates through the platform read it in addition to the system's.
        variables.push(pod::env("SSL_CERT_DIR", format!("/etc/ssl/certs:{}", names::TRUSTED_CA_DIR)));
    }
    variables
}

fn trusted_ca(queue: &HyperConversion) -> Option<&str> {
    let reference = queue.spec.watcher.trusted_ca_config_map_ref.as_ref()?;
    (!reference.name.is_empty()).then_some(reference.name.as_str())
}

/// Secrets and certificates as optional files: a missing one is a condition, not a pod that can't start.
fn files(queue: &HyperConversion) -> Vec<Files> {
    let mut files = Vec::new();
    let notifications = &queue.spec.notifications;
    if let Some(webhook) = &notifications.webhook {
        let url = &webhook.url_secret_ref;
        let items = vec![KeyToPath { key: url.key.clone(), path: "url".to_owned(), mode: None }];
        files.push(secret("webhook", &url.name, Some(items), names::WEBHOOK_DIR));
        if let Some(headers) = &webhook.headers_secret_ref {
            files.push(secret("webhook-headers", &headers.name, None, names::WEBHOOK_HEADERS_DIR));
        }
    }
    if let Some(credentials) = notifications.email.as_ref().and_then(|email| email.credentials_secret_ref.as_ref()) {
        files.push(secret("email", &credentials.name, None, names::EMAIL_CREDENTIALS_DIR));
    }
    if let Some(name) = trusted_ca(queue) {
        let config_map =
            ConfigMapVolumeSource { name: name.to_owned(), optional: Some(true), ..ConfigMapVolumeSource::default() };
        files.push(Files {
            volume: Volume { name: "trusted-ca".to_owned(), config_map: Some(config_map), ..Volume::default() },
            directory: names::TRUSTED_CA_DIR.to_owned(),
        });
    }
    files
}

fn secret(volume: &str, name: &str, items: Option<Vec<KeyToPath>>, directory: &str) -> Files {
    let source =
        SecretVolumeSource { secret_name: Some(name.to_owned()), items, optional: Some(true), default_mode: None };
    Files {
        volume: Volume { name: volume.to_owned(), secret: Some(source), ..Volume::default() },
        directory: format!("{}/{directory}", names::SECRETS_DIR),
    }
}

pub(super) fn non_empty<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

pub(super) fn non_empty_map<K: Ord + Clone, V: Clone>(map: &BTreeMap<K, V>) -> Option<BTreeMap<K, V>> {
    (!map.is_empty()).then(|| map.clone())
}
