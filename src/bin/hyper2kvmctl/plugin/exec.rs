// SPDX-License-Identifier: Apache-2.0
//! `put` and `get`: files and folders through `hyper2kvm receive` and `send` in the watcher's pod, because the image has no tar.

use std::path::Path;

use hyper2kvm::cluster::names::{self, CONTAINER_SIDECAR, CONTAINER_WATCHER, OUTPUT_DIR, QUEUE_DIR};
use hyper2kvm::conversion::contract::PART;
use hyper2kvm::conversion::printable;
use hyper2kvm::ledger::Page;
use indicatif::{ProgressBar, ProgressStyle};
use kube::api::{AttachParams, AttachedProcess};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, BufReader};

use super::access::{Access, told};
use super::transfer::{Outcome, TransferError, Unfinished, finished, upload};
use super::{Printer, Refusal, claims, folder};
use crate::history::{Window, shown};
use crate::table::bytes;

/// Longest page of a history that is taken, in bytes: a thousand rows with the longest names have less. And what is taken
/// of what went wrong.
const MOST_HISTORY: u64 = 8 << 20;
const MOST_SAID: u64 = 4 << 10;

/// Bytes buffered on their way to the far end.
const IN_FLIGHT: usize = 1 << 20;

/// Uploads `file` into `queue`.
pub(super) async fn put(
    access: &Access,
    file: &Path,
    queue: &str,
    name: Option<&str>,
    printer: Printer,
) -> Result<(), Refusal> {
    let shown = file.display();
    let found = std::fs::metadata(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if !found.is_file() && !found.is_dir() {
        return Err(format!("{shown} is neither a file nor a folder").into());
    }
    // `.` has no name of its own.
    let whole = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let own = if found.is_dir() { whole.file_name() } else { file.file_name() };
    let Some(name) = name.or_else(|| own?.to_str()) else {
        return Err(format!("{shown} has no name in UTF-8; give it one with --name").into());
    };
    access.queues().get(queue).await.map_err(|error| access.about_queue(queue, error))?;
    if found.is_dir() {
        return put_folder(access, file, queue, name, printer).await;
    }
    let size = found.len();
    let sha256 = bring(access, file, size, queue, name, None).await?;
    let object = json!({ "queue": queue, "name": name, "sizeBytes": size, "sha256": sha256 });
    printer.print(&object, || {
        format!(
            "{name} is in {queue}: {}, sha256 {sha256}\n`kubectl hyper2kvm -n {} top {queue}` shows what becomes of it\n",
            bytes(size),
            access.namespace
        )
    })
}

/// Uploads one file, of a folder or by itself, and returns its digest.
async fn bring(
    access: &Access,
    file: &Path,
    size: u64,
    queue: &str,
    name: &str,
    folder: Option<&str>,
) -> Result<String, Refusal> {
    let length = size.to_string();
    let mut command = vec!["hyper2kvm", "receive", "--directory", QUEUE_DIR, "--name", name, "--size", &length];
    command.extend(folder.iter().flat_map(|folder| ["--folder", folder]));
    let bar = bar(name, size);
    let mut outcome = Outcome::Differs { resumed: true };
    while outcome == (Outcome::Differs { resumed: true }) {
        let mut process = start(access, queue, &command, true).await?;
        let (Some(output), Some(mut input)) = (process.stdout(), process.stdin()) else { return Err(closed()) };
        outcome = upload(file, size, &mut BufReader::new(output), &mut input, &bar).await?;
    }
    bar.finish_and_clear();
    match outcome {
        Outcome::Done { sha256 } => Ok(sha256),
        Outcome::Differs { .. } => Err(differs(name)),
    }
}

/// Uploads a folder: each file, and then the folder appears whole.
async fn put_folder(access: &Access, folder: &Path, queue: &str, name: &str, printer: Printer) -> Result<(), Refusal> {
    let mut files = Vec::new();
    let mut sent = 0;
    for file in folder::list(folder)? {
        let sha256 = bring(access, &file.path, file.size, queue, &file.name, Some(name)).await?;
        files.push(json!({ "name": file.name, "sizeBytes": file.size, "sha256": sha256 }));
        sent += file.size;
    }
    let command = ["hyper2kvm", "receive-folder", "--directory", QUEUE_DIR, "--name", name];
    let mut process = start(access, queue, &command, false).await?;
    let Some(output) = process.stdout() else { return Err(closed()) };
    finished(&mut BufReader::new(output)).await?;
    printer.print(&json!({ "queue": queue, "name": name, "files": files }), || {
        format!(
            "{name} is in {queue}: {} files, {}\n`kubectl hyper2kvm -n {} top {queue}` shows what becomes of it\n",
            files.len(),
            bytes(sent),
            access.namespace
        )
    })
}

/// Downloads the disks of `conversion` into `directory`.
pub(super) async fn get(access: &Access, conversion: &str, directory: &Path, printer: Printer) -> Result<(), Refusal> {
    let found =
        access.conversions().get(conversion).await.map_err(|error| access.about_conversion(conversion, error))?;
    let queue = &found.spec.queue_ref.name;
    let status = found.status.unwrap_or_default();
    if status.is_complete() {
        // Whoever may not read the queue, or has deleted it, gets what most queues have.
        let security = access.queues().get(queue).await.map(|queue| queue.spec.security_context).unwrap_or_default();
        return Err(claims::refusal(&access.namespace, conversion, &status, &security));
    }
    let outputs = status.outputs;
    if outputs.is_empty() {
        return Err(format!(
            "{conversion} has no disks (yet); `kubectl -n {} get hcj {conversion} -o wide` shows how it stands",
            access.namespace
        )
        .into());
    }
    std::fs::create_dir_all(directory)
        .map_err(|error| format!("cannot make the directory {}: {error}", directory.display()))?;
    let mut files = Vec::new();
    for output in outputs {
        let name = output.path.rsplit('/').next().unwrap_or(&output.path);
        if name.is_empty() || name == "." || name == ".." {
            return Err(format!("{conversion} names an output {:?}, which is no file", output.path).into());
        }
        let target = directory.join(name);
        let sha256 = take(access, queue, &output.path, &target).await?;
        if output.sha256.as_ref().is_some_and(|recorded| *recorded != sha256) {
            return Err(format!(
                "{} is not the disk that was published: its sha256 is {sha256}, not {}; was it changed in place?",
                target.display(),
                output.sha256.unwrap_or_default()
            )
            .into());
        }
        files.push(json!({ "path": target, "sha256": sha256 }));
    }
    printer.print(&json!({ "conversion": conversion, "files": files }), || {
        files.iter().fold(String::new(), |text, file| {
            format!("{text}{}  sha256 {}\n", file["path"].as_str().unwrap_or(""), file["sha256"].as_str().unwrap_or(""))
        })
    })
}

/// Downloads one file of the output, and returns its digest.
async fn take(access: &Access, queue: &str, path: &str, target: &Path) -> Result<String, Refusal> {
    if std::fs::symlink_metadata(target).is_ok() {
        return Err(TransferError::Taken(target.display().to_string()).into());
    }
    let mut unfinished_name = target.file_name().unwrap_or_default().to_owned();
    unfinished_name.push(PART);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unfinished_path = target.with_file_name(unfinished_name);
    let bar = bar(&name, 0);
    loop {
        let mut unfinished = Unfinished::open(&unfinished_path)?;
        let offset = unfinished.have().to_string();
        let command = ["hyper2kvm", "send", "--directory", OUTPUT_DIR, "--path", path, "--offset", &offset];
        let mut process = start(access, queue, &command, false).await?;
        let Some(output) = process.stdout() else { return Err(closed()) };
        let resumed = unfinished.have() > 0;
        match unfinished.download(&unfinished_path, target, &mut BufReader::new(output), &bar).await {
            Ok(Outcome::Done { sha256 }) => {
                bar.finish_and_clear();
                return Ok(sha256);
            }
            Ok(Outcome::Differs { resumed: true }) => {}
            Ok(Outcome::Differs { resumed: false }) => return Err(differs(&name)),
            // More is here than there: it belongs to another file.
            Err(TransferError::Refused(_)) if resumed => {
                unfinished = Unfinished::open(&unfinished_path)?;
                unfinished.restart()?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lists what has ended. The sidecar reads it from the ledger, also while the watcher restarts.
pub(super) async fn history(access: &Access, queue: &str, window: Window, printer: Printer) -> Result<(), Refusal> {
    access.queues().get(queue).await.map_err(|error| access.about_queue(queue, error))?;
    let (limit, before) = (window.limit.to_string(), window.before.unwrap_or(i64::MAX).to_string());
    let command =
        ["hyper2kvmctl", "--output-dir", OUTPUT_DIR, "history", "--json", "--limit", &limit, "--before", &before];
    let mut process = start_in(access, queue, CONTAINER_SIDECAR, &command, [false, true]).await?;
    let (Some(output), Some(errors)) = (process.stdout(), process.stderr()) else { return Err(closed()) };
    let (mut text, mut said) = (Vec::new(), Vec::new());
    let (mut output, mut errors) = (output.take(MOST_HISTORY), errors.take(MOST_SAID));
    tokio::try_join!(output.read_to_end(&mut text), errors.read_to_end(&mut said))?;
    let Ok(page) = serde_json::from_slice::<Page>(&text) else {
        let said = String::from_utf8_lossy(&said);
        let pod = format!("{}-0", names::watcher(queue));
        return Err(format!("pod {pod} told no history: {}", printable(said.trim())).into());
    };
    let command = format!("kubectl hyper2kvm -n {} history {queue}", access.namespace);
    printer.print(&page, || shown(&page, window, &command))
}

async fn start(access: &Access, queue: &str, command: &[&str], takes: bool) -> Result<AttachedProcess, Refusal> {
    start_in(access, queue, CONTAINER_WATCHER, command, [takes, false]).await
}

/// Runs a command in a container of a queue's pod, with its standard output and, where these say so, its standard input and
/// its standard error.
async fn start_in(
    access: &Access,
    queue: &str,
    container: &str,
    command: &[&str],
    [takes, says]: [bool; 2],
) -> Result<AttachedProcess, Refusal> {
    let pod = format!("{}-0", names::watcher(queue));
    let parameters = AttachParams::default()
        .container(container)
        .stdin(takes)
        .stdout(true)
        .stderr(says)
        .max_stdin_buf_size(IN_FLIGHT)
        .max_stdout_buf_size(IN_FLIGHT);
    let error = match access.pods().exec(&pod, command.iter().copied(), &parameters).await {
        Ok(started) => return Ok(started),
        Err(error) => error,
    };
    let namespace = &access.namespace;
    let is_stopped = access.queues().get(queue).await.is_ok_and(|queue| queue.is_at_rest());
    Err(if is_stopped {
        format!(
            "{queue} is stopped and has no pod: `kubectl hyper2kvm -n {namespace} pause {queue}` gives it one that starts \
             nothing, `resume` lets it go on"
        )
    } else {
        format!(
            "cannot run anything in pod {pod}: {}; `kubectl -n {namespace} describe pod {pod}` tells whether it runs, \
             and `kubectl auth can-i create pods/exec -n {namespace}` whether you may",
            told(error)
        )
    }
    .into())
}

fn bar(name: &str, size: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {bytes:>11} / {total_bytes:11} {bytes_per_sec:>13} {eta:>4}");
    // Drawn on standard error, and only on a terminal.
    let bar = ProgressBar::new(size).with_message(name.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn closed() -> Refusal {
    "the API server opened no streams to the pod; try again".into()
}

fn differs(name: &str) -> Refusal {
    format!("{name} arrived otherwise than it was sent (the checksums differ), and was discarded; try again").into()
}
