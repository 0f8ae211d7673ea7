//! Paths that are no resources: health, version, metrics, and what the API consists of.

use std::sync::Arc;

use bosun_api::resource::{GROUPS, Group, Resource, Subresource, in_version};
use bosun_api::status::ApiError;
use bosun_kit::http::Body;
use bosun_kit::version;
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::codec::{Accept, answer};
use crate::request::{Query, RequestInfo};
use crate::server::Inner;

impl Inner {
    /// Answer a request that is not to a resource.
    pub(crate) async fn plain(
        self: &Arc<Self>,
        request: &Parts,
        info: &RequestInfo,
        query: &Query,
    ) -> Result<Response<Body>, ApiError> {
        let path = info.path.trim_end_matches('/');
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let aggregated = wants_aggregated(&request.headers);
        let value = match parts.as_slice() {
            [] | [""] => paths(),
            [endpoint @ ("healthz" | "livez" | "readyz"), rest @ ..] => {
                return Ok(self.health(endpoint, rest.first().copied(), request.uri.query()));
            }
            ["metrics"] => return Ok(self.metrics.registry.respond()),
            ["version"] => build_version(),
            ["api"] if aggregated.is_some() => return Ok(aggregated_answer(&core_groups(), aggregated)),
            ["apis"] if aggregated.is_some() => return Ok(aggregated_answer(&named_groups(), aggregated)),
            ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
            ["apis"] => {
                let groups: Vec<Value> = named_groups().into_iter().map(api_group).collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            }
            ["apis", group] => {
                let group = GROUPS.iter().find(|g| g.name == *group).ok_or_else(ApiError::no_such_path)?;
                let mut value = api_group(group);
                value["kind"] = "APIGroup".into();
                value["apiVersion"] = "v1".into();
                value
            }
            ["api", version] => resource_list("", version)?,
            ["apis", group, version] => resource_list(group, version)?,
            [".well-known", "openid-configuration"] => self.issuer_metadata()?,
            ["openid", "v1", "jwks"] => self.tokens.as_ref().ok_or_else(ApiError::no_such_path)?.key_set()?,
            ["openapi", rest @ ..] => return self.documents.answer(rest, &request.headers, query).await,
            _ => return Err(ApiError::no_such_path()),
        };
        let accept = Accept::negotiate(&request.headers).unwrap_or(Accept::JSON);
        Ok(answer(StatusCode::OK, accept, &value))
    }

    /// Where the keys of the token issuer are (OpenID Connect Discovery).
    fn issuer_metadata(&self) -> Result<Value, ApiError> {
        let tokens = self.tokens.as_ref().ok_or_else(ApiError::no_such_path)?;
        Ok(json!({"issuer": tokens.issuer(), "jwks_uri": format!("{}/openid/v1/jwks", tokens.issuer()),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [tokens.algorithm()]}))
    }

    fn health(&self, endpoint: &str, check: Option<&str>, query: Option<&str>) -> Response<Body> {
        let checks = bosun_kit::health::Checks::new();
        let stopping = self.cancel.is_cancelled();
        checks.add("etcd", || Ok(()));
        checks.add("shutdown", move || if stopping { Err("the server is shutting down".into()) } else { Ok(()) });
        checks.respond(endpoint, check, query)
    }
}

fn paths() -> Value {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .iter()
    .map(|p| (*p).to_owned())
    .collect();
    for group in named_groups() {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{version}", group.name)));
    }
    paths.sort();
    json!({"paths": paths})
}

/// The version that clients are told.
fn build_version() -> Value {
    json!({
        "major": version::MAJOR, "minor": version::MINOR,
        "emulationMajor": version::MAJOR, "emulationMinor": version::MINOR,
        "minCompatibilityMajor": version::MAJOR, "minCompatibilityMinor": "35",
        "gitVersion": version::GIT_VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn core_groups() -> Vec<&'static Group> {
    GROUPS.iter().filter(|group| group.name.is_empty()).collect()
}

fn named_groups() -> Vec<&'static Group> {
    GROUPS.iter().filter(|group| !group.name.is_empty()).collect()
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn api_group(group: &'static Group) -> Value {
    let version = |version: &str| json!({"groupVersion": group_version(group.name, version), "version": version});
    json!({"name": group.name,
        "versions": group.versions.iter().map(|v| version(v)).collect::<Vec<_>>(),
        "preferredVersion": version(group.preferred())})
}

fn resource_list(group: &str, version: &str) -> Result<Value, ApiError> {
    let mut resources = Vec::new();
    for resource in in_version(group, version) {
        resources.push(api_resource(resource));
        resources.extend(resource.subresources.iter().map(|sub| api_subresource(resource, sub)));
    }
    match resources.is_empty() {
        true => Err(ApiError::no_such_path()),
        false => Ok(json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": group_version(group, version), "resources": resources})),
    }
}

fn api_resource(resource: &Resource) -> Value {
    let mut value = json!({"name": resource.plural, "singularName": resource.singular,
        "namespaced": resource.namespaced, "kind": resource.kind, "verbs": resource.verbs});
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    value
}

fn api_subresource(resource: &Resource, sub: &Subresource) -> Value {
    let kind = if sub.kind.is_empty() { resource.kind } else { sub.kind };
    let mut value = json!({"name": format!("{}/{}", resource.plural, sub.name), "singularName": "",
        "namespaced": resource.namespaced, "kind": kind, "verbs": sub.verbs});
    if !sub.version.is_empty() && (sub.group != resource.group || sub.version != resource.version) {
        value["group"] = sub.group.into();
        value["version"] = sub.version.into();
    }
    value
}

/// The version of aggregated discovery that the client asks for, if it does.
fn wants_aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    for clause in accepts.flat_map(|text| text.split(',')) {
        let has = |part: &str| clause.split(';').any(|p| p.trim() == part);
        let json = clause.trim().starts_with("application/json");
        if json && has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io") {
            match () {
                () if has("v=v2") => return Some("v2"),
                () if has("v=v2beta1") => return Some("v2beta1"),
                () => {}
            }
        }
    }
    None
}

fn aggregated_answer(groups: &[&'static Group], version: Option<&str>) -> Response<Body> {
    let version = version.unwrap_or("v2");
    let items: Vec<Value> = groups.iter().map(|group| aggregated_group(group)).collect();
    let value = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items});
    let mut response = answer(StatusCode::OK, Accept::JSON, &value);
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(content_type) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
    response
}

fn aggregated_group(group: &'static Group) -> Value {
    let versions = group.versions.iter().map(|version| {
        let resources: Vec<Value> = in_version(group.name, version)
            .map(|resource| aggregated_resource(group.name, version, resource))
            .collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    });
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = group.name.into();
    }
    json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
}

fn aggregated_resource(group: &str, version: &str, resource: &Resource) -> Value {
    let gvk = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources = resource.subresources.iter().map(|sub| {
        let kind = if sub.kind.is_empty() { resource.kind } else { sub.kind };
        let (group, version) = if sub.version.is_empty() { (group, version) } else { (sub.group, sub.version) };
        json!({"subresource": sub.name, "responseKind": gvk(group, version, kind), "verbs": sub.verbs})
    });
    let mut value = json!({"resource": resource.plural, "responseKind": gvk(group, version, resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular, "verbs": resource.verbs});
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = subresources.collect();
    if !subresources.is_empty() {
        value["subresources"] = subresources.into();
    }
    value
}
