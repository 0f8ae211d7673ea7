//! Pods through the API: created, seen Ready, deleted, seen gone, as a client that watches.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bosun_tests::images::WEB;
use futures::future::try_join_all;
use futures::{Stream, TryStreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);

/// Seconds until all were Ready, and until all were gone.
pub(crate) struct Times {
    pub(crate) ready: f64,
    pub(crate) gone: f64,
}

/// Creates `count` pods at once on `node`, waits until all are Ready, deletes them at once, waits until all are gone.
pub(crate) async fn round(client: &Client, node: &str, prefix: &str, count: usize) -> Result<Times> {
    let ready = create(client, node, prefix, count).await?;
    let gone = delete(client, prefix, count).await?;
    Ok(Times { ready, gone })
}

/// Creates pods and returns the seconds until all were Ready.
pub(crate) async fn create(client: &Client, node: &str, prefix: &str, count: usize) -> Result<f64> {
    create_of(client, node, prefix, count, pod).await
}

/// The same with pods of another making.
pub(crate) async fn create_of(
    client: &Client,
    node: &str,
    prefix: &str,
    count: usize,
    pod: fn(&str, &str) -> Result<Pod>,
) -> Result<f64> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let events = watch(&api).await?;
    let started = Instant::now();
    let parameters = PostParams::default();
    let pods: Vec<Pod> = names(prefix, count).map(|name| pod(&name, node)).collect::<Result<_>>()?;
    let mut waiting: HashSet<String> = names(prefix, count).collect();
    let creating = try_join_all(pods.iter().map(|pod| api.create(&parameters, pod)));
    let all_ready = until(events, |event| {
        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
            && is_ready(pod)
        {
            waiting.remove(pod.metadata.name.as_deref().unwrap_or_default());
        }
        waiting.is_empty()
    });
    let (created, seen) = tokio::join!(creating, all_ready);
    created.context("pods cannot be created")?;
    seen.with_context(|| format!("not all of {count} pods became Ready"))?;
    Ok(started.elapsed().as_secs_f64())
}

/// Deletes what [`create`] made and returns the seconds until all were gone.
pub(crate) async fn delete(client: &Client, prefix: &str, count: usize) -> Result<f64> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let events = watch(&api).await?;
    let started = Instant::now();
    let parameters = DeleteParams::default();
    let mut waiting: HashSet<String> = names(prefix, count).collect();
    let wanted: Vec<String> = names(prefix, count).collect();
    let deleting = try_join_all(wanted.iter().map(|name| api.delete(name, &parameters)));
    let all_gone = until(events, |event| {
        if let WatchEvent::Deleted(pod) = event {
            waiting.remove(pod.metadata.name.as_deref().unwrap_or_default());
        }
        waiting.is_empty()
    });
    let (deleted, seen) = tokio::join!(deleting, all_gone);
    deleted.context("pods cannot be deleted")?;
    seen.with_context(|| format!("not all of {count} pods went"))?;
    Ok(started.elapsed().as_secs_f64())
}

/// Deletes one pod and waits until it is gone.
pub(crate) async fn delete_one(client: &Client, name: &str) -> Result<()> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let events = watch(&api).await?;
    api.delete(name, &DeleteParams::default()).await?;
    let gone = |event: &WatchEvent<Pod>| matches!(event, WatchEvent::Deleted(pod) if pod.metadata.name.as_deref() == Some(name));
    until(events, gone).await.with_context(|| format!("{name} did not go"))
}

/// Pods as they change from now on.
pub(crate) async fn watch(api: &Api<Pod>) -> Result<impl Stream<Item = kube::Result<WatchEvent<Pod>>> + use<>> {
    let from = api.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    Ok(api.watch(&WatchParams::default().timeout(280), &from).await?)
}

async fn until<K>(
    events: impl Stream<Item = kube::Result<WatchEvent<K>>>,
    mut enough: impl FnMut(&WatchEvent<K>) -> bool,
) -> Result<()> {
    pin_mut!(events);
    let waiting = async {
        while let Some(event) = events.try_next().await? {
            if enough(&event) {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(LIMIT, waiting).await.with_context(|| format!("not within {LIMIT:?}"))?
}

fn names(prefix: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let prefix = prefix.to_owned();
    (0..count).map(move |number| format!("{prefix}-{number}"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True")
}

/// Without requests, probes or volumes; placed by the scheduler, on the wanted node. The raw calls make the same pod.
pub(crate) fn pod(name: &str, node: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "app": "bench" } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "automountServiceAccountToken": false,
            "containers": [{ "name": "web", "image": WEB, "imagePullPolicy": "Never" }],
        },
    }))?)
}

/// Waits until a node is Ready.
pub(crate) async fn node_ready(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let from = nodes.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let events = nodes.watch(&WatchParams::default().fields(&format!("metadata.name={name}")), &from).await?;
    let seen = until(events, |event| match event {
        WatchEvent::Added(node) | WatchEvent::Modified(node) => {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True")
        }
        _ => false,
    });
    seen.await.with_context(|| format!("{name} did not become Ready"))
}

/// Makes sure that a client's connection is there and is answered.
pub(crate) async fn reachable(client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.list(&ListParams::default()).await.context("the API server does not answer")?;
    Ok(())
}
