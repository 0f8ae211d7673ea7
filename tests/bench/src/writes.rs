//! Many objects written by several clients, each with a connection of its own.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use bosun_kit::client::from_kubeconfig;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use serde_json::json;

const CLIENTS: usize = 8;

/// Writes `services` Services and an EndpointSlice for each; returns objects per second.
pub(crate) async fn services_and_slices(kubeconfig: &Path, services: usize) -> Result<f64> {
    let connecting = (0..CLIENTS).map(|_| from_kubeconfig(kubeconfig));
    let clients = try_join_all(connecting).await?;
    for client in &clients {
        crate::pods::reachable(client).await?;
    }
    let started = Instant::now();
    let tasks = clients.into_iter().enumerate().map(|(number, client)| {
        tokio::spawn(async move {
            let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
            let wanted: Api<Service> = Api::default_namespaced(client);
            let parameters = PostParams::default();
            for index in (number..services).step_by(CLIENTS) {
                wanted.create(&parameters, &service(index)?).await.context("a Service cannot be written")?;
                slices.create(&parameters, &slice(index)?).await.context("an EndpointSlice cannot be written")?;
            }
            anyhow::Ok(())
        })
    });
    for result in try_join_all(tasks).await.map_err(|error| anyhow!("a client panicked: {error}"))? {
        result?;
    }
    Ok((2 * services) as f64 / started.elapsed().as_secs_f64())
}

fn service(index: usize) -> Result<Service> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": format!("bench-{index}") },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    }))?)
}

fn slice(index: usize) -> Result<EndpointSlice> {
    let address = format!("10.250.{}.{}", index / 250 % 250, index % 250 + 1);
    let name = format!("bench-{index}");
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
    }))?)
}
