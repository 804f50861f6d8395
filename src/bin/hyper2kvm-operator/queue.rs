// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm-operator watcher` and `sidecar`: the two processes of a queue's pod.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hyper2kvm::cluster::agent;
use hyper2kvm::cluster::client::{Contact, client, client_with};
use hyper2kvm::cluster::defaults::QueueDefaults;
use hyper2kvm::cluster::identity::Identity;
use hyper2kvm::cluster::{names, pulse, sidecar};
use hyper2kvm::conversion::chain;
use hyper2kvm::telemetry::traces::Traces;
use opentelemetry::KeyValue;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Arguments {
    /// Namespace of the queue.
    #[arg(long, env = "HYPER2KVM_NAMESPACE")]
    namespace: String,
    /// Name of the queue.
    #[arg(long, env = "HYPER2KVM_QUEUE")]
    queue: String,
    /// UID of the queue.
    #[arg(long, env = "HYPER2KVM_QUEUE_UID")]
    queue_uid: String,
    /// Name of this pod.
    #[arg(long, env = "HYPER2KVM_POD")]
    pod: String,
    /// Directory that is watched.
    #[arg(long, env = "HYPER2KVM_QUEUE_DIR", default_value = names::QUEUE_DIR)]
    queue_dir: PathBuf,
    /// Directory that takes the disks.
    #[arg(long, env = "HYPER2KVM_OUTPUT_DIR", default_value = names::OUTPUT_DIR)]
    output_dir: PathBuf,
    /// Volume that watcher and sidecar share.
    #[arg(long, env = "HYPER2KVM_RUN_DIR", default_value = names::RUN_DIR)]
    run_dir: PathBuf,
}

impl From<Arguments> for Identity {
    fn from(arguments: Arguments) -> Self {
        Self {
            namespace: arguments.namespace,
            queue: arguments.queue,
            queue_uid: arguments.queue_uid,
            pod: arguments.pod,
            queue_dir: arguments.queue_dir,
            output_dir: arguments.output_dir,
            run_dir: arguments.run_dir,
            secrets_dir: names::SECRETS_DIR.into(),
        }
    }
}

#[derive(Args)]
pub(crate) struct ProbeArguments {
    /// Volume that watcher and sidecar share.
    #[arg(long, env = "HYPER2KVM_RUN_DIR", default_value = names::RUN_DIR)]
    run_dir: PathBuf,
}

/// Prints as JSON why the watcher does not work now; nothing while it does.
pub(crate) fn probe(arguments: &ProbeArguments) -> ExitCode {
    match pulse::probe(&arguments.run_dir) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(silence)) => println!("{}", serde_json::to_string(&silence).expect("plain values")),
        Err(error) => println!("{}", chain(&error)),
    }
    ExitCode::FAILURE
}

/// Moves a queue's files until SIGTERM or SIGINT.
pub(crate) fn watch(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    runtime()?.block_on(async {
        let contact = Contact::default();
        let client = client_with(kube::Config::infer().await?, &contact)?;
        let defaults = std::env::var(names::VARIABLE_DEFAULTS).unwrap_or_default();
        let defaults =
            QueueDefaults::parse(&defaults).map_err(|error| format!("{}: {error}", names::VARIABLE_DEFAULTS))?;
        let traces = traces(&arguments);
        let run_dir = arguments.run_dir.clone();
        tokio::spawn(async move { pulse::leave(&run_dir, contact).await });
        let ended = stop_signal()?;
        tokio::select! {
            done = agent::run(client, arguments.into(), defaults, traces) => Ok(done?),
            // The other future is dropped wherever it is: every step is safe to repeat, and the locks end with the
            // process.
            () = ended => Ok(()),
        }
    })
}

/// Sends traces where an endpoint is named. A wrong one keeps no file from being converted.
fn traces(arguments: &Arguments) -> Traces {
    let Ok(endpoint) = std::env::var(names::VARIABLE_TRACES) else { return Traces::default() };
    let resource = vec![
        KeyValue::new("service.name", "hyper2kvm"),
        KeyValue::new("k8s.namespace.name", arguments.namespace.clone()),
        KeyValue::new("k8s.pod.name", arguments.pod.clone()),
        KeyValue::new("hyper2kvm.queue", arguments.queue.clone()),
    ];
    match Traces::start(&endpoint, resource) {
        // The task ends with the process.
        Ok((traces, _)) => traces,
        Err(error) => {
            tracing::error!("{}; no traces are sent", chain(&error));
            Traces::default()
        }
    }
}

/// Answers the control socket of a queue until SIGTERM or SIGINT.
pub(crate) fn answer(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    runtime()?.block_on(async {
        let client = client(kube::Config::infer().await?)?;
        let shutdown = CancellationToken::new();
        let ended = stop_signal()?;
        let token = shutdown.clone();
        tokio::spawn(async move {
            ended.await;
            token.cancel();
        });
        sidecar::run(client, arguments.into(), shutdown).await;
        Ok(())
    })
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
