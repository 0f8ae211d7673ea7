//! What a request is about: its place in the API, its verb and its options, read from path and query.

use std::borrow::Cow;

use bosun_api::selector::{FieldSelector, Selector, parse_field_selector, parse_label_selector};
use bosun_api::status::ApiError;
use http::{Method, Uri};

/// Percent-decoded query parameters in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (unescape(&key.replace('+', " ")), unescape(&value.replace('+', " ")))
        };
        Self(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean as Go's query decoding takes it: present and neither `false` nor `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
        };
        self.get(key).filter(|v| !v.is_empty()).map(parse).transpose()
    }
}

/// Percent-decode; what is no valid escape stays as it is.
pub(crate) fn unescape(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where in the API a request goes and what it wants, as authorization sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// `false` for paths such as `/healthz` and discovery.
    pub(crate) is_resource: bool,
    pub(crate) verb: Cow<'static, str>,
    pub(crate) path: String,
    pub(crate) group: String,
    pub(crate) version: String,
    /// Empty for cluster-scoped requests and for all namespaces.
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) name: String,
    /// What follows the subresource, for `proxy`.
    pub(crate) rest: String,
}

impl RequestInfo {
    pub(crate) fn read(method: &Method, uri: &Uri, query: &Query) -> Self {
        let path = uri.path();
        let mut info = Self { path: path.to_owned(), verb: plain_verb(method).into(), ..Self::default() };
        let parts: Vec<String> = path.split('/').skip(1).map(unescape).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() && !rest[0].is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() && !rest[0].is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        let (rest, watch_prefix) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
            rest => (rest, false),
        };
        info.take_resource(rest);
        info.verb = info.resource_verb(method, query, watch_prefix).into();
        info
    }

    fn take_resource(&mut self, parts: &[&str]) {
        let tail = match parts {
            // `namespaces/x/status` and `namespaces/x/finalize` are subresources, every other third part is a resource.
            ["namespaces", namespace, resource, tail @ ..]
                if !matches!(*resource, "status" | "finalize") && !resource.is_empty() =>
            {
                self.namespace = (*namespace).to_owned();
                self.resource = (*resource).to_owned();
                tail
            }
            ["namespaces", namespace, tail @ ..] if !namespace.is_empty() => {
                self.namespace = (*namespace).to_owned();
                self.resource = "namespaces".to_owned();
                self.name = (*namespace).to_owned();
                self.subresource = tail.first().copied().unwrap_or_default().to_owned();
                return;
            }
            [resource, tail @ ..] => {
                self.resource = (*resource).to_owned();
                tail
            }
            [] => return,
        };
        let mut tail = tail.iter();
        self.name = tail.next().copied().unwrap_or_default().to_owned();
        self.subresource = tail.next().copied().unwrap_or_default().to_owned();
        self.rest = tail.as_slice().join("/");
    }

    fn resource_verb(&self, method: &Method, query: &Query, watch_prefix: bool) -> &'static str {
        let named = !self.name.is_empty();
        match *method {
            Method::GET | Method::HEAD if watch_prefix => "watch",
            Method::GET | Method::HEAD if named => "get",
            Method::GET | Method::HEAD if query.flag("watch") => "watch",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        }
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

/// The selectors of a list, a watch or a deletecollection.
pub(crate) fn selectors(query: &Query) -> Result<(Selector, FieldSelector), ApiError> {
    let labels = match query.get("labelSelector") {
        Some(text) => parse_label_selector(text)
            .map_err(|e| ApiError::bad_request(format!("unable to parse requirement: {e}")))?,
        None => Selector::everything(),
    };
    let fields = match query.get("fieldSelector") {
        Some(text) => parse_field_selector(text).map_err(|e| ApiError::bad_request(e.to_string()))?,
        None => FieldSelector::default(),
    };
    Ok((labels, fields))
}

/// Whether the request wants everything done but the write.
///
/// # Errors
/// A value other than `All`.
pub(crate) fn dry_run(query: &Query) -> Result<bool, ApiError> {
    let values: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
    match values.iter().find(|v| **v != "All") {
        Some(other) => Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "Options.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ),
        )),
        None => Ok(!values.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Method, uri: &str) -> RequestInfo {
        let uri: Uri = uri.parse().unwrap();
        let query = Query::parse(uri.query().unwrap_or_default());
        RequestInfo::read(&method, &uri, &query)
    }

    fn shown(method: Method, uri: &str) -> String {
        let i = read(method, uri);
        format!(
            "{} {}/{} ns={} {}/{} {} [{}] {}",
            i.verb, i.group, i.version, i.namespace, i.resource, i.subresource, i.name, i.rest, i.is_resource
        )
    }

    #[test]
    fn paths_and_verbs() {
        assert_eq!(shown(Method::GET, "/api/v1/pods"), "list /v1 ns= pods/  [] true");
        assert_eq!(shown(Method::GET, "/api/v1/pods?watch=true"), "watch /v1 ns= pods/  [] true");
        assert_eq!(shown(Method::GET, "/api/v1/watch/pods"), "watch /v1 ns= pods/  [] true");
        assert_eq!(shown(Method::GET, "/api/v1/namespaces/a/pods/b/log"), "get /v1 ns=a pods/log b [] true");
        assert_eq!(shown(Method::PUT, "/api/v1/namespaces/a/status"), "update /v1 ns=a namespaces/status a [] true");
        assert_eq!(shown(Method::DELETE, "/api/v1/namespaces/a"), "delete /v1 ns=a namespaces/ a [] true");
        assert_eq!(
            shown(Method::DELETE, "/apis/apps/v1/namespaces/a/deployments"),
            "deletecollection apps/v1 ns=a deployments/  [] true"
        );
        assert_eq!(
            shown(Method::POST, "/api/v1/namespaces/a/services/b:80/proxy/x/y%20z"),
            "create /v1 ns=a services/proxy b:80 [x/y z] true"
        );
        assert_eq!(shown(Method::GET, "/apis/apps/v1"), "get / ns= /  [] false");
        assert_eq!(shown(Method::GET, "/api/v1/"), "get / ns= /  [] false");
        assert_eq!(shown(Method::GET, "/healthz"), "get / ns= /  [] false");
    }

    #[test]
    fn queries() {
        let query = Query::parse("a=1&b=x%2Cy+z&a=2&watch");
        assert_eq!(query.get("b"), Some("x,y z"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert!(query.flag("watch") && !query.flag("c"));
        assert_eq!(unescape("%zz%4"), "%zz%4");
    }
}
