//! The node's `NetworkUnavailable` condition.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

const KIND: &str = "NetworkUnavailable";
const DEADLINE: Duration = Duration::from_secs(10);

/// Says that the network is there, unless that is known.
pub(crate) async fn set_available(client: &Client, node: &Node) -> Result<()> {
    let known = bosun_api::node::condition(node, KIND).is_some_and(|condition| condition.status == "False");
    let Some(name) = node.metadata.name.as_deref().filter(|_| !known) else { return Ok(()) };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({
        "type": KIND,
        "status": "False",
        "reason": "NetdIsUp",
        "message": "bosun-netd is running on this node",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    });
    let patch = json!({ "status": { "conditions": [condition] } });
    let api = Api::<Node>::all(client.clone());
    let params = PatchParams::default();
    timeout(DEADLINE, api.patch_status(name, &params, &Patch::Strategic(patch)))
        .await
        .context("the API server does not answer")
        .and_then(|done| done.context("refused"))
        .with_context(|| format!("set {KIND} of node {name}"))?;
    tracing::info!(node = name, "network is available");
    Ok(())
}
