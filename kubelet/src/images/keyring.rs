//! What to log in to a registry with, and whose it is: who pulled an image decides who may use it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bosun_proto::cri;
use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::reference::matches;

/// The registry that images without one come from.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// A user and a password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Login {
    /// The user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// The password.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
}

impl Login {
    /// SHA-256 of the login as JSON, in hexadecimal: what records keep of it (KEP-2535).
    pub fn hash(&self) -> String {
        // Two texts always encode.
        hex::encode(Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }
}

/// Who brought a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The node: every pod on it may use what was pulled with it.
    Node,
    /// A pull secret of the pod.
    Secret(SecretRef),
    /// The pod's service account, by a credential provider.
    ServiceAccount(AccountRef),
}

/// A pull secret and the hash of what it held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// [`Login::hash`] of the login in it.
    pub credential_hash: String,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountRef {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A login for an image and who brought it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The login.
    pub login: Login,
    /// Who brought it.
    pub source: Source,
}

impl Credential {
    /// As the runtime takes it. The registry is left out: the runtime would take a pattern for a host and refuse.
    pub fn auth(&self) -> cri::AuthConfig {
        let Login { username, password } = self.login.clone();
        cri::AuthConfig { username, password, ..Default::default() }
    }
}

/// The logins of a pull secret that fit a repository, in the order in which they are to be tried.
pub fn of_secret(secret: &Secret, repository: &str) -> Vec<Credential> {
    let fitting = fitting(&entries(secret), repository);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let credential = |login: Login| {
        let source = SecretRef {
            uid: text(&secret.metadata.uid),
            namespace: text(&secret.metadata.namespace),
            name: text(&secret.metadata.name),
            credential_hash: login.hash(),
        };
        Credential { login, source: Source::Secret(source) }
    };
    fitting.into_iter().map(credential).collect()
}

/// The logins of a docker configuration, by the pattern that they are for.
fn entries(secret: &Secret) -> BTreeMap<String, Login> {
    let read =
        |key: &str| -> Option<serde_json::Value> { serde_json::from_slice(&secret.data.as_ref()?.get(key)?.0).ok() };
    let entries = match (read(".dockerconfigjson"), read(".dockercfg")) {
        (Some(config), _) => config["auths"].clone(),
        (None, Some(config)) => config,
        (None, None) => return BTreeMap::new(),
    };
    let entries = entries.as_object().cloned().unwrap_or_default();
    entries.iter().map(|(server, entry)| (pattern(server), login(entry))).collect()
}

/// What an entry's key stands for: its host and path, without the path that only names a version of the registry's API.
fn pattern(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let version = |v: &str| path == v || path.strip_prefix(v).is_some_and(|rest| rest.starts_with('/'));
    if path.is_empty() || version("v1") || version("v2") { host.to_owned() } else { format!("{host}/{path}") }
}

fn login(entry: &serde_json::Value) -> Login {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let joined = STANDARD.decode(text("auth").trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (username, password) = match joined.as_deref().and_then(|joined| joined.split_once(':')) {
        Some((user, password)) => (user.to_owned(), password.to_owned()),
        None => (text("username"), text("password")),
    };
    Login { username, password }
}

/// The logins whose patterns fit. The last in order goes first, so that a pattern goes before those that are its beginning;
/// the default registry's own name stands for it where nothing else fits.
pub(super) fn fitting(logins: &BTreeMap<String, Login>, repository: &str) -> Vec<Login> {
    let found: Vec<Login> =
        logins.iter().rev().filter(|(glob, _)| matches(glob, repository)).map(|(_, login)| login.clone()).collect();
    if found.is_empty() && repository.starts_with("docker.io/") {
        return logins.get(DEFAULT_REGISTRY).cloned().into_iter().collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::reference::repository;

    fn secret(auths: &serde_json::Value) -> Secret {
        let config = serde_json::json!({"auths": auths});
        let data = [(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(config.to_string().into_bytes()))];
        Secret { data: Some(data.into()), ..Default::default() }
    }

    #[test]
    fn credentials_are_those_of_the_registry() {
        let secret = secret(&serde_json::json!({"reg:5000": {"auth": STANDARD.encode("me:word")}, "other.io": {}}));
        let found = of_secret(&secret, &repository("reg:5000/a:1"));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].login.username.as_str(), found[0].login.password.as_str()), ("me", "word"));
        assert!(found[0].auth().server_address.is_empty(), "a runtime compares it with the registry's host");
    }

    #[test]
    fn the_longest_path_goes_first_and_the_default_registry_last() {
        let secret = secret(&serde_json::json!({
            "https://reg.io/team": {"username": "team"},
            "reg.io": {"username": "all"},
            "https://index.docker.io/v1/": {"username": "hub"},
        }));
        let users = |image: &str| -> Vec<String> {
            of_secret(&secret, &repository(image)).into_iter().map(|found| found.login.username).collect()
        };
        assert_eq!(users("reg.io/team/a"), ["team", "all"]);
        assert_eq!(users("reg.io/other"), ["all"]);
        assert_eq!(users("busybox"), ["hub"]);
        assert!(users("elsewhere.io/a").is_empty());
    }

    #[test]
    fn the_hash_is_stocks() {
        let login = Login { username: "user".into(), password: "password".into() };
        assert_eq!(login.hash(), "a55436fc140d516560d072c5fe8700385ce9f41629abf65c1edcbcb39fac691d");
    }
}
