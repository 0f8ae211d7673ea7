//! Request bodies in `application/vnd.kubernetes.protobuf`, which Go clients like to send for kinds that they know.
//! Answers are always JSON: those clients accept it too.
//!
//! A body is four magic bytes and an envelope (`runtime.Unknown`: 1 = {1: apiVersion, 2: kind}, 2 = the object). The
//! object is turned into JSON by `protobuf/fields.txt`, a line for each message of v1.36: its name, then for each field
//! `NUMBER[*]:JSON-NAME=TYPE`. A star marks what may be absent in Go (a pointer): of everything else a zero means
//! absent, as in Go's JSON. An empty JSON name marks a message whose fields stand in the one around it. Types: `s` text,
//! `i` whole number, `b` truth, `y` bytes, `d` number, `t` and `T` a moment to the second and to the microsecond, `q`
//! quantity, `o` number or text, `r` any JSON, `x` a list in a message, `@` a message; `[]` a list, `{}` a map.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

static TEXT: &str = include_str!("protobuf/fields.txt");
const MAGIC: &[u8] = b"k8s\0";
/// Messages in messages go this deep at most.
const DEPTH: usize = 64;

type Messages = HashMap<&'static str, Vec<Field>>;
static MESSAGES: LazyLock<Messages> = LazyLock::new(|| TEXT.lines().filter_map(read_line).collect());

#[derive(Debug)]
struct Field {
    number: u64,
    pointer: bool,
    name: &'static str,
    ty: &'static str,
}

fn read_line(line: &'static str) -> Option<(&'static str, Vec<Field>)> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let field = |word: &'static str| {
        let (number, rest) = word.split_once(':')?;
        let (name, ty) = rest.split_once('=')?;
        let pointer = number.ends_with('*');
        Some(Field { number: number.trim_end_matches('*').parse().ok()?, pointer, name, ty })
    };
    Some((name, words.filter_map(field).collect()))
}

/// One value on the wire.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads fields of a message one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or("unexpected EOF")?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("integer overflow".into())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let length = usize::try_from(length).map_err(|_| "length out of range")?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or("unexpected EOF")?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next field's number and value.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let fixed = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let value = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(fixed(self.take(8)?)),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(fixed(self.take(4)?)),
            other => return Err(format!("wire type {other} is not supported")),
        };
        Ok(Some((tag >> 3, value)))
    }

    /// The last value of each of the first fields of a small message.
    fn fields<const N: usize>(bytes: &'a [u8]) -> Result<[Option<Wire<'a>>; N], String> {
        let mut reader = Reader(bytes);
        let mut found = [None; N];
        while let Some((number, value)) = reader.next()? {
            let at = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
            if let Some(slot) = at.and_then(|at| found.get_mut(at)) {
                *slot = Some(value);
            }
        }
        Ok(found)
    }
}

impl<'a> Wire<'a> {
    fn number(self) -> Result<u64, String> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err("a number was expected".into()),
        }
    }

    fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err("bytes were expected".into()),
        }
    }

    fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "text is not UTF-8".to_owned())
    }
}

/// The object of a body, as JSON.
///
/// # Errors
/// What is wrong with the body, in words.
pub(crate) fn decode(body: &[u8]) -> Result<Value, String> {
    let envelope = body.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message")?;
    let [meta, raw] = Reader::fields::<2>(envelope)?;
    let [version, kind] = Reader::fields::<2>(meta.map_or(Ok(&[][..]), Wire::bytes)?)?;
    let version = version.map_or(Ok(""), Wire::text)?;
    let kind = kind.map_or(Ok(""), Wire::text)?;
    let name = message_name(version, kind);
    let mut object = match message(&name, raw.map_or(Ok(&[][..]), Wire::bytes)?, 0)? {
        Value::Object(object) => object,
        other => return Err(format!("{kind} is {other}")),
    };
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), version.into());
    Ok(object.into())
}

/// `apps.v1.Deployment` for `apps/v1` and `Deployment`. A group's package is the first part of its name.
fn message_name(version: &str, kind: &str) -> String {
    let (group, version) = version.split_once('/').unwrap_or(("core", version));
    let package = match (group, kind) {
        // Clients send their options under the version of what they delete.
        (_, "DeleteOptions") => return "meta.v1.DeleteOptions".into(),
        ("rbac.authorization.k8s.io", _) => "rbac",
        (group, _) => group.split('.').next().unwrap_or(group),
    };
    format!("{package}.{version}.{kind}")
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let fields = MESSAGES.get(name).ok_or_else(|| format!("no kind {name:?} is known in protobuf"))?;
    if depth > DEPTH {
        return Err("exceeded max depth".into());
    }
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        take(&mut object, field, wire, depth).map_err(|why| format!("{name}.{}: {why}", field.name))?;
    }
    Ok(object.into())
}

fn take(object: &mut Map<String, Value>, field: &Field, wire: Wire<'_>, depth: usize) -> Result<(), String> {
    if let Some(item) = field.ty.strip_prefix("[]") {
        let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
        if let Some(list) = list.as_array_mut() {
            list.push(one(item, wire, depth)?);
        }
        return Ok(());
    }
    if let Some(item) = field.ty.strip_prefix("{}") {
        let [key, value] = Reader::fields::<2>(wire.bytes()?)?;
        let key = key.map_or(Ok(""), Wire::text)?;
        let value = one(item, value.unwrap_or(Wire::Bytes(&[])), depth)?;
        let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
        if let Some(map) = map.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
        return Ok(());
    }
    let value = one(field.ty, wire, depth)?;
    if field.name.is_empty() {
        if let Value::Object(inner) = value {
            object.extend(inner);
        }
    } else if field.pointer || !is_zero(&value) {
        object.insert(field.name.to_owned(), value);
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

fn one(ty: &str, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
    if let Some(name) = ty.strip_prefix('@') {
        return message(name, wire.bytes()?, depth + 1);
    }
    Ok(match ty {
        "s" => wire.text()?.into(),
        "i" => signed(wire.number()?).into(),
        "b" => (wire.number()? != 0).into(),
        "d" => f64::from_bits(wire.number()?).into(),
        "y" => STANDARD.encode(wire.bytes()?).into(),
        "t" | "T" => time(wire.bytes()?, ty == "T")?,
        "q" => {
            let [text] = Reader::fields::<1>(wire.bytes()?)?;
            text.map_or(Ok("0"), Wire::text)?.into()
        }
        "o" => {
            let [kind, number, text] = Reader::fields::<3>(wire.bytes()?)?;
            match kind.map_or(Ok(0), Wire::number)? {
                0 => signed(number.map_or(Ok(0), Wire::number)?).into(),
                _ => text.map_or(Ok(""), Wire::text)?.into(),
            }
        }
        "r" => {
            let [raw] = Reader::fields::<1>(wire.bytes()?)?;
            let raw = raw.map_or(Ok(&[][..]), Wire::bytes)?;
            if raw.is_empty() { Value::Null } else { serde_json::from_slice(raw).map_err(|e| e.to_string())? }
        }
        "x" => {
            let mut reader = Reader(wire.bytes()?);
            let mut list = Vec::new();
            while let Some((_, item)) = reader.next()? {
                list.push(item.text()?.into());
            }
            Value::Array(list)
        }
        other => return Err(format!("type {other:?} is not known")),
    })
}

/// A varint is two's complement for negative numbers.
fn signed(number: u64) -> i64 {
    number as i64
}

fn time(bytes: &[u8], micro: bool) -> Result<Value, String> {
    let [seconds, nanos] = Reader::fields::<2>(bytes)?;
    let (Some(seconds), nanos) = (seconds, nanos.map_or(Ok(0), Wire::number)?) else { return Ok(Value::Null) };
    let nanos = i32::try_from(signed(nanos)).map_err(|_| "nanoseconds out of range")?;
    let at = Timestamp::new(signed(seconds.number()?), nanos).map_err(|e| e.to_string())?;
    // The zero time of Go is no time.
    if at.as_second() <= -62_135_596_800 {
        return Ok(Value::Null);
    }
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(at.strftime(format).to_string().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(number << 3 | 2).unwrap(), u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn body(version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, object)].concat()
    }

    #[test]
    fn every_message_that_is_referred_to_is_there() {
        for (name, fields) in MESSAGES.iter() {
            for field in fields {
                if let Some((_, inner)) = field.ty.split_once('@') {
                    assert!(MESSAGES.contains_key(inner), "{name}.{} refers to {inner}", field.name);
                }
            }
        }
        for resource in bosun_api::resource::RESOURCES.iter().filter(|r| r.kind != "ComponentStatus") {
            let name = message_name(&resource.api_version(), resource.kind);
            assert!(MESSAGES.contains_key(name.as_str()), "{name}");
        }
    }

    #[test]
    fn zeros_are_absent_and_pointers_are_not() {
        // metadata {name "a", namespace "", labels {x: y}}, data in a volume that is inlined
        let labels = field(11, &[field(1, b"x"), field(2, b"y")].concat());
        let metadata = field(1, &[field(1, b"a"), field(3, b""), labels].concat());
        let empty_dir = field(2, &[]);
        let volume = field(1, &[field(1, b"v"), field(2, &empty_dir)].concat());
        // hostNetwork (11) false is not a pointer; terminationGracePeriodSeconds (4) 0 is.
        let spec = field(2, &[volume, vec![11 << 3, 0], vec![4 << 3, 0]].concat());
        let pod = decode(&body("v1", "Pod", &[metadata, spec].concat())).unwrap();
        assert_eq!(
            pod,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "labels": {"x": "y"}},
                "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}})
        );
    }

    proptest! {
        #[test]
        fn no_body_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[MAGIC, &bytes].concat());
            let _ = decode(&body("v1", "Pod", &bytes[..bytes.len().min(120)]));
        }
    }
}
