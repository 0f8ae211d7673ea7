//! Who asks, and whether they may: x509 and TokenReview, then SubjectAccessReview.
//!
//! Reviews are asked of the API server and remembered: tokens 2 minutes, allowed accesses 5 minutes, denied ones 30
//! seconds (the defaults of `KubeletConfiguration`). An answer that could not be had is never remembered.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::request::Parts;
use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use crate::route;

/// How long the API server has for one review.
const REVIEW_DEADLINE: Duration = Duration::from_secs(10);
/// A cache that grows beyond this is emptied of what has expired, then of everything.
const CACHE_LIMIT: usize = 4096;

/// A user, as authentication found it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name: the certificate's CN, or what TokenReview says.
    pub name: String,
    /// Groups: the certificate's O values, or what TokenReview says.
    pub groups: Vec<String>,
    /// UID, of token users.
    pub uid: Option<String>,
    /// Extra fields, of token users.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user of requests without credentials, when those are let in.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }
}

/// One access to check: a verb on a subresource of this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// Who.
    pub user: User,
    /// API verb (`get`, `create`, …).
    pub verb: &'static str,
    /// Subresource of `nodes`.
    pub subresource: &'static str,
}

/// The API server could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReviewError(pub String);

/// The edge to the API server's reviews.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// The user that a bearer token stands for; `None` when it stands for nobody.
    async fn token(&self, token: &str) -> Result<Option<User>, ReviewError>;

    /// Whether the access to this node is allowed.
    async fn access(&self, access: &Access) -> Result<bool, ReviewError>;
}

/// How requests are authorized (`authorization.mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Ask the API server.
    #[default]
    Webhook,
    /// Whoever is authenticated may do anything.
    AlwaysAllow,
}

/// The `authentication` and `authorization` parts of `KubeletConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Let requests without credentials in, as `system:anonymous`.
    pub anonymous: bool,
    /// Ask the API server about bearer tokens.
    pub webhook: bool,
    /// For how long a token's answer is remembered.
    pub token_ttl: Duration,
    /// How to authorize.
    pub mode: AuthorizationMode,
    /// For how long an allowed access is remembered.
    pub authorized_ttl: Duration,
    /// For how long a denied access is remembered.
    pub unauthorized_ttl: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            anonymous: false,
            webhook: true,
            token_ttl: Duration::from_secs(120),
            mode: AuthorizationMode::Webhook,
            authorized_ttl: Duration::from_secs(300),
            unauthorized_ttl: Duration::from_secs(30),
        }
    }
}

/// Why a request goes no further. The text is the answer's body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401.
    #[error("Unauthorized")]
    Unauthorized,
    /// 403.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{}])\n", .subresources.join(" "))]
    Forbidden {
        /// Who asked.
        user: String,
        /// For which verb.
        verb: &'static str,
        /// What was tried.
        subresources: &'static [&'static str],
    },
    /// 500: the API server gave no answer.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    NoAnswer {
        /// Who asked.
        user: String,
        /// For which verb.
        verb: &'static str,
        /// What could not be checked.
        subresource: &'static str,
    },
}

/// Authenticates and authorizes requests to this node's kubelet.
pub struct Auth {
    config: AuthConfig,
    reviewer: Option<Arc<dyn Reviewer>>,
    tokens: Cache<[u8; 32], Option<User>>,
    accesses: Cache<Access, bool>,
}

impl Auth {
    /// `reviewer` is absent without an API server: tokens are then nobody's, and webhook authorization allows nothing.
    pub fn new(config: AuthConfig, reviewer: Option<Arc<dyn Reviewer>>) -> Self {
        Self { config, reviewer, tokens: Cache::default(), accesses: Cache::default() }
    }

    /// Lets the request pass as a user, or says why not. `certificate` is the user of a verified client certificate.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn check(&self, request: &Parts, certificate: Option<User>) -> Result<User, Refusal> {
        let user = self.authenticate(&request.headers, certificate).await?;
        self.authorize(&user, route::api_verb(&request.method), route::subresources(request.uri.path())).await?;
        Ok(user)
    }

    async fn authenticate(&self, headers: &HeaderMap, certificate: Option<User>) -> Result<User, Refusal> {
        if let Some(user) = certificate {
            return Ok(authenticated(user));
        }
        if let Some(token) = bearer(headers) {
            // Bad credentials are refused even where none are let in.
            return self.token(token).await.map(authenticated).ok_or(Refusal::Unauthorized);
        }
        if self.config.anonymous { Ok(User::anonymous()) } else { Err(Refusal::Unauthorized) }
    }

    async fn token(&self, token: &str) -> Option<User> {
        let reviewer = self.reviewer.as_ref().filter(|_| self.config.webhook)?;
        // The token itself is not kept.
        let key = digest(token);
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        match reviewer.token(token).await {
            Ok(user) => {
                self.tokens.put(key, user.clone(), self.config.token_ttl);
                user
            }
            Err(error) => {
                tracing::warn!(%error, "cannot review a bearer token");
                None
            }
        }
    }

    async fn authorize(
        &self,
        user: &User,
        verb: &'static str,
        subresources: &'static [&'static str],
    ) -> Result<(), Refusal> {
        if self.config.mode == AuthorizationMode::AlwaysAllow {
            return Ok(());
        }
        for subresource in subresources {
            let access = Access { user: user.clone(), verb, subresource };
            match self.allowed(access).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, user = user.name, verb, subresource, "cannot authorize");
                    return Err(Refusal::NoAnswer { user: user.name.clone(), verb, subresource });
                }
            }
        }
        Err(Refusal::Forbidden { user: user.name.clone(), verb, subresources })
    }

    async fn allowed(&self, access: Access) -> Result<bool, ReviewError> {
        if let Some(known) = self.accesses.get(&access) {
            return Ok(known);
        }
        let reviewer = self.reviewer.as_ref().ok_or_else(|| ReviewError("there is no API server to ask".to_owned()))?;
        let allowed = reviewer.access(&access).await?;
        let ttl = if allowed { self.config.authorized_ttl } else { self.config.unauthorized_ttl };
        self.accesses.put(access, allowed, ttl);
        Ok(allowed)
    }
}

fn authenticated(mut user: User) -> User {
    const GROUP: &str = "system:authenticated";
    if !user.groups.iter().any(|g| g == GROUP) {
        user.groups.push(GROUP.to_owned());
    }
    user
}

/// The token of `Authorization: Bearer …`, or of the WebSocket protocol that browsers carry it in.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn digest(token: &str) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(token.as_bytes()).into()
}

struct Cache<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(_, until)| *until > Instant::now()).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if entries.len() >= CACHE_LIMIT {
            entries.retain(|_, (_, until)| *until > now);
        }
        if entries.len() >= CACHE_LIMIT {
            entries.clear();
        }
        entries.insert(key, (value, now + ttl));
    }
}

/// [`Reviewer`] by the API server's TokenReview and SubjectAccessReview.
pub struct ApiReviewer {
    client: kube::Client,
    node: String,
}

impl ApiReviewer {
    /// Reviews through `client`, about the node of this name.
    pub fn new(client: kube::Client, node: impl Into<String>) -> Self {
        Self { client, node: node.into() }
    }

    async fn ask<K>(&self, review: &K) -> Result<K, ReviewError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        match tokio::time::timeout(REVIEW_DEADLINE, api.create(&PostParams::default(), review)).await {
            Ok(answer) => answer.map_err(|e| ReviewError(format!("{} failed: {e}", K::kind(&())))),
            Err(_) => Err(ReviewError(format!("{}: no answer in {REVIEW_DEADLINE:?}", K::kind(&())))),
        }
    }
}

#[async_trait]
impl Reviewer for ApiReviewer {
    async fn token(&self, token: &str) -> Result<Option<User>, ReviewError> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let answer = self.ask(&TokenReview { spec, ..TokenReview::default() }).await?;
        let Some(status) = answer.status.filter(|s| s.authenticated == Some(true)) else { return Ok(None) };
        let user = status.user.unwrap_or_default();
        Ok(Some(User {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            uid: user.uid,
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn access(&self, access: &Access) -> Result<bool, ReviewError> {
        let attributes = ResourceAttributes {
            name: Some(self.node.clone()),
            resource: Some("nodes".to_owned()),
            subresource: Some(access.subresource.to_owned()),
            verb: Some(access.verb.to_owned()),
            version: Some("v1".to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(access.user.name.clone()),
            groups: Some(access.user.groups.clone()),
            uid: access.user.uid.clone(),
            extra: Some(access.user.extra.clone()).filter(|e| !e.is_empty()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let answer = self.ask(&SubjectAccessReview { spec, ..SubjectAccessReview::default() }).await?;
        Ok(answer.status.is_some_and(|s| s.allowed && s.denied != Some(true)))
    }
}
