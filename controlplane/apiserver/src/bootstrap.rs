//! What must be there before the first request, and what the server does on its own while it runs.

use std::sync::Arc;
use std::time::Duration;

use bosun_api::resource::{self, Resource};
use bosun_api::selector::{FieldSelector, Selector};
use bosun_store::{Range, Store, Txn};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::call::{Call, Kind};
use crate::object::{Filter, Raw};
use crate::server::{Inner, StartError};
use crate::strategy::Part;

/// Namespaces that the server makes itself.
const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];
/// History is kept this long, as stock keeps it.
const COMPACTION_PERIOD: Duration = Duration::from_secs(300);

/// Make what is missing.
pub(crate) async fn prepare(inner: &Arc<Inner>) -> Result<(), StartError> {
    let listing = inner.store.list(Range { prefix: "/registry/services/specs/".into(), ..Range::default() }).await?;
    for kv in &listing.items {
        inner.services.note(&Raw::of(kv).value());
    }
    for name in NAMESPACES {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        ensure(inner, of("", "v1", "namespaces"), "", name, namespace).await?;
    }
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"});
        ensure(inner, of("scheduling.k8s.io", "v1", "priorityclasses"), "", name, class).await?;
    }
    for (plural, role) in bosun_authz::bootstrap::objects() {
        reconcile_role(inner, of("rbac.authorization.k8s.io", "v1", plural), role).await?;
    }
    kubernetes_service(inner).await
}

/// Give a stock role or binding what it lacks, unless somebody has said that it is theirs now.
async fn reconcile_role(inner: &Arc<Inner>, resource: &'static Resource, role: Value) -> Result<(), StartError> {
    // In the form in which it is kept, so that it can be compared with what is.
    let mut wanted = role;
    if let Ok(decoded) = Call::internal(resource, "", "").decode_value(&Kind::of(resource), wanted.clone()) {
        wanted = decoded;
        bosun_api::defaults::apply(resource, &mut wanted);
    }
    let text = |key: &str| wanted["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    if ensure(inner, resource, &namespace, &name, wanted.clone()).await? {
        return Ok(());
    }
    let call = Call::internal(resource, &namespace, &name);
    let changed = inner.change(&call, Part::Main, |present| {
        let mut new = present.clone();
        let update = &present["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"];
        if update != "true" {
            return Ok(new);
        }
        for list in ["rules", "subjects"] {
            let missing: Vec<Value> = wanted[list]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|item| !present[list].as_array().is_some_and(|all| all.contains(item)))
                .cloned()
                .collect();
            // The rules of an aggregated role are not its own.
            if !missing.is_empty() && wanted["aggregationRule"].is_null() {
                let mut all = present[list].as_array().cloned().unwrap_or_default();
                all.extend(missing);
                new[list] = all.into();
            }
        }
        for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
            new["metadata"]["labels"][key] = value.clone();
        }
        Ok(new)
    });
    changed
        .await
        .map(|_| ())
        .map_err(|error| StartError::Prepare { what: format!("{} {name}", resource.plural), error })
}

fn of(group: &str, version: &str, plural: &str) -> &'static Resource {
    resource::find(group, version, plural).expect("a resource of the table")
}

/// Create an object if there is none of its name; `true` if there was none.
pub(crate) async fn ensure(
    inner: &Arc<Inner>,
    resource: &'static Resource,
    namespace: &str,
    name: &str,
    value: Value,
) -> Result<bool, StartError> {
    let failed = |error| StartError::Prepare { what: format!("{} {name}", resource.plural), error };
    if inner.store.get(&resource.key(namespace, name)).await?.is_some() {
        return Ok(false);
    }
    match inner.create_object(&Call::internal(resource, namespace, ""), value).await {
        Ok(_) => Ok(true),
        Err(error) if error.reason() == "AlreadyExists" => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// The Service through which pods reach this server, and its endpoints.
async fn kubernetes_service(inner: &Arc<Inner>) -> Result<(), StartError> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let Some(address) = inner.services.first() else { return Ok(()) };
    let target = inner.config.advertise.map_or(6443, |addr| addr.port());
    let service = json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": address.to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": target}]}});
    ensure(inner, of("", "v1", "services"), "default", "kubernetes", service).await?;
    let Some(advertise) = inner.config.advertise else { return Ok(()) };
    let subset = json!({"addresses": [{"ip": advertise.ip().to_string()}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}]});
    let mirrored = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let endpoints = json!({"kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": mirrored}, "subsets": [subset]});
    put(inner, of("", "v1", "endpoints"), endpoints).await?;
    let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [advertise.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}]});
    put(inner, of("discovery.k8s.io", "v1", "endpointslices"), slice).await
}

/// Create an object in `default`, or make it what it should be.
async fn put(inner: &Arc<Inner>, resource: &'static Resource, value: Value) -> Result<(), StartError> {
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    ensure(inner, resource, "default", &name, value.clone()).await?;
    let call = Call::internal(resource, "default", &name);
    let changed = inner.change(&call, Part::Main, |old| {
        let mut new = value.clone();
        new["metadata"] = old["metadata"].clone();
        new["metadata"]["labels"] = value["metadata"]["labels"].clone();
        Ok(new)
    });
    changed
        .await
        .map(|_| ())
        .map_err(|error| StartError::Prepare { what: format!("{} {name}", resource.plural), error })
}

/// Forget history once it is old.
pub(crate) async fn compact_for_ever(store: Arc<dyn Store>) {
    let mut before = None;
    loop {
        tokio::time::sleep(COMPACTION_PERIOD).await;
        if let Some(revision) = before {
            match store.compact(revision).await {
                Ok(()) => tracing::debug!(revision, "store compacted"),
                Err(bosun_store::Error::Compacted { .. }) => {}
                Err(error) => tracing::warn!(%error, revision, "compaction failed; it will be tried again"),
            }
        }
        before = store.revision().await.ok();
    }
}

/// The Service of this server is looked after this often.
const SERVICE_PERIOD: Duration = Duration::from_secs(10);

/// Make the `kubernetes` Service and its endpoints again if somebody deletes or changes them.
pub(crate) async fn keep_service_for_ever(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(SERVICE_PERIOD).await;
        if let Err(error) = kubernetes_service(&inner).await {
            tracing::warn!(%error, "the kubernetes Service could not be kept");
        }
    }
}

/// Events are forgotten an hour after they were last seen, as in stock.
const EVENT_SECONDS: i64 = 3600;
const EVENT_SWEEP: Duration = Duration::from_secs(60);

/// Delete old events.
pub(crate) async fn expire_events_for_ever(inner: Arc<Inner>) {
    let events = of("", "v1", "events");
    loop {
        tokio::time::sleep(EVENT_SWEEP).await;
        let all = Filter {
            resource: events,
            namespace: String::new(),
            labels: Selector::everything(),
            fields: FieldSelector::default(),
        };
        let oldest = Timestamp::now().as_second() - EVENT_SECONDS;
        for object in inner.caches.list(&all, None, 0).objects {
            if last_seen(&object.raw.value()).is_some_and(|seen| seen < oldest) {
                // Somebody else's write or deletion in between is as good.
                let _ = inner.store.txn(Txn::delete(object.key.as_ref(), object.raw.revision)).await;
            }
        }
    }
}

fn last_seen(event: &Value) -> Option<i64> {
    let times = [
        &event["metadata"]["creationTimestamp"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["series"]["lastObservedTime"],
    ];
    times.iter().filter_map(|time| time.as_str()?.parse::<Timestamp>().ok()).map(Timestamp::as_second).max()
}
