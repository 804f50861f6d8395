// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm appliance`: makes the small virtual machine that makes guests ready for virtio.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper2kvm::appliance::initrd::{self, Initrd, Parts, build};
use hyper2kvm::conversion::chain;

/// Where Linux has the programs that the appliance takes along.
const PROGRAMS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// The appliance's first process, beside this program.
const INIT: &str = "hyper2kvm-appliance";
/// The exit code of an appliance that could not be made.
const FAILED: u8 = 1;

const EXAMPLES: &str = "Example:
  hyper2kvm appliance build --kernel /boot/vmlinuz-$(uname -r) --modules /lib/modules/$(uname -r) \\
    --output /usr/lib/hyper2kvm/appliance   # for --fix-guest";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put an appliance together from a kernel of this host: DIR/vmlinuz and DIR/initrd
    Build(Build),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Build {
    /// The kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's modules, with modules.dep
    #[arg(long, value_name = "DIR")]
    modules: PathBuf,
    /// Where the two files are put
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The appliance's first process [default: hyper2kvm-appliance beside this program]
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let Command::Build(arguments) = &arguments.command;
    match put_together(arguments) {
        Ok(initrd) => {
            for tool in &initrd.missing {
                eprintln!("warning: this host has no {}: {}", tool.name, tool.without);
            }
            println!("{}", arguments.output.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// An appliance that could not be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot find this program's own directory, so name the appliance's first process by --init")]
    Init(#[source] io::Error),
    #[error(transparent)]
    Initrd(#[from] initrd::Error),
    #[error("cannot read the kernel {path}")]
    Kernel { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}

fn put_together(arguments: &Build) -> Result<Initrd, Error> {
    let init = match &arguments.init {
        Some(init) => init.clone(),
        None => std::env::current_exe().map_err(Error::Init)?.with_file_name(INIT),
    };
    let programs = PROGRAMS.map(PathBuf::from);
    let kernel = fs::read(&arguments.kernel);
    let kernel = kernel.map_err(|source| Error::Kernel { path: arguments.kernel.clone(), source })?;
    let initrd = build(&Parts { init: &init, modules: &arguments.modules, programs: &programs })?;
    let output = &arguments.output;
    fs::create_dir_all(output).map_err(|source| Error::Write { path: output.clone(), source })?;
    write(&output.join("vmlinuz"), &kernel)?;
    write(&output.join("initrd"), &initrd.bytes)?;
    Ok(initrd)
}

/// Writes the whole file under another name and renames it: one that is used while it is made anew stays whole.
fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let wrong = |source| Error::Write { path: path.to_owned(), source };
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, content).map_err(wrong)?;
    fs::rename(&unfinished, path).map_err(wrong)
}
