// SPDX-License-Identifier: Apache-2.0
//! The controller's life: wait for the API, for the lead, for the caches; then reconcile.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::api::{Api, ListParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::applier;
use kube::runtime::controller::{self, Action, ReconcileRequest};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Message};
use super::backoff::Backoff;
use super::board;
use super::caches::{self, Receivers};
use super::context::{Caches, Context, Proved};
use super::error::{Error, Refusal, TIME_LIMIT};
use super::leadership::{self, Leadership};
use super::metrics::Metrics;
use super::objects::Images;
use super::recent::Recent;
use super::shared::Shared;
use super::writes::Writes;
use super::{conversions, queues};
use crate::cluster::api::{ConversionJob, HyperConversion};
use crate::cluster::cache::{self, Scope, Unlisted};
use crate::cluster::client::{client, told};
use crate::cluster::defaults::QueueDefaults;
use crate::cluster::names;
use crate::telemetry::endpoint::{self, Board, Probes};

/// How soon to look again for an API that isn't served.
const API_RETRY: Duration = Duration::from_secs(5);
/// How often the API server is asked whether Kueue and `KubeVirt` are installed.
const GROUPS_POLL: Duration = Duration::from_secs(60);
/// Longest time to report the error of a reconcile: its cause, such as a slow API server, may persist.
const REFUSE_LIMIT: Duration = Duration::from_secs(10);
/// Reconciles of one kind at a time: each spends most of its time waiting for the API server.
const CONCURRENCY: u16 = 16;

/// Settings of the controller.
#[derive(Clone, Debug)]
pub struct Options {
    pub images: Images,
    /// What queues get that leave it out.
    pub defaults: QueueDefaults,
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    pub listen: SocketAddr,
    /// Whether a page of queues and conversions is served beside the metrics.
    pub page: bool,
    /// The namespaces that are watched; all of them, if there are none.
    pub namespaces: Vec<String>,
    /// Namespace of the Lease.
    pub lease_namespace: String,
    /// Name of the Lease: replicas of one release share it.
    pub lease: String,
    /// Name of this replica.
    pub identity: String,
}

/// How far the controller is from being ready.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Readiness {
    /// What it waits for.
    Waiting(String),
    /// It works, or stands by while another replica leads.
    Ready,
}

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    #[error("the lease was lost: another replica leads, or the API server is away")]
    LeaseLost,
    #[error("a watch ended")]
    WatchEnded,
}

/// Runs until `shutdown` ends, or the lease is lost.
pub async fn run(config: Config, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::default());
    let (ready, readiness) = watch::channel(Readiness::Waiting("starting".to_owned()));
    let listener =
        endpoint::bind(options.listen).await.map_err(|source| RunError::Listen { address: options.listen, source })?;
    let filled = Arc::new(OnceLock::new());
    let shown = options.page.then(|| board::of(Arc::clone(&filled)));
    let probes = probes(readiness, Arc::clone(&metrics), shown);
    tokio::spawn(endpoint::serve(listener, probes, CancellationToken::new()));
    let client = client(config.clone()).map_err(|source| RunError::Client(Box::new(source)))?;
    let mut shutdown = std::pin::pin!(shutdown);
    let mut leadership = tokio::select! {
        () = &mut shutdown => return Ok(()),
        leadership = lead(&client, &config, &options, &ready) => leadership?,
    };
    tracing::info!(identity = options.identity, "leading");
    metrics.leads(true);
    let ended = tokio::select! {
        () = leadership.lost() => return Err(RunError::LeaseLost),
        () = shutdown => Ok(()),
        ended = work(client, &options, metrics, &ready, &filled) => ended,
    };
    // All work has ended here: another replica may begin at once.
    leadership.release().await;
    ended
}

/// Healthy as long as it answers: a restart would help neither against an unreachable API server nor against a lease
/// that another replica holds.
fn probes(readiness: watch::Receiver<Readiness>, metrics: Arc<Metrics>, shown: Option<Board>) -> Probes {
    Probes {
        healthy: Box::new(|| Ok(())),
        ready: Box::new(move || match &*readiness.borrow() {
            Readiness::Ready => Ok(()),
            Readiness::Waiting(why) => Err(why.clone()),
        }),
        metrics: Box::new(move || metrics.text()),
        shown,
    }
}

/// Waits until there is an API to work with and this replica leads.
async fn lead(
    client: &Client,
    config: &Config,
    options: &Options,
    ready: &watch::Sender<Readiness>,
) -> Result<Leadership, RunError> {
    served::<HyperConversion>(client, options, ready).await;
    served::<ConversionJob>(client, options, ready).await;
    // A replica that stands by is ready.
    ready.send_replace(Readiness::Ready);
    let leadership = leadership::acquire(config, &options.lease_namespace, &options.lease, &options.identity)
        .await
        .map_err(|source| RunError::Client(Box::new(source)))?;
    ready.send_replace(Readiness::Waiting("filling the caches".to_owned()));
    Ok(leadership)
}

/// Waits until a kind of ours is served in a namespace at least, and reports what is missing.
async fn served<K>(client: &Client, options: &Options, ready: &watch::Sender<Readiness>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut said = String::new();
    loop {
        let mut refusals = Vec::new();
        let mut is_served = false;
        for api in scoped::<K>(client, options) {
            match api.list(&ListParams::default().limit(1)).await {
                Ok(_) => is_served = true,
                Err(error) => refusals.push(missing::<K>(&error)),
            }
        }
        let why = refusals.into_iter().next().unwrap_or_default();
        if why != said {
            tracing::error!("{why}");
            said.clone_from(&why);
        }
        if is_served {
            return;
        }
        ready.send_replace(Readiness::Waiting(why));
        tokio::time::sleep(API_RETRY).await;
    }
}

fn missing<K: Resource<DynamicType = ()>>(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            let name = format!("{}.{}", K::plural(&()), K::group(&()));
            format!("the CustomResourceDefinition {name} is missing: apply the files in crds/, or install the chart")
        }
        _ => format!("the API server can't be asked for {}: {}", K::plural(&()), told(error)),
    }
}

fn scoped<K>(client: &Client, options: &Options) -> Vec<Api<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match options.namespaces.as_slice() {
        [] => vec![Api::all(client.clone())],
        namespaces => namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect(),
    }
}

async fn work(
    client: Client,
    options: &Options,
    metrics: Arc<Metrics>,
    ready: &watch::Sender<Readiness>,
    filled: &OnceLock<Caches>,
) -> Result<(), RunError> {
    let (wake_queues, queue_wakes) = mpsc::unbounded_channel();
    let (wake_conversions, conversion_wakes) = mpsc::unbounded_channel();
    let (grant, mut grants) = mpsc::unbounded_channel();
    let shown = Arc::clone(&metrics);
    let admission = Admission::start(grant, move |running, queued| shown.slots(running, queued));
    let granted = wake_conversions.clone();
    let receivers = Receivers { admission: admission.clone(), queues: wake_queues, conversions: wake_conversions };
    let (caches, unlisted) =
        caches::watch_all(&client, &options.namespaces, options.defaults.clone(), &receivers, &metrics);
    tokio::spawn(async move {
        while let Some((queue, id)) = grants.recv().await {
            let _ = granted.send(ObjectRef::new(id.as_str()).within(&queue.namespace));
        }
    });
    let (warmed, mut warm) = watch::channel(HashSet::new());
    let warming =
        warm_up(cache::scopes(&options.namespaces), unlisted, warmed, admission.clone(), Arc::clone(&metrics));
    let warming = tokio::spawn(warming);
    if warm.wait_for(|warm| !warm.is_empty()).await.is_err() {
        return Err(RunError::WatchEnded);
    }
    // A replica leads once in its life.
    drop(filled.set(caches.clone()));
    let (kueue, kubevirt) = watch_groups(client.clone()).await;
    ready.send_replace(Readiness::Ready);
    tracing::info!(queues = caches.queues.len(), conversions = caches.conversions.len(), "caches are warm");
    let reporter =
        Reporter { controller: names::MANAGER_CONTROLLER.to_owned(), instance: Some(options.identity.clone()) };
    let context = Arc::new(Context {
        client: client.clone(),
        images: options.images.clone(),
        defaults: options.defaults.clone(),
        kueue,
        kubevirt,
        caches: caches.clone(),
        admission,
        recorder: Recorder::new(client, reporter),
        backoff: Backoff::default(),
        writes: Writes::default(),
        modes: Recent::default(),
        troubles: Shared::default(),
        proved: Proved::default(),
        warm,
        metrics,
    });
    let queues = reconciling(queue_wakes, caches.queues, Arc::clone(&context), queues::reconcile, queues::refuse);
    let conversions =
        reconciling(conversion_wakes, caches.conversions, context, conversions::reconcile, conversions::refuse);
    tokio::join!(queues, conversions);
    warming.abort();
    Err(RunError::WatchEnded)
}

/// Lets work begin in each namespace as soon as all kinds are listed there: one that does not answer stops no other.
async fn warm_up(
    scopes: Vec<Scope>,
    mut unlisted: [Unlisted; 5],
    warmed: watch::Sender<HashSet<Scope>>,
    admission: Admission,
    metrics: Arc<Metrics>,
) {
    for namespace in scopes.iter().flatten() {
        metrics.served(namespace, false);
    }
    loop {
        for scope in caches::listed(&scopes, &unlisted) {
            if warmed.borrow().contains(&scope) {
                continue;
            }
            if let Some(namespace) = &scope {
                metrics.served(namespace, true);
                tracing::info!(namespace, "all is listed");
            }
            admission.send(Message::Warm(scope.clone()));
            warmed.send_modify(|warm| {
                warm.insert(scope);
            });
        }
        if warmed.borrow().len() == scopes.len() {
            // The channel lives as long as there is work.
            return warmed.closed().await;
        }
        let changes = unlisted.iter_mut().map(|kind| Box::pin(kind.changed()));
        if futures::future::select_all(changes).await.0.is_err() {
            return;
        }
    }
}

/// Reconciles objects as they are woken, with a time limit, a backoff by object, and metrics. `refuse` reports on the
/// object the error with which a reconcile ended.
async fn reconciling<K, F, G>(
    wakes: mpsc::UnboundedReceiver<ObjectRef<K>>,
    store: Store<K>,
    context: Arc<Context>,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + Sync + 'static,
    refuse: impl Fn(Arc<K>, Arc<Context>, Refusal) -> G + Clone + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
    G: Future<Output = ()> + Send + 'static,
{
    let wakes = UnboundedReceiverStream::new(wakes).map(|name| Ok::<_, Infallible>(ReconcileRequest::from(name)));
    let timed = move |object: Arc<K>, context: Arc<Context>| {
        let (reconcile, refuse) = (reconcile.clone(), refuse.clone());
        Box::pin(async move {
            if !context.is_warm(object.meta().namespace.as_deref()) {
                return Ok(Action::requeue(API_RETRY));
            }
            let started = Instant::now();
            let result = tokio::time::timeout(TIME_LIMIT, reconcile(Arc::clone(&object), Arc::clone(&context)));
            let result = result.await.unwrap_or(Err(Error::TimedOut));
            let error = result.as_ref().err().map(Error::reason);
            context.metrics.reconciled(kind::<K>(), started.elapsed(), error);
            match &result {
                Ok(_) => context.backoff.succeeded(&name_of(object.as_ref())),
                Err(error) => {
                    let refusing = refuse(object, Arc::clone(&context), error.refusal());
                    if tokio::time::timeout(REFUSE_LIMIT, refusing).await.is_err() {
                        tracing::debug!("cannot say in time what is wrong");
                    }
                }
            }
            result
        })
    };
    let after_error = |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let name = name_of(object.as_ref());
        let wait = context.backoff.failed(&name);
        tracing::warn!(object = name, error = error.chain(), wait_seconds = wait.as_secs(), "reconcile failed");
        Action::requeue(wait)
    };
    let config = controller::Config::default().concurrency(CONCURRENCY);
    drain(applier(timed, after_error, context, store, wakes, config)).await;
}

/// Only logs: each error was reported where it happened, and an object that is gone needs no report.
async fn drain<T, E: std::error::Error>(results: impl Stream<Item = Result<T, E>>) {
    let mut results = std::pin::pin!(results);
    while let Some(result) = results.next().await {
        if let Err(error) = result {
            tracing::debug!(%error, "not reconciled");
        }
    }
}

fn kind<K: Resource<DynamicType = ()>>() -> &'static str {
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "unknown",
    }
}

fn name_of<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", kind::<K>(), object.meta().namespace.as_deref().unwrap_or_default(), object.name_any())
}

/// Polls whether the API groups of Kueue and of `KubeVirt` are served. Returns after the first answer: a Job made before
/// it would bypass Kueue.
async fn watch_groups(client: Client) -> (watch::Receiver<bool>, watch::Receiver<bool>) {
    let (kueue, kueue_served) = watch::channel(false);
    let (kubevirt, mut kubevirt_served) = watch::channel(false);
    tokio::spawn(async move {
        while !kueue.is_closed() {
            let pause = match client.list_api_groups().await {
                Ok(groups) => {
                    let is_served = |name: &str| groups.groups.iter().any(|group| group.name == name);
                    kueue.send_replace(is_served("kueue.x-k8s.io"));
                    kubevirt.send_replace(is_served("kubevirt.io"));
                    GROUPS_POLL
                }
                Err(error) => {
                    tracing::debug!(error = told(&error), "cannot look which API groups are served");
                    API_RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    });
    kubevirt_served.changed().await.expect("whoever looks goes on as long as somebody listens");
    (kueue_served, kubevirt_served)
}

#[cfg(test)]
mod tests;
