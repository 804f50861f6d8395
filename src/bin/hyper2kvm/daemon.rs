// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm daemon`: watcher, scheduler and control socket of one host in one process.
//!
//! The engine and its children live on the main thread, because a child dies with the thread that started it. Requests
//! (socket, metrics, statistics) and notifications are served by another thread, from the engine's snapshot.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hyper2kvm::config::{Config, Deduplication, Overrides};
use hyper2kvm::control::{Listener, SOCKET};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::conversion::chain;
use hyper2kvm::executor::process::{ProcessConfig, ProcessExecutor};
use hyper2kvm::executor::progress::STALL_AFTER;
use hyper2kvm::files::{Method, Paths};
use hyper2kvm::ledger::{self, LEDGER_FILE, Ledger, Writer};
use hyper2kvm::queue::engine::outbox::{Outbox, Patience};
use hyper2kvm::queue::engine::{Engine, Home, Settings, World, events};
use hyper2kvm::queue::guard::Guard;
use hyper2kvm::queue::lock::{Contender, Contest, Keeper, LockError, Locks, Owner};
use hyper2kvm::queue::retention_day::retention_day;
use hyper2kvm::queue::settle::look_interval;
use hyper2kvm::telemetry::logging::{Log, LogFormat, LogOptions};
use hyper2kvm::telemetry::traces::{Sending, Traces};
use hyper2kvm::telemetry::{install_crypto, logging};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use opentelemetry::KeyValue;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::Signal;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

mod anew;
mod deadline;
mod reload;
mod services;
mod volumes;
mod waiting;

use reload::{Origin, Reload};
use services::{Services, Signals};
use volumes::Ready;
use waiting::{Waited, stop_signal, wait_for_volumes};

/// How long the end waits for a notification or a trace under way, after the time that the engine has waited.
const DELIVERY_END: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Configuration, YAML or JSON; may be given several times, the later file wins
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Directory to watch
    #[arg(long, value_name = "DIR")]
    watch_dir: Option<PathBuf>,
    /// Directory to publish in
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Shape of log lines
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
    /// Log more; twice and three times more still
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Serve /healthz, /readyz and /metrics there (off by default)
    #[arg(long, value_name = "ADDR", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Send a trace of each conversion to this collector (OTLP over HTTP, port 4318 as a rule)
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    traces: Option<String>,
    /// Take these two directories for a pair, whatever they belonged to: for a new volume in the place of a lost one
    #[arg(long)]
    adopt: bool,
    /// Print the effective configuration, secrets masked, and exit
    #[arg(long)]
    check_config: bool,
}

const EXAMPLES: &str = "Examples:
  hyper2kvm daemon --config /etc/hyper2kvm/daemon.yaml
  hyper2kvm daemon --watch-dir /srv/queue --output-dir /srv/output --listen 127.0.0.1:9090
  hyper2kvmctl --output-dir /srv/output stats";

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is no IP address and port, such as 127.0.0.1:9090".to_owned())
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

/// Why the program can't begin or go on: exit code 2 for what only a person can mend (configuration, another daemon on
/// a directory, a damaged ledger), 1 for everything else, after which the service is started again.
#[derive(Debug)]
struct Refusal {
    code: u8,
    text: String,
}

impl Refusal {
    fn fault(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    fn setting(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }
}

/// How long a start that is told to stop has to end by itself.
const EARLY_END: Duration = Duration::from_secs(2);

/// The stack of the thread that does the work: a main thread's usual one.
const STACK: usize = 8 << 20;

/// Runs until drained or stopped.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    install_crypto();
    // The kernel gives a signal of the process to the main thread (signal(7)), and tells no other one. A thread that waits for
    // a network or FUSE server never comes to the handler: this one waits for nothing but the other, which does the work.
    let worked = thread::scope(|scope| {
        let builder = thread::Builder::new().name("engine".to_owned()).stack_size(STACK);
        let engine = builder.spawn_scoped(scope, || begin(arguments));
        engine.map(|engine| engine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    match worked.unwrap_or_else(|error| Err(Refusal::fault(format!("cannot start a thread: {error}")))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("Error: {}", refusal.text);
            ExitCode::from(refusal.code)
        }
    }
}

fn begin(arguments: &Arguments) -> Result<(), Refusal> {
    let started = Timestamp::now();
    let beside = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("services")
        .enable_all()
        .build()
        .map_err(|error| Refusal::fault(format!("cannot start the services: {error}")))?;
    // First of all: who starts the daemon may stop it at once.
    let entered = beside.enter();
    let early = Early { signals: Signals::listen(), hangups: services::listen_for_hangups(), end: early_end() };
    drop(entered);
    let overrides = Overrides {
        watch_dir: arguments.watch_dir.clone(),
        output_dir: arguments.output_dir.clone(),
        verbose: (arguments.verbose > 0).then_some(arguments.verbose),
    };
    let is_told = !arguments.config.is_empty() || (arguments.watch_dir.is_some() && arguments.output_dir.is_some());
    if !is_told {
        return Err(Refusal::setting(
            "no configuration: give --config FILE, or --watch-dir DIR and --output-dir DIR\n\n\
             For more information, try 'hyper2kvm daemon --help'.",
        ));
    }
    let origin = Origin { files: arguments.config.clone(), overrides };
    let (config, warnings) = origin.load().map_err(|error| Refusal::setting(chain(&error)))?;
    if arguments.check_config {
        for warning in warnings {
            eprintln!("Warning: {warning}");
        }
        let written = io::stdout().write_all(config.to_yaml().as_bytes());
        return written.map_err(|error| Refusal::fault(format!("cannot print the configuration: {error}")));
    }
    let format = match arguments.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    let options = LogOptions { format, file: config.log_file.clone(), verbose: config.verbose };
    let log = logging::init(&options).map_err(|error| Refusal::setting(chain(&error)))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal::fault(format!("cannot start the runtime: {error}")))?;
    let begun = Begun { config, origin, log, early, started };
    let served = runtime.block_on(serve(begun, arguments, beside.handle()));
    // Threads that hash, or hang in the kernel, are not waited for.
    runtime.shutdown_background();
    if let Some(services) = served? {
        services.end(beside);
    }
    Ok(())
}

/// What a start has made so far.
struct Begun {
    config: Config,
    origin: Origin,
    log: Log,
    early: Early,
    started: Timestamp,
}

/// The signals that came since the start; they are obeyed once the daemon is ready, or waits.
struct Early {
    signals: Option<Signals>,
    hangups: Option<Signal>,
    /// Ends a start that hangs. To be aborted when the services obey signals.
    end: JoinHandle<()>,
}

/// Ends the process if it is told to stop and has neither ended nor become ready after [`EARLY_END`]: a start that looks at a volume
/// which does not answer comes to no signal. Must be called within a runtime.
fn early_end() -> JoinHandle<()> {
    let signals = Signals::listen();
    tokio::spawn(async move {
        let Some(mut signals) = signals else { return };
        signals.stop().await;
        tokio::time::sleep(EARLY_END).await;
        std::process::exit(0);
    })
}

/// Serves the queue until it ends; `None` if the daemon ended before it served.
async fn serve(begun: Begun, arguments: &Arguments, beside: &Handle) -> Result<Option<Services>, Refusal> {
    let Begun { config, origin, log, early, started } = begun;
    let Early { mut signals, hangups, end } = early;
    let Waited { ready, run_state } = wait_for_volumes(&config, arguments.adopt, started, beside, &mut signals).await?;
    let Some(Ready { paths, volumes }) = ready else { return Ok(None) };
    let Some(locks) = lock(&paths, &mut signals).await? else { return Ok(None) };
    let guard = Guard::new(volumes.clone(), Some(locks.ownership()));
    let keeper = Keeper::new(locks, volumes, Duration::ZERO);
    let endpoint = match arguments.listen {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            let bound = bound.and_then(TcpListener::into_std);
            Some(bound.map_err(|error| {
                let text = format!("cannot listen on {address}: {error}");
                match error.kind() {
                    // Another program may leave it, and an address may come with its network.
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Refusal::fault(text),
                    _ => Refusal::setting(text),
                }
            })?)
        }
        None => None,
    };
    let ledger = Ledger::open(&paths.daemon().join(LEDGER_FILE)).map_err(|error| match error {
        ledger::Error::Damaged { .. } | ledger::Error::TooNew { .. } | ledger::Error::Foreign { .. } => {
            Refusal::setting(chain(&error))
        }
        _ => Refusal::fault(chain(&error)),
    })?;
    if run_state == RunState::Paused {
        ledger.set_paused(true).map_err(|error| Refusal::fault(chain(&error)))?;
    }
    let ledger = Writer::start(ledger);
    let entered = beside.enter();
    let (outbox, deliveries) = Outbox::start(config.notifications.clone(), ledger.clone(), Patience::default());
    let (traces, sending) = match &arguments.traces {
        Some(endpoint) => start_traces(endpoint)?,
        None => Default::default(),
    };
    let socket = Listener::bind(&paths.output().join(SOCKET)).map_err(|error| Refusal::fault(chain(&error)))?;
    drop(entered);

    let policy = config.retry_policy;
    let executor = ProcessExecutor::new(
        ProcessConfig {
            // The running program, whatever has been installed under its name since.
            program: "/proc/self/exe".into(),
            paths: paths.clone(),
            options: config.conversion.clone(),
            policy,
            limit: config.max_concurrent_jobs,
            require_landlock: config.require_landlock,
            appliance: config.appliance_dir.clone(),
            stall_after: STALL_AFTER,
        },
        ledger.clone(),
    )
    .map_err(|error| Refusal::fault(format!("cannot prepare to start workers: {error}")))?;
    let limiter = executor.limiter();
    let (events, hints) = events::watch(paths.queue());
    let settings = settings(&config, paths.clone(), guard, traces);
    let starting = Engine::start(settings, executor, ledger.clone(), outbox, hints, started);
    let (engine, remote) = Box::pin(starting).await.map_err(|error| Refusal::fault(chain(&error)))?;
    let mut services = Services::start(beside, remote.clone(), signals, socket, endpoint, keeper, &paths);
    end.abort();
    tracing::info!(
        watch_dir = %paths.queue().display(),
        output_dir = %paths.output().display(),
        jobs = config.max_concurrent_jobs,
        "Daemon ready"
    );
    if run_state == RunState::Draining {
        let remote = remote.clone();
        tokio::spawn(async move { remote.set_run_state(RunState::Draining).await });
    }
    let deliveries = Arc::new(Mutex::new(Some(deliveries)));
    if let Some(hangups) = hangups {
        let (remote, deliveries) = (remote.clone(), Arc::clone(&deliveries));
        let reload = Reload { origin, config, log, remote, executor: limiter, ledger, deliveries };
        services.reload_on(beside, hangups, reload);
    }
    let ticking = tokio::spawn(remote.clone().tick());
    tokio::select! {
        () = engine.run() => {
            if let Some(deliveries) = deliveries.lock().await.take() {
                deliveries.end(DELIVERY_END).await;
            }
            if let Some(sending) = sending {
                sending.end(DELIVERY_END).await;
            }
        }
        () = services.deadline().cut() => {
            tracing::warn!("the engine did not end in time and is left where it stands; the next start goes on from there");
        }
    }
    ticking.abort();
    drop(events);
    Ok(Some(services))
}

/// Begins to send traces; they name this host.
fn start_traces(endpoint: &str) -> Result<(Traces, Option<Sending>), Refusal> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let resource = vec![KeyValue::new("service.name", "hyper2kvm"), KeyValue::new("host.name", host)];
    let started = Traces::start(endpoint, resource).map_err(|error| Refusal::setting(chain(&error)))?;
    Ok((started.0, Some(started.1)))
}

fn settings(config: &Config, paths: Paths, guard: Guard, traces: Traces) -> Settings {
    Settings {
        paths,
        guard,
        home: Home::Host,
        method: Method::NoReplace,
        limit: config.max_concurrent_jobs,
        archive_processed: config.archive_processed,
        deduplicate: config.deduplication != Deduplication::Off,
        deduplicate_by_md5: config.deduplication == Deduplication::Md5,
        look_interval: look_interval(),
        file_stable_timeout: config.file_stable_timeout,
        companion_timeout: config.companion_timeout,
        quiet_period: config.quiet_period,
        policy: config.retry_policy,
        retention: config.retention,
        retention_day: retention_day(),
        options: config.conversion.clone(),
        zone: TimeZone::system(),
        stall_threshold: config.notifications.stall_after,
        run_state: RunState::Running,
        world: World::Machine,
        traces,
    }
}

/// Locks both directories, and waits while another machine's daemon may still live; `None` if told to stop meanwhile.
async fn lock(paths: &Paths, signals: &mut Option<Signals>) -> Result<Option<Locks>, Refusal> {
    let refuse = |error: LockError| {
        if error.is_lasting() { Refusal::setting(chain(&error)) } else { Refusal::fault(chain(&error)) }
    };
    let holder = format!("process {} on {}", std::process::id(), rustix::system::uname().nodename().to_string_lossy());
    let token = format!("{}-{}", std::process::id(), Timestamp::now().as_nanosecond());
    let mut contender = Owner::this(holder, "", token).and_then(|me| Contender::new(paths, me)).map_err(refuse)?;
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        match contender.poll(begun.elapsed()).map_err(refuse)? {
            Contest::Won(locks) => return Ok(Some(locks)),
            Contest::Waiting { contender: again, until, holder } => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%holder, "these directories were another's; waiting for its heartbeat to stand still");
                }
                contender = again;
                tokio::select! {
                    () = tokio::time::sleep(until.saturating_sub(begun.elapsed()).max(Duration::from_millis(10))) => {}
                    () = stop_signal(signals) => return Ok(None),
                }
            }
        }
    }
}
