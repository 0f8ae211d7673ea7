//! Who sends a request: client certificates, service-account tokens, bootstrap tokens.
//!
//! What a token is bound to is looked up through [`Lookup`]; nothing here does I/O or keeps state of its own, so a
//! deleted pod's token ends with the pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use bosun_kit::http::Peer;
use bosun_kit::tls;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

mod bootstrap;
mod service_account;

pub use service_account::{BoundObject, IssueError, Issued, MIN_LIFETIME, TokenIssuer, TokenRequest};

/// Every authenticated user is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of those who are not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user who is nobody.
pub const ANONYMOUS: &str = "system:anonymous";

/// A user as authorization and admission see one (`authentication.k8s.io/v1 UserInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// The name.
    pub username: String,
    /// A unique id, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of that name in these groups and, as everyone who is known, in [`AUTHENTICATED`].
    pub fn known(username: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { username: username.into(), groups, ..Self::default() }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { username: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        Self::known(format!("system:serviceaccount:{namespace}:{name}"), groups)
    }
}

/// Why a credential that was presented does not count. The client is told only `Unauthorized`.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AuthnError {
    /// The `Authorization` header is no bearer token.
    #[error("the Authorization header holds no bearer token")]
    Header,
    /// The token is not ours, expired, or what it is bound to is gone.
    #[error("invalid bearer token: {0}")]
    Token(String),
    /// The certificate names nobody.
    #[error("the client certificate has no common name")]
    Certificate,
}

/// Finds an object by resource (plural, of the core group), namespace (empty for cluster-scoped) and name.
pub type Lookup<'a> = &'a (dyn Fn(&str, &str, &str) -> Option<Arc<Value>> + Send + Sync);

/// Tells who sent a request.
pub struct Authenticator {
    tokens: Arc<TokenIssuer>,
    api_audiences: Vec<String>,
}

impl Authenticator {
    /// Service-account tokens are those of `tokens`, meant for one of `api_audiences`.
    pub fn new(tokens: Arc<TokenIssuer>, api_audiences: Vec<String>) -> Self {
        Self { tokens, api_audiences }
    }

    /// The user, or none when no credential was presented. A client certificate counts before a token, as stock has it.
    ///
    /// # Errors
    /// A credential was presented and does not count: the answer is 401.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        lookup: Lookup<'_>,
    ) -> Result<Option<UserInfo>, AuthnError> {
        if let Some(leaf) = peer.and_then(|peer| peer.certificates.first()) {
            let identity = tls::identity(leaf).ok_or(AuthnError::Certificate)?;
            return Ok(Some(UserInfo::known(identity.user, identity.groups)));
        }
        match bearer(headers)? {
            None => Ok(None),
            Some(token) => self.token(token, &self.api_audiences, lookup).map(|(user, _)| Some(user)),
        }
    }

    /// The user of a token meant for one of `audiences` (the API server's own when empty), with those of the audiences
    /// that it is meant for: what a `TokenReview` asks.
    ///
    /// # Errors
    /// The token does not count.
    pub fn token(
        &self,
        token: &str,
        audiences: &[String],
        lookup: Lookup<'_>,
    ) -> Result<(UserInfo, Vec<String>), AuthnError> {
        let audiences = if audiences.is_empty() { &self.api_audiences } else { audiences };
        if bootstrap::looks_like(token) {
            let user = bootstrap::authenticate(token, lookup)?;
            let api: Vec<String> = audiences.iter().filter(|a| self.api_audiences.contains(a)).cloned().collect();
            return match api.is_empty() {
                true => Err(AuthnError::Token("a bootstrap token is for the API server only".to_owned())),
                false => Ok((user, api)),
            };
        }
        self.tokens.verify(token, audiences, lookup)
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthnError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| AuthnError::Header)?;
    let (scheme, token) = value.split_once(' ').ok_or(AuthnError::Header)?;
    match (scheme.eq_ignore_ascii_case("bearer"), token.trim()) {
        (true, token) if !token.is_empty() => Ok(Some(token)),
        _ => Err(AuthnError::Header),
    }
}

#[cfg(test)]
mod tests;
