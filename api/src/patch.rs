//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and the strategic merge patch.
//!
//! A strategic merge patch is a merge patch that knows from the type's table which lists are merged and by which key.

mod strategic;

use serde_json::{Map, Value};

use crate::schema;
use crate::status::ApiError;

/// A JSON patch may have this many operations.
pub const MAX_OPERATIONS: usize = 10_000;

/// The form of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml` or `+cbor`
    Apply,
}

impl PatchType {
    /// The media types of the patches that can be applied here.
    pub const ACCEPTED: &'static str =
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

    /// The form that a `Content-Type` names; parameters are ignored.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        Some(match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" => Self::Strategic,
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Self::Apply,
            _ => return None,
        })
    }
}

/// Applies a patch to an object whose type has the given full name (see [`crate::resource::Resource::definition`]).
///
/// The result is as the patch made it: decode it by its type before it is used.
///
/// # Errors
/// 400 for a patch that cannot be read, 413 for one with too many operations, 415 for server-side apply, 422 for one that
/// does not fit the object.
pub fn apply(kind: PatchType, definition: &str, object: Value, patch: &[u8]) -> Result<Value, ApiError> {
    match kind {
        PatchType::Json => json(object, patch),
        PatchType::Merge => {
            let mut object = object;
            merge(&mut object, read(patch)?);
            Ok(object)
        }
        PatchType::Strategic => {
            let Value::Object(patch) = read(patch)? else { return Err(ApiError::bad_request("invalid JSON document")) };
            strategic::merge(object, patch, schema::definition(definition))
        }
        PatchType::Apply => Err(ApiError::unsupported_media_type(PatchType::ACCEPTED)),
    }
}

fn read(patch: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(patch).map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
}

/// What a stock server answers to a patch that does not fit.
fn does_not_fit(why: &str) -> ApiError {
    ApiError::unprocessable("the server rejected our request due to an error in our request").with_cause("", why, "")
}

fn json(mut object: Value, patch: &[u8]) -> Result<Value, ApiError> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    let count = patch.0.len();
    if count > MAX_OPERATIONS {
        let message = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}");
        return Err(ApiError::too_large_body(message));
    }
    json_patch::patch(&mut object, &patch).map_err(|error| does_not_fit(&error.to_string()))?;
    Ok(object)
}

/// Applies a JSON merge patch: nulls remove, objects merge, the rest replaces.
pub fn merge(object: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *object = patch;
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    if let Some(object) = object.as_object_mut() {
        for (key, value) in patch {
            if value.is_null() {
                object.remove(&key);
            } else {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn strategic(object: Value, patch: &Value) -> Value {
        apply(PatchType::Strategic, "io.k8s.api.apps.v1.Deployment", object, patch.to_string().as_bytes()).unwrap()
    }

    fn containers(items: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": items}}}})
    }

    #[test]
    fn content_types() {
        assert_eq!(PatchType::from_content_type("application/merge-patch+json; charset=utf-8"), Some(PatchType::Merge));
        assert_eq!(PatchType::from_content_type("application/json"), None);
    }

    #[test]
    fn json_patches() {
        let run = |patch: Value| apply(PatchType::Json, "", json!({"a": {"b": [1]}}), patch.to_string().as_bytes());
        assert_eq!(run(json!([{"op": "add", "path": "/a/b/-", "value": 2}])).unwrap(), json!({"a": {"b": [1, 2]}}));
        assert_eq!(run(json!([{"op": "test", "path": "/a", "value": 2}])).unwrap_err().code(), 422);
        assert_eq!(run(json!({})).unwrap_err().code(), 400);
        let many: Vec<_> = (0..=MAX_OPERATIONS).map(|_| json!({"op": "remove", "path": "/a"})).collect();
        let error = run(Value::Array(many)).unwrap_err();
        assert_eq!(error.message(), "The allowed maximum operations in a JSON patch is 10000, got 10001");
        assert_eq!(error.code(), 413);
    }

    #[test]
    fn merge_patches() {
        let patch = br#"{"a": null, "c": {"d": 1, "e": null}, "l": [2]}"#;
        let patched = apply(PatchType::Merge, "", json!({"a": 1, "b": 2, "l": [1]}), patch).unwrap();
        assert_eq!(patched, json!({"b": 2, "c": {"d": 1}, "l": [2]}));
    }

    #[test]
    fn lists_merge_by_their_key() {
        let old = containers(json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]));
        let patch = containers(json!([
            {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]},
            {"name": "c", "tty": null},
        ]));
        let new = strategic(old.clone(), &patch);
        assert_eq!(
            new,
            containers(json!([
                {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
                {"name": "c"},
                {"name": "b"},
            ]))
        );
        assert_eq!(
            strategic(old.clone(), &containers(json!([{"name": "a", "$patch": "delete"}]))),
            containers(json!([{"name": "b"}]))
        );
        let replaced = strategic(old, &containers(json!([{"$patch": "replace"}, {"name": "z"}])));
        assert_eq!(replaced, containers(json!([{"name": "z"}])));
    }

    #[test]
    fn directives() {
        let old = json!({"metadata": {"finalizers": ["a", "b", "c"], "labels": {"x": "1", "y": "2"}},
            "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let new = strategic(
            old.clone(),
            &json!({
                "metadata": {
                    "$deleteFromPrimitiveList/finalizers": ["b"],
                    "$setElementOrder/finalizers": ["d", "a"],
                    "finalizers": ["d"],
                    "labels": {"x": null, "z": "3"},
                },
                "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}},
            }),
        );
        assert_eq!(
            new,
            json!({"metadata": {"finalizers": ["d", "a", "c"], "labels": {"y": "2", "z": "3"}},
                "spec": {"strategy": {"type": "Recreate"}}})
        );
        let replaced = strategic(old.clone(), &json!({"metadata": {"$patch": "replace", "name": "n"}}));
        assert_eq!(replaced["metadata"], json!({"name": "n"}));
        let emptied = strategic(old, &json!({"metadata": {"labels": {"$patch": "delete"}}}));
        assert_eq!(emptied["metadata"]["labels"], json!({}));
    }

    #[test]
    fn element_order_moves_items() {
        let old = containers(json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]));
        let patch =
            json!({"spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}}}});
        assert_eq!(strategic(old, &patch), containers(json!([{"name": "b"}, {"name": "c"}, {"name": "a"}])));
    }

    #[test]
    fn plain_lists_and_bad_patches() {
        let old = json!({"spec": {"template": {"spec": {"tolerations": [{"key": "a"}]}}}});
        let patch = json!({"spec": {"template": {"spec": {"tolerations": [{"key": "b"}]}}}});
        assert_eq!(strategic(old, &patch)["spec"]["template"]["spec"]["tolerations"], json!([{"key": "b"}]));
        let error = apply(
            PatchType::Strategic,
            "io.k8s.api.core.v1.Pod",
            json!({"spec": {"containers": [{"name": "a"}]}}),
            br#"{"spec": {"containers": [{"image": "x"}]}}"#,
        )
        .unwrap_err();
        assert_eq!(error.code(), 422);
        assert!(error.0.details.unwrap().causes.unwrap()[0].message.as_ref().unwrap().contains("merge key: name"));
    }
}
