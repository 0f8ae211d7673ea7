//! The schemas of everything, for clients: OpenAPI v2 as JSON and as protobuf (all that old kubectls take), v3 by group.
//!
//! Documents are large and rarely asked for, but by some clients on every call. Each is made once, when it is first
//! asked for, and kept compressed; most clients take it compressed too.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bosun_api::openapi;
use bosun_api::status::ApiError;
use bosun_kit::http::{Body, full};
use bosun_kit::version::GIT_VERSION;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::codec::{Accept, answer};
use crate::request::Query;

/// Old clients ask for `…spec.v2@v1.0+protobuf`, which is no media type: they are answered with the one that is.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Documents that have been asked for, compressed.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    made: Mutex<HashMap<Document, Bytes>>,
}

/// One document in one encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Document {
    V2Json,
    V2Protobuf,
    V3(String),
}

impl Document {
    fn make(&self) -> Option<Bytes> {
        let plain = match self {
            Self::V2Json => openapi::v2_json(GIT_VERSION),
            Self::V2Protobuf => bosun_gnostic::encode(&openapi::v2(GIT_VERSION)),
            Self::V3(path) => openapi::v3_json(path, GIT_VERSION)?,
        };
        let mut packed = GzEncoder::new(Vec::new(), Compression::new(6));
        packed.write_all(&plain).ok()?;
        packed.finish().ok().map(Bytes::from)
    }

    fn content_type(&self) -> &'static str {
        match self {
            Self::V2Protobuf => PROTOBUF,
            _ => "application/json",
        }
    }
}

impl Documents {
    /// Answer below `/openapi`.
    ///
    /// # Errors
    /// 404 for documents that there are not.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        path: &[&str],
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Response<Body>, ApiError> {
        let accepted = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let document = match path {
            ["v2"] => first_of(accepted),
            ["v3"] => return Ok(index()),
            ["v3", rest @ ..] => Document::V3(rest.join("/")),
            _ => return Err(ApiError::no_such_path()),
        };
        let documents = self.clone();
        let wanted = document.clone();
        let packed = tokio::task::spawn_blocking(move || documents.packed(&wanted))
            .await
            .map_err(ApiError::internal)?
            .ok_or_else(ApiError::no_such_path)?;
        Ok(respond(&document, packed, headers, query.get("hash").is_some()))
    }

    fn packed(&self, document: &Document) -> Option<Bytes> {
        // Made under the lock: two clients at once must not cost the memory of two.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = made.get(document) {
            return Some(packed.clone());
        }
        let packed = document.make();
        bosun_kit::memory::give_back();
        let packed = packed?;
        made.insert(document.clone(), packed.clone());
        Some(packed)
    }
}

/// JSON or protobuf, whichever the client names first.
fn first_of(accepted: &str) -> Document {
    let kind = |clause: &str| match clause.split(';').next().unwrap_or_default().trim() {
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
        | "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" => Some(Document::V2Protobuf),
        "application/json" | "*/*" | "application/*" => Some(Document::V2Json),
        _ => None,
    };
    accepted.split(',').find_map(kind).unwrap_or(Document::V2Json)
}

fn index() -> Response<Body> {
    let paths: Map<String, Value> = openapi::v3_paths()
        .into_iter()
        .map(|(path, hash)| {
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    answer(StatusCode::OK, Accept::JSON, &json!({"paths": paths}))
}

fn respond(document: &Document, packed: Bytes, headers: &HeaderMap, hashed: bool) -> Response<Body> {
    let compressed = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|coding| coding.trim().split(';').next() == Some("gzip")));
    let body = match compressed {
        true => packed,
        false => unpack(&packed),
    };
    let mut response = Response::new(full(body));
    let mut set = |name: HeaderName, value: &'static str| {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_TYPE, document.content_type());
    set(header::VARY, "Accept-Encoding, Accept");
    if compressed {
        set(header::CONTENT_ENCODING, "gzip");
    }
    // A document that was asked for by its hash is that document for ever.
    set(header::CACHE_CONTROL, if hashed { "public, immutable, max-age=31536000" } else { "no-cache, private" });
    response
}

fn unpack(packed: &[u8]) -> Bytes {
    let mut plain = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut plain).expect("what was packed here is unpacked here");
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_clients_get_protobuf_and_others_json() {
        assert_eq!(first_of("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), Document::V2Protobuf);
        assert_eq!(first_of("application/json, */*"), Document::V2Json);
        assert_eq!(first_of(""), Document::V2Json);
    }
}
