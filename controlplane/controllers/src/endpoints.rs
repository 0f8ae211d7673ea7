//! Endpoints of Services with a selector: the older form that older clients still read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bosun_api::pod::{is_ready, is_terminal};
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::objects::Map;
use crate::runtime::{Context, Controller, Key, Synced, code, gone_is_fine};
use crate::service_pods::{hostname, is_headless, pod_ips, publishes_unready, route, selector, selects, target_port};

const NAME: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses that one object holds at most.
const CAPACITY: usize = 1000;

/// The object that a Service should have.
fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let unready_too = publishes_unready(service);
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut count = 0;
    for pod in sorted {
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if is_terminal(pod) || (leaving && !unready_too) || count == CAPACITY {
            continue;
        }
        let Some(address) = address(service, pod) else { continue };
        let ports = ports(service, pod);
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        count += 1;
        let subset = subsets.entry(format!("{ports:?}")).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then_some(ports),
            ..EndpointSubset::default()
        });
        let list = if is_ready(pod) || unready_too { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let subsets: Vec<EndpointSubset> = subsets.into_values().map(sort_addresses).collect();
    let before = existing.map(|e| e.metadata.clone()).unwrap_or_default();
    let mut annotations = before.annotations.unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if count == CAPACITY && pods.len() > CAPACITY {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..before
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn sort_addresses(mut subset: EndpointSubset) -> EndpointSubset {
    for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
        list.sort_by_key(|a| a.ip.parse::<IpAddr>().ok());
    }
    subset
}

fn labels(service: &Service) -> Map {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    labels
}

fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let spec = service.spec.as_ref()?;
    let family = spec.ip_families.as_ref().and_then(|f| f.first()).map(String::as_str);
    let six = match family {
        Some(family) => family == "IPv6",
        None => spec.cluster_ip.as_deref().unwrap_or_default().contains(':'),
    };
    let ip = pod_ips(pod).find(|ip| ip.is_ipv6() == six)?;
    Some(EndpointAddress {
        ip: ip.to_string(),
        hostname: hostname(service, pod),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let wanted = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    wanted
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|n| !n.is_empty()),
                port: target_port(port, pod)?,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn same(a: &Endpoints, b: &Endpoints) -> bool {
    a.subsets.as_deref().unwrap_or_default() == b.subsets.as_deref().unwrap_or_default()
        && a.metadata.labels == b.metadata.labels
        && a.metadata.annotations.clone().unwrap_or_default() == b.metadata.annotations.clone().unwrap_or_default()
}

#[derive(Clone)]
struct EndpointsOf {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    pods: Informer<Pod>,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = EndpointsOf {
        client: controller.client.clone(),
        services: context.watches.services(),
        endpoints: context.watches.endpoints(),
        pods: context.watches.pods(),
    };
    controller.watch_own(&this.services);
    controller.watch(&this.pods, route(this.services.clone()));
    controller.watch(&this.endpoints, |delta, queue| {
        if matches!(delta, Delta::Deleted(_)) {
            queue.add(Key::of(&delta.object().metadata));
        }
    });
    controller.run(5, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl EndpointsOf {
    async fn sync(&self, key: Key) -> Synced {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let existing = self.endpoints.get(key.scope(), &key.name);
        let Some(service) = self.services.get(key.scope(), &key.name) else {
            if existing.is_some_and(|e| e.labels().contains_key(MANAGED_BY)) {
                gone_is_fine(api.delete(&key.name, &Default::default()).await)?;
            }
            return Ok(None);
        };
        let Some(wanted) = selector(&service) else { return Ok(None) };
        let empty = Map::new();
        let pods = self.pods.filter(|p| {
            p.metadata.namespace == service.metadata.namespace
                && selects(wanted, p.metadata.labels.as_ref().unwrap_or(&empty))
        });
        let planned = plan(&service, &pods, existing.as_deref());
        match existing {
            Some(existing) if same(&existing, &planned) => {}
            Some(_) => {
                api.replace(&key.name, &PostParams::default(), &planned).await?;
            }
            None => match api.create(&PostParams::default(), &planned).await {
                Ok(_) => {}
                Err(error) if crate::pods::is_namespace_ending(&error) => {}
                // Our informer is late: it is there. The next pass updates it.
                Err(error) if code(&error) == 409 => return Err(error.into()),
                Err(error) => return Err(error.into()),
            },
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_and_unready_stand_apart_and_leaving_pods_are_left_out() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "web"}, "ports": [{"port": 80}]},
        }))
        .unwrap();
        let pod = |name: &str, ip: &str, ready: &str, leaving: bool| -> Arc<Pod> {
            let mut pod = json!({
                "metadata": {"name": name, "namespace": "default", "uid": name},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
            });
            if leaving {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = [
            pod("a", "10.0.0.10", "True", false),
            pod("b", "10.0.0.9", "True", false),
            pod("c", "10.0.0.3", "False", false),
            pod("d", "10.0.0.4", "True", true),
        ];
        let endpoints = plan(&service, &pods, None);
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter().flatten().map(|a| a.ip.clone()).collect()
        };
        assert_eq!(ips(&subset.addresses), ["10.0.0.9", "10.0.0.10"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
        assert!(same(&endpoints, &plan(&service, &pods, Some(&endpoints))));
    }
}
