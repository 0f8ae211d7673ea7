//! Service-account tokens: JWTs bound to an account and, mostly, to a pod (KEP-1205, KEP-4193).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{AuthnError, Lookup, UserInfo};

/// The shortest lifetime that may be asked for.
pub const MIN_LIFETIME: Duration = Duration::from_secs(600);
/// A pod's token that is rotated by the kubelet may ask for an hour and a bit and then gets a year, so that clients
/// which read their token only once go on; they are warned about (`--service-account-extend-token-expiration`).
const EXTENDABLE: i64 = 3607;
const EXTENDED: i64 = 365 * 24 * 3600;
/// How far clocks may differ.
const LEEWAY: u64 = 10;

/// Signs and verifies tokens.
pub struct TokenIssuer {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
}

/// The keys could not be used, or a token not be made.
#[derive(Debug, Error)]
#[error("service-account token: {0}")]
pub struct IssueError(#[from] jsonwebtoken::errors::Error);

/// What a token is bound to besides its account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundObject {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name and UID.
    pub account: Option<BoundObject>,
    /// Whom the token is for; the API server when empty.
    pub audiences: Vec<String>,
    /// For how many seconds.
    pub expiration_seconds: i64,
    /// The pod it ends with.
    pub pod: Option<BoundObject>,
    /// The node that pod runs on.
    pub node: Option<BoundObject>,
    /// The secret it ends with.
    pub secret: Option<BoundObject>,
}

/// A token that was made.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The JWT.
    pub token: String,
    /// When its user should think it ends (`status.expirationTimestamp`).
    pub expires: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    private: Private,
    nbf: i64,
    sub: String,
}

#[derive(Serialize, Deserialize)]
struct Private {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<BoundObject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<BoundObject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<BoundObject>,
    serviceaccount: BoundObject,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

impl TokenIssuer {
    /// Signs with an ECDSA P-256 key (PEM, PKCS #8) in the name of `issuer`, a URL.
    ///
    /// # Errors
    /// A key is no PEM of its kind.
    pub fn new(issuer: &str, private_pem: &[u8], public_pem: &[u8]) -> Result<Self, IssueError> {
        let digest = Sha256::digest(public_pem);
        let key_id = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            issuer: issuer.to_owned(),
            key_id,
            signing: EncodingKey::from_ec_pem(private_pem)?,
            verifying: DecodingKey::from_ec_pem(public_pem)?,
        })
    }

    /// In whose name tokens are signed.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Makes a token. `default_audiences` count when none is asked for.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn issue(&self, request: &TokenRequest, default_audiences: &[String]) -> Result<Issued, IssueError> {
        let now = Timestamp::now().as_second();
        let asked = request.expiration_seconds;
        let extended = asked == EXTENDABLE && request.pod.is_some() && request.audiences.is_empty();
        let lifetime = if extended { EXTENDED } else { asked };
        let account = request.account.clone().unwrap_or(BoundObject { name: String::new(), uid: String::new() });
        let audiences = if request.audiences.is_empty() { default_audiences } else { &request.audiences };
        let claims = Claims {
            aud: audiences.to_vec(),
            exp: now + lifetime,
            iat: now,
            iss: self.issuer.clone(),
            jti: unique_id(&account.uid, now),
            nbf: now,
            sub: format!("system:serviceaccount:{}:{}", request.namespace, account.name),
            private: Private {
                namespace: request.namespace.clone(),
                node: request.node.clone(),
                pod: request.pod.clone(),
                secret: request.secret.clone(),
                serviceaccount: account,
                warnafter: extended.then_some(now + asked),
            },
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        let token = encode(&header, &claims, &self.signing)?;
        let expires = Timestamp::from_second(now + asked).unwrap_or(Timestamp::MAX);
        Ok(Issued { token, expires })
    }

    /// The account a token speaks for, and those of `audiences` it is meant for.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[String],
        lookup: Lookup<'_>,
    ) -> Result<(UserInfo, Vec<String>), AuthnError> {
        let refuse = |why: String| AuthnError::Token(why);
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[&self.issuer]);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        // Compared below: several audiences may match, and all that do are reported.
        rules.validate_aud = false;
        let claims = decode::<Claims>(token, &self.verifying, &rules).map_err(|e| refuse(e.to_string()))?.claims;
        let meant: Vec<String> = audiences.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        if meant.is_empty() {
            return Err(refuse(format!(
                "token audiences {:?} is invalid for the target audiences {audiences:?}",
                claims.aud
            )));
        }
        let Private { namespace, serviceaccount: account, .. } = &claims.private;
        holds("serviceaccounts", namespace, account, lookup).map_err(refuse)?;
        let bound = [("pods", &claims.private.pod), ("secrets", &claims.private.secret)];
        for (resource, object) in bound.iter().filter_map(|(resource, o)| o.as_ref().map(|o| (resource, o))) {
            holds(resource, namespace, object, lookup).map_err(refuse)?;
        }
        Ok((user(&claims), meant))
    }
}

fn user(claims: &Claims) -> UserInfo {
    let private = &claims.private;
    let mut user = UserInfo::service_account(&private.namespace, &private.serviceaccount.name);
    user.uid.clone_from(&private.serviceaccount.uid);
    let mut add = |key: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    add("credential-id", &format!("JTI={}", claims.jti));
    for (kind, object) in [("pod", &private.pod), ("node", &private.node)] {
        if let Some(object) = object {
            add(&format!("{kind}-name"), &object.name);
            add(&format!("{kind}-uid"), &object.uid);
        }
    }
    user
}

/// Whether what a token is bound to is still there and the same. One that is being deleted holds for a minute more, so
/// that a pod can use its token while it ends.
fn holds(resource: &str, namespace: &str, bound: &BoundObject, lookup: Lookup<'_>) -> Result<(), String> {
    let object: Arc<Value> = lookup(resource, namespace, &bound.name)
        .ok_or_else(|| format!("{resource} {namespace}/{} is gone", bound.name))?;
    let meta = &object["metadata"];
    if meta["uid"].as_str() != Some(&bound.uid) {
        return Err(format!("{resource} {namespace}/{} is another one by now", bound.name));
    }
    let deleted: Option<Timestamp> = meta["deletionTimestamp"].as_str().and_then(|at| at.parse().ok());
    match deleted {
        Some(at) if at.as_second() + 60 < Timestamp::now().as_second() => {
            Err(format!("{resource} {namespace}/{} has been deleted", bound.name))
        }
        _ => Ok(()),
    }
}

fn unique_id(salt: &str, now: i64) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = Timestamp::now().as_nanosecond();
    let digest = Sha256::digest(format!("{salt}/{now}/{nanos}/{count}/{}", std::process::id()));
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
