// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm convert`: one conversion by hand.

mod device;
mod named;
mod refused;
mod report;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use hyper2kvm::conversion::contract::APPLIANCE_DIR;
use hyper2kvm::conversion::options::{
    Accelerator, BootCheck, BootCheckMode, ByteSize, DEFAULT_MAX_VIRTUAL_SIZE, DomainOptions, GuestFixMode, GuestNames,
    GuestOptions,
};
use hyper2kvm::conversion::{
    CONTRACT_VERSION, Compression, ConversionOptions, Emit, Failure, Metadata, OutputFormat, Platform, Progress,
    Reason, Remedy, Stage, stem,
};
use hyper2kvm::disk::{MAX_THREADS, available_threads};
use hyper2kvm::worker::by_hand::{self, Child, Contained};
use hyper2kvm::worker::contain;
use hyper2kvm::worker::conversion::Conversion;
use hyper2kvm::worker::group::{Group, Settings};
use hyper2kvm::worker::interrupt::Interrupts;
use hyper2kvm::worker::log::LogTail;
use hyper2kvm::worker::output;
use hyper2kvm::worker::place::{self, PlaceError, Placed};
use hyper2kvm::worker::progress::{Meter, Ticker};
use hyper2kvm::worker::qemu::Programs;
use hyper2kvm::worker::scratch::Scratch;
use hyper2kvm::worker::steps::convert;
use hyper2kvm::worker::target::{Target, Targets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::refused::{tell, wrong_call};
use crate::number::{look_seconds, within};

const EXAMPLES: &str = "Examples:
  hyper2kvm convert web01.ova                          web01.qcow2 beside it
  hyper2kvm convert db.vmdk -o /images/db.qcow2 --compress
  hyper2kvm convert app.ovf --output-dir /images --emit-domain-xml
  hyper2kvm convert big.vhdx --format raw --progress json --json
  hyper2kvm convert web01.ova --fix-guest --boot-check --emit libvirt
  hyper2kvm convert web01.ova --to-device /dev/vg0/web01-0,/dev/vg0/web01-1

Exit codes: 0; 1 a fault of the program; 2 wrong usage, no such file, or the output exists already; 10 refused for good;
11 permission, space, a missing appliance, or a device that is in use or too small; 12 an I/O error that may pass;
13 the source changed meanwhile; 137 killed, or out of memory; 143 interrupted.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A disk image, an OVA, an OVF with its disks beside it, or a VMDK descriptor; one of these packed
    source: PathBuf,
    /// Write the only disk to this file; without --format, its extension (qcow2, raw, img, vdi) tells the format
    #[arg(short, long, value_name = "FILE", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// Write {stem}.{format}, or {stem}-disk0.{format} … for several disks, into this directory [default: the source's]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Write the disks, raw, onto these block devices, one for each disk in its order, and zeros behind them
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',',
          conflicts_with_all = ["output", "output_dir", "compress", "emit", "emit_domain_xml"])]
    to_device: Vec<PathBuf>,
    /// Format of the output [default: qcow2]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Compress the qcow2's clusters
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "zlib")]
    compress: Option<Compress>,
    /// Level of that compression (zlib 1-9, zstd 1-22)
    #[arg(long, value_name = "N", requires = "compress", value_parser = level)]
    compress_level: Option<u32>,
    /// Decode and encode on this many threads, 1 to 8 [default: one for each processor this process may use]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<u8>,
    /// Refuse disks larger than this [default: 64 TiB]
    #[arg(long, value_name = "SIZE", hide_default_value = true, default_value_t = ByteSize(DEFAULT_MAX_VIRTUAL_SIZE))]
    max_virtual_size: ByteSize,
    /// Take this deployment option of an OVF [default: the one that it marks as default]
    #[arg(long, value_name = "NAME")]
    ovf_option: Option<String>,
    /// Write files that run the disks beside them: libvirt ({stem}.xml), kubevirt ({stem}.virtualmachine.yaml),
    /// proxmox ({stem}.proxmox.sh), openstack ({stem}.glance.json, {stem}.openstack.sh)
    #[arg(long, value_name = "PLATFORM,…", value_delimiter = ',')]
    emit: Vec<Wanted>,
    /// The same as --emit libvirt
    #[arg(long)]
    emit_domain_xml: bool,
    /// Report each output's SHA-256 (reads it once more)
    #[arg(long)]
    checksum: bool,
    /// `full` reads the output back and compares it with the source
    #[arg(long, value_enum, value_name = "HOW")]
    verify: Option<Verify>,
    /// Make the guest ready for virtio (its initramfs, device names, names of network cards), by a small appliance:
    /// where that can't be, `best-effort` converts it as it is, and `require` fails
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "best-effort"
    )]
    fix_guest: Option<FixGuest>,
    /// Keep the names that the guest's configuration has for its network cards, or leave them to the guest
    #[arg(long, value_enum, value_name = "HOW", requires = "fix_guest")]
    guest_names: Option<Names>,
    /// Directory with virtio-win's drivers, as its ISO has them, for guests of Windows
    #[arg(long, value_name = "DIR", requires = "fix_guest")]
    virtio_win: Option<PathBuf>,
    /// Try whether the guest boots, on a throw-away copy in QEMU without a way out: on its disk it writes, on its network
    /// it sends. Where it does not, `warn` says so, and `require` fails, which is what --fix-guest=require asks for, too.
    /// It gets 300 seconds, or as many as are said (10-540)
    #[arg(
        long,
        value_name = "[HOW,]SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    boot_check: Option<WantedCheck>,
    /// What runs the code of the appliance and of a guest that is tried [default: auto: KVM where it runs, else TCG]
    #[arg(long, value_enum, value_name = "WHICH")]
    accelerator: Option<Runner>,
    /// Directory of the appliance
    #[arg(long, value_name = "DIR", requires = "fix_guest", default_value = APPLIANCE_DIR)]
    appliance: PathBuf,
    /// Seconds that the look into the guest may take
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = look_seconds)]
    guest_limit: u64,
    /// Replace existing outputs, each at once; overwrite devices whatever they hold
    #[arg(long)]
    force: bool,
    /// How to show progress on standard error: a bar on a terminal, one JSON object a line, or not at all
    #[arg(long, value_enum, default_value = "auto")]
    progress: Show,
    /// Read the image in this process, without containment: for kernels and containers that allow none
    #[arg(long)]
    no_sandbox: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn level(text: &str) -> Result<u32, String> {
    within(text, &(1..=22))
}

fn threads(text: &str) -> Result<u8, String> {
    within(text, &(1..=u8::try_from(MAX_THREADS).unwrap_or(u8::MAX)))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Qcow2,
    Raw,
    Vdi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compress {
    Zlib,
    Zstd,
    ZlibStrict,
}

/// A platform as an argument.
#[derive(Clone, Copy, Debug)]
struct Wanted(Platform);

impl ValueEnum for Wanted {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Wanted; 4] =
            [Wanted(Platform::ALL[0]), Wanted(Platform::ALL[1]), Wanted(Platform::ALL[2]), Wanted(Platform::ALL[3])];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.as_str()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FixGuest {
    BestEffort,
    Require,
}

/// `warn`, `require`, seconds, or a word and seconds; empty for neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WantedCheck {
    mode: Option<BootCheckMode>,
    seconds: Option<u32>,
}

impl FromStr for WantedCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mode, rest) = match text.split_once(',') {
            Some((word, seconds)) => (Some(word), seconds),
            None if text.starts_with(|c: char| c.is_ascii_alphabetic()) => (Some(text), ""),
            None => (None, text),
        };
        let mode = match mode {
            None => None,
            Some("warn") => Some(BootCheckMode::Warn),
            Some("require") => Some(BootCheckMode::Require),
            Some(other) => return Err(format!("{other:?} is neither warn nor require")),
        };
        if rest.is_empty() && !text.ends_with(',') {
            return Ok(Self { mode, seconds: None });
        }
        let (least, most) = (BootCheck::LEAST_SECONDS, BootCheck::MOST_SECONDS);
        let seconds = rest.parse().ok().filter(|seconds| (least..=most).contains(seconds));
        let seconds = seconds.ok_or_else(|| format!("{rest:?} is no number of seconds from {least} to {most}"))?;
        Ok(Self { mode, seconds: Some(seconds) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runner {
    Auto,
    Tcg,
    Kvm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Names {
    Keep,
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verify {
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Show {
    Auto,
    Bar,
    Json,
    None,
}

/// Exit code of a conversion that SIGINT or SIGTERM ended.
const INTERRUPTED: u8 = 143;

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    if let Err(message) = check_usage(arguments) {
        return wrong_call(arguments, &message, "");
    }
    let lines = LogTail::default();
    tracing_subscriber::fmt()
        .with_writer(move || lines.clone())
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("HYPER2KVM_LOG"))
        .with_target(false)
        .init();
    let interrupts = Interrupts::catch(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])
        .inspect_err(|error| eprintln!("hyper2kvm: cannot handle signals: {error}"))
        .ok();
    match by_hand::child() {
        Some(child) => convert_contained(arguments, &child, interrupts),
        None if arguments.no_sandbox => convert_uncontained(arguments, interrupts),
        None => supervise(arguments, interrupts),
    }
}

/// Makes directories, lets a contained child convert, and puts what it made into place.
fn supervise(arguments: &Arguments, interrupts: Option<Interrupts>) -> ExitCode {
    let made = Group::check(&arguments.source).map_err(PlaceError::from).and_then(|()| Output::make(arguments));
    let made = match made {
        Ok(made) => made,
        Err(error) => return tell(arguments, error),
    };
    match by_hand::run_contained(Some(&made.scratch), &made.devices, interrupts) {
        Err(failure) => tell(arguments, PlaceError::Failed(failure)),
        Ok(status) if status.success() => {
            match by_hand::take_report(&made.scratch, &made.stem, made.options.out_format, &arguments.to_device) {
                Ok(metadata) => finish(arguments, made, metadata),
                Err(failure) => tell(arguments, PlaceError::Failed(failure)),
            }
        }
        Ok(status) => match by_hand::died(status) {
            Some(failure) => tell(arguments, PlaceError::Failed(failure)),
            // It has told why.
            None => status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
        },
    }
}

/// Converts into the scratch directory, as the child of [`supervise`].
fn convert_contained(arguments: &Arguments, child: &Child, interrupts: Option<Interrupts>) -> ExitCode {
    // The processors' quota is in files that can't be read later.
    let threads = arguments.threads.map_or_else(available_threads, usize::from);
    let converted = (|| {
        let (directory, stem) = destination(arguments)?;
        let programs = programs(arguments);
        let option = arguments.ovf_option.as_deref();
        let Contained { targets, group, warning } =
            child.open(&arguments.source, option, programs.as_ref(), &arguments.to_device)?;
        if let Some(warning) = warning {
            eprintln!("hyper2kvm: warning: {warning}");
        }
        let scratch = child.scratch().unwrap_or(&directory);
        let place = Place { directory: &directory, stem: &stem, scratch, targets: targets.as_ref() };
        Ok(child.leave(&convert_into(arguments, &place, &group, programs.as_ref(), threads, interrupts)?)?)
    })();
    match converted {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Interrupted) => interrupted(arguments),
        Err(Ended::By(error)) => tell(arguments, error),
    }
}

/// Does all in this process.
fn convert_uncontained(arguments: &Arguments, interrupts: Option<Interrupts>) -> ExitCode {
    eprintln!("hyper2kvm: warning: --no-sandbox: the image is read by a process with all rights of this user");
    let threads = arguments.threads.map_or_else(available_threads, usize::from);
    if let Err(error) = contain::turn_signals_into_errors() {
        eprintln!("hyper2kvm: cannot handle signals: {error}");
    }
    let converted = (|| {
        let group = Group::open_beside(&arguments.source, arguments.ovf_option.as_deref())?;
        let group = group.with(Settings::beside(&arguments.source));
        let mut made = Output::make(arguments)?;
        let programs = programs(arguments);
        if programs.is_some() {
            // QEMU reaches the directory by the same descriptor.
            let cannot =
                |error| Failure::new(Reason::Internal, format!("cannot hand the output directory on: {error}"));
            made.scratch.inherit().map_err(cannot)?;
        }
        let devices = std::mem::take(&mut made.devices);
        let targets = (!devices.is_empty()).then(|| Targets::of_devices(devices));
        let (scratch, targets) = (made.scratch.path(), targets.as_ref());
        let place = Place { directory: &made.directory, stem: &made.stem, scratch, targets };
        let metadata = convert_into(arguments, &place, &group, programs.as_ref(), threads, interrupts)?;
        Ok((made, metadata))
    })();
    match converted {
        Ok((made, metadata)) => finish(arguments, made, metadata),
        Err(Ended::Interrupted) => interrupted(arguments),
        Err(Ended::By(error)) => tell(arguments, error),
    }
}

fn interrupted(arguments: &Arguments) -> ExitCode {
    if arguments.to_device.is_empty() {
        eprintln!("hyper2kvm: interrupted; nothing was left in the output directory");
    } else {
        eprintln!("hyper2kvm: interrupted");
    }
    ExitCode::from(INTERRUPTED)
}

/// Why there is no output.
enum Ended {
    Interrupted,
    By(PlaceError),
}

impl<E: Into<PlaceError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::By(error.into())
    }
}

/// Where a conversion writes, and where its output is to go.
struct Place<'a> {
    directory: &'a Path,
    stem: &'a str,
    scratch: &'a Path,
    /// The devices that the disks go to, if they are to go to any.
    targets: Option<&'a Targets>,
}

/// Converts the group's disks into the scratch directory.
fn convert_into(
    arguments: &Arguments,
    place: &Place<'_>,
    group: &Group,
    programs: Option<&Programs>,
    threads: usize,
    interrupts: Option<Interrupts>,
) -> Result<Metadata, Ended> {
    let options = options(arguments);
    let meter = Arc::new(Meter::default());
    if let Some(interrupts) = interrupts {
        interrupts.watch(&meter);
    }
    let target = target(arguments, place.directory, place.stem, &options);
    let ticker = show(arguments, &meter);
    let conversion = Conversion {
        group,
        directory: place.scratch,
        stem: place.stem,
        id: "",
        contract_version: CONTRACT_VERSION,
        options: &options,
        ovf_option: arguments.ovf_option.as_deref(),
        doubtful: Vec::new(),
        targets: place.targets,
        threads: Some(threads),
        verify_full: arguments.verify == Some(Verify::Full),
        programs,
        look_time: Duration::from_secs(arguments.guest_limit),
    };
    let converted = convert(&conversion, &meter, |names| match arguments.to_device.len() {
        0 => place::check(&target, group, names),
        devices if devices == names.len() => Ok(()),
        devices => Err(PlaceError::Devices { name: group.primary.name().to_owned(), disks: names.len(), devices }),
    });
    drop(ticker);
    if let Err(error) = &converted
        && place.targets.is_some()
        && meter.copy.progress() != (0, 0)
        && meter.stage() >= Stage::Copy
    {
        device::tell_unfinished(&arguments.to_device, error);
    }
    converted.map_err(|error| match error {
        _ if meter.is_interrupted() => Ended::Interrupted,
        PlaceError::Failed(mut failure) => {
            // Nobody else knows the scratch directory by its descriptor.
            let (scratch, shown) = (place.scratch.to_string_lossy(), place.directory.to_string_lossy());
            failure.message = failure.message.replace(&*scratch, &shown);
            Ended::By(PlaceError::Failed(failure))
        }
        error => Ended::By(error),
    })
}

fn target<'a>(
    arguments: &'a Arguments,
    directory: &'a Path,
    stem: &'a str,
    options: &'a ConversionOptions,
) -> place::Target<'a> {
    place::Target {
        directory,
        file: arguments.output.as_deref(),
        stem,
        replace: arguments.force,
        emit: &options.emit,
        domain: &options.domain,
    }
}

/// What is made in the output's place before anything is read.
struct Output {
    directory: PathBuf,
    stem: String,
    options: ConversionOptions,
    scratch: Scratch,
    made: Made,
    devices: Vec<Target>,
}

impl Output {
    fn make(arguments: &Arguments) -> Result<Self, PlaceError> {
        let (directory, stem) = destination(arguments)?;
        if let Some(file) = &arguments.output {
            place::check_replaceable(file)?;
        }
        place::check_directory(&directory)?;
        let devices = device::open(&arguments.to_device, arguments.force)?;
        let made = Made::directory(&directory).map_err(|e| output::output_failure(&directory, &e))?;
        let scratch = Scratch::new(&directory)?;
        Ok(Self { directory, stem, options: options(arguments), scratch, made, devices })
    }
}

/// Moves the disks to their places and reports them.
fn finish(arguments: &Arguments, output: Output, mut metadata: Metadata) -> ExitCode {
    if !arguments.to_device.is_empty() {
        let placed = Placed { disks: arguments.to_device.clone(), ..Placed::default() };
        return report::print(&metadata, &placed, arguments.json);
    }
    let target = target(arguments, &output.directory, &output.stem, &output.options);
    let placed = match place::place(output.scratch.path(), &mut metadata, &target) {
        Ok(placed) => placed,
        Err(error) => return tell(arguments, error),
    };
    output.made.keep();
    report::print(&metadata, &placed, arguments.json)
}

/// Directories made for the output; they are removed again if nothing was put into them.
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes `directory` and its parents where they are missing.
    fn directory(directory: &Path) -> io::Result<Self> {
        let missing = directory.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(directory)?;
        Ok(made)
    }

    /// Leaves them where they are.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Not empty: another program uses it now.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Checks what clap can't express about the arguments.
fn check_usage(arguments: &Arguments) -> Result<(), String> {
    let format = format(arguments);
    if let Some(output) = &arguments.output {
        named::check(output, arguments.format.map(|_| format))?;
    }
    if !arguments.to_device.is_empty() && format != OutputFormat::Raw {
        return Err(format!("--to-device writes raw disks, the output is {format}"));
    }
    if arguments.compress.is_some() && format != OutputFormat::Qcow2 {
        return Err(format!("--compress is for qcow2, the output is {format}"));
    }
    let highest = if arguments.compress == Some(Compress::Zstd) { 22 } else { 9 };
    match arguments.compress_level {
        Some(level) if level > highest => {
            Err(format!("--compress-level is {level}, allowed for this compression: 1 to {highest}"))
        }
        _ => Ok(()),
    }
}

/// The format in the arguments, or the one that FILE's extension names.
fn format(arguments: &Arguments) -> OutputFormat {
    match arguments.format {
        Some(Format::Qcow2) => OutputFormat::Qcow2,
        Some(Format::Raw) => OutputFormat::Raw,
        Some(Format::Vdi) => OutputFormat::Vdi,
        None if !arguments.to_device.is_empty() => OutputFormat::Raw,
        None => arguments.output.as_deref().and_then(named::format).unwrap_or_default(),
    }
}

fn options(arguments: &Arguments) -> ConversionOptions {
    ConversionOptions {
        out_format: format(arguments),
        compress: match arguments.compress {
            None => Compression::None,
            Some(Compress::Zlib) => Compression::Zlib,
            Some(Compress::Zstd) => Compression::Zstd,
            Some(Compress::ZlibStrict) => Compression::ZlibStrict,
        },
        compress_level: arguments.compress_level,
        max_virtual_size: arguments.max_virtual_size.0,
        checksum: arguments.checksum,
        emit: arguments
            .emit
            .iter()
            .map(|platform| platform.0)
            .collect::<Emit>()
            .with_domain_xml(arguments.emit_domain_xml.then_some(true)),
        to_output: None,
        domain: DomainOptions::default(),
        guest: GuestOptions {
            fix: match arguments.fix_guest {
                None => GuestFixMode::Off,
                Some(FixGuest::BestEffort) => GuestFixMode::BestEffort,
                Some(FixGuest::Require) => GuestFixMode::Require,
            },
            names: match arguments.guest_names {
                None | Some(Names::Keep) => GuestNames::Keep,
                Some(Names::Leave) => GuestNames::Leave,
            },
            virtio_win: arguments.virtio_win.as_deref().map(absolute),
            boot_check: boot_check(arguments),
            accelerator: match arguments.accelerator {
                None | Some(Runner::Auto) => Accelerator::Auto,
                Some(Runner::Tcg) => Accelerator::Tcg,
                Some(Runner::Kvm) => Accelerator::Kvm,
            },
        },
    }
}

fn boot_check(arguments: &Arguments) -> BootCheck {
    let Some(WantedCheck { mode, seconds }) = arguments.boot_check else { return BootCheck::default() };
    let by_fix = match arguments.fix_guest {
        Some(FixGuest::Require) => BootCheckMode::Require,
        _ => BootCheckMode::Warn,
    };
    BootCheck { mode: mode.unwrap_or(by_fix), timeout_seconds: seconds.unwrap_or(BootCheck::DEFAULT_SECONDS) }
}

/// What changes the guest or tries it, where that is asked for.
fn programs(arguments: &Arguments) -> Option<Programs> {
    let GuestOptions { accelerator, virtio_win, .. } = options(arguments).guest;
    options(arguments)
        .guest
        .has_programs()
        .then(|| Programs::find(&absolute(&arguments.appliance), virtio_win.as_deref(), accelerator))
}

/// The same path from the root, where the current directory is known.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The directory the output goes to, and the stem of its files.
fn destination(arguments: &Arguments) -> Result<(PathBuf, String), PlaceError> {
    let here = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let named = arguments.output.as_ref().unwrap_or(&arguments.source);
    let directory = match (&arguments.output, &arguments.output_dir) {
        (Some(file), _) => here(file),
        (None, Some(directory)) => directory.clone(),
        // For what a packed source unpacks to, and the report.
        (None, None) if !arguments.to_device.is_empty() => std::env::temp_dir(),
        (None, None) => here(&arguments.source),
    };
    match (named.file_name().map(OsStr::to_str), &arguments.output) {
        (Some(Some(name)), _) => {
            let stem = Some(stem(name)).filter(|stem| !stem.is_empty()).unwrap_or(name);
            Ok((directory, stem.to_owned()))
        }
        // `.` or `..`
        (None, Some(file)) => Err(PlaceError::Directory(file.clone())),
        (None | Some(None), _) => {
            let message = format!("{}: names no file, or its name is not UTF-8", named.display());
            Err(Failure::new(Reason::UnsupportedFormat, message).with_remedy(Remedy::NameOutput).into())
        }
    }
}

fn show(arguments: &Arguments, meter: &Arc<Meter>) -> Option<Ticker> {
    let how = match arguments.progress {
        Show::Auto if io::stderr().is_terminal() => Show::Bar,
        Show::Auto => Show::None,
        how => how,
    };
    match how {
        Show::Bar => {
            let style = ProgressStyle::with_template(
                "{msg:8} {wide_bar} {bytes:>11} / {total_bytes:11} {bytes_per_sec:>13} {eta:>4}",
            );
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            Some(Ticker::start(Arc::clone(meter), Duration::from_millis(100), move |progress| draw(&bar, &progress)))
        }
        Show::Json => Some(Ticker::start(Arc::clone(meter), Duration::from_secs(1), |progress| {
            if let Ok(line) = serde_json::to_string(&progress) {
                eprintln!("{line}");
            }
        })),
        Show::Auto | Show::None => None,
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    // A bar without a length would be drawn full.
    if progress.bytes_total == 0 {
        return;
    }
    bar.set_message(format!("{:?}", progress.stage).to_lowercase());
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes_done);
    // Each of these calls draws: the line is complete only now.
    if bar.is_hidden() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.tick();
    }
}
