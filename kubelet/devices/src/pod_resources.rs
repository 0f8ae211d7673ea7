//! The pod resources API v1: what pods were given, for monitoring agents, at `pod-resources/kubelet.sock`.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bosun_kit::metrics::Metrics;
use bosun_proto::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use bosun_proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, NumaNode, PodResources, TopologyInfo,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::table::{Allocations, Device, NO_NODE};
use crate::unix;

const SOCKET: &str = "kubelet.sock";
/// Requests per second, as in stock.
const RATE: f64 = 100.0;
/// Requests at once above the rate, as in stock.
const BURST: f64 = 10.0;

/// Who knows what pods have.
pub trait Pods: Send + Sync + 'static {
    /// Every pod that is active here.
    fn list(&self) -> Vec<PodResources>;
    /// That pod, if it is active here.
    fn get(&self, namespace: &str, name: &str) -> Option<PodResources>;
    /// What can be given away at all.
    fn allocatable(&self) -> AllocatableResourcesResponse;
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    server_api_version: &'static str,
}

const V1: Version = Version { server_api_version: "v1" };

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    all: Family<Version, Counter>,
    // Stock counts these under names without the suffix that the text format gives counters; the names matter more.
    list: Family<Version, Gauge>,
    get: Family<Version, Gauge>,
    allocatable: Family<Version, Gauge>,
    get_errors: Family<Version, Gauge>,
}

impl Requests {
    /// Shows them.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let help = "Cumulative number of requests to the PodResource endpoint. Broken down by server api version";
            registry.register("kubelet_pod_resources_endpoint_requests", help, self.all.clone());
            let gauges = [
                ("requests_list", "requests to the PodResource List endpoint", &self.list),
                ("requests_get", "requests to the PodResource Get endpoint", &self.get),
                (
                    "requests_get_allocatable",
                    "requests to the PodResource GetAllocatableResources endpoint",
                    &self.allocatable,
                ),
                ("errors_get", "requests to the PodResource Get endpoint which returned error", &self.get_errors),
            ];
            for (name, what, gauge) in gauges {
                let help = format!("Number of {what}. Broken down by server api version");
                registry.register(format!("kubelet_pod_resources_endpoint_{name}"), help, gauge.clone());
            }
        });
    }
}

/// Serves the API in `folder` until cancelled.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(
    folder: &Path,
    pods: Arc<dyn Pods>,
    requests: Requests,
    cancel: CancellationToken,
) -> io::Result<tokio::task::JoinHandle<()>> {
    let listener = unix::listen(&folder.join(SOCKET))?;
    let limit = Mutex::new((BURST, Instant::now()));
    let service = PodResourcesListerServer::new(Server { pods, requests, limit });
    Ok(tokio::spawn(unix::serve(listener, service, cancel)))
}

struct Server {
    pods: Arc<dyn Pods>,
    requests: Requests,
    /// Requests that may be made at once, as of then.
    limit: Mutex<(f64, Instant)>,
}

impl Server {
    fn enter(&self, counted: &Family<Version, Gauge>) -> Result<(), Status> {
        let now = Instant::now();
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = (limit.0 + now.duration_since(limit.1).as_secs_f64() * RATE).min(BURST);
        if tokens < 1.0 {
            *limit = (tokens, now);
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        *limit = (tokens - 1.0, now);
        self.requests.all.get_or_create(&V1).inc();
        counted.get_or_create(&V1).inc();
        Ok(())
    }
}

#[async_trait]
impl PodResourcesLister for Server {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.enter(&self.requests.list)?;
        Ok(Response::new(ListPodResourcesResponse { pod_resources: self.pods.list() }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.enter(&self.requests.allocatable)?;
        Ok(Response::new(self.pods.allocatable()))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.enter(&self.requests.get)?;
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        match self.pods.get(&pod_namespace, &pod_name) {
            Some(pod) => Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(pod) })),
            None => {
                self.requests.get_errors.get_or_create(&V1).inc();
                Err(Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found")))
            }
        }
    }
}

/// NUMA nodes as the API shows them; none for none.
pub fn topology(nodes: impl IntoIterator<Item = i64>) -> Option<TopologyInfo> {
    let nodes: Vec<NumaNode> = nodes.into_iter().filter(|node| *node != NO_NODE).map(|id| NumaNode { id }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

/// What a container has, as the API shows it: one entry a device, with all nodes that it is near.
pub fn devices(allocations: &Allocations) -> Vec<ContainerDevices> {
    let mut shown = Vec::new();
    for (resource, allocation) in allocations {
        for id in allocation.ids() {
            let nodes = allocation.devices.iter().filter(|(_, ids)| ids.contains(&id)).map(|(node, _)| *node);
            let topology = topology(nodes);
            shown.push(ContainerDevices { resource_name: resource.clone(), device_ids: vec![id], topology });
        }
    }
    shown
}

/// Devices that can be given away, as the API shows them.
pub fn allocatable<'a>(resource: &str, devices: impl IntoIterator<Item = &'a Device>) -> Vec<ContainerDevices> {
    let one = |device: &Device| ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![device.id.clone()],
        topology: topology(device.nodes.iter().flatten().copied()),
    };
    devices.into_iter().map(one).collect()
}
