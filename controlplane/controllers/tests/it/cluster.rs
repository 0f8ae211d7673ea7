//! A control plane for one test, and kubelets that pretend.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bosun_apiserver::{ApiServer, Config, user};
use bosun_controllers::{ControllersConfig, identity};
use bosun_kit::informer::{Delta, Informer};
use bosun_kit::pki::CertificateAuthority;
use bosun_store::EmbeddedStore;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) admin: Client,
    pub(crate) server: ApiServer,
    cancel: CancellationToken,
    _stop: DropGuard,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(adjust: impl FnOnce(&mut ControllersConfig)) -> Self {
        // Warnings alone, unless RUST_LOG asks for more.
        bosun_kit::logs::init(&bosun_kit::logs::LogArgs { verbosity: 0, logging_format: "text".to_owned() });
        let server = ApiServer::start(Config::default(), Arc::new(EmbeddedStore::in_memory().unwrap())).await.unwrap();
        let cancel = CancellationToken::new();
        let files = tempfile::tempdir().unwrap();
        let (cert, key) = (files.path().join("ca.crt"), files.path().join("ca.key"));
        CertificateAuthority::load_or_generate(&cert, &key, "test").unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        let mut config = ControllersConfig {
            cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
            root_ca_pem: Some("the root".to_owned()),
            signing_ca: Some((read(&cert), read(&key))),
            auto_approve_kubelet_serving: true,
            ..ControllersConfig::default()
        };
        adjust(&mut config);
        let clients = {
            let server = server.clone();
            move |name: &str| {
                let (name, groups) = identity(name);
                server.client_as(user(name, groups))
            }
        };
        let scheduler = server.client_as(user("system:kube-scheduler", ["system:authenticated"]));
        let stop = cancel.clone();
        tokio::spawn(async move { bosun_controllers::run(clients, config, stop).await.unwrap() });
        let stop = cancel.clone();
        tokio::spawn(async move { bosun_scheduler::run(scheduler, Default::default(), stop).await.unwrap() });
        let admin = server.client_as(user("admin", ["system:masters"]));
        // Pods need it.
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
        until(&accounts, "the default account", |all| !all.is_empty()).await;
        Self { admin, server, cancel: cancel.clone(), _stop: cancel.drop_guard() }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    /// A ready node, and a kubelet that runs whatever is bound to it.
    pub(crate) async fn node(&self, name: &str) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                    "lastHeartbeatTime": Timestamp::now().to_string(),
                    "lastTransitionTime": Timestamp::now().to_string()}],
            },
        }))
        .unwrap();
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let created = nodes.create(&PostParams::default(), &node).await.unwrap();
        let with_status = Node { metadata: created.metadata, ..node };
        let status = Patch::Merge(json!({"status": with_status.status}));
        nodes.patch_status(name, &PatchParams::default(), &status).await.unwrap();
        let (client, name, cancel) = (self.admin.clone(), name.to_owned(), self.cancel.clone());
        tokio::spawn(kubelet(client, name, cancel));
    }

    /// Waits until `wanted` holds for all objects of a kind in the namespace.
    pub(crate) async fn until<K>(&self, what: &str, wanted: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        until(&self.api::<K>(), what, wanted).await
    }
}

/// Waits, by watching, until `wanted` holds for a list.
pub(crate) async fn until<K>(api: &Api<K>, what: &str, wanted: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let poll = async {
        loop {
            let list = api.list(&Default::default()).await.unwrap().items;
            if wanted(&list) {
                return list;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(DEADLINE, poll).await {
        Ok(list) => list,
        Err(_) => {
            let list = api.list(&Default::default()).await.unwrap().items;
            panic!("not in time: {what}; there is {list:#?}");
        }
    }
}

/// Runs pods in name only: gives them an address and readiness, and lets go of those that are deleted.
async fn kubelet(client: Client, node: String, cancel: CancellationToken) {
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let pods: Informer<Pod> = Informer::start(Api::all(client.clone()), mine, cancel);
    let mut changes = pods.subscribe();
    let mut last = 1;
    while let Some(delta) = changes.recv().await {
        let Delta::Applied(pod) = delta else { continue };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            continue;
        }
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        if phase != "Pending" {
            continue;
        }
        last += 1;
        let quick = pod.annotations().contains_key("test/ends");
        let now = Timestamp::now().to_string();
        let status = json!({
            "phase": if quick { "Succeeded" } else { "Running" },
            "podIP": format!("10.244.0.{last}"),
            "podIPs": [{"ip": format!("10.244.0.{last}")}],
            "startTime": now,
            "conditions": [{"type": "Ready", "status": if quick { "False" } else { "True" }, "lastTransitionTime": now}],
        });
        let patch = Patch::Merge(json!({"status": status}));
        let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
    }
}
