// SPDX-License-Identifier: Apache-2.0
//! A slim copy of watched objects, and a callback on each change.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt;
use futures::stream::select_all;
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::client::told_by_watch;

/// Longest pause before a failed watch is tried again. Once the API server is back, changes go unseen for as long.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

fn backoff() -> ExponentialBackoff {
    let pauses = ExponentialBuilder::default().with_min_delay(Duration::from_millis(800));
    pauses.with_max_delay(LONGEST_BACKOFF).with_factor(2.0).with_jitter().without_max_times().into()
}

/// Objects in one page of a list: as many as it holds in memory at a time.
const PAGE: u32 = 200;
/// Length of one watch call, in seconds. A connection that died silently is noticed half a minute after that; with
/// the usual five minutes, changes would go unseen for as long.
const WATCH_SECONDS: u32 = 60;

/// A change of a watched object.
#[derive(Debug)]
pub(crate) enum Change<'a, K> {
    Seen(&'a K),
    Gone(&'a K),
}

/// A namespace; `None` is all of them.
pub(crate) type Scope = Option<String>;

/// The scopes of which not everything that was there at the start is in the cache yet.
pub(crate) type Unlisted = watch::Receiver<HashSet<Scope>>;

/// The scopes that are watched where these namespaces are asked for.
pub(crate) fn scopes(namespaces: &[String]) -> Vec<Scope> {
    if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() }
}

/// Watches the objects of `namespaces` (of all, if there are none) into one cache. The callback runs after the cache
/// has changed. Objects that a new list no longer holds are reported as gone.
pub(crate) fn watch<K>(
    client: &Client,
    namespaces: &[String],
    config: &watcher::Config,
    slim: impl Fn(&mut K) + Clone + Send + 'static,
    mut on_change: impl FnMut(Change<K>) + Send + 'static,
) -> (Store<K>, Unlisted)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let scopes = scopes(namespaces);
    let mut events = select_all(scopes.iter().cloned().map(|scope| {
        let api = match &scope {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let slim = slim.clone();
        let events =
            watch_objects(api, config.clone().page_size(PAGE).timeout(WATCH_SECONDS)).modify(move |object: &mut K| {
                object.managed_fields_mut().clear();
                object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
                slim(object);
            });
        events.backoff(backoff()).map(move |event| (scope.clone(), event)).boxed()
    }));
    let (reader, mut writer) = store();
    // Marks the store as ready at once: callers wait for the lists of all scopes instead.
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    let unlisted: HashSet<Scope> = scopes.into_iter().collect();
    let (shown, unlisted_now) = watch::channel(unlisted.clone());
    let mut cache = Cache { reader: reader.clone(), writer, unlisted, left: HashMap::new() };
    tokio::spawn(async move {
        while let Some((scope, event)) = events.next().await {
            match event {
                Ok(event) => cache.apply(scope, event, &mut on_change),
                Err(error) => {
                    let error = told_by_watch(&error);
                    tracing::warn!(kind = %K::kind(&()), error, "watch failed; it is tried again");
                }
            }
            shown.send_if_modified(|shown| {
                let is_new = shown.len() != cache.unlisted.len();
                if is_new {
                    shown.clone_from(&cache.unlisted);
                }
                is_new
            });
        }
    });
    (reader, unlisted_now)
}

/// The API server's count of writes: the same for one object means the same content, higher means newer.
pub(crate) fn version(object: &impl ResourceExt) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// A store that several watches fill, one for each scope.
struct Cache<K: Resource<DynamicType = ()> + Clone + 'static> {
    reader: Store<K>,
    writer: Writer<K>,
    /// Scopes whose first list isn't complete.
    unlisted: HashSet<Scope>,
    /// By scope, what the store holds and the running list has not shown yet.
    left: HashMap<Scope, HashSet<ObjectRef<K>>>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> {
    fn apply(&mut self, scope: Scope, event: Event<K>, on_change: &mut impl FnMut(Change<K>)) {
        match event {
            Event::Init => {
                let held = self.reader.state().into_iter().map(|object| ObjectRef::from_obj(object.as_ref()));
                let ours = held.filter(|object| scope.is_none() || object.namespace == scope).collect();
                self.left.insert(scope, ours);
            }
            // The store itself would collect a list until its end, and then replace its whole content with it.
            Event::InitApply(object) => {
                if let Some(left) = self.left.get_mut(&scope) {
                    left.remove(&ObjectRef::from_obj(&object));
                }
                self.seen(object, on_change);
            }
            Event::InitDone => {
                for gone in self.left.remove(&scope).into_iter().flatten() {
                    if let Some(object) = self.reader.get(&gone) {
                        self.gone(K::clone(&object), on_change);
                    }
                }
                self.unlisted.remove(&scope);
            }
            Event::Apply(object) => self.seen(object, on_change),
            Event::Delete(object) => self.gone(object, on_change),
        }
    }

    fn seen(&mut self, object: K, on_change: &mut impl FnMut(Change<K>)) {
        let event = Event::Apply(object);
        self.writer.apply_watcher_event(&event);
        if let Event::Apply(object) = &event {
            on_change(Change::Seen(object));
        }
    }

    fn gone(&mut self, object: K, on_change: &mut impl FnMut(Change<K>)) {
        let event = Event::Delete(object);
        self.writer.apply_watcher_event(&event);
        if let Event::Delete(object) = &event {
            on_change(Change::Gone(object));
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn object(namespace: &str, name: &str) -> ConfigMap {
        let metadata =
            ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    #[test]
    fn a_new_list_of_one_namespace_takes_nothing_from_another_and_is_listed_when_all_are() {
        let (reader, writer) = store();
        let (a, b) = (Some("a".to_owned()), Some("b".to_owned()));
        let unlisted = [a.clone(), b.clone()].into();
        let mut cache = Cache { reader, writer, unlisted, left: HashMap::new() };
        let mut told = Vec::new();
        for (scope, event, all_listed) in [
            (&a, Event::Init, false),
            (&b, Event::Init, false),
            (&a, Event::InitApply(object("a", "stays")), false),
            (&a, Event::InitApply(object("a", "goes")), false),
            (&b, Event::InitApply(object("b", "other")), false),
            (&a, Event::InitDone, false),
            (&b, Event::InitDone, true),
            (&a, Event::Init, true),
            (&a, Event::InitApply(object("a", "stays")), true),
            (&b, Event::Apply(object("b", "comes")), true),
            (&a, Event::InitDone, true),
            (&b, Event::Delete(object("b", "other")), true),
        ] {
            cache.apply(scope.clone(), event, &mut |change| {
                let (word, object) = match change {
                    Change::Seen(object) => ("seen", object),
                    Change::Gone(object) => ("gone", object),
                };
                told.push(format!("{word} {}/{}", object.namespace().unwrap(), object.name_any()));
            });
            assert_eq!(cache.unlisted.is_empty(), all_listed);
        }
        assert_eq!(
            told,
            [
                "seen a/stays",
                "seen a/goes",
                "seen b/other",
                "seen a/stays",
                "seen b/comes",
                "gone a/goes",
                "gone b/other"
            ]
        );
        let mut held: Vec<_> = cache.reader.state().iter().map(|object| object.name_any()).collect();
        held.sort();
        assert_eq!(held, ["comes", "stays"]);
    }
}
