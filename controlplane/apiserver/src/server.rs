//! The server: what it is made of, how it starts, and the way of a request through it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bosun_api::resource;
use bosun_api::selector::parse_field_selector;
use bosun_api::status::ApiError;
use bosun_kit::http::{Body, BoxError};
use bosun_nodeproxy::NodeProxy;
use bosun_store::Store;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use ipnet::IpNet;
use k8s_openapi::api::authentication::v1::UserInfo;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::authn::{InProcess, Shown};
use crate::authorize::{Authorization, Policy, attributes, in_group};
use crate::cache::Caches;
use crate::call::Call;
use crate::codec;
use crate::metrics::Metrics;
use crate::openapi::Documents;
use crate::request::{Query, RequestInfo};
use crate::services::Services;
use crate::strategy::Part;
use crate::tokens::{KeyError, Tokens};

/// What a server needs to know.
#[derive(Clone)]
pub struct Config {
    /// Keys that sign the tokens of service accounts; without them there are none.
    pub service_account_keys: Option<ServiceAccountKeys>,
    /// The issuer of tokens.
    pub issuer: String,
    /// The audiences that a token for this server may have; the first is what a token gets that asks for none.
    pub audiences: Vec<String>,
    /// Where cluster addresses come from: one range, or one for each family, the first being the default.
    pub service_cidrs: Vec<IpNet>,
    /// Where node ports come from.
    pub node_ports: RangeInclusive<u16>,
    /// Where this server can be reached: the endpoint of the `kubernetes` Service, left alone when unknown.
    pub advertise: Option<SocketAddr>,
    /// How kubelets are spoken to; without it logs, exec and their kin are refused.
    pub kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    /// Who may do what.
    pub authorization: Authorization,
    /// Whether callers who show nothing may see health and discovery.
    pub anonymous: bool,
}

/// The keys of service accounts' tokens.
#[derive(Clone)]
pub struct ServiceAccountKeys {
    /// EC P-256 or RSA private key, PEM.
    pub private_pem: String,
    /// Its public key, PEM.
    pub public_pem: String,
}

impl Default for Config {
    fn default() -> Self {
        let issuer = "https://kubernetes.default.svc.cluster.local";
        Self {
            service_account_keys: None,
            issuer: issuer.to_owned(),
            audiences: vec![issuer.to_owned()],
            service_cidrs: vec!["10.96.0.0/12".parse().expect("a literal")],
            node_ports: 30000..=32767,
            advertise: None,
            kubelet_tls: None,
            authorization: Authorization::default(),
            anonymous: true,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] bosun_store::Error),
    /// The keys of service accounts are no keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A first object could not be made.
    #[error("preparing {what}: {error}")]
    Prepare {
        /// The object.
        what: String,
        /// Why not.
        error: ApiError,
    },
}

/// A running API server, without a socket: [`ApiServer::service`] answers requests, wherever they come from. Clones
/// are the same server; it stops when the last one is dropped.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
    _running: Arc<DropGuard>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) caches: Arc<Caches>,
    pub(crate) services: Services,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) metrics: Metrics,
    pub(crate) cancel: CancellationToken,
    pub(crate) policy: Arc<Policy>,
    pub(crate) nodes: NodeProxy,
    pub(crate) documents: Arc<Documents>,
}

/// What the store says when it refuses, as clients read it.
pub(crate) fn stored(error: bosun_store::Error) -> ApiError {
    use bosun_store::Error;
    match error {
        Error::Compacted { requested, oldest } => ApiError::too_old(requested, oldest),
        Error::Future { requested, current } => ApiError::too_large(requested, current),
        Error::Closed | Error::Lagged => ApiError::unavailable(error.to_string()),
        other => ApiError::internal(other),
    }
}

impl ApiServer {
    /// Start on a store: load the caches, make what must always be there, follow the store.
    ///
    /// # Errors
    /// The store cannot be read or written, or a key is bad.
    pub async fn start(config: Config, store: Arc<dyn Store>) -> Result<Self, StartError> {
        let policy = Policy::new(config.authorization);
        let caches = Caches::load(store.as_ref(), policy.clone()).await?;
        policy.load(&caches);
        let tokens = match &config.service_account_keys {
            Some(keys) => Some(Tokens::new(&keys.private_pem, &keys.public_pem, &config.issuer, &config.audiences)?),
            None => None,
        };
        let cancel = CancellationToken::new();
        let inner = Arc::new(Inner {
            nodes: crate::connect::node_proxy(config.kubelet_tls.clone()),
            services: Services::new(config.service_cidrs.clone(), config.node_ports.clone()),
            metrics: Metrics::new(),
            cancel: cancel.clone(),
            config,
            store,
            caches,
            tokens,
            policy,
            documents: Arc::default(),
        });
        inner.clone().spawn();
        crate::bootstrap::prepare(&inner).await?;
        bosun_kit::memory::give_back();
        Ok(Self { inner, _running: Arc::new(cancel.drop_guard()) })
    }

    /// The service that answers requests: with [`bosun_kit::http::Peer`] in their extensions for those from the network.
    #[must_use]
    pub fn service(&self) -> Service {
        Service { inner: self.inner.clone() }
    }

    /// A client of this server within the process, without a socket, as the user given. It does not keep the server
    /// running.
    #[must_use]
    pub fn client_as(&self, user: UserInfo) -> kube::Client {
        let inner = self.inner.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let mut request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
            request.extensions_mut().insert(InProcess(user.clone()));
            let inner = inner.clone();
            async move { Ok::<_, Infallible>(inner.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// The registry that `/metrics` shows; other parts of the process may add to it.
    #[must_use]
    pub fn metrics(&self) -> bosun_kit::metrics::Metrics {
        self.inner.metrics.registry.clone()
    }

    /// Ends every watch and background task; requests are refused from here on.
    pub fn stop(&self) {
        self.inner.cancel.cancel();
    }
}

/// See [`ApiServer::service`].
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Only the process itself may say who it is.
        request.extensions_mut().remove::<InProcess>();
        let inner = self.inner.clone();
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

impl Inner {
    fn spawn(self: Arc<Self>) {
        let run = |task: BoxFuture<'static, ()>, cancel: CancellationToken| {
            tokio::spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = task => {}
                }
            });
        };
        let follow = self.caches.clone().follow(self.store.clone());
        run(Box::pin(follow), self.cancel.clone());
        run(Box::pin(crate::bootstrap::compact_for_ever(self.store.clone())), self.cancel.clone());
        run(Box::pin(crate::bootstrap::keep_service_for_ever(self.clone())), self.cancel.clone());
        run(Box::pin(crate::bootstrap::expire_events_for_ever(self.clone())), self.cancel.clone());
    }

    /// The way of every request.
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let began = Instant::now();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::read(request.method(), request.uri(), &query);
        let labels = self.metrics.begin(&info);
        let response = match self.clone().route(request, info, query).await {
            Ok(response) => response,
            Err(error) => {
                if error.code() >= 500 {
                    tracing::warn!(code = error.code(), error = error.message(), "request failed");
                }
                codec::refuse(&error)
            }
        };
        self.metrics.end(labels, response.status(), began.elapsed());
        response
    }

    async fn route(
        self: Arc<Self>,
        request: Request<Body>,
        info: RequestInfo,
        query: Query,
    ) -> Result<Response<Body>, ApiError> {
        if self.cancel.is_cancelled() {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        let shown = Shown::by(&request);
        let (headers, user) = (request.headers().clone(), self.authenticate(shown).await?);
        let user = self.impersonate(user, &headers)?;
        self.check_access(&user, &info, &query)?;
        match info.is_resource {
            true => self.resource(request, info, query, user).await,
            false => {
                let (parts, _) = request.into_parts();
                self.plain(&parts, &info, &query).await
            }
        }
    }

    /// # Errors
    /// 403, and 401 where nothing is shown to those who have shown nothing.
    fn check_access(&self, user: &UserInfo, info: &RequestInfo, query: &Query) -> Result<(), ApiError> {
        if !self.config.anonymous && in_group(user, "system:unauthenticated") {
            return Err(ApiError::unauthorized());
        }
        let fields = query.get("fieldSelector").and_then(|text| parse_field_selector(text).ok());
        let request = attributes(user, info, fields.as_ref());
        let decision = self.policy.decide(&request);
        match decision.is_allowed() {
            true => Ok(()),
            false => Err(bosun_authz::forbidden(&request, decision.reason())),
        }
    }

    /// Requests to resources.
    async fn resource(
        self: Arc<Self>,
        request: Request<Body>,
        info: RequestInfo,
        query: Query,
        user: UserInfo,
    ) -> Result<Response<Body>, ApiError> {
        let resource = resource::find(&info.group, &info.version, &info.resource).ok_or_else(ApiError::no_such_path)?;
        if !info.subresource.is_empty() {
            let known = resource.subresource(&info.subresource);
            let known = known.ok_or_else(ApiError::no_such_path)?;
            if !known.verbs.contains(&info.verb.as_ref()) {
                return Err(ApiError::method_not_allowed());
            }
        } else if !resource.has_verb(&info.verb) {
            return Err(ApiError::method_not_allowed());
        }
        if matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy") {
            return self.connect(request, resource, info, query, user).await;
        }
        let (parts, body) = request.into_parts();
        let call = Call::new(resource, info, query, parts.headers, user)?;
        if call.info.verb == "watch" {
            return self.watch(call).await;
        }
        let body = codec::read_body(body).await?;
        let mut response = match (call.info.subresource.as_str(), call.info.verb.as_ref()) {
            ("", "get") if resource.is_stored() => self.get(&call).await,
            ("", "list") if resource.is_stored() => self.list(&call).await,
            ("", "create") if resource.is_stored() => self.create(&call, body).await,
            ("", "update") => self.update(&call, Part::Main, body).await,
            ("", "patch") => self.patch(&call, Part::Main, body).await,
            ("", "delete") => self.delete(&call, body).await,
            ("", "deletecollection") => self.delete_collection(&call, body).await,
            ("status", "get") => self.get(&call).await,
            ("status", "update") => self.update(&call, Part::Status, body).await,
            ("status", "patch") => self.patch(&call, Part::Status, body).await,
            _ => self.subresource(&call, body).await,
        }?;
        codec::warn(&mut response, &call.take_warnings());
        Ok(response)
    }
}
