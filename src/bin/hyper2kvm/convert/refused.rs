// SPDX-License-Identifier: Apache-2.0
//! What is printed of a conversion that was refused or failed, and its exit code.

use std::borrow::Cow;
use std::path::Path;
use std::process::ExitCode;

use hyper2kvm::conversion::contract::exit_code;
use hyper2kvm::conversion::{Failure, Phase, Reason, Remedy, printable};
use hyper2kvm::worker::place::PlaceError;
use rustix::process::geteuid;

use super::{Arguments, destination, device};
use crate::refusal::{self, USAGE};

/// Tells why there is no output.
pub(super) fn tell(arguments: &Arguments, error: PlaceError) -> ExitCode {
    let suggestion: Cow<'_, str> = match &error {
        PlaceError::Failed(_) => "".into(),
        PlaceError::Taken(_) => "Use another name, or --force to replace it".into(),
        PlaceError::Directory(_) | PlaceError::Several { .. } => "Use --output-dir DIR, or another name".into(),
        PlaceError::Source(_) => "Use another name".into(),
        PlaceError::NoDirectory(_) => "Name a directory".into(),
        PlaceError::BlockDevice(path) if arguments.output.as_ref() == Some(path) => {
            format!("To write the disk onto it: --to-device {}", path.display()).into()
        }
        PlaceError::BlockDevice(_) | PlaceError::NoFile { .. } => "Name a file".into(),
        PlaceError::Devices { .. } => {
            "Name one device for each disk, in the order that `hyper2kvm inspect` shows".into()
        }
        PlaceError::Holds { .. } => "Use --force to overwrite it, if nobody needs it".into(),
    };
    match error {
        PlaceError::Failed(failure) => failed(arguments, failure),
        error => wrong_call(arguments, &error.to_string(), &suggestion),
    }
}

/// Tells why the call is wrong.
pub(super) fn wrong_call(arguments: &Arguments, message: &str, suggestion: &str) -> ExitCode {
    print(arguments, None, message, suggestion);
    ExitCode::from(USAGE)
}

fn failed(arguments: &Arguments, failure: Failure) -> ExitCode {
    let at_device = device::suggestion(failure.reason).filter(|_| !arguments.to_device.is_empty());
    // Nothing about a device passes by itself, but a fault of its own.
    let is_of_device = at_device.is_some() && failure.reason != Reason::OutputIO;
    let code = if is_of_device { exit_code::CONFIGURATION } else { refusal::exit_code(&failure) };
    let mut failure = refusal::by_hand(failure, &arguments.source);
    if let Some(suggestion) = at_device {
        suggestion.clone_into(&mut failure.suggestion);
    } else if let Some(suggestion) = denied(arguments, &failure) {
        failure.suggestion = suggestion;
    }
    // A name that was mistyped has no reason that anybody must know.
    let message = if failure.reason == Reason::SourceMissing { failure.message.clone() } else { failure.to_string() };
    print(arguments, Some(&failure), &message, &failure.suggestion);
    ExitCode::from(code)
}

/// What helps where this user may not write the output.
fn denied(arguments: &Arguments, failure: &Failure) -> Option<String> {
    let is_of_output = failure.phase == Phase::OutputDirectoryCreation && arguments.to_device.is_empty();
    let is_denied = failure.reason == Reason::PermissionDenied && Remedy::of_text(&failure.suggestion).is_none();
    let (directory, _) = destination(arguments).ok().filter(|_| is_of_output && is_denied)?;
    let there = directory.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
    let uid = geteuid().as_raw();
    Some(format!("uid {uid} may not write to {}: chmod, chown, or another --output-dir", there.display()))
}

fn print(arguments: &Arguments, failure: Option<&Failure>, message: &str, suggestion: &str) {
    eprintln!("hyper2kvm: {}", printable(message));
    if !suggestion.is_empty() {
        eprintln!("  {}", printable(suggestion));
    }
    if arguments.json {
        println!("{}", refusal::json(failure, message, suggestion));
    }
}
