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
#[command(name = "hyper2kvm-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the CustomResourceDefinitions as YAML, for `kubectl apply --server-side -f -`.
    Crds {
        /// Writes one file per definition into this directory instead.
        #[arg(long, conflicts_with = "reference")]
        dir: Option<PathBuf>,
        /// Prints the reference of every field, as Markdown, instead.
        #[arg(long)]
        reference: bool,
    },
    /// Makes a watcher for each HyperConversion and a Job for each attempt of a ConversionJob.
    Controller(controller::Arguments),
    /// Moves the files of one queue, in the queue's pod.
    Watcher(queue::Arguments),
    /// Answers the control socket of one queue, beside its watcher.
    Sidecar(queue::Arguments),
    /// Says whether the watcher of this pod works now, for the kubelet.
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
