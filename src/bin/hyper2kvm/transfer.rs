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
    /// Name of the folder that it belongs to; `--name` is relative to that
    #[arg(long, allow_hyphen_values = true)]
    folder: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiveFolder {
    /// Directory that took the files
    #[arg(long)]
    directory: PathBuf,
    /// Name of the folder, whose files have all been received
    #[arg(long, allow_hyphen_values = true)]
    name: String,
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
    let Receive { directory, name, size, folder } = arguments;
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let received = match folder {
        Some(folder) => transfer::receive_in_folder(directory, folder, name, *size, &mut input, &mut output),
        None => transfer::receive(directory, name, *size, &mut input, &mut output),
    };
    drop(output);
    ended(received)
}

pub(crate) fn receive_folder(arguments: &ReceiveFolder) -> ExitCode {
    let finished = transfer::finish_folder(&arguments.directory, &arguments.name, &mut io::stdout().lock());
    ended(finished)
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
