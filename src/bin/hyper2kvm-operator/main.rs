//! The operator's processes: controller, watcher and sidecar, and the definitions of its API.

mod controller;
mod queue;

use std::error::Error;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hyper2kvm::cluster::api;

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
}

fn main() -> ExitCode {
    install_crypto();
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
        Command::Controller(arguments) => {
            log();
            controller::main(arguments)
        }
        Command::Watcher(arguments) => {
            log();
            queue::watch(arguments)
        }
        Command::Sidecar(arguments) => {
            log();
            queue::answer(arguments)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Makes *ring* the TLS provider of this process, before anything can want one.
fn install_crypto() {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Lines for people on a terminal, JSON for collectors elsewhere; `RUST_LOG` chooses what.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_runtime=warn,kube_client=warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        lines.init();
    } else {
        lines.json().init();
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
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
