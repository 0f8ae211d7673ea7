//! Spans of what the kubelet does, sent to a collector by OTLP over gRPC (`tracing` of KubeletConfiguration, KEP-2831).
//!
//! A future runs in a span by [`traced`]; spans begun within are its children, however many tasks are polled on the
//! same thread. The parent of a request comes from its headers, and goes on to the runtime with the
//! metadata of a call ([`inject`]), both as W3C `traceparent`. Until [`start`] is called, all of this does nothing but
//! look at one flag.

mod channel;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use thiserror::Error;
use tonic::metadata::{MetadataKey, MetadataMap};

/// The collector that is meant when none is named.
pub const DEFAULT_ENDPOINT: &str = "localhost:4317";
/// How long the collector may take to receive a batch.
const EXPORT_DEADLINE: Duration = Duration::from_secs(10);
/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(5);
/// How many spans wait for a collector that is slow; what is beyond is dropped.
const WAITING: usize = 2048;
/// How long the last spans may take to be sent when the kubelet ends.
const LAST_DEADLINE: Duration = Duration::from_secs(3);

static ON: AtomicBool = AtomicBool::new(false);

/// Why spans cannot be sent.
#[derive(Debug, Error)]
pub enum Error {
    /// The endpoint names no server.
    #[error("tracing.endpoint {endpoint:?}: {reason}; give host:port or unix:///path/to/socket of an OTLP collector")]
    Endpoint {
        /// The endpoint as configured.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The exporter could not be made.
    #[error("tracing: {0}")]
    Exporter(String),
}

/// What is traced, and where spans go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector: `host:port`, `http://host:port`, or `unix:///path`; connections are not encrypted, as in stock.
    pub endpoint: String,
    /// Of a million traces that begin here, how many are kept; one that began elsewhere is kept if its parent was.
    pub per_million: u32,
    /// The name of the service.
    pub service: &'static str,
    /// The host's name.
    pub host: String,
}

/// Keeps spans being sent; [`Tracing::stop`] sends the last.
#[derive(Debug)]
pub struct Tracing {
    provider: SdkTracerProvider,
}

/// Begins to trace. The collector need not be there yet. Must be called within a tokio runtime.
///
/// # Errors
/// The endpoint is none.
pub fn start(settings: &Settings) -> Result<Tracing, Error> {
    let channel = channel::lazy(&settings.endpoint)?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(channel)
        .with_timeout(EXPORT_DEADLINE)
        .build()
        .map_err(|error| Error::Exporter(error.to_string()))?;
    let batches = BatchConfigBuilder::default().with_max_queue_size(WAITING).with_scheduled_delay(GATHER).build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let share = f64::from(settings.per_million.min(1_000_000)) / 1e6;
    let resource = Resource::builder()
        .with_service_name(settings.service)
        .with_attribute(KeyValue::new("host.name", settings.host.clone()))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
        .with_resource(resource)
        .build();
    global::set_tracer_provider(provider.clone());
    ON.store(true, Ordering::Release);
    Ok(Tracing { provider })
}

impl Tracing {
    /// Sends what has not been sent, as far as that takes no long time.
    pub async fn stop(self) {
        ON.store(false, Ordering::Release);
        let last = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(LAST_DEADLINE));
        match last.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans did not reach the collector"),
            Err(error) => tracing::warn!(%error, "the last spans were not sent"),
        }
    }
}

/// A span that is to begin.
#[derive(Clone, Debug)]
pub struct Spec {
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    parent: Option<Context>,
}

impl Spec {
    /// Of work within this process.
    pub fn work(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), kind: SpanKind::Internal, attributes: Vec::new(), parent: None }
    }

    /// Of a call by gRPC to `method` of `service`, which carries the span along by [`inject`].
    pub fn call(service: &'static str, method: &'static str) -> Self {
        let name = format!("{service}/{method}");
        let with = Self { kind: SpanKind::Client, ..Self::work(name) };
        with.with("rpc.system", "grpc").with("rpc.service", service).with("rpc.method", method)
    }

    /// Of a request that is answered; a child of the caller's span if its headers name one.
    pub fn request(name: impl Into<Cow<'static, str>>, headers: &HeaderMap) -> Self {
        Self { kind: SpanKind::Server, parent: Some(parent(headers)), ..Self::work(name) }
    }

    /// With an attribute.
    pub fn with(mut self, key: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.attributes.push(KeyValue::new(key, value.into()));
        self
    }

    fn begin(self) -> Context {
        let tracer = global::tracer("kubelet");
        let parent = self.parent.unwrap_or_else(Context::current);
        let builder = tracer.span_builder(self.name).with_kind(self.kind).with_attributes(self.attributes);
        let span = tracer.build_with_context(builder, &parent);
        parent.with_span(span)
    }
}

/// Whether spans are made at all; what only serves them can be left out otherwise.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Runs `work` in the span that `spec` describes; `spec` is asked only if spans are made.
pub async fn traced<T>(spec: impl FnOnce() -> Spec, work: impl Future<Output = T>) -> T {
    if !is_on() {
        return work.await;
    }
    let context = spec().begin();
    let done = work.with_context(context.clone()).await;
    context.span().end();
    done
}

/// The same for work that may fail: a failure is the span's.
pub async fn traced_result<T, E: std::fmt::Display>(
    spec: impl FnOnce() -> Spec,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    traced(spec, async {
        let done = work.await;
        if let Err(error) = &done
            && is_on()
        {
            Context::current().span().set_status(Status::error(error.to_string()));
        }
        done
    })
    .await
}

/// Adds an attribute to the span that is current, if there is one.
pub fn note(key: &'static str, value: impl Into<opentelemetry::Value>) {
    if is_on() {
        Context::current().span().set_attribute(KeyValue::new(key, value.into()));
    }
}

/// The span that the headers of a request name as its parent; the current one's if they name none.
fn parent(headers: &HeaderMap) -> Context {
    struct Headers<'a>(&'a HeaderMap);
    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }
        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(http::HeaderName::as_str).collect()
        }
    }
    TraceContextPropagator::new().extract(&Headers(headers))
}

/// Names the current span, if there is one, in the metadata of a call.
pub fn inject(metadata: &mut MetadataMap) {
    struct Metadata<'a>(&'a mut MetadataMap);
    impl Injector for Metadata<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
                self.0.insert(key, value);
            }
        }
    }
    if is_on() {
        TraceContextPropagator::new().inject(&mut Metadata(metadata));
    }
}
