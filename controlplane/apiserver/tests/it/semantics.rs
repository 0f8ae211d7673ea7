//! What clients rely on beyond the plain verbs.

use bosun_store::Store;
use futures::StreamExt;
use http::Request;
use serde_json::{Value, json};

use crate::harness::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "v"}})
}

/// The first events of a watch, as `TYPE name`.
async fn watch(server: &Server, query: &str, count: usize) -> Vec<Value> {
    let request = Request::get(format!("{MAPS}?watch=true&{query}")).body(Vec::new()).unwrap();
    let lines = server.client.request_stream(request).await.unwrap();
    let mut lines = tokio_stream(lines);
    let mut events = Vec::new();
    while events.len() < count {
        let line = lines.next().await.unwrap();
        events.push(serde_json::from_str(&line).unwrap());
    }
    events
}

fn tokio_stream(reader: impl futures::AsyncBufRead + Send + 'static) -> futures::stream::BoxStream<'static, String> {
    futures::AsyncBufReadExt::lines(reader).map(|line| line.unwrap()).boxed()
}

fn shown(events: &[Value]) -> Vec<String> {
    let name = |e: &Value| e["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
    events.iter().map(|e| format!("{} {}", e["type"].as_str().unwrap(), name(e))).collect()
}

#[tokio::test]
async fn a_watch_can_begin_with_the_state() {
    let server = Server::start().await;
    server.post(MAPS, map("a")).await;
    server.post(MAPS, map("b")).await;
    assert_eq!(shown(&watch(&server, "", 2).await), ["ADDED a", "ADDED b"]);
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = watch(&server, query, 3).await;
    assert_eq!(shown(&events), ["ADDED a", "ADDED b", "BOOKMARK -"]);
    let end = &events[2]["object"];
    assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(end["kind"], "ConfigMap");
    let (code, error) =
        server.get(&format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=Exact")).await;
    assert_eq!((code, error["reason"].as_str()), (422, Some("Invalid")));
}

#[tokio::test]
async fn a_watch_goes_on_from_the_stores_history_and_is_told_when_that_is_gone() {
    let server = Server::start().await;
    let (_, first) = server.post(MAPS, map("first")).await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // More changes than the cache remembers.
    for i in 0..600 {
        server.merge(&format!("{MAPS}/first"), json!({"data": {"k": i.to_string()}})).await;
    }
    let events = watch(&server, &format!("resourceVersion={version}"), 600).await;
    let values: Vec<&str> = events.iter().map(|e| e["object"]["data"]["k"].as_str().unwrap()).collect();
    let expected: Vec<String> = (0..600).map(|i| i.to_string()).collect();
    assert_eq!(values, expected);

    let now = server.store.revision().await.unwrap();
    server.store.compact(now).await.unwrap();
    let (code, error) = server.get(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
    assert_eq!((code, error["reason"].as_str()), (410, Some("Expired")), "{error}");
    let (code, error) =
        server.get(&format!("{MAPS}?limit=1&resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!((code, error["reason"].as_str()), (410, Some("Expired")), "{error}");
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over() {
    let server = Server::start().await;
    let started = std::time::Instant::now();
    let (code, body) = server.get(&format!("{MAPS}?watch=true&timeoutSeconds=1&resourceVersion=1")).await;
    assert_eq!(code, 200);
    assert!(body.is_null() || body["type"].is_string());
    assert!(started.elapsed() >= std::time::Duration::from_secs(1));
}

#[tokio::test]
async fn fields_are_validated_as_asked() {
    let server = Server::start().await;
    let mut odd = map("odd");
    odd["dat"] = json!({});
    let (code, error) = server.post(&format!("{MAPS}?fieldValidation=Strict"), odd.clone()).await;
    assert_eq!(code, 400);
    assert_eq!(
        error["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\""
    );
    let request = Request::post(MAPS)
        .header("content-type", "application/json")
        .body(odd.to_string().into_bytes().into())
        .unwrap();
    let response = server.client.send(request).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["warning"], "299 - \"unknown field \\\"dat\\\"\"");
    let (code, error) =
        server.post(MAPS, json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "x"}})).await;
    assert_eq!(code, 400, "{error}");
    let (code, error) = server.post(MAPS, json!({"metadata": {"name": "Not_A_Name"}})).await;
    assert_eq!((code, &error["reason"]), (422, &json!("Invalid")));
    assert_eq!(error["details"]["causes"][0]["field"], "metadata.name");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let server = Server::start().await;
    let (code, made) = server.post(&format!("{MAPS}?dryRun=All"), map("a")).await;
    assert_eq!((code, &made["metadata"]["name"]), (201, &json!("a")));
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404);
    server.post(MAPS, map("a")).await;
    server.merge(&format!("{MAPS}/a?dryRun=All"), json!({"data": {"k": "w"}})).await;
    assert_eq!(server.get(&format!("{MAPS}/a")).await.1["data"]["k"], "v");
    server.delete(&format!("{MAPS}/a?dryRun=All")).await;
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 200);
    assert_eq!(server.post(&format!("{MAPS}?dryRun=Some"), map("b")).await.0, 422);
}

#[tokio::test]
async fn bodies_have_limits_and_media_types() {
    let server = Server::start().await;
    let (code, error) = server.send("POST", MAPS, "application/cbor", json!({})).await;
    assert_eq!((code, error["reason"].as_str()), (415, Some("UnsupportedMediaType")));
    let (code, error) = server.send("POST", MAPS, "application/vnd.kubernetes.protobuf", json!({})).await;
    assert_eq!((code, error["reason"].as_str()), (400, Some("BadRequest")));
    let mut large = map("large");
    large["data"]["k"] = "x".repeat(4 << 20).into();
    let (code, error) = server.post(MAPS, large).await;
    assert_eq!((code, error["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
    let deep = format!("{{\"metadata\":{{\"name\":\"a\"}},\"data\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let request =
        Request::post(MAPS).header("content-type", "application/json").body(deep.into_bytes().into()).unwrap();
    assert_eq!(server.client.send(request).await.unwrap().status(), 400);
    let yaml = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: y}\ndata: {a: b}\n";
    let request =
        Request::post(MAPS).header("content-type", "application/yaml").body(yaml.as_bytes().to_vec().into()).unwrap();
    assert_eq!(server.client.send(request).await.unwrap().status(), 201);
    let operations: Vec<Value> =
        (0..10_001).map(|_| json!({"op": "test", "path": "/kind", "value": "ConfigMap"})).collect();
    let (code, _) = server.send("PATCH", &format!("{MAPS}/y"), "application/json-patch+json", operations.into()).await;
    assert_eq!(code, 413);
    let (code, _) = server.send("PATCH", &format!("{MAPS}/y"), "application/apply-patch+yaml", json!({})).await;
    assert_eq!(code, 415);
}

#[tokio::test]
async fn patches_of_three_kinds() {
    let server = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let container = json!({"name": "a", "image": "i", "env": [{"name": "X", "value": "1"}]});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [container]}}}});
    let (code, made) = server.post(deployments, deployment).await;
    assert_eq!(
        (code, &made["spec"]["replicas"], &made["metadata"]["generation"]),
        (201, &json!(1), &json!(1)),
        "{made}"
    );
    let path = format!("{deployments}/d");
    let sidecar = json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "j"}]}}}});
    let (_, patched) = server.send("PATCH", &path, "application/strategic-merge-patch+json", sidecar).await;
    let names: Vec<&Value> =
        patched["spec"]["template"]["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!((names, &patched["metadata"]["generation"]), (vec![&json!("b"), &json!("a")], &json!(2)), "{patched}");
    let replicas = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    let (_, patched) = server.send("PATCH", &path, "application/json-patch+json", replicas).await;
    assert_eq!(patched["spec"]["replicas"], 3);
    let (_, scale) = server.get(&format!("{path}/scale")).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(3), &json!("app=d")));
    let (_, scaled) = server.merge(&format!("{path}/scale"), json!({"spec": {"replicas": 5}})).await;
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    let (_, same) = server.merge(&path, json!({"spec": {"replicas": 5}})).await;
    let (_, again) = server.merge(&path, json!({"spec": {"replicas": 5}})).await;
    assert_eq!(
        same["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"],
        "nothing changed, nothing written"
    );
    let (code, error) = server.merge(&path, json!({"spec": {"replicas": -1}})).await;
    assert_eq!((code, &error["details"]["causes"][0]["field"]), (422, &json!("spec.replicas")), "{error}");
}

#[tokio::test]
async fn pods_are_bound_evicted_and_selected_by_field() {
    let server = Server::start().await;
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"generateName": "p-", "labels": {"app": "p"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, made) = server.post(pods, pod).await;
    assert_eq!(code, 201, "{made}");
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("p-") && name.len() == 7, "{name}");
    let volume = &made["spec"]["volumes"][0];
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"), "{made}");
    assert_eq!(made["spec"]["tolerations"][0]["tolerationSeconds"], 300);
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    let (code, error) = server.merge(&format!("{pods}/{name}"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(code, 200, "a label is no change of the spec: {error}");
    let (code, bound) = server.post(&format!("{pods}/{name}/binding"), binding.clone()).await;
    assert_eq!(code, 201, "{bound}");
    let (code, error) = server.post(&format!("{pods}/{name}/binding"), binding).await;
    assert_eq!(code, 409, "{error}");
    let (_, listed) = server.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1,status.phase!%3DFailed").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["status"]["conditions"][0]["type"], "PodScheduled");
    let (code, error) = server.get("/api/v1/pods?fieldSelector=spec.foo%3Dn1").await;
    assert_eq!((code, &error["message"]), (400, &json!("field label not supported: spec.foo")));

    server
        .send(
            "PATCH",
            &format!("{pods}/{name}/status"),
            "application/merge-patch+json",
            json!({"status": {"phase": "Running"}}),
        )
        .await;
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}});
    let (code, error) = server.post("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget).await;
    assert_eq!(code, 201, "{error}");
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": name}});
    let (code, error) = server.post(&format!("{pods}/{name}/eviction"), eviction.clone()).await;
    assert_eq!((code, error["reason"].as_str()), (429, Some("TooManyRequests")), "{error}");
    let status = json!({"status": {"disruptionsAllowed": 1, "observedGeneration": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}});
    server
        .send(
            "PATCH",
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b/status",
            "application/merge-patch+json",
            status,
        )
        .await;
    assert_eq!(server.post(&format!("{pods}/{name}/eviction"), eviction).await.0, 201);
    let (_, dying) = server.get(&format!("{pods}/{name}")).await;
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.post(MAPS, map(name)).await;
    }
    let (code, deleted) = server.delete(&format!("{MAPS}?labelSelector=app+in+(a,b)")).await;
    assert_eq!((code, deleted["items"].as_array().unwrap().len()), (200, 2));
    let (_, left) = server.get(MAPS).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn tables_metadata_and_discovery() {
    let server = Server::start().await;
    server.post(MAPS, map("a")).await;
    let ask = async |path: &str, accept: &str| -> Value {
        let request = Request::get(path).header("accept", accept).body(Vec::new().into()).unwrap();
        let response = server.client.send(request).await.unwrap();
        serde_json::from_slice(&response.into_body().collect_bytes().await.unwrap()).unwrap()
    };
    let table = ask(MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let partial = ask(MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert!(partial["items"][0].get("data").is_none());
    let groups = ask("/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").await;
    assert_eq!(groups["kind"], "APIGroupDiscoveryList");
    let (_, core) = server.get("/api/v1").await;
    let names: Vec<&str> = core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"pods/exec") && names.contains(&"services"));
    assert_eq!(server.get("/version").await.1["minor"], "36");
    assert!(server.get("/openapi/v3").await.1["paths"]["apis/apps/v1"]["serverRelativeURL"].is_string());
    assert_eq!(server.get("/openapi/v3/apis/apps/v1").await.1["openapi"], "3.0.0");
    assert_eq!(server.get("/apis/nothing/v1/things").await.0, 404);
}

#[tokio::test]
async fn events_have_two_names() {
    let server = Server::start().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "R", "message": "m", "type": "Normal", "source": {"component": "c"}});
    let (code, made) = server.post("/api/v1/namespaces/default/events", event).await;
    assert_eq!(code, 201, "{made}");
    let (_, new) = server.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await;
    assert_eq!((&new["note"], &new["regarding"]["name"]), (&json!("m"), &json!("p")));
    let (_, found) = server.get("/api/v1/events?fieldSelector=involvedObject.name%3Dp").await;
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}
