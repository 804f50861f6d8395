// SPDX-License-Identifier: Apache-2.0
//! Which replica leads: one Lease, and the end of the process when it is lost.

use std::time::Duration;

use kube::{Client, Config};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::time::{Instant, sleep, timeout};

/// How long a lease is valid without renewal, in seconds.
const DURATION: u64 = 30;
/// How long before it expires a lease is renewed, in seconds.
const GRACE: u64 = 10;
/// How soon a failed call is repeated.
const LEASE_RETRY: Duration = Duration::from_secs(2);

/// Name of the Lease.
pub(super) const LEASE: &str = "hyper2kvm-operator";

/// A lease that is held.
pub(super) struct Leadership {
    lease: LeaseManager,
}

/// Waits until this replica, named `identity`, leads.
///
/// # Errors
/// Only if no client can be made of `config`; while the API server is unreachable, this waits.
pub(super) async fn acquire(config: &Config, namespace: &str, identity: &str) -> Result<Leadership, kube::Error> {
    // A call that hangs must not outlive the lease it would renew.
    let mut config = config.clone();
    config.connect_timeout = Some(Duration::from_secs(GRACE / 3));
    config.read_timeout = Some(Duration::from_secs(GRACE / 3));
    let client = Client::try_from(config)?;
    loop {
        let builder = LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_field_manager(format!("hyper2kvm-lease-{identity}"))
            .with_duration(DURATION)
            .with_grace(GRACE);
        match builder.build().await {
            Ok(lease) => {
                if wait_for(&lease).await {
                    return Ok(Leadership { lease });
                }
            }
            Err(error) => tracing::warn!(%error, "cannot take part in the election; trying again"),
        }
        sleep(LEASE_RETRY).await;
    }
}

async fn wait_for(lease: &LeaseManager) -> bool {
    match lease.changed().await {
        Ok(leads) => leads,
        Err(error) => {
            tracing::warn!(%error, "cannot ask for the lease; trying again");
            false
        }
    }
}

impl Leadership {
    /// Keeps the lease; returns when it is lost, or can't be renewed before it expires.
    pub(super) async fn lost(&self) {
        let mut failing_since: Option<Instant> = None;
        loop {
            let called = Instant::now();
            match self.lease.changed().await {
                Ok(false) => return,
                Ok(true) => failing_since = None,
                Err(error) => {
                    // Renewal begins GRACE before the lease expires; a call that took longer than that was a renewal.
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if called.elapsed() > Duration::from_secs(GRACE) {
                        failing_since = Some(Instant::now());
                    }
                    tracing::warn!(%error, "cannot renew the lease");
                    if since.elapsed() >= Duration::from_secs(GRACE - GRACE / 3) {
                        return;
                    }
                    sleep(LEASE_RETRY.min(Duration::from_secs(GRACE) / 5)).await;
                }
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait until it expires.
    pub(super) async fn release(self) {
        if let Ok(Err(error)) = timeout(LEASE_RETRY, self.lease.release()).await {
            tracing::debug!(%error, "cannot release the lease");
        }
    }
}
