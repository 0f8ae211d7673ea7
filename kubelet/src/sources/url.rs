//! Static pods from a URL (`staticPodURL`): one pod or a list of them, in YAML or JSON, fetched every
//! `httpCheckFrequency`.
//!
//! What cannot be fetched or understood changes nothing: the pods of the last good answer stay. Only an answer without
//! a body ends them, as in stock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, LOCATION};
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::take_up;
use crate::pod::spec;

/// How long one fetch may take, as in stock.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer taken, in bytes.
const LONGEST: usize = 10 * 1024 * 1024;
/// How many redirects are followed, as in stock.
const REDIRECTS: usize = 10;
/// How many failures in a row are told of.
const TOLD: u32 = 3;

/// Where static pods are fetched.
#[derive(Clone, Debug)]
pub struct Source {
    /// The URL, `http` or `https`.
    pub url: String,
    /// Headers of each request (`staticPodURLHeader`).
    pub headers: BTreeMap<String, Vec<String>>,
    /// The node's name.
    pub node: String,
    /// The time between two fetches.
    pub period: Duration,
}

/// What an answer says.
#[derive(Debug)]
enum Said {
    /// These pods, by UID.
    Pods(BTreeMap<String, Arc<Pod>>),
    /// The same as before.
    Same,
    /// No pods, since there was no body; a fault to be told.
    Nothing,
}

/// Pods by UID, and how they came.
struct Reader {
    source: Source,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    last: Option<Bytes>,
}

impl Source {
    /// Sends all pods of the URL now and whenever they changed, until cancelled.
    pub async fn watch(self, pods: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>, cancel: CancellationToken) {
        let mut turns = tokio::time::interval(self.period.max(Duration::from_millis(10)));
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reader = match Reader::new(self) {
            Ok(reader) => reader,
            Err(error) => return tracing::error!(error, "no static pods are read from staticPodURL"),
        };
        let mut failures: u32 = 0;
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                () = cancel.cancelled() => return,
            }
            let said = tokio::select! {
                said = reader.read() => said,
                () = cancel.cancelled() => return,
            };
            let url = &reader.source.url;
            let failure = match said {
                Ok(Said::Same) => None,
                Ok(Said::Pods(found)) => {
                    if pods.send(found).is_err() {
                        return;
                    }
                    None
                }
                Ok(Said::Nothing) => {
                    if pods.send(BTreeMap::new()).is_err() {
                        return;
                    }
                    Some(format!("zero-length data received from {url}"))
                }
                Err(error) => Some(error),
            };
            match failure {
                None if failures > 0 => {
                    failures = 0;
                    tracing::info!(url, "static pods are read from the URL again");
                }
                None => {}
                Some(error) => {
                    failures = failures.saturating_add(1);
                    if failures <= TOLD {
                        let more = if failures == TOLD { "; further failures are told at -v 4" } else { "" };
                        tracing::warn!(url, error, "static pods were not read from the URL{more}");
                    } else {
                        tracing::debug!(url, error, "static pods were not read from the URL");
                    }
                }
            }
        }
    }
}

impl Reader {
    fn new(source: Source) -> Result<Self, String> {
        // Authorities are read only if they are needed: a machine may have none.
        let connector = if source.url.starts_with("https:") {
            let builder = HttpsConnectorBuilder::new().with_native_roots();
            let builder = builder.map_err(|error| format!("{}: no certificate authorities: {error}", source.url))?;
            builder.https_or_http().enable_http1().build()
        } else {
            let trust = bosun_kit::tls::client_config(rustls::RootCertStore::empty(), None);
            let trust = trust.map_err(|error| error.to_string())?;
            HttpsConnectorBuilder::new().with_tls_config(trust).https_or_http().enable_http1().build()
        };
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), source, last: None })
    }

    async fn read(&mut self) -> Result<Said, String> {
        let url = &self.source.url;
        let body = match tokio::time::timeout(DEADLINE, self.fetch()).await {
            Ok(body) => body?,
            Err(_) => return Err(format!("Get {url:?}: no answer within {} s", DEADLINE.as_secs())),
        };
        if body.is_empty() {
            self.last = None;
            return Ok(Said::Nothing);
        }
        if self.last.as_ref() == Some(&body) {
            return Ok(Said::Same);
        }
        // What is wrong stays wrong until it changes, but is told each time.
        let text = std::str::from_utf8(&body).map_err(|error| format!("{url}: {error}"))?;
        let pods = pods_of(text, url, &self.source.node)?;
        self.last = Some(body);
        Ok(Said::Pods(pods))
    }

    async fn fetch(&self) -> Result<Bytes, String> {
        let failed = |error: &dyn std::fmt::Display| format!("Get {:?}: {error}", self.source.url);
        let first: Uri = self.source.url.parse().map_err(|error| failed(&error))?;
        let mut at = first.clone();
        for _ in 0..=REDIRECTS {
            let request = self.request(&at, at.authority() == first.authority()).map_err(|error| failed(&error))?;
            let answer = self.client.request(request).await;
            let answer = answer.map_err(|error| failed(&chain(&error)))?;
            let status = answer.status();
            if status == StatusCode::OK {
                let body = Limited::new(answer.into_body(), LONGEST).collect().await;
                return Ok(body.map_err(|error| failed(&error))?.to_bytes());
            }
            let to = answer.headers().get(LOCATION).filter(|_| status.is_redirection());
            let Some(to) = to.and_then(|to| to.to_str().ok()) else {
                return Err(format!("{}: {status}", self.source.url));
            };
            at = resolve(&at, to).map_err(|error| failed(&error))?;
        }
        Err(failed(&format!("stopped after {REDIRECTS} redirects")))
    }

    /// What is configured is told to the server that is configured, and to no other that it points to.
    fn request(&self, at: &Uri, with_headers: bool) -> Result<Request<Empty<Bytes>>, String> {
        let mut request = Request::get(at).body(Empty::new()).map_err(|error| error.to_string())?;
        for (name, values) in self.source.headers.iter().filter(|_| with_headers) {
            let known = HeaderName::from_bytes(name.as_bytes()).map_err(|error| format!("header {name:?}: {error}"))?;
            // Several values of the host make no request; Go takes its own too.
            for value in values.iter().filter(|_| known != HOST) {
                let value = HeaderValue::from_str(value).map_err(|error| format!("header {name}: {error}"))?;
                request.headers_mut().append(&known, value);
            }
        }
        Ok(request)
    }
}

/// The whole story of an error of the client, whose own text is only its first chapter.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Where a redirect leads: a whole URL, or a path of the same server.
fn resolve(at: &Uri, to: &str) -> Result<Uri, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("redirect to {to:?}: {error}");
    let uri: Uri = to.parse().map_err(|error| wrong(&error))?;
    if uri.scheme().is_some() {
        return Ok(uri);
    }
    let (Some(scheme), Some(authority)) = (at.scheme_str(), at.authority()) else { return Err(wrong(&"no server")) };
    if !to.starts_with('/') {
        return Err(wrong(&"neither a URL nor a path"));
    }
    format!("{scheme}://{authority}{to}").parse().map_err(|error| wrong(&error))
}

/// The pods of an answer: one, or a `PodList` (or `List`) of them, by UID.
fn pods_of(text: &str, url: &str, node: &str) -> Result<BTreeMap<String, Arc<Pod>>, String> {
    let document: Value = bosun_kit::config::from_yaml(text, url).map_err(|error| error.to_string())?;
    let items = match (document.get("kind").and_then(Value::as_str), document.get("items")) {
        (Some("Pod") | None, None) => vec![document],
        (Some("PodList" | "List"), items) => items.and_then(Value::as_array).cloned().unwrap_or_default(),
        (kind, _) => return Err(format!("{url}: {} is neither a Pod nor a PodList", kind.unwrap_or("an object"))),
    };
    let mut pods = BTreeMap::new();
    for (index, item) in items.into_iter().enumerate() {
        let text = item.to_string();
        let origin = format!("{url}: pod {index}");
        let pod: Pod = bosun_kit::config::from_yaml(&text, &origin).map_err(|error| error.to_string())?;
        let pod = take_up(pod, &text, &format!("url:{url}"), "http", node).map_err(|e| format!("{origin}: {e}"))?;
        pods.insert(spec::uid(&pod).to_owned(), Arc::new(pod));
    }
    Ok(pods)
}

#[cfg(test)]
mod tests;
