// SPDX-License-Identifier: Apache-2.0
//! A traced program's file system calls, in the order in which they completed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A call that succeeded. Its number is that of the line of the trace in which it began or ended.
#[derive(Debug)]
pub(super) struct Call {
    /// Number of the thread that made it.
    pub thread: String,
    pub began: usize,
    pub ended: usize,
    pub name: String,
    /// Paths: of the descriptor that it was given, or by name.
    pub paths: Vec<PathBuf>,
    /// Arguments, as in the trace.
    pub arguments: String,
}

/// Reads what `strace -f -y` wrote.
pub(super) fn read(trace: &str) -> Vec<Call> {
    let mut unfinished: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, text)) = text.split_once(' ') else { continue };
        let text = text.trim_start();
        if let Some(head) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (line, head.to_owned()));
        } else if text.starts_with("<... ") {
            let Some((began, head)) = unfinished.remove(thread) else { continue };
            let (_, rest) = text.split_once(" resumed>").unwrap();
            calls.extend(call(thread, &format!("{head}{rest}"), began, line));
        } else {
            calls.extend(call(thread, text, line, line));
        }
    }
    calls
}

fn call(thread: &str, text: &str, began: usize, ended: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ").or_else(|| {
        // strace aligns results.
        let at = rest.rfind(" = ")?;
        let (arguments, result) = rest.split_at(at);
        Some((arguments.trim_end().strip_suffix(')')?, &result[3..]))
    })?;
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let paths = paths(name, arguments, result);
    Some(Call {
        thread: thread.to_owned(),
        began,
        ended,
        name: name.to_owned(),
        paths,
        arguments: arguments.to_owned(),
    })
}

/// The paths of a call: those of its result where it opens, of its names where it moves, else of its descriptor.
fn paths(name: &str, arguments: &str, result: &str) -> Vec<PathBuf> {
    if name.starts_with("open") {
        return described(result).into_iter().collect();
    }
    if !["rename", "link", "mkdir", "unlink", "rmdir"].iter().any(|known| name.starts_with(known)) {
        return described(arguments).into_iter().collect();
    }
    // "AT_FDCWD</tmp>, "/a/b", 4</c>, "d"": a name is relative to the descriptor before it.
    let mut paths = Vec::new();
    let mut base = PathBuf::new();
    for argument in arguments.split(", ") {
        if let Some(quoted) = argument.strip_prefix('"').and_then(|a| a.strip_suffix('"')) {
            paths.push(base.join(quoted));
        } else if let Some(dir) = described(argument) {
            base = dir;
        }
    }
    paths
}

/// `7</a/b>` names the path behind a descriptor.
fn described(text: &str) -> Option<PathBuf> {
    let first = text.split(", ").next()?;
    let (_, rest) = first.split_once('<')?;
    let path = rest.strip_suffix('>').or_else(|| rest.split_once('>').map(|(path, _)| path))?;
    Some(PathBuf::from(path.trim_end_matches("(deleted)")))
}

impl Call {
    pub(super) fn writes(&self) -> bool {
        ["write", "pwrite", "writev", "ftruncate", "fallocate", "copy_file_range"]
            .iter()
            .any(|name| self.name.starts_with(name))
    }

    pub(super) fn syncs(&self) -> bool {
        self.name == "fsync" || self.name == "fdatasync"
    }

    pub(super) fn moves(&self) -> bool {
        self.name.starts_with("rename") || self.name.starts_with("link")
    }

    pub(super) fn creates(&self) -> bool {
        self.name.starts_with("mkdir") || self.name.starts_with("open") && self.arguments.contains("O_CREAT")
    }

    pub(super) fn removes(&self) -> bool {
        self.name.starts_with("unlink") || self.name.starts_with("rmdir")
    }

    /// Whether it overwrites the beginning of a file with so many zeros.
    pub(super) fn blanks(&self, bytes: usize) -> bool {
        let zeros = "\\0".repeat(bytes);
        self.name == "pwrite64" && self.arguments.ends_with(&format!(", \"{zeros}\", {bytes}, 0"))
    }

    pub(super) fn is_of(&self, path: &Path) -> bool {
        self.paths.first().is_some_and(|first| first == path)
    }
}
