//! One authenticated request to a resource, with what its handlers need.

use std::sync::{Mutex, PoisonError};

use bosun_api::resource::Resource;
use bosun_api::schema::{self, DecodeError, Decoded};
use bosun_api::status::ApiError;
use bosun_kit::http::{Body, full, stream};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use crate::codec::{self, Accept, Shape};
use crate::object::Raw;
use crate::request::{Query, RequestInfo};
use crate::{convert, table};

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
    pub(crate) fn decode(&self, kind: &Kind<'_>, body: &[u8]) -> Result<Value, ApiError> {
        if codec::is_json(&self.headers) {
            let decoded = schema::decode_bytes(kind.definition, body);
            return self.finish(kind, decoded, || codec::parse_json(body).unwrap_or_default());
        }
        self.decode_value(kind, codec::parse(&self.headers, body)?)
    }

    /// As [`Call::decode`], of the call's own resource.
    pub(crate) fn decode_own(&self, body: &[u8]) -> Result<Value, ApiError> {
        self.decode(&Kind::of(self.resource), body)
    }

    /// As [`Call::decode`], of an object that has been parsed.
    pub(crate) fn decode_value(&self, kind: &Kind<'_>, value: Value) -> Result<Value, ApiError> {
        kind.check(&value)?;
        let decoded = schema::decode_value(kind.definition, value);
        self.finish(kind, decoded, || Value::Null)
    }

    fn finish(
        &self,
        kind: &Kind<'_>,
        decoded: Result<Decoded, DecodeError>,
        raw: impl FnOnce() -> Value,
    ) -> Result<Value, ApiError> {
        let refusal = |error: &dyn std::fmt::Display| schema::refusal(kind.kind, kind.version, &error);
        let mut decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                // An object of another kind is better called that than wrong in one field.
                kind.check(&raw())?;
                return Err(refusal(&error));
            }
        };
        kind.check(&decoded.object)?;
        match self.query.get("fieldValidation").unwrap_or("Warn") {
            "Ignore" => {}
            "Strict" => {
                if let Some(error) = decoded.strict_error() {
                    return Err(refusal(&error));
                }
            }
            _ => decoded.unknown.drain(..).for_each(|text| self.warn(text)),
        }
        if let Some(object) = decoded.object.as_object_mut() {
            object.insert("kind".into(), kind.kind.into());
            object.insert("apiVersion".into(), kind.api_version().into());
        }
        Ok(decoded.object)
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

/// A kind that a body must be of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    pub(crate) kind: &'a str,
    /// The name of its schema.
    pub(crate) definition: &'a str,
}

impl<'a> Kind<'a> {
    pub(crate) const BINDING: Kind<'static> =
        Kind { group: "", version: "v1", kind: "Binding", definition: "io.k8s.api.core.v1.Binding" };
    pub(crate) const EVICTION: Kind<'static> =
        Kind { group: "policy", version: "v1", kind: "Eviction", definition: "io.k8s.api.policy.v1.Eviction" };
    pub(crate) const SCALE: Kind<'static> =
        Kind { group: "autoscaling", version: "v1", kind: "Scale", definition: "io.k8s.api.autoscaling.v1.Scale" };
    pub(crate) const TOKEN_REQUEST: Kind<'static> = Kind {
        group: "authentication.k8s.io",
        version: "v1",
        kind: "TokenRequest",
        definition: "io.k8s.api.authentication.v1.TokenRequest",
    };

    pub(crate) fn of(resource: &'a Resource) -> Self {
        let Resource { group, version, kind, definition, .. } = resource;
        Self { group, version, kind, definition }
    }

    fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// What a body says it is must be this, if it says so at all: the path says it too.
    fn check(&self, value: &Value) -> Result<(), ApiError> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, version, wanted) = (text("kind"), text("apiVersion"), self.api_version());
        match (kind.is_empty(), version.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Err(ApiError::bad_request(format!("Object 'Kind' is missing in '{value}'"))),
            (false, _) if version != wanted => Err(ApiError::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({wanted})"
            ))),
            (false, _) if kind != self.kind => Err(ApiError::bad_request(format!(
                "{kind} in version {:?} cannot be handled as a {}: converting ({wanted}.{kind}) to ({wanted}.{}): \
                 unknown conversion",
                self.version, self.kind, self.kind
            ))),
            (false, _) => Ok(()),
        }
    }
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
