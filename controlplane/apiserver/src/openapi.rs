//! The schemas of everything, for clients.

use bosun_api::status::ApiError;
use bosun_kit::http::Body;
use http::{Request, Response};

use crate::request::Query;

/// Answer below `/openapi`.
pub(crate) fn answer(_path: &[&str], _request: &Request<Body>, _query: &Query) -> Result<Response<Body>, ApiError> {
    Err(ApiError::no_such_path())
}
