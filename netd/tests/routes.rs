//! The daemon on a real kernel, in a network namespace of its own, with an API server that is a function.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bosun_netd::{Config, run};
use http::{Method, Request, Response};
use kube::client::Body;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Runs in this thread's namespace.
fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn node(name: &str, cidr: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

async fn until(what: &str, done: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

#[test]
fn routes_rules_and_configuration_are_made_and_mended() {
    // The thread ends with the test, and with it the namespace.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scenario());
    })
    .join()
    .unwrap();
}

async fn scenario() {
    sh("ip link set lo up; ip link add eth0 type bridge; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up");
    // Of a node that is gone, left by an earlier run; and somebody else's.
    sh("ip route add 10.244.9.0/24 via 192.0.2.9 proto 181; ip route add 10.250.0.0/24 via 192.0.2.9 proto static");
    let patches = Arc::new(Mutex::new(Vec::new()));
    let seen = patches.clone();
    let api = tower::service_fn(move |request| answer(request, seen.clone()));
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        conf_dir: dir.path().join("net.d"),
        bin_dir: dir.path().into(),
        subnet_env: Some(dir.path().join("flannel/subnet.env")),
        ..Config::default()
    };
    let cancel = CancellationToken::new();
    let daemon = tokio::spawn(run(config, kube::Client::new(api, "default"), "a".to_owned(), cancel.clone()));

    let routes = || sh("ip route show proto 181");
    until("routes", || routes().contains("10.244.2.0/24 via 192.0.2.3")).await;
    assert_eq!(routes().trim(), "10.244.1.0/24 via 192.0.2.2 dev eth0 \n10.244.2.0/24 via 192.0.2.3 dev eth0");
    assert!(sh("ip route").contains("10.250.0.0/24"));
    until("condition", || !patches.lock().unwrap().is_empty()).await;
    let condition = patches.lock().unwrap()[0]["status"]["conditions"][0].clone();
    assert_eq!((&condition["type"], &condition["status"]), (&json!("NetworkUnavailable"), &json!("False")));
    assert!(std::fs::read_to_string(dir.path().join("net.d/10-bosun.conflist")).unwrap().contains("10.244.0.0/24"));
    assert!(
        std::fs::read_to_string(dir.path().join("flannel/subnet.env"))
            .unwrap()
            .contains("FLANNEL_SUBNET=10.244.0.1/24")
    );
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables"), "1\n1\n");

    sh("ip route del 10.244.1.0/24");
    let took = until("deleted route", || routes().contains("10.244.1.0/24")).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    sh("ip route replace 10.244.1.0/24 via 192.0.2.7 proto 181");
    until("changed route", || routes().contains("10.244.1.0/24 via 192.0.2.2")).await;
    sh("ip link set eth0 down; ip link set eth0 up");
    until("routes after the link", || routes().lines().count() == 2).await;

    let rules = || sh("nft list ruleset");
    assert!(rules().contains("ip saddr 10.244.0.0/24 ip daddr 10.244.0.0/16 return"), "{}", rules());
    assert!(rules().contains("masquerade"), "{}", rules());
    sh("nft flush ruleset");
    until("flushed rules", || rules().contains("masquerade")).await;
    let chain = sh("nft flush chain inet bosun-netd postrouting");
    until("flushed chain", || rules().contains("masquerade")).await;
    assert!(chain.is_empty());
    // Handles differ after each load: what the daemon itself changed must not make it load again.
    let handles = || sh("nft -a list table inet bosun-netd");
    let before = handles();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(handles(), before, "the rules are loaded again and again");

    cancel.cancel();
    daemon.await.unwrap().unwrap();
    assert_eq!(routes().lines().count(), 2, "routes outlive the daemon");
}

async fn answer(request: Request<Body>, patches: Arc<Mutex<Vec<Value>>>) -> Result<Response<Body>, Infallible> {
    let me = node("a", "10.244.0.0/24", "192.0.2.1");
    if request.method() == Method::PATCH {
        let bytes = request.into_body().collect_bytes().await.unwrap();
        patches.lock().unwrap().push(serde_json::from_slice(&bytes).unwrap());
        return Ok(Response::new(Body::from(me.to_string().into_bytes())));
    }
    if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
        std::future::pending::<()>().await;
    }
    let items = [me, node("b", "10.244.1.0/24", "192.0.2.2"), node("c", "10.244.2.0/24", "192.0.2.3")];
    let list = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    Ok(Response::new(Body::from(list.to_string().into_bytes())))
}
