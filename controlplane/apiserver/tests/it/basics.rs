//! Every verb, as clients use it.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::harness::Server;

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"k": value}})).unwrap()
}

#[tokio::test]
async fn create_get_update_patch_delete() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    assert_eq!(api.get("a").await.unwrap(), created);
    let error = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap_err();
    assert!(error.to_string().contains("configmaps \"a\" already exists"), "{error}");

    let mut changed = created.clone();
    changed.data.as_mut().unwrap().insert("k".into(), "2".into());
    let updated = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(updated.resource_version(), created.resource_version());
    let stale = api.replace("a", &PostParams::default(), &changed).await.unwrap_err();
    assert!(stale.to_string().contains("the object has been modified"), "{stale}");

    let patch = json!({"data": {"k": null, "l": "3"}});
    let patched = api.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert_eq!(patched.data.unwrap().into_iter().collect::<Vec<_>>(), [("l".to_owned(), "3".to_owned())]);

    assert!(api.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert!(api.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn lists_select_and_page() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    for i in 0..7 {
        api.create(&PostParams::default(), &config_map(&format!("m{i}"), "x")).await.unwrap();
    }
    let by_label = api.list(&ListParams::default().labels("app in (m1,m2)")).await.unwrap();
    assert_eq!(by_label.items.len(), 2);
    let by_field = api.list(&ListParams::default().fields("metadata.name=m3")).await.unwrap();
    assert_eq!(by_field.items[0].name_any(), "m3");

    let mut params = ListParams::default().limit(3);
    let first = api.list(&params).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    // A page of the past: what happens between two pages is not seen.
    api.create(&PostParams::default(), &config_map("m35", "x")).await.unwrap();
    let mut names: Vec<String> = first.items.iter().map(ResourceExt::name_any).collect();
    params.continue_token = first.metadata.continue_;
    while let Some(token) = params.continue_token.clone().filter(|t| !t.is_empty()) {
        let page = api.list(&ListParams::default().limit(3).continue_token(&token)).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        params.continue_token = page.metadata.continue_;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
}

#[tokio::test]
async fn watches_see_changes_from_where_they_were() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let relabel = json!({"metadata": {"labels": {"app": "b"}}});
    api.patch("a", &PatchParams::default(), &Patch::Merge(relabel)).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();

    let show = |event: WatchEvent<ConfigMap>| match event {
        WatchEvent::Added(o) => format!("added {}", o.labels()["app"]),
        WatchEvent::Modified(o) => format!("modified {}", o.labels()["app"]),
        WatchEvent::Deleted(o) => format!("deleted {}", o.labels()["app"]),
        other => format!("{other:?}"),
    };
    let all = api.watch(&WatchParams::default(), &version).await.unwrap();
    let all: Vec<String> = all.take(3).map_ok(show).try_collect().await.unwrap();
    assert_eq!(all, ["added a", "modified b", "deleted b"]);
    let some = api.watch(&WatchParams::default().labels("app=a"), &version).await.unwrap();
    let some: Vec<String> = some.take(2).map_ok(show).try_collect().await.unwrap();
    assert_eq!(some, ["added a", "deleted a"]);
}

#[tokio::test]
async fn status_and_spec_are_apart() {
    let server = Server::start().await;
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": spec,
        "status": {"phase": "Running"}});
    let (code, created) = server.post("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!((code, &created["status"]["phase"]), (201, &json!("Pending")), "{created}");
    let api: Api<Pod> = Api::namespaced(server.client.clone(), "default");
    let patch = json!({"status": {"phase": "Running"}, "spec": {"nodeName": "m"}});
    let patched = api.patch_status("p", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert_eq!(patched.status.unwrap().phase.unwrap(), "Running");
    assert_eq!(patched.spec.unwrap().node_name.unwrap(), "n");

    // A running pod is given its grace; the second deletion, without any, removes it.
    let dying = api.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(dying.metadata.deletion_grace_period_seconds, Some(30));
    assert!(api.get_opt("p").await.unwrap().is_some());
    api.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(api.get_opt("p").await.unwrap().is_none());
}

#[tokio::test]
async fn services_get_addresses_and_namespaces_their_first_state() {
    let server = Server::start().await;
    let services: Api<Service> = Api::namespaced(server.client.clone(), "default");
    let kubernetes = services.get("kubernetes").await.unwrap();
    assert_eq!(kubernetes.spec.unwrap().cluster_ip.unwrap(), "10.96.0.1");
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let service = services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    let spec = service.spec.unwrap();
    assert!(spec.cluster_ip.unwrap().starts_with("10."));
    assert!((30000..32768).contains(&spec.ports.unwrap()[0].node_port.unwrap()));

    let namespaces: Api<Namespace> = Api::all(server.client.clone());
    assert_eq!(namespaces.list(&ListParams::default()).await.unwrap().items.len(), 4);
    let (code, error) = server.post("/api/v1/namespaces/none/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((code, &error["message"]), (404, &json!("namespaces \"none\" not found")));
    let (code, error) = server.delete("/api/v1/namespaces/default").await;
    assert_eq!(
        (code, &error["message"]),
        (403, &json!("namespaces \"default\" is forbidden: this namespace may not be deleted"))
    );
    let (_, made) = server.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    let (_, going) = server.delete("/api/v1/namespaces/n").await;
    assert_eq!(going["status"]["phase"], "Terminating");
    let (code, error) = server.post("/api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((code, &error["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let finalized = json!({"metadata": {"name": "n"}, "spec": {}});
    assert_eq!(server.put("/api/v1/namespaces/n/finalize", finalized).await.0, 200);
    assert_eq!(server.get("/api/v1/namespaces/n").await.0, 404);
}

#[tokio::test]
async fn finalizers_hold_and_their_end_removes() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "a", "finalizers": ["example.com/x"]}});
    server.post(path, map).await;
    let (_, held) = server.delete(&format!("{path}/a")).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let (code, _) = server.merge(&format!("{path}/a"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    assert_eq!(server.get(&format!("{path}/a")).await.0, 404);
}
