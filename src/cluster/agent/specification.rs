// SPDX-License-Identifier: Apache-2.0
//! The queue's specification as the API server holds it now.

use std::sync::Arc;

use kube::Client;
use kube::runtime::watcher;
use tokio::sync::watch;

use crate::cluster::api::HyperConversion;
use crate::cluster::cache::{self, Change};
use crate::cluster::defaults::QueueDefaults;
use crate::cluster::identity::Identity;

/// The specification; `None` while it is unknown, gone, terminating, or belongs to another queue.
pub(super) type Wanted = watch::Receiver<Option<Arc<HyperConversion>>>;

/// Watches the queue's object. What it leaves out it has from `defaults`.
pub(super) fn watch_queue(client: &Client, identity: &Identity, defaults: QueueDefaults) -> Wanted {
    let (sender, wanted) = watch::channel(None);
    let own = watcher::Config::default().fields(&format!("metadata.name={}", identity.queue));
    let uid = identity.queue_uid.clone();
    let namespaces = std::slice::from_ref(&identity.namespace);
    cache::watch(
        client,
        namespaces,
        &own,
        move |queue: &mut HyperConversion| defaults.apply(&mut queue.spec),
        move |change: Change<HyperConversion>| {
            let queue = match change {
                Change::Seen(queue) => Some(queue),
                Change::Gone(_) => None,
            };
            let queue = queue.filter(|queue| queue.metadata.deletion_timestamp.is_none());
            let queue = queue.filter(|queue| queue.metadata.uid.as_deref() == Some(uid.as_str()));
            sender.send_replace(queue.cloned().map(Arc::new));
        },
    );
    wanted
}

/// The specification, as soon as there is one. A watcher whose queue is gone waits here until its pod is removed.
pub(super) async fn known(wanted: &mut Wanted) -> Option<Arc<HyperConversion>> {
    wanted.wait_for(Option::is_some).await.ok().and_then(|queue| queue.clone())
}
