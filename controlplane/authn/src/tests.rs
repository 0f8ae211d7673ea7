use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bosun_kit::pki::new_signing_key;
use http::HeaderMap;
use serde_json::{Value, json};

use super::*;

const API: &str = "https://kubernetes.default.svc.cluster.local";

struct World(Vec<(&'static str, &'static str, &'static str, Arc<Value>)>);

impl World {
    fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let found = self.0.iter().find(|(r, ns, n, _)| (*r, *ns, *n) == (resource, namespace, name));
        found.map(|(.., object)| object.clone())
    }
}

fn meta(uid: &str) -> Arc<Value> {
    Arc::new(json!({"metadata": {"uid": uid}}))
}

fn authenticator() -> (Authenticator, Arc<TokenIssuer>) {
    let (private, public) = new_signing_key().unwrap();
    let issuer = Arc::new(TokenIssuer::new(API, private.as_bytes(), public.as_bytes()).unwrap());
    (Authenticator::new(issuer.clone(), vec![API.to_owned()]), issuer)
}

fn request() -> TokenRequest {
    TokenRequest {
        namespace: "default".into(),
        account: Some(BoundObject { name: "web".into(), uid: "sa-1".into() }),
        expiration_seconds: 3600,
        pod: Some(BoundObject { name: "web-0".into(), uid: "pod-1".into() }),
        ..TokenRequest::default()
    }
}

fn with_bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    headers
}

fn world() -> World {
    World(vec![("serviceaccounts", "default", "web", meta("sa-1")), ("pods", "default", "web-0", meta("pod-1"))])
}

#[test]
fn a_bound_token_names_its_account_and_pod() {
    let (authenticator, issuer) = authenticator();
    let token = issuer.issue(&request(), &[API.to_owned()]).unwrap().token;
    let world = world();
    let find = |r: &str, ns: &str, n: &str| world.find(r, ns, n);
    let user = authenticator.authenticate(&with_bearer(&token), None, &find).unwrap().unwrap();
    assert_eq!(user.username, "system:serviceaccount:default:web");
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web-0"]);
}

#[test]
fn a_token_ends_with_what_it_is_bound_to() {
    let (authenticator, issuer) = authenticator();
    let token = issuer.issue(&request(), &[API.to_owned()]).unwrap().token;
    let headers = with_bearer(&token);
    let without = |gone: &str| {
        let mut world = world();
        world.0.retain(|(resource, ..)| *resource != gone);
        let find = |r: &str, ns: &str, n: &str| world.find(r, ns, n);
        authenticator.authenticate(&headers, None, &find)
    };
    assert!(without("nothing").is_ok());
    assert!(without("pods").is_err());
    assert!(without("serviceaccounts").is_err());
    let other =
        World(vec![("serviceaccounts", "default", "web", meta("sa-2")), ("pods", "default", "web-0", meta("pod-1"))]);
    let find = |r: &str, ns: &str, n: &str| other.find(r, ns, n);
    assert!(authenticator.authenticate(&headers, None, &find).is_err(), "same name, another account");
}

#[test]
fn another_audience_issuer_or_key_does_not_count() {
    let (authenticator, issuer) = authenticator();
    let world = world();
    let find = |r: &str, ns: &str, n: &str| world.find(r, ns, n);
    let vault = TokenRequest { audiences: vec!["vault".into()], ..request() };
    let token = issuer.issue(&vault, &[API.to_owned()]).unwrap().token;
    assert!(authenticator.authenticate(&with_bearer(&token), None, &find).is_err());
    let (_, audiences) = authenticator.token(&token, &["vault".into(), "x".into()], &find).unwrap();
    assert_eq!(audiences, ["vault"]);
    let (_, stranger) = self::authenticator();
    let token = stranger.issue(&request(), &[API.to_owned()]).unwrap().token;
    assert!(authenticator.authenticate(&with_bearer(&token), None, &find).is_err());
    let expired = TokenRequest { expiration_seconds: -60, ..request() };
    let token = issuer.issue(&expired, &[API.to_owned()]).unwrap().token;
    assert!(authenticator.authenticate(&with_bearer(&token), None, &find).is_err());
}

fn bootstrap_secret(expiration: &str, secret: &str) -> Arc<Value> {
    let data = |text: &str| STANDARD.encode(text);
    Arc::new(json!({
        "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef"},
        "data": {
            "token-id": data("abcdef"),
            "token-secret": data(secret),
            "expiration": data(expiration),
            "usage-bootstrap-authentication": data("true"),
            "auth-extra-groups": data("system:bootstrappers:nodes,system:masters"),
        },
    }))
}

#[test]
fn bootstrap_tokens() {
    let (authenticator, _) = authenticator();
    let ask = |secret: Arc<Value>| {
        let world = World(vec![("secrets", "kube-system", "bootstrap-token-abcdef", secret)]);
        let find = |r: &str, ns: &str, n: &str| world.find(r, ns, n);
        authenticator.authenticate(&with_bearer("abcdef.0123456789abcdef"), None, &find)
    };
    let user = ask(bootstrap_secret("2999-01-01T00:00:00Z", "0123456789abcdef")).unwrap().unwrap();
    assert_eq!(user.username, "system:bootstrap:abcdef");
    assert_eq!(
        user.groups,
        ["system:bootstrappers", "system:bootstrappers:nodes", "system:authenticated"],
        "a token gives no group outside its own"
    );
    assert!(ask(bootstrap_secret("2001-01-01T00:00:00Z", "0123456789abcdef")).is_err());
    assert!(ask(bootstrap_secret("2999-01-01T00:00:00Z", "fedcba9876543210")).is_err());
}

#[test]
fn no_credential_is_no_error_and_a_broken_one_is() {
    let (authenticator, _) = authenticator();
    let none = |_: &str, _: &str, _: &str| None;
    assert_eq!(authenticator.authenticate(&HeaderMap::new(), None, &none), Ok(None));
    let mut basic = HeaderMap::new();
    basic.insert(header::AUTHORIZATION, "Basic eDp5".parse().unwrap());
    assert_eq!(authenticator.authenticate(&basic, None, &none), Err(AuthnError::Header));
    assert!(authenticator.authenticate(&with_bearer("not.a.token"), None, &none).is_err());
}
