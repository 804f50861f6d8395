// SPDX-License-Identifier: Apache-2.0
//! What workers leave, honest ones and others.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::super::claim::tests::{dropped, paths};
use super::*;

pub(crate) struct Attempted {
    pub dir: TempDir,
    pub paths: Paths,
    pub claim: Claim,
    pub folder: PathBuf,
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
pub(crate) fn attempted() -> Attempted {
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

    pub(crate) fn inspect(&self) -> Inspection {
        inspect(&self.paths, &self.claim, Attempt::FIRST, "worker").unwrap()
    }

    pub(crate) fn finished(&self) -> Box<Finished> {
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
fn a_disk_in_a_target_is_no_file_of_the_result() {
    let attempted = attempted();
    let mut report = metadata(attempted.claim.id.as_str(), &["vm-disk0.qcow2", "vm-disk1.qcow2"]);
    report["disks"][0]["target"] = json!({"path": "/dev/hyper2kvm-target-0"});
    report["disks"][1]["target"] = json!({"directory": "/targets/1"});
    for disk in ["vm-disk0.qcow2", "vm-disk1.qcow2"] {
        fs::remove_file(attempted.folder.join(disk)).unwrap();
    }
    attempted.write(&report);
    let finished = attempted.finished();
    assert_eq!((finished.named.len(), finished.metadata.disks.len()), (0, 2));
    assert_eq!(finished.metadata.disks[0].allocated_bytes, i64::MAX as u64);
    // Without the word it would be one that is missing.
    report["disks"][1].as_object_mut().unwrap().remove("target");
    attempted.write(&report);
    assert!(attempted.refusal().contains("vm-disk1.qcow2"));
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
    future["contractVersion"] = json!(CONTRACT_VERSION + 1);
    attempted.write(&future);
    assert!(attempted.refusal().contains("version 3"));
    for name in ["proxmox.sh", "virtualmachine.yaml", "vm.glance.json", "vm.xml"] {
        attempted.write(&metadata(id, &[name]));
        assert!(attempted.refusal().contains("no name for an output"), "{name}");
    }
}

#[test]
fn a_report_of_an_older_worker_is_published_and_a_hostile_machine_is_cut() {
    let attempted = attempted();
    let id = attempted.claim.id.as_str();
    let mut old = metadata(id, &["vm-disk0.qcow2"]);
    old["contractVersion"] = json!(1);
    attempted.write(&old);
    assert_eq!(attempted.finished().metadata.machines, []);

    let mut hostile = metadata(id, &["vm-disk0.qcow2"]);
    let machine = json!({
        "name": "a\nb\u{1b}[2J", "sockets": 0, "doubts": vec!["x".repeat(500); 100],
        "disks": [{"file": "x".repeat(300)}, {"file": "../canary", "bootOrder": 0}],
        "cards": vec![json!({"mac": "none"}); 100],
    });
    hostile["machines"] = json!(vec![machine; 20]);
    attempted.write(&hostile);
    let found = attempted.finished().metadata.machines;
    assert_eq!(found.len(), MAX_MACHINES);
    assert_eq!(found[0].name.as_deref(), Some("a b [2J"));
    assert_eq!((found[0].disks.len(), found[0].disks[0].boot_order, found[0].sockets), (1, None, None));
    assert!(found[0].cards.len() < 100 && found[0].doubts.len() < 100);
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

#[test]
fn the_one_complete_folder_is_found_without_its_name() {
    let attempted = attempted();
    let found =
        |name: &str| found_folder(&attempted.paths, &attempted.claim.id, Attempt::FIRST, name.to_owned()).unwrap();
    let beside = attempted.folder.with_file_name("disrupted");
    fs::create_dir(&beside).unwrap();
    assert_eq!([found(ONLY_FOLDER), found("other")], ["worker", "other"]);
    // Of two none is the one.
    fs::copy(attempted.folder.join(METADATA_FILE), beside.join(METADATA_FILE)).unwrap();
    assert_eq!(found(ONLY_FOLDER), ONLY_FOLDER);
    let inspection = inspect(&attempted.paths, &attempted.claim, Attempt::FIRST, ONLY_FOLDER).unwrap();
    let Inspection::Unpublishable(failure) = inspection else { panic!("{inspection:?}") };
    assert_eq!(failure.message, "attempt 1 left no folder that alone is complete");
    fs::remove_dir_all(attempted.folder.parent().unwrap()).unwrap();
    assert_eq!(found(ONLY_FOLDER), ONLY_FOLDER);
}
