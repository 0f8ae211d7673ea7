//! Who a request comes from: client certificates, tokens of service accounts, bootstrap tokens.

use bosun_api::status::ApiError;
use bosun_kit::http::Peer;
use bosun_kit::tls;
use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::Value;

use crate::server::Inner;

/// The group of everybody who has shown who they are.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";

/// In a request's extensions: a caller within the process, who need not show anything.
#[derive(Clone, Debug)]
pub(crate) struct InProcess(pub(crate) UserInfo);

/// What a request shows of its sender.
#[derive(Debug)]
pub(crate) enum Shown {
    /// A caller within the process, or a certificate that has been verified.
    User(UserInfo),
    Token(String),
    Nothing,
}

impl Shown {
    pub(crate) fn by<B>(request: &http::Request<B>) -> Self {
        if let Some(InProcess(user)) = request.extensions().get() {
            return Self::User(user.clone());
        }
        let peer = request.extensions().get::<Peer>();
        if let Some(identity) = peer.and_then(|p| p.certificates.first()).and_then(tls::identity) {
            return Self::User(user(identity.user, identity.groups));
        }
        bearer(request.headers()).map_or(Self::Nothing, |token| Self::Token(token.to_owned()))
    }
}

/// A user by name and groups, and the group of the authenticated.
pub fn user(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> UserInfo {
    let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
    if !groups.iter().any(|g| g == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    UserInfo { username: Some(name.into()), groups: Some(groups), ..UserInfo::default() }
}

/// The server's own identity.
pub(crate) fn server_itself() -> UserInfo {
    user("system:apiserver", [bosun_authz::MASTERS])
}

fn anonymous() -> UserInfo {
    UserInfo {
        username: Some(ANONYMOUS.to_owned()),
        groups: Some(vec![UNAUTHENTICATED.to_owned()]),
        ..UserInfo::default()
    }
}

impl Inner {
    /// Find out who a request comes from.
    ///
    /// # Errors
    /// 401 for a token that is not good.
    pub(crate) async fn authenticate(&self, shown: Shown) -> Result<UserInfo, ApiError> {
        match shown {
            Shown::User(user) => Ok(user),
            Shown::Token(token) => self.authenticate_token(&token, &[]).await.map(|(user, _)| user),
            Shown::Nothing => Ok(anonymous()),
        }
    }

    /// Find out whose a token is, and for which of the audiences it is good; none given means the server's own.
    ///
    /// # Errors
    /// 401 for a token that is not good.
    pub(crate) async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), ApiError> {
        if let Some(tokens) = &self.tokens
            && tokens.looks_like_one(token)
        {
            return self.authenticate_service_account(tokens, token, audiences).await;
        }
        match self.authenticate_bootstrap_token(token).await {
            Some(user) => Ok((user, self.audiences().to_vec())),
            None => Err(ApiError::unauthorized()),
        }
    }

    /// Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` named `bootstrap-token-<id>` in kube-system.
    async fn authenticate_bootstrap_token(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = token.split_once('.')?;
        let fits = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if !fits(id, 6) || !fits(secret, 16) {
            return None;
        }
        let key = format!("/registry/secrets/kube-system/bootstrap-token-{id}");
        let kv = self.store.get(&key).await.ok()??;
        let value: Value = serde_json::from_slice(&kv.value).ok()?;
        if value["type"].as_str() != Some("bootstrap.kubernetes.io/token")
            || value["metadata"].get("deletionTimestamp").is_some()
        {
            return None;
        }
        let field = |key: &str| {
            let text = value["data"][key].as_str()?;
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).ok()?;
            String::from_utf8(bytes).ok()
        };
        let good = field("token-id").as_deref() == Some(id)
            && same(field("token-secret")?.as_bytes(), secret.as_bytes())
            && field("usage-bootstrap-authentication").as_deref() == Some("true");
        let fresh = match field("expiration").filter(|e| !e.is_empty()) {
            Some(expiration) => expiration.parse().is_ok_and(|at: jiff::Timestamp| at > jiff::Timestamp::now()),
            None => true,
        };
        if !good || !fresh {
            return None;
        }
        let extra = field("auth-extra-groups").unwrap_or_default();
        let extra = extra.split(',').filter(|g| g.starts_with("system:bootstrappers:")).map(str::to_owned);
        let groups: Vec<String> = std::iter::once("system:bootstrappers".to_owned()).chain(extra).collect();
        Some(user(format!("system:bootstrap:{id}"), groups))
    }
}

/// The token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
