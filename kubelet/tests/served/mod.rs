//! What the server shows of a pod that really runs, and what it lets do: usage, metrics, exec with an end of input.

use std::fs::File;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::real::TestNode;

/// Checks all of it on the one pod of `node`.
pub(crate) fn check(node: &TestNode) {
    metrics(node);
    summary(node);
    exec(node);
    let (status, text) = request(node, "POST", "https://127.0.0.1:10250/checkpoint/default/web-node1/main");
    // Whether a checkpoint succeeds is up to the runtime; what it says is passed on.
    let refused = status == 500 && text.starts_with("checkpointing of default/web-node1/main failed (");
    assert!(refused || (status == 200 && text.contains("/checkpoints/checkpoint-web-node1_default-main-")), "{text}");
    let (status, text) = request(node, "GET", "http://127.0.0.1:10255/pods");
    assert!(status == 200 && text.contains("web-node1"), "{text}");
    assert_eq!(request(node, "GET", "http://127.0.0.1:10255/configz").0, 404);
}

fn request(node: &TestNode, method: &str, url: &str) -> (u16, String) {
    let out = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", node.name))
        .args(["curl", "-sk", "-X", method, "-w", "\n%{http_code}", url])
        .output()
        .unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    let (text, status) = out.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), text.to_owned())
}

fn get(node: &TestNode, path: &str) -> String {
    let (status, text) = request(node, "GET", &format!("https://127.0.0.1:10250{path}"));
    assert_eq!(status, 200, "{path}: {text}");
    text
}

/// The value of the sample whose line begins so and holds all `parts`.
fn sample(page: &str, name: &str, parts: &[&str]) -> f64 {
    let fits = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && parts.iter().all(|p| line.contains(p))
    };
    let line = page.lines().find(fits).unwrap_or_else(|| panic!("{name} {parts:?} in\n{page}"));
    line.rsplit_once("} ").map_or(line, |(_, rest)| rest).split(' ').find_map(|word| word.parse().ok()).unwrap()
}

fn metrics(node: &TestNode) {
    let page = get(node, "/metrics/cadvisor");
    let main = [r#"container="main""#, r#"namespace="default",pod="web-node1""#];
    assert!(sample(&page, "container_memory_working_set_bytes", &main) > 0.0);
    assert!(sample(&page, "container_cpu_usage_seconds_total", &[main[0], main[1], r#"cpu="total""#]) > 0.0);
    assert!(sample(&page, "container_start_time_seconds", &main) > 1e9);
    assert!(sample(&page, "container_processes", &main) >= 1.0);
    let whole = [r#"container="""#, r#"image="",name="",namespace="default",pod="web-node1""#];
    assert!(sample(&page, "container_memory_working_set_bytes", &whole) > 0.0);
    assert!(sample(&page, "machine_memory_bytes", &[]) > 0.0);

    let page = get(node, "/metrics");
    assert_eq!(sample(&page, "kubelet_running_pods", &[]), 1.0);
    assert_eq!(sample(&page, "kubelet_running_containers", &[r#"container_state="running""#]), 1.0);
    assert_eq!(sample(&page, "kubelet_node_name", &[r#"node="node1""#]), 1.0);
    assert!(sample(&page, "kubelet_runtime_operations_total", &[r#"operation_type="run_podsandbox""#]) >= 1.0);
    assert!(sample(&page, "kubelet_pleg_relist_duration_seconds_count", &[]) >= 1.0);
}

fn summary(node: &TestNode) {
    let summary: Value = serde_json::from_str(&get(node, "/stats/summary")).unwrap();
    // What is used of it the runtime counts now and then.
    assert!(summary["node"]["runtime"]["imageFs"]["capacityBytes"].as_u64().unwrap() > 0, "{summary:#}");
    let system = |name: &str| summary["node"]["systemContainers"].as_array().unwrap().iter().any(|s| s["name"] == name);
    assert!(system("pods"), "{summary:#}");
    let pod = &summary["pods"][0];
    assert!(pod["containers"][0]["memory"]["workingSetBytes"].as_u64().unwrap() > 0, "{pod:#}");
    assert!(pod["containers"][0]["rootfs"]["usedBytes"].is_u64(), "{pod:#}");
    assert!(pod["containers"][0]["logs"]["usedBytes"].as_u64().unwrap() > 0, "{pod:#}");
    assert!(pod["process_stats"]["process_count"].as_u64().unwrap() >= 1, "{pod:#}");
    let mut volumes: Vec<&str> = pod["volume"].as_array().unwrap().iter().filter_map(|v| v["name"].as_str()).collect();
    volumes.sort_unstable();
    assert_eq!(volumes, ["data", "info"]);
}

/// What a command under the fifth version of the channel protocol answers to `input`, message by message.
fn session(node: &TestNode, query: &str, input: &[&[u8]]) -> Vec<String> {
    let stream = connect(node);
    let run = async move {
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let mut config = bosun_kit::tls::unverified_client_config();
        config.alpn_protocols.clear();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
        let url = format!("wss://127.0.0.1:10250/exec/default/web-node1/main?command=/bin/busybox&{query}");
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
        let (mut socket, _) = client_async(request, stream).await.unwrap();
        for message in input {
            socket.send(Message::Binary(message.to_vec().into())).await.unwrap();
        }
        let mut seen = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message {
                seen.push(String::from_utf8(bytes.to_vec()).unwrap());
            }
        }
        seen
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), run).await.unwrap() })
}

fn exec(node: &TestNode) {
    // It ends only if the end of its input reaches it.
    let seen = session(node, "command=cat&input=1&output=1&error=1", &[b"\x00hello\n", &[255, 0]]);
    assert_eq!(seen.first().map(String::as_str), Some("\u{1}hello\n"), "{seen:?}");
    assert!(seen.last().unwrap().contains(r#""status":"Success""#), "{seen:?}");
    let seen = session(node, "command=sh&command=-c&command=exit+3&output=1&error=1", &[]);
    assert!(seen.last().unwrap().contains(r#""reason":"ExitCode","message":"3""#), "{seen:?}");
    let script = "command=sh&command=-c&command=busybox+sleep+1;busybox+stty+size&input=1&output=1&tty=1";
    let seen = session(node, script, &[b"\x04{\"Width\":100,\"Height\":40}"]);
    assert!(seen.iter().any(|message| message.contains("40 100")), "{seen:?}");
}

/// A connection made within the node's network namespace.
fn connect(node: &TestNode) -> TcpStream {
    let namespace = File::open(format!("/run/netns/{}", node.name)).unwrap();
    // A thread of its own: the namespace is a thread's.
    let connected = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        TcpStream::connect("127.0.0.1:10250").unwrap()
    });
    connected.join().unwrap()
}
