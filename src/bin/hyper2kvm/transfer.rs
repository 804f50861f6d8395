// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm receive` and `send`: the far end of `kubectl hyper2kvm put` and `get`, in an image without shell or tar.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hyper2kvm::conversion::chain;
use hyper2kvm::files::transfer::{self, Line, TransferError};

#[derive(Debug, Args)]
pub(crate) struct Receive {
    /// Directory that takes the file
    #[arg(long)]
    directory: PathBuf,
    /// Name of the file there
    #[arg(long, allow_hyphen_values = true)]
    name: String,
    /// Bytes of the whole file
    #[arg(long)]
    size: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Directory that the file lies below
    #[arg(long)]
    directory: PathBuf,
    /// The file, relative to the directory
    #[arg(long, allow_hyphen_values = true)]
    path: String,
    /// First byte that is sent
    #[arg(long, default_value_t = 0)]
    offset: u64,
}

pub(crate) fn receive(arguments: &Receive) -> ExitCode {
    let Receive { directory, name, size } = arguments;
    ended(transfer::receive(directory, name, *size, &mut io::stdin().lock(), &mut io::stdout().lock()))
}

pub(crate) fn send(arguments: &Send) -> ExitCode {
    let Send { directory, path, offset } = arguments;
    ended(transfer::send(directory, path, *offset, &mut io::stdout().lock()))
}

/// An error is written to both streams: on the first alone, it could be taken for bytes of a file.
fn ended(result: Result<(), TransferError>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let text = chain(&error);
    eprintln!("hyper2kvm: {text}");
    // The reader may be gone; the error stands on stderr, too.
    Line::Error(text).write(&mut io::stdout().lock()).ok();
    ExitCode::FAILURE
}
