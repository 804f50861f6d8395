// SPDX-License-Identifier: Apache-2.0
//! `{name}.error.json`: what a failure was, for whoever finds the file in `.errors/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::conversion::failure::{Class, Phase, Stage};
use crate::conversion::{Claim, ConversionId, Failure, FailureReport, Reason, Witness};
use crate::files::names;
use crate::files::space::free_bytes;
use crate::files::store::{self, StoreError};
use crate::files::volume;

/// Longest text taken over from a worker, in bytes; its report as a whole is bounded when it is read.
const MAX_MESSAGE: usize = 4 << 10;

/// Longest error.json that is read, in bytes; those that we write are shorter.
const MAX_LENGTH: usize = 1 << 20;

/// Content of an error.json. The keys of the first block are those that users' scripts read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorFile {
    /// Name of the primary.
    pub filename: String,
    /// Where it was dropped.
    pub filepath: String,
    /// MiB, all members together.
    pub file_size_mb: f64,
    pub timestamp: Timestamp,
    pub error: String,
    pub phase: Phase,
    /// The error and its causes, then the worker's last log lines; `null` where nothing is known.
    pub exception_traceback: Option<String>,
    pub suggestion: String,
    pub system_info: SystemInfo,
    pub retry_info: RetryInfo,

    pub reason: Reason,
    pub class: Class,
    pub stage: Option<Stage>,
    /// The conversion's id.
    pub id: String,
    /// The witness that the source had arrived whole; absent where it was claimed because somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_by: Option<Witness>,
}

/// What the machine had left at the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Always null: scripts expect the key.
    pub python_version: Option<String>,
    /// Version of this program.
    pub version: String,
    /// GiB free on the output volume for us; null where the system doesn't tell.
    pub disk_space_free_gb: Option<f64>,
    /// GiB of memory that could be had; null where the system doesn't tell.
    pub memory_available_gb: Option<f64>,
}

/// What was and will be tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryInfo {
    /// Retries made so far.
    pub retry_count: u32,
    pub max_retries: u32,
    /// When the next one is due; null: this failure is final.
    pub next_retry_at: Option<Timestamp>,
}

impl SystemInfo {
    /// Asks the system, `output` being a directory of the output volume.
    #[must_use]
    pub fn read(output: &Path) -> Self {
        Self {
            python_version: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_space_free_gb: free_bytes(output).ok().flatten().map(gibibytes),
            memory_available_gb: fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available).map(gibibytes),
        }
    }
}

/// Puts together what error.json says. `report` is the worker's own, where it left one.
#[must_use]
pub fn compose(
    claim: &Claim,
    filepath: &str,
    failure: &Failure,
    report: Option<&FailureReport>,
    system_info: SystemInfo,
    retry_info: RetryInfo,
    now: Timestamp,
) -> ErrorFile {
    ErrorFile {
        filename: claim.primary.clone(),
        filepath: filepath.to_owned(),
        file_size_mb: two_decimals(claim.size_bytes(), 1 << 20),
        timestamp: whole_second(now),
        error: clamp(&failure.message),
        phase: failure.phase,
        exception_traceback: report.and_then(traceback),
        suggestion: clamp(&failure.suggestion),
        system_info,
        retry_info: RetryInfo { next_retry_at: retry_info.next_retry_at.map(whole_second), ..retry_info },
        reason: failure.reason,
        class: failure.class,
        stage: failure.stage,
        id: claim.id.to_string(),
        complete_by: claim.complete_by,
    }
}

/// Where the error.json lies of a source that lies (or is about to lie) at `primary`.
#[must_use]
pub fn path_for(primary: &Path) -> PathBuf {
    let name = primary.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    primary.with_file_name(names::error_file(&name))
}

/// Writes error.json beside `primary`, replacing that of an earlier attempt.
pub fn write(primary: &Path, content: &ErrorFile) -> Result<(), StoreError> {
    store::write_json(&path_for(primary), content)
}

/// The error.json beside `primary`; `None` where there is none that we wrote.
#[must_use]
pub fn read(primary: &Path) -> Option<ErrorFile> {
    let path = path_for(primary);
    store::read_json(path.parent()?, &path.file_name()?.to_string_lossy(), MAX_LENGTH).ok().flatten()
}

/// Whether the error.json beside `primary` is of this conversion.
#[must_use]
pub fn is_of(primary: &Path, id: &ConversionId) -> bool {
    read(primary).is_some_and(|told| told.id == id.as_str())
}

/// Removes the error.json beside where `primary` once lay, and the group's directory if nothing else is left in it. A
/// file that is gone already is fine. `errors` is the directory that stays.
pub fn remove(primary: &Path, errors: &Path) -> Result<(), StoreError> {
    store::remove(&path_for(primary))?;
    match primary.parent() {
        Some(dir) if dir != errors && dir.parent() == Some(errors) => match volume::remove_dir(dir) {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
            Err(source) => Err(StoreError::Write { path: dir.to_owned(), source }),
        },
        _ => Ok(()),
    }
}

/// Removes the error.json of a source called `name` that lies in `errors` no more, after one of that name was converted.
pub fn remove_stale(errors: &Path, name: &str) -> Result<(), StoreError> {
    let place = errors.join(name);
    match fs::symlink_metadata(&place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => remove(&place, errors),
        // It tells of what lies there.
        _ => Ok(()),
    }
}

fn traceback(report: &FailureReport) -> Option<String> {
    let chain = report.error_chain.iter().enumerate();
    let lines = chain
        .map(|(depth, error)| if depth == 0 { clamp(error) } else { format!("caused by: {}", clamp(error)) })
        .chain(report.log_tail.iter().map(|line| clamp(line)));
    let text = lines.collect::<Vec<_>>().join("\n");
    (!text.is_empty()).then_some(text)
}

fn clamp(text: &str) -> String {
    if text.len() <= MAX_MESSAGE {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_MESSAGE)])
}

/// `MemAvailable` in bytes (proc(5)).
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// `jq`'s `fromdateiso8601` takes no fractions.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).expect("a second of a timestamp is one")
}

fn gibibytes(bytes: u64) -> f64 {
    two_decimals(bytes, 1 << 30)
}

fn two_decimals(bytes: u64, unit: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "two decimals for a person")]
    let value = bytes as f64 / unit as f64;
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::tempdir;

    use super::*;
    use crate::conversion::Member;

    fn error_file(report: Option<&FailureReport>) -> ErrorFile {
        let member = Member { name: "vm.vmdk".to_owned(), size_bytes: 3 << 19, mtime_ns: 0, inode: 1, alone: None };
        let claim = Claim {
            contract_version: 1,
            id: ConversionId::for_file("vm.vmdk", 1),
            queue_uid: String::new(),
            origin: String::new(),
            folder: None,
            disks: Vec::new(),
            primary: member.name.clone(),
            members: vec![member],
            claimed_at: Timestamp::UNIX_EPOCH,
            seen_at: None,
            complete_by: None,
            beginning: None,
            fingerprint: None,
            emit: None,
            date: "2026-01-17".to_owned(),
        };
        let failure = Failure::new(Reason::SourceIO, "vm.vmdk: cannot read at byte 7").at_stage(Stage::Copy);
        let system = SystemInfo {
            version: "1".to_owned(),
            disk_space_free_gb: Some(gibibytes(1_600_000_000)),
            ..SystemInfo::default()
        };
        let now = Timestamp::from_millisecond(900).unwrap();
        let retry = RetryInfo { retry_count: 1, max_retries: 3, next_retry_at: Some(now) };
        compose(&claim, "/q/vm.vmdk", &failure, report, system, retry, now)
    }

    fn report() -> FailureReport {
        FailureReport {
            contract_version: 1,
            failure: Failure::new(Reason::SourceIO, "x"),
            error_chain: vec!["cannot read".to_owned(), "input/output error".to_owned()],
            log_tail: vec!["copying".to_owned()],
        }
    }

    #[test]
    fn the_keys_that_scripts_read_are_all_there() {
        assert_eq!(
            serde_json::to_value(error_file(Some(&report()))).unwrap(),
            json!({
                "filename": "vm.vmdk",
                "filepath": "/q/vm.vmdk",
                "file_size_mb": 1.5,
                "timestamp": "1970-01-01T00:00:00Z",
                "error": "vm.vmdk: cannot read at byte 7",
                "phase": "conversion",
                "exception_traceback": "cannot read\ncaused by: input/output error\ncopying",
                "suggestion": "Check network connectivity to source system",
                "system_info": {
                    "python_version": null,
                    "version": "1",
                    "disk_space_free_gb": 1.49,
                    "memory_available_gb": null,
                },
                "retry_info": {"retry_count": 1, "max_retries": 3, "next_retry_at": "1970-01-01T00:00:00Z"},
                "reason": "SourceIO",
                "class": "Transient",
                "stage": "copy",
                "id": "vm-00000001",
            })
        );
        assert_eq!(error_file(None).exception_traceback, None);
    }

    #[test]
    fn a_workers_texts_are_bounded() {
        let mut long = report();
        long.error_chain = vec!["ü".repeat(1 << 20)];
        assert!(error_file(Some(&long)).exception_traceback.unwrap().len() < 2 * MAX_MESSAGE);
    }

    #[test]
    fn the_system_tells_what_it_has_left() {
        let system = SystemInfo::read(Path::new("/"));
        assert!(system.disk_space_free_gb.is_some() && system.memory_available_gb.is_some_and(|gb| gb > 0.0));
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemTotal:  9 kB\n"), None);
    }

    #[test]
    fn it_lies_beside_its_source_and_goes_with_the_groups_directory() {
        let dir = tempdir().unwrap();
        let errors = dir.path().join(".errors");
        let long = "x".repeat(255);
        for name in ["vm.vmdk", "vm-1/vm.ovf", "a:b,\n-c.raw", &long] {
            let primary = errors.join(name);
            fs::create_dir_all(primary.parent().unwrap()).unwrap();
            write(&primary, &error_file(None)).unwrap();
            write(&primary, &error_file(Some(&report()))).unwrap();
            let text = fs::read_to_string(path_for(&primary)).unwrap();
            assert_eq!(serde_json::from_str::<ErrorFile>(&text).unwrap(), error_file(Some(&report())));
            remove(&primary, &errors).unwrap();
            remove(&primary, &errors).unwrap();
        }
        assert_eq!(fs::read_dir(&errors).unwrap().count(), 0);
        assert_eq!(path_for(&errors.join("vm.vmdk")), errors.join("vm.vmdk.error.json"));
    }
}
