//! Spans reach a collector: a real gRPC server that speaks the OTLP trace service.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bosun_kubelet_trace::{Settings, Spec, inject, note, start, traced, traced_result};
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    attributes.iter().filter_map(|attribute| Some((attribute.key.clone(), text(attribute)?))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// One test, since who sends spans is the process's: off, then none of a million, then all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_the_collector() {
    let work = traced(|| panic!("no span is described while tracing is off"), async { 7 });
    assert_eq!(work.await, 7);
    let mut metadata = MetadataMap::new();
    inject(&mut metadata);
    assert!(metadata.is_empty());

    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("otlp.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let collector = Collector::default();
    let server = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let settings = Settings {
        endpoint: format!("unix://{}", socket.display()),
        per_million: 0,
        service: "kubelet",
        host: "node-1".into(),
    };
    let tracing = start(&settings).unwrap();

    // A trace that begins here is not among the sampled.
    traced(|| Spec::work("syncPod"), async {}).await;

    // One that the caller samples is: request, a task of it, a call to the runtime that fails.
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    let call = async {
        tokio::task::yield_now().await;
        let mut metadata = MetadataMap::new();
        inject(&mut metadata);
        note("rpc.grpc.status_code", 5_i64);
        Err::<(), String>(metadata.get("traceparent").unwrap().to_str().unwrap().to_owned())
    };
    let request = traced(
        || Spec::request("HTTP GET", &headers).with("k8s.pod", "default/web"),
        traced_result(|| Spec::call("runtime.v1.RuntimeService", "Exec"), call),
    );
    let told = request.await.unwrap_err();
    tokio::time::timeout(Duration::from_secs(20), tracing.stop()).await.unwrap();

    let exports = collector.0.lock().unwrap().clone();
    let resource = exports[0].resource_spans[0].resource.clone().unwrap();
    let resource = texts(&resource.attributes);
    assert_eq!((resource["service.name"].as_str(), resource["host.name"].as_str()), ("kubelet", "node-1"));
    let spans: Vec<Span> = exports
        .into_iter()
        .flat_map(|export| export.resource_spans)
        .flat_map(|spans| spans.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(spans.len(), 2, "{spans:?}");
    let (server, client) = (named("HTTP GET"), named("runtime.v1.RuntimeService/Exec"));
    assert_eq!((hex(&server.trace_id).as_str(), hex(&server.parent_span_id).as_str()), (TRACE, CALLER));
    assert_eq!(texts(&server.attributes)["k8s.pod"], "default/web");
    assert_eq!((hex(&client.trace_id).as_str(), &client.parent_span_id), (TRACE, &server.span_id));
    assert_eq!(told, format!("00-{TRACE}-{}-01", hex(&client.span_id)), "the runtime is told its parent");
    assert_eq!(client.status.as_ref().unwrap().message, told);
    let attributes = texts(&client.attributes);
    assert_eq!((attributes["rpc.method"].as_str(), attributes["rpc.grpc.status_code"].as_str()), ("Exec", "5"));
}
