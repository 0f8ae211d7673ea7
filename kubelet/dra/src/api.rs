//! The edge to the API server.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::api::{DeleteParams, ListParams};
use kube::{Api as Resources, Client};

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// What is asked of the API server. Errors are texts that go into events.
#[async_trait]
pub trait Api: Send + Sync + 'static {
    /// A claim.
    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, String>;
    /// Deletes the ResourceSlices of this node, those of one driver or all.
    async fn delete_slices(&self, driver: Option<&str>) -> Result<(), String>;
}

/// The API server itself.
#[derive(Clone)]
pub struct KubeApi {
    client: Client,
    node: String,
}

impl KubeApi {
    /// As that node.
    pub fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

#[async_trait]
impl Api for KubeApi {
    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, String> {
        within(Resources::<ResourceClaim>::namespaced(self.client.clone(), namespace).get(name)).await
    }

    async fn delete_slices(&self, driver: Option<&str>) -> Result<(), String> {
        let mut fields = format!("spec.nodeName={}", self.node);
        if let Some(driver) = driver {
            fields += &format!(",spec.driver={driver}");
        }
        let slices = Resources::<ResourceSlice>::all(self.client.clone());
        let which = ListParams::default().fields(&fields);
        within(slices.delete_collection(&DeleteParams::default(), &which)).await.map(drop)
    }
}
