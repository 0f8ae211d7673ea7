//! The kubelet as a process among others: systemd hears of it, its log is JSON where that is asked for, spans reach a
//! collector, static pods come from a web server, and kernel settings that are protected fail its start.
#![expect(clippy::unwrap_used, reason = "helpers of a test: whatever fails fails the test")]

mod real;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use real::{BUSYBOX, IMAGE, TestNode, wait_or};

/// What came to the collector.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn listen(socket: &Path) -> (Self, tokio::runtime::Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)));
        (collector, runtime)
    }
}

/// Serves one answer to everybody within the node's network; its port.
fn serve(node: &TestNode, answer: String) -> u16 {
    let namespace = File::open(format!("/run/netns/{}", node.name)).unwrap();
    let listen = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap()
    };
    let listener = std::thread::spawn(listen).join().unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
            let _ = stream.write_all(format!("{head}{answer}").as_bytes());
        }
    });
    port
}

/// The messages of a service to systemd, until one of them is this.
fn hear(systemd: &UnixDatagram, wanted: &str, log: impl Fn() -> String) {
    let began = Instant::now();
    let mut buffer = [0; 256];
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "systemd did not hear {wanted}\n{}", log());
        if let Ok(size) = systemd.recv(&mut buffer)
            && buffer[..size].trim_ascii() == wanted.as_bytes()
        {
            return;
        }
    }
}

fn sysctl(name: &str) -> i64 {
    fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap().trim().parse().unwrap()
}

/// The machine's own settings are looked at and left, whatever they are.
fn protects_the_kernel(node: &mut TestNode) {
    let found = (sysctl("vm/overcommit_memory"), sysctl("kernel/panic"));
    if found.0 != 1 {
        node.configure(&json!({"protectKernelDefaults": true}));
        node.start_kubelet();
        assert_eq!(node.end_of_kubelet(None), 1);
        let want = format!("invalid kernel flag: vm/overcommit_memory, expected value: 1, actual value: {}", found.0);
        assert!(node.log().contains(&want), "{}", node.log());
        node.configure(&json!({"protectKernelDefaults": false}));
    }
    node.start_kubelet();
    wait_or("the start", || node.log().contains("kubelet started"), || node.log());
    assert_eq!(node.end_of_kubelet(Some(Signal::SIGTERM)), 0);
    assert_eq!((sysctl("vm/overcommit_memory"), sysctl("kernel/panic")), found, "a node in a namespace is no machine");
    fs::remove_file(node.folder.join("kubelet.log")).unwrap();
}

#[test]
fn a_process_that_others_watch() {
    let mut node = TestNode::start();
    protects_the_kernel(&mut node);

    let systemd = UnixDatagram::bind(node.folder.join("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (collector, _runtime) = Collector::listen(&node.folder.join("otlp.sock"));
    let pod = json!({"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "far"}, "spec": {
        "hostNetwork": true, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": [BUSYBOX, "sleep", "1000"]}]}}]});
    let port = serve(&node, pod.to_string());
    node.env = vec![
        ("NOTIFY_SOCKET".into(), node.path("notify")),
        ("WATCHDOG_USEC".into(), "400000".into()),
        ("BOSUN_TEST".into(), node.name.clone()),
    ];
    node.configure(&json!({
        "logging": {"format": "json"},
        "staticPodURL": format!("http://127.0.0.1:{port}/pods"), "httpCheckFrequency": "1s",
        "tracing": {"endpoint": format!("unix://{}", node.path("otlp.sock")), "samplingRatePerMillion": 1_000_000},
    }));
    node.start_kubelet();
    hear(&systemd, "READY=1", || node.log());
    hear(&systemd, "WATCHDOG=1", || node.log());
    let pod = node.until_ready("the pod from the URL");
    assert_eq!(pod["metadata"]["name"], "far-node1");
    assert_eq!(pod["metadata"]["annotations"]["kubernetes.io/config.source"], "http");
    hear(&systemd, "WATCHDOG=1", || node.log());
    let traced = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let asked = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", node.name))
        .args(["curl", "-sk", "-H", &format!("traceparent: {traced}"), "https://127.0.0.1:10250/pods"])
        .output()
        .unwrap();
    assert!(asked.status.success());
    assert_eq!(node.end_of_kubelet(Some(Signal::SIGTERM)), 0);
    hear(&systemd, "STOPPING=1", || node.log());

    for line in node.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
    spans(&collector);

    // What the next kubelet finds is ended with its source.
    node.configure(&json!({"staticPodURL": ""}));
    node.start_kubelet();
    wait_or("the end", || node.containers() == 0 && node.pods().is_empty(), || node.log());
}

/// The call that made the container is part of the pod's sync, and the request is part of the caller's trace.
fn spans(collector: &Collector) {
    let spans = collector.0.lock().unwrap().clone();
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"));
    let create = named("runtime.v1.RuntimeService/CreateContainer");
    let sync = by_id[create.parent_span_id.as_slice()];
    assert_eq!(sync.name, "syncPod");
    let text = |key: &str| {
        let value = sync.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?;
        Some(format!("{value:?}"))
    };
    assert!(text("k8s.pod").unwrap().contains("default/far-node1"), "{sync:?}");
    assert_eq!(sync.trace_id, create.trace_id);
    named("runtime.v1.ImageService/ImageStatus");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let caller = spans.iter().filter(|span| hex(&span.parent_span_id) == "00f067aa0ba902b7");
    let names: Vec<&str> = caller.map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["/pods"]);
}
