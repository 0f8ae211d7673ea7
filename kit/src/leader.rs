//! Leader election by a Lease: of several instances one works, the others wait.

use std::time::{Duration, Instant};

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Who we are, and which lease we want.
#[derive(Clone, Debug)]
pub struct LeaderElection {
    namespace: String,
    name: String,
    identity: String,
}

/// What an instance does next about the lease.
#[derive(Debug, PartialEq)]
enum Move {
    /// Write this.
    Write(Box<LeaseSpec>),
    /// Another instance holds it.
    Wait,
}

/// What was last seen of the lease, by our own clock: another machine's clock proves nothing.
#[derive(Default)]
struct Seen {
    spec: Option<LeaseSpec>,
    at: Option<Instant>,
}

impl LeaderElection {
    /// An election for the lease `name` in `namespace`; our identity is the host's name and something unique.
    pub fn new(namespace: &str, name: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}_{:016x}", host.trim(), rand::random::<u64>());
        Self { namespace: namespace.to_owned(), name: name.to_owned(), identity }
    }

    /// Waits for the lease, works while it is ours, and gives it up at the end.
    ///
    /// # Errors
    /// The lease was lost, or what the work itself answers.
    pub async fn run<F>(
        self,
        client: Client,
        cancel: CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let api: Api<Lease> = Api::namespaced(client, &self.namespace);
        let mut seen = Seen::default();
        loop {
            if self.attempt(&api, &mut seen).await {
                break;
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(crate::backoff::jittered(RETRY, 0.2)) => {}
            }
        }
        tracing::info!(lease = self.name, identity = self.identity, "became the leader");
        let working = cancel.child_token();
        let held = self.hold(&api, &mut seen);
        let done = work(working.clone());
        let (mut held, mut done) = (std::pin::pin!(held), std::pin::pin!(done));
        let lost = tokio::select! {
            result = &mut done => {
                self.release(&api).await;
                return result;
            }
            () = &mut held => true,
        };
        working.cancel();
        done.await?;
        if lost {
            bail!(
                "lease {}/{} was lost: another instance leads now, or the API server cannot be reached",
                self.namespace,
                self.name
            );
        }
        Ok(())
    }

    /// Renews until that fails for too long.
    async fn hold(&self, api: &Api<Lease>, seen: &mut Seen) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            tokio::time::sleep(RETRY).await;
            if self.attempt(api, seen).await {
                renewed = Instant::now();
            }
        }
    }

    async fn attempt(&self, api: &Api<Lease>, seen: &mut Seen) -> bool {
        match tokio::time::timeout(RENEW_DEADLINE / 2, self.try_take(api, seen)).await {
            Ok(Ok(ours)) => ours,
            Ok(Err(error)) => {
                tracing::debug!(%error, lease = self.name, "lease not taken");
                false
            }
            Err(_) => false,
        }
    }

    async fn try_take(&self, api: &Api<Lease>, seen: &mut Seen) -> kube::Result<bool> {
        let current = api.get_opt(&self.name).await?;
        let spec = current.as_ref().and_then(|l| l.spec.as_ref());
        if seen.spec.as_ref() != spec || seen.at.is_none() {
            *seen = Seen { spec: spec.cloned(), at: Some(Instant::now()) };
        }
        let idle = seen.at.map(|at| at.elapsed()).unwrap_or_default();
        let Move::Write(spec) = plan(spec, &self.identity, idle, Timestamp::now()) else {
            return Ok(false);
        };
        match current {
            Some(mut lease) => {
                lease.spec = Some(*spec);
                api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..ObjectMeta::default()
                };
                api.create(&PostParams::default(), &Lease { metadata, spec: Some(*spec) }).await?;
            }
        }
        Ok(true)
    }

    async fn try_release(&self, api: &Api<Lease>) -> kube::Result<()> {
        let Some(mut lease) = api.get_opt(&self.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    /// Lets the next instance in at once.
    async fn release(&self, api: &Api<Lease>) {
        let released = self.try_release(api);
        if !matches!(tokio::time::timeout(RETRY, released).await, Ok(Ok(()))) {
            tracing::debug!(lease = self.name, "lease not released; it runs out by itself");
        }
    }
}

/// What to do about the lease as it stands; `idle` is how long it has not changed.
fn plan(current: Option<&LeaseSpec>, identity: &str, idle: Duration, now: Timestamp) -> Move {
    let holder = current.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let ours = holder == identity;
    let lifetime = current.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let expired = idle >= lifetime.map_or(LEASE, Duration::from_secs);
    if !holder.is_empty() && !ours && !expired {
        return Move::Wait;
    }
    let before = current.cloned().unwrap_or_default();
    let transitions = before.lease_transitions.unwrap_or_default();
    Move::Write(Box::new(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: if ours { before.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if ours || current.is_none() { transitions } else { transitions + 1 }),
        ..before
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(2),
            ..LeaseSpec::default()
        }
    }

    fn written(next: Move) -> LeaseSpec {
        match next {
            Move::Write(spec) => *spec,
            Move::Wait => panic!("should write"),
        }
    }

    #[test]
    fn a_held_lease_is_left_alone_until_it_expires() {
        let now = Timestamp::UNIX_EPOCH;
        let lease = held_by("other");
        assert_eq!(plan(Some(&lease), "me", Duration::from_secs(14), now), Move::Wait);
        let taken = written(plan(Some(&lease), "me", Duration::from_secs(15), now));
        assert_eq!(taken.holder_identity.as_deref(), Some("me"));
        assert_eq!(taken.lease_transitions, Some(3));
    }

    #[test]
    fn renewal_is_no_transition() {
        let spec = written(plan(Some(&held_by("me")), "me", Duration::ZERO, Timestamp::UNIX_EPOCH));
        assert_eq!(spec.lease_transitions, Some(2));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let spec = written(plan(Some(&held_by("")), "me", Duration::ZERO, Timestamp::UNIX_EPOCH));
        assert_eq!(spec.holder_identity.as_deref(), Some("me"));
    }
}
