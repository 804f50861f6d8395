// SPDX-License-Identifier: Apache-2.0
//! The operator's processes: controller, watcher and sidecar, and the definitions of its API.

mod controller;
mod queue;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hyper2kvm::cluster::api;
use hyper2kvm::conversion::chain;
use hyper2kvm::telemetry;
use hyper2kvm::telemetry::logging::{self, LogError, LogFormat, LogOptions};

/// Converts disk images that are brought onto a volume, by Jobs in a Kubernetes cluster.
#[derive(Parser)]
#[command(name = "hyper2kvm-operator", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  hyper2kvm-operator crds | kubectl apply --server-side -f -
  hyper2kvm-operator controller --image registry.example/hyper2kvm:0.1.0
  kubectl logs appliances-watcher-0 -c watcher";

const OF_POD: &str = "The controller starts it in the queue's pod, with everything in HYPER2KVM_* variables.

Example:
  kubectl logs appliances-watcher-0 -c watcher";

#[derive(Subcommand)]
enum Command {
    /// Prints the CustomResourceDefinitions as YAML, for `kubectl apply --server-side -f -`.
    #[command(
        after_help = "Examples:\n  hyper2kvm-operator crds | kubectl apply --server-side -f -\n  hyper2kvm-operator crds --dir crds"
    )]
    Crds {
        /// Writes one file per definition into this directory instead.
        #[arg(long, conflicts_with = "reference")]
        dir: Option<PathBuf>,
        /// Prints the reference of every field, as Markdown, instead.
        #[arg(long)]
        reference: bool,
    },
    /// Makes a watcher for each HyperConversion and a Job for each attempt of a ConversionJob.
    #[command(
        after_help = "Examples:\n  hyper2kvm-operator controller --image registry.example/hyper2kvm:0.1.0\n  hyper2kvm-operator controller --image registry.example/hyper2kvm:0.1.0 --watch-namespaces team-a,team-b"
    )]
    Controller(controller::Arguments),
    /// Moves the files of one queue, in the queue's pod.
    #[command(after_help = OF_POD)]
    Watcher(queue::Arguments),
    /// Answers the control socket of one queue, beside its watcher.
    #[command(after_help = OF_POD)]
    Sidecar(queue::Arguments),
    /// Says whether the watcher of this pod works now, for the kubelet.
    #[command(after_help = "Example:\n  kubectl exec appliances-watcher-0 -c watcher -- hyper2kvm-operator probe")]
    Probe(queue::ProbeArguments),
}

fn main() -> ExitCode {
    telemetry::install_crypto();
    let done = match Arguments::parse().command {
        Command::Crds { reference: true, .. } => {
            print!("{}", api::reference());
            Ok(())
        }
        Command::Crds { dir: None, .. } => {
            print_crds();
            Ok(())
        }
        Command::Crds { dir: Some(dir), .. } => {
            write_crds(&dir).map_err(|error| format!("cannot write below {}: {error}", dir.display()).into())
        }
        Command::Controller(arguments) => log().map_err(Into::into).and_then(|()| controller::main(arguments)),
        Command::Watcher(arguments) => log().map_err(Into::into).and_then(|()| queue::watch(arguments)),
        Command::Probe(arguments) => return queue::probe(&arguments),
        Command::Sidecar(arguments) => log().map_err(Into::into).and_then(|()| queue::answer(arguments)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Text lines on a terminal, JSON lines elsewhere, for collectors.
fn log() -> Result<(), LogError> {
    let format = if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    logging::init(&LogOptions { format, ..LogOptions::default() }).map(|_| ())
}

fn write_crds(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (file, crd) in api::MANIFESTS.into_iter().zip(api::crds()) {
        std::fs::write(dir.join(file), api::to_yaml(&crd))?;
    }
    Ok(())
}

fn print_crds() {
    for crd in api::crds() {
        print!("---\n{}", api::to_yaml(&crd));
    }
}
