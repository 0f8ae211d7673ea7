//! The server over real TLS: who gets in where, and what the handlers answer.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod rig;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bosun_kit::http::empty;
use bosun_kit::metrics::Metrics;
use bosun_kit::pki::{CertificateAuthority, KeyedCert, Usage};
use bosun_kubelet_server::auth::{Auth, AuthConfig, AuthorizationMode};
use bosun_kubelet_server::{KubeletServer, ServerConfig, serve_health};
use http::Request;
use hyper_util::rt::TokioIo;
use rig::{Kubelet, leaf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Every route with the verb and the subresources that allow it, and what it answers to whoever is let in.
const ROUTES: [(&str, &str, &str, &[&str], u16); 25] = [
    ("GET", "/healthz", "get", &["healthz", "proxy"], 200),
    ("GET", "/healthz/ping", "get", &["healthz", "proxy"], 200),
    ("GET", "/healthz/log", "get", &["healthz", "proxy"], 200),
    ("GET", "/healthz/syncloop", "get", &["healthz", "proxy"], 200),
    ("GET", "/pods", "get", &["pods", "proxy"], 200),
    ("GET", "/runningpods/", "get", &["pods", "proxy"], 503),
    ("GET", "/containerLogs/default/web/app", "get", &["proxy"], 200),
    ("POST", "/exec/default/web/app?output=1&command=ls", "create", &["proxy"], 400),
    ("GET", "/exec/default/web/u-1/app?output=1&command=ls", "get", &["proxy"], 400),
    ("POST", "/attach/default/web/app?output=1", "create", &["proxy"], 400),
    ("POST", "/run/default/web/app?cmd=ls+-l", "create", &["proxy"], 200),
    ("POST", "/portForward/default/web", "create", &["proxy"], 400),
    ("GET", "/stats/summary", "get", &["stats"], 200),
    ("GET", "/metrics", "get", &["metrics"], 200),
    ("GET", "/metrics/resource", "get", &["metrics"], 200),
    ("GET", "/metrics/cadvisor", "get", &["metrics"], 200),
    ("GET", "/metrics/probes", "get", &["metrics"], 200),
    ("GET", "/configz", "get", &["configz", "proxy"], 200),
    ("GET", "/logs/", "get", &["log"], 200),
    ("GET", "/debug/pprof/", "get", &["proxy"], 501),
    ("GET", "/metrics/slis", "get", &["metrics"], 200),
    ("POST", "/checkpoint/default/web/app", "create", &["checkpoint"], 200),
    ("GET", "/statusz", "get", &["statusz", "proxy"], 200),
    ("GET", "/flagz", "get", &["flagz", "proxy"], 200),
    ("GET", "/nowhere", "get", &["proxy"], 404),
];

#[tokio::test]
async fn who_gets_in_where() {
    // One user for each route and subresource, allowed that alone; and one with a permission that no route asks for.
    let mut allowed: Vec<(&'static str, &'static str, &'static str)> = vec![("other", "get", "spec")];
    for (index, (_, _, verb, subresources, _)) in ROUTES.iter().enumerate() {
        for subresource in *subresources {
            allowed.push((format!("user-{index}-{subresource}").leak(), verb, subresource));
        }
    }
    let kubelet = Kubelet::start(AuthConfig::default(), &allowed).await;
    let other = kubelet.person("other");
    let elsewhere = CertificateAuthority::generate("elsewhere").unwrap();
    let stranger = elsewhere.issue(&leaf("user-0-proxy", Usage::ClientAuth)).unwrap();
    for (index, (method, path, verb, subresources, status)) in ROUTES.into_iter().enumerate() {
        let unauthorized = (401, "Unauthorized".to_owned());
        assert_eq!(kubelet.ask(None, method, path).await, unauthorized, "no certificate: {path}");
        assert_eq!(kubelet.ask_with(None, Some("bad"), method, path).await, unauthorized, "bad token: {path}");

        // A certificate of another authority does not get past the handshake.
        let request = Request::builder().method(method).uri(path).body(empty()).unwrap();
        assert!(kubelet.send(Some(&stranger), request).await.is_err(), "wrong CA: {path}");

        let list = subresources.join(" ");
        let forbidden = format!("Forbidden (user=other, verb={verb}, resource=nodes, subresource(s)=[{list}])\n");
        assert_eq!(kubelet.ask(Some(&other), method, path).await, (403, forbidden), "no permission: {path}");

        for subresource in subresources {
            let person = kubelet.person(&format!("user-{index}-{subresource}"));
            let (got, body) = kubelet.ask(Some(&person), method, path).await;
            assert_eq!(got, status, "{method} {path} by {subresource}: {body}");
        }
    }
}

#[tokio::test]
async fn tokens_are_reviewed_and_answers_remembered() {
    let kubelet = Kubelet::start(AuthConfig::default(), &[("tokener", "get", "proxy")]).await;
    for _ in 0..3 {
        let (status, body) = kubelet.ask_with(None, Some("good"), "GET", "/pods").await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(kubelet.ask_with(None, Some("good"), "GET", "/stats/summary").await.0, 403);
    }
    assert_eq!(kubelet.reviews.tokens.load(Ordering::SeqCst), 1);
    // pods (no), proxy (yes), stats (no): each asked once.
    assert_eq!(kubelet.reviews.accesses.load(Ordering::SeqCst), 3);
    // What could not be asked is an error, and is asked again.
    *kubelet.reviews.down.lock().unwrap() = true;
    let (status, body) = kubelet.ask_with(None, Some("good"), "GET", "/metrics").await;
    assert_eq!(status, 500);
    assert_eq!(body, "Authorization error (user=tokener, verb=get, resource=nodes, subresource=metrics)");
    *kubelet.reviews.down.lock().unwrap() = false;
    assert_eq!(kubelet.ask_with(None, Some("good"), "GET", "/metrics").await.0, 403);
}

#[tokio::test]
async fn other_modes() {
    let open = AuthConfig { mode: AuthorizationMode::AlwaysAllow, ..AuthConfig::default() };
    let kubelet = Kubelet::start(open.clone(), &[]).await;
    assert_eq!(kubelet.ask(Some(&kubelet.person("anyone")), "GET", "/pods").await.0, 200);
    assert_eq!(kubelet.ask(None, "GET", "/pods").await.0, 401);
    let kubelet = Kubelet::start(AuthConfig { anonymous: true, ..open.clone() }, &[]).await;
    assert_eq!(kubelet.ask(None, "GET", "/pods").await.0, 200);
    assert_eq!(kubelet.ask_with(None, Some("bad"), "GET", "/pods").await.0, 401);
    let kubelet = Kubelet::start(AuthConfig { webhook: false, ..open }, &[]).await;
    assert_eq!(kubelet.ask_with(None, Some("good"), "GET", "/pods").await.0, 401);
}

#[tokio::test]
async fn an_expired_certificate_is_nobodys_even_on_a_living_connection() {
    let config = AuthConfig { mode: AuthorizationMode::AlwaysAllow, ..AuthConfig::default() };
    let kubelet = Kubelet::start(config, &[]).await;
    let mut params = leaf("brief", Usage::ClientAuth);
    params.lifetime = Duration::from_secs(2);
    let brief = kubelet.ca.issue(&params).unwrap();
    let mut sender = kubelet.session(Some(&brief)).await.unwrap();
    let mut status = async || {
        let request = Request::builder().uri("/healthz").header("host", "node").body(empty()).unwrap();
        sender.send_request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(status().await, 200);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(status().await, 401);
}

async fn open() -> (Kubelet, KeyedCert) {
    let config = AuthConfig { mode: AuthorizationMode::AlwaysAllow, ..AuthConfig::default() };
    let kubelet = Kubelet::start(config, &[]).await;
    let admin = kubelet.person("admin");
    (kubelet, admin)
}

#[tokio::test]
async fn logs_are_answered_with_stocks_words() {
    let (kubelet, admin) = open().await;
    let get = async |path: &str| kubelet.ask(Some(&admin), "GET", path).await;
    let logs = "/containerLogs/default/web/app";
    assert_eq!(get(logs).await, (200, "one\ntwo\n".into()));
    assert_eq!(get(&format!("{logs}?tailLines=1&timestamps=true")).await, (200, "2026-01-01T00:00:01Z two\n".into()));
    assert_eq!(get(&format!("{logs}?stream=Stdout&follow=true")).await, (200, "one\n".into()));
    assert_eq!(get(&format!("{logs}?tailLines=-1")).await, (422, r#"{"message": "Invalid request."}"#.into()));
    assert_eq!(get(&format!("{logs}?tailLines=a")).await, (400, r#"{"message": "Unable to decode query."}"#.into()));
    let (status, text) = get(&format!("{logs}?previous=true")).await;
    assert_eq!((status, text.as_str()), (400, "previous terminated container \"app\" in pod \"web\" not found"));
    assert_eq!(get("/containerLogs/default/db/app").await, (404, "pod \"db\" does not exist".into()));
    let missing = "container \"db\" not found in pod \"web\"";
    assert_eq!(get("/containerLogs/default/web/db").await, (404, missing.into()));
}

#[tokio::test]
async fn other_answers() {
    let (kubelet, admin) = open().await;
    let get = async |path: &str| kubelet.ask(Some(&admin), "GET", path).await;
    let pods: serde_json::Value = serde_json::from_str(&get("/pods").await.1).unwrap();
    assert_eq!((&pods["kind"], &pods["items"][0]["metadata"]["name"]), (&"PodList".into(), &"web".into()));
    assert_eq!(get("/runningpods/").await, (503, "the runtime is away".into()));
    assert_eq!(get("/configz").await.1, r#"{"kubeletconfig":{"maxPods":110}}"#);
    let ran = kubelet.ask(Some(&admin), "POST", "/run/default/web/app?cmd=ls+-l").await;
    assert_eq!(ran, (200, r#"ran ["ls", "-l"]"#.into()));
    let summary: serde_json::Value = serde_json::from_str(&get("/stats/summary").await.1).unwrap();
    assert_eq!(summary["node"]["nodeName"], "node-1");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0);
    assert!(summary["node"]["fs"]["capacityBytes"].is_u64() && summary["node"]["systemContainers"].is_array());
    let brief: serde_json::Value = serde_json::from_str(&get("/stats/summary?only_cpu_and_memory=1").await.1).unwrap();
    assert!(brief["node"]["cpu"].is_object() && brief["node"]["fs"].is_null());
    let metrics = get("/metrics").await.1;
    assert!(metrics.contains("kubelet_http_requests_total{") && metrics.contains(r#"path="configz""#), "{metrics}");
    let cadvisor = get("/metrics/cadvisor").await.1;
    assert!(cadvisor.contains(r#"container_cpu_usage_seconds_total{container="",cpu="total",id="/""#), "{cadvisor}");
    assert!(get("/logs/").await.1.contains("<a href=\"0.log\">0.log</a>"));

    assert_eq!(get("/healthz").await, (200, "ok".into()));
    *kubelet.host.health.lock().unwrap() = Err("no iteration in 2m".into());
    let (status, text) = get("/healthz").await;
    assert!(status == 500 && text.contains("[-]syncloop failed"), "{text}");
}

#[tokio::test]
async fn upgraded_connections_reach_the_runtime() {
    let (kubelet, admin) = open().await;
    let cases = [
        ("POST", "/exec/default/web/app?command=sh&command=-c&input=1&output=1&tty=1", "SPDY/3.1", ""),
        ("GET", "/exec/default/web/u-1/app?command=sh&output=1", "websocket", "v6.channel.k8s.io, v4.channel.k8s.io"),
        ("POST", "/attach/default/web/app?output=1", "SPDY/3.1", ""),
        ("POST", "/portForward/default/web", "SPDY/3.1", ""),
        ("GET", "/portForward/default/web?port=80", "websocket", "v4.channel.k8s.io"),
    ];
    for (method, path, protocol, subprotocols) in cases {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .header("authorization", "Bearer secret")
            .header("connection", "Upgrade")
            .header("upgrade", protocol);
        if !subprotocols.is_empty() {
            request = request.header("sec-websocket-protocol", subprotocols);
        }
        let mut response = kubelet.send(Some(&admin), request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 101, "{path}");
        assert_eq!(response.headers()["upgrade"], protocol);
        let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        io.write_all(b"hello").await.unwrap();
        let mut seen = String::new();
        while !seen.ends_with("HELLO") {
            seen.push(char::from(io.read_u8().await.unwrap()));
        }
        assert!(seen.starts_with(&format!("{method} /session/token?a=b HTTP/1.1/")), "{seen}");
        assert!(!seen.contains("secret"), "the client's credentials are not the runtime's: {seen}");
        assert!(!seen.contains("v6.channel"), "{seen}");
    }
    let asked = kubelet.host.asked.lock().unwrap().clone();
    let want = [
        r#"exec default/web/app ["sh", "-c"] in out tty"#,
        r#"exec default/web/app ["sh"] out"#,
        "attach default/web/app",
        "forward u-1 []",
        "forward u-1 [80]",
    ];
    assert_eq!(asked, want);
}

#[tokio::test]
async fn what_cannot_be_upgraded_does_not_reach_the_runtime() {
    let (kubelet, admin) = open().await;
    let refused = [
        ("/exec/default/web/app?output=1", "websocket", "v6.channel.k8s.io", 400),
        ("/exec/default/web/app", "SPDY/3.1", "", 400),
        ("/exec/default/web/u-2/app?output=1", "SPDY/3.1", "", 404),
        ("/exec/default/web/db?output=1", "SPDY/3.1", "", 404),
        ("/portForward/default/web", "websocket", "v4.channel.k8s.io", 400),
        ("/portForward/default/db", "SPDY/3.1", "", 404),
    ];
    for (path, protocol, subprotocol, status) in refused {
        let request = Request::builder()
            .uri(path)
            .header("connection", "Upgrade")
            .header("upgrade", protocol)
            .header("sec-websocket-protocol", subprotocol);
        let response = kubelet.send(Some(&admin), request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
    }
    assert!(kubelet.host.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn debugging_handlers_can_be_switched_off() {
    let (kubelet, _) = open().await;
    let config = ServerConfig { debugging_handlers: false, ..ServerConfig::new("node-1", "/") };
    let auth = AuthConfig { anonymous: true, mode: AuthorizationMode::AlwaysAllow, ..AuthConfig::default() };
    let server =
        KubeletServer::new(config, kubelet.host.clone(), Auth::new(auth, None), Metrics::new(), Metrics::default());
    for (path, status) in [("/containerLogs/default/web/app", 405), ("/logs/", 405), ("/pods", 200), ("/healthz", 200)]
    {
        let request = Request::builder().uri(path).body(empty()).unwrap();
        assert_eq!(server.answer(request).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn what_is_missing_or_switched_off_says_so() {
    let (kubelet, admin) = open().await;
    let ask = async |method: &str, path: &str| kubelet.ask(Some(&admin), method, path).await;
    let checkpoint = "/checkpoint/default/web/app";
    let written = r#"{"items":["/checkpoints/default/web/app Some(7s)"]}"#;
    assert_eq!(ask("POST", &format!("{checkpoint}?timeout=x&timeout=7")).await, (200, written.into()));
    let (status, text) = ask("POST", &format!("{checkpoint}?timeout=0")).await;
    let failed = "checkpointing of default/web/app failed (CheckpointContainer: unimplemented)";
    assert_eq!((status, text.as_str()), (500, failed));
    assert_eq!(ask("POST", &format!("{checkpoint}?timeout=x")).await.0, 404);
    assert_eq!(ask("POST", "/checkpoint/default/db/app").await, (404, "pod does not exist".into()));
    assert_eq!(ask("POST", "/checkpoint/default/web/db").await, (404, "container db does not exist".into()));
    let (status, text) = ask("GET", "/debug/pprof/heap").await;
    assert!(status == 501 && text.contains("/debug/pprof"), "{text}");
    assert!(ask("GET", "/statusz").await.1.contains("kubelet statusz"));
    // Without enableSystemLogQuery a query means nothing.
    assert!(ask("GET", "/logs/?query=kubelet").await.1.contains("0.log"));

    let config = ServerConfig {
        profiling_handler: false,
        checkpoints: false,
        system_log_query: true,
        flags: vec![("max-pods".into(), "7".into())],
        ..ServerConfig::new("node-1", "/")
    };
    let auth = AuthConfig { anonymous: true, mode: AuthorizationMode::AlwaysAllow, ..AuthConfig::default() };
    let server =
        KubeletServer::new(config, kubelet.host.clone(), Auth::new(auth, None), Metrics::new(), Metrics::default());
    for (method, path, status, part) in [
        ("GET", "/debug/pprof/", 405, "profiling endpoint is disabled."),
        ("POST", checkpoint, 404, "404 page not found"),
        ("GET", "/flagz", 200, "\nmax-pods=7\n"),
        ("GET", "/logs/?query=0&tailLines=1", 200, "2026-01-01T00:00:01Z stderr F two\n"),
        ("GET", "/logs/0.log?query=0", 406, "path not allowed in query mode"),
    ] {
        let request = Request::builder().method(method).uri(path).body(empty()).unwrap();
        let answer = server.answer(request).await;
        assert_eq!(answer.status(), status, "{path}");
        let text = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains(part), "{path}: {text:?}");
    }
}

#[tokio::test]
async fn health_checks_are_counted_when_asked() {
    let (kubelet, admin) = open().await;
    let get = async |path: &str| kubelet.ask(Some(&admin), "GET", path).await.1;
    *kubelet.host.health.lock().unwrap() = Err("stalled".into());
    get("/healthz").await;
    let page = get("/metrics/slis").await;
    for line in [
        r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#,
        r#"kubernetes_healthcheck{name="syncloop",type="healthz"} 0"#,
        r#"kubernetes_healthchecks_total{name="syncloop",status="error",type="healthz"} 1"#,
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
}

#[tokio::test]
async fn the_read_only_port_shows_without_letting_do() {
    let (kubelet, _) = open().await;
    let config = ServerConfig::new("node-1", "/");
    let auth = Auth::new(AuthConfig::default(), None);
    let server = KubeletServer::new(config, kubelet.host.clone(), auth, Metrics::new(), Metrics::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let serving = tokio::spawn(server.serve_read_only(listener, stop.clone()));
    for (path, want) in [
        ("/pods", "200 OK"),
        ("/healthz", "200 OK"),
        ("/stats/summary", "200 OK"),
        ("/metrics/cadvisor", "200 OK"),
        ("/metrics", "200 OK"),
        ("/containerLogs/default/web/app", "404 Not Found"),
        ("/logs/", "404 Not Found"),
        ("/run/default/web/app?cmd=ls", "405 Method Not Allowed"),
        ("/configz", "404 Not Found"),
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{path}: {answer}");
    }
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn the_health_port_tells_health_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let serving = tokio::spawn(serve_health(listener, bosun_kit::health::Checks::new(), stop.clone()));
    for (path, want) in [("/healthz", "200 OK"), ("/pods", "404 Not Found")] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{answer}");
    }
    stop.cancel();
    serving.await.unwrap();
}
