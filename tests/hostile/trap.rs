// SPDX-License-Identifier: Apache-2.0
//! A directory with an image and a canary beside it, and what must hold after a conversion was tried.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Stands in a file beside each image, and nowhere else.
pub(crate) const CANARY: &str = "CANARY-5f0d-of-another-tenant";
/// Name of that file.
pub(crate) const BESIDE: &str = "canary.raw";

/// Bytes that the program may write to: the needs of a conversion, and the stacks of its threads, 2 MiB each.
const MEMORY: u64 = 96 << 20;

/// A directory that is a claim at the same time.
pub(crate) struct Trap {
    place: TempDir,
    name: String,
}

impl Trap {
    /// An image called `name` with this content, which may hold the canary's absolute path.
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let trap = Self::empty(name);
        fs::write(trap.image(), content).unwrap();
        trap
    }

    /// The same without the image.
    pub(crate) fn empty(name: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("claim")).unwrap();
        for canary in [place.path().join(BESIDE), place.path().join("claim").join(BESIDE)] {
            fs::write(canary, CANARY.repeat(10_000)).unwrap();
        }
        Self { place, name: name.to_owned() }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.place.path().join("claim")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory().join(&self.name)
    }

    /// Runs the converter by hand and as a worker; both refuse for this reason.
    pub(crate) fn is_refused(&self, reason: &str) {
        self.is_refused_with(reason, &[], &json!({}));
    }

    pub(crate) fn is_refused_with(&self, reason: &str, flags: &[&str], options: &Value) {
        let by_hand = self.convert(flags);
        let said = text(&by_hand);
        assert_eq!(by_hand.status.code(), Some(10), "{}: {said}", self.name);
        assert!(said.starts_with(&format!("hyper2kvm: {reason}: ")), "{} for {reason}: {said}", self.name);
        assert!(!self.output().exists(), "{}: something is left", self.name);
        self.worker_refuses(reason, options);
    }

    /// Runs only a worker, whose claim has the image as its only member.
    pub(crate) fn worker_refuses(&self, reason: &str, options: &Value) {
        let worker = self.work(options);
        let said = text(&worker);
        assert_eq!(worker.status.code(), Some(10), "{}: {said}", self.name);
        let failure = fs::read(self.place.path().join("work/failure.json")).unwrap();
        let failure: Value = serde_json::from_slice(&failure).unwrap();
        assert_eq!(failure["failure"]["reason"], reason, "{}: {failure}", self.name);
        assert!(!self.place.path().join("work/pod").exists(), "{}: output is left", self.name);
        self.canary_sings_nowhere("work");
    }

    /// Both accept it; the outputs hold nothing of the canary.
    pub(crate) fn is_converted(&self) {
        let by_hand = self.convert(&[]);
        assert!(by_hand.status.success(), "{}: {}", self.name, text(&by_hand));
        let worker = self.work(&json!({"outFormat": "raw"}));
        assert!(worker.status.success(), "{}: {}", self.name, text(&worker));
        self.canary_sings_nowhere("work");
        self.canary_sings_nowhere("output");
    }

    fn output(&self) -> PathBuf {
        self.place.path().join("output")
    }

    fn convert(&self, flags: &[&str]) -> Output {
        let ran = bounded()
            .arg("convert")
            .args(flags)
            .arg("--output-dir")
            .arg(self.output())
            .arg("--")
            .arg(self.image())
            .output()
            .unwrap();
        let inspected = bounded().arg("inspect").arg("--").arg(self.image()).output();
        for output in [&ran, &inspected.unwrap()] {
            silent(&self.name, &[output.stdout.as_slice(), &output.stderr].concat());
        }
        ran
    }

    fn work(&self, options: &Value) -> Output {
        let stat = fs::metadata(self.image()).unwrap();
        let mtime = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
        let member = json!({"name": self.name, "sizeBytes": stat.len(), "mtimeNs": mtime, "inode": stat.ino()});
        let claim = json!({
            "contractVersion": 1, "id": "disk-0badcafe", "primary": self.name, "members": [member],
            "claimedAt": "2026-01-17T09:45:00Z", "date": "2026-01-17",
        });
        fs::write(self.directory().join("claim.json"), claim.to_string()).unwrap();
        let work = self.place.path().join("work");
        fs::create_dir(&work).unwrap();
        let ran = bounded()
            .arg("worker")
            .env("HYPER2KVM_CLAIM", self.directory())
            .env("HYPER2KVM_WORK", work)
            .env("HYPER2KVM_FOLDER", "pod")
            .env("HYPER2KVM_OPTIONS", options.to_string())
            .env("HYPER2KVM_ATTEMPT", "1")
            .output()
            .unwrap();
        silent(&self.name, &[ran.stdout.as_slice(), &ran.stderr].concat());
        ran
    }

    fn canary_sings_nowhere(&self, below: &str) {
        quiet_below(&self.place.path().join(below));
    }
}

/// The program, which is ended where it needs more memory than a conversion may. (Without backtraces: Rust's library
/// waits for ever if there is no memory for one.)
fn bounded() -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--data={MEMORY}")).arg(env!("CARGO_BIN_EXE_hyper2kvm")).env("RUST_BACKTRACE", "0");
    command
}

/// Checks that no file below `directory` contains the canary's text.
pub(crate) fn quiet_below(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            quiet_below(&path);
        } else if path.is_file() {
            silent(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
}

fn silent(what: &str, bytes: &[u8]) {
    let found = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert!(!found, "{what}: the canary's text is there");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs qemu-img; false, reported on standard error, where it is not installed.
pub(crate) fn qemu_img(directory: &Path, arguments: &[&str]) -> bool {
    match Command::new("qemu-img").current_dir(directory).args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "qemu-img {arguments:?}: {}", text(&output));
            true
        }
        Err(error) => {
            eprintln!("left out: qemu-img is not installed (Debian: qemu-utils): {error}");
            false
        }
    }
}

/// Incompressible bytes, then zeros, then text: any cut or flip in them shows.
pub(crate) fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; len];
    for byte in &mut bytes[..len / 2] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = u8::try_from(state >> 56).unwrap();
    }
    let text = b"a log line of the guest\n".iter().cycle();
    for (byte, letter) in bytes[len * 3 / 4..].iter_mut().zip(text) {
        *byte = *letter;
    }
    bytes
}

/// `content` as an image that our own writer makes.
pub(crate) fn written(format: &str, content: &[u8]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let (source, output) = (place.path().join("truth.raw"), place.path().join("image"));
    fs::write(&source, content).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
        .args(["convert", "--format", format])
        .arg(source)
        .arg("-o")
        .arg(&output)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", text(&ran));
    fs::read(output).unwrap()
}
