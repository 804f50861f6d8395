// SPDX-License-Identifier: Apache-2.0
//! What both reconcilers work with.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use kube::api::{Api, GetParams, Patch, PatchParams, PostParams};
use kube::core::{NamespaceResourceScope, PartialObjectMeta, Request};
use kube::runtime::events::{Event as Published, EventType, Recorder};
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::watch;

use super::admission::{Admission, Key};
use super::backoff::Backoff;
use super::error::Error;
use super::metrics::Metrics;
use super::objects::Images;
use super::ownership::{Ownership, ownership};
use super::recent::Recent;
use super::shared::Shared;
use super::writes::Writes;
use crate::cluster::api::{ConversionJob, HyperConversion};
use crate::cluster::cache::Scope;
use crate::cluster::client::told;
use crate::cluster::defaults::QueueDefaults;
use crate::cluster::names;
use crate::cluster::seen::{Event, Job, PersistentVolumeClaim, Pod};

/// How often an object is reconciled without any event, in case a watch missed one.
pub(super) const RESYNC_INTERVAL: Duration = Duration::from_secs(300);

/// Clients, caches and tasks of a controller that leads.
pub(super) struct Context {
    pub client: Client,
    pub images: Images,
    /// What queues get that leave it out. The cached ones have it.
    pub defaults: QueueDefaults,
    /// Whether Kueue's API group is served.
    pub kueue: watch::Receiver<bool>,
    /// Whether `KubeVirt`'s API group is served.
    pub kubevirt: watch::Receiver<bool>,
    pub caches: Caches,
    pub admission: Admission,
    pub recorder: Recorder,
    pub backoff: Backoff,
    pub writes: Writes,
    /// Access modes of the claims of each queue. A claim outlives the pods that use it, so an entry has expired before
    /// another claim can take its place and a file can settle there.
    pub modes: Recent<Vec<ClaimModes>>,
    /// Events of each namespace, for all who look why something does not start.
    pub troubles: Shared<Arc<Vec<Event>>>,
    /// UIDs of the objects that were proved to be a queue's.
    pub proved: Proved,
    /// Namespaces, or all, of which everything is listed.
    pub warm: watch::Receiver<HashSet<Scope>>,
    pub metrics: Arc<Metrics>,
}

/// Most UIDs that are remembered: six for each of three thousand queues, some hundred bytes each.
const MOST_PROVED: usize = 20_000;

/// UIDs of objects that a queue owns, by kind, namespace and name. An apply that names a UID changes no other object.
#[derive(Debug, Default)]
pub(super) struct Proved {
    uids: Mutex<HashMap<String, String>>,
}

impl Proved {
    fn get(&self, object: &str) -> Option<String> {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner).get(object).cloned()
    }

    fn set(&self, object: String, uid: Option<String>) {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of queues that are gone are never asked for again; the others are proved once more.
        if uids.len() >= MOST_PROVED {
            uids.clear();
        }
        match uid {
            Some(uid) => uids.insert(object, uid),
            None => uids.remove(&object),
        };
    }
}

/// A claim of a queue, and how it may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimModes {
    pub claim: String,
    pub modes: Vec<String>,
}

/// Everything that is watched.
#[derive(Clone, Debug)]
pub(super) struct Caches {
    pub queues: Store<HyperConversion>,
    pub conversions: Store<ConversionJob>,
    pub jobs: Store<Job>,
    pub pods: Store<Pod>,
}

impl Context {
    /// Whether the caches show everything of a namespace.
    pub(super) fn is_warm(&self, namespace: Option<&str>) -> bool {
        let warm = self.warm.borrow();
        warm.contains(&None) || warm.contains(&namespace.map(str::to_owned))
    }

    /// The API of a namespace.
    #[must_use]
    pub(super) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes sure that `object` may be applied: it is the queue's by its UID, or there is none of that name. To be called
    /// for all objects of a queue before any of them is applied.
    ///
    /// # Errors
    /// [`Error::ObjectTaken`] where somebody else's object has the name.
    pub(super) async fn prove<K>(&self, queue: &HyperConversion, mut object: K) -> Result<K, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        let known = self.proved.get(&place(&object));
        if known.is_some() {
            object.meta_mut().uid = known;
            return Ok(object);
        }
        let request = requests(&object).get_metadata(&object.name_any(), &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest).map_err(Error::api("read an object"))?;
        let found =
            match self.client.request::<PartialObjectMeta<K>>(request).await.map_err(Error::api("read an object")) {
                Err(error) if error.is_not_found() => None,
                found => Some(found?.metadata),
            };
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        match ownership(found.as_ref(), queue) {
            Ownership::Free => {}
            Ownership::Ours(uid) => object.meta_mut().uid = Some(uid),
            Ownership::Earlier => return Err(Error::OfEarlierQueue { kind, name }),
            Ownership::Foreign => return Err(Error::ObjectTaken { kind, name }),
        }
        Ok(object)
    }

    /// Applies a proved object that the controller owns completely; returns what is kept of it.
    ///
    /// With a UID the API server refuses to change another object, and fields of other writers are taken over. Without
    /// one there was no object a moment ago: should somebody else have made one since, a field of theirs is a conflict.
    pub(super) async fn apply<K, S>(&self, object: &K) -> Result<S, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + Debug,
        S: DeserializeOwned + Resource,
    {
        let params = PatchParams::apply(names::MANAGER_CONTROLLER);
        let params = if object.meta().uid.is_some() { params.force() } else { params };
        let request = requests(object).patch(&object.name_any(), &params, &Patch::Apply(object));
        let request = request.map_err(kube::Error::BuildRequest).map_err(Error::api("apply an object"))?;
        let applied: Result<S, _> = self.client.request(request).await.map_err(Error::api("apply an object"));
        self.proved.set(place(object), applied.as_ref().ok().and_then(|applied| applied.meta().uid.clone()));
        applied
    }

    /// The same where nothing of it is kept.
    pub(super) async fn apply_proved<K>(&self, object: &K) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + Debug,
    {
        self.apply::<K, PartialObjectMeta<K>>(object).await.map(drop)
    }

    /// Creates an object; returns what is kept of it.
    pub(super) async fn create<K, S>(&self, object: &K) -> Result<S, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize,
        S: DeserializeOwned,
    {
        self.post(object, false).await
    }

    /// Creates an object as a dry run.
    pub(super) async fn try_create<K>(&self, object: &K) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize,
    {
        let _: IgnoredAny = self.post(object, true).await?;
        Ok(())
    }

    async fn post<K, S>(&self, object: &K, dry_run: bool) -> Result<S, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize,
        S: DeserializeOwned,
    {
        let params = PostParams { dry_run, field_manager: Some(names::MANAGER_CONTROLLER.to_owned()) };
        let body = serde_json::to_vec(object).expect("an object for the API server serialises");
        let request = requests(object).create(&params, body);
        let request = request.map_err(kube::Error::BuildRequest).map_err(Error::api("create an object"))?;
        self.client.request(request).await.map_err(Error::api("create an object"))
    }

    /// Publishes an event about `object` that says what is wrong.
    pub(super) async fn warn<K>(&self, object: &K, action: &str, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(EventType::Warning, object, action, reason, note).await;
    }

    /// Publishes an event about `object` that says what was done.
    pub(super) async fn tell<K>(&self, object: &K, action: &str, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(EventType::Normal, object, action, reason, note).await;
    }

    async fn publish<K>(&self, type_: EventType, object: &K, action: &str, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let note: String = note.chars().take(1000).collect();
        let event = Published {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(error = told(&error), "cannot publish an event");
        }
    }

    /// Access modes of the claims of a queue, read now; claims that don't exist yet have none.
    pub(super) async fn access_modes(&self, queue: &HyperConversion) -> Result<Vec<ClaimModes>, Error> {
        let api = self.api::<PersistentVolumeClaim>(&queue.namespace().unwrap_or_default());
        let mut claims = vec![&queue.spec.queue.claim_name, &queue.spec.output.claim_name];
        claims.dedup();
        let wanted = claims.len();
        let found = try_join_all(claims.into_iter().map(|claim| api.get_opt(claim))).await;
        let found = found.map_err(Error::api("read a PersistentVolumeClaim"))?;
        let modes = |claim: PersistentVolumeClaim| {
            Some(ClaimModes { claim: claim.name_any(), modes: claim.spec?.access_modes? })
        };
        let modes: Vec<_> = found.into_iter().flatten().filter_map(modes).collect();
        if modes.len() == wanted {
            self.modes.remember(Key::of(queue).to_string(), modes.clone());
        }
        Ok(modes)
    }

    /// The same, up to a minute old: for use by many conversions.
    pub(super) async fn recent_access_modes(&self, queue: &HyperConversion) -> Result<Vec<ClaimModes>, Error> {
        match self.modes.get(&Key::of(queue).to_string()) {
            Some(modes) => Ok(modes),
            None => self.access_modes(queue).await,
        }
    }
}

/// Kind, namespace and name of an object.
fn place<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.meta().namespace.as_deref().unwrap_or_default(), object.name_any())
}

/// API requests for objects of this one's kind and namespace.
fn requests<K>(object: &K) -> Request
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Request::new(K::url_path(&(), object.namespace().as_deref()))
}
