//! Patches as they come in a request's body.

use bosun_api::resource::Resource;
use bosun_api::status::ApiError;
use http::HeaderMap;
use serde_json::Value;

use crate::codec::{media_type, parse_json};

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
                        application/strategic-merge-patch+json";
/// A JSON patch has at most this many operations.
const OPERATIONS: usize = 10_000;

/// A patch that has been read.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// # Errors
    /// 415 for a media type that is no patch, 400 for a body that is none, 413 for too many operations.
    pub(crate) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        match media_type(headers) {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(body)
                    .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
                if patch.0.len() > OPERATIONS {
                    return Err(ApiError::too_large_body(format!(
                        "The allowed maximum operations in a JSON patch is {OPERATIONS}, got {}",
                        patch.0.len()
                    )));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => Ok(Self::Merge(object(body)?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(object(body)?)),
            _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
        }
    }

    /// The patched object.
    ///
    /// # Errors
    /// 422 for a patch that does not fit the object.
    pub(crate) fn apply(&self, resource: &Resource, mut object: Value) -> Result<Value, ApiError> {
        match self {
            Self::Json(patch) => {
                json_patch::patch(&mut object, patch).map_err(|e| {
                    ApiError::unprocessable(format!(
                        "the server rejected our request due to an error in our request: {e}"
                    ))
                })?;
            }
            Self::Merge(patch) => json_patch::merge(&mut object, patch),
            Self::Strategic(patch) => return crate::rules::strategic_merge(resource, object, patch),
        }
        Ok(object)
    }
}

fn object(body: &[u8]) -> Result<Value, ApiError> {
    let value = parse_json(body)?;
    match value.is_object() {
        true => Ok(value),
        false => Err(ApiError::bad_request("error decoding patch: expected an object")),
    }
}
