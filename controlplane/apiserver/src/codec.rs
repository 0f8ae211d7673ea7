//! Bodies in and out: media types, size limits, and the forms in which objects are answered.

use std::time::Duration;

use bosun_api::protobuf;
use bosun_api::status::ApiError;
use bosun_kit::http::{Body, full};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

/// The largest request body.
pub(crate) const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// A client must have sent its body within this.
const BODY_DEADLINE: Duration = Duration::from_secs(60);
/// What is answered; bodies may be protobuf too.
const ANSWERED: &str = "application/json, application/yaml";
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The form in which the client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Full,
    Table,
    /// `PartialObjectMetadata`
    Metadata,
}

/// What the client accepts, and we give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) yaml: bool,
    pub(crate) shape: Shape,
}

impl Accept {
    pub(crate) const JSON: Self = Self { yaml: false, shape: Shape::Full };

    /// The first media type in the client's list that can be given.
    ///
    /// # Errors
    /// 406 if there is none.
    pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut any = false;
        for value in headers.get_all(header::ACCEPT) {
            let Ok(text) = value.to_str() else { continue };
            for clause in text.split(',').map(str::trim).filter(|c| !c.is_empty()) {
                any = true;
                if let Some(accept) = Self::clause(clause) {
                    return Ok(accept);
                }
            }
        }
        match any {
            false => Ok(Self::JSON),
            true => Err(ApiError::not_acceptable(ANSWERED)),
        }
    }

    fn clause(clause: &str) -> Option<Self> {
        let mut parts = clause.split(';').map(str::trim);
        let yaml = match parts.next()? {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let mut shape = Shape::Full;
        for part in parts {
            match part.split_once('=') {
                Some(("as", "Table")) => shape = Shape::Table,
                Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => shape = Shape::Metadata,
                Some(("as", _)) => return None,
                Some(("g", group)) if group != "meta.k8s.io" => return None,
                Some(("v", version)) if !matches!(version, "v1" | "v1beta1") => return None,
                _ => {}
            }
        }
        Some(Self { yaml, shape })
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(if self.yaml { "application/yaml" } else { "application/json" })
    }
}

/// The media type of a body, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The whole body.
///
/// # Errors
/// 413 if it is too large, 400 if the client breaks off.
pub(crate) async fn read_body(mut body: Body) -> Result<Bytes, ApiError> {
    let read = async {
        let mut first: Option<Bytes> = None;
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ApiError::bad_request(format!("reading the request body: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = all.len() + first.as_ref().map_or(0, Bytes::len) + data.len();
            if length > BODY_LIMIT {
                return Err(ApiError::too_large_body(format!("Request entity too large: limit is {BODY_LIMIT}")));
            }
            // Most bodies come in one piece, which then need not be copied.
            match first.take() {
                None if all.is_empty() => first = Some(data),
                None => all.extend_from_slice(&data),
                Some(before) => {
                    all.extend_from_slice(&before);
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.freeze()))
    };
    match tokio::time::timeout(BODY_DEADLINE, read).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::timeout("the request body did not arrive in time")),
    }
}

/// Whether a body is JSON; one without a media type is taken for it.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    matches!(media_type(headers), "application/json" | "" | "*/*")
}

/// The object in a body, as JSON, YAML or protobuf.
///
/// # Errors
/// 415 for other media types, 400 for what does not parse.
pub(crate) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    match media_type(headers) {
        _ if is_json(headers) => parse_json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => parse_yaml(body),
        protobuf::MEDIA_TYPE => {
            protobuf::decode_body(body).map_err(|e| ApiError::bad_request(format!("couldn't decode the body: {e}")))
        }
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

pub(crate) fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {e}")))
}

pub(crate) fn parse_yaml(body: &[u8]) -> Result<Value, ApiError> {
    serde_yaml_ng::from_slice(body).map_err(|e| ApiError::bad_request(format!("yaml: {e}")))
}

/// An answer with a JSON body that is already encoded.
pub(crate) fn answer_bytes(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, Accept::JSON.content_type());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer with a value, in the encoding that the client asked for.
pub(crate) fn answer(status: StatusCode, accept: Accept, value: &Value) -> Response<Body> {
    let bytes = match accept.yaml {
        true => serde_yaml_ng::to_string(value).map(String::into_bytes).map_err(|e| e.to_string()),
        false => serde_json::to_vec(value).map_err(|e| e.to_string()),
    };
    match bytes {
        Ok(bytes) => {
            let mut response = answer_bytes(status, full(bytes));
            response.headers_mut().insert(header::CONTENT_TYPE, accept.content_type());
            response
        }
        Err(error) => refuse(&ApiError::internal(error)),
    }
}

/// The answer to a request that is refused.
pub(crate) fn refuse(error: &ApiError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = answer_bytes(status, full(error.to_json()));
    let retry = error.0.details.as_ref().and_then(|d| d.retry_after_seconds).filter(|s| *s > 0);
    if let Some(seconds) = retry {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Append warnings as `Warning: 299 - "text"` headers.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &str) -> Result<Accept, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Accept::negotiate(&headers).map_err(|e| e.code())
    }

    #[test]
    fn the_first_acceptable_media_type_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(table), Ok(Accept { yaml: false, shape: Shape::Table }));
        assert_eq!(negotiate("application/vnd.kubernetes.protobuf,application/json"), Ok(Accept::JSON));
        assert_eq!(negotiate("application/json;as=Nothing;v=v1;g=meta.k8s.io,*/*"), Ok(Accept::JSON));
        assert_eq!(negotiate("application/yaml"), Ok(Accept { yaml: true, shape: Shape::Full }));
        assert_eq!(negotiate("application/vnd.kubernetes.protobuf"), Err(406));
    }
}
