// SPDX-License-Identifier: Apache-2.0
//! One run of the appliance: overlays over the disks, QEMU, its answer, and the merge.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::accelerator::Runner;
use super::error::FixError;
use super::map::{self, Change, MAX_ANSWER};
use super::programs::{MAX_SAID, Programs, QEMU, QEMU_IMG, SANDBOX, said};
use crate::appliance::protocol::{self, Answer, DriverFile, Job, MAX_DISKS, job_archive};
use crate::conversion::guest::fix::GuestFix;
use crate::conversion::report::DiskReport;
use crate::conversion::target::DiskTarget;

/// Directory of the overlays and of what else QEMU gets, in the disks' directory.
const PLACE: &str = "fix.tmp";
/// Longest silence of the appliance: ten times what a step takes without KVM on a busy machine.
const SILENCE: Duration = Duration::from_secs(120);
/// Longest run: an attempt without progress is ended after ten minutes.
const MOST: Duration = Duration::from_secs(540);
/// How long it may take to end once it has answered.
const ENDING: Duration = Duration::from_secs(30);
/// How often an interruption is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Memory of the appliance in MiB, and of what QEMU translates.
const MEMORY_MIB: u32 = 384;
const TRANSLATED_MIB: u32 = 64;
/// Longest initrd that is read. `appliance build` makes none that unpacks to more.
const MAX_INITRD: u64 = 128 << 20;

/// Overlays over disks, gone when this is dropped.
pub(in crate::worker) struct Overlays<'a> {
    pub(super) programs: &'a Programs,
    pub(super) place: PathBuf,
    pub(super) disks: Vec<Overlay<'a>>,
}

/// A disk in a target, the overlay that has the bytes of its changes, and where those are.
pub(in crate::worker) type Changed<'a> = (&'a DiskReport, File, Vec<Change>);

pub(super) struct Overlay<'a> {
    pub(super) base: PathBuf,
    pub(super) report: &'a DiskReport,
    pub(super) path: PathBuf,
}

impl Drop for Overlays<'_> {
    fn drop(&mut self) {
        // What stays is waste, which the attempt's folder is cleared of.
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// The serial number of disk `n`.
pub(in crate::worker) fn serial(n: usize) -> String {
    format!("hyper2kvm-{n}")
}

fn no_appliance(path: &Path, error: io::Error) -> FixError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FixError::NoAppliance(path.to_owned()),
        _ => FixError::Appliance(path.to_owned(), error),
    }
}

impl<'a> Overlays<'a> {
    /// Makes an overlay over each disk in `directory`.
    pub(in crate::worker) fn make(
        programs: &'a Programs,
        directory: &Path,
        disks: Vec<&'a DiskReport>,
    ) -> Result<Self, FixError> {
        if disks.len() > MAX_DISKS {
            return Err(FixError::TooManyDisks(disks.len()));
        }
        programs.check()?;
        let directory = std::path::absolute(directory).map_err(FixError::Work)?;
        let place = directory.join(PLACE);
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FixError::Work(error)),
            _ => fs::create_dir(&place).map_err(FixError::Work)?,
        }
        let overlay = |(n, report): (usize, &'a DiskReport)| Overlay {
            base: report.target.as_ref().map_or_else(|| directory.join(&report.file), DiskTarget::unfinished),
            report,
            path: place.join(format!("{n}.qcow2")),
        };
        let overlays =
            Self { programs, disks: disks.into_iter().enumerate().map(overlay).collect(), place: place.clone() };
        for disk in &overlays.disks {
            File::create_new(&disk.path).map_err(FixError::Work)?;
            let size = disk.report.virtual_size_bytes.to_string();
            let arguments = ["create", "-q", "-f", "qcow2", &text(&disk.path), &size].map(str::to_owned);
            finish(programs, arguments.to_vec(), Vec::new(), vec![disk.path.clone()])?;
        }
        Ok(overlays)
    }

    /// Runs the appliance on the overlays, and returns what it says.
    pub(in crate::worker) fn run(
        &self,
        job: &Job,
        drivers: &[DriverFile],
        is_interrupted: impl Fn() -> bool,
    ) -> Result<GuestFix, FixError> {
        let kernel = self.programs.appliance.join("vmlinuz");
        fs::metadata(&kernel).map_err(|e| no_appliance(&kernel, e))?;
        let initrd = self.initrd(job, drivers)?;
        let writable = self.disks.iter().map(|disk| disk.path.clone()).collect();
        let readable = self.disks.iter().map(|disk| disk.base.clone()).chain([initrd.clone()]).collect();
        let runner = self.programs.runner(&is_interrupted)?;
        let mut command = self.programs.command(QEMU, self.arguments(runner, &kernel, &initrd), readable, writable)?;
        let mut qemu = command.spawn().map_err(|e| FixError::Start(QEMU, e))?;
        let heard = listen(&mut qemu, is_interrupted);
        if heard.is_err() {
            let _ = qemu.kill();
        }
        let ended = qemu.wait().map_err(|e| FixError::Start(QEMU, e))?;
        let complaint = qemu.stderr.as_mut().map(|stderr| said(stderr, MAX_SAID)).unwrap_or_default();
        match heard {
            // It died before the appliance had answered, and says itself why.
            Err(FixError::Answer(protocol::Error::NoReport)) if !ended.success() && !complaint.is_empty() => {
                Err(FixError::Program { program: QEMU, status: ended, said: complaint })
            }
            Err(error) => Err(error),
            Ok(_) if !ended.success() => Err(FixError::Program { program: QEMU, status: ended, said: complaint }),
            Ok(fix) => Ok(fix),
        }
    }

    /// The appliance's initrd with the job behind it.
    fn initrd(&self, job: &Job, drivers: &[DriverFile]) -> Result<PathBuf, FixError> {
        let source = self.programs.appliance.join("initrd");
        let mut bytes = Vec::new();
        File::open(&source)
            .and_then(|file| file.take(MAX_INITRD + 1).read_to_end(&mut bytes))
            .map_err(|e| no_appliance(&source, e))?;
        if bytes.len() as u64 > MAX_INITRD {
            return Err(FixError::LargeAppliance { path: source, most_mib: MAX_INITRD >> 20 });
        }
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let path = self.place.join("initrd");
        let mut file = File::create_new(&path).map_err(FixError::Work)?;
        file.write_all(&bytes)
            .and_then(|()| file.write_all(&job_archive(job, drivers).map_err(io::Error::other)?))
            .map_err(FixError::Work)?;
        Ok(path)
    }

    fn arguments(&self, runner: Runner, kernel: &Path, initrd: &Path) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(str::to_owned).into();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("-sandbox", SANDBOX.to_owned());
        add("-machine", "q35".to_owned());
        for (name, value) in runner.arguments(TRANSLATED_MIB) {
            add(name, value);
        }
        add("-m", MEMORY_MIB.to_string());
        add("-kernel", text(kernel));
        add("-initrd", text(initrd));
        add("-append", "console=ttyS0 quiet panic=-1".to_owned());
        add("-serial", "null".to_owned());
        add("-chardev", "stdio,id=answer,signal=off".to_owned());
        add("-serial", "chardev:answer".to_owned());
        for (n, disk) in self.disks.iter().enumerate() {
            let mut node = disk.node(true);
            node["node-name"] = json!(format!("disk{n}"));
            add("-blockdev", node.to_string());
            add("-device", format!("virtio-blk-pci,drive=disk{n},serial={}", serial(n)));
        }
        arguments
    }

    /// Bytes that a merge may add to each disk.
    pub(in crate::worker) fn bytes(&self) -> impl Iterator<Item = (&'a DiskReport, u64)> + '_ {
        use std::os::unix::fs::MetadataExt as _;
        let size =
            |disk: &Overlay<'_>| fs::metadata(&disk.path).map_or(u64::MAX, |found| found.blocks().saturating_mul(512));
        self.disks.iter().map(move |disk| (disk.report, size(disk)))
    }

    /// What each overlay changes in a disk that lies in a target, with the file that has the changes' bytes.
    pub(in crate::worker) fn changes(&self) -> Result<Vec<Changed<'a>>, FixError> {
        let in_targets = self.disks.iter().filter(|disk| disk.report.target.is_some());
        in_targets.map(|disk| disk.changes(self.programs)).collect()
    }

    /// Merges every overlay over a file beside the report into that, and syncs it. After an error the disks are neither
    /// what they were nor what they were to become.
    pub(in crate::worker) fn merge(&self) -> Result<(), FixError> {
        for disk in self.disks.iter().filter(|disk| disk.report.target.is_none()) {
            let image = format!("json:{}", disk.node(false));
            let arguments = vec!["commit".to_owned(), "-q".to_owned(), image];
            finish(self.programs, arguments, Vec::new(), vec![disk.path.clone(), disk.base.clone()])?;
            File::open(&disk.base).and_then(|file| file.sync_all()).map_err(FixError::Work)?;
        }
        Ok(())
    }
}

impl<'a> Overlay<'a> {
    fn changes(&self, programs: &Programs) -> Result<Changed<'a>, FixError> {
        let alone =
            json!({"driver": "qcow2", "file": {"driver": "file", "filename": text(&self.path)}, "backing": null});
        let arguments = vec!["map".to_owned(), "--output=json".to_owned(), format!("json:{alone}")];
        let answer = answer(programs, arguments, vec![self.path.clone()], Vec::new())?;
        let file = File::open(&self.path).map_err(FixError::Work)?;
        let bytes = file.metadata().map_err(FixError::Work)?.len();
        let changes = map::read(&answer, self.report.virtual_size_bytes, bytes)?;
        Ok((self.report, file, changes))
    }

    /// The overlay with its disk behind it, as QEMU opens them: no name is looked for in any file.
    pub(super) fn node(&self, is_read_only_below: bool) -> Value {
        let file = |path: &Path| json!({"driver": "file", "filename": text(path)});
        let mut base = json!({"driver": self.report.format.as_str(), "file": file(&self.base)});
        if let Some(DiskTarget::Path(_)) = self.report.target {
            base["file"]["driver"] = json!("host_device");
        }
        if is_read_only_below {
            base["read-only"] = json!(true);
        }
        json!({"driver": "qcow2", "file": file(&self.path), "backing": base})
    }
}

/// A path as QEMU takes it: absolute, so that no colon in it is taken for a protocol.
pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs `qemu-img` to its end.
fn finish(
    programs: &Programs,
    arguments: Vec<String>,
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
) -> Result<(), FixError> {
    answer(programs, arguments, readable, writable).map(|_| ())
}

/// The same for what it says on its standard output, up to [`MAX_ANSWER`] bytes.
fn answer(
    programs: &Programs,
    arguments: Vec<String>,
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
) -> Result<Vec<u8>, FixError> {
    let mut command = programs.command(QEMU_IMG, arguments, readable, writable)?;
    let failed = |e| FixError::Start(QEMU_IMG, e);
    let mut child = command.spawn().map_err(failed)?;
    let mut answer = Vec::new();
    // A longer one ends in the middle, and the program by a pipe that nobody reads.
    let stdout = child.stdout.take().expect("it is piped");
    stdout.take(MAX_ANSWER).read_to_end(&mut answer).map_err(failed)?;
    let said = child.stderr.as_mut().map(|stderr| said(stderr, MAX_SAID)).unwrap_or_default();
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(answer) } else { Err(FixError::Program { program: QEMU_IMG, status, said }) }
}

/// Takes the appliance's answer until it has ended.
fn listen(qemu: &mut Child, is_interrupted: impl Fn() -> bool) -> Result<GuestFix, FixError> {
    let mut stdout = qemu.stdout.take().expect("it is piped");
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(4);
    // Ends with QEMU, or with the receiver.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    let start = Instant::now();
    let mut answer = Answer::default();
    let (mut last, mut patience) = (start, SILENCE);
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(bytes) => {
                if let Some(step) = answer.push(&bytes)? {
                    tracing::debug!(?step, ms = start.elapsed().as_millis(), "the appliance goes on");
                    last = Instant::now();
                }
                if answer.is_complete() && patience == SILENCE {
                    (last, patience) = (Instant::now(), ENDING);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(answer.finish()?),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if is_interrupted() {
            return Err(FixError::Interrupted);
        }
        if last.elapsed() > patience {
            return Err(FixError::Silent(patience.as_secs()));
        }
        if start.elapsed() > MOST {
            return Err(FixError::Late(MOST.as_secs()));
        }
    }
}
