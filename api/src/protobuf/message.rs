//! Messages by their type.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::table::{self, Message, Slot};
use super::wire::{Reader, Wire};
use super::{DecodeError, MAGIC, decode_nested};
use crate::schema::{Field, Leaf, Type, micro_time, second_time};

/// Reads a message into an object, which may have fields already: a message that comes in pieces is put together.
pub(super) fn read(
    message: &Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: u32,
) -> Result<(), DecodeError> {
    let depth = depth.checked_sub(1).ok_or(DecodeError::Depth)?;
    for item in Reader::new(bytes) {
        let (number, wire) = item?;
        match message.slot(number) {
            None => {}
            Some(Slot::Inline(inner)) => read(inner, wire.bytes("inline")?, object, depth)?,
            Some(Slot::Field { field, keeps_zero }) => read_field(field, *keeps_zero, wire, object, depth)?,
        }
    }
    Ok(())
}

fn read_field(
    field: &'static Field,
    keeps_zero: bool,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: u32,
) -> Result<(), DecodeError> {
    match &field.ty {
        Type::Leaf(leaf) => {
            let before = object.remove(field.name);
            let value = read_leaf(*leaf, field.name, wire, before, depth)?;
            if !value.is_null() && (keeps_zero || !is_zero(&value, *leaf)) {
                object.insert(field.name.to_owned(), value);
            }
        }
        Type::Array(inner) => {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                read_item(inner, field.name, wire, list, depth)?;
            }
        }
        Type::Map(inner) => {
            let (key, value) = read_entry(inner, field.name, wire.bytes(field.name)?, depth)?;
            let entries = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entries {
                entries.insert(key, value);
            }
        }
    }
    Ok(())
}

/// One more item of a list; or several, as numbers may be packed.
fn read_item(
    ty: &'static Type,
    name: &'static str,
    wire: Wire<'_>,
    list: &mut Vec<Value>,
    depth: u32,
) -> Result<(), DecodeError> {
    if let (Type::Leaf(leaf @ (Leaf::Int32 | Leaf::Int64 | Leaf::Bool)), Wire::Bytes(packed)) = (ty, wire) {
        let mut packed = Reader::new(packed);
        while !packed.is_empty() {
            list.push(read_leaf(*leaf, name, Wire::Varint(packed.varint()?), None, depth)?);
        }
        return Ok(());
    }
    list.push(read_value(ty, name, wire, depth)?);
    Ok(())
}

/// An entry of a map: field 1 is its key, field 2 its value. What is missing is empty.
fn read_entry(ty: &'static Type, name: &'static str, bytes: &[u8], depth: u32) -> Result<(String, Value), DecodeError> {
    let (mut key, mut value) = (String::new(), Wire::Bytes(&[]));
    for item in Reader::new(bytes) {
        match item? {
            (1, wire) => wire.text(name)?.clone_into(&mut key),
            (2, wire) => value = wire,
            _ => {}
        }
    }
    Ok((key, read_value(ty, name, value, depth)?))
}

/// A value that is no field of its own. A list there is a message, whose field 1 is repeated.
fn read_value(ty: &'static Type, name: &'static str, wire: Wire<'_>, depth: u32) -> Result<Value, DecodeError> {
    match ty {
        Type::Leaf(leaf) => read_leaf(*leaf, name, wire, None, depth),
        Type::Array(inner) => {
            let mut list = Vec::new();
            for item in Reader::new(wire.bytes(name)?) {
                if let (1, wire) = item? {
                    read_item(inner, name, wire, &mut list, depth)?;
                }
            }
            Ok(Value::Array(list))
        }
        Type::Map(_) => Err(DecodeError::Mismatch(name)),
    }
}

fn read_leaf(
    leaf: Leaf,
    name: &'static str,
    wire: Wire<'_>,
    before: Option<Value>,
    depth: u32,
) -> Result<Value, DecodeError> {
    Ok(match leaf {
        Leaf::String => wire.text(name)?.into(),
        // The upper half of a number of 32 bits says no more than its sign.
        Leaf::Int32 => i32::try_from(wire.int(name)?).map_err(|_| DecodeError::Range(name))?.into(),
        Leaf::Int64 => wire.int(name)?.into(),
        Leaf::Bool => (wire.varint(name)? != 0).into(),
        Leaf::Float => match wire {
            Wire::Fixed64(bits) => {
                Number::from_f64(f64::from_bits(bits)).map(Value::Number).ok_or(DecodeError::Range(name))?
            }
            _ => return Err(DecodeError::Mismatch(name)),
        },
        Leaf::Bytes => STANDARD.encode(wire.bytes(name)?).into(),
        Leaf::Time => read_time(name, wire.bytes(name)?, false)?,
        Leaf::MicroTime => read_time(name, wire.bytes(name)?, true)?,
        Leaf::Quantity => match last(wire.bytes(name)?, 1)?.map(|wire| wire.text(name)).transpose()? {
            None | Some("") => "0".into(),
            Some(text) => text.into(),
        },
        Leaf::IntOrString => read_int_or_string(name, wire.bytes(name)?)?,
        Leaf::Any => read_any(name, wire.bytes(name)?, depth)?,
        Leaf::Struct(_) => {
            let definition = leaf.definition().ok_or_else(|| DecodeError::NoSuchType(name.to_owned()))?;
            let mut object = match before {
                Some(Value::Object(object)) => object,
                _ => Map::new(),
            };
            read(table::message(definition.name)?, wire.bytes(name)?, &mut object, depth)?;
            Value::Object(object)
        }
    })
}

/// The last field with a number, which is the one that counts.
fn last(bytes: &[u8], wanted: u32) -> Result<Option<Wire<'_>>, DecodeError> {
    let mut found = None;
    for item in Reader::new(bytes) {
        let (number, wire) = item?;
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// `{seconds=1, nanos=2}`; nothing at all is the zero time, which JSON has as null.
fn read_time(name: &'static str, bytes: &[u8], micro: bool) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for item in Reader::new(bytes) {
        match item? {
            (1, wire) => seconds = wire.int(name)?,
            (2, wire) => nanos = wire.int(name)?,
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| DecodeError::Range(name))?;
    let time = Timestamp::new(seconds, if micro { nanos } else { 0 }).map_err(|_| DecodeError::Range(name))?;
    Ok(if micro { micro_time(time) } else { second_time(time) }.into())
}

/// `{type=1, intVal=2, strVal=3}`; type 1 is text.
fn read_int_or_string(name: &'static str, bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for item in Reader::new(bytes) {
        match item? {
            (1, wire) => is_text = wire.varint(name)? == 1,
            (2, wire) => number = wire.int(name)?,
            (3, wire) => text = wire.text(name)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// `{raw=1}`, of JSON or of another encoded object.
fn read_any(name: &'static str, bytes: &[u8], depth: u32) -> Result<Value, DecodeError> {
    let raw = match last(bytes, 1)? {
        Some(wire) => wire.bytes(name)?,
        None => &[],
    };
    match raw {
        [] => Ok(Value::Null),
        raw if raw.starts_with(&MAGIC) => decode_nested(raw, depth),
        raw => serde_json::from_slice(raw).map_err(|error| DecodeError::Json { field: name, why: error.to_string() }),
    }
}

/// Whether a plain field of this value may as well be absent. An empty struct may not: `emptyDir: {}` says something.
fn is_zero(value: &Value, leaf: Leaf) -> bool {
    match leaf {
        Leaf::String => value.as_str() == Some(""),
        Leaf::Int32 | Leaf::Int64 => value.as_i64() == Some(0),
        Leaf::Float => value.as_f64() == Some(0.0),
        Leaf::Bool => value.as_bool() == Some(false),
        _ => false,
    }
}
