//! The proxy itself: a connection to the runtime for each that is made to it, and every call passed on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::rules::{Fault, Rule, Rules};
use crate::subject::Subjects;

type Body = BoxBody<Bytes, io::Error>;

/// The call that is answered by more than one message, for as long as the connection lasts.
const STREAM: &str = "GetContainerEvents";

/// A proxy before a container runtime, on a thread of its own; it ends with this value.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: PathBuf,
    rules: Rules,
    subjects: Subjects,
}

impl Proxy {
    /// Listens at `socket` for calls to the runtime at `upstream`. That need not be there yet; a connection made while
    /// it is away ends at once.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(socket: &Path, upstream: &Path) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let shared =
            Arc::new(Shared { upstream: upstream.to_owned(), rules: Rules::default(), subjects: Subjects::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve(listener, shared.clone());
        let thread = thread::Builder::new().name("faultcri".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! { () = serving => {}, _ = stopped => {} }
            });
            // Calls under way need not be waited for.
            runtime.shutdown_timeout(Duration::from_millis(100));
        })?;
        Ok(Self { shared, socket: socket.to_owned(), stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// From now on calls fail as the rule says. The first rule that applies to a call counts.
    pub fn inject(&self, rule: Rule) {
        self.shared.rules.add(rule);
    }

    /// No call fails any more.
    pub fn clear(&self) {
        self.shared.rules.clear();
    }

    /// How often a method was called, and how many of these calls failed here; only those about a pod (of image calls,
    /// an image) if one is named.
    pub fn seen(&self, method: &str, subject: Option<&str>) -> (usize, usize) {
        self.shared.rules.seen(method, subject)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        // A descriptor may be missing for a moment; the next caller is served.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(connection(stream, shared.clone()));
    }
}

/// One connection of a client, until either side ends it.
async fn connection(stream: UnixStream, shared: Arc<Shared>) -> Option<()> {
    let upstream = UnixStream::connect(&shared.upstream).await.ok()?;
    let (sender, upstream) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(upstream)).await.ok()?;
    let service = hyper::service::service_fn(move |request| call(shared.clone(), sender.clone(), request));
    let client =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    // Whoever ends first, the other side's connection ends with it: a runtime that dies takes its callers' along.
    tokio::select! { _ = client => {}, _ = upstream => {} }
    Some(())
}

/// One call. An error resets its stream.
async fn call(
    shared: Arc<Shared>,
    mut sender: SendRequest<Full<Bytes>>,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let method = head.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let subject = shared.subjects.of(&method, &body);
    let fault = shared.rules.judge(&method, subject.as_deref());
    match fault {
        Some(Fault::Error) => return Ok(refused(&method)),
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Cut) | None => {}
    }
    let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await.map_err(io::Error::other)?;
    let (head, body) = answer.into_parts();
    if fault == Some(Fault::Cut) {
        let mut lost = BodyStream::new(body);
        while let Some(frame) = lost.next().await {
            let frame = frame.map_err(io::Error::other)?;
            if let Some(data) = frame.data_ref() {
                shared.subjects.learn(&method, subject.as_deref(), data);
                if method == STREAM {
                    break;
                }
            }
        }
        // The head has gone through: only the answer is lost.
        let cut = futures::stream::once(async { Err(io::Error::other("cut")) });
        return Ok(Response::from_parts(head, BodyExt::boxed(StreamBody::new(cut))));
    }
    if method == STREAM {
        return Ok(Response::from_parts(head, body.map_err(io::Error::other).boxed()));
    }
    let whole = body.collect().await.map_err(io::Error::other)?;
    let trailers = whole.trailers().cloned();
    let bytes = whole.to_bytes();
    shared.subjects.learn(&method, subject.as_deref(), &bytes);
    let body = Full::new(bytes).with_trailers(async move { trailers.map(Ok) });
    Ok(Response::from_parts(head, body.map_err(|never| match never {}).boxed()))
}

/// An answer that is an error of the runtime.
fn refused(method: &str) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("2"));
    let message = HeaderValue::from_str(&format!("injected failure of {method}"));
    headers.insert("grpc-message", message.unwrap_or(HeaderValue::from_static("injected failure")));
    response
}
