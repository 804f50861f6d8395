// SPDX-License-Identifier: Apache-2.0
//! A namespace with a controller of its own, where tests act as the watcher and the kubelet.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::time::Duration;

use hyper2kvm::cluster::agent;
use hyper2kvm::cluster::api::{ConversionJob, HyperConversion};
use hyper2kvm::cluster::controller::objects::{Image, Images};
use hyper2kvm::cluster::controller::{Options, run};
use hyper2kvm::cluster::defaults::QueueDefaults;
use hyper2kvm::cluster::identity::Identity;
use hyper2kvm::telemetry::traces::Traces;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::harness::{Cluster, Namespace, Need};

/// Longest wait for anything: a busy machine is slow, a broken one is stuck.
const DEADLINE: Duration = Duration::from_secs(60);

/// One test's part of the cluster.
pub(crate) struct Stage {
    config: kube::Config,
    client: Client,
    pub namespace: Namespace,
    controller: JoinHandle<()>,
}

/// A controller of this namespace only.
fn control(config: &kube::Config, namespace: &str, image: Image) -> JoinHandle<()> {
    let options = Options {
        images: Images { own: image, fixer: None },
        defaults: QueueDefaults::default(),
        listen: "127.0.0.1:0".parse().unwrap(),
        page: false,
        namespaces: vec![namespace.to_owned()],
        lease_namespace: namespace.to_owned(),
        lease: "hyper2kvm-operator".to_owned(),
        identity: "test".into(),
    };
    let config = config.clone();
    tokio::spawn(async move {
        run(config, options, std::future::pending()).await.expect("the controller goes on");
    })
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

impl Stage {
    /// A fresh namespace under a controller; `None` where no API server is available.
    pub(crate) async fn open(test: &str) -> Option<Self> {
        Self::open_where(
            test,
            Need::ControlPlane,
            Image { name: "example.com/hyper2kvm:1".into(), pull_policy: "Never".into() },
        )
        .await
    }

    /// The same where `need` is available, with this image of the workers.
    pub(crate) async fn open_where(test: &str, need: Need, image: Image) -> Option<Self> {
        let mut stage = Self::empty(test, need).await?;
        stage.controller = control(&stage.config, &stage.namespace.name, image);
        Some(stage)
    }

    /// A fresh namespace without a controller.
    pub(crate) async fn empty(test: &str, need: Need) -> Option<Self> {
        let cluster = Cluster::shared(need)?;
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("hyper2kvm=debug").try_init();
        let name = format!("controller-{test}");
        let namespace = tokio::task::spawn_blocking(move || cluster.namespace(&name)).await.unwrap();
        let (config, client) = (cluster.config().await, cluster.client().await);
        Some(Self { config, client, namespace, controller: tokio::spawn(std::future::pending()) })
    }

    /// Ends the controller, and starts another in its place with this image of the workers.
    pub(crate) async fn replace_controller(&mut self, image: Image) {
        self.controller.abort();
        let _ = (&mut self.controller).await;
        self.controller = control(&self.config, &self.namespace.name, image);
    }

    pub(crate) fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace.name)
    }

    pub(crate) async fn get<K>(&self, name: &str) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.api::<K>().get(name).await.unwrap()
    }

    pub(crate) async fn exists<K>(&self, name: &str) -> bool
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.api::<K>().get_opt(name).await.unwrap().is_some()
    }

    /// Waits until `holds` is true of an object, and returns it.
    pub(crate) async fn until<K>(&self, name: &str, holds: impl Fn(&K) -> bool + Send + Sync) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let waited =
            timeout(DEADLINE, await_condition(self.api::<K>(), name, |object: Option<&K>| object.is_some_and(&holds)));
        if let Ok(object) = waited.await {
            return object.unwrap().expect("the condition asks for it");
        }
        panic!("{name} does not get there: {:#?}", self.api::<K>().get_opt(name).await);
    }

    /// Waits until an object is gone.
    pub(crate) async fn gone<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let Some(object) = self.api::<K>().get_opt(name).await.unwrap() else { return };
        let uid = object.uid().unwrap();
        let deleted = conditions::is_deleted(&uid);
        timeout(DEADLINE, await_condition(self.api::<K>(), name, deleted)).await.expect("it goes").unwrap();
    }

    /// A queue whose workers no node takes: the tests set the status of their pods.
    pub(crate) async fn queue(&self, name: &str, spec: &Value) {
        let mut object = json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": name},
            "spec": {
                "queue": {"claimName": "images", "subPath": "queue"},
                "output": {"claimName": "images", "subPath": "output"},
                // What lies there before its watcher has no writer that it could see.
                "quietPeriodSeconds": 0,
                "worker": {"nodeSelector": {"no": "where"}},
                "watcher": {"nodeSelector": {"no": "where"}},
            },
        });
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.apply(&object).await;
    }

    /// A conversion as a watcher makes it.
    pub(crate) async fn conversion(&self, name: &str, queue: &str) {
        self.apply(&json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
            "spec": {"queueRef": {"name": queue}, "source": {"path": "web01.ova", "sizeBytes": 7}},
        }))
        .await;
    }

    /// A conversion of this path, as a person requests it.
    pub(crate) async fn request(&self, name: &str, queue: &str, path: &str) {
        self.apply(&json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
            "spec": {"queueRef": {"name": queue}, "source": {"path": path}},
        }))
        .await;
    }

    async fn apply(&self, object: &Value) {
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let kind = &object.types.as_ref().unwrap().kind;
        let gvk = kube::api::GroupVersionKind::gvk("hyper2kvm.io", "v1alpha1", kind);
        let resource = kube::api::ApiResource::from_gvk(&gvk);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace.name, &resource);
        api.create(&kube::api::PostParams::default(), &object).await.unwrap();
    }

    pub(crate) async fn merge<K>(&self, name: &str, change: &Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Acts as the watcher: the work directory of this attempt exists.
    pub(crate) async fn staged(&self, name: &str, attempt: u32) {
        let patch = json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
            "status": {"staged": attempt},
        });
        let params = PatchParams::apply("hyper2kvm-watcher").force();
        self.api::<ConversionJob>().patch_status(name, &params, &Patch::Apply(patch)).await.unwrap();
    }

    /// Name of the pod that the Job controller made for a Job.
    pub(crate) async fn pod_of(&self, job: &str) -> String {
        let params = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
        timeout(DEADLINE, async {
            loop {
                if let Some(pod) = self.api::<Pod>().list(&params).await.unwrap().items.pop() {
                    return pod.name_any();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("the Job controller makes a pod")
    }

    /// Waits for an event about an object with this reason and these words; when it was published first, in whole
    /// seconds.
    pub(crate) async fn first_event(&self, object: &str, reason: &str, words: &str) -> Timestamp {
        let params = ListParams::default().fields(&format!("involvedObject.name={object},reason={reason}"));
        timeout(DEADLINE, async {
            loop {
                let events = self.api::<Event>().list(&params).await.unwrap().items;
                let told = events.into_iter().find(|event| event.message.as_ref().is_some_and(|m| m.contains(words)));
                if let Some(first) = told.and_then(|event| event.first_timestamp) {
                    return first.0;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("it is told")
    }

    /// Acts as the kubelet: the container of this Job's pod runs. Returns the pod's name.
    pub(crate) async fn run_pod(&self, job: &str) -> String {
        let pod = self.pod_of(job).await;
        let status = json!({"status": {"phase": "Running", "containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-17T09:00:01Z"}},
        }]}});
        self.api::<Pod>().patch_status(&pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        pod
    }

    /// Acts as the kubelet: the pod of this Job ended. Returns the pod's name.
    pub(crate) async fn end_pod(&self, job: &str, code: i32, message: &str) -> String {
        let pod = self.pod_of(job).await;
        let status = json!({"status": {"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {
                "exitCode": code, "message": message, "startedAt": "2026-01-17T09:00:01Z", "finishedAt": "2026-01-17T09:00:02Z",
            }},
        }]}});
        self.api::<Pod>().patch_status(&pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        pod
    }

    /// Runs the queue's watcher on directories below `root`, on a thread of its own, until the test ends.
    pub(crate) async fn watch(&self, queue: &str, root: &Path) {
        let object = self.get::<HyperConversion>(queue).await;
        for directory in ["queue", "output", "run", "secrets"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        let identity = Identity {
            namespace: self.namespace.name.clone(),
            queue: queue.to_owned(),
            queue_uid: object.uid().unwrap(),
            pod: format!("{queue}-watcher-0"),
            queue_dir: root.join("queue"),
            output_dir: root.join("output"),
            run_dir: root.join("run"),
            secrets_dir: root.join("secrets"),
        };
        // A client belongs to the runtime that it was made on.
        let config = self.config.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let done = runtime.block_on(async {
                let client = Client::try_from(config).unwrap();
                Box::pin(agent::run(client, identity, QueueDefaults::default(), Traces::default())).await
            });
            drop(done);
        });
    }

    /// Waits until a file is there, and returns what is in it.
    pub(crate) async fn file(&self, path: &Path) -> Vec<u8> {
        let there = async {
            loop {
                match std::fs::read(path) {
                    Ok(bytes) => return bytes,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        timeout(DEADLINE, there).await.unwrap_or_else(|_| panic!("{} does not come", path.display()))
    }

    /// All conversions, once `wanted` is true of them.
    pub(crate) async fn conversions_once(&self, wanted: impl Fn(&[ConversionJob]) -> bool) -> Vec<ConversionJob> {
        timeout(DEADLINE, async {
            loop {
                let all = self.api::<ConversionJob>().list(&ListParams::default()).await.unwrap().items;
                if wanted(&all) {
                    return all;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("the watcher makes them")
    }

    /// The name of a queue's only conversion, once the watcher has made it.
    pub(crate) async fn first_conversion(&self) -> String {
        self.conversions_once(|all| !all.is_empty()).await[0].name_any()
    }
}
