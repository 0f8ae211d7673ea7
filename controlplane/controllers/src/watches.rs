//! One watch of each kind, shared by all controllers, started when the first of them asks.

use std::sync::OnceLock;

use bosun_kit::informer::Informer;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// Name of the config map that carries the cluster's certificate authority into every namespace.
pub(crate) const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Where nodes keep their leases.
pub(crate) const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";
/// Type of the secrets that hold bootstrap tokens.
pub(crate) const BOOTSTRAP_TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";

/// The informers.
pub(crate) struct Watches {
    client: Client,
    cancel: CancellationToken,
    cells: Cells,
}

macro_rules! watches {
    ($($(#[$about:meta])* $name:ident: $kind:ty = $start:expr;)*) => {
        #[derive(Default)]
        struct Cells {
            $($name: OnceLock<Informer<$kind>>,)*
        }

        impl Watches {
            pub(crate) fn new(client: Client, cancel: CancellationToken) -> Self {
                Self { client, cancel, cells: Cells::default() }
            }

            $(
                $(#[$about])*
                pub(crate) fn $name(&self) -> Informer<$kind> {
                    let start: fn(Client, CancellationToken) -> Informer<$kind> = $start;
                    self.cells.$name.get_or_init(|| start(self.client.clone(), self.cancel.clone())).clone()
                }
            )*
        }
    };
}

watches! {
    namespaces: Namespace = whole;
    /// Without images, which no controller reads.
    nodes: Node = |client, cancel| {
        Informer::start_trimmed(Api::all(client), watcher::Config::default(), cancel, |node: &mut Node| {
            if let Some(status) = &mut node.status {
                status.images = None;
            }
        })
    };
    /// Without what only the kubelet reads.
    pods: Pod = |client, cancel| {
        Informer::start_trimmed(Api::all(client), watcher::Config::default(), cancel, trim_pod)
    };
    services: Service = whole;
    endpoints: Endpoints = whole;
    endpoint_slices: EndpointSlice = whole;
    service_accounts: ServiceAccount = whole;
    /// The root CA's copies alone.
    root_ca_config_maps: ConfigMap = |client, cancel| {
        let only = watcher::Config::default().fields(&format!("metadata.name={ROOT_CA_CONFIG_MAP}"));
        Informer::start(Api::all(client), only, cancel)
    };
    /// Bootstrap tokens alone.
    bootstrap_tokens: Secret = |client, cancel| {
        let only = watcher::Config::default().fields(&format!("type={BOOTSTRAP_TOKEN_TYPE}"));
        Informer::start(Api::namespaced(client, "kube-system"), only, cancel)
    };
    node_leases: Lease = |client, cancel| {
        Informer::start(Api::namespaced(client, NODE_LEASE_NAMESPACE), watcher::Config::default(), cancel)
    };
    deployments: Deployment = whole;
    replica_sets: ReplicaSet = whole;
    daemon_sets: DaemonSet = whole;
    stateful_sets: StatefulSet = whole;
    controller_revisions: ControllerRevision = whole;
    claims: PersistentVolumeClaim = whole;
    jobs: Job = whole;
    signing_requests: CertificateSigningRequest = whole;
    cluster_roles: ClusterRole = whole;
    disruption_budgets: PodDisruptionBudget = whole;
}

fn whole<K>(client: Client, cancel: CancellationToken) -> Informer<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    Informer::start(Api::all(client), watcher::Config::default(), cancel)
}

fn trim_pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let keep = |container: &mut Container| {
        *container = Container {
            name: std::mem::take(&mut container.name),
            image: container.image.take(),
            ports: container.ports.take(),
            resources: container.resources.take(),
            restart_policy: container.restart_policy.take(),
            ..Container::default()
        };
    };
    spec.containers.iter_mut().for_each(keep);
    spec.init_containers.iter_mut().flatten().for_each(keep);
    spec.ephemeral_containers = None;
    spec.security_context = None;
    spec.dns_config = None;
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
    }
}
