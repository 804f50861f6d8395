// SPDX-License-Identifier: Apache-2.0
//! SIGHUP: opens the log file anew and reads the configuration again. Settings that may change while the daemon works
//! take effect; the others are named in the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper2kvm::config::{self, Config, Deduplication, Overrides};
use hyper2kvm::conversion::chain;
use hyper2kvm::executor::process;
use hyper2kvm::ledger::Writer;
use hyper2kvm::queue::engine::outbox::{Deliveries, Outbox, Patience};
use hyper2kvm::queue::engine::{Remote, Tuning};
use hyper2kvm::telemetry::logging::Log;
use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// Keys whose changes take effect at once. The volumes, and attempts that are under way, depend on the other keys:
/// changes of those wait for a restart.
const AT_ONCE: [&str; 12] = [
    "archive_processed",
    "companion_timeout",
    "deduplication_use_md5",
    "enable_deduplication",
    "file_stable_timeout",
    "log_file",
    "max_concurrent_jobs",
    "notifications",
    "quiet_period",
    "retention",
    "retry_policy",
    "verbose",
];

/// How long a channel that changes waits for a notification under way: one that is interrupted may arrive twice.
const DELIVERY_END: Duration = Duration::from_secs(5);

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub files: Vec<PathBuf>,
    pub overrides: Overrides,
}

impl Origin {
    pub(super) fn load(&self) -> Result<(Config, Vec<String>), config::ConfigError> {
        config::load(&self.files, &self.overrides)
    }
}

/// The present deliveries: the end of the daemon has to find them.
pub(super) type Current = Arc<Mutex<Option<Deliveries>>>;

/// What a reload changes.
pub(super) struct Reload {
    pub origin: Origin,
    /// The configuration in effect, without what waits for a restart.
    pub config: Config,
    pub log: Log,
    pub remote: Remote,
    pub executor: watch::Sender<process::Limits>,
    pub ledger: Writer,
    pub deliveries: Current,
}

impl Reload {
    /// Reloads at each signal. Runs on the runtime of the services; files are read on another thread.
    pub(super) async fn obey(mut self, mut hangups: Signal, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                signal = hangups.recv() => if signal.is_none() { return },
            }
            let (origin, log, before) = (self.origin.clone(), self.log.clone(), self.config.log_file.clone());
            let read = tokio::task::spawn_blocking(move || {
                // The log file comes first, because the rest is logged; it is opened anew even if the configuration is
                // wrong.
                if let Some(path) = &before
                    && let Err(error) = log.reopen(path)
                {
                    tracing::error!(error = %chain(&error), "the log file stays as it was");
                }
                origin.load()
            });
            match read.await {
                Ok(Ok((config, warnings))) => {
                    for warning in warnings {
                        tracing::warn!("{warning}");
                    }
                    self.apply(config).await;
                }
                Ok(Err(error)) => {
                    tracing::error!("the configuration is refused and stays as it was: {}", chain(&error));
                }
                Err(error) => tracing::error!(%error, "the configuration could not be read"),
            }
        }
    }

    async fn apply(&mut self, config: Config) {
        let is_log_made = self.config.log_file.is_some() == config.log_file.is_some();
        let is_at_once = |key: &String| AT_ONCE.contains(&key.as_str()) && (key != "log_file" || is_log_made);
        let (mut applied, waiting): (Vec<String>, Vec<String>) =
            self.config.changed_keys(&config).into_iter().partition(is_at_once);
        // Secrets are not compared key by key.
        if config.notifications != self.config.notifications && !applied.iter().any(|key| key == "notifications") {
            applied.push("notifications".to_owned());
        }
        self.log.set_verbose(config.verbose);
        let mut log_file = self.config.log_file.clone();
        if is_log_made && config.log_file != log_file {
            if self.move_log(&config).await {
                log_file.clone_from(&config.log_file);
            } else {
                applied.retain(|key| key != "log_file");
            }
        }
        let policy = config.retry_policy;
        self.executor.send_replace(process::Limits { limit: config.max_concurrent_jobs, policy });
        let outbox = if config.notifications == self.config.notifications {
            None
        } else {
            Some(self.change_channels(&config).await)
        };
        self.remote.tune(Tuning {
            limit: config.max_concurrent_jobs,
            policy,
            retention: config.retention,
            archive_processed: config.archive_processed,
            deduplicate: config.deduplication != Deduplication::Off,
            deduplicate_by_md5: config.deduplication == Deduplication::Md5,
            file_stable_timeout: config.file_stable_timeout,
            companion_timeout: config.companion_timeout,
            quiet_period: config.quiet_period,
            stall_threshold: config.notifications.stall_after,
            outbox,
        });
        if applied.is_empty() {
            tracing::info!("configuration read anew");
        } else {
            let applied = applied.join(", ");
            tracing::info!(applied, "configuration read anew");
        }
        if !waiting.is_empty() {
            tracing::warn!("these changes of the configuration need a restart: {}", waiting.join(", "));
        }
        // Changes that wait for a restart are named again at the next reload.
        self.config = Config {
            archive_processed: config.archive_processed,
            companion_timeout: config.companion_timeout,
            deduplication: config.deduplication,
            file_stable_timeout: config.file_stable_timeout,
            log_file,
            max_concurrent_jobs: config.max_concurrent_jobs,
            notifications: config.notifications,
            quiet_period: config.quiet_period,
            retention: config.retention,
            retry_policy: config.retry_policy,
            verbose: config.verbose,
            ..self.config.clone()
        };
    }

    /// Returns whether the log is written to its new file.
    async fn move_log(&self, config: &Config) -> bool {
        let Some(path) = config.log_file.clone() else { return false };
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || log.reopen(&path)).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::error!(error = %chain(&error), "the log file stays as it was"),
            Err(error) => tracing::error!(%error, "the log file stays as it was"),
        }
        false
    }

    /// The deliveries of the old channels end before the new ones begin: no row may be sent by two tasks.
    async fn change_channels(&self, config: &Config) -> Outbox {
        let mut current = self.deliveries.lock().await;
        if let Some(deliveries) = current.take() {
            deliveries.end(DELIVERY_END).await;
        }
        let (outbox, deliveries) =
            Outbox::start(config.notifications.clone(), self.ledger.clone(), Patience::default());
        *current = Some(deliveries);
        outbox
    }
}
