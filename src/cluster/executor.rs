//! Attempts as batch Jobs: each conversion is a `ConversionJob`, whose status is the truth that both sides read.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::cluster::api::{ConversionJob, HyperConversion};
use crate::cluster::cache::{self, Change, version};
use crate::cluster::names;
use crate::cluster::seen::Pod;
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Observation, RetryPolicy, advance};
use crate::conversion::status::End;
use crate::conversion::{Attempt, ConversionId, Failure, Metadata};
use crate::executor::progress::LOOK;
use crate::executor::{Error, Executor, Request, Submission, Update};
use crate::files::Layout;
use crate::ledger::ConversionRow;

mod history;
mod objects;
mod progress;
mod requests;
mod running;

use objects::{Said, completed, duration, object, original, outputs, published};
use progress::Look;
use running::made;

/// The executor of one queue.
pub struct ClusterExecutor {
    client: Client,
    queue: Arc<HyperConversion>,
    /// Where we see the output's directory: paths in statuses are relative to it.
    conversions: Store<ConversionJob>,
    pods: Store<Pod>,
    changes: mpsc::UnboundedReceiver<Heard>,
    known: HashMap<ConversionId, Known>,
    outbox: VecDeque<ConversionId>,
    /// Objects that no claim stands for, and that wait for one.
    asked: BTreeMap<ConversionId, Arc<ConversionJob>>,
    /// UIDs of objects of which nothing is left to do: the cache may show them as they were before.
    done: HashSet<String>,
    layout: Layout,
    progress: progress::Watch,
    tick: Interval,
    next_prune: Instant,
    /// A look at the running attempts that is under way.
    look: Option<JoinHandle<Vec<Look>>>,
    /// Writes of progress that are under way.
    writes: JoinSet<Written>,
}

/// How a write of a conversion's progress ended.
type Written = (ConversionId, Result<ConversionJob, kube::Error>);

/// What [`ClusterExecutor::next`] was woken by.
enum Wake {
    Heard(Option<Heard>),
    Tick,
    Looked(Vec<Look>),
    Written(Box<Written>),
}

/// What a watch told.
#[derive(Debug)]
enum Heard {
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
struct Known {
    uid: Option<String>,
    /// The newest version seen: the cache lags behind our own writes.
    newest: Option<Arc<ConversionJob>>,
    is_gone: bool,
}

impl ClusterExecutor {
    /// Fills its caches and knows no conversion yet.
    ///
    /// # Errors
    /// When a watch ends before its first list, which it does not do by itself.
    pub async fn start(client: Client, queue: Arc<HyperConversion>, layout: Layout) -> Result<Self, WatchEnded> {
        let namespace = queue.namespace().unwrap_or_default();
        let name = queue.name_any();
        let (tell, changes) = mpsc::unbounded_channel();
        let told = tell.clone();
        let of_queue = watcher::Config::default().fields(&format!("spec.queueRef.name={name}"));
        let namespaces = std::slice::from_ref(&namespace);
        let (conversions, conversions_listed) = cache::watch(
            &client,
            namespaces,
            &of_queue,
            |_| {},
            move |change| {
                let heard = match change {
                    Change::Seen(object) => Heard::Changed(ResourceExt::name_any(object)),
                    Change::Gone(object) => Heard::Gone(ResourceExt::name_any(object), ResourceExt::uid(object)),
                };
                let _ = told.send(heard);
            },
        );
        // Every queue's: an earlier one of these directories may have had another name.
        let workers = watcher::Config::default().labels(&format!(
            "{}={},{}={}",
            names::LABEL_MANAGED_BY,
            names::MANAGED_BY,
            names::LABEL_COMPONENT,
            names::COMPONENT_WORKER
        ));
        let (pods, pods_listed) = cache::watch(&client, namespaces, &workers, slim_pod, move |change| {
            let (Change::Seen(pod) | Change::Gone(pod)) = change;
            let pod: &Pod = pod;
            if let Some(conversion) = pod.labels().get(names::LABEL_CONVERSION) {
                let _ = tell.send(Heard::Changed(conversion.clone()));
            }
        });
        let filled = tokio::join!(conversions_listed, pods_listed);
        if filled.0.is_err() || filled.1.is_err() {
            return Err(WatchEnded);
        }
        let mut tick = interval(LOOK);
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
            layout,
            progress: progress::Watch::default(),
            tick,
            next_prune: Instant::now() + history::INTERVAL,
            look: None,
            writes: JoinSet::new(),
        })
    }

    fn queue_uid(&self) -> &str {
        self.queue.metadata.uid.as_deref().unwrap_or_default()
    }

    fn api(&self) -> Api<ConversionJob> {
        Api::namespaced(self.client.clone(), &self.queue.namespace().unwrap_or_default())
    }

    fn show(&mut self, id: &ConversionId) {
        if !self.outbox.contains(id) {
            self.outbox.push_back(id.clone());
        }
    }

    /// The newest version of a conversion's object, from the cache or from our own last write.
    fn refresh(&mut self, id: &ConversionId) -> Option<Arc<ConversionJob>> {
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

    fn keep(&mut self, id: &ConversionId, written: ConversionJob) {
        if let Some(known) = self.known.get_mut(id) {
            known.uid = written.uid();
            known.newest = Some(Arc::new(written));
        }
        self.show(id);
    }

    fn update(&mut self, id: &ConversionId) -> Option<Update> {
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
            may_run: is_open || self.has_pods(id),
        })
    }

    fn has_pods(&self, id: &ConversionId) -> bool {
        self.pods.state().iter().any(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.labels().get(names::LABEL_CONVERSION).is_some_and(|name| name == id.as_str())
                && !matches!(phase, Some("Succeeded" | "Failed"))
        })
    }

    async fn find(&self, id: &ConversionId) -> Result<Option<ConversionJob>, kube::Error> {
        self.api().get_opt(id.as_str()).await
    }

    /// Makes a conversion's object, or finds the one that is there: made by hand, or by us, who heard no answer.
    async fn create(&self, submission: &Submission) -> Result<Option<ConversionJob>, kube::Error> {
        let object = object(&self.queue, submission);
        let params = PostParams { field_manager: Some(names::MANAGER_WATCHER.to_owned()), ..PostParams::default() };
        match self.api().create(&params, &object).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => self.find(&submission.claim.id).await,
            created => created.map(Some),
        }
    }

    /// Applies all that the watcher has to say of a conversion, on the version that it is said of.
    async fn say(&mut self, doing: &'static str, id: &ConversionId, said: Said<'_>) -> Result<(), Error> {
        let Some(object) = self.refresh(id) else { return Ok(()) };
        let patch = said.patch(&object);
        let params = PatchParams::apply(names::MANAGER_WATCHER).force();
        match self.api().patch_status(id.as_str(), &params, &Patch::Apply(patch)).await {
            Ok(written) => {
                self.keep(id, written);
                Ok(())
            }
            // Deleted: its end is told by the cache.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::new(doing, id, error)),
        }
    }
}

impl Executor for ClusterExecutor {
    async fn submit(&mut self, submission: Submission) -> Result<(), Error> {
        const DOING: &str = "submit";
        let id = submission.claim.id.clone();
        self.asked.remove(&id);
        self.known.entry(id.clone()).or_insert(Known { uid: submission.uid.clone(), newest: None, is_gone: false });
        if self.refresh(&id).is_none() {
            // It was there before: if it is no more, somebody deleted it, or the queue that it was of.
            let was_there = submission.uid.is_some() || submission.claim.queue_uid != self.queue_uid();
            let found = if was_there { self.find(&id).await } else { self.create(&submission).await };
            let object = found.map_err(|error| Error::new(DOING, &id, error))?;
            if let Some(object) = object {
                self.keep(&id, object);
            } else if let Some(known) = self.known.get_mut(&id) {
                known.is_gone = true;
            }
        }
        let state = self.update(&id).and_then(|update| update.status);
        if submission.duplicate_of.is_some()
            && let Some(state) = state.filter(|state| !state.is_terminal())
        {
            let (state, _) = advance(state, Observation::Duplicate, &RetryPolicy::default(), Timestamp::now());
            let said = Said { staged: state.staged, end: Some(&state), ..Said::default() };
            self.say(DOING, &id, said).await?;
        }
        self.show(&id);
        Ok(())
    }

    async fn staged(&mut self, id: &ConversionId, attempt: Attempt) -> Result<(), Error> {
        let under_way = ("Succeeded", "Unknown", "InProgress".to_owned(), format!("attempt {attempt} may start"));
        let said = Said { staged: attempt.0, conditions: vec![under_way], ..Said::default() };
        self.say("stage", id, said).await
    }

    /// The specification tells the controller itself.
    async fn set_run_state(&mut self, _: RunState) -> Result<(), Error> {
        Ok(())
    }

    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let Some(state) = self.update(id).and_then(|update| update.status).filter(|state| !state.is_terminal()) else {
            self.show(id);
            return Ok(());
        };
        let (reason, message) = (failure.reason.to_string(), failure.advice());
        let (state, _) = advance(state, Observation::Cancelled(failure), &RetryPolicy::default(), Timestamp::now());
        let said = Said {
            staged: state.staged,
            conditions: vec![("Succeeded", "False", reason, message)],
            end: Some(&state),
            ..Said::default()
        };
        self.say("cancel", id, said).await
    }

    async fn refuse(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let staged = self.update(id).and_then(|update| update.status).map_or(0, |state| state.staged);
        let refused = ("Published", "False", failure.reason.to_string(), failure.message);
        let under_way = ("Succeeded", "Unknown", "InProgress".to_owned(), "nothing could be published".to_owned());
        self.say("refuse", id, Said { staged, conditions: vec![refused, under_way], ..Said::default() }).await
    }

    async fn report(&mut self, row: &ConversionRow, metadata: Option<&Metadata>) -> Result<(), Error> {
        let state = &row.status;
        let mut conditions = Vec::new();
        let (status, reason, message) = match (state.end, &state.failure) {
            (Some(End::Succeeded), _) => ("True", "Succeeded".to_owned(), "converted and published".to_owned()),
            (Some(End::Duplicate), _) => ("True", "Duplicate".to_owned(), row.duplicate_of.clone().unwrap_or_default()),
            (_, Some(failure)) => ("False", failure.reason.to_string(), failure.advice()),
            (_, None) => ("False", "Cancelled".to_owned(), String::new()),
        };
        if state.end == Some(End::Succeeded) {
            let directory = published(row, self.layout.output()).unwrap_or_default();
            conditions.push(("Published", "True", "Published".to_owned(), directory));
        }
        conditions.push(("Succeeded", status, reason, message));
        let fields = BTreeMap::from([
            ("outputs", outputs(published(row, self.layout.output()), metadata)),
            ("progress", completed(metadata)),
            ("sourceLocation", json!(row.source_location)),
            ("duplicateOf", json!(row.duplicate_of.as_deref().map(original))),
            ("duration", json!(duration(state))),
        ]);
        let said = Said { staged: state.staged, conditions, end: Some(state), fields };
        self.say("report", &row.id, said).await
    }

    async fn forget(&mut self, id: &ConversionId) -> Result<(), Error> {
        if let Some(known) = self.known.remove(id)
            && !known.is_gone
        {
            self.done.extend(known.uid.or_else(|| known.newest.and_then(|object| object.uid())));
        }
        self.asked.remove(id);
        self.outbox.retain(|other| other != id);
        Ok(())
    }

    fn requests(&self) -> Vec<Request> {
        self.all_requests()
    }

    async fn decline(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        self.decline_request(id, failure).await
    }

    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.take_next() {
                return update;
            }
            match self.wake().await {
                Wake::Heard(Some(heard)) => self.hear(&heard),
                // The watches live as long as we do; without them nothing more becomes known.
                Wake::Heard(None) => std::future::pending().await,
                Wake::Tick => {
                    self.prune();
                    // The one before may still wait for its file system.
                    if self.look.is_none() {
                        self.look();
                    }
                }
                Wake::Looked(looks) => self.looked(looks),
                Wake::Written(written) => self.written(*written),
            }
            self.say_stalled().await;
        }
    }

    fn take_next(&mut self) -> Option<Update> {
        // All that was heard first: of several changes of one conversion, the newest is shown.
        while let Ok(heard) = self.changes.try_recv() {
            self.hear(&heard);
        }
        while let Some(id) = self.outbox.pop_front() {
            if let Some(update) = self.update(&id).or_else(|| self.told_of_request(&id)) {
                return Some(update);
            }
        }
        None
    }
}

impl ClusterExecutor {
    /// Waits for something to happen. Dropping the future loses nothing.
    async fn wake(&mut self) -> Wake {
        tokio::select! {
            heard = self.changes.recv() => Wake::Heard(heard),
            _ = self.tick.tick() => Wake::Tick,
            looks = made(&mut self.look) => Wake::Looked(looks),
            Some(Ok(written)) = self.writes.join_next() => Wake::Written(Box::new(written)),
        }
    }

    fn hear(&mut self, heard: &Heard) {
        let (Heard::Changed(name) | Heard::Gone(name, _)) = heard;
        let Ok(id) = name.parse::<ConversionId>() else { return };
        if let Heard::Gone(_, Some(uid)) = heard {
            self.done.remove(uid);
        }
        let Some(known) = self.known.get_mut(&id) else { return self.hear_of_request(&id) };
        if let Heard::Gone(_, uid) = heard
            && known.uid == *uid
        {
            known.is_gone = true;
        }
        self.show(&id);
    }
}

fn slim_pod(pod: &mut Pod) {
    pod.spec = None;
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.conditions = None;
    }
}
