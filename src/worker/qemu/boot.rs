// SPDX-License-Identifier: Apache-2.0
//! Tries whether a guest boots: runs its machine on overlays that are thrown away, and watches it by QMP.
//!
//! Here, unlike in a fix, the guest's own code runs. Whatever QEMU says may come from it: lines and their number are
//! bounded, and nothing of them is kept but counters.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::accelerator::Runner;
use super::devices::{card_count, cards, disks, dump};
use super::error::{CheckError, FixError};
use super::firmware::efi;
use super::programs::{MAX_SAID, Programs, QEMU, SANDBOX, said};
use super::run::{Overlays, text};
use crate::conversion::emit::Trial;
use crate::conversion::guest::boot::{BootReport, Seen, Watch};
use crate::conversion::machine::Firmware;
use crate::conversion::report::DiskReport;

/// Most memory of a machine in MiB: enough for any system to start, not for what it serves.
const MOST_MEMORY_MIB: u64 = 1024;
const MOST_MEMORY_OF_WINDOWS_MIB: u64 = 2048;
/// MiB for what QEMU translates.
const TRANSLATED_MIB: u32 = 128;
/// How often the counters are asked for.
const POLL: Duration = Duration::from_millis(250);
/// Longest silence of QEMU itself, which answers while its guest runs.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest line that QEMU may say: the counters of two dozen disks take a tenth.
const MAX_LINE: u64 = 1 << 20;
/// Length of the head of a file of frames (pcap).
const FRAMES_HEAD: u64 = 24;

/// Runs the machine on overlays over its `disks`, which are in the trial's order, for at most `limit`.
///
/// # Errors
/// Why it could not be tried, or `Interrupted`.
pub(in crate::worker) fn check(
    programs: &Programs,
    directory: &Path,
    (trial, reports): (&Trial, Vec<&DiskReport>),
    limit: Duration,
    is_interrupted: impl Fn() -> bool,
) -> Result<BootReport, CheckError> {
    let overlays = Overlays::make(programs, directory, reports)?;
    let runner = programs.runner(&is_interrupted)?;
    let (arguments, files) = arguments(trial, &overlays, runner)?;
    let readable = overlays.disks.iter().map(|disk| disk.base.clone()).collect();
    let writable = overlays.disks.iter().map(|disk| disk.path.clone()).chain(files.all()).collect();
    let mut command = programs.command(QEMU, arguments, readable, writable)?;
    let mut qemu = command.stdin(Stdio::piped()).spawn().map_err(|e| FixError::Start(QEMU, e))?;
    let mut monitor = Monitor::of(&mut qemu);
    let mut watch = Watch::new(trial.firmware, !files.frames.is_empty(), limit.as_millis().try_into().unwrap_or(0));
    let judged = monitor.judge(&mut watch, &files.frames, is_interrupted);
    // Whatever it still does goes into overlays.
    let _ = qemu.kill();
    let ended = qemu.wait().map_err(|e| FixError::Start(QEMU, e))?;
    match judged {
        Ok(Some(report)) => Ok(BootReport { accelerator: Some(runner.as_str().to_owned()), ..report }),
        Ok(None) => {
            let said = qemu.stderr.as_mut().map(|stderr| said(stderr, MAX_SAID)).unwrap_or_default();
            Err(FixError::Program { program: QEMU, status: ended, said }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Files beside the overlays that QEMU writes to.
struct Files {
    /// One for each card.
    frames: Vec<PathBuf>,
    /// EFI's variables.
    variables: Option<PathBuf>,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = PathBuf> {
        self.frames.iter().chain(&self.variables).cloned()
    }
}

fn arguments(trial: &Trial, overlays: &Overlays<'_>, runner: Runner) -> Result<(Vec<String>, Files), CheckError> {
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown"].map(str::to_owned).into();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("-sandbox", SANDBOX.to_owned());
    add("-machine", trial.machine.clone());
    for (name, value) in runner.arguments(TRANSLATED_MIB) {
        add(name, value);
    }
    let most = if trial.is_windows { MOST_MEMORY_OF_WINDOWS_MIB } else { MOST_MEMORY_MIB };
    add("-m", trial.memory_mib.min(most).to_string());
    if let Some(uuid) = &trial.uuid {
        add("-uuid", uuid.clone());
    }
    add("-rtc", if trial.is_windows { "base=localtime" } else { "base=utc" }.to_owned());
    add("-chardev", "stdio,id=monitor,signal=off".to_owned());
    add("-mon", "chardev=monitor,mode=control".to_owned());
    add("-serial", "null".to_owned());
    add("-device", "VGA".to_owned());
    let mut variables = None;
    if trial.firmware == Firmware::Efi {
        let [code, empty] = efi().ok_or(CheckError::NoFirmware)?;
        let copy = overlays.place.join("variables");
        // Read and written: what the package has may be for root alone to write, and so would be a copy of its mode.
        fs::read(empty).and_then(|bytes| fs::write(&copy, bytes)).map_err(FixError::Work)?;
        let flash = |name: &str, file: &Path, is_read_only: bool| {
            let file = json!({"driver": "file", "filename": text(file)});
            json!({"driver": "raw", "node-name": name, "read-only": is_read_only, "file": file}).to_string()
        };
        add("-blockdev", flash("code", &code, true));
        add("-blockdev", flash("variables", &copy, false));
        add("-machine", "pflash0=code,pflash1=variables".to_owned());
        variables = Some(copy);
    }
    let frames: Vec<PathBuf> = (0..card_count(trial)).map(|n| overlays.place.join(dump(n))).collect();
    for file in &frames {
        File::create_new(file).map_err(FixError::Work)?;
    }
    arguments.extend(disks(trial, &overlays.disks)?);
    arguments.extend(cards(trial, &frames));
    Ok((arguments, Files { frames, variables }))
}

/// QEMU's monitor (QMP: a JSON object a line, both ways).
struct Monitor {
    commands: ChildStdin,
    lines: Receiver<Vec<u8>>,
    start: Instant,
    seen: Seen,
}

impl Monitor {
    fn of(qemu: &mut Child) -> Self {
        let commands = qemu.stdin.take().expect("it is piped");
        let stdout = qemu.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::sync_channel(4);
        // Ends with QEMU, or with the receiver.
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                let read = stdout.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
                if !matches!(read, Ok(1..)) || sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { commands, lines, start: Instant::now(), seen: Seen::default() }
    }

    fn say(&mut self, command: &Value) {
        // Where it has ended, its silence says so.
        let _ = writeln!(self.commands, "{command}");
    }

    /// Watches until there is a verdict; `None` where QEMU ended by itself.
    fn judge(
        &mut self,
        watch: &mut Watch,
        frames: &[PathBuf],
        is_interrupted: impl Fn() -> bool,
    ) -> Result<Option<BootReport>, FixError> {
        self.say(&json!({"execute": "qmp_capabilities"}));
        let mut is_asked = true;
        let (mut last, mut asked) = (self.start, self.start);
        loop {
            match self.lines.recv_timeout(POLL) {
                Ok(line) => {
                    last = Instant::now();
                    if take(&mut self.seen, &line)? {
                        is_asked = false;
                        self.look_for_frames(frames);
                        self.seen.at_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
                        if let Some(report) = watch.look(&self.seen) {
                            return Ok(Some(report));
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if is_interrupted() {
                return Err(FixError::Interrupted);
            }
            if last.elapsed() > SILENCE {
                return Err(FixError::Mute(SILENCE.as_secs()));
            }
            if !is_asked && asked.elapsed() >= POLL {
                self.say(&json!({"execute": "query-blockstats"}));
                (is_asked, asked) = (true, Instant::now());
            }
        }
    }

    /// Sees whether a frame was sent, and lets no more be kept.
    fn look_for_frames(&mut self, frames: &[PathBuf]) {
        let has_one = |file: &PathBuf| fs::metadata(file).is_ok_and(|found| found.len() > FRAMES_HEAD);
        if self.seen.has_sent || !frames.iter().any(has_one) {
            return;
        }
        self.seen.has_sent = true;
        for n in 0..frames.len() {
            self.say(&json!({"execute": "object-del", "arguments": {"id": dump(n)}}));
        }
    }
}

/// Takes a line of the monitor: whether it answers a command.
fn take(seen: &mut Seen, line: &[u8]) -> Result<bool, FixError> {
    let line: Value = serde_json::from_slice(line).map_err(FixError::Protocol)?;
    if let Some(error) = line.get("error") {
        return Err(FixError::Refused(error["desc"].as_str().unwrap_or_default().chars().take(200).collect()));
    }
    match line["event"].as_str() {
        Some("RESET") => seen.resets = seen.resets.saturating_add(1),
        Some("SHUTDOWN") if line["data"]["guest"] == true => seen.is_off = true,
        _ => {}
    }
    let Some(answer) = line.get("return") else { return Ok(false) };
    if let Some(devices) = answer.as_array() {
        let sum = |name: &str| {
            let of = |device: &Value| device["stats"][name].as_u64().unwrap_or(0);
            devices.iter().filter(|device| is_disk(device)).map(of).fold(0, u64::saturating_add)
        };
        seen.reads = sum("rd_operations");
        seen.writes = sum("wr_operations");
        seen.written_bytes = sum("wr_bytes");
        seen.flushes = sum("flush_operations");
    }
    Ok(true)
}

/// The store of EFI's variables is no disk.
fn is_disk(device: &Value) -> bool {
    device["node-name"].as_str().is_some_and(|name| name.starts_with("disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_disks_are_summed_and_events_counted() {
        let mut seen = Seen::default();
        let stats = |node: &str, writes: u64| {
            json!({"node-name": node, "stats": {
                "rd_operations": 5, "wr_operations": writes, "wr_bytes": 512, "flush_operations": 1,
            }})
        };
        let counters = json!({"return": [stats("disk0", 2), stats("variables", 9), stats("disk1", 3)]});
        for (line, is_answer) in [
            (json!({"QMP": {"version": {}, "capabilities": []}}), false),
            (json!({"return": {}}), true),
            (json!({"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}), false),
            (counters, true),
        ] {
            assert_eq!(take(&mut seen, line.to_string().as_bytes()).unwrap(), is_answer, "{line}");
        }
        let expected = Seen { reads: 10, writes: 5, written_bytes: 1024, flushes: 2, resets: 1, ..Seen::default() };
        assert_eq!(seen, expected);
        let off = json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}});
        take(&mut seen, off.to_string().as_bytes()).unwrap();
        assert!(seen.is_off);
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        let mut seen = Seen::default();
        for line in ["", "hello", "{\"return\": ", &"[".repeat(100_000)] {
            assert!(matches!(take(&mut seen, line.as_bytes()), Err(FixError::Protocol(_))));
        }
        let refused = take(&mut seen, br#"{"error": {"class": "GenericError", "desc": "no such object"}}"#);
        assert_eq!(refused.unwrap_err().to_string(), "QEMU refuses a command: no such object");
        assert!(
            take(&mut seen, br#"{"return": [{"node-name": "disk0", "stats": {"wr_operations": -1}}, 5]}"#).unwrap()
        );
        assert_eq!(seen, Seen::default());
    }
}
