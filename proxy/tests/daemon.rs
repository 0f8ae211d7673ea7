//! The whole program against an API server in memory and a real kernel: what it programs, repairs and answers.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bosun_proxy::Config;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Lists by resource, and where the watchers of each listen.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Resources>>);

#[derive(Default)]
struct Resources {
    lists: HashMap<&'static str, Vec<Value>>,
    watchers: HashMap<String, Vec<UnboundedSender<String>>>,
}

impl Api {
    fn answer(&self, request: &Request<Body>) -> Response<bosun_kit::http::Body> {
        let resource = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let mut resources = self.0.lock().unwrap();
        let Some(items) = resources.lists.get(&*resource).cloned() else {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "none"});
            return bosun_kit::http::json(http::StatusCode::NOT_FOUND, &status);
        };
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            let (sender, lines): (_, UnboundedReceiver<String>) = unbounded();
            resources.watchers.entry(resource).or_default().push(sender);
            return Response::new(bosun_kit::http::stream(lines.map(|line| Ok(line.into()))));
        }
        bosun_kit::http::json(http::StatusCode::OK, &json!({"metadata": {"resourceVersion": "1"}, "items": items}))
    }

    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let response = api.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        Client::new(service, "default")
    }

    fn tell(&self, resource: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        for watcher in self.0.lock().unwrap().watchers.get(resource).into_iter().flatten() {
            let _ = watcher.unbounded_send(line.clone());
        }
    }
}

fn service(name: &str, ip: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]},
    })
}

fn slice(service: &str, version: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-1"), "namespace": "default", "resourceVersion": version, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.1.0.1"]}],
    })
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the rules hold, or hold no more, a text; how long it took.
fn until(text: &str, there: bool) -> Duration {
    let start = Instant::now();
    while sh("nft list ruleset").contains(text) != there {
        assert!(start.elapsed() < Duration::from_secs(10), "{text} {there}\n{}", sh("nft list ruleset"));
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_daemon_programs_repairs_and_answers() {
    let test = || {
        // The runtime's threads are born in the namespace.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        let api = Api::default();
        {
            let mut resources = api.0.lock().unwrap();
            let node = json!({"metadata": {"name": "node", "resourceVersion": "1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.7.1"}]}});
            resources.lists.insert("nodes", vec![node]);
            resources.lists.insert("services", vec![service("a", "10.96.0.1", "1")]);
            resources.lists.insert("endpointslices", vec![slice("a", "1")]);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        let config = Config { cluster_cidr: "10.1.0.0/16".into(), ..Config::default() };
        let client = runtime.block_on(async { api.client() });
        let plan = runtime.block_on(bosun_proxy::dry_run(&config, client.clone(), "node", cancel.clone())).unwrap();
        assert!(plan.to_string().contains("10.96.0.1 tcp 80: balance"), "{plan}");
        assert_eq!(sh("nft list ruleset"), "", "a dry run touches nothing");

        let running = runtime.spawn(bosun_proxy::run(config, client, "node".into(), cancel.clone()));
        until("10.96.0.1 . tcp . 80 . 0x00000000 : 10.1.0.1 . 8080", true);
        until("elements = { 192.168.7.1 }", true);
        assert!(get(10256, "/healthz").starts_with("HTTP/1.1 200"), "{}", get(10256, "/healthz"));
        assert!(get(10256, "/livez").contains("lastUpdated"));
        assert!(get(10249, "/proxyMode").ends_with("nftables"));
        assert!(get(10249, "/configz").contains("\"clusterCIDR\":\"10.1.0.0/16\""));

        // The first change after a pause is not held back.
        std::thread::sleep(Duration::from_millis(1100));
        api.tell("services", "ADDED", &service("b", "10.96.0.2", "2"));
        let took = until("10.96.0.2 . tcp . 80 : goto reject", true);
        assert!(took < Duration::from_millis(700), "{took:?}");
        api.tell("endpointslices", "ADDED", &slice("b", "3"));
        until("10.96.0.2 . tcp . 80 : goto cluster-1", true);
        assert!(
            get(10249, "/metrics").contains("kubeproxy_sync_proxy_rules_service_changes_total 1"),
            "{}",
            get(10249, "/metrics")
        );

        sh("nft flush ruleset");
        let took = until("10.96.0.2 . tcp . 80 : goto cluster-1", true);
        assert!(took < Duration::from_secs(2), "{took:?}");
        sh("nft flush chain ip kube-proxy services");
        until("vmap @service-ips", true);

        // The rules as they are need no sync: only what was told above was done.
        api.tell("services", "DELETED", &service("b", "10.96.0.2", "4"));
        until("10.96.0.2 . tcp", false);
        let leaving = json!({"metadata": {"name": "node", "resourceVersion": "5"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
        api.tell("nodes", "MODIFIED", &leaving);
        let start = Instant::now();
        while !get(10256, "/healthz").starts_with("HTTP/1.1 503") {
            assert!(start.elapsed() < Duration::from_secs(5));
        }
        assert!(get(10256, "/livez").starts_with("HTTP/1.1 200"));

        cancel.cancel();
        runtime.block_on(running).unwrap().unwrap();
        assert!(sh("nft list ruleset").contains("10.96.0.1"), "the rules stay");
    };
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Makes this thread see the kernel as one built without netfilter's netlink: its sockets do not exist.
fn without_netfilter() {
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter, SeccompRule,
    };
    let is = |argument, value: i32| SeccompCondition::new(argument, Len::Dword, Op::Eq, value as u64).unwrap();
    let rule = SeccompRule::new(vec![is(0, libc::AF_NETLINK), is(2, libc::NETLINK_NETFILTER)]).unwrap();
    let refuse = SeccompAction::Errno(libc::EPROTONOSUPPORT as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        SeccompFilter::new([(libc::SYS_socket, vec![rule])].into(), SeccompAction::Allow, refuse, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn a_kernel_without_nf_tables_is_named_at_start() {
    let test = || {
        without_netfilter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async { Api::default().client() });
        let run = bosun_proxy::run(Config::default(), client, "node".into(), CancellationToken::new());
        let error = runtime.block_on(run).unwrap_err().to_string();
        assert!(error.starts_with("mode nftables cannot be used: "), "{error}");
        assert!(error.contains("CONFIG_NF_TABLES"), "{error}");
    };
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}
