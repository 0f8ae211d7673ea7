//! Objects in protobuf, as clients with generated types send them, read as JSON.
//!
//! A body is four bytes of magic and a `runtime.Unknown`, which names the object's kind and carries its encoding. What
//! the numbers in that mean is in `openapi/wire.txt`: one line a type of `openapi/types.txt`, with each field's number.
//!
//! - `hostPath=2.1` is a field of a struct that JSON has no level for: field 1 of what field 2 holds.
//! - `replicas=1?` stays when it is zero, be it that its absence means something else or that JSON always has it. All
//!   others vanish then: on the wire a plain field is always there, so that zero says nothing.
//!
//! What comes out has not been checked: it is decoded by [`crate::schema`], as JSON from elsewhere is. Format: the API
//! conventions' "Protobuf encoding idiom", and the `protobuf` tags in the Go types.

mod message;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use serde_json::{Map, Value};

use crate::resource::split_api_version;
use crate::schema::definition;
use wire::{Reader, Wire};

/// The media type of an encoded object.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every encoded object begins with.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// How deep an object may nest. The API's own types stay far below.
const MAX_DEPTH: u32 = 64;

/// Why bytes are not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The magic is missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    NoMagic,
    /// The bytes end within a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A number has more than 64 bits, or a field's number is none.
    #[error("proto: integer overflow")]
    Overflow,
    /// There is no such type on the wire.
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    /// A field is encoded in another way than its type.
    #[error("proto: wrong wireType for field {0}")]
    Mismatch(&'static str),
    /// A text is not UTF-8.
    #[error("field {0} contains invalid UTF-8")]
    Utf8(&'static str),
    /// A value has no form in JSON, such as a time out of range.
    #[error("field {0} has a value out of range")]
    Range(&'static str),
    /// Raw JSON within the object does not parse.
    #[error("field {field}: {why}")]
    Json {
        /// The field that holds it.
        field: &'static str,
        /// What the parser says.
        why: String,
    },
    /// Structs are nested too deep.
    #[error("exceeded max depth")]
    Depth,
    /// The object is compressed, or otherwise not plain.
    #[error("content encoding {0:?} is not supported")]
    Encoding(String),
    /// The body does not say what it is.
    #[error("Object 'Kind' is missing")]
    NoKind,
    /// The body says that it is something nobody knows.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// Its group and version.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// The table has no such type.
    #[error("no type is named {0}")]
    NoSuchType(String),
}

/// The object in a body, with `apiVersion` and `kind` as the body names them.
///
/// # Errors
/// In words for the client, when the body is malformed or of a kind that nobody knows.
pub fn decode_body(body: &[u8]) -> Result<Value, DecodeError> {
    decode_nested(body, MAX_DEPTH)
}

/// An encoded object of a type, by its full name, as JSON. Fields that nobody knows are skipped.
///
/// # Errors
/// When the table has no such type, or the bytes are malformed.
pub fn to_json(name: &str, bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut object = Map::new();
    message::read(table::message(name)?, bytes, &mut object, MAX_DEPTH)?;
    Ok(Value::Object(object))
}

/// `runtime.Unknown`
#[derive(Default)]
struct Unknown<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    encoding: &'a str,
}

impl<'a> Unknown<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut unknown = Self::default();
        for field in Reader::new(bytes) {
            match field? {
                (1, wire) => unknown.read_type(wire)?,
                (2, wire) => unknown.raw = wire.bytes("raw")?,
                (3, wire) => unknown.encoding = wire.text("contentEncoding")?,
                _ => {}
            }
        }
        Ok(unknown)
    }

    fn read_type(&mut self, wire: Wire<'a>) -> Result<(), DecodeError> {
        for field in Reader::new(wire.bytes("typeMeta")?) {
            match field? {
                (1, wire) => self.api_version = wire.text("apiVersion")?,
                (2, wire) => self.kind = wire.text("kind")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn decode_nested(body: &[u8], depth: u32) -> Result<Value, DecodeError> {
    let bytes = body.strip_prefix(&MAGIC).ok_or(DecodeError::NoMagic)?;
    let unknown = Unknown::read(bytes)?;
    if !unknown.encoding.is_empty() {
        return Err(DecodeError::Encoding(unknown.encoding.to_owned()));
    }
    if unknown.kind.is_empty() {
        return Err(DecodeError::NoKind);
    }
    let name = type_name(unknown.api_version, unknown.kind).ok_or_else(|| DecodeError::UnknownKind {
        api_version: unknown.api_version.to_owned(),
        kind: unknown.kind.to_owned(),
    })?;
    let mut object = Map::new();
    message::read(table::message(name)?, unknown.raw, &mut object, depth)?;
    object.insert("apiVersion".to_owned(), unknown.api_version.into());
    object.insert("kind".to_owned(), unknown.kind.into());
    Ok(Value::Object(object))
}

/// The full name of a kind's type. Kinds such as `DeleteOptions` are in every group.
fn type_name(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = split_api_version(api_version);
    let package = match group.split_once('.') {
        None if group.is_empty() => "core",
        None => group,
        Some((package, rest)) if rest == "k8s.io" || rest.ends_with(".k8s.io") => package,
        Some(_) => return None,
    };
    let own = definition(&format!("io.k8s.api.{package}.{version}.{kind}"));
    let meta = || definition(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    own.or_else(meta).map(|definition| definition.name)
}
