//! Measures memory and speed with 10,000 Services: `cargo run --release -p bosun-dns --example load [SERVICES]`.
//!
//! The API server is a function that lists page by page; questions come by UDP from threads of this process, so that the
//! speed is a lower bound.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on fails, and prints")]

use bosun_dns::Config;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

fn service(number: usize) -> Value {
    json!({
        "metadata": {
            "name": format!("service-{number}"), "namespace": format!("team-{}", number % 100), "resourceVersion": "1",
            "uid": "6b1f5f0e-0000-4000-8000-000000000000", "labels": {"app": format!("service-{number}")},
        },
        "spec": {
            "clusterIP": format!("10.{}.{}.{}", 96 + number / 62_500, number / 250 % 250, number % 250 + 1),
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}], "selector": {"app": format!("service-{number}")},
        },
    })
}

fn slice(number: usize) -> Value {
    let name = format!("service-{number}");
    let endpoints: Vec<_> = (0..3)
        .map(|n| json!({"addresses": [format!("10.244.{}.{}", number % 250, n + 2)], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {
            "name": format!("{name}-abcde"), "namespace": format!("team-{}", number % 100), "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

async fn api(request: Request<Body>, count: usize) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    if query.contains("watch=true") {
        std::future::pending::<()>().await;
    }
    let find = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
    let (from, limit) = (find("continue=").unwrap_or(0), find("limit=").unwrap_or(count));
    let to = (from + limit).min(count);
    let is_service = request.uri().path().ends_with("/services");
    let items: Vec<_> = (from..to).map(|n| if is_service { service(n) } else { slice(n) }).collect();
    let mut metadata = json!({"resourceVersion": "1"});
    if to < count {
        metadata["continue"] = to.to_string().into();
    }
    let (kind, version) = if is_service { ("ServiceList", "v1") } else { ("EndpointSliceList", "discovery.k8s.io/v1") };
    let list = json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items});
    Ok(Response::new(Body::from(list.to_string().into_bytes())))
}

fn memory(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Asks for as long as told, with as many questions on the way as `WINDOW`.
fn ask(server: SocketAddr, services: usize, seed: usize, until: Instant, answered: &AtomicU64) {
    const WINDOW: usize = 16;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let questions: Vec<Vec<u8>> = (0..1000)
        .map(|n| {
            let number = (n * 7919 + seed) % services;
            let mut message = Message::query();
            let name = format!("service-{number}.team-{}.svc.cluster.local.", number % 100);
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            message.to_vec().unwrap()
        })
        .collect();
    let mut questions = questions.iter().cycle();
    let mut buffer = [0; 512];
    for _ in 0..WINDOW {
        socket.send(questions.next().unwrap()).unwrap();
    }
    while Instant::now() < until {
        if socket.recv(&mut buffer).is_ok() {
            assert_eq!(buffer[7], 1, "one answer");
            answered.fetch_add(1, Ordering::Relaxed);
        }
        socket.send(questions.next().unwrap()).unwrap();
    }
}

#[tokio::main]
async fn main() {
    let services = std::env::args().nth(1).map_or(10_000, |text| text.parse().unwrap());
    let client = kube::Client::new(tower::service_fn(move |request| api(request, services)), "default");
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server: SocketAddr = "127.0.0.1:15353".parse().unwrap();
    let config = Config {
        cluster_domain: "cluster.local".into(),
        listen: vec![server],
        upstreams: Vec::new(),
        health_address: any,
        ready_address: any,
        metrics_address: any,
    };
    let before = memory("VmRSS");
    tokio::spawn(bosun_dns::run(config, client, CancellationToken::new()));
    tokio::time::sleep(Duration::from_secs(4)).await;
    println!("{services} services: RSS {:.1} MB ({before:.1} before), peak {:.1} MB", memory("VmRSS"), memory("VmHWM"));
    let answered = Arc::new(AtomicU64::new(0));
    let seconds = 5;
    let until = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let answered = answered.clone();
            tokio::task::spawn_blocking(move || ask(server, services, n * 131, until, &answered))
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    println!("{} answers/s by UDP, clients in the same process", answered.load(Ordering::Relaxed) / seconds);
}
