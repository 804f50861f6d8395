// SPDX-License-Identifier: Apache-2.0
//! The far end of `kubectl hyper2kvm put` and `get`, as a process.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A far end that runs.
struct Remote {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Remote {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a built binary");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn receive(directory: &Path, name: &str, size: usize) -> Self {
        let directory = directory.to_str().expect("UTF-8");
        Self::start(&["receive", "--directory", directory, "--name", name, "--size", &size.to_string()])
    }

    fn send(directory: &Path, path: &str, offset: usize) -> Self {
        let directory = directory.to_str().expect("UTF-8");
        Self::start(&["send", "--directory", directory, "--path", path, "--offset", &offset.to_string()])
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line of UTF-8");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn say(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("not ended yet");
        input.write_all(bytes).and_then(|()| input.flush()).expect("the far end reads");
    }

    /// The exit code, after the far end was left alone.
    fn end(mut self) -> Option<i32> {
        drop(self.input.take());
        self.child.wait().expect("a child of ours").code()
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n * 7 % 251).expect("less than 251")).collect()
}

fn digest(bytes: &[u8]) -> String {
    hyper2kvm::conversion::hex(Sha256::digest(bytes))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_appears_under_its_name_only_after_the_commit() {
    let queue = tempfile::tempdir().expect("a directory");
    let bytes = content(1_000_000);
    let mut remote = Remote::receive(queue.path(), "web01.ova", bytes.len());
    assert_eq!(remote.line(), json!({"have": 0}));
    remote.say(&bytes);
    assert_eq!(remote.line(), json!({"sha256": digest(&bytes)}));
    assert_eq!(names(queue.path()), ["web01.ova.part"]);
    remote.say(b"commit\n");
    assert_eq!(remote.line(), json!({"done": "web01.ova"}));
    assert_eq!(remote.end(), Some(0));
    assert_eq!(names(queue.path()), ["web01.ova"]);
    assert_eq!(fs::read(queue.path().join("web01.ova")).expect("a file"), bytes);
}

#[test]
fn an_upload_goes_on_where_it_was_interrupted() {
    let queue = tempfile::tempdir().expect("a directory");
    let bytes = content(700_001);
    let mut first = Remote::receive(queue.path(), "a.raw", bytes.len());
    assert_eq!(first.line(), json!({"have": 0}));
    first.say(&bytes[..300_000]);
    assert_eq!(first.end(), Some(1));

    let mut second = Remote::receive(queue.path(), "a.raw", bytes.len());
    assert_eq!(second.line(), json!({"have": 300_000}));
    second.say(&bytes[300_000..]);
    assert_eq!(second.line(), json!({"sha256": digest(&bytes)}));
    // The near end left without commit or discard: nothing counts as whole.
    assert_eq!(second.end(), Some(1));
    assert_eq!(names(queue.path()), ["a.raw.part"]);

    let mut third = Remote::receive(queue.path(), "a.raw", bytes.len());
    assert_eq!(third.line(), json!({"have": bytes.len()}));
    assert_eq!(third.line(), json!({"sha256": digest(&bytes)}));
    third.say(b"commit\n");
    assert_eq!(third.line(), json!({"done": "a.raw"}));
    assert_eq!(third.end(), Some(0));
}

#[test]
fn a_wrong_checksum_is_discarded_and_what_is_too_long_begins_anew() {
    let queue = tempfile::tempdir().expect("a directory");
    let bytes = content(5000);
    fs::write(queue.path().join("a.raw.part"), b"of another file").expect("a file");
    let mut remote = Remote::receive(queue.path(), "a.raw", bytes.len());
    assert_eq!(remote.line(), json!({"have": 15}));
    remote.say(&bytes[15..]);
    assert_ne!(remote.line(), json!({"sha256": digest(&bytes)}));
    remote.say(b"discard\n");
    assert_eq!(remote.line(), json!({"discarded": "a.raw"}));
    assert_eq!(remote.end(), Some(0));
    assert_eq!(names(queue.path()), <[&str; 0]>::default());

    fs::write(queue.path().join("a.raw.part"), content(9000)).expect("a file");
    let mut remote = Remote::receive(queue.path(), "a.raw", bytes.len());
    assert_eq!(remote.line(), json!({"have": 0}));
    assert_eq!(remote.end(), Some(1));
}

#[test]
fn a_name_that_is_taken_is_never_replaced() {
    let queue = tempfile::tempdir().expect("a directory");
    fs::write(queue.path().join("a.raw"), "first").expect("a file");
    let mut remote = Remote::receive(queue.path(), "a.raw", 5);
    assert_eq!(remote.line(), json!({"error": "a.raw exists already in the queue: choose another name"}));
    assert_eq!(remote.end(), Some(1));

    let mut remote = Remote::receive(queue.path(), "b.raw", 5);
    assert_eq!(remote.line(), json!({"have": 0}));
    remote.say(b"bytes");
    remote.line();
    fs::write(queue.path().join("b.raw"), "meanwhile").expect("a file");
    remote.say(b"commit\n");
    assert_eq!(remote.line(), json!({"error": "b.raw exists already in the queue: choose another name"}));
    assert_eq!(remote.end(), Some(1));
    assert_eq!(fs::read(queue.path().join("b.raw")).expect("a file"), b"meanwhile");
}

#[test]
fn two_uploads_of_one_name_do_not_mix() {
    let queue = tempfile::tempdir().expect("a directory");
    let mut first = Remote::receive(queue.path(), "a.raw", 5);
    assert_eq!(first.line(), json!({"have": 0}));
    let mut second = Remote::receive(queue.path(), "a.raw", 5);
    assert_eq!(second.line(), json!({"error": "a.raw is being uploaded by somebody else"}));
    assert_eq!(second.end(), Some(1));
    assert_eq!(first.end(), Some(1));
}

#[test]
fn hostile_names_are_refused_and_touch_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let queue = root.path().join("queue");
    fs::create_dir(&queue).expect("a directory");
    let long = "x".repeat(251);
    for name in
        ["", ".", "..", "../a.raw", "/etc/passwd", "a/b.raw", ".hidden.raw", "a.raw.part", "a.TMP", "a\nb", &long]
    {
        let mut remote = Remote::receive(&queue, name, 5);
        let line = remote.line();
        assert!(line["error"].as_str().is_some_and(|text| text.contains("is no name for a file")), "{name:?}: {line}");
        assert_eq!(remote.end(), Some(1));
    }
    assert_eq!((names(&queue), names(root.path())), (Vec::new(), vec!["queue".to_owned()]));

    for name in ["-rf.raw", "a b:c,d.raw"] {
        let mut remote = Remote::receive(&queue, name, 1);
        assert_eq!(remote.line(), json!({"have": 0}), "{name:?} is odd, but a name");
        remote.end();
    }
}

#[test]
fn what_is_planted_under_the_unfinished_name_is_not_written_through() {
    let queue = tempfile::tempdir().expect("a directory");
    let victim = queue.path().join("victim");
    fs::write(&victim, "v").expect("a file");
    symlink(&victim, queue.path().join("a.raw.part")).expect("a link");
    fs::hard_link(&victim, queue.path().join("b.raw.part")).expect("a link");
    fs::create_dir(queue.path().join("c.raw.part")).expect("a directory");
    for name in ["a.raw", "b.raw", "c.raw"] {
        let mut remote = Remote::receive(queue.path(), name, 100);
        let expected = format!("{name}.part is there, but is no plain file: remove it first");
        assert_eq!(remote.line(), json!({ "error": expected }));
        assert_eq!(remote.end(), Some(1));
    }
    assert_eq!(fs::read(&victim).expect("a file"), b"v");
}

#[test]
fn a_file_is_sent_from_any_byte_with_the_digest_of_the_whole() {
    let output = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(output.path().join("2026-01-17/web01")).expect("directories");
    let bytes = content(600_000);
    fs::write(output.path().join("2026-01-17/web01/web01.qcow2"), &bytes).expect("a file");
    for offset in [0, 1, 599_999, 600_000] {
        let mut remote = Remote::send(output.path(), "2026-01-17/web01/web01.qcow2", offset);
        assert_eq!(remote.line(), json!({"size": 600_000}));
        let mut sent = vec![0; bytes.len() - offset];
        remote.output.read_exact(&mut sent).expect("as many bytes as were told");
        assert!(sent == bytes[offset..], "from byte {offset}");
        assert_eq!(remote.line(), json!({"sha256": digest(&bytes)}));
        assert_eq!(remote.end(), Some(0));
    }
    let mut remote = Remote::send(output.path(), "2026-01-17/web01/web01.qcow2", 600_001);
    assert_eq!(remote.line(), json!({"error": "the file has 600000 bytes, so none can be sent from byte 600001"}));
    assert_eq!(remote.end(), Some(1));
}

#[test]
fn nothing_outside_the_directory_is_sent() {
    let root = tempfile::tempdir().expect("a directory");
    let output = root.path().join("output");
    fs::create_dir_all(output.join("day")).expect("directories");
    fs::write(root.path().join("canary"), "canary").expect("a file");
    symlink("../../canary", output.join("day/link")).expect("a link");
    symlink("..", output.join("up")).expect("a link");
    symlink(root.path(), output.join("absolute")).expect("a link");
    for path in [
        "../canary",
        "/etc/passwd",
        "day/../../canary",
        "day//x",
        "",
        ".",
        "day/link",
        "up/canary",
        "absolute/canary",
        "day",
    ] {
        let mut remote = Remote::send(&output, path, 0);
        let line = remote.line();
        assert!(line["error"].is_string(), "{path:?}: {line}");
        let mut rest = String::new();
        remote.output.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(rest, "", "{path:?}");
        assert_eq!(remote.end(), Some(1));
    }
}

#[test]
fn a_folder_appears_once_all_its_files_have_come_and_goes_on_where_it_was_interrupted() {
    let queue = tempfile::tempdir().expect("a directory");
    let (at, content) = (queue.path(), content(3000));
    let directory = at.to_str().expect("UTF-8");
    let receive = |name: &str| {
        let size = content.len().to_string();
        Remote::start(&["receive", "--directory", directory, "--folder", "web01", "--name", name, "--size", &size])
    };
    for name in ["Disks/a.raw", "b.raw"] {
        let mut remote = receive(name);
        assert_eq!(remote.line(), json!({"have": 0}));
        remote.say(&content);
        assert_eq!(remote.line(), json!({"sha256": digest(&content)}));
        remote.say(b"commit\n");
        assert_eq!(remote.line()["done"], name.rsplit('/').next().expect("a name"));
        assert_eq!(remote.end(), Some(0));
    }
    assert_eq!(names(at), [".web01.part"]);
    // What came whole is only compared.
    let mut again = receive("b.raw");
    assert_eq!(again.line(), json!({"have": content.len()}));
    assert_eq!(again.line(), json!({"sha256": digest(&content)}));
    again.say(b"commit\n");
    assert_eq!(again.line(), json!({"done": "b.raw"}));
    assert_eq!(again.end(), Some(0));
    for name in ["../b.raw", "a/b/c.raw", "/b.raw", ".x/b.raw", "Disks/.hidden", "Disks/b.part"] {
        let mut refused = receive(name);
        assert!(refused.line()["error"].is_string(), "{name}");
        assert_eq!(refused.end(), Some(1));
    }
    let finish = || Remote::start(&["receive-folder", "--directory", directory, "--name", "web01"]);
    let mut finished = finish();
    assert_eq!(finished.line(), json!({"done": "web01"}));
    assert_eq!(finished.end(), Some(0));
    assert_eq!(
        (names(at), names(&at.join("web01"))),
        (vec!["web01".to_owned()], vec!["Disks".to_owned(), "b.raw".to_owned()])
    );
    assert!(finish().line()["error"].as_str().is_some_and(|error| error.contains("exists already")));
    assert!(receive("c.raw").line()["error"].as_str().is_some_and(|error| error.contains("exists already")));
}
