//! A driver and an API server in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use bosun_kubelet_csi::cluster::{Cluster, Written};
use bosun_kubelet_csi::service::{Capabilities, NodeService};
use bosun_kubelet_csi::volume::SecretRef;
use bosun_kubelet_csi::{PodUse, Volume, names};
use bosun_proto::csi;
use bosun_proto::csi::node_service_capability::rpc::Type as Can;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tonic::Status;

/// What is staged and published.
#[derive(Debug, Default)]
pub(crate) struct State {
    staged: BTreeSet<String>,
    published: BTreeSet<(String, String)>,
}

/// A driver that minds the order of calls, writes them down, and refuses or hangs as told.
#[derive(Default)]
pub(crate) struct FakeDriver {
    pub(crate) state: Mutex<State>,
    pub(crate) log: Mutex<Vec<String>>,
    pub(crate) refusals: Mutex<BTreeMap<String, Status>>,
    /// Hang at the call that begins so; whether after its effect.
    pub(crate) hang: Mutex<Option<(String, bool)>>,
    countdown: Mutex<Option<(u32, bool)>>,
    pub(crate) hanging: Notify,
}

impl FakeDriver {
    pub(crate) fn refuse(&self, call: &str, status: Status) {
        self.refusals.lock().unwrap().insert(call.to_owned(), status);
    }

    pub(crate) fn hang_at(&self, calls: u32, after: bool) {
        *self.countdown.lock().unwrap() = Some((calls, after));
    }

    pub(crate) fn hang_never(&self) {
        *self.countdown.lock().unwrap() = None;
    }

    pub(crate) fn reboot(&self) {
        *self.state.lock().unwrap() = State::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.staged.is_empty() && state.published.is_empty()
    }

    async fn call(&self, name: &str, line: String, effect: impl FnOnce(&mut State)) -> Result<(), Status> {
        let counted = {
            let mut countdown = self.countdown.lock().unwrap();
            match countdown.as_mut() {
                Some((0, after)) => Some(*after),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        let named =
            self.hang.lock().unwrap().clone().filter(|(begin, _)| line.starts_with(begin)).map(|(_, after)| after);
        let hang = counted.or(named);
        if hang == Some(false) {
            self.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        if let Some(status) = self.refusals.lock().unwrap().get(name) {
            return Err(status.clone());
        }
        self.log.lock().unwrap().push(line);
        effect(&mut self.state.lock().unwrap());
        if hang == Some(true) {
            self.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// The pod in the path of a target.
fn pod_of(target: &str) -> String {
    let parts: Vec<&str> = target.split('/').collect();
    let at = parts.iter().position(|part| *part == "pods").unwrap();
    parts[at + 1].to_owned()
}

fn shown(map: &BTreeMap<String, String>) -> String {
    format!("{map:?}")
}

#[async_trait]
impl NodeService for FakeDriver {
    async fn info(&self) -> Result<csi::NodeGetInfoResponse, Status> {
        Ok(csi::NodeGetInfoResponse { node_id: "node-id".into(), ..Default::default() })
    }

    async fn capabilities(&self) -> Result<Capabilities, Status> {
        Ok(Capabilities::of([Can::StageUnstageVolume, Can::ExpandVolume, Can::GetVolumeStats]))
    }

    async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<(), Status> {
        let folder = Path::new(&request.staging_target_path);
        assert!(folder.is_dir(), "the folder is there before");
        let mode = request.volume_capability.unwrap().access_mode.unwrap().mode().as_str_name();
        let context = match request.publish_context.is_empty() {
            true => String::new(),
            false => format!(" context {}", shown(&request.publish_context)),
        };
        let name = folder.file_name().unwrap().display();
        let line = format!("stage {} {name} {mode} {}{context}", request.volume_id, shown(&request.volume_context));
        self.call("stage", line, |state| {
            state.staged.insert(request.volume_id);
        })
        .await
    }

    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> Result<(), Status> {
        let id = request.volume_id;
        self.call("unstage", format!("unstage {id}"), |state| {
            assert!(state.published.iter().all(|(volume, _)| *volume != id), "unstaged while it is published");
            state.staged.remove(&id);
        })
        .await
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
        let target = Path::new(&request.target_path);
        assert!(target.parent().unwrap().is_dir(), "the folder above is there before");
        let pod = pod_of(&request.target_path);
        let secrets = match request.secrets.is_empty() {
            true => String::new(),
            false => format!(" secrets {:?}", request.secrets.keys().collect::<Vec<_>>()),
        };
        let line = format!("publish {} {pod} {}{secrets}", request.volume_id, shown(&request.volume_context));
        let made = target.to_path_buf();
        self.call("publish", line, |state| {
            if !request.staging_target_path.is_empty() {
                assert!(state.staged.contains(&request.volume_id), "published before it was staged");
            }
            std::fs::create_dir_all(made).unwrap();
            state.published.insert((request.volume_id, request.target_path));
        })
        .await
    }

    async fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> Result<(), Status> {
        let line = format!("unpublish {} {}", request.volume_id, pod_of(&request.target_path));
        self.call("unpublish", line, |state| {
            state.published.remove(&(request.volume_id, request.target_path));
        })
        .await
    }

    async fn expand(&self, request: csi::NodeExpandVolumeRequest) -> Result<csi::NodeExpandVolumeResponse, Status> {
        let bytes = request.capacity_range.unwrap().required_bytes;
        let line = format!("expand {} {} {bytes}", request.volume_id, pod_of(&request.volume_path));
        self.call("expand", line, |_| {}).await?;
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: bytes })
    }

    async fn stats(&self, _request: csi::NodeGetVolumeStatsRequest) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        Ok(csi::NodeGetVolumeStatsResponse::default())
    }
}

/// An API server in memory.
#[derive(Default)]
pub(crate) struct FakeCluster {
    pub(crate) driver: Mutex<Option<CSIDriver>>,
    pub(crate) secrets: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    pub(crate) grown: Mutex<Vec<String>>,
    attachments: Mutex<BTreeMap<String, VolumeAttachment>>,
    tokens: Mutex<u32>,
}

impl FakeCluster {
    pub(crate) fn attach(&self, volume: &Volume, node: &str, status: Value) {
        let name = names::attachment(&volume.handle, &volume.driver, node);
        let object = json!({"metadata": {"name": name},
            "spec": {"attacher": volume.driver, "nodeName": node, "source": {}}, "status": status});
        self.attachments.lock().unwrap().insert(name, serde_json::from_value(object).unwrap());
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn driver(&self, name: &str) -> Result<Option<CSIDriver>, String> {
        Ok(self.driver.lock().unwrap().clone().filter(|driver| driver.metadata.name.as_deref() == Some(name)))
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String> {
        Ok(self.attachments.lock().unwrap().get(name).cloned())
    }

    async fn secret(&self, secret: &SecretRef) -> Result<Option<Secret>, String> {
        let found = self.secrets.lock().unwrap().get(&format!("{}/{}", secret.namespace, secret.name)).cloned();
        let data = |pairs: BTreeMap<String, String>| {
            pairs.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect()
        };
        Ok(found.map(|pairs| Secret { data: Some(data(pairs)), ..Secret::default() }))
    }

    async fn token(&self, _pod: &PodUse, _audience: &str, _seconds: Option<i64>) -> Result<TokenRequestStatus, String> {
        let mut tokens = self.tokens.lock().unwrap();
        *tokens += 1;
        let status = json!({"token": format!("token-{tokens}"), "expirationTimestamp": "2030-01-01T00:00:00Z"});
        Ok(serde_json::from_value(status).unwrap())
    }

    async fn grown(&self, claim: &PersistentVolumeClaim, capacity: &Quantity) -> Result<(), String> {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        let line = format!("{}/{} {}", of(&claim.metadata.namespace), of(&claim.metadata.name), capacity.0);
        self.grown.lock().unwrap().push(line);
        Ok(())
    }

    async fn node(&self) -> Result<Option<Node>, String> {
        Ok(None)
    }

    async fn patch_node(&self, _patch: &Value) -> Result<Written, String> {
        Ok(Written::Done)
    }

    async fn csi_node(&self) -> Result<Option<CSINode>, String> {
        Ok(None)
    }

    async fn write_csi_node(&self, _object: &CSINode) -> Result<Written, String> {
        Ok(Written::Done)
    }
}
