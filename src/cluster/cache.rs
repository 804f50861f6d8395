//! A slim copy of watched objects, and a word on each change.

use std::fmt::Debug;

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Objects in one page of a list: what a list holds in memory at a time.
const PAGE: u32 = 200;

/// A change of a watched object.
#[derive(Debug)]
pub enum Change<'a, K> {
    Seen(&'a K),
    Gone(&'a K),
}

/// Watches `api` into a cache. Each change is told after the cache has it; what a new list no longer holds is told as
/// gone.
pub fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    slim: impl Fn(&mut K) + Send + 'static,
    mut tell: impl FnMut(Change<K>) + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = store();
    let cache = reader.clone();
    let events = watch_objects(api, config.page_size(PAGE)).modify(move |object: &mut K| {
        object.managed_fields_mut().clear();
        object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
        slim(object);
    });
    tokio::spawn(async move {
        let mut events = Box::pin(events.default_backoff().reflect(writer));
        // What was there before a new list: what the list doesn't hold any more is gone.
        let mut before = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => before = cache.state(),
                // The cache takes the list as a whole, at its end.
                Ok(Event::InitApply(_)) => {}
                Ok(Event::InitDone) => {
                    for object in std::mem::take(&mut before) {
                        if cache.get(&ObjectRef::from_obj(object.as_ref())).is_none() {
                            tell(Change::Gone(object.as_ref()));
                        }
                    }
                    cache.state().iter().for_each(|object| tell(Change::Seen(object.as_ref())));
                }
                Ok(Event::Apply(object)) => tell(Change::Seen(&object)),
                Ok(Event::Delete(object)) => tell(Change::Gone(&object)),
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch failed; it is tried again"),
            }
        }
    });
    reader
}
