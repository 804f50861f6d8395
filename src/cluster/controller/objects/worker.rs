// SPDX-License-Identifier: Apache-2.0
//! One attempt as a batch Job: one artifact read-only, one work directory, nothing else.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::api::core::v1::{Affinity, Container, EnvVar, PodAffinity, PodAffinityTerm, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

use super::target::{self, Task};
use super::watcher::{non_empty, non_empty_map};
use super::{Image, Images, pod};
use crate::cluster::api::{
    Accelerator, BootCheckMode, ConversionJob, ConversionSettings, GuestMode, GuestSettings, HyperConversion,
    InvalidSetting, WorkerSettings, boot_resources, completed_resources, fix_resources, worker_resources,
};
use crate::cluster::names;
use crate::conversion::contract::{self, variable};
use crate::conversion::{Attempt, Compression, ConversionId, OutputFormat, hex};

/// Room for temporary files of libraries; the disks go to the work directory.
const TMP_SIZE: &str = "64Mi";

/// The resource by which `KubeVirt`'s device plugin gives a pod the node's `/dev/kvm` (`KvmDevice` of its
/// `pkg/virt-controller/services`).
const KVM_RESOURCE: &str = "devices.kubevirt.io/kvm";
/// Name of the volume that holds virtio's drivers for Windows, where it is another claim than the queue's and the output's.
const VIRTIO_WIN_VOLUME: &str = "virtio-win";

/// What keeps others from putting a proxy into a worker's pod, which has no use for one, and from moving it before it
/// is done. The specification may say otherwise.
const LEFT_ALONE_LABELS: [(&str, &str); 1] = [("sidecar.istio.io/inject", "false")];
const LEFT_ALONE_ANNOTATIONS: [(&str, &str); 3] = [
    ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ("karpenter.sh/do-not-disrupt", "true"),
    ("linkerd.io/inject", "disabled"),
];

/// What a Job depends on besides the two specifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobContext {
    pub images: Images,
    /// Whether a claim may be mounted on one node only, which is then the watcher's.
    pub one_node: bool,
}

/// The batch Job of one attempt.
///
/// # Errors
/// [`InvalidSetting`] if the specification has a value that an older schema accepted.
pub(crate) fn job(
    queue: &HyperConversion,
    conversion: &ConversionJob,
    id: &ConversionId,
    attempt: Attempt,
    task: Task,
    context: &JobContext,
) -> Result<Job, InvalidSetting> {
    let built = digest(queue, conversion, id, attempt, task, &context.images)?;
    let template = template(queue, conversion, id, attempt, task, &context.images, context.one_node)?;
    // Where Kueue isn't served, the Job waits for it: a Job that started would be past its quota.
    let is_queued = !queue.spec.worker.queue_name.is_empty();
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(names::job(id, attempt)),
            namespace: conversion.namespace(),
            labels: Some(job_labels(queue, id, attempt)),
            annotations: Some(built.annotations()),
            owner_references: conversion.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            backoff_limit: Some(0),
            pod_replacement_policy: Some("Failed".to_owned()),
            pod_failure_policy: Some(PodFailurePolicy {
                rules: vec![PodFailurePolicyRule {
                    action: "Ignore".to_owned(),
                    on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                        type_: "DisruptionTarget".to_owned(),
                        status: "True".to_owned(),
                    }]),
                    on_exit_codes: None,
                }],
            }),
            suspend: is_queued.then_some(true),
            template,
            ..JobSpec::default()
        }),
        status: None,
    })
}

/// The LocalQueue of Jobs that name none, where a namespace has one of this name (Kueue's `DefaultLocalQueueName`).
const DEFAULT_LOCAL_QUEUE: &str = "default";

/// Digests of the template that the specification builds now, to compare with a Job's annotations. They leave out where
/// volumes can be mounted: claims don't change, and reading them each time would cost a request. Beside them, what the
/// specification says of the Job's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TemplateDigest {
    whole: String,
    /// Of the template without its image.
    without_image: String,
    /// The labels by which a Job is admitted; `None` where it has none of us.
    admitted_by: BTreeMap<String, Option<String>>,
}

impl TemplateDigest {
    #[cfg(test)]
    pub(crate) fn of_test(whole: &str, without_image: &str) -> Self {
        Self { whole: whole.to_owned(), without_image: without_image.to_owned(), ..Self::default() }
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let named = [(names::ANNOTATION_TEMPLATE, &self.whole), (names::ANNOTATION_SPECIFICATION, &self.without_image)];
        named.into_iter().map(|(name, digest)| (name.to_owned(), digest.clone())).collect()
    }

    #[cfg(test)]
    pub(crate) fn admitted_by(mut self, queue_name: Option<&str>) -> Self {
        self.admitted_by.insert(names::LABEL_KUEUE.to_owned(), queue_name.map(str::to_owned));
        self
    }

    /// Whether a Job has other labels than those by which it is to be admitted, such as a queue name that was corrected.
    pub(crate) fn is_admitted_otherwise(&self, labels: &BTreeMap<String, String>) -> bool {
        self.admitted_by.iter().any(|(name, wanted)| match (wanted, labels.get(name)) {
            // Kueue gives it to Jobs without one.
            (None, Some(found)) => found != DEFAULT_LOCAL_QUEUE,
            (wanted, found) => wanted.as_ref() != found,
        })
    }

    /// Whether a Job with these annotations was made from another template. A Job that waits to be admitted keeps its
    /// place with the image that it has, which is whole: it is made anew for nothing but another specification.
    pub(crate) fn differs(&self, built: &BTreeMap<String, String>, is_suspended: bool) -> bool {
        match (built.get(names::ANNOTATION_SPECIFICATION), built.get(names::ANNOTATION_TEMPLATE)) {
            (Some(built), _) if is_suspended => *built != self.without_image,
            (_, Some(built)) => *built != self.whole,
            (_, None) => false,
        }
    }
}

/// The digests of an attempt's template.
///
/// # Errors
/// As [`job`].
pub(crate) fn digest(
    queue: &HyperConversion,
    conversion: &ConversionJob,
    id: &ConversionId,
    attempt: Attempt,
    task: Task,
    images: &Images,
) -> Result<TemplateDigest, InvalidSetting> {
    let mut template = template(queue, conversion, id, attempt, task, images, false)?;
    let digest = |template: &PodTemplateSpec| {
        let json = serde_json::to_vec(template).expect("an object for the API server serialises");
        hex(&Sha256::digest(&json)[..8])
    };
    let whole = digest(&template);
    for container in template.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        (container.image, container.image_pull_policy) = (None, None);
    }
    let labels = job_labels(queue, id, attempt);
    let named = queue.spec.worker.job_labels.keys().map(String::as_str).chain([names::LABEL_KUEUE]);
    let admitted_by = named.map(|name| (name.to_owned(), labels.get(name).cloned())).collect();
    Ok(TemplateDigest { whole, without_image: digest(&template), admitted_by })
}

/// The labels of an attempt's Job.
fn job_labels(queue: &HyperConversion, id: &ConversionId, attempt: Attempt) -> BTreeMap<String, String> {
    let mut own = labels(queue, id, attempt);
    let queue_name = &queue.spec.worker.queue_name;
    if !queue_name.is_empty() {
        own.insert(names::LABEL_KUEUE.to_owned(), queue_name.clone());
    }
    pod::merged(&[], &queue.spec.worker.job_labels, own)
}

fn labels(queue: &HyperConversion, id: &ConversionId, attempt: Attempt) -> BTreeMap<String, String> {
    let mut labels = names::labels(&queue.name_any(), names::COMPONENT_WORKER);
    labels.insert(names::LABEL_CONVERSION.to_owned(), id.to_string());
    labels.insert(names::LABEL_ATTEMPT.to_owned(), attempt.to_string());
    labels
}

fn template(
    queue: &HyperConversion,
    conversion: &ConversionJob,
    id: &ConversionId,
    attempt: Attempt,
    task: Task,
    images: &Images,
    one_node: bool,
) -> Result<PodTemplateSpec, InvalidSetting> {
    let mut settings = queue.spec.conversion.overridden_by(&conversion.spec.conversion);
    if task != Task::Files {
        // A claim holds a disk raw, whatever files would be.
        settings = ConversionSettings {
            out_format: OutputFormat::Raw,
            compress: Compression::None,
            compress_level: None,
            ..settings
        };
    }
    let options = settings.options()?;
    // Whoever looks at the source's headers alone runs nothing.
    let runs = task != Task::Plan && options.guest.has_programs();
    let options = serde_json::to_string(&options).expect("options are plain values");
    let spec = &queue.spec;
    let worker = &spec.worker;
    let image = if runs { fixer(images, &settings.guest)? } else { &images.own };
    let mut volumes = pod::claim_volumes(queue);
    volumes.push(pod::empty_dir("tmp", TMP_SIZE, None));
    let claim = pod::sub_path(&spec.queue, &contract::claim_path(id));
    let work = pod::sub_path(&spec.output, &contract::work_path(id, attempt));
    let container = Container {
        name: names::CONTAINER_WORKER.to_owned(),
        image: Some(image.name.clone()),
        image_pull_policy: Some(image.pull_policy.clone()),
        command: Some(vec!["hyper2kvm".to_owned(), "worker".to_owned()]),
        env: Some(environment(queue, attempt, options)),
        resources: Some(if runs {
            resources_of_programs(worker, &settings.guest)
        } else {
            completed_resources(&worker.resources, &worker_resources())
        }),
        volume_mounts: Some(vec![
            pod::mount(pod::QUEUE_VOLUME, names::CLAIM_DIR, claim, true),
            pod::mount(pod::output_volume(queue), names::WORK_DIR, work, false),
            pod::mount("tmp", "/tmp", None, false),
        ]),
        security_context: Some(pod::container_security()),
        termination_message_path: Some(names::TERMINATION_LOG.to_owned()),
        termination_message_policy: Some("File".to_owned()),
        ..Container::default()
    };
    let mut spec = PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        active_deadline_seconds: Some(settings.active_deadline_seconds.into()),
        termination_grace_period_seconds: Some(30),
        security_context: Some(pod::pod_security(&spec.security_context)),
        containers: vec![container],
        volumes: Some(volumes),
        node_selector: non_empty_map(&worker.node_selector),
        tolerations: non_empty(&worker.tolerations),
        affinity: affinity(queue, one_node),
        topology_spread_constraints: non_empty(&worker.topology_spread_constraints),
        priority_class_name: pod::non_empty_text(&worker.priority_class_name),
        runtime_class_name: pod::non_empty_text(&worker.runtime_class_name),
        image_pull_secrets: non_empty(&spec.image_pull_secrets),
        ..PodSpec::default()
    };
    if runs && settings.guest.mode != GuestMode::Off {
        add_virtio_win(&mut spec, &settings.guest);
    }
    target::set(&mut spec, conversion, task);
    Ok(PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod::merged(&LEFT_ALONE_LABELS, &worker.labels, labels(queue, id, attempt))),
            annotations: Some(pod::merged(&LEFT_ALONE_ANNOTATIONS, &worker.annotations, BTreeMap::new())),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    })
}

/// The image of a worker that runs programs for a guest.
fn fixer<'a>(images: &'a Images, guest: &GuestSettings) -> Result<&'a Image, InvalidSetting> {
    images.fixer.as_ref().ok_or_else(|| {
        let (field, what) = match guest.mode {
            GuestMode::Off => ("conversion.guest.bootCheck.mode", "tries whether guests boot"),
            GuestMode::BestEffort | GuestMode::Require => ("conversion.guest.mode", "fixes guests"),
        };
        let message = format!(
            "this release has no image that {what}: set fixer.repository of its chart, or the controller's --fixer-image; or \
             set mode to Off"
        );
        InvalidSetting { field, message }
    })
}

/// CPU and memory of a worker that runs programs for a guest, and the device that runs their code.
fn resources_of_programs(worker: &WorkerSettings, guest: &GuestSettings) -> ResourceRequirements {
    let default = if guest.boot_check.mode == BootCheckMode::Off { fix_resources() } else { boot_resources() };
    let mut resources = completed_resources(&worker.fix_resources, &default);
    if guest.accelerator == Accelerator::Kvm {
        let limits = resources.limits.get_or_insert_default();
        limits.insert(KVM_RESOURCE.to_owned(), Quantity("1".to_owned()));
    }
    resources
}

/// Shows the worker virtio's drivers for Windows, to read.
fn add_virtio_win(spec: &mut PodSpec, guest: &GuestSettings) {
    let Some(virtio_win) = &guest.virtio_win else { return };
    let volumes = spec.volumes.get_or_insert_default();
    let volume = pod::volume_of_claim(volumes, VIRTIO_WIN_VOLUME, &virtio_win.claim_name);
    let path = pod::non_empty_text(&virtio_win.path);
    for container in &mut spec.containers {
        let mounts = container.volume_mounts.get_or_insert_default();
        mounts.push(pod::mount(&volume, names::VIRTIO_WIN_DIR, path.clone(), true));
    }
}

fn environment(queue: &HyperConversion, attempt: Attempt, options: String) -> Vec<EnvVar> {
    let mut variables = vec![
        pod::env(variable::CLAIM, names::CLAIM_DIR),
        pod::env(variable::WORK, names::WORK_DIR),
        pod::env_field(variable::FOLDER, "metadata.name"),
        pod::env(variable::OPTIONS, options),
        pod::env(variable::ATTEMPT, attempt.to_string()),
        pod::env(variable::TERMINATION_LOG, names::TERMINATION_LOG),
    ];
    variables.extend(pod::log(queue));
    if queue.spec.worker.require_landlock {
        variables.push(pod::env(variable::REQUIRE_LANDLOCK, "1"));
    }
    if cfg!(debug_assertions) {
        // Faults that tests ask for, one queue at a time.
        for (annotation, variable) in [
            ("test.hyper2kvm.io/fail", variable::TEST_FAIL),
            ("test.hyper2kvm.io/hang", variable::TEST_HANG),
            ("test.hyper2kvm.io/die", variable::TEST_DIE),
        ] {
            if let Some(value) = queue.annotations().get(annotation) {
                variables.push(pod::env(variable, value));
            }
        }
    }
    variables
}

/// The affinity of the specification, and the watcher's node where a volume can't be mounted elsewhere.
fn affinity(queue: &HyperConversion, one_node: bool) -> Option<Affinity> {
    let wanted = queue.spec.worker.affinity.clone();
    if !one_node {
        return wanted;
    }
    let term = PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some(names::selector(&queue.name_any(), names::COMPONENT_WATCHER)),
            match_expressions: None,
        }),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let mut affinity = wanted.unwrap_or_default();
    let pods = affinity.pod_affinity.get_or_insert_with(PodAffinity::default);
    pods.required_during_scheduling_ignored_during_execution.get_or_insert_with(Vec::new).push(term);
    Some(affinity)
}
