//! Node IPAM: each node gets its part of the cluster's pod network.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bosun_api::node::pod_cidrs;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::objects::reference;
use crate::runtime::{Context, Controller, Key, SyncError, Synced, gone_is_fine};

/// A network that is cut into parts of one size.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    network: IpNet,
    size: u8,
}

/// The lowest part of the pool that overlaps nothing taken; none if the pool is used up.
fn allocate(pool: &Pool, taken: &BTreeSet<IpNet>, reserved: Option<&IpNet>) -> Option<IpNet> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(&b.network()) || b.contains(&a.network());
    let parts = pool.network.subnets(pool.size).ok()?;
    // Parts are tried in order; what is taken is sorted, so a set lookup decides for parts of our own size.
    parts.into_iter().find(|part| {
        !taken.contains(part)
            && reserved.is_none_or(|r| !overlaps(part, r))
            && !taken.iter().any(|t| t.prefix_len() != pool.size && overlaps(part, t))
    })
}

#[derive(Clone)]
struct Ipam {
    client: Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    pools: Arc<Vec<Pool>>,
    reserved: Option<IpNet>,
    /// What was handed out, by node; the informer may not show it yet.
    given: Arc<Mutex<HashMap<String, Vec<IpNet>>>>,
}

pub(crate) fn start(context: &Context) {
    let config = &context.config;
    let networks = [config.cluster_cidr, config.second_cluster_cidr];
    let pools: Vec<Pool> = networks
        .into_iter()
        .flatten()
        .map(|network| Pool {
            network,
            size: if matches!(network, IpNet::V4(_)) { config.node_mask_v4 } else { config.node_mask_v6 },
        })
        .collect();
    if pools.is_empty() {
        tracing::info!("no cluster CIDR given: nodes get no pod networks from here");
        return;
    }
    let mut controller = Controller::new(context, super::lifecycle::NAME);
    let this = Ipam {
        client: controller.client.clone(),
        recorder: controller.recorder("cidrAllocator"),
        nodes: context.watches.nodes(),
        pools: Arc::new(pools),
        reserved: config.service_cidr,
        given: Arc::default(),
    };
    let given = this.given.clone();
    controller.watch(&this.nodes, move |delta, queue| {
        let node = delta.object();
        if matches!(delta, Delta::Deleted(_)) {
            given.lock().unwrap_or_else(PoisonError::into_inner).remove(&node.name_any());
        } else if pod_cidrs(node).is_empty() {
            queue.add(Key::of(&node.metadata));
        }
    });
    // One worker: allocation has an order.
    controller.run(1, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Ipam {
    async fn sync(&self, key: Key) -> Synced {
        let Some(node) = self.nodes.get(None, &key.name) else { return Ok(None) };
        if !pod_cidrs(&node).is_empty() {
            return Ok(None);
        }
        let Some(parts) = self.reserve(&key.name) else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(&reference(&*node), EventType::Normal, "CIDRNotAvailable", message);
            return Err(SyncError::Other("no pod network is left in the cluster CIDR: make it larger".to_owned()));
        };
        let texts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        let patch = Patch::Merge(json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        }));
        let api: Api<Node> = Api::all(self.client.clone());
        gone_is_fine(api.patch(&key.name, &PatchParams::default(), &patch).await)?;
        tracing::info!(node = key.name, cidrs = ?texts, "pod network given");
        Ok(None)
    }

    fn reserve(&self, name: &str) -> Option<Vec<IpNet>> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = given.get(name) {
            return Some(before.clone());
        }
        let mut taken: BTreeSet<IpNet> = given.values().flatten().copied().collect();
        for node in self.nodes.list() {
            taken.extend(pod_cidrs(&node).into_iter().filter_map(|c| c.parse::<IpNet>().ok()));
        }
        let parts: Option<Vec<IpNet>> =
            self.pools.iter().map(|pool| allocate(pool, &taken, self.reserved.as_ref())).collect();
        let parts = parts?;
        given.insert(name.to_owned(), parts.clone());
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_part_and_never_a_reserved_one() {
        let pool = Pool { network: net("10.244.0.0/16"), size: 24 };
        let mut taken = BTreeSet::new();
        assert_eq!(allocate(&pool, &taken, None), Some(net("10.244.0.0/24")));
        taken.insert(net("10.244.0.0/24"));
        taken.insert(net("10.244.2.0/24"));
        assert_eq!(allocate(&pool, &taken, None), Some(net("10.244.1.0/24")));
        let reserved = net("10.244.0.0/17");
        assert_eq!(allocate(&pool, &taken, Some(&reserved)), Some(net("10.244.128.0/24")));
    }

    proptest! {
        #[test]
        fn parts_never_overlap_and_all_are_given(size in 20u8..=24, count in 1usize..40) {
            let pool = Pool { network: net("10.0.0.0/18"), size };
            let mut taken = BTreeSet::new();
            for n in 0..count {
                match allocate(&pool, &taken, None) {
                    Some(part) => {
                        prop_assert!(pool.network.contains(&part));
                        prop_assert!(!taken.iter().any(|t: &IpNet| t.contains(&part) || part.contains(t)));
                        taken.insert(part);
                    }
                    None => {
                        prop_assert_eq!(n, 1usize << (size - 18));
                        break;
                    }
                }
            }
        }
    }
}
