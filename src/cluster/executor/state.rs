// SPDX-License-Identifier: Apache-2.0
//! What the executor knows of each conversion, from two watches and from its own writes; and how it writes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::objects::{self, WatcherStatus, object};
use super::progress::{self, PolledProgress};
use crate::cluster::api::{ConversionJob, HyperConversion};
use crate::cluster::cache::{self, Change, version};
use crate::cluster::client::{Refused, passes};
use crate::cluster::containers::{is_worker, worker_is_over};
use crate::cluster::names;
use crate::cluster::seen::Pod;
use crate::conversion::{ConversionId, TraceId};
use crate::executor::progress::PROGRESS_POLL;
use crate::executor::{Error, Submission, Update};
use crate::files::Paths;

/// How often finished conversions are counted.
pub(super) const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// The executor of one queue.
pub(crate) struct ClusterExecutor {
    pub(super) client: Client,
    pub(super) queue: Arc<HyperConversion>,
    pub(super) conversions: Store<ConversionJob>,
    pub(super) pods: Store<Pod>,
    pub(super) changes: mpsc::UnboundedReceiver<WatchEvent>,
    pub(super) known: HashMap<ConversionId, Known>,
    pub(super) outbox: VecDeque<ConversionId>,
    /// Objects without a claim that wait for one.
    pub(super) asked: BTreeMap<ConversionId, Arc<ConversionJob>>,
    /// UIDs of objects that are dealt with: the cache may still show them as they were before.
    pub(super) done: HashSet<String>,
    /// Where this process sees the directories: paths in statuses are relative to the output's.
    pub(super) paths: Paths,
    pub(super) progress: progress::Watch,
    pub(super) tick: Interval,
    pub(super) next_prune: Instant,
    /// Copies of plans that are under way; each ends with what is wrong with its plan, if anything is.
    pub(super) plans: HashMap<ConversionId, JoinHandle<Option<String>>>,
    /// A poll of the running attempts that is under way.
    pub(super) poll: Option<JoinHandle<Vec<PolledProgress>>>,
    /// Writes of progress that are under way.
    pub(super) writes: JoinSet<Written>,
}

/// How a write of a conversion's progress ended.
pub(super) type Written = (ConversionId, Result<ConversionJob, kube::Error>);

/// What a watch reported.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// Something about this conversion or its pods.
    Changed(String),
    /// The object of this UID is gone.
    Gone(String, Option<String>),
}

/// A watch ended before its first list.
#[derive(Debug, thiserror::Error)]
#[error("a watch ended before its first list")]
pub struct WatchEnded;

/// A conversion that the engine asked about.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) uid: Option<String>,
    /// The newest version seen: the cache lags behind our own writes.
    pub(super) newest: Option<Arc<ConversionJob>>,
    pub(super) is_gone: bool,
    /// Its trace, where traces are sent.
    pub(super) trace: Option<TraceId>,
}

impl ClusterExecutor {
    /// Fills its caches; no conversion is known yet.
    ///
    /// # Errors
    /// When a watch ends before its first list, which it does not do by itself.
    pub(crate) async fn start(client: Client, queue: Arc<HyperConversion>, paths: Paths) -> Result<Self, WatchEnded> {
        let namespace = queue.namespace().unwrap_or_default();
        let name = queue.name_any();
        let stall_after = queue.spec.conversion.stall_timeout();
        let (tell, changes) = mpsc::unbounded_channel();
        let told = tell.clone();
        let of_queue = watcher::Config::default().fields(&format!("spec.queueRef.name={name}"));
        let namespaces = std::slice::from_ref(&namespace);
        let (conversions, mut conversions_listed) = cache::watch(
            &client,
            namespaces,
            &of_queue,
            |_| {},
            move |change| {
                let event = match change {
                    Change::Seen(object) => WatchEvent::Changed(ResourceExt::name_any(object)),
                    Change::Gone(object) => WatchEvent::Gone(ResourceExt::name_any(object), ResourceExt::uid(object)),
                };
                let _ = told.send(event);
            },
        );
        // Pods of every queue: an earlier queue with these directories may have had another name.
        let workers = watcher::Config::default().labels(&format!(
            "{}={},{}={}",
            names::LABEL_MANAGED_BY,
            names::MANAGED_BY,
            names::LABEL_COMPONENT,
            names::COMPONENT_WORKER
        ));
        let (pods, mut pods_listed) = cache::watch(&client, namespaces, &workers, slim_pod, move |change| {
            let (Change::Seen(pod) | Change::Gone(pod)) = change;
            let pod: &Pod = pod;
            if let Some(conversion) = pod.labels().get(names::LABEL_CONVERSION) {
                let _ = tell.send(WatchEvent::Changed(conversion.clone()));
            }
        });
        for listed in [&mut conversions_listed, &mut pods_listed] {
            listed.wait_for(HashSet::is_empty).await.map_err(|_| WatchEnded)?;
        }
        let mut tick = interval(PROGRESS_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            client,
            queue,
            conversions,
            pods,
            changes,
            known: HashMap::new(),
            outbox: VecDeque::new(),
            asked: BTreeMap::new(),
            done: HashSet::new(),
            paths,
            progress: progress::Watch::new(stall_after),
            tick,
            next_prune: Instant::now() + PRUNE_INTERVAL,
            plans: HashMap::new(),
            poll: None,
            writes: JoinSet::new(),
        })
    }

    pub(super) fn queue_uid(&self) -> &str {
        self.queue.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn api(&self) -> Api<ConversionJob> {
        Api::namespaced(self.client.clone(), &self.queue.namespace().unwrap_or_default())
    }

    pub(super) fn publish(&mut self, id: &ConversionId) {
        if !self.outbox.contains(id) {
            self.outbox.push_back(id.clone());
        }
    }

    /// The newest version of a conversion's object, from the cache or from our own last write.
    pub(super) fn refresh(&mut self, id: &ConversionId) -> Option<Arc<ConversionJob>> {
        let reference = ObjectRef::new(id.as_str()).within(&self.queue.namespace().unwrap_or_default());
        let cached = self.conversions.get(&reference);
        let known = self.known.get_mut(id)?;
        if let Some(cached) = cached
            && known.uid.as_ref().is_none_or(|uid| cached.uid().as_ref() == Some(uid))
            && version(cached.as_ref()) >= known.newest.as_deref().map_or(0, version)
        {
            known.newest = Some(cached);
        }
        known.newest.clone()
    }

    pub(super) fn keep(&mut self, id: &ConversionId, written: ConversionJob) {
        if let Some(known) = self.known.get_mut(id) {
            known.uid = written.uid();
            known.newest = Some(Arc::new(written));
        }
        self.publish(id);
    }

    pub(super) fn update(&mut self, id: &ConversionId) -> Option<Update> {
        let newest = self.refresh(id);
        let known = self.known.get(id)?;
        let status = newest.and_then(|object| object.status.clone()).map(|status| status.state);
        let status = if known.is_gone { None } else { Some(status.unwrap_or_default()) };
        let is_open = status.as_ref().is_some_and(|state| state.open_attempt().is_some());
        Some(Update {
            id: id.clone(),
            status,
            is_recorded: false,
            uid: known.uid.clone(),
            progress: self.progress.of(id).cloned().filter(|_| is_open),
            may_run: is_open || self.has_workers(id),
        })
    }

    /// Forgets a conversion about which the engine asks nothing more.
    pub(super) fn drop_known(&mut self, id: &ConversionId) {
        if let Some(known) = self.known.remove(id)
            && !known.is_gone
        {
            self.done.extend(known.uid.or_else(|| known.newest.and_then(|object| object.uid())));
        }
        self.asked.remove(id);
        self.outbox.retain(|other| other != id);
    }

    /// The outputs of the conversion that a duplicate repeats.
    pub(super) fn outputs_of(&self, duplicate_of: &str) -> serde_json::Value {
        let all = self.conversions.state();
        objects::outputs_of(duplicate_of, self.paths.output(), all.iter().map(AsRef::as_ref))
    }

    /// Whether a worker may still use the files.
    pub(super) fn has_workers(&self, id: &ConversionId) -> bool {
        self.pods.state().iter().any(|pod| {
            pod.labels().get(names::LABEL_CONVERSION).is_some_and(|name| name == id.as_str()) && !worker_is_over(pod)
        })
    }

    pub(super) async fn find(&self, id: &ConversionId) -> Result<Option<ConversionJob>, kube::Error> {
        self.api().get_opt(id.as_str()).await
    }

    /// Creates a conversion's object, or returns the existing one: made by hand, or by us in a call whose answer was
    /// lost.
    pub(super) async fn create(&self, submission: &Submission) -> Result<Option<ConversionJob>, kube::Error> {
        let object = object(&self.queue, submission);
        let params = PostParams { field_manager: Some(names::MANAGER_WATCHER.to_owned()), ..PostParams::default() };
        match self.api().create(&params, &object).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => self.find(&submission.claim.id).await,
            created => created.map(Some),
        }
    }

    /// Applies everything that the watcher reports of a conversion, on the version that the report is based on.
    pub(super) async fn apply_status(
        &mut self,
        doing: &'static str,
        id: &ConversionId,
        status: WatcherStatus<'_>,
    ) -> Result<(), Error> {
        let Some(object) = self.refresh(id) else { return Ok(()) };
        let trace = self.known.get(id).and_then(|known| known.trace);
        let patch = WatcherStatus { trace, ..status }.patch(&object);
        let params = PatchParams::apply(names::MANAGER_WATCHER).force();
        match self.api().patch_status(id.as_str(), &params, &Patch::Apply(patch)).await {
            Ok(written) => {
                self.keep(id, written);
                Ok(())
            }
            // Deleted: the cache reports its end.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(failed(doing, id, error)),
        }
    }

    /// Merges into the status of a conversion that has ended which directory replaces its output. Nothing where its object
    /// is gone.
    pub(super) async fn merge_superseded(&self, id: &ConversionId, by: &str) -> Result<(), Error> {
        let by = Path::new(by).strip_prefix(self.paths.output()).unwrap_or(Path::new(by));
        let patch = json!({"status": {"supersededBy": by}});
        let params = PatchParams { field_manager: Some(names::MANAGER_WATCHER.to_owned()), ..PatchParams::default() };
        match self.api().patch_status(id.as_str(), &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(failed("show what replaces", id, error)),
        }
    }
}

/// A call of the engine's that failed because a request did.
pub(super) fn failed(doing: &'static str, id: &ConversionId, error: kube::Error) -> Error {
    Error { passes: passes(&error), ..Error::new(doing, id, Refused(error)) }
}

/// Keeps of a pod only what shows whether its worker runs.
fn slim_pod(pod: &mut Pod) {
    pod.spec = None;
    if let Some(status) = &mut pod.status {
        status.init_container_statuses = None;
        status.conditions = None;
        if let Some(containers) = &mut status.container_statuses {
            containers.retain(is_worker);
        }
    }
}
