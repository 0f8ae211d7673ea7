//! Workloads from creation to their last trace.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, until};

fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
    })
}

fn deployment(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "web:1")},
    })
}

fn is_ready(pod: &Pod) -> bool {
    bosun_api::pod::is_ready(pod)
}

fn addresses(slices: &[EndpointSlice]) -> usize {
    slices
        .iter()
        .filter(|s| s.labels().get("kubernetes.io/service-name").is_some_and(|n| n == "web"))
        .flat_map(|s| s.endpoints.iter().flatten())
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_rolls_scales_and_goes() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    cluster.create::<Service>(service).await;
    cluster.create::<Deployment>(deployment(3)).await;
    let pods = cluster.until::<Pod>("three ready pods", |pods| pods.iter().filter(|p| is_ready(p)).count() == 3).await;
    assert!(pods.iter().all(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")));
    cluster.until::<EndpointSlice>("three endpoints", |slices| addresses(slices) == 3).await;
    cluster
        .until::<Endpoints>("three addresses", |all| {
            all.iter()
                .filter(|e| e.name_any() == "web")
                .flat_map(|e| e.subsets.iter().flatten())
                .flat_map(|s| s.addresses.iter().flatten())
                .count()
                == 3
        })
        .await;
    let complete = |all: &[Deployment], replicas: i32| {
        all.iter().any(|d| {
            let status = d.status.clone().unwrap_or_default();
            let reasons: Vec<_> = status.conditions.iter().flatten().filter_map(|c| c.reason.as_deref()).collect();
            status.available_replicas == Some(replicas)
                && status.updated_replicas == Some(replicas)
                && status.replicas == Some(replicas)
                && reasons.contains(&"NewReplicaSetAvailable")
                && reasons.contains(&"MinimumReplicasAvailable")
        })
    };
    cluster.until::<Deployment>("status complete", |all| complete(all, 3)).await;

    let deployments = cluster.api::<Deployment>();
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "web:2"}]}}}});
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    cluster
        .until::<Pod>("only new pods", |pods| {
            pods.len() == 3
                && pods
                    .iter()
                    .all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("web:2") && is_ready(p))
        })
        .await;
    cluster
        .until::<Deployment>("second status complete", |all| {
            complete(all, 3) && all[0].annotations()["deployment.kubernetes.io/revision"] == "2"
        })
        .await;

    let scale = json!({"spec": {"replicas": 1}});
    deployments.patch("web", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    cluster.until::<Pod>("one pod", |pods| pods.len() == 1).await;
    cluster.until::<EndpointSlice>("one endpoint", |slices| addresses(slices) == 1).await;

    let reasons: Vec<String> = cluster
        .until::<Event>("events", |events| {
            ["ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete", "Scheduled"]
                .iter()
                .all(|reason| events.iter().any(|e| e.reason.as_deref() == Some(reason)))
        })
        .await
        .into_iter()
        .filter_map(|e| e.reason)
        .collect();
    assert!(!reasons.iter().any(|r| r == "FailedCreate"), "{reasons:?}");

    deployments.delete("web", &DeleteParams::background()).await.unwrap();
    cluster.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
    cluster.until::<ReplicaSet>("no sets", |sets| sets.is_empty()).await;
    cluster.until::<Pod>("no pods", |pods| pods.is_empty()).await;
    cluster.until::<EndpointSlice>("no slices", |slices| addresses(slices) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_goes_bottom_up_and_orphans_stay() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.create::<Deployment>(deployment(2)).await;
    cluster.until::<Pod>("two pods", |pods| pods.iter().filter(|p| is_ready(p)).count() == 2).await;
    let deployments = cluster.api::<Deployment>();
    deployments.delete("web", &DeleteParams::orphan()).await.unwrap();
    cluster.until::<Deployment>("no deployment", |all| all.is_empty()).await;
    let sets = cluster
        .until::<ReplicaSet>("an orphaned set", |sets| sets.len() == 1 && sets[0].owner_references().is_empty())
        .await;
    assert_eq!(cluster.until::<Pod>("two pods", |pods| pods.len() == 2).await.len(), 2);
    cluster.api::<ReplicaSet>().delete(&sets[0].name_any(), &DeleteParams::foreground()).await.unwrap();
    cluster.until::<ReplicaSet>("no set", |sets| sets.is_empty()).await;
    assert!(cluster.api::<Pod>().list(&Default::default()).await.unwrap().items.is_empty(), "pods go before their set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_pods_are_bound_at_once() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let began = std::time::Instant::now();
    cluster.create::<Deployment>(deployment(30)).await;
    cluster.until::<Pod>("thirty ready pods", |pods| pods.iter().filter(|p| is_ready(p)).count() == 30).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "took {:?}", began.elapsed());
    cluster.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    cluster.until::<Pod>("no pods", |pods| pods.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_completes_and_is_cleared_away() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let mut template = template("batch", "web:1");
    template["metadata"]["annotations"] = json!({"test/ends": "at once"});
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 3, "parallelism": 2, "template": template}});
    cluster.create::<Job>(job).await;
    let jobs = cluster
        .until::<Job>("completion", |jobs| {
            jobs.iter()
                .any(|j| j.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Complete"))
        })
        .await;
    assert_eq!(jobs[0].status.as_ref().unwrap().succeeded, Some(3));
    let pods = cluster.until::<Pod>("free of finalizers", |pods| pods.iter().all(|p| p.finalizers().is_empty())).await;
    assert_eq!(pods.len(), 3);
    let patch = Patch::Merge(json!({"spec": {"ttlSecondsAfterFinished": 0}}));
    cluster.api::<Job>().patch("j", &PatchParams::default(), &patch).await.unwrap();
    cluster.until::<Job>("no job", |jobs| jobs.is_empty()).await;
    cluster.until::<Pod>("no pods", |pods| pods.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_run_on_every_node_and_are_replaced() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let set = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "d"}}, "template": template("d", "d:1")}});
    cluster.create::<DaemonSet>(set).await;
    cluster.until::<Pod>("one daemon", |pods| pods.iter().filter(|p| is_ready(p)).count() == 1).await;
    cluster.node("n2").await;
    cluster.until::<Pod>("two daemons", |pods| pods.iter().filter(|p| is_ready(p)).count() == 2).await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "d:2"}]}}}});
    cluster.api::<DaemonSet>().patch("d", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    cluster
        .until::<Pod>("new daemons", |pods| {
            pods.len() == 2
                && pods
                    .iter()
                    .all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("d:2") && is_ready(p))
        })
        .await;
    cluster
        .until::<DaemonSet>("status", |sets| {
            sets[0]
                .status
                .as_ref()
                .is_some_and(|s| s.number_available == Some(2) && s.updated_number_scheduled == Some(2))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stateful_pods_come_in_order_and_keep_their_names() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let set = json!({"metadata": {"name": "db"}, "spec": {"serviceName": "db", "replicas": 3,
        "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "db:1")}});
    cluster.create::<StatefulSet>(set).await;
    let pods = cluster.until::<Pod>("three pods", |pods| pods.iter().filter(|p| is_ready(p)).count() == 3).await;
    let mut names: Vec<String> = pods.iter().map(|p| p.name_any()).collect();
    names.sort();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    let patch = json!({"spec": {"replicas": 1}});
    cluster.api::<StatefulSet>().patch("db", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let left = cluster.until::<Pod>("one pod", |pods| pods.len() == 1).await;
    assert_eq!(left[0].name_any(), "db-0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_born_complete_and_goes_with_its_content() {
    let cluster = Cluster::start().await;
    let namespaces: Api<Namespace> = Api::all(cluster.admin.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin.clone(), "team");
    until(&accounts, "the default account", |all| all.iter().any(|a| a.name_any() == "default")).await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "team");
    let published = until(&maps, "the root CA", |all| !all.is_empty()).await;
    assert_eq!(published[0].name_any(), "kube-root-ca.crt");
    assert_eq!(published[0].data.as_ref().unwrap()["ca.crt"], "the root");
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    until(&maps, "the root CA again", |all| !all.is_empty()).await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    until(&namespaces, "the namespace gone", |all| all.iter().all(|n| n.name_any() != "team")).await;
    assert!(maps.list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_runs_when_it_can() {
    let cluster = Cluster::start().await;
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {"nodeSelector": {"disk": "ssd"}}});
    pod["spec"]["containers"] = json!([{"name": "c", "image": "web:1"}]);
    cluster.create::<Pod>(pod).await;
    let says = |pods: &[Pod], text: &str| {
        pods.iter().any(|p| {
            bosun_api::pod::condition(p, "PodScheduled").is_some_and(|c| {
                c.status == "False"
                    && c.reason.as_deref() == Some("Unschedulable")
                    && c.message.as_deref() == Some(text)
            })
        })
    };
    cluster.until::<Pod>("no nodes", |pods| says(pods, "no nodes available to schedule pods")).await;
    cluster.node("n1").await;
    let text = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to \
                deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    cluster.until::<Pod>("no match", |pods| says(pods, text)).await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    nodes.patch("n1", &PatchParams::default(), &label).await.unwrap();
    cluster.until::<Pod>("running", |pods| pods.iter().any(is_ready)).await;
    let events =
        cluster.until::<Event>("the event", |all| all.iter().any(|e| e.reason.as_deref() == Some("Scheduled"))).await;
    let scheduled = events.iter().find(|e| e.reason.as_deref() == Some("Scheduled")).unwrap();
    assert_eq!(scheduled.message.as_deref(), Some("Successfully assigned default/p to n1"));
}
