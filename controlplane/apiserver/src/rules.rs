//! The rules of the object model, as the `api` crate has them: defaults, validation, strategic merge.

use bosun_api::resource::Resource;
use bosun_api::status::ApiError;
use serde_json::Value;

use crate::strategy::Part;

/// Fill in what the client left out.
pub(crate) fn default(_resource: &Resource, _value: &mut Value) {}

/// # Errors
/// 422 with all causes.
pub(crate) fn validate_create(resource: &Resource, value: &Value) -> Result<(), ApiError> {
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        let cause = k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause {
            field: Some("metadata.name".into()),
            message: Some("Required value: name or generateName is required".into()),
            reason: Some("FieldValueRequired".into()),
        };
        return Err(ApiError::invalid(resource.group, resource.kind, name, vec![cause]));
    }
    Ok(())
}

/// # Errors
/// 422 with all causes.
pub(crate) fn validate_update(_resource: &Resource, _part: Part, _new: &Value, _old: &Value) -> Result<(), ApiError> {
    Ok(())
}

/// # Errors
/// 415 until strategic merge is there.
pub(crate) fn strategic_merge(_resource: &Resource, _object: Value, _patch: &Value) -> Result<Value, ApiError> {
    Err(ApiError::unsupported_media_type("application/json-patch+json, application/merge-patch+json"))
}
