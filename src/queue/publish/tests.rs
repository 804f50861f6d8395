// SPDX-License-Identifier: Apache-2.0
//! What workers leave, honest ones and others.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rstest::rstest;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::super::claim::tests::{dropped, paths, visible};
use super::*;

const DATE: &str = "2026-01-17";

struct Attempted {
    dir: TempDir,
    paths: Paths,
    claim: Claim,
    folder: PathBuf,
}

fn metadata(id: &str, disks: &[&str]) -> Value {
    let disks: Vec<_> = disks
        .iter()
        .map(|file| {
            json!({"file": file, "format": "qcow2", "virtualSizeBytes": u64::MAX, "allocatedBytes": u64::MAX,
                   "sha256": "no digest", "sourceMember": "vm.vmdk"})
        })
        .collect();
    json!({
        "contractVersion": CONTRACT_VERSION, "id": id, "toolVersion": "1", "startTime": "2026-01-17T09:00:00Z",
        "endTime": "2026-01-17T09:00:01Z", "durationMs": 1000,
        "source": {"name": "vm.vmdk", "sizeBytes": 1, "format": "vmdk"},
        "disks": disks, "warnings": ["x".repeat(5000)],
    })
}

/// A folder with two disks and their metadata.
fn attempted() -> Attempted {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &["vm.vmdk"]);
    let folder = paths.work_dir(&claim.id, Attempt::FIRST).join("worker");
    fs::create_dir_all(&folder).unwrap();
    for disk in ["vm-disk0.qcow2", "vm-disk1.qcow2"] {
        fs::write(folder.join(disk), disk).unwrap();
    }
    let attempted = Attempted { dir, paths, claim, folder };
    attempted.write(&metadata(attempted.claim.id.as_str(), &["vm-disk0.qcow2", "vm-disk1.qcow2"]));
    attempted
}

impl Attempted {
    fn write(&self, metadata: &Value) {
        fs::write(self.folder.join(METADATA_FILE), metadata.to_string()).unwrap();
    }

    fn inspect(&self) -> Inspection {
        inspect(&self.paths, &self.claim, Attempt::FIRST, "worker").unwrap()
    }

    fn finished(&self) -> Box<Finished> {
        match self.inspect() {
            Inspection::Finished(finished) => finished,
            Inspection::Unpublishable(failure) => panic!("{failure}"),
        }
    }

    fn refusal(&self) -> String {
        match self.inspect() {
            Inspection::Unpublishable(failure) => failure.message,
            Inspection::Finished(finished) => panic!("{finished:?}"),
        }
    }

    fn publish(&self, method: Method) -> Result<(PathBuf, Vec<PathBuf>), PublishError> {
        let mut recorded = Vec::new();
        let domain = |target: &Path, metadata: &Metadata| {
            Some(format!("<domain>{}</domain>", target.join(&metadata.disks[0].file).display()))
        };
        let target = self.finished().publish(&self.paths, DATE, "vm", method, domain, |target| {
            recorded.push(target.to_owned());
            Ok::<_, PublishError>(())
        })?;
        Ok((target, recorded))
    }
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_finished_folder_appears_whole_and_with_what_it_names_only(#[case] method: Method) {
    let attempted = attempted();
    let canary = attempted.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("kept"), "").unwrap();
    let folder = &attempted.folder;
    fs::write(folder.join("unnamed"), "").unwrap();
    fs::write(folder.join(DOMAIN_FILE), "the worker's own").unwrap();
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    symlink(&canary, folder.join("deep/link")).unwrap();
    symlink(&canary, folder.join("link")).unwrap();
    mkfifoat(CWD, folder.join("fifo"), Mode::RWXU).unwrap();
    let (target, recorded) = attempted.publish(method).unwrap();
    assert_eq!(target, attempted.paths.published(DATE).join("vm"));
    assert_eq!(recorded, std::slice::from_ref(&target));
    assert_eq!(visible(&target), ["domain.xml", "metadata.json", "vm-disk0.qcow2", "vm-disk1.qcow2"]);
    let domain = fs::read_to_string(target.join(DOMAIN_FILE)).unwrap();
    assert_eq!(domain, format!("<domain>{}/vm-disk0.qcow2</domain>", target.display()));
    assert!(canary.join("kept").exists());
    let id = &attempted.claim.id;
    assert!(has_left(&attempted.paths, id, Attempt::FIRST, "worker", &target).unwrap());
    assert_eq!(read_published(&target, id).unwrap().disks.len(), 2);
    assert!(read_published(&target, &"other-1".parse().unwrap()).is_none());
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_taken_name_gets_a_number_and_its_own_domain(#[case] method: Method) {
    let attempted = attempted();
    let day = attempted.paths.published(DATE);
    fs::create_dir_all(day.join("vm")).unwrap();
    fs::write(day.join("vm/old"), "").unwrap();
    fs::write(day.join("vm-1"), "a file").unwrap();
    let (target, _) = attempted.publish(method).unwrap();
    assert_eq!(target, day.join("vm-2"));
    assert!(fs::read_to_string(target.join(DOMAIN_FILE)).unwrap().contains("/vm-2/"));
    assert_eq!(visible(&day.join("vm")), ["old"]);
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_name_taken_between_record_and_rename_is_recorded_anew(#[case] method: Method) {
    let attempted = attempted();
    let mut recorded = Vec::new();
    let take_the_first = |target: &Path| {
        if recorded.is_empty() {
            fs::create_dir(target).unwrap();
            fs::write(target.join("theirs"), "").unwrap();
        }
        recorded.push(target.to_owned());
        Ok::<_, PublishError>(())
    };
    let target =
        attempted.finished().publish(&attempted.paths, DATE, "vm", method, |_, _| None, take_the_first).unwrap();
    let day = attempted.paths.published(DATE);
    assert_eq!(recorded, [day.join("vm"), day.join("vm-1")]);
    assert_eq!(target, day.join("vm-1"));
    assert_eq!(visible(&day.join("vm")), ["theirs"]);
}

#[test]
fn a_crash_before_the_rename_is_published_by_doing_it_again() {
    let attempted = attempted();
    let crash = |_: &Path| Err(PublishError::NoName { dir: PathBuf::new(), stem: "crash".to_owned() });
    let domain = |_: &Path, _: &Metadata| Some("half".to_owned());
    attempted.finished().publish(&attempted.paths, DATE, "vm", Method::NoReplace, domain, crash).unwrap_err();
    let target = attempted.paths.published(DATE).join("vm");
    assert!(!has_left(&attempted.paths, &attempted.claim.id, Attempt::FIRST, "worker", &target).unwrap());
    let (target, _) = attempted.publish(Method::NoReplace).unwrap();
    assert_eq!(target, attempted.paths.published(DATE).join("vm"));
    assert!(fs::read_to_string(target.join(DOMAIN_FILE)).unwrap().starts_with("<domain>"));
}

#[test]
fn a_work_directory_that_a_power_cut_took_was_published_only_where_its_folder_stands_at_the_target() {
    let attempted = attempted();
    let id = &attempted.claim.id;
    let (target, _) = attempted.publish(Method::NoReplace).unwrap();
    let has_left = || has_left(&attempted.paths, id, Attempt::FIRST, "worker", &target).unwrap();
    fs::remove_dir_all(attempted.paths.work_of(id)).unwrap();
    assert!(has_left(), "published, and not yet said to be");
    fs::remove_dir_all(&target).unwrap();
    assert!(!has_left(), "recorded, and nothing of it on the disk");
    let Inspection::Unpublishable(failure) = attempted.inspect() else { panic!("nothing is there") };
    assert_eq!(failure.reason, Reason::Disrupted, "{failure}");
    fs::create_dir_all(attempted.paths.work_dir(id, Attempt::FIRST)).unwrap();
    assert!(has_left(), "published, and taken away by whoever waited for it");
}

#[rstest]
fn a_folder_swapped_at_any_moment_is_noticed_and_harms_nobody(
    #[values(false, true)] early: bool,
    #[values(false, true)] for_a_directory: bool,
) {
    let attempted = attempted();
    let finished = attempted.finished();
    let canary = attempted.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("kept"), "").unwrap();
    let swap = || {
        fs::rename(&attempted.folder, attempted.dir.path().join("aside")).unwrap();
        if for_a_directory {
            fs::create_dir(&attempted.folder).unwrap();
        } else {
            symlink(&canary, &attempted.folder).unwrap();
        }
    };
    if early {
        swap();
    }
    let late = |_: &Path| {
        if !early {
            swap();
        }
        Ok::<_, PublishError>(())
    };
    let domain = |_: &Path, _: &Metadata| Some("<domain/>".to_owned());
    let published = finished.publish(&attempted.paths, DATE, "vm", Method::NoReplace, domain, late);
    assert!(matches!(published, Err(PublishError::Swapped { .. })), "{published:?}");
    assert_eq!(visible(&attempted.paths.published(DATE)), Vec::<String>::new());
    assert_eq!(visible(&canary), ["kept"]);
}

#[test]
fn what_the_worker_says_is_clamped_and_what_it_occupies_is_measured() {
    let attempted = attempted();
    let metadata = attempted.finished().metadata;
    assert_eq!(metadata.disks[0].virtual_size_bytes, i64::MAX as u64);
    assert!(metadata.disks[0].allocated_bytes <= 4096);
    assert_eq!(metadata.disks[0].sha256, None);
    assert_eq!(metadata.warnings[0].len(), MAX_WARNING);
}

#[test]
fn metadata_that_names_what_is_no_output_is_refused() {
    let attempted = attempted();
    let id = attempted.claim.id.as_str();
    fs::write(attempted.dir.path().join("canary"), "canary").unwrap();
    for name in ["../canary", "/etc/passwd", "..", "", "metadata.json", "domain.xml", ".hidden", "none", "a\0b"] {
        attempted.write(&metadata(id, &[name]));
        assert!(!attempted.refusal().contains("root:"), "{name}");
    }
    attempted.write(&metadata(id, &["vm-disk0.qcow2", "vm-disk0.qcow2"]));
    assert!(attempted.refusal().ends_with("names \"vm-disk0.qcow2\" twice"));
    attempted.write(&metadata(id, &[]));
    assert!(attempted.refusal().ends_with("names no disk"));
    attempted.write(&metadata("other-1", &["vm-disk0.qcow2"]));
    assert!(attempted.refusal().ends_with("another conversion's"));
    let mut future = metadata(id, &["vm-disk0.qcow2"]);
    future["contractVersion"] = json!(2);
    attempted.write(&future);
    assert!(attempted.refusal().contains("version 2"));
}

#[test]
fn planted_things_neither_hang_nor_are_read() {
    let attempted = attempted();
    let disk = attempted.folder.join("vm-disk0.qcow2");
    let replant = |plant: &dyn Fn(&Path)| {
        fs::remove_file(&disk).unwrap();
        plant(&disk);
        attempted.refusal()
    };
    assert!(replant(&|p| symlink("/etc/passwd", p).unwrap()).contains("no regular file"));
    assert!(replant(&|p| mkfifoat(CWD, p, Mode::RWXU).unwrap()).contains("no regular file"));
    assert!(replant(&|p| drop(UnixListener::bind(p).unwrap())).contains("no regular file"));
    assert!(replant(&|p| fs::create_dir(p).unwrap()).contains("no regular file"));

    let record = attempted.folder.join(METADATA_FILE);
    let replant = |plant: &dyn Fn(&Path)| {
        fs::remove_file(&record).unwrap();
        plant(&record);
        attempted.refusal()
    };
    assert!(replant(&|p| mkfifoat(CWD, p, Mode::RWXU).unwrap()).contains("no regular file"));
    assert!(replant(&|p| fs::write(p, vec![b' '; MAX_METADATA_BYTES + 1]).unwrap()).contains("larger than"));
    assert!(replant(&|p| fs::write(p, "{").unwrap()).contains("not what it should be"));
    assert!(replant(&|p| symlink("/etc/passwd", p).unwrap()).contains("no regular file"));
    fs::remove_file(&record).unwrap();
    assert!(attempted.refusal().contains("cannot read"));
}

#[test]
fn a_missing_or_planted_folder_is_the_attempts_failure() {
    let attempted = attempted();
    fs::rename(&attempted.folder, attempted.folder.with_file_name("aside")).unwrap();
    assert!(attempted.refusal().ends_with("left no folder worker"));
    symlink("aside", &attempted.folder).unwrap();
    assert!(attempted.refusal().ends_with("left no folder worker"));
    for folder in ["..", "a/b", ""] {
        let inspection = inspect(&attempted.paths, &attempted.claim, Attempt::FIRST, folder).unwrap();
        assert!(matches!(inspection, Inspection::Unpublishable(_)));
    }
    let inspection = inspect(&attempted.paths, &attempted.claim, Attempt(2), "worker").unwrap();
    assert!(matches!(inspection, Inspection::Unpublishable(_)));
}
