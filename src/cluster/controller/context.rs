// SPDX-License-Identifier: Apache-2.0
//! What both reconcilers work with.

use std::fmt::Debug;
use std::time::Duration;

use futures::future::try_join_all;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::{NamespaceResourceScope, Request};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::watch;

use super::admission::{Admission, Key};
use super::backoff::Backoff;
use super::error::Error;
use super::metrics::Metrics;
use super::objects::Image;
use super::recent::Recent;
use super::writes::Writes;
use crate::cluster::api::{ConversionJob, HyperConversion};
use crate::cluster::names;
use crate::cluster::seen::{Job, PersistentVolumeClaim, Pod};

/// How often an object is reconciled without any event, in case a watch missed one.
pub(super) const RESYNC_INTERVAL: Duration = Duration::from_secs(300);

/// Clients, caches and tasks of a controller that leads.
pub(super) struct Context {
    pub client: Client,
    pub image: Image,
    /// Whether Kueue's API group is served.
    pub kueue: watch::Receiver<bool>,
    pub caches: Caches,
    pub admission: Admission,
    pub recorder: Recorder,
    pub backoff: Backoff,
    pub writes: Writes,
    /// Access modes of the claims of each queue. A claim outlives the pods that use it, so an entry has expired before
    /// another claim can take its place and a file can settle there.
    pub modes: Recent<Vec<ClaimModes>>,
    pub metrics: std::sync::Arc<Metrics>,
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
    /// The API of a namespace.
    #[must_use]
    pub(super) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Applies an object that the controller owns completely; returns what is kept of it.
    pub(super) async fn apply<K, S>(&self, object: &K) -> Result<S, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + Debug,
        S: DeserializeOwned,
    {
        let params = PatchParams::apply(names::MANAGER_CONTROLLER).force();
        let request = requests(object).patch(&object.name_any(), &params, &Patch::Apply(object));
        let request = request.map_err(kube::Error::BuildRequest).map_err(Error::api("apply an object"))?;
        self.client.request(request).await.map_err(Error::api("apply an object"))
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
        let note: String = note.chars().take(1000).collect();
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, "cannot publish an event");
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

/// API requests for objects of this one's kind and namespace.
fn requests<K>(object: &K) -> Request
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Request::new(K::url_path(&(), object.namespace().as_deref()))
}
