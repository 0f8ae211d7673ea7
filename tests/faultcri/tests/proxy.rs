//! Calls through the proxy to a runtime in memory: what arrives there, and what comes back.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bosun_faultcri::{Fault, Proxy, Rule};
use bosun_proto::cri;
use bosun_proto::cri::runtime_service_client::RuntimeServiceClient;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

/// A runtime that answers each call with the id `made`, and knows what it was asked.
fn runtime(socket: &Path) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let (listener, asked_to) = (UnixListener::bind(socket).unwrap(), asked.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = asked_to.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let asked = asked.clone();
                async move {
                    asked.lock().unwrap().push(request.uri().path().rsplit('/').next().unwrap().to_owned());
                    drop(request.into_body().collect().await);
                    let answer = cri::RunPodSandboxResponse { pod_sandbox_id: "made".into() }.encode_to_vec();
                    let frame = [&[0][..], &(answer.len() as u32).to_be_bytes(), &answer].concat();
                    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(0))]);
                    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
                    let answer = Response::builder().header("content-type", "application/grpc").body(body).unwrap();
                    Ok::<_, Infallible>(answer)
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    asked
}

fn client(socket: &Path) -> RuntimeServiceClient<Channel> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    RuntimeServiceClient::new(Endpoint::from_static("http://x").connect_with_connector_lazy(connect))
}

fn sandbox(pod: &str) -> cri::RunPodSandboxRequest {
    let metadata = cri::PodSandboxMetadata { name: pod.into(), ..Default::default() };
    let config = cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
    cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }
}

fn rule(method: &str, pod: Option<&str>, fault: Fault) -> Rule {
    Rule { method: method.into(), subject: pod.map(str::to_owned), fault, times: 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_does_what_it_says_to_the_pod_it_is_meant_for() {
    let folder = tempfile::tempdir().unwrap();
    let (real, socket) = (folder.path().join("real"), folder.path().join("proxy"));
    let asked = runtime(&real);
    let take = || std::mem::take(&mut *asked.lock().unwrap());
    let proxy = Proxy::start(&socket, &real).unwrap();
    let mut client = client(&socket);

    // Without a rule a call goes through, and the proxy knows from then on whose the sandbox is.
    assert_eq!(client.run_pod_sandbox(sandbox("one")).await.unwrap().into_inner().pod_sandbox_id, "made");
    assert_eq!(take(), ["RunPodSandbox"]);

    proxy.inject(rule("StopPodSandbox", Some("other"), Fault::Error));
    proxy.inject(rule("StopPodSandbox", Some("one"), Fault::Error));
    let stop = || cri::StopPodSandboxRequest { pod_sandbox_id: "made".into() };
    let error = client.stop_pod_sandbox(stop()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unknown, "injected failure of StopPodSandbox"));
    assert_eq!(take(), Vec::<String>::new(), "it never got there");
    client.stop_pod_sandbox(stop()).await.unwrap();
    assert_eq!(take(), ["StopPodSandbox"], "once only");
    assert_eq!(proxy.seen("StopPodSandbox", Some("one")), (2, 1));

    proxy.inject(rule("RunPodSandbox", None, Fault::Cut));
    let error = client.run_pod_sandbox(sandbox("two")).await.unwrap_err();
    assert_ne!(error.code(), Code::Ok);
    assert_eq!(take(), ["RunPodSandbox"], "it was done, and nobody told");
    // The connection goes on.
    client.run_pod_sandbox(sandbox("two")).await.unwrap();

    proxy.inject(rule("RunPodSandbox", Some("three"), Fault::Delay(Duration::from_millis(300))));
    let began = Instant::now();
    client.run_pod_sandbox(sandbox("four")).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(250), "another's call is not delayed");
    client.run_pod_sandbox(sandbox("three")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
}
