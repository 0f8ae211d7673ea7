//! Bootstrap tokens: `id.secret`, kept as Secrets `kube-system/bootstrap-token-<id>`
//! (kubernetes.io: Authenticating with Bootstrap Tokens).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{AuthnError, Lookup, UserInfo};

const GROUP: &str = "system:bootstrappers";

/// Whether the text has a bootstrap token's form: six and sixteen lower-case letters or digits.
pub(crate) fn looks_like(token: &str) -> bool {
    let plain =
        |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    token.split_once('.').is_some_and(|(id, secret)| plain(id, 6) && plain(secret, 16))
}

pub(crate) fn authenticate(token: &str, lookup: Lookup<'_>) -> Result<UserInfo, AuthnError> {
    let refuse = |why: &str| AuthnError::Token(format!("bootstrap token: {why}"));
    let (id, secret) = token.split_once('.').ok_or_else(|| refuse("malformed"))?;
    let object =
        lookup("secrets", "kube-system", &format!("bootstrap-token-{id}")).ok_or_else(|| refuse("unknown id"))?;
    if object["type"] != "bootstrap.kubernetes.io/token" || !object["metadata"]["deletionTimestamp"].is_null() {
        return Err(refuse("unknown id"));
    }
    if field(&object, "token-id").as_deref() != Some(id)
        || !field(&object, "token-secret").is_some_and(|kept| same(&kept, secret))
    {
        return Err(refuse("wrong secret"));
    }
    if let Some(expiration) = field(&object, "expiration") {
        let ends: Timestamp = expiration.parse().map_err(|_| refuse("its expiration is no RFC 3339 time"))?;
        if ends <= Timestamp::now() {
            return Err(refuse("expired"));
        }
    }
    if field(&object, "usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err(refuse("not for authentication"));
    }
    let extra = field(&object, "auth-extra-groups").unwrap_or_default();
    let extra = extra.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
    let groups = std::iter::once(GROUP).chain(extra).map(str::to_owned);
    Ok(UserInfo::known(format!("system:bootstrap:{id}"), groups))
}

fn field(secret: &Value, key: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// Compares without telling by time how much is right: by digests, whose bytes nobody can choose.
fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}
