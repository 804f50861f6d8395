// SPDX-License-Identifier: Apache-2.0
//! Which replica leads: one Lease, and the end of the process when it is lost.
//!
//! A lease is over when its holder has not renewed it for its duration *while we looked on*, on our monotonic clock:
//! clocks of two machines differ, and a lease that lives must not be taken by the one that is ahead. Each write names the
//! version that it is based on, so that of two replicas that take the same lease one is refused.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::Request;
use kube::{Client, Config, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::client::told;
use crate::cluster::seen::Lease;

/// How long a lease is valid without renewal.
const DURATION: Duration = Duration::from_secs(30);
/// How often it is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(8);
/// How long after its last renewal a replica may work. Others take the lease after [`DURATION`] at the earliest.
const LEAD_LIMIT: Duration = Duration::from_secs(20);
/// How soon a failed call is repeated.
const LEASE_RETRY: Duration = Duration::from_secs(2);
/// How often a replica that stands by looks.
const STANDBY_POLL: Duration = Duration::from_secs(4);
/// A call that hangs must not outlive the lease that it would renew.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// What was last seen of a lease, and since when.
#[derive(Clone, Debug, PartialEq)]
struct Observed {
    holder: String,
    renewed: Option<String>,
    since: Instant,
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It is nobody's, or its holder is gone: take it.
    Take,
    /// It is ours.
    Renew,
    Wait,
}

/// Decides by the lease as it is now and as it was `seen` before.
fn decide(lease: &Lease, me: &str, seen: &mut Option<Observed>, now: Instant) -> Act {
    let spec = lease.spec.clone().unwrap_or_default();
    let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty()) else { return Act::Take };
    if holder == me {
        return Act::Renew;
    }
    let is_same = |seen: &Observed| seen.holder == holder && seen.renewed == spec.renew_time;
    let observed = match seen.take().filter(is_same) {
        Some(observed) => observed,
        None => Observed { holder, renewed: spec.renew_time, since: now },
    };
    let valid = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let is_over = now.duration_since(observed.since) > valid.map_or(DURATION, Duration::from_secs);
    *seen = Some(observed);
    if is_over { Act::Take } else { Act::Wait }
}

/// A lease that is held.
pub(super) struct Leadership {
    client: Client,
    namespace: String,
    name: String,
    identity: String,
    held: Held,
}

/// The lease as we wrote it last.
struct Held {
    lease: Lease,
    /// When that call began.
    since: Instant,
}

/// Why a call failed.
type Refused = Box<kube::Error>;

/// Waits until this replica, named `identity`, holds the lease.
///
/// # Errors
/// Only if no client can be made of `config`; while the API server is unreachable, this waits.
pub(super) async fn acquire(
    config: &Config,
    namespace: &str,
    name: &str,
    identity: &str,
) -> Result<Leadership, kube::Error> {
    let mut config = config.clone();
    config.connect_timeout = Some(CALL_LIMIT);
    config.read_timeout = Some(CALL_LIMIT);
    let client = Client::try_from(config)?;
    let mut standby = Standby { client: &client, namespace, name, identity, seen: None };
    loop {
        match standby.look().await {
            Ok(Some(held)) => {
                let (namespace, name, identity) = (namespace.to_owned(), name.to_owned(), identity.to_owned());
                return Ok(Leadership { client, namespace, name, identity, held });
            }
            Ok(None) => sleep(STANDBY_POLL).await,
            Err(error) => {
                tracing::warn!(error = told(&error), "cannot ask for the lease; trying again");
                sleep(LEASE_RETRY).await;
            }
        }
    }
}

/// A replica that waits for the lease.
struct Standby<'a> {
    client: &'a Client,
    namespace: &'a str,
    name: &'a str,
    identity: &'a str,
    seen: Option<Observed>,
}

impl Standby<'_> {
    /// Takes the lease if that may be; the lease that is then held.
    async fn look(&mut self) -> Result<Option<Held>, Refused> {
        let since = Instant::now();
        let api = api(self.client, self.namespace);
        let Some(lease) = api.get_opt(self.name).await? else {
            return self.create(since).await;
        };
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
        match decide(&lease, self.identity, &mut self.seen, since) {
            Act::Wait => Ok(None),
            Act::Renew => write(&api, &lease, self.identity, renewal(), since).await,
            Act::Take => write(&api, &lease, self.identity, term(self.identity, transitions + 1), since).await,
        }
    }

    async fn create(&self, since: Instant) -> Result<Option<Held>, Refused> {
        let lease = json!({
            "apiVersion": Lease::api_version(&()), "kind": Lease::kind(&()),
            "metadata": {"name": self.name}, "spec": term(self.identity, 0),
        });
        let request = Request::new(Lease::url_path(&(), Some(self.namespace)))
            .create(&kube::api::PostParams::default(), lease.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        taken(self.client.request(request).await, since)
    }
}

fn api(client: &Client, namespace: &str) -> Api<Lease> {
    Api::namespaced(client.clone(), namespace)
}

/// The fields of a lease that begins now.
fn term(identity: &str, transitions: i64) -> Value {
    let now = format!("{:.6}", Timestamp::now());
    json!({
        "holderIdentity": identity, "acquireTime": now, "renewTime": now,
        "leaseDurationSeconds": DURATION.as_secs(), "leaseTransitions": transitions,
    })
}

fn renewal() -> Value {
    json!({"renewTime": format!("{:.6}", Timestamp::now()), "leaseDurationSeconds": DURATION.as_secs()})
}

/// Writes these fields to this version of the lease; `None` where another writer was first.
async fn write(
    api: &Api<Lease>,
    lease: &Lease,
    identity: &str,
    spec: Value,
    since: Instant,
) -> Result<Option<Held>, Refused> {
    let params = PatchParams { field_manager: Some(format!("hyper2kvm-lease-{identity}")), ..PatchParams::default() };
    let patch = json!({"metadata": {"resourceVersion": lease.resource_version()}, "spec": spec});
    taken(api.patch(&lease.name_any(), &params, &Patch::Merge(patch)).await, since)
}

fn taken(answer: Result<Lease, kube::Error>, since: Instant) -> Result<Option<Held>, Refused> {
    match answer {
        Ok(lease) => Ok(Some(Held { lease, since })),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Leadership {
    /// Keeps the lease; returns when it is lost, or can't be renewed in time.
    pub(super) async fn lost(&mut self) {
        let mut pause = RENEW_INTERVAL;
        loop {
            let left = (self.held.since + LEAD_LIMIT).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(pause.min(left)).await;
            pause = match self.renew().await {
                Ok(true) => RENEW_INTERVAL,
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(error = told(&error), "cannot renew the lease");
                    LEASE_RETRY
                }
            };
        }
    }

    /// Renews the lease; false where another replica holds it.
    async fn renew(&mut self) -> Result<bool, Refused> {
        let (since, api) = (Instant::now(), api(&self.client, &self.namespace));
        if let Some(held) = write(&api, &self.held.lease, &self.identity, renewal(), since).await? {
            self.held = held;
            return Ok(true);
        }
        // Somebody wrote to it, or our own write came through although its answer was lost.
        let Some(lease) = api.get_opt(&self.name).await? else { return Ok(false) };
        if decide(&lease, &self.identity, &mut None, since) != Act::Renew {
            return Ok(false);
        }
        let held = write(&api, &lease, &self.identity, renewal(), since).await?;
        let is_held = held.is_some();
        self.held = held.unwrap_or(Held { lease, since: self.held.since });
        Ok(is_held || self.held.since.elapsed() < LEAD_LIMIT)
    }

    /// Gives the lease up, so that another replica need not wait until it is over.
    pub(super) async fn release(self) {
        let none =
            json!({"holderIdentity": null, "acquireTime": null, "renewTime": null, "leaseDurationSeconds": null});
        let api = api(&self.client, &self.namespace);
        let released = write(&api, &self.held.lease, &self.identity, none, Instant::now());
        if let Ok(Err(error)) = timeout(LEASE_RETRY, released).await {
            tracing::debug!(error = told(&error), "cannot release the lease");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: &str) -> Lease {
        let spec = json!({"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 30});
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": spec})).unwrap()
    }

    #[tokio::test]
    async fn a_lease_is_over_when_nobody_renewed_it_while_we_looked_on_whatever_its_clock_says() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut seen = None;
        for (second, lease, expected) in [
            // By the holder's clock it was over long ago, or begins in a year.
            (0, lease("a", "2020-01-01T00:00:00.000000Z"), Act::Wait),
            (29, lease("a", "2020-01-01T00:00:00.000000Z"), Act::Wait),
            (30, lease("a", "2030-01-01T00:00:00.000000Z"), Act::Wait),
            (60, lease("a", "2030-01-01T00:00:00.000000Z"), Act::Wait),
            (61, lease("a", "2030-01-01T00:00:00.000000Z"), Act::Take),
            (62, lease("b", "2030-01-01T00:00:00.000000Z"), Act::Wait),
            (63, lease("me", "2020-01-01T00:00:00.000000Z"), Act::Renew),
            (64, lease("", "2030-01-01T00:00:00.000000Z"), Act::Take),
        ] {
            assert_eq!(decide(&lease, "me", &mut seen, after(second)), expected, "{second}");
        }
        assert_eq!(decide(&Lease::default(), "me", &mut seen, begun), Act::Take);
    }
}
