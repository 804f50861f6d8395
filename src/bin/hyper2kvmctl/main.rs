// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvmctl`: queries and controls a running daemon; as `kubectl-hyper2kvm`, queues in a cluster.

mod history;
#[cfg(feature = "cluster")]
mod plugin;
mod socket;
#[cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "the plugin uses all of it"))]
mod table;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use hyper2kvm::control::Command;

const EXAMPLES: &str = "\
Examples:
  hyper2kvmctl status
  hyper2kvmctl --output-dir /srv/kvm stats
  hyper2kvmctl stats --json | jq .stats.current_queue_depth
  hyper2kvmctl pause && hyper2kvmctl resume
  hyper2kvmctl history --limit 10
  hyper2kvmctl --socket /srv/kvm/.daemon/control.sock drain
  hyper2kvmctl completions bash > /etc/bash_completion.d/hyper2kvmctl

Exit codes: 0 done, 1 the daemon is not there or refused, 2 wrong usage.";

/// Ask and steer a running hyper2kvm daemon over its control socket
#[derive(Debug, Parser)]
#[command(name = "hyper2kvmctl", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Control socket [default: {output-dir}/.daemon/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Output directory of the daemon; its socket lies below [default: /var/lib/hyper2kvm/output]
    #[arg(long, global = true, value_name = "DIR")]
    output_dir: Option<PathBuf>,

    /// Print the whole answer as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Verb {
    /// Show whether the daemon runs, is paused or drains
    #[command(
        after_help = "Examples:\n  hyper2kvmctl status\n  hyper2kvmctl --output-dir /srv/kvm status --json | jq -r .waiting_for"
    )]
    Status,
    /// Show what was done so far
    #[command(after_help = "Examples:\n  hyper2kvmctl stats\n  hyper2kvmctl stats --json | jq .stats.total_failed")]
    Stats,
    /// List the conversions that have ended, newest first; also while no daemon runs
    #[command(
        after_help = "Examples:\n  hyper2kvmctl history --limit 10\n  hyper2kvmctl --output-dir /srv/kvm history --before 120"
    )]
    History(history::Window),
    /// Start nothing new; running conversions finish
    #[command(after_help = "Example:\n  hyper2kvmctl pause")]
    Pause,
    /// Undo pause
    #[command(after_help = "Example:\n  hyper2kvmctl resume")]
    Resume,
    /// Finish what is queued, take nothing new, then exit
    #[command(after_help = "Example:\n  hyper2kvmctl drain")]
    Drain,
    /// End now; every source stays where a restart finds it
    #[command(after_help = "Example:\n  hyper2kvmctl stop")]
    Stop,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  hyper2kvmctl completions bash > /etc/bash_completion.d/hyper2kvmctl")]
    Completions { shell: clap_complete::Shell },
}

fn main() -> ExitCode {
    hyper2kvm::telemetry::install_crypto();
    if is_plugin() {
        return as_plugin();
    }
    let cli = Cli::parse();
    let command = match cli.verb {
        Verb::Status => Command::Status,
        Verb::Stats => Command::Stats,
        Verb::Pause => Command::Pause,
        Verb::Resume => Command::Resume,
        Verb::Drain => Command::Drain,
        Verb::Stop => Command::Stop,
        Verb::History(window) => {
            if cli.socket.is_some() {
                eprintln!(
                    "Error: history is read from the output directory, not from a socket; name it by --output-dir DIR"
                );
                return ExitCode::from(2);
            }
            let output_dir = cli.output_dir.unwrap_or_else(|| socket::OUTPUT_DIR.into());
            return history::run(&output_dir, window, cli.json);
        }
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hyper2kvmctl", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    socket::run(cli.socket, cli.output_dir, command, cli.json)
}

/// Whether this was started as kubectl's plugin, by kubectl or by that name.
fn is_plugin() -> bool {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "kubectl-hyper2kvm")
}

#[cfg(feature = "cluster")]
fn as_plugin() -> ExitCode {
    plugin::main()
}

#[cfg(not(feature = "cluster"))]
fn as_plugin() -> ExitCode {
    eprintln!("Error: this hyper2kvmctl was built without the feature `cluster`, which the kubectl plugin needs");
    ExitCode::from(2)
}
