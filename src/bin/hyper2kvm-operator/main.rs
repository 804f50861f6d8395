//! The operator's processes: controller, watcher and sidecar, and the definitions of its API.

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
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crds { dir: None } => print_crds(),
        Command::Crds { dir: Some(dir) } => {
            if let Err(error) = write_crds(&dir) {
                eprintln!("Error: cannot write below {}: {error}", dir.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
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
