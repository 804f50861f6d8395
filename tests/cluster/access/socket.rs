// SPDX-License-Identifier: Apache-2.0
//! The control socket of a queue in the cluster gives the answers of one host, with a real API server.

use hyper2kvm::cluster::api::HyperConversion;
use kube::ResourceExt as _;
use serde_json::json;

use super::Site;
use crate::controller::stage::Stage;
use crate::harness::{Cluster, Need};
use crate::support::protocol;

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_s_socket_and_statistics_are_byte_for_byte_those_of_one_host() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(stage) = Stage::empty("socket", Need::ControlPlane).await else { return };
    stage.queue("q", &json!({})).await;
    let uid = stage.get::<HyperConversion>("q").await.uid().unwrap();
    let site = Site::new();
    let [_watcher, sidecar] = site.start(&cluster.kubeconfig, &stage.namespace.name, &uid);
    let (socket, file) = (site.socket(), site.socket().with_file_name("stats.json"));
    protocol::answers(&socket);
    sidecar.until("written down", || protocol::is_written(&file, ""));
    // Unlike a daemon, a queue goes on: it gets the new state, and shows it until the next change.
    for (word, answer, state) in protocol::LAST_WORDS {
        assert_eq!(protocol::ask(&socket, word.as_bytes()), protocol::done(answer));
        assert_eq!(protocol::ask(&socket, b"status"), protocol::status(state));
        sidecar.until("written down", || protocol::is_written(&file, state));
    }
    assert_eq!(protocol::ask(&socket, b"resume"), protocol::done("Daemon resumed"));
    assert_eq!(protocol::ask(&socket, b"status"), protocol::status(""));
}
