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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// An API server that gives one answer, and the request that it saw.
    fn server(status: u16, answer: &'static str) -> (KubeApi, Arc<Mutex<String>>) {
        let seen = Arc::new(Mutex::new(String::new()));
        let of_server = seen.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            *of_server.lock().unwrap() = format!("{} {}", request.method(), request.uri());
            let response = Response::builder().status(status).header("content-type", "application/json");
            let response = response.body(Body::from(answer.as_bytes().to_vec())).unwrap();
            async move { Ok::<_, kube::Error>(response) }
        });
        (KubeApi::new(Client::new(service, "default"), "node1"), seen)
    }

    #[tokio::test]
    async fn requests_are_about_this_node_and_errors_are_the_server_s() {
        let claim = r#"{"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "gpu", "uid": "u"}, "spec": {}}"#;
        let (api, seen) = server(200, claim);
        assert_eq!(api.claim("ns", "gpu").await.unwrap().metadata.uid.as_deref(), Some("u"));
        assert_eq!(*seen.lock().unwrap(), "GET /apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/gpu");

        let list = r#"{"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSliceList", "metadata": {}, "items": []}"#;
        let (api, seen) = server(200, list);
        api.delete_slices(Some("gpu.example.com")).await.unwrap();
        let sent = seen.lock().unwrap().clone();
        let want = "DELETE /apis/resource.k8s.io/v1/resourceslices?";
        assert!(sent.starts_with(want), "{sent}");
        assert!(sent.contains("fieldSelector=spec.nodeName%3Dnode1%2Cspec.driver%3Dgpu.example.com"), "{sent}");
        api.delete_slices(None).await.unwrap();
        let sent = seen.lock().unwrap().clone();
        assert!(sent.contains("spec.nodeName%3Dnode1") && !sent.contains("driver"), "{sent}");

        let gone = r#"{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "resourceclaims.resource.k8s.io \"gpu\" not found"}"#;
        let error = server(404, gone).0.claim("ns", "gpu").await.unwrap_err();
        assert_eq!(error, "resourceclaims.resource.k8s.io \"gpu\" not found");
    }
}
