// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::conversion::guest::fix::{Change, FixedKernel, GuestFix, Outcome, Root, Unfixed};
use crate::conversion::guest::{Doubt, FixKind, OperatingSystem};

fn job() -> Job {
    Job {
        version: VERSION,
        disks: vec![JobDisk { serial: "disk0".into() }, JobDisk { serial: "disk1".into() }],
        guest_names: GuestNames::Leave,
        drivers: vec![Driver {
            name: "viostor".into(),
            from: "viostor/w10/amd64".into(),
            files: vec!["viostor.inf".into()],
        }],
        cards: vec![Card { mac: Some("00:50:56:01:02:03".into()) }, Card { mac: None }],
        limits: Limits::default(),
    }
}

fn inf() -> DriverFile {
    DriverFile { driver: "viostor".into(), name: "viostor.inf".into(), content: b"[Version]".to_vec() }
}

fn fixed() -> GuestFix {
    GuestFix {
        outcome: Outcome::Fixed,
        os: Some(OperatingSystem { id: "debian".into(), ..OperatingSystem::default() }),
        root: Some(Root { volume: "disk 0 partition 1".into(), content: "ext4".into() }),
        kernels: vec![FixedKernel { version: "6.1".into(), initramfs: "/boot/i".into(), ..FixedKernel::default() }],
        changes: vec![Change { fix: FixKind::DeviceNames, file: "/etc/fstab".into(), backup: None }],
        ..GuestFix::default()
    }
}

fn unfixed() -> GuestFix {
    GuestFix { reason: Some(Unfixed::GuestNoSpace), message: Some("/boot is full.".into()), ..GuestFix::default() }
}

fn read(bytes: &[u8]) -> Result<GuestFix, Error> {
    let mut answer = Answer::default();
    answer.push(bytes)?;
    answer.finish()
}

#[test]
fn a_job_is_read_as_it_was_written() {
    let archive = job_archive(&job(), &[inf()]).unwrap();
    let text = String::from_utf8_lossy(&archive);
    let start = text.find('{').unwrap();
    let end = text.rfind('}').unwrap();
    assert_eq!(Job::parse(&text.as_bytes()[start..=end]).unwrap(), job());
    let least = Job::parse(br#"{"version":2,"disks":[{"serial":"a"}]}"#).unwrap();
    assert_eq!((least.guest_names, least.cards.len(), least.limits), (GuestNames::Keep, 0, Limits::default()));
}

#[test]
fn a_job_that_cannot_be_done_is_refused() {
    let long = "x".repeat(MAX_SERIAL + 1);
    let driver = |name: &str, file: &str| {
        let driver = format!(r#"{{"name":"{name}","from":"","files":["{file}"]}}"#);
        format!(r#"{{"version":2,"disks":[{{"serial":"a"}}],"drivers":[{driver}]}}"#)
    };
    for (json, expected) in [
        ("nothing".to_owned(), "the job is not JSON of the expected form"),
        (r#"{"version":1,"new":1}"#.into(), "the job has version 1"),
        (r#"{"version":2,"disks":[]}"#.into(), "the job names 0 disks"),
        (r#"{"version":2,"disks":[{"serial":"a"}],"more":1}"#.into(), "the job is not JSON"),
        (r#"{"version":2,"disks":[{"serial":"a"},{"serial":"a"}]}"#.into(), r#""a" is no serial number"#),
        (format!(r#"{{"version":2,"disks":[{{"serial":"{long}"}}]}}"#), "is no serial number"),
        (r#"{"version":2,"disks":[{"serial":"a b"}]}"#.into(), "is no serial number"),
        (r#"{"version":2,"disks":[{"serial":"a"}],"cards":[{"mac":"00:50"}]}"#.into(), "is no MAC address"),
        (driver("../x", "a.inf"), "is no driver that a job may have"),
        (driver("x", "../../init"), "is no driver that a job may have"),
        (driver("x", ".inf"), "is no driver that a job may have"),
        (driver("x", "A.INF"), "is no driver that a job may have"),
    ] {
        let error = Job::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
}

#[test]
fn a_job_without_the_files_of_its_drivers_is_not_packed() {
    assert!(matches!(job_archive(&job(), &[]), Err(JobError::Driver(name)) if name == "viostor/viostor.inf"));
    let large = DriverFile { content: vec![0; 33 << 20], ..inf() };
    assert!(matches!(job_archive(&job(), &[large]), Err(JobError::DriverBytes(_))));
}

#[test]
fn an_answer_is_read_in_pieces_of_any_size() {
    for report in [fixed(), unfixed(), GuestFix { outcome: Outcome::NotAGuest, ..GuestFix::default() }] {
        let bytes = [step_line(Step::Start, 10), step_line(Step::Apply, 20), report_line(report.clone())].concat();
        // A terminal turns the end of a line into two characters.
        let bytes = String::from_utf8(bytes).unwrap().replace('\n', "\r\n").into_bytes();
        for size in [1, 7, 64, bytes.len()] {
            let mut answer = Answer::default();
            let steps: Vec<_> = bytes.chunks(size).filter_map(|piece| answer.push(piece).unwrap()).collect();
            assert_eq!(steps.last(), Some(&Step::Apply));
            assert!(answer.is_complete());
            assert_eq!(answer.finish().unwrap(), report);
        }
    }
}

#[test]
fn an_answer_that_lies_is_refused() {
    let with = |change: fn(&mut GuestFix)| {
        let mut report = fixed();
        change(&mut report);
        let line = serde_json::to_vec(&Line::Report(Box::new(report))).unwrap();
        [line, b"\n".to_vec()].concat()
    };
    let twice = [report_line(fixed()), report_line(fixed())].concat();
    let open = [report_line(fixed()), b"x".to_vec()].concat();
    let steps = step_line(Step::Apply, 1).repeat(MAX_ANSWER / 20);
    let deep = [b"[".repeat(60_000), b"\n".to_vec()].concat();
    for (bytes, expected) in [
        (Vec::new(), "ends without a report"),
        (step_line(Step::Start, 1), "ends without a report"),
        (report_line(fixed())[..40].to_vec(), "ends without a report"),
        (b"\xFF\n".to_vec(), "line 1 of the answer"),
        (b"\n\n{\"other\":1}\n".to_vec(), "line 3 of the answer"),
        (b"{\"report\":{\"outcome\":\"fixed\",\"more\":1}}\n".to_vec(), "line 1 of the answer"),
        (deep, "line 1 of the answer"),
        (twice, "goes on after its report"),
        (open, "goes on after its report"),
        (steps, "more than 65536 bytes"),
        (b"{".repeat(MAX_ANSWER + 1), "more than 65536 bytes"),
        (with(|report| report.reason = Some(Unfixed::GuestEncrypted)), "a reason belongs"),
        (with(|report| report.outcome = Outcome::Unfixed), "a reason belongs"),
        (with(|report| report.outcome = Outcome::NothingToDo), "changes belong"),
        (with(|report| report.changes.clear()), "changes belong"),
        (with(|report| report.changes[0].file = "a\u{1b}[2J".into()), "control characters"),
        (with(|report| report.changes[0].backup = Some("x".repeat(300))), "too long"),
        (with(|report| report.os.as_mut().unwrap().name = "a\nb".into()), "control characters"),
        (with(|report| report.kernels = vec![FixedKernel::default(); 200]), "more elements"),
    ] {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_report_that_is_too_long_is_cut_and_says_so() {
    let mut report = fixed();
    report.changes = vec![Change { file: "é".repeat(256), ..report.changes[0].clone() }; 120];
    report.left = vec![Doubt { what: "x".repeat(256), why: "y".repeat(256) }; 127];
    let line = report_line(report);
    assert!(line.len() <= MAX_ANSWER - 4096, "{}", line.len());
    let read = read(&line).unwrap();
    assert!(read.changes.len() > 20, "{}", read.changes.len());
    assert_eq!(read.left.last().unwrap().what, "report");
    let mut many = fixed();
    many.changes = vec![many.changes[0].clone(); 200];
    assert_eq!(self::read(&report_line(many)).unwrap().left.last().unwrap().what, "report");
}
