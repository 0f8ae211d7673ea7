//! The zone follows an API server.

use bosun_dns::{load, zone::Zone};
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    sync::{Arc, RwLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

fn service(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "5"}, "spec": {"clusterIP": address}})
}

/// Lists have one Service; its watch has another come and the first go.
async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let kind = if request.uri().path().ends_with("/services") { "Service" } else { "EndpointSlice" };
    let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let (api, items) = match kind {
        "Service" => ("v1", vec![service("first", "10.96.0.1")]),
        _ => ("discovery.k8s.io/v1", Vec::new()),
    };
    if !watch {
        let list = json!({"kind": format!("{kind}List"), "apiVersion": api, "metadata": {"resourceVersion": "5"}, "items": items});
        return Ok(Response::new(Body::from(list.to_string().into_bytes())));
    }
    if kind != "Service" {
        std::future::pending::<()>().await;
    }
    let event = |kind: &str, mut object: Value| {
        object["kind"] = "Service".into();
        object["apiVersion"] = "v1".into();
        format!("{}\n", json!({"type": kind, "object": object}))
    };
    let text = event("ADDED", service("second", "10.96.0.2")) + &event("DELETED", service("first", "10.96.0.1"));
    Ok(Response::new(Body::from(text.into_bytes())))
}

#[tokio::test]
async fn lists_then_watches() {
    let client = kube::Client::new(tower::service_fn(answer), "default");
    let zone = Arc::new(RwLock::new(Zone::new("cluster.local").unwrap()));
    let cancel = CancellationToken::new();
    let mut synced = load::start(client, zone.clone(), &cancel);
    tokio::time::timeout(Duration::from_secs(5), synced.wait_for(|synced| *synced)).await.unwrap().unwrap();
    let has = |name: &str| zone.read().unwrap().find("default", name).is_some();
    tokio::time::timeout(Duration::from_secs(5), async {
        while has("first") || !has("second") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    cancel.cancel();
}
