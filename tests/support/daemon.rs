// SPDX-License-Identifier: Apache-2.0
//! A daemon of the built binaries on directories of its own, and queries for tests.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Deadline for what takes seconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Variable for the interval of looks at settling files, in milliseconds.
pub(crate) const LOOK_INTERVAL: &str = "HYPER2KVM_TEST_LOOK_INTERVAL_MS";

/// The normal interval: for tests about settling.
pub(crate) const EACH_SECOND: &[(&str, &str)] = &[(LOOK_INTERVAL, "1000")];

/// Queue and output directory, which outlive the daemons that work on them.
pub(crate) struct Site {
    pub dir: TempDir,
    config: std::cell::RefCell<String>,
    /// Port for `--listen` on loopback.
    pub listen: Option<u16>,
    starts: std::cell::Cell<u32>,
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon<'a> {
    site: &'a Site,
    pub child: Child,
    log: PathBuf,
}

impl Site {
    /// Directories, and a configuration that names them and has these lines of YAML.
    pub(crate) fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("queue")).unwrap();
        Self { dir, config: std::cell::RefCell::new(config.to_owned()), listen: None, starts: std::cell::Cell::new(0) }
    }

    /// Other lines of YAML, for daemons that start from now on.
    pub(crate) fn configure(&self, config: &str) {
        self.config.replace(config.to_owned());
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.dir.path().join("queue")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.dir.path().join("output")
    }

    /// Moves a file of this content into the queue directory in one step.
    pub(crate) fn drop_file(&self, name: &str, content: &[u8]) {
        let aside = self.dir.path().join("aside");
        fs::write(&aside, content).unwrap();
        fs::rename(aside, self.queue().join(name)).unwrap();
    }

    pub(crate) fn start(&self) -> Daemon<'_> {
        self.start_with(&[])
    }

    /// Starts a daemon and waits until it answers.
    pub(crate) fn start_with(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        let mut daemon = self.spawn(environment);
        until("the daemon answers", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon has ended:\n{}", daemon.log());
            daemon.try_ask("status").is_some()
        });
        daemon
    }

    pub(crate) fn spawn(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        self.spawn_with(&[], environment)
    }

    /// The same with further arguments.
    pub(crate) fn spawn_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon<'_> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
        command.args(["daemon"]).args(arguments).envs(environment.iter().copied());
        self.spawn_command(command).unwrap()
    }

    /// The same by a program that takes another as its last arguments; `None` where it is missing.
    pub(crate) fn spawn_by(&self, program: &str, arguments: &[&str]) -> Option<Daemon<'_>> {
        let mut command = Command::new(program);
        command.args(arguments).args([env!("CARGO_BIN_EXE_hyper2kvm"), "daemon"]);
        self.spawn_command(command)
    }

    fn spawn_command(&self, mut command: Command) -> Option<Daemon<'_>> {
        let start = self.starts.replace(self.starts.get() + 1);
        let log = self.dir.path().join(format!("log-{start}"));
        let config = self.write_config();
        if command.get_envs().all(|(name, _)| name != LOOK_INTERVAL) {
            command.env(LOOK_INTERVAL, "50");
        }
        let child = command
            .arg("--config")
            .arg(&config)
            .args(self.listen.map(|port| format!("--listen=127.0.0.1:{port}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .ok()?;
        Some(Daemon { site: self, child, log })
    }

    /// Writes the configuration as it is now, for a daemon to read, and returns its path.
    pub(crate) fn write_config(&self) -> PathBuf {
        let path = self.dir.path().join("daemon.yaml");
        let (queue, output) = (self.queue(), self.output());
        let config = self.config.borrow();
        // What lies there before the daemon has no writer that it could see.
        let quiet = if config.contains("quiet_period") { "" } else { "quiet_period: 0\n" };
        let (queue, output) = (queue.display(), output.display());
        fs::write(&path, format!("watch_dir: {queue}\noutput_dir: {output}\n{quiet}{config}\n")).unwrap();
        path
    }

    /// Base names in a directory below the site, sorted; none where it is not there.
    pub(crate) fn names(&self, below: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join(below)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Visible names in the queue directory.
    pub(crate) fn waiting(&self) -> Vec<String> {
        self.names("queue").into_iter().filter(|name| !name.starts_with('.')).collect()
    }

    /// Every file below the archive, by its base name.
    pub(crate) fn archived(&self) -> Vec<String> {
        files_below(&self.queue().join(".processed"))
    }

    /// Sources in `.errors/`, without their reports.
    pub(crate) fn in_errors(&self) -> Vec<String> {
        files_below(&self.queue().join(".errors")).into_iter().filter(|n| !n.ends_with(".error.json")).collect()
    }

    /// Published directories.
    pub(crate) fn published(&self) -> Vec<String> {
        let days = self.names("output").into_iter().filter(|name| !name.starts_with('.'));
        days.flat_map(|day| self.names(&format!("output/{day}"))).collect()
    }

    /// Every published disk, by its base name.
    pub(crate) fn disks(&self) -> Vec<String> {
        let mut disks: Vec<_> = self
            .names("output")
            .iter()
            .filter(|name| !name.starts_with('.'))
            .flat_map(|day| files_below(&self.output().join(day)))
            .filter(|name| Path::new(name).extension().is_some_and(|e| e != "json" && e != "xml"))
            .collect();
        disks.sort();
        disks
    }

    pub(crate) fn error_file(&self, name: &str) -> Value {
        let path = self.queue().join(format!(".errors/{name}.error.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

fn files_below(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names = Vec::new();
    for entry in entries.map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            names.extend(files_below(&entry.path()));
        } else {
            names.push(entry.file_name().into_string().unwrap());
        }
    }
    names.sort();
    names
}

impl Daemon<'_> {
    /// One request on a connection of its own.
    pub(crate) fn ask(&self, request: &str) -> Value {
        self.try_ask(request).expect("the daemon answers")
    }

    pub(crate) fn try_ask(&self, request: &str) -> Option<Value> {
        let answer = exchange(&self.site.output(), format!("{{\"command\":\"{request}\"}}").as_bytes())?;
        serde_json::from_slice(&answer).ok()
    }

    pub(crate) fn stats(&self) -> Value {
        self.ask("stats")["stats"].clone()
    }

    pub(crate) fn status(&self, key: &str) -> u64 {
        self.ask("status")[key].as_u64().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Lines of the log that contain this.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Children of any of the daemon's threads.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return Vec::new() };
        let children = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let of_all: Vec<String> = threads.filter_map(Result::ok).map(children).collect();
        of_all.iter().flat_map(|children| children.split_whitespace()).map(|child| child.parse().unwrap()).collect()
    }

    /// Waits for the daemon's own end.
    pub(crate) fn end_within(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < limit, "the daemon goes on after {limit:?}:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a condition; shows the log when it does not come.
    pub(crate) fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        let log = || self.log();
        wait(what, condition, log);
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // It has mostly ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends bytes, and returns all bytes of the answer.
pub(crate) fn exchange(output: &Path, request: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(output.join(".daemon/control.sock")).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(answer)
}

pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    wait(what, condition, String::new);
}

fn wait(what: &str, mut condition: impl FnMut() -> bool, log: impl Fn() -> String) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < SOON, "in vain: {what}\n{}", log());
        sleep(Duration::from_millis(20));
    }
}

/// For durations on an idle machine: one of three tries must succeed, because other work disturbs some; a program
/// that is too slow fails all three.
pub(crate) fn at_best(mut attempt: impl FnMut() -> Result<(), String>) {
    let missed: Vec<String> = (0..3).map_while(|_| attempt().err()).collect();
    assert!(missed.len() < 3, "each time: {missed:?}");
}

/// Time of a log line, in seconds.
pub(crate) fn second(line: &str) -> f64 {
    let stamp = line.split_whitespace().next().unwrap();
    let time: jiff::Timestamp = stamp.parse().unwrap();
    time.as_duration().as_secs_f64()
}

/// A small disk that differs by `n`.
pub(crate) fn disk(n: u8) -> Vec<u8> {
    let mut content = vec![0; 64 << 10];
    content[4096..8192].fill(n.wrapping_add(1));
    content
}
