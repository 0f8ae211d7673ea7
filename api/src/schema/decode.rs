//! Reading an object by its type.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::types::{Definition, Leaf, Type, definition};
use crate::quantity::Quantity;
use crate::resource::Resource;
use crate::status::ApiError;

/// Of a body with thousands of unknown fields, this many are told.
const MAX_TOLD: usize = 100;

/// Why a body is not an object of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The text is not JSON.
    #[error("{0}")]
    Syntax(String),
    /// A value has the wrong type. The text is a stock server's.
    #[error("{0}")]
    Type(String),
    /// The table has no such type.
    #[error("no type is named {0}")]
    NoSuchType(String),
}

/// An object in canonical form, and what was wrong with the text it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object, with known fields only.
    pub object: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`: a warning each, or together an error.
    pub unknown: Vec<String>,
}

impl Decoded {
    /// The error for a client that asked for strictness.
    #[must_use]
    pub fn strict_error(&self) -> Option<String> {
        (!self.unknown.is_empty()).then(|| format!("strict decoding error: {}", self.unknown.join(", ")))
    }
}

/// Decodes the body of a request for a resource.
///
/// # Errors
/// 400 in a stock server's words when the body is not JSON or has a value of a wrong type. Unknown fields are no error
/// here: see [`Decoded::unknown`].
pub fn decode(resource: &Resource, body: &[u8]) -> Result<Decoded, ApiError> {
    decode_bytes(resource.definition, body).map_err(|error| refusal(resource.kind, resource.version, &error))
}

/// The 400 that a stock server gives for a body it cannot handle.
#[must_use]
pub fn refusal(kind: &str, version: &str, error: &impl fmt::Display) -> ApiError {
    ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}"))
}

/// Decodes text by a type's full name.
///
/// # Errors
/// When the text is not JSON, or a value has the wrong type.
pub fn decode_bytes(name: &str, text: &[u8]) -> Result<Decoded, DecodeError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let decoded = run(name, &mut reader)?;
    reader.end().map_err(|error| DecodeError::Syntax(error.to_string()))?;
    Ok(decoded)
}

/// Decodes a value by a type's full name. Nothing is copied.
///
/// # Errors
/// When a value has the wrong type.
pub fn decode_value(name: &str, value: Value) -> Result<Decoded, DecodeError> {
    run(name, value)
}

fn run<'de, D>(name: &str, reader: D) -> Result<Decoded, DecodeError>
where
    D: Deserializer<'de>,
{
    let definition = definition(name).ok_or_else(|| DecodeError::NoSuchType(name.to_owned()))?;
    let mut state = State::default();
    let seed = Seed { ty: Place::Struct(definition), owner: None, state: &mut state };
    match seed.deserialize(reader) {
        Ok(object) => Ok(Decoded { object, unknown: state.told }),
        Err(error) => Err(match state.mismatch {
            Some(mismatch) => DecodeError::Type(mismatch),
            None => DecodeError::Syntax(error.to_string()),
        }),
    }
}

#[derive(Default)]
struct State {
    path: Vec<Step>,
    told: Vec<String>,
    mismatch: Option<String>,
}

enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

impl State {
    fn tell(&mut self, what: &str, field: &str) {
        if self.told.len() >= MAX_TOLD {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => push_dotted(&mut path, name),
                Step::Key(name) => push_dotted(&mut path, name),
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        push_dotted(&mut path, field);
        self.told.push(format!("{what} field {path:?}"));
    }
}

fn push_dotted(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// What is expected at a place.
#[derive(Clone, Copy)]
enum Place {
    Struct(&'static Definition),
    Type(&'static Type),
}

struct Seed<'s> {
    ty: Place,
    owner: Option<&'static Definition>,
    state: &'s mut State,
}

impl Seed<'_> {
    fn leaf(&self) -> Option<Leaf> {
        match self.ty {
            Place::Type(Type::Leaf(leaf)) => Some(*leaf),
            _ => None,
        }
    }

    fn fail<E: serde::de::Error>(self, message: String) -> E {
        self.state.mismatch.get_or_insert(message);
        E::custom("mismatch")
    }

    /// A value of another type than expected.
    fn mismatch<E: serde::de::Error>(self, found: &str) -> E {
        let ty = match self.ty {
            Place::Struct(definition) => definition.short_name().to_owned(),
            // These read their text themselves, as plain values.
            Place::Type(Type::Leaf(Leaf::Time | Leaf::MicroTime)) => "string".to_owned(),
            Place::Type(Type::Leaf(Leaf::IntOrString)) => "int32".to_owned(),
            Place::Type(ty) => ty.go_name(),
        };
        let fields: Vec<&str> = self
            .state
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(*name),
                _ => None,
            })
            .collect();
        let own = matches!(self.leaf(), Some(Leaf::Time | Leaf::MicroTime | Leaf::IntOrString));
        let message = match self.owner {
            Some(owner) if !own => {
                let field = fields.join(".");
                format!(
                    "json: cannot unmarshal {found} into Go struct field {}.{field} of type {ty}",
                    owner.short_name()
                )
            }
            _ => format!("json: cannot unmarshal {found} into Go value of type {ty}"),
        };
        self.fail(message)
    }

    fn number<E: serde::de::Error>(self, number: Number) -> Result<Value, E> {
        let whole = number.as_i64();
        match self.leaf() {
            Some(Leaf::Any | Leaf::Float) => Ok(Value::Number(number)),
            Some(Leaf::Int64) if whole.is_some() => Ok(Value::Number(number)),
            Some(Leaf::Int32 | Leaf::IntOrString) if whole.is_some_and(|whole| i32::try_from(whole).is_ok()) => {
                Ok(Value::Number(number))
            }
            Some(Leaf::Int32 | Leaf::Int64 | Leaf::IntOrString) => self.mismatch_number(&number),
            Some(Leaf::Quantity) => self.quantity(&number.to_string()),
            _ => Err(self.mismatch("number")),
        }
    }

    fn mismatch_number<E: serde::de::Error>(self, number: &Number) -> Result<Value, E> {
        // A float that is whole, such as 1.0, is no whole number to a stock server either.
        Err(self.mismatch(&format!("number {number}")))
    }

    fn quantity<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        match text.parse::<Quantity>() {
            Ok(quantity) => Ok(Value::String(quantity.to_string())),
            Err(error) => Err(self.fail(error.to_string())),
        }
    }

    fn text<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        match self.leaf() {
            Some(Leaf::String | Leaf::Any | Leaf::IntOrString) => Ok(Value::String(text)),
            Some(Leaf::Quantity) => self.quantity(&text),
            Some(Leaf::Bytes) => self.base64(text),
            Some(Leaf::Time) => self.time(&text, false),
            Some(Leaf::MicroTime) => self.time(&text, true),
            _ => Err(self.mismatch("string")),
        }
    }

    fn base64<E: serde::de::Error>(self, mut text: String) -> Result<Value, E> {
        if text.contains(['\r', '\n']) {
            text.retain(|c| c != '\r' && c != '\n');
        }
        match STANDARD.decode(&text) {
            Ok(_) => Ok(Value::String(text)),
            Err(error) => {
                use base64::DecodeError::{InvalidByte, InvalidLastSymbol, InvalidLength, InvalidPadding};
                let at = match error {
                    InvalidByte(at, _) | InvalidLastSymbol(at, _) => at,
                    InvalidLength(_) | InvalidPadding => text.len() / 4 * 4,
                };
                Err(self.fail(format!("illegal base64 data at input byte {at}")))
            }
        }
    }

    fn time<E: serde::de::Error>(self, text: &str, micro: bool) -> Result<Value, E> {
        match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(Value::String(if micro { micro_time(time) } else { second_time(time) })),
            Err(_) => {
                let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
                Err(self.fail(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")))
            }
        }
    }

    fn read_struct<'de, A: MapAccess<'de>>(
        self,
        definition: &'static Definition,
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let state = self.state;
        while let Some(key) = map.next_key::<String>()? {
            let Some(field) = definition.field(&key) else {
                state.tell("unknown", &key);
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if object.contains_key(&key) {
                state.tell("duplicate", &key);
            }
            state.path.push(Step::Field(field.name));
            let seed = Seed { ty: Place::Type(&field.ty), owner: Some(definition), state: &mut *state };
            let value = map.next_value_seed(seed)?;
            state.path.pop();
            if keeps(&value, &field.ty, field.required) {
                object.insert(key, value);
            } else {
                object.remove(&key);
            }
        }
        Ok(Value::Object(object))
    }

    fn read_map<'de, A: MapAccess<'de>>(self, inner: &'static Type, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let state = self.state;
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                state.tell("duplicate", &key);
            }
            state.path.push(Step::Key(key.clone()));
            let seed = Seed { ty: Place::Type(inner), owner: self.owner, state: &mut *state };
            let value = map.next_value_seed(seed)?;
            state.path.pop();
            match value {
                Value::Null if matches!(inner, Type::Leaf(Leaf::String | Leaf::Bytes)) => {
                    object.insert(key, Value::String(String::new()));
                }
                Value::Null => {}
                value => {
                    object.insert(key, value);
                }
            }
        }
        Ok(Value::Object(object))
    }
}

/// A moment as the API writes it, to the second.
#[must_use]
pub(crate) fn second_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A moment as the API writes it, to the microsecond.
#[must_use]
pub(crate) fn micro_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Whether a field's value is written: nulls never, empty lists and maps only where they are required.
fn keeps(value: &Value, ty: &Type, required: bool) -> bool {
    match (value, ty) {
        (Value::Null, _) => false,
        (Value::Array(items), Type::Array(_)) => required || !items.is_empty(),
        (Value::Object(items), Type::Map(_)) => required || !items.is_empty(),
        _ => true,
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        match self.leaf() {
            Some(Leaf::Bool | Leaf::Any) => Ok(Value::Bool(value)),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        match Number::from_f64(value) {
            Some(number) => self.number(number),
            None => Err(E::custom("a number is not finite")),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.text(value.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.text(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = match self.ty {
            Place::Type(Type::Array(inner)) => &**inner,
            Place::Type(Type::Leaf(Leaf::Any)) => {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                return Ok(Value::Array(items));
            }
            _ => return Err(self.mismatch("array")),
        };
        let mut items = Vec::new();
        let (owner, state) = (self.owner, self.state);
        loop {
            state.path.push(Step::Index(items.len()));
            let seed = Seed { ty: Place::Type(inner), owner, state: &mut *state };
            let item = seq.next_element_seed(seed)?;
            state.path.pop();
            match item {
                Some(Value::Null) => {}
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match self.ty {
            Place::Struct(definition) => self.read_struct(definition, map),
            Place::Type(Type::Map(inner)) => self.read_map(inner, map),
            Place::Type(Type::Leaf(Leaf::Any)) => {
                let mut object = Map::new();
                while let Some((key, value)) = map.next_entry()? {
                    object.insert(key, value);
                }
                Ok(Value::Object(object))
            }
            Place::Type(Type::Leaf(leaf)) => match leaf.definition() {
                Some(definition) => self.read_struct(definition, map),
                None => Err(self.mismatch("object")),
            },
            Place::Type(Type::Array(_)) => Err(self.mismatch("object")),
        }
    }
}
