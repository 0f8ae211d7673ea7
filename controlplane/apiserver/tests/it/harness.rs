//! A server on a store of its own, and clients of it.

use std::sync::Arc;

use bosun_apiserver::{ApiServer, Authorization, Config, user};
use bosun_store::EmbeddedStore;
use http::Request;
use kube::Client;
use serde_json::Value;

/// A server for one test.
pub(crate) struct Server {
    pub(crate) store: Arc<EmbeddedStore>,
    _api: ApiServer,
    pub(crate) client: Client,
}

impl Server {
    /// A server that lets everybody do everything.
    pub(crate) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let config = Config { authorization: Authorization::AlwaysAllow, ..config };
        let store = Arc::new(EmbeddedStore::in_memory().unwrap());
        let api = ApiServer::start(config, store.clone()).await.unwrap();
        let client = api.client_as(user("admin", ["system:masters"]));
        Self { store, _api: api, client }
    }

    /// A raw request; the answer's JSON.
    pub(crate) async fn send(&self, method: &str, path: &str, content_type: &str, body: Value) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        let response = self.client.send(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, "application/json", Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("POST", path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("PUT", path, "application/json", body).await
    }

    pub(crate) async fn merge(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("PATCH", path, "application/merge-patch+json", body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        self.send("DELETE", path, "application/json", Value::Null).await
    }
}
