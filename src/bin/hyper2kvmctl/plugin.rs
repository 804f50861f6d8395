// SPDX-License-Identifier: Apache-2.0
//! `kubectl hyper2kvm`: the same commands for a queue in a cluster, through the API server.

mod access;
mod claims;
mod conversion;
mod exec;
mod folder;
mod machine;
mod queue;
mod transfer;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::conversion::{chain, printable_json, printable_lines};
use serde::Serialize;

use access::Access;

use crate::history::Window;

/// Name under which kubectl finds a plugin.
pub(crate) const NAME: &str = "kubectl-hyper2kvm";

const EXAMPLES: &str = "\
Examples:
  kubectl hyper2kvm status                                every queue of the namespace
  kubectl hyper2kvm put web01.ova vmware-exit             bring an image onto a queue
  kubectl hyper2kvm put ./web01 vmware-exit               bring a machine's folder, OVF and disks
  kubectl hyper2kvm top vmware-exit                       watch its conversions
  kubectl hyper2kvm history vmware-exit                   list those that have ended
  kubectl hyper2kvm get web01-3fa9c1d2 ./disks            take the disks away
  kubectl hyper2kvm retry web01-3fa9c1d2                  convert a failed one again
  kubectl hyper2kvm vm web01-3fa9c1d2 > web01.yaml        its VirtualMachine, where its disks are on claims
  kubectl hyper2kvm -n migration pause vmware-exit
  kubectl hyper2kvm stats vmware-exit -o json | jq .totals

put and get go on where an interrupted transfer ended when they are run again.

Exit codes: 0 done, 1 it could not be done, 2 wrong usage.";

/// Ask and steer queues of disk images in a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(name = "kubectl-hyper2kvm", bin_name = "kubectl hyper2kvm", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Namespace of the queue [default: the context's]
    #[arg(short, long, global = true)]
    namespace: Option<String>,

    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true)]
    context: Option<String>,

    /// Print the objects instead of a text
    #[arg(short, long, global = true, value_enum)]
    output: Option<Format>,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show whether queues work, and what is to be done where they don't
    #[command(
        after_help = "Examples:\n  kubectl hyper2kvm status\n  kubectl hyper2kvm -n migration status vmware-exit"
    )]
    Status {
        /// Name of a HyperConversion; left out, all of the namespace
        queue: Option<String>,
    },
    /// Show what a queue has done so far
    #[command(
        after_help = "Examples:\n  kubectl hyper2kvm stats vmware-exit\n  kubectl hyper2kvm stats vmware-exit -o json | jq .totals"
    )]
    Stats { queue: String },
    /// Start nothing new; running conversions finish
    #[command(after_help = "Example:\n  kubectl hyper2kvm pause vmware-exit")]
    Pause { queue: String },
    /// Undo pause, drain and stop
    #[command(after_help = "Example:\n  kubectl hyper2kvm resume vmware-exit")]
    Resume { queue: String },
    /// Finish what is queued, take nothing new
    #[command(
        after_help = "Example:\n  kubectl hyper2kvm drain vmware-exit && kubectl wait --for=condition=Drained --timeout=-1s hconv/vmware-exit"
    )]
    Drain { queue: String },
    /// End running conversions; every source stays
    #[command(after_help = "Example:\n  kubectl hyper2kvm stop vmware-exit")]
    Stop { queue: String },
    /// Show the conversions of a queue that are not finished
    #[command(
        after_help = "Examples:\n  kubectl hyper2kvm top vmware-exit\n  kubectl hyper2kvm top vmware-exit --once"
    )]
    Top {
        queue: String,
        /// Show them once, even on a terminal
        #[arg(long)]
        once: bool,
    },
    /// List the conversions of a queue that have ended, newest first, from its ledger
    #[command(
        after_help = "Examples:\n  kubectl hyper2kvm history vmware-exit\n  kubectl hyper2kvm history vmware-exit --limit 10"
    )]
    History {
        queue: String,
        #[command(flatten)]
        window: Window,
    },
    /// Convert the source of a finished conversion again
    #[command(after_help = "Example:\n  kubectl hyper2kvm retry web01-3fa9c1d2")]
    Retry {
        /// Name of a ConversionJob
        conversion: String,
    },
    /// Upload a file, or the folder of one machine, into a queue
    #[command(
        after_help = "Examples:\n  kubectl hyper2kvm put web01.ova vmware-exit\n  kubectl hyper2kvm put ./web01 vmware-exit\n  kubectl hyper2kvm put export.ova vmware-exit --name web01.ova"
    )]
    Put {
        file: PathBuf,
        queue: String,
        /// Name of the file or folder in the queue [default: its own]
        #[arg(long)]
        name: Option<String>,
    },
    /// Download the disks that a conversion made; of disks on claims, say how a pod of yours copies them
    #[command(after_help = "Example:\n  kubectl hyper2kvm get web01-3fa9c1d2 ./disks")]
    Get {
        /// Name of a ConversionJob
        conversion: String,
        /// Directory that takes them
        directory: PathBuf,
    },
    /// Print the VirtualMachine of a conversion whose disks are on claims
    #[command(
        after_help = "Examples:\n  kubectl hyper2kvm vm web01-3fa9c1d2 > web01.yaml\n  kubectl hyper2kvm vm web01-3fa9c1d2 | kubectl apply -f -"
    )]
    Vm {
        /// Name of a ConversionJob
        conversion: String,
    },
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
}

/// Why a command failed, with the next step.
type Refusal = Box<dyn Error>;

/// How answers are printed.
#[derive(Clone, Copy, Debug)]
struct Printer {
    is_json: bool,
}

impl Printer {
    /// Prints `object`, or the text with the same content.
    fn print(self, object: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Refusal> {
        let json = |text: String| printable_json(&text).into_owned() + "\n";
        let text = if self.is_json { json(serde_json::to_string_pretty(object)?) } else { printable_lines(&text()) };
        // The reader may be gone already (`| head -1`): that is no error.
        drop(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()));
        Ok(())
    }
}

/// Runs the command of the arguments; returns the exit code.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Verb::Completions { shell } = cli.verb {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut io::stdout());
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Refusal::from).and_then(|runtime| runtime.block_on(run(cli)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", printable_lines(&chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Refusal> {
    let access = Access::open(cli.context, cli.namespace).await?;
    let printer = Printer { is_json: cli.output == Some(Format::Json) };
    match cli.verb {
        Verb::Status { queue } => queue::status(&access, queue.as_deref(), printer).await,
        Verb::Stats { queue } => queue::stats(&access, &queue, printer).await,
        Verb::Pause { queue } => queue::ask_for(&access, &queue, RunState::Paused, printer).await,
        Verb::Resume { queue } => queue::ask_for(&access, &queue, RunState::Running, printer).await,
        Verb::Drain { queue } => queue::ask_for(&access, &queue, RunState::Draining, printer).await,
        Verb::Stop { queue } => queue::ask_for(&access, &queue, RunState::Stopped, printer).await,
        Verb::Top { queue, once } => conversion::top(&access, &queue, once, printer).await,
        Verb::History { queue, window } => exec::history(&access, &queue, window, printer).await,
        Verb::Retry { conversion } => conversion::retry(&access, &conversion, printer).await,
        Verb::Put { file, queue, name } => exec::put(&access, &file, &queue, name.as_deref(), printer).await,
        Verb::Get { conversion, directory } => exec::get(&access, &conversion, &directory, printer).await,
        Verb::Vm { conversion } => machine::print(&access, &conversion, printer).await,
        Verb::Completions { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_of_every_command_has_an_example_that_is_one_of_its_calls() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let calls: Vec<_> = help.lines().filter_map(|line| line.strip_prefix("  kubectl ")).collect();
            assert!(!calls.is_empty(), "{name}");
            for call in calls {
                let call = call.split(" | ").next().and_then(|call| call.split(" && ").next()).unwrap();
                let words = call.split(" > ").next().unwrap().split(' ');
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{call}: {}", parsed.unwrap_err());
                assert!(call.contains(&format!(" {name}")), "{call}");
            }
        }
    }
}
