// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm-operator controller`: makes watchers and Jobs for the objects of the API server.

use std::error::Error;
use std::net::SocketAddr;

use clap::Args;
use hyper2kvm::cluster::controller::objects::{Image, Images};
use hyper2kvm::cluster::controller::{Options, run};
use hyper2kvm::cluster::defaults::QueueDefaults;
use hyper2kvm::cluster::names;
use tokio::signal::unix::{SignalKind, signal};

/// Namespace of a replica that runs outside a pod.
const DEFAULT_NAMESPACE: &str = "default";

#[derive(Args)]
pub(crate) struct Arguments {
    /// Image of watchers and workers: this program's own.
    #[arg(long, env = "HYPER2KVM_IMAGE")]
    image: String,
    #[arg(
        long,
        help = "When the image is pulled: Always, IfNotPresent or Never",
        env = "HYPER2KVM_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    image_pull_policy: String,
    /// Image of workers that fix guests; without one, no queue can ask for that.
    #[arg(long, env = "HYPER2KVM_FIXER_IMAGE", default_value = "", hide_default_value = true)]
    fixer_image: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "HYPER2KVM_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Whether a page of queues and conversions is served at / of that address. It asks nobody who they are.
    #[arg(long, env = "HYPER2KVM_PAGE")]
    page: bool,
    /// Watches these namespaces alone, separated by commas.
    #[arg(long, env = "HYPER2KVM_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// What queues get that leave it out, as JSON: securityContext, worker, watcher, imagePullSecrets, log and retention,
    /// with the fields of a HyperConversion's spec.
    #[arg(long, env = names::VARIABLE_DEFAULTS, default_value = "", hide_default_value = true)]
    queue_defaults: String,
    /// Namespace of the Lease that decides which replica leads.
    #[arg(long, env = "HYPER2KVM_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// Name of that Lease. Replicas that work for the same queues share it.
    #[arg(long, env = "HYPER2KVM_LEASE", default_value = names::LEASE)]
    lease: String,
    /// Name of this replica.
    #[arg(long, env = "HYPER2KVM_POD")]
    identity: Option<String>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the lease is lost, or the process can't start.
pub(crate) fn main(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(control(arguments))
}

async fn control(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    if !["Always", "IfNotPresent", "Never"].contains(&arguments.image_pull_policy.as_str()) {
        return Err(format!(
            "--image-pull-policy is Always, IfNotPresent or Never, not {}",
            arguments.image_pull_policy
        )
        .into());
    }
    let defaults =
        QueueDefaults::parse(&arguments.queue_defaults).map_err(|error| format!("--queue-defaults: {error}"))?;
    let config = kube::Config::infer().await?;
    let identity = match arguments.identity {
        Some(identity) => identity,
        None => format!("{}-{}", rustix::system::uname().nodename().to_string_lossy(), std::process::id()),
    };
    let image = |name| Image { name, pull_policy: arguments.image_pull_policy.clone() };
    let options = Options {
        images: Images {
            own: image(arguments.image),
            fixer: (!arguments.fixer_image.is_empty()).then(|| image(arguments.fixer_image)),
        },
        defaults,
        listen: arguments.listen,
        page: arguments.page,
        namespaces: arguments.watch_namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect(),
        lease_namespace: arguments.namespace,
        lease: arguments.lease,
        identity,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(run(config, options, shutdown).await?)
}
