//! How long after a container's start a watcher of the API knows of it, beside one bare write of a status.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use bosun_proto::cri;
use futures::{Stream, TryStreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams, WatchEvent};
use serde_json::json;

use crate::cri::Runtime;
use crate::pods;

/// Milliseconds, sorted.
pub(crate) struct Times(Vec<f64>);

impl Times {
    /// The value below which this share (0 to 1) of all is.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let at = (self.0.len() as f64 * share) as usize;
        self.0.get(at.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

/// One pod after another: from the moment at which the runtime started the container, by its own clock, to the watch
/// event that says so.
pub(crate) async fn running(client: &Client, runtime: &Runtime, node: &str, count: usize) -> Result<Times> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut values = Vec::new();
    for number in 0..count {
        let name = format!("seen-{number}");
        let events = pods::watch(&api).await?;
        api.create(&PostParams::default(), &pods::pod(&name, node)?).await?;
        let (id, seen) = within(first_running(events, &name)).await?;
        let started = started_at(runtime, &id).await?;
        values.push(seen.duration_since(started).unwrap_or_default().as_secs_f64() * 1000.0);
        pods::delete_one(client, &name).await?;
    }
    Ok(Times::of(values))
}

/// The id of the pod's container, and when the watch said that it runs.
async fn first_running(
    events: impl Stream<Item = kube::Result<WatchEvent<Pod>>>,
    name: &str,
) -> Result<(String, SystemTime)> {
    pin_mut!(events);
    while let Some(event) = events.try_next().await? {
        let WatchEvent::Modified(pod) = event else { continue };
        let now = SystemTime::now();
        let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
        let running = status.filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
        if let (Some(running), true) = (running, pod.metadata.name.as_deref() == Some(name)) {
            let id = running.container_id.as_deref().and_then(|id| id.split("://").nth(1));
            return Ok((id.context("a running container without an id")?.to_owned(), now));
        }
    }
    bail!("the watch ended")
}

async fn started_at(runtime: &Runtime, id: &str) -> Result<SystemTime> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let status = runtime.container_status(request).await?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(status.started_at)?))
}

/// A patch of a pod's status by a client that has nothing else to do, to the watch event that shows it.
pub(crate) async fn bare(client: &Client, node: &str, count: usize) -> Result<Times> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    // A pod that no node takes: nobody else writes to it.
    let mut pod = pods::pod("bare", node)?;
    pod.spec.get_or_insert_default().scheduler_name = Some("nobody".to_owned());
    api.create(&PostParams::default(), &pod).await?;
    let mut values = Vec::new();
    for number in 0..count {
        let message = format!("write {number}");
        let events = pods::watch(&api).await?;
        let patch = json!({"status": {"message": message}});
        let started = Instant::now();
        let seen = async {
            pin_mut!(events);
            while let Some(event) = events.try_next().await? {
                if let WatchEvent::Modified(pod) = event
                    && pod.status.and_then(|status| status.message).as_deref() == Some(&message)
                {
                    return Ok(started.elapsed());
                }
            }
            bail!("the watch ended")
        };
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let (written, seen) = tokio::join!(api.patch_status("bare", &parameters, &patch), within(seen));
        written?;
        values.push(seen?.as_secs_f64() * 1000.0);
    }
    pods::delete_one(client, "bare").await?;
    Ok(Times::of(values))
}

async fn within<T>(waiting: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(Duration::from_secs(60), waiting).await.context("not within a minute")?
}
