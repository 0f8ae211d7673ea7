//! The OpenAPI documents, v2 as one and v3 as one for each group and version.
//!
//! The definitions lie packed beside the code (`openapi/definitions.json.gz`, written by `openapi-gen`) and are unpacked
//! for each document. Nothing stays in memory afterwards: keep what was made, or better its encoding, if it is asked for
//! often.

mod paths;

use std::collections::BTreeSet;
use std::io::Read as _;

use serde_json::{Map, Value, json};

use crate::hash::fnv32a;
use crate::resource::{GROUPS, in_version};

static PACKED: &[u8] = include_bytes!("../openapi/definitions.json.gz");

const V2_PREFIX: &str = "#/definitions/";
const V3_PREFIX: &str = "#/components/schemas/";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// Every definition, by its name, as the v2 document has them.
#[must_use]
pub fn definitions() -> Map<String, Value> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(PACKED)
        .read_to_end(&mut text)
        .expect("the packed definitions are part of the program");
    serde_json::from_slice(&text).expect("the definitions are JSON, as a test knows")
}

/// The v2 document, as a tree: `definitions` with descriptions, kinds and patch strategies, and `paths` with the
/// operations on every resource and their query parameters.
#[must_use]
pub fn v2(version: &str) -> Value {
    let mut paths = Map::new();
    for group in GROUPS {
        for version in group.versions {
            paths.extend(paths::of(group.name, version, paths::Form::V2));
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "definitions": definitions(),
        "securityDefinitions": {
            "BearerToken": {
                "description": "Bearer Token authentication",
                "type": "apiKey",
                "name": "authorization",
                "in": "header",
            },
        },
        "security": [{"BearerToken": []}],
    })
}

/// The v2 document as JSON.
#[must_use]
pub fn v2_json(version: &str) -> Vec<u8> {
    serde_json::to_vec(&v2(version)).expect("a document is JSON")
}

/// The paths below `/openapi/v3/` that have a document (`api/v1`, `apis/apps/v1`), with a hash of its content.
#[must_use]
pub fn v3_paths() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for group in GROUPS {
        for version in group.versions {
            let path = root(group.name, version);
            let mut hash = fnv32a(PACKED);
            for resource in in_version(group.name, version) {
                hash ^= fnv32a(format!("{resource:?}").as_bytes()).rotate_left(1);
            }
            paths.push((path, format!("{hash:08X}")));
        }
    }
    paths
}

/// `api/v1` or `apis/apps/v1`.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The v3 document of a path such as `apis/apps/v1`.
#[must_use]
pub fn v3(path: &str, version: &str) -> Option<Value> {
    let (group, group_version) = GROUPS.iter().find_map(|group| {
        let version = group.versions.iter().find(|version| root(group.name, version) == path)?;
        Some((group.name, *version))
    })?;
    let paths = paths::of(group, group_version, paths::Form::V3);
    let mut all = definitions();
    let mut schemas = Map::new();
    let mut wanted = BTreeSet::new();
    for item in paths.values() {
        references(item, V3_PREFIX, &mut wanted);
    }
    for resource in in_version(group, group_version) {
        wanted.insert(resource.definition.to_owned());
    }
    while let Some(name) = wanted.pop_first() {
        let Some(mut definition) = all.remove(&name) else { continue };
        references(&definition, V2_PREFIX, &mut wanted);
        to_v3(&name, &mut definition);
        schemas.insert(name, definition);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "BearerToken": {
                    "description": "Bearer Token authentication",
                    "type": "apiKey",
                    "name": "authorization",
                    "in": "header",
                },
            },
        },
    }))
}

/// The v3 document of a path as JSON.
#[must_use]
pub fn v3_json(path: &str, version: &str) -> Option<Vec<u8>> {
    v3(path, version).map(|document| serde_json::to_vec(&document).expect("a document is JSON"))
}

/// Collects the names that a document refers to.
fn references(value: &Value, prefix: &str, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str().filter(|_| key == "$ref").and_then(|target| target.strip_prefix(prefix)) {
                    Some(name) => {
                        names.insert(name.to_owned());
                    }
                    None => references(value, prefix, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, prefix, names)),
        _ => {}
    }
}

/// Turns a v2 definition into a v3 schema: references go elsewhere and stand alone, and what is a number or a text says
/// so.
fn to_v3(name: &str, definition: &mut Value) {
    refer_v3(definition);
    let Some(object) = definition.as_object_mut() else { return };
    match name {
        INT_OR_STRING => {
            object.remove("type");
            object.insert("oneOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
        }
        QUANTITY => {
            object.remove("type");
            object.insert("oneOf".to_owned(), json!([{"type": "string"}, {"type": "number"}]));
        }
        _ => {}
    }
}

fn refer_v3(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(target)) = object.get("$ref") {
                let target = target.replacen(V2_PREFIX, V3_PREFIX, 1);
                object.remove("$ref");
                let reference = json!({"$ref": target});
                if object.is_empty() {
                    *value = reference;
                } else {
                    object.insert("allOf".to_owned(), json!([reference]));
                }
                return;
            }
            object.values_mut().for_each(refer_v3);
        }
        Value::Array(items) => items.iter_mut().for_each(refer_v3),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_is_whole() {
        let document = v2("v1.36.0");
        let definitions = document["definitions"].as_object().unwrap();
        let mut names = BTreeSet::new();
        references(&document, V2_PREFIX, &mut names);
        let missing: Vec<_> = names.iter().filter(|name| !definitions.contains_key(*name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        for resource in crate::resource::RESOURCES {
            assert!(definitions.contains_key(resource.definition), "{}", resource.definition);
        }
        let pod = &definitions["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
        assert!(pod["description"].as_str().unwrap().starts_with("Pod is a collection of containers"));
        let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    }

    #[test]
    fn patches_can_be_validated_by_the_server() {
        for (document, path) in [
            (v2("v1.36.0"), "/api/v1/namespaces/{namespace}/pods/{name}"),
            (v3("api/v1", "v1.36.0").unwrap(), "/api/v1/namespaces/{namespace}/pods/{name}"),
            (v3("apis/apps/v1", "v1.36.0").unwrap(), "/apis/apps/v1/namespaces/{namespace}/deployments/{name}"),
        ] {
            let patch = &document["paths"][path]["patch"];
            assert_eq!(patch["x-kubernetes-action"], "patch");
            assert!(patch["x-kubernetes-group-version-kind"]["kind"].is_string());
            let parameters = patch["parameters"].as_array().unwrap();
            for name in ["fieldValidation", "dryRun", "fieldManager"] {
                assert!(parameters.iter().any(|parameter| parameter["name"] == name), "{path} {name}");
            }
        }
    }

    #[test]
    fn v3_documents_are_whole() {
        assert!(v3("apis/nothing/v1", "v").is_none());
        for (path, hash) in v3_paths() {
            let document = v3(&path, "v1.36.0").unwrap();
            assert_eq!(hash.len(), 8);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let mut names = BTreeSet::new();
            references(&document, V3_PREFIX, &mut names);
            assert!(names.iter().all(|name| schemas.contains_key(name)), "{path}");
            let mut old = BTreeSet::new();
            references(&document, V2_PREFIX, &mut old);
            assert!(old.is_empty(), "{path} {old:?}");
        }
        let apps = v3("apis/apps/v1", "v1.36.0").unwrap();
        let spec = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
        assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec");
    }

    #[test]
    fn definitions_are_of_the_version_that_is_built_against() {
        let version = |lock: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(lock);
            let text = std::fs::read_to_string(path).unwrap();
            let after = text.split("name = \"k8s-openapi\"\nversion = \"").nth(1).unwrap().to_owned();
            after.split('"').next().unwrap().to_owned()
        };
        assert_eq!(version("../Cargo.lock"), version("openapi-gen/Cargo.lock"), "run openapi-gen again");
    }
}
