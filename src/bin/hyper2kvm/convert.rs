//! `hyper2kvm convert`: one conversion by hand.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper2kvm::conversion::options::{ByteSize, DEFAULT_MAX_VIRTUAL_SIZE, DomainOptions};
use hyper2kvm::conversion::{Compression, ConversionOptions, Failure, Metadata, OutputFormat, Progress, Reason};
use hyper2kvm::worker::convert::{Conversion, convert};
use hyper2kvm::worker::group::Group;
use hyper2kvm::worker::interrupt::Interrupts;
use hyper2kvm::worker::output;
use hyper2kvm::worker::place::{self, Placed};
use hyper2kvm::worker::progress::{Meter, Ticker};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const EXAMPLES: &str = "Examples:
  hyper2kvm convert web01.ova                          web01.qcow2 beside it
  hyper2kvm convert db.vmdk -o /images/db.qcow2 --compress
  hyper2kvm convert app.ovf --output-dir /images --emit-domain-xml
  hyper2kvm convert big.vhdx --format raw --progress json --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A disk image, an OVA, an OVF with its disks beside it, or a VMDK descriptor
    source: PathBuf,
    /// Write the only disk to this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// Write {stem}.{format}, or {stem}-disk0.{format} … for several disks, into this directory [default: the source's]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Format of the output
    #[arg(long, value_enum, default_value = "qcow2")]
    format: Format,
    /// Compress the qcow2's clusters
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "zlib")]
    compress: Option<Compress>,
    /// Level of that compression (zlib 1-9, zstd 1-22)
    #[arg(long, value_name = "N", requires = "compress", value_parser = clap::value_parser!(u32).range(1..=22))]
    compress_level: Option<u32>,
    /// Decode and encode on this many threads [default: the processors this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Refuse disks larger than this
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(DEFAULT_MAX_VIRTUAL_SIZE))]
    max_virtual_size: ByteSize,
    /// Write a libvirt domain, {stem}.xml, beside the disks
    #[arg(long)]
    emit_domain_xml: bool,
    /// Report each output's SHA-256 (reads it once more)
    #[arg(long)]
    checksum: bool,
    /// `full` reads the output back and compares it with the source
    #[arg(long, value_enum, value_name = "HOW")]
    verify: Option<Verify>,
    /// Replace existing outputs, each at once
    #[arg(long)]
    force: bool,
    /// How to show progress: a bar on a terminal, one JSON object a line, or not at all
    #[arg(long, value_enum, default_value = "auto")]
    progress: Show,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Qcow2,
    Raw,
    Vdi,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compress {
    Zlib,
    Zstd,
    ZlibStrict,
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
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("HYPER2KVM_LOG"))
        .with_target(false)
        .init();
    let meter = Arc::new(Meter::default());
    match Interrupts::catch(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]) {
        Ok(interrupts) => interrupts.watch(&meter),
        Err(error) => eprintln!("hyper2kvm: cannot handle signals: {error}"),
    }
    match convert_one(arguments, &meter) {
        Ok((metadata, placed)) => report(arguments, &metadata, &placed),
        Err(_) if meter.is_interrupted() => {
            eprintln!("hyper2kvm: interrupted; nothing was left in the output directory");
            ExitCode::from(INTERRUPTED)
        }
        Err(failure) => {
            eprintln!("hyper2kvm: {}: {}", failure.reason, failure.message);
            if !failure.suggestion.is_empty() {
                eprintln!("  {}", failure.suggestion);
            }
            ExitCode::from(failure.reason.exit_code())
        }
    }
}

fn convert_one(arguments: &Arguments, meter: &Arc<Meter>) -> Result<(Metadata, Placed), Failure> {
    let options = options(arguments);
    let (directory, stem) = destination(arguments)?;
    let target = place::Target {
        directory: &directory,
        file: arguments.output.as_deref(),
        stem: &stem,
        replace: arguments.force,
        domain: options.emit_domain_xml.then_some(&options.domain),
    };
    place::check_free(&target, options.out_format)?;
    let group = Group::open_beside(&arguments.source)?;
    let scratch = place::scratch(&directory)?;
    let ticker = show(arguments, meter);
    let conversion = Conversion {
        group: &group,
        directory: scratch.path(),
        stem: &stem,
        id: "",
        options: &options,
        threads: arguments.threads.map(usize::from),
        verify_full: arguments.verify == Some(Verify::Full),
    };
    let converted = convert(&conversion, meter);
    drop(ticker);
    let mut metadata = converted?;
    let placed = place::place(scratch.path(), &mut metadata, &target)?;
    Ok((metadata, placed))
}

fn options(arguments: &Arguments) -> ConversionOptions {
    ConversionOptions {
        out_format: match arguments.format {
            Format::Qcow2 => OutputFormat::Qcow2,
            Format::Raw => OutputFormat::Raw,
            Format::Vdi => OutputFormat::Vdi,
        },
        compress: match arguments.compress {
            None => Compression::None,
            Some(Compress::Zlib) => Compression::Zlib,
            Some(Compress::Zstd) => Compression::Zstd,
            Some(Compress::ZlibStrict) => Compression::ZlibStrict,
        },
        compress_level: arguments.compress_level,
        max_virtual_size: arguments.max_virtual_size.0,
        checksum: arguments.checksum,
        emit_domain_xml: arguments.emit_domain_xml,
        to_output: None,
        domain: DomainOptions::default(),
    }
}

/// The directory the output goes to, and the stem of its files.
fn destination(arguments: &Arguments) -> Result<(PathBuf, String), Failure> {
    let here = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let named = arguments.output.as_ref().unwrap_or(&arguments.source);
    let directory = match (&arguments.output, &arguments.output_dir) {
        (Some(file), _) => here(file),
        (None, Some(directory)) => directory.clone(),
        (None, None) => here(&arguments.source),
    };
    let Some(stem) = named.file_stem().and_then(|s| s.to_str()) else {
        let message = format!("{}: not a file name in UTF-8", named.display());
        return Err(Failure::new(Reason::UnsupportedFormat, message));
    };
    fs::create_dir_all(&directory).map_err(|e| output::output_failure(&directory, &e))?;
    Ok((directory, stem.to_owned()))
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
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
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
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes_done);
    bar.set_message(format!("{:?}", progress.stage).to_lowercase());
}

fn report(arguments: &Arguments, metadata: &Metadata, placed: &Placed) -> ExitCode {
    let mut out = io::stdout().lock();
    let printed = if arguments.json {
        serde_json::to_writer_pretty(&mut out, metadata).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        summary(&mut out, metadata, placed)
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("hyper2kvm: cannot print the report: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for a person")]
fn summary(out: &mut impl Write, metadata: &Metadata, placed: &Placed) -> io::Result<()> {
    for warning in &metadata.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for (disk, path) in metadata.disks.iter().zip(&placed.disks) {
        let (virtual_size, allocated) = (ByteSize(disk.virtual_size_bytes), ByteSize(disk.allocated_bytes));
        writeln!(out, "{}  {virtual_size} virtual, {allocated} on disk", path.display())?;
        if let Some(sha256) = &disk.sha256 {
            writeln!(out, "  sha256 {sha256}")?;
        }
    }
    if let Some(domain) = &placed.domain {
        writeln!(out, "{}  libvirt domain: virsh define {}", domain.display(), domain.display())?;
    }
    let seconds = metadata.duration_ms as f64 / 1000.0;
    let virtual_size: u64 = metadata.disks.iter().map(|d| d.virtual_size_bytes).sum();
    let rate = virtual_size as f64 / 1e6 / seconds.max(0.001);
    writeln!(
        out,
        "{} ({}) in {seconds:.2} s, {rate:.0} MB/s of guest disk",
        metadata.source.name, metadata.source.format
    )
}
