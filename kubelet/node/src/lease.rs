//! The node's lease: the cheap sign of life that the node lifecycle controller watches (KEP-589).

use std::time::Duration;

use bosun_kit::backoff::{Backoff, jittered};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::csr::chain;

const NAMESPACE: &str = "kube-node-lease";
const DEADLINE: Duration = Duration::from_secs(10);

/// Renews the lease at each quarter of `duration` until `cancel`. `node_uid` is empty until the Node is known; the
/// lease is then owned by it.
pub async fn keep(
    client: Client,
    node_name: String,
    node_uid: watch::Receiver<Option<String>>,
    duration: Duration,
    cancel: CancellationToken,
) {
    let api = Api::<Lease>::namespaced(client, NAMESPACE);
    let period = duration / 4;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7).min(period));
    let mut known: Option<Lease> = None;
    loop {
        let uid = node_uid.borrow().clone();
        let wanted = renewed(known.take(), &node_name, uid.as_deref(), duration, Timestamp::now());
        let written = tokio::select! {
            written = write(&api, &node_name, wanted) => written,
            () = cancel.cancelled() => return,
        };
        let delay = match written {
            Ok(lease) => {
                known = lease;
                backoff.reset();
                // One that was lost to another writer is read and written again at once.
                if known.is_some() { jittered(period, 0.04) } else { Duration::ZERO }
            }
            Err(error) => {
                tracing::warn!(error, lease = node_name, "node lease not renewed");
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// The lease with a new time. Pure.
pub fn renewed(
    known: Option<Lease>,
    node_name: &str,
    node_uid: Option<&str>,
    duration: Duration,
    now: Timestamp,
) -> Lease {
    let mut lease = known.unwrap_or_default();
    lease.metadata.name = Some(node_name.to_owned());
    lease.metadata.namespace = Some(NAMESPACE.to_owned());
    if let Some(uid) = node_uid
        && lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)
    {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node_name.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node_name.to_owned());
    spec.lease_duration_seconds = i32::try_from(duration.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// Writes the lease; `None` when somebody else wrote it meanwhile.
async fn write(api: &Api<Lease>, name: &str, mut lease: Lease) -> Result<Option<Lease>, String> {
    let within = async {
        if lease.metadata.resource_version.is_some() {
            return match api.replace(name, &PostParams::default(), &lease).await {
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(None),
                replaced => replaced.map(Some),
            };
        }
        if let Some(found) = api.get_opt(name).await? {
            let mut found = found;
            found.spec = lease.spec.take();
            if found.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
                found.metadata.owner_references = lease.metadata.owner_references.take();
            }
            return api.replace(name, &PostParams::default(), &found).await.map(Some);
        }
        api.create(&PostParams::default(), &lease).await.map(Some)
    };
    match tokio::time::timeout(DEADLINE, within).await {
        Ok(written) => written.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer in {DEADLINE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_owned_by_the_node_and_renewed() {
        let now = "2026-01-01T00:00:00.000001Z".parse().unwrap();
        let lease = renewed(None, "node-1", Some("u-1"), Duration::from_secs(40), now);
        let later = "2026-01-01T00:00:10Z".parse().unwrap();
        let again = renewed(Some(lease), "node-1", None, Duration::from_secs(40), later);
        assert_eq!(
            serde_json::to_value(&again).unwrap(),
            serde_json::json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": "node-1",
                    "namespace": "kube-node-lease",
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "u-1"}],
                },
                "spec": {
                    "holderIdentity": "node-1",
                    "leaseDurationSeconds": 40,
                    "renewTime": "2026-01-01T00:00:10.000000Z",
                },
            })
        );
    }
}
