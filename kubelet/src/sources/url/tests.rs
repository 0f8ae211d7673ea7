//! Against a real HTTP server, whose answers the test sets.

use std::convert::Infallible;
use std::sync::Mutex;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::*;
use crate::pod::labels;

const PATIENCE: Duration = Duration::from_secs(20);
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: b}]}";

type Seen = Vec<(String, Vec<(String, String)>)>;

/// A server that gives one answer to everything but `/old`, which it redirects.
#[derive(Clone, Default)]
struct Server {
    answer: Arc<Mutex<(u16, String)>>,
    seen: Arc<Mutex<Seen>>,
}

impl Server {
    async fn start() -> (Self, String) {
        let server = Self::default();
        server.answer(200, POD);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let of_loop = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = of_loop.clone();
                let service = service_fn(move |request| {
                    let answer = server.take(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (server, address)
    }

    fn answer(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn take(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        self.seen.lock().unwrap().push((request.uri().path().to_owned(), headers));
        if request.uri().path() == "/old" {
            return Response::builder().status(302).header("location", "/new").body(Full::default()).unwrap();
        }
        let (status, body) = self.answer.lock().unwrap().clone();
        Response::builder().status(status).body(Full::from(body)).unwrap()
    }

    /// Waits until it has been asked `count` times more.
    async fn asked(&self, count: usize) {
        let before = self.seen.lock().unwrap().len();
        let enough = async {
            while self.seen.lock().unwrap().len() < before + count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, enough).await.unwrap();
    }
}

fn source(url: &str) -> Source {
    bosun_kit::tls::install_crypto();
    let headers = [("Authorization".to_owned(), vec!["Bearer t".to_owned()])];
    Source { url: url.to_owned(), headers: headers.into(), node: "Node1".into(), period: Duration::from_millis(20) }
}

fn names(pods: &BTreeMap<String, Arc<Pod>>) -> Vec<&str> {
    let mut names: Vec<&str> = pods.values().map(|pod| spec::name(pod)).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn pods_follow_what_the_url_says_and_survive_its_failures() {
    let (server, address) = Server::start().await;
    let (pods_to, mut pods) = mpsc::unbounded_channel();
    let cancel = CancellationToken::new();
    let watching = tokio::spawn(source(&format!("{address}/pods")).watch(pods_to, cancel.clone()));
    let first = timeout(PATIENCE, pods.recv()).await.unwrap().unwrap();
    assert_eq!(names(&first), ["web-node1"]);
    let pod = first.values().next().unwrap();
    assert_eq!(spec::annotation(pod, labels::CONFIG_SOURCE), Some("http"));
    assert_eq!(spec::spec(pod).node_name.as_deref(), Some("Node1"));
    let (path, headers) = server.seen.lock().unwrap()[0].clone();
    assert_eq!(path, "/pods");
    assert!(headers.contains(&("authorization".into(), "Bearer t".into())), "{headers:?}");

    // The same again, an error, nonsense and half a list change nothing.
    for (status, body) in [(200, POD), (503, ""), (200, "kind: Secret"), (200, "kind: PodList\nitems: [{}]")] {
        server.answer(status, body);
        server.asked(3).await;
        assert!(pods.try_recv().is_err(), "{status} {body}");
    }

    // A list, in JSON; the pod that was there keeps its UID only if it says the same.
    let item = |name: &str| serde_json::json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
    server.answer(
        200,
        &serde_json::json!({"apiVersion": "v1", "kind": "PodList", "items": [item("one"), item("two")]}).to_string(),
    );
    let both = timeout(PATIENCE, pods.recv()).await.unwrap().unwrap();
    assert_eq!(names(&both), ["one-node1", "two-node1"]);

    // No body at all ends them.
    server.answer(200, "");
    assert!(timeout(PATIENCE, pods.recv()).await.unwrap().unwrap().is_empty());
    cancel.cancel();
    timeout(PATIENCE, watching).await.unwrap().unwrap();
}

#[tokio::test]
async fn redirects_are_followed() {
    let (server, address) = Server::start().await;
    let mut reader = Reader::new(source(&format!("{address}/old"))).unwrap();
    let Said::Pods(pods) = reader.read().await.unwrap() else { panic!("no pods") };
    assert_eq!(names(&pods), ["web-node1"]);
    let paths: Vec<String> = server.seen.lock().unwrap().iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(paths, ["/old", "/new"]);
    assert!(matches!(reader.read().await, Ok(Said::Same)));
}

#[tokio::test]
async fn an_answer_without_end_and_a_server_that_is_not_there() {
    let (server, address) = Server::start().await;
    server.answer(200, &"#".repeat(LONGEST + 1));
    let error = Reader::new(source(&address)).unwrap().read().await.unwrap_err();
    assert!(error.contains("limit"), "{error}");
    let error = Reader::new(source("http://127.0.0.1:1/")).unwrap().read().await.unwrap_err();
    assert!(error.starts_with("Get \"http://127.0.0.1:1/\": ") && error.contains("refused"), "{error}");
    server.answer(404, "");
    let error = Reader::new(source(&address)).unwrap().read().await.unwrap_err();
    assert!(error.ends_with("404 Not Found"), "{error}");
}

#[test]
fn a_uid_follows_from_content_and_url() {
    let uid = |text: &str, url: &str| pods_of(text, url, "n").unwrap().into_keys().next().unwrap();
    assert_eq!(uid(POD, "u"), uid(POD, "u"));
    assert_ne!(uid(POD, "u"), uid(POD, "v"));
    assert_ne!(uid(POD, "u"), uid(&POD.replace("image: b", "image: c"), "u"));
    let error = pods_of("kind: Deployment", "u", "n").unwrap_err();
    assert_eq!(error, "u: Deployment is neither a Pod nor a PodList");
    let error = pods_of("metadata: {nam: a}", "u", "n").unwrap_err();
    assert!(error.contains("nam"), "{error}");
}

#[test]
fn redirects_lead_to_urls_and_paths() {
    let at: Uri = "http://a:1/x/y".parse().unwrap();
    assert_eq!(resolve(&at, "/z?q").unwrap().to_string(), "http://a:1/z?q");
    assert_eq!(resolve(&at, "https://b/").unwrap().to_string(), "https://b/");
    assert!(resolve(&at, "z").is_err());
}
