// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm`: converts disk images, by hand, as a worker, or as a daemon on one host.

mod appliance;
mod convert;
mod daemon;
mod inspect;
mod number;
mod refusal;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use hyper2kvm::worker::attempt::{self, AttemptSpec};
use hyper2kvm::worker::log::LogTail;

/// Convert virtual machines' disk images to KVM disks
#[derive(Debug, Parser)]
#[command(name = "hyper2kvm", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  hyper2kvm convert web01.ova --output-dir /var/lib/libvirt/images
  hyper2kvm inspect web01.ova
  hyper2kvm daemon --config /etc/hyper2kvm/daemon.yaml";

#[derive(Debug, Subcommand)]
enum Command {
    /// Convert one disk image, OVA, OVF or VMDK descriptor
    Convert(convert::Arguments),
    /// Tell what an image is and whether it would be accepted
    Inspect(inspect::Arguments),
    /// Watch a directory and convert what is dropped into it
    Daemon(daemon::Arguments),
    /// Make the small virtual machine that makes guests ready for virtio
    Appliance(appliance::Arguments),
    /// Do one attempt at one claim, as an executor starts it (everything in HYPER2KVM_* variables)
    #[command(hide = true)]
    Worker,
    /// Take a file into a directory, from standard input
    #[command(hide = true)]
    Receive(transfer::Receive),
    /// Give a folder its name whose files have all been taken
    #[command(hide = true)]
    ReceiveFolder(transfer::ReceiveFolder),
    /// Give a file of a directory, on standard output
    #[command(hide = true)]
    Send(transfer::Send),
    /// Become a program of a worker, restricted to what that needs (`HYPER2KVM_LAUNCH` says which)
    #[command(hide = true)]
    Launch,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  hyper2kvm completions bash > /etc/bash_completion.d/hyper2kvm")]
    Completions { shell: clap_complete::Shell },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Daemon(arguments) => daemon::run(&arguments),
        Command::Appliance(arguments) => appliance::run(&arguments),
        Command::Worker => worker(),
        Command::Receive(arguments) => transfer::receive(&arguments),
        Command::ReceiveFolder(arguments) => transfer::receive_folder(&arguments),
        Command::Send(arguments) => transfer::send(&arguments),
        Command::Launch => {
            eprintln!("hyper2kvm: {}", hyper2kvm::worker::qemu::launch());
            ExitCode::FAILURE
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hyper2kvm", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn worker() -> ExitCode {
    let log = LogTail::default();
    let lines = log.clone();
    tracing_subscriber::fmt().with_writer(move || lines.clone()).with_ansi(false).with_target(false).init();
    match AttemptSpec::from_environment() {
        Ok(spec) => ExitCode::from(attempt::run(&spec, &log)),
        Err(message) => {
            tracing::error!("{message}; a worker is started by a daemon or a Job, people use `hyper2kvm convert`");
            ExitCode::from(2)
        }
    }
}
