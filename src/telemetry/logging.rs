// SPDX-License-Identifier: Apache-2.0
//! Log lines: to stderr, and to a file where one is configured.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, registry, reload};

use crate::conversion::{printable, printable_json};

/// Libraries that transmit secrets: logged only from warnings up, at any verbosity.
const DISCREET: [&str; 8] = ["h2", "hyper", "hyper_util", "kube_client", "lettre", "reqwest", "rustls", "tower"];

/// Shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged, in which shape, and where to besides stderr.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub format: LogFormat,
    /// Lines are appended to it; its directory is created. [`Log::reopen`] opens it anew once it was
    /// renamed.
    pub file: Option<PathBuf>,
    /// 0 what changes and what fails, 1 and 2 more for debugging, 3 everything.
    pub verbose: u8,
}

/// Why logging can't begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot write the log file {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A directory is made for a log file only at the start: later, one that is missing was taken away.
    #[error("the directory {directory} of the log file {path} is missing; make it, or set another log_file")]
    NoDirectory { directory: PathBuf, path: PathBuf },
    #[error("logging was set up before")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// What may change of a process' log while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    targets: reload::Handle<Targets, Registry>,
    /// The log file that is written to, where there is one.
    file: Option<Arc<Mutex<Arc<File>>>>,
    /// Whether `RUST_LOG` decides what is logged.
    is_fixed: bool,
}

impl Log {
    /// Writes to the file at `path` from now on: another one, or a new one after the old was renamed. Its directory must
    /// exist. Does nothing for a log without a file.
    pub fn reopen(&self, path: &Path) -> Result<(), LogError> {
        if let Some(file) = &self.file {
            if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
                return Err(LogError::NoDirectory { directory: directory.to_owned(), path: path.to_owned() });
            }
            let opened = append(path)?;
            *file.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(opened);
        }
        Ok(())
    }

    /// Logs so much from now on, unless `RUST_LOG` decides.
    pub fn set_verbose(&self, verbose: u8) {
        if !self.is_fixed && self.targets.reload(verbosity(verbose)).is_err() {
            tracing::warn!("the log is gone");
        }
    }
}

/// Starts logging for this process; call it once. `RUST_LOG` (`target=level,…`) wins over `verbose`.
pub fn init(options: &LogOptions) -> Result<Log, LogError> {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let told = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let is_fixed = told.is_some();
    let targets = told.unwrap_or_else(|| verbosity(options.verbose));
    let (dispatch, log) = dispatch(options, targets, io::stderr, colours)?;
    dispatch.try_init()?;
    Ok(Log { is_fixed, ..log })
}

/// Which events are logged.
fn verbosity(verbose: u8) -> Targets {
    let (ours, others) = match verbose {
        0 => (LevelFilter::INFO, LevelFilter::WARN),
        1 => (LevelFilter::DEBUG, LevelFilter::WARN),
        2 => (LevelFilter::TRACE, LevelFilter::INFO),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    let discreet = DISCREET.map(|target| (target, LevelFilter::WARN));
    Targets::new().with_default(others).with_target("hyper2kvm", ours).with_targets(discreet)
}

fn dispatch<W>(options: &LogOptions, targets: Targets, writer: W, colours: bool) -> Result<(Dispatch, Log), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let file = options.file.as_deref().map(create).transpose()?.map(|file| Arc::new(Mutex::new(Arc::new(file))));
    let current =
        |file: Arc<Mutex<Arc<File>>>| move || Arc::clone(&file.lock().unwrap_or_else(PoisonError::into_inner));
    let to_file = file.clone().map(|file| layer(options, current(file), false));
    let layers: Vec<_> = [Some(layer(options, writer, colours)), to_file].into_iter().flatten().collect();
    let (targets, handle) = reload::Layer::new(targets);
    let log = Log { targets: handle, file, is_fixed: false };
    Ok((registry().with(layers.with_filter(targets)).into(), log))
}

fn layer<S, W>(options: &LogOptions, writer: W, colours: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A line that can't be written is lost: a report on stderr would panic if stderr itself is gone.
    let layer = fmt::layer().log_internal_errors(false).with_target(options.verbose >= 2);
    match options.format {
        LogFormat::Text => {
            let fields = debug_fn(|writer, field, value| field_text(writer, field.name(), &format!("{value:?}")));
            layer.with_writer(writer).with_ansi(colours).fmt_fields(fields.delimited(" ")).boxed()
        }
        LogFormat::Json => layer.with_writer(EscapedJson(writer)).json().flatten_event(true).boxed(),
    }
}

/// A field of a line, the message without its name. A file may have any name: one with a line break must not look
/// like a line of ours, and one with an escape sequence must not reach the terminal.
fn field_text(writer: &mut Writer<'_>, name: &str, value: &str) -> std::fmt::Result {
    if name != "message" {
        write!(writer, "{name}=")?;
    }
    writer.write_str(&printable(value))
}

/// A writer of lines of JSON that escapes what a terminal would obey: JSON itself escapes only some of it.
struct EscapedJson<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for EscapedJson<W> {
    type Writer = EscapedJson<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapedJson(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for EscapedJson<W> {
    /// Receives a whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable_json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Opens a log file, and makes its directory.
fn create(path: &Path) -> Result<File, LogError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| LogError::File { path: path.to_owned(), source })?;
    }
    append(path)
}

fn append(path: &Path) -> Result<File, LogError> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.map_err(|source| LogError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The content of the log file after `tell` ran with these options.
    fn logged(format: LogFormat, verbose: u8, tell: impl FnOnce()) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("new/daemon.log");
        let options = LogOptions { format, file: Some(file.clone()), verbose };
        let (dispatch, _) = dispatch(&options, verbosity(verbose), io::sink, false).unwrap();
        tracing::dispatcher::with_default(&dispatch, tell);
        fs::read_to_string(file).unwrap()
    }

    #[test]
    fn a_line_of_text_has_time_level_message_and_fields() {
        let text = logged(LogFormat::Text, 0, || tracing::info!(conversion = "a-1", "📥 New file queued: {}", "a.raw"));
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.ends_with('Z'), "{time}");
        assert_eq!(rest.trim(), "INFO 📥 New file queued: a.raw conversion=\"a-1\"");
    }

    #[test]
    fn a_hostile_name_forges_no_line_and_moves_no_cursor() {
        let name = "a\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}.raw";
        let text = logged(LogFormat::Text, 0, || tracing::info!(name, "📥 New file queued: {name}"));
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        let control = text.trim_end().chars().find(|c| c.is_control());
        assert_eq!(control, None, "{text:?}");
        let json = logged(LogFormat::Json, 0, || tracing::info!(name, "{name}\u{202e}"));
        assert_eq!(json.trim_end().chars().find(|c| c.is_control() || *c == '\u{202e}'), None, "{json:?}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["name"], name);
        assert!(text.contains(r"New file queued: a\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}.raw"), "{text}");
    }

    #[test]
    fn a_line_of_json_is_flat() {
        let text = logged(LogFormat::Json, 0, || tracing::warn!(conversion = "a-1", "odd \"name\"\n"));
        let mut line: Value = serde_json::from_str(&text).unwrap();
        assert!(line["timestamp"].take().as_str().unwrap().ends_with('Z'));
        assert_eq!(
            line,
            serde_json::json!({"timestamp": null, "level": "WARN", "message": "odd \"name\"\n", "conversion": "a-1"})
        );
    }

    #[test]
    fn verbosity_rises_and_who_carries_secrets_stays_discreet() {
        let tell = || {
            tracing::info!(target: "hyper2kvm::queue", "ours info");
            tracing::debug!(target: "hyper2kvm", "ours debug");
            tracing::trace!(target: "hyper2kvm_operator", "ours trace");
            tracing::info!(target: "notify", "theirs info");
            tracing::trace!(target: "notify", "theirs trace");
            tracing::info!(target: "hyper::client", "discreet info");
            tracing::warn!(target: "reqwest", "discreet warning");
        };
        for (verbose, missing) in [
            (0, ["ours debug", "ours trace", "theirs info", "theirs trace", "discreet info"].as_slice()),
            (1, &["ours trace", "theirs info", "theirs trace", "discreet info"]),
            (2, &["theirs trace", "discreet info"]),
            (3, &["discreet info"]),
        ] {
            let text = logged(LogFormat::Text, verbose, tell);
            for message in [
                "ours info",
                "ours debug",
                "ours trace",
                "theirs info",
                "theirs trace",
                "discreet info",
                "discreet warning",
            ] {
                assert_eq!(text.contains(message), !missing.contains(&message), "{verbose} {message}");
            }
        }
    }

    #[test]
    fn a_log_that_was_renamed_is_opened_anew_and_the_level_follows() {
        let directory = tempfile::tempdir().unwrap();
        let (file, renamed) = (directory.path().join("x.log"), directory.path().join("x.log.1"));
        let options = LogOptions { file: Some(file.clone()), ..LogOptions::default() };
        let (dispatch, log) = dispatch(&options, verbosity(0), io::sink, false).unwrap();
        let note = |text: &str| tracing::dispatcher::with_default(&dispatch, || tracing::debug!("{text}"));
        note("too quiet");
        tracing::dispatcher::with_default(&dispatch, || log.set_verbose(1));
        note("first");
        fs::rename(&file, &renamed).unwrap();
        note("second");
        log.reopen(&file).unwrap();
        note("third");
        let messages = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(messages(&renamed), ["first", "second"]);
        assert_eq!(messages(&file), ["third"]);
        assert!(log.reopen(&file.join("below")).is_err());
        let lost = directory.path().join("lost/x.log");
        let error = log.reopen(&lost).unwrap_err().to_string();
        assert!(error.contains(&directory.path().join("lost").display().to_string()), "{error}");
        assert!(!lost.parent().unwrap().exists());
        note("fourth");
        assert_eq!(messages(&file), ["third", "fourth"], "the old one stays");
    }

    #[test]
    fn a_log_is_appended_to_and_a_bad_one_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.log");
        fs::write(&file, "before\n").unwrap();
        let options = LogOptions { file: Some(file.clone()), ..LogOptions::default() };
        drop(dispatch(&options, verbosity(0), io::sink, false).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "before\n");

        let bad = LogOptions { file: Some(file.join("below")), ..LogOptions::default() };
        let error = dispatch(&bad, verbosity(0), io::sink, false).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write the log file {}", file.join("below").display()));
    }
}
