//! The runtime is told the addresses that the node's pods have, as soon as the node has them: a containerd whose CNI
//! configuration is a template (`conf_template`) writes it from that.

use std::sync::Arc;
use std::time::Duration;

use bosun_kit::backoff::Backoff;
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cri::Runtime;

/// The node's ranges, joined by commas as the CRI takes them; none yet is none.
fn ranges(node: &Node) -> Option<String> {
    let spec = node.spec.as_ref()?;
    let all = spec.pod_cidrs.as_deref().unwrap_or_default().join(",");
    let range = if all.is_empty() { spec.pod_cidr.clone().unwrap_or_default() } else { all };
    Some(range).filter(|range| !range.is_empty())
}

/// The same without a Node object: the configuration's `podCIDR`.
pub(crate) async fn announce(runtime: Arc<dyn Runtime>, range: String, cancel: CancellationToken) {
    let spec = NodeSpec { pod_cidr: Some(range), ..NodeSpec::default() };
    let (_kept, node) = watch::channel(Some(Arc::new(Node { spec: Some(spec), ..Node::default() })));
    follow(runtime, node, cancel).await;
}

/// Follows the Node object until cancelled.
pub(crate) async fn follow(
    runtime: Arc<dyn Runtime>,
    mut node: watch::Receiver<Option<Arc<Node>>>,
    cancel: CancellationToken,
) {
    let mut told = None;
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
    loop {
        let wanted = node.borrow_and_update().as_deref().and_then(ranges);
        let mut retry = None;
        if let Some(range) = wanted.filter(|range| told.as_ref() != Some(range)) {
            match runtime.set_pod_cidr(&range).await {
                Ok(()) => {
                    tracing::info!(range, "the container runtime knows the addresses of pods");
                    backoff.reset();
                    told = Some(range);
                }
                Err(error) => {
                    tracing::warn!(range, %error, "the container runtime was not told the addresses of pods");
                    retry = Some(backoff.next_delay());
                }
            }
        }
        let pause = async {
            match retry {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = node.changed() => if changed.is_err() { return },
            () = pause => {}
            () = cancel.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::fake::FakeRuntime;

    fn node(spec: serde_json::Value) -> Option<Arc<Node>> {
        Some(Arc::new(serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_runtime_hears_each_change_once_and_again_until_it_has_heard() {
        let runtime = Arc::new(FakeRuntime::new());
        runtime.fail_next("UpdateRuntimeConfig", "not now");
        let (tell, told) = watch::channel(node(serde_json::json!({})));
        let cancel = CancellationToken::new();
        let task = tokio::spawn(follow(runtime.clone(), told, cancel.clone()));
        let pause = || tokio::time::sleep(Duration::from_secs(5));
        pause().await;
        assert!(runtime.take_calls().is_empty());
        tell.send_replace(node(
            serde_json::json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}),
        ));
        pause().await;
        let both = "UpdateRuntimeConfig 10.1.0.0/24,fd00::/64".to_owned();
        assert_eq!(runtime.take_calls(), [both.clone(), both], "refused at first");
        tell.send_replace(node(
            serde_json::json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}),
        ));
        pause().await;
        tell.send_replace(node(serde_json::json!({"podCIDR": "10.2.0.0/24"})));
        pause().await;
        assert_eq!(runtime.take_calls(), ["UpdateRuntimeConfig 10.2.0.0/24"]);
        cancel.cancel();
        task.await.unwrap();
    }
}
