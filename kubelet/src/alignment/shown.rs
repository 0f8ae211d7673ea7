//! What pods have, for the pod resources API.

use std::sync::{Arc, PoisonError};

use bosun_api::pod::{is_sidecar, is_terminal};
use bosun_kubelet_alignment::CpuSet;
use bosun_kubelet_alignment::memory::state::Block;
use bosun_kubelet_devices::pod_resources::{self, Pods as Shown};
use bosun_proto::podresources::{
    AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerMemory, ContainerResources, DynamicResource,
    PodResources,
};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::Alignment;
use crate::manager::Pods;
use crate::pod::spec;
use crate::worker::Handle;

/// Below the kubelet's root: the API's socket.
pub const FOLDER: &str = "pod-resources";

/// The pods that have workers, and what they have.
pub struct PodsResources {
    /// What they have.
    pub alignment: Arc<Alignment>,
    /// Their claims; none in standalone mode.
    pub claims: Option<Arc<bosun_kubelet_dra::Manager>>,
    /// The pods.
    pub pods: Pods,
}

fn numbers(cpus: Option<CpuSet>) -> Vec<i64> {
    cpus.iter().flat_map(CpuSet::iter).filter_map(|cpu| i64::try_from(cpu).ok()).collect()
}

fn memory(blocks: Vec<Block>) -> Vec<ContainerMemory> {
    let nodes =
        |block: &Block| block.numa_affinity.iter().filter_map(|node| i64::try_from(*node).ok()).collect::<Vec<_>>();
    let shown = blocks.into_iter().filter(|block| block.size > 0).map(|block| ContainerMemory {
        topology: pod_resources::topology(nodes(&block)),
        memory_type: block.kind,
        size: block.size,
    });
    shown.collect()
}

impl PodsResources {
    fn active(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().map(Handle::pod).filter(|pod| !is_terminal(pod)).collect()
    }

    /// The devices of the container's claims; none of what is not prepared yet.
    fn dynamic(&self, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
        let claims = self.claims.as_ref().and_then(|claims| claims.container_claims(pod, container).ok());
        let claims = claims.into_iter().flatten().map(|claim| DynamicResource {
            claim_name: claim.key.name,
            claim_namespace: claim.key.namespace,
            claim_resources: claim
                .devices
                .into_iter()
                .map(|(driver_name, device)| ClaimResource {
                    cdi_devices: device.cdi_device_ids.into_iter().map(|name| CdiDevice { name }).collect(),
                    driver_name,
                    pool_name: device.pool_name,
                    device_name: device.device_name,
                    share_id: device.share_id,
                })
                .collect(),
        });
        claims.collect()
    }

    fn of(&self, pod: &Pod) -> PodResources {
        let Alignment { aligner, devices, .. } = &*self.alignment;
        let container = |container: &Container| {
            let (uid, name) = (spec::uid(pod), container.name.as_str());
            ContainerResources {
                name: name.to_owned(),
                devices: pod_resources::devices(&devices.devices(uid, name)),
                cpu_ids: numbers(aligner.exclusive_cpus(uid, name)),
                memory: memory(aligner.memory(uid, name)),
                dynamic_resources: self.dynamic(pod, container),
            }
        };
        let init = spec::spec(pod).init_containers.iter().flatten().filter(|init| is_sidecar(init));
        let containers = init.chain(&spec::spec(pod).containers).map(container).collect();
        PodResources { name: spec::name(pod).to_owned(), namespace: spec::namespace(pod).to_owned(), containers }
    }
}

impl Shown for PodsResources {
    fn list(&self) -> Vec<PodResources> {
        self.active().iter().map(|pod| self.of(pod)).collect()
    }

    fn get(&self, namespace: &str, name: &str) -> Option<PodResources> {
        let pods = self.active();
        let found = pods.iter().find(|pod| (spec::namespace(pod), spec::name(pod)) == (namespace, name))?;
        Some(self.of(found))
    }

    fn allocatable(&self) -> AllocatableResourcesResponse {
        let Alignment { aligner, devices, .. } = &*self.alignment;
        let devices = devices.allocatable();
        AllocatableResourcesResponse {
            devices: devices.iter().flat_map(|(name, all)| pod_resources::allocatable(name, all)).collect(),
            cpu_ids: numbers(Some(aligner.allocatable_cpus())),
            memory: memory(aligner.allocatable_memory()),
        }
    }
}
