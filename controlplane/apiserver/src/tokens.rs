//! Tokens of service accounts: issued on request, bound to a pod, a node or a secret, and good for as long as what
//! they are bound to is there.

use bosun_api::status::ApiError;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use crate::authn::user;
use crate::server::Inner;

const USER_PREFIX: &str = "system:serviceaccount:";

/// What is wrong with a signing key.
#[derive(Debug, thiserror::Error)]
#[error("service account key: {0}; give a PEM file with an EC P-256 or an RSA private key")]
pub struct KeyError(String);

/// Signs and verifies.
pub(crate) struct Tokens {
    issuer: String,
    audiences: Vec<String>,
    algorithm: Algorithm,
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("issuer", &self.issuer).field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// The claims of a token, as stock has them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: String,
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) jti: Option<String>,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: Private,
}

/// The part of the claims that is Kubernetes' own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Private {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Ref,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<i64>,
}

/// An object by name and identity.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ref {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
}

impl Tokens {
    pub(crate) fn new(
        private_pem: &str,
        public_pem: &str,
        issuer: &str,
        audiences: &[String],
    ) -> Result<Self, KeyError> {
        let (private, public) = (private_pem.as_bytes(), public_pem.as_bytes());
        let wrong = |e: jsonwebtoken::errors::Error| KeyError(e.to_string());
        let (algorithm, signing, verifying) = match EncodingKey::from_ec_pem(private) {
            Ok(signing) => (Algorithm::ES256, signing, DecodingKey::from_ec_pem(public).map_err(wrong)?),
            Err(_) => (
                Algorithm::RS256,
                EncodingKey::from_rsa_pem(private).map_err(wrong)?,
                DecodingKey::from_rsa_pem(public).map_err(wrong)?,
            ),
        };
        let digest = <sha2::Sha256 as sha2::Digest>::digest(public);
        let key_id = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, digest);
        Ok(Self { issuer: issuer.to_owned(), audiences: audiences.to_vec(), algorithm, signing, verifying, key_id })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        if self.algorithm == Algorithm::ES256 { "ES256" } else { "RS256" }
    }

    /// The public key, as OpenID clients read it.
    pub(crate) fn key_set(&self) -> Result<Value, ApiError> {
        let mut key = Jwk::from_encoding_key(&self.signing, self.algorithm).map_err(ApiError::internal)?;
        key.common.key_id = Some(self.key_id.clone());
        key.common.public_key_use = Some(PublicKeyUse::Signature);
        serde_json::to_value(JwkSet { keys: vec![key] }).map_err(ApiError::internal)
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, ApiError> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(ApiError::internal)
    }

    /// Whether a token is meant to be one of ours: three parts, and our issuer in the second.
    pub(crate) fn looks_like_one(&self, token: &str) -> bool {
        token.split('.').count() == 3
    }

    /// The claims of a token whose signature, issuer and times are good.
    fn verify(&self, token: &str) -> Result<Claims, String> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 10;
        jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map(|data| data.claims)
            .map_err(|e| e.to_string())
    }
}

impl Inner {
    /// The audiences that a token for this server is for.
    pub(crate) fn audiences(&self) -> &[String] {
        self.tokens.as_ref().map_or(&[], |tokens| tokens.audiences())
    }

    pub(crate) async fn authenticate_service_account(
        &self,
        tokens: &Tokens,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), ApiError> {
        let claims = tokens.verify(token).map_err(|error| {
            tracing::debug!(error, "token refused");
            ApiError::unauthorized()
        })?;
        let wanted = if audiences.is_empty() { tokens.audiences() } else { audiences };
        let common: Vec<String> = claims.aud.iter().filter(|aud| wanted.contains(aud)).cloned().collect();
        if common.is_empty() {
            return Err(ApiError::unauthorized());
        }
        let private = &claims.kubernetes;
        let bound = self.bindings_hold(private).await;
        let name = &private.serviceaccount.name;
        if !bound || claims.sub != format!("{USER_PREFIX}{}:{name}", private.namespace) {
            return Err(ApiError::unauthorized());
        }
        Ok((service_account_user(&claims), common))
    }

    /// Whether the account and what the token is bound to are still the ones that it was issued for.
    async fn bindings_hold(&self, private: &Private) -> bool {
        let namespace = &private.namespace;
        if !self.is_there(&format!("/registry/serviceaccounts/{namespace}/"), &private.serviceaccount).await {
            return false;
        }
        if let Some(pod) = &private.pod
            && !self.is_there(&format!("/registry/pods/{namespace}/"), pod).await
        {
            return false;
        }
        if let Some(secret) = &private.secret
            && !self.is_there(&format!("/registry/secrets/{namespace}/"), secret).await
        {
            return false;
        }
        match (&private.pod, &private.node) {
            (None, Some(node)) => self.is_there("/registry/minions/", node).await,
            _ => true,
        }
    }

    async fn is_there(&self, prefix: &str, wanted: &Ref) -> bool {
        let Ok(Some(kv)) = self.store.get(&format!("{prefix}{}", wanted.name)).await else { return false };
        let Ok(value) = serde_json::from_slice::<Value>(&kv.value) else { return false };
        let metadata = &value["metadata"];
        let expired = metadata["deletionTimestamp"]
            .as_str()
            .and_then(|at| at.parse::<jiff::Timestamp>().ok())
            // A token goes on for a minute after what it is bound to should have gone.
            .is_some_and(|at| at + jiff::SignedDuration::from_secs(60) < jiff::Timestamp::now());
        !expired && metadata["uid"].as_str() == Some(wanted.uid.as_str())
    }
}

fn service_account_user(claims: &Claims) -> UserInfo {
    let private = &claims.kubernetes;
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", private.namespace)];
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    if let Some(pod) = &private.pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        add("node-name", &node.name);
        add("node-uid", &node.uid);
    }
    if let Some(jti) = &claims.jti {
        add("credential-id", &format!("JTI={jti}"));
    }
    UserInfo {
        uid: Some(private.serviceaccount.uid.clone()),
        extra: (!extra.is_empty()).then_some(extra),
        ..user(claims.sub.clone(), groups)
    }
}
