//! What the API server says about itself: which groups, versions and resources there are, which version it is, and its
//! OpenAPI document in the form that old clients take.
//!
//! All of it follows from [`bosun_api::resource`] and is made when asked: it is asked seldom and need not stay in memory.

use bosun_api::resource::{self, GROUPS, Group, Resource, Subresource};
use bosun_kit::version;
use serde_json::{Value, json};

mod gnostic;

pub use gnostic::encode as openapi_v2_protobuf;

/// The group whose document an API server answers when several come in one (`apidiscovery.k8s.io/v2`).
const AGGREGATED: &str = "apidiscovery.k8s.io";

/// The media type of an aggregated document.
pub const AGGREGATED_TYPE: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The media type of the OpenAPI document as protobuf.
pub const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": version::MAJOR,
        "minor": version::MINOR,
        "emulationMajor": version::MAJOR,
        "emulationMinor": version::MINOR,
        "minCompatibilityMajor": version::MAJOR,
        "minCompatibilityMinor": "35",
        "gitVersion": version::GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": concat!("linux/", env!("BOSUN_ARCH")),
    })
}

/// Whether an `Accept` header asks for the aggregated document.
pub fn wants_aggregated(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let parts: Vec<&str> = range.split(';').map(str::trim).collect();
        let has = |wanted: &str| parts.contains(&wanted);
        has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

/// The document at a discovery path (`/api`, `/apis`, `/apis/apps`, `/apis/apps/v1` …), or none if there is no such
/// path. `server` is the address and port that clients within the cluster use.
pub fn document(path: &str, aggregated: bool, server: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] if aggregated => Some(aggregated_list(GROUPS.iter().filter(|g| g.name.is_empty()))),
        ["apis"] if aggregated => Some(aggregated_list(GROUPS.iter().filter(|g| !g.name.is_empty()))),
        ["api"] => Some(core_versions(server)),
        ["apis"] => Some(json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": GROUPS.iter().filter(|g| !g.name.is_empty()).map(group_entry).collect::<Vec<_>>(),
        })),
        ["api", version] => resource_list("", version),
        ["apis", name] => resource::group(name).filter(|g| !g.name.is_empty()).map(group_document),
        ["apis", name, version] if !name.is_empty() => resource_list(name, version),
        _ => None,
    }
}

/// Every discovery path, as `GET /` lists them.
pub fn paths() -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for group in GROUPS.iter().filter(|g| !g.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{version}", group.name)));
    }
    paths
}

fn core_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

fn group_entry(group: &Group) -> Value {
    let entry = |version: &str| json!({"groupVersion": format!("{}/{version}", group.name), "version": version});
    json!({
        "name": group.name,
        "versions": group.versions.iter().map(|version| entry(version)).collect::<Vec<_>>(),
        "preferredVersion": entry(group.preferred()),
    })
}

fn group_document(group: &Group) -> Value {
    let mut document = group_entry(group);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    document
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for resource in resource::in_version(group, version) {
        // What exists only below an object (`pods/…`) is listed behind it.
        resources.push(resource_entry(resource));
        resources.extend(resource.subresources.iter().map(|sub| subresource_entry(resource, sub)));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

fn resource_entry(resource: &Resource) -> Value {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    entry
}

fn subresource_entry(resource: &Resource, sub: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", resource.plural, sub.name),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": if sub.kind.is_empty() { resource.kind } else { sub.kind },
        "verbs": sub.verbs,
    });
    // The group is told where it is not the resource's own.
    if !sub.version.is_empty() && (sub.group, sub.version) != (resource.group, resource.version) {
        entry["group"] = json!(sub.group);
        entry["version"] = json!(sub.version);
    }
    entry
}

fn aggregated_list<'a>(groups: impl Iterator<Item = &'a Group>) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("{AGGREGATED}/v2"),
        "metadata": {},
        "items": groups.map(aggregated_group).collect::<Vec<_>>(),
    })
}

fn aggregated_group(group: &Group) -> Value {
    let version = |version: &&str| {
        let resources: Vec<Value> = resource::in_version(group.name, version).map(aggregated_resource).collect();
        json!({"version": version, "freshness": "Current", "resources": resources})
    };
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = json!(group.name);
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        let subs: Vec<Value> = resource.subresources.iter().map(|sub| aggregated_subresource(resource, sub)).collect();
        entry["subresources"] = json!(subs);
    }
    entry
}

fn aggregated_subresource(resource: &Resource, sub: &Subresource) -> Value {
    let (group, version) = match sub.version {
        "" => (resource.group, resource.version),
        version => (sub.group, version),
    };
    let kind = if sub.kind.is_empty() { resource.kind } else { sub.kind };
    json!({
        "subresource": sub.name,
        "responseKind": {"group": group, "version": version, "kind": kind},
        "verbs": sub.verbs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(document: &Value, list: &str) -> Vec<String> {
        document[list].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_path_listed_is_served() {
        for path in paths() {
            assert!(document(&path, false, "10.0.0.1:6443").is_some(), "{path}");
        }
        assert!(document("/apis/apps/v2", false, "").is_none());
        assert!(document("/apis/nope", false, "").is_none());
    }

    #[test]
    fn pods_and_what_is_below_them() {
        let core = document("/api/v1", false, "").unwrap();
        let names = names(&core, "resources");
        for wanted in ["pods", "pods/log", "pods/exec", "pods/status", "pods/eviction"] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} in {names:?}");
        }
        let eviction = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods/eviction").unwrap();
        assert_eq!((&eviction["group"], &eviction["version"]), (&json!("policy"), &json!("v1")));
    }

    #[test]
    fn one_document_holds_all_groups_when_asked() {
        assert!(wants_aggregated(&format!("{AGGREGATED_TYPE},application/json")));
        assert!(wants_aggregated("application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io, */*"));
        assert!(!wants_aggregated("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"));
        let all = document("/apis", true, "").unwrap();
        let first = &all["items"][0];
        assert_eq!(first["metadata"]["name"], "apps");
        let deployments = &first["versions"][0]["resources"].as_array().unwrap()[2];
        assert!(deployments["subresources"].as_array().unwrap().iter().any(|s| s["subresource"] == "scale"), "{first}");
    }
}
