//! One authenticated request to a resource, with what its handlers need.

use std::sync::{Mutex, PoisonError};

use bosun_api::resource::Resource;
use bosun_api::status::ApiError;
use bosun_kit::http::{Body, full, stream};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use crate::codec::{self, Accept, Shape};
use crate::object::Raw;
use crate::request::{Query, RequestInfo};
use crate::{convert, table, typed};

/// One request to a resource.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) resource: &'static Resource,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) user: UserInfo,
    pub(crate) accept: Accept,
    pub(crate) dry_run: bool,
    warnings: Mutex<Vec<String>>,
}

impl Call {
    pub(crate) fn new(
        resource: &'static Resource,
        info: RequestInfo,
        query: Query,
        headers: HeaderMap,
        user: UserInfo,
    ) -> Result<Self, ApiError> {
        let accept = Accept::negotiate(&headers)?;
        let dry_run = crate::request::dry_run(&query)?;
        Ok(Self { resource, info, query, headers, user, accept, dry_run, warnings: Mutex::default() })
    }

    /// A write that the server makes on its own behalf.
    pub(crate) fn internal(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        let info = RequestInfo {
            is_resource: true,
            group: resource.group.into(),
            version: resource.version.into(),
            resource: resource.plural.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        Self {
            resource,
            info,
            query: Query::default(),
            headers: HeaderMap::new(),
            user: crate::authn::server_itself(),
            accept: Accept::JSON,
            dry_run: false,
            warnings: Mutex::default(),
        }
    }

    pub(crate) fn warn(&self, text: impl Into<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text.into();
        if warnings.len() < 32 && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The namespace in which objects of the resource are; empty for cluster-scoped ones, also for namespaces
    /// themselves, whose path carries one.
    pub(crate) fn namespace(&self) -> &str {
        if self.resource.namespaced { &self.info.namespace } else { "" }
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(self.resource.group, self.resource.plural, &self.info.name)
    }

    pub(crate) fn conflict(&self) -> ApiError {
        ApiError::modified(self.resource.group, self.resource.plural, &self.info.name)
    }

    pub(crate) fn forbidden(&self, why: &str) -> ApiError {
        ApiError::forbidden(self.resource.group, self.resource.plural, &self.info.name, why)
    }

    /// The object in a request's body, which must be of this kind; strict about fields as the client wants.
    ///
    /// # Errors
    /// 400 and 415, in stock's words.
    pub(crate) fn decode(&self, group: &str, version: &str, kind: &str, body: &[u8]) -> Result<Value, ApiError> {
        let value = codec::parse(&self.headers, body)?;
        self.check_value(group, version, kind, value)
    }

    /// As [`Call::decode`], of the call's own resource.
    pub(crate) fn decode_own(&self, body: &[u8]) -> Result<Value, ApiError> {
        self.decode(self.resource.group, self.resource.version, self.resource.kind, body)
    }

    /// Look at an object through its type: of the right kind, nothing unknown unless that is allowed.
    pub(crate) fn check_value(
        &self,
        group: &str,
        version: &str,
        kind: &str,
        mut value: Value,
    ) -> Result<Value, ApiError> {
        let wanted = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        let Some(object) = value.as_object_mut() else {
            return Err(ApiError::bad_request("couldn't get version/kind; json parse error: expected an object"));
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (found_kind, found) = (text("kind"), text("apiVersion"));
        if found_kind.is_empty() && found.is_empty() {
            // Allowed, as stock allows it: the path says what it is.
            object.insert("kind".into(), kind.into());
            object.insert("apiVersion".into(), wanted.clone().into());
        } else if found_kind.is_empty() {
            let shown = Value::Object(object.clone());
            return Err(ApiError::bad_request(format!("Object 'Kind' is missing in '{shown}'")));
        } else if found != wanted {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({found}) does not match the expected API version ({wanted})"
            )));
        } else if found_kind != kind {
            return Err(ApiError::bad_request(format!(
                "{found_kind} in version \"{version}\" cannot be handled as a {kind}: converting \
                 ({wanted}.{found_kind}) to ({wanted}.{kind}): unknown conversion"
            )));
        }
        let handled = |why: String| {
            ApiError::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
        };
        let decoded = typed::decode(group, version, kind, value)
            .ok_or_else(|| handled(format!("no kind \"{kind}\" is registered for version \"{wanted}\"")))?
            .map_err(handled)?;
        self.check_unknown(&decoded.unknown).map_err(handled)?;
        Ok(decoded.value)
    }

    fn check_unknown(&self, unknown: &[String]) -> Result<(), String> {
        if unknown.is_empty() {
            return Ok(());
        }
        let texts = unknown.iter().map(|path| format!("unknown field \"{path}\""));
        match self.query.get("fieldValidation").unwrap_or("Warn") {
            "Ignore" => Ok(()),
            "Strict" => Err(format!("strict decoding error: {}", texts.collect::<Vec<_>>().join(", "))),
            _ => {
                texts.for_each(|text| self.warn(text));
                Ok(())
            }
        }
    }

    /// Answer with one object.
    pub(crate) fn object(&self, status: StatusCode, raw: &Raw) -> Response<Body> {
        if self.accept == Accept::JSON && std::ptr::eq(self.resource.stored_as(), self.resource) {
            return codec::answer_bytes(status, full(raw.to_bytes()));
        }
        let value = convert::from_stored(self.resource, raw.value());
        self.value(status, value)
    }

    /// Answer with one object, in the form that the client wants.
    pub(crate) fn value(&self, status: StatusCode, value: Value) -> Response<Body> {
        let shaped = match self.accept.shape {
            Shape::Full => value,
            Shape::Metadata => metadata_only(&value),
            Shape::Table => {
                let revision = value["metadata"]["resourceVersion"].clone();
                let rows = [value];
                table::render(self.resource, &rows, self.include_object(), json!({"resourceVersion": revision}))
            }
        };
        codec::answer(status, self.accept, &shaped)
    }

    /// How much of the object a table's row carries.
    pub(crate) fn include_object(&self) -> &str {
        self.query.get("includeObject").unwrap_or("Metadata")
    }

    /// Answer with a list of the resource's kind.
    pub(crate) fn list(&self, objects: Vec<Raw>, metadata: &Value) -> Response<Body> {
        let plain = self.accept == Accept::JSON && std::ptr::eq(self.resource.stored_as(), self.resource);
        if plain {
            let kind = self.resource.list_kind();
            let head = format!(
                "{{\"kind\":\"{kind}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                self.resource.api_version()
            );
            return codec::answer_bytes(StatusCode::OK, list_body(head, objects));
        }
        let values = objects.iter().map(|raw| convert::from_stored(self.resource, raw.value()));
        let shaped = match self.accept.shape {
            Shape::Table => {
                let rows: Vec<Value> = values.collect();
                table::render(self.resource, &rows, self.include_object(), metadata.clone())
            }
            Shape::Metadata => json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": values.map(|v| metadata_only(&v)).collect::<Vec<_>>()}),
            Shape::Full => json!({"kind": self.resource.list_kind(), "apiVersion": self.resource.api_version(),
                "metadata": metadata, "items": values.collect::<Vec<_>>()}),
        };
        codec::answer(StatusCode::OK, self.accept, &shaped)
    }
}

/// `PartialObjectMetadata` of an object.
pub(crate) fn metadata_only(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// Lists longer than this are encoded piece by piece as the client takes them.
const PIECE: usize = 64 * 1024;

fn list_body(head: String, objects: Vec<Raw>) -> Body {
    let mut objects = objects.into_iter().peekable();
    let mut piece = move |mut out: Vec<u8>, first: bool| -> (Bytes, bool) {
        let mut comma = !first;
        while out.len() < PIECE {
            let Some(raw) = objects.next() else {
                out.extend_from_slice(b"]}");
                return (out.into(), true);
            };
            if comma {
                out.push(b',');
            }
            comma = true;
            raw.write_item(&mut out);
        }
        (out.into(), false)
    };
    let (first, done) = piece(head.into_bytes(), true);
    if done {
        return full(first);
    }
    let rest = std::iter::from_fn({
        let mut done = false;
        move || {
            if done {
                return None;
            }
            let (bytes, last) = piece(Vec::with_capacity(PIECE + 4096), false);
            done = last;
            Some(Ok(bytes))
        }
    });
    stream(futures::stream::iter(std::iter::once(Ok(first)).chain(rest)))
}
