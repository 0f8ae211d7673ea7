//! Patches as they come in a request's body.

use bosun_api::patch::{PatchType, apply};
use bosun_api::status::ApiError;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

use crate::codec::media_type;

/// A patch that may be applied more than once, until nobody else writes in between.
#[derive(Debug)]
pub(crate) struct Patch {
    kind: PatchType,
    body: Bytes,
}

impl Patch {
    /// # Errors
    /// 415 for a media type that is no patch, or none that can be applied here.
    pub(crate) fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, ApiError> {
        match PatchType::from_content_type(media_type(headers)) {
            None | Some(PatchType::Apply) => Err(ApiError::unsupported_media_type(PatchType::ACCEPTED)),
            Some(kind) => Ok(Self { kind, body: body.clone() }),
        }
    }

    /// The patched object.
    ///
    /// # Errors
    /// 400 for a patch that is none, 422 for one that does not fit the object.
    pub(crate) fn apply(&self, definition: &str, object: Value) -> Result<Value, ApiError> {
        apply(self.kind, definition, object, &self.body)
    }
}
