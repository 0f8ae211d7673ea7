//! The edge to the API server: what CSI reads there and what it writes.

use std::time::Duration;

use async_trait::async_trait;
use bosun_api::quantity;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Secret, ServiceAccount};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::mounter::PodUse;
use crate::volume::SecretRef;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whether something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was.
    Done,
    /// Somebody else was faster: look again.
    Conflict,
}

/// What CSI needs of the API server. Errors are texts that go into events.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// What is to be known of a driver; none if nobody said anything.
    async fn driver(&self, name: &str) -> Result<Option<CSIDriver>, String>;
    /// An attachment; none if it is not there.
    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String>;
    /// A secret; none if it is not there.
    async fn secret(&self, secret: &SecretRef) -> Result<Option<Secret>, String>;
    /// A token of the pod's service account.
    async fn token(&self, pod: &PodUse, audience: &str, seconds: Option<i64>) -> Result<TokenRequestStatus, String>;
    /// The claim's volume has this size now.
    async fn grown(&self, claim: &PersistentVolumeClaim, capacity: &Quantity) -> Result<(), String>;
    /// This node; none without an API server.
    async fn node(&self) -> Result<Option<Node>, String>;
    /// Patches this node.
    async fn patch_node(&self, patch: &Value) -> Result<Written, String>;
    /// This node's CSINode; none if there is none.
    async fn csi_node(&self) -> Result<Option<CSINode>, String>;
    /// Makes the CSINode, or replaces it if it has a resource version.
    async fn write_csi_node(&self, object: &CSINode) -> Result<Written, String>;
}

/// No API server: inline volumes and persistent ones fail with a clear error, drivers register all the same.
pub struct NoCluster;

const STANDALONE: &str = "this kubelet runs without an API server";

#[async_trait]
impl Cluster for NoCluster {
    async fn driver(&self, _name: &str) -> Result<Option<CSIDriver>, String> {
        Ok(None)
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String> {
        Err(format!("volumeattachment {name:?}: {STANDALONE}"))
    }

    async fn secret(&self, secret: &SecretRef) -> Result<Option<Secret>, String> {
        Err(format!("secret {:?}: {STANDALONE}", secret.name))
    }

    async fn token(&self, pod: &PodUse, _audience: &str, _seconds: Option<i64>) -> Result<TokenRequestStatus, String> {
        Err(format!("token of service account {:?}: {STANDALONE}", pod.service_account))
    }

    async fn grown(&self, _claim: &PersistentVolumeClaim, _capacity: &Quantity) -> Result<(), String> {
        Err(STANDALONE.to_owned())
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

/// The API server.
pub struct ApiCluster {
    client: Client,
    node: String,
}

impl ApiCluster {
    /// The API server that `client` reaches, for the node of that name.
    pub fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
    }

    fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope>,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }
}

async fn ask<T>(what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match within(what, answer).await {
        Ok(answer) => answer.map_err(|error| told(what, error)),
        Err(late) => Err(late),
    }
}

async fn write<T>(what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<Written, String> {
    match within(what, answer).await? {
        Ok(_) => Ok(Written::Done),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Conflict),
        Err(error) => Err(told(what, error)),
    }
}

async fn within<T>(what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<kube::Result<T>, String> {
    let late = |_| format!("{what}: timed out after {} s", DEADLINE.as_secs());
    tokio::time::timeout(DEADLINE, answer).await.map_err(late)
}

fn told(what: &str, error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => format!("{what}: {error}"),
    }
}

#[async_trait]
impl Cluster for ApiCluster {
    async fn driver(&self, name: &str) -> Result<Option<CSIDriver>, String> {
        ask("get csidriver", self.all::<CSIDriver>().get_opt(name)).await
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String> {
        match ask("get volumeattachment", self.all::<VolumeAttachment>().get_opt(name)).await {
            // The node authorizer does not know of one that is not there (yet).
            Err(error) if error.contains("no relationship found") => Ok(None),
            other => other,
        }
    }

    async fn secret(&self, secret: &SecretRef) -> Result<Option<Secret>, String> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &secret.namespace);
        ask("get secret", api.get_opt(&secret.name)).await
    }

    async fn token(&self, pod: &PodUse, audience: &str, seconds: Option<i64>) -> Result<TokenRequestStatus, String> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &pod.namespace);
        let body = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                expiration_seconds: seconds,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let answer = ask("create token", api.create_token_request(&pod.service_account, &params, &body)).await;
        answer?.status.ok_or_else(|| "the answer holds no token".to_owned())
    }

    async fn grown(&self, claim: &PersistentVolumeClaim, capacity: &Quantity) -> Result<(), String> {
        let metadata = &claim.metadata;
        let api = Api::<PersistentVolumeClaim>::namespaced(
            self.client.clone(),
            metadata.namespace.as_deref().unwrap_or_default(),
        );
        let name = metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(grown_patch(claim, capacity));
        ask("patch persistentvolumeclaim", api.patch_status(name, &PatchParams::default(), &patch)).await.map(drop)
    }

    async fn node(&self) -> Result<Option<Node>, String> {
        ask("get node", self.all::<Node>().get(&self.node)).await.map(Some)
    }

    async fn patch_node(&self, patch: &Value) -> Result<Written, String> {
        let api = self.all::<Node>();
        write("patch node", api.patch(&self.node, &PatchParams::default(), &Patch::Merge(patch))).await
    }

    async fn csi_node(&self) -> Result<Option<CSINode>, String> {
        ask("get csinode", self.all::<CSINode>().get_opt(&self.node)).await
    }

    async fn write_csi_node(&self, object: &CSINode) -> Result<Written, String> {
        let (api, params) = (self.all::<CSINode>(), PostParams::default());
        match object.metadata.resource_version {
            Some(_) => write("replace csinode", api.replace(&self.node, &params, object)).await,
            None => write("create csinode", api.create(&params, object)).await,
        }
    }
}

/// The patch of a claim's status that says that the node is done: the size is there, nothing is left to do.
pub fn grown_patch(claim: &PersistentVolumeClaim, capacity: &Quantity) -> Value {
    const OVER: [&str; 4] = ["ControllerResizeError", "FileSystemResizePending", "NodeResizeError", "Resizing"];
    let status = claim.status.clone().unwrap_or_default();
    let left = status.conditions.into_iter().flatten().filter(|c| !OVER.contains(&c.type_.as_str()));
    json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {
            "capacity": {"storage": capacity},
            "conditions": left.collect::<Vec<_>>(),
            "allocatedResourceStatuses": {"storage": null},
        },
    })
}

/// The size that the claim should have, if its status shows less.
pub fn growth(claim: &PersistentVolumeClaim, capacity: Option<&Quantity>) -> Option<Quantity> {
    let capacity = capacity?;
    let shown = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
    (quantity::of(shown).value() < quantity::of(capacity).value()).then(|| capacity.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_grew_shows_its_size_and_nothing_pending() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "resourceVersion": "7"},
            "status": {"capacity": {"storage": "1Gi"}, "conditions": [
                {"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}]}}))
        .unwrap();
        let size = |text: &str| Quantity(text.to_owned());
        assert_eq!(growth(&claim, Some(&size("2Gi"))), Some(size("2Gi")));
        assert_eq!((growth(&claim, Some(&size("1024Mi"))), growth(&claim, None)), (None, None));
        let golden = r#"{"metadata":{"resourceVersion":"7"},"status":{"allocatedResourceStatuses":{"storage":null},"capacity":{"storage":"2Gi"},"conditions":[{"status":"True","type":"Other"}]}}"#;
        assert_eq!(grown_patch(&claim, &size("2Gi")).to_string(), golden);
    }
}
