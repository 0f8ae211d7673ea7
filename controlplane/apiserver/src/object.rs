//! An object as it is kept: JSON whose first fields are always kind, apiVersion and metadata, so that it can be sent
//! to clients without being parsed again — only the resource version, which the store knows and the value does not,
//! is written in on the way out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bosun_api::selector::{FieldSelector, Selector};
use bosun_store::{KeyValue, Revision};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fields;
use bosun_api::resource::Resource;

const METADATA: &[u8] = b"\"metadata\":{";

/// Bytes of an object and the revision that they were written at.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    bytes: Bytes,
    pub(crate) revision: Revision,
    /// Where the first field of the metadata stands.
    metadata: u32,
}

impl Raw {
    /// Take what the store holds. Foreign JSON, with its fields in another order, is put in order.
    pub(crate) fn new(bytes: Bytes, revision: Revision) -> Self {
        match metadata_offset(&bytes) {
            Some(metadata) => Self { bytes, revision, metadata },
            None => {
                let value = serde_json::from_slice(&bytes).unwrap_or_default();
                let bytes = encode(&value);
                let metadata = metadata_offset(&bytes).unwrap_or_default();
                Self { bytes, revision, metadata }
            }
        }
    }

    pub(crate) fn of(kv: &KeyValue) -> Self {
        Self::new(kv.value.clone(), kv.mod_revision)
    }

    /// The same object at a later revision, for the event of its deletion.
    pub(crate) fn at(&self, revision: Revision) -> Self {
        Self { revision, ..self.clone() }
    }

    /// Append the whole object.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        self.write_from(out, 0);
    }

    /// Append the object as an item of a list, which has neither kind nor apiVersion.
    pub(crate) fn write_item(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        self.write_from(out, self.metadata as usize - METADATA.len());
    }

    fn write_from(&self, out: &mut Vec<u8>, start: usize) {
        let at = self.metadata as usize;
        out.reserve(self.bytes.len() + 48);
        out.extend_from_slice(&self.bytes[start..at]);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(self.revision.to_string().as_bytes());
        out.push(b'"');
        if self.bytes.get(at) != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(&self.bytes[at..]);
    }

    /// The whole object as bytes.
    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut out = Vec::new();
        self.write(&mut out);
        out.into()
    }

    /// The object as a tree, with its resource version.
    pub(crate) fn value(&self) -> Value {
        let mut value: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        }
        value
    }

    /// Whether the stored bytes are these.
    pub(crate) fn same(&self, bytes: &[u8]) -> bool {
        self.bytes[..] == *bytes
    }
}

/// Where the first field of the metadata stands, if the object starts as [`encode`] writes it.
fn metadata_offset(bytes: &[u8]) -> Option<u32> {
    if !bytes.starts_with(b"{\"kind\":\"") {
        return None;
    }
    // Neither a kind nor an apiVersion can hold a brace, so the first one after the opening is the metadata's.
    let brace = bytes.iter().skip(1).position(|b| *b == b'{')? + 1;
    let start = (brace + 1).checked_sub(METADATA.len())?;
    (bytes.get(start..=brace)? == METADATA).then(|| u32::try_from(brace + 1).ok()).flatten()
}

/// An object's bytes for the store: kind, apiVersion and metadata first, no resource version.
pub(crate) fn encode(value: &Value) -> Bytes {
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"kind\":");
    append(&mut out, &Value::from(text("kind")));
    out.extend_from_slice(b",\"apiVersion\":");
    append(&mut out, &Value::from(text("apiVersion")));
    out.extend_from_slice(b",\"metadata\":");
    match object.get("metadata").and_then(Value::as_object) {
        Some(metadata) => append_fields(&mut out, metadata, &["resourceVersion", "selfLink", "managedFields"], b"{"),
        None => out.extend_from_slice(b"{"),
    }
    out.push(b'}');
    append_fields(&mut out, object, &["kind", "apiVersion", "metadata"], b",");
    out.push(b'}');
    out.into()
}

/// Append `"key":value` pairs, but for some keys, the first one after `lead`, which is written in any case unless it
/// is a comma.
fn append_fields(out: &mut Vec<u8>, fields: &Map<String, Value>, without: &[&str], lead: &[u8]) {
    let mut lead = lead;
    for (key, value) in fields.iter().filter(|(key, _)| !without.contains(&key.as_str())) {
        out.extend_from_slice(lead);
        lead = b",";
        append(out, &Value::from(key.as_str()));
        out.push(b':');
        append(out, value);
    }
    if lead == b"{" {
        out.extend_from_slice(lead);
    }
}

fn append(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("a JSON tree is written to memory");
}

/// A cached object: its bytes, and what selectors look at.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) key: Arc<str>,
    pub(crate) raw: Raw,
    /// Where in the key `namespace/name` or `name` starts.
    path: u16,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// The selectable fields of the kind, in the order of [`fields::of`].
    fields: Box<[Box<str>]>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize)]
struct HeadMeta<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

impl Object {
    pub(crate) fn new(resource: &Resource, key: Arc<str>, raw: Raw) -> Self {
        let labels = match serde_json::from_slice::<Head<'_>>(&raw.bytes) {
            Ok(head) => head.metadata.labels.unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        let labels = labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let selectable = fields::of(resource);
        let fields = match selectable {
            [] => Box::default(),
            _ => {
                let value: Value = serde_json::from_slice(&raw.bytes).unwrap_or_default();
                selectable.iter().map(|field| field.read(&value).into()).collect()
            }
        };
        let path = u16::try_from(resource.key_prefix(None).len()).unwrap_or_default();
        Self { key, raw, path, labels, fields }
    }

    /// The same object as its deletion shows it.
    pub(crate) fn deleted_at(&self, revision: Revision) -> Self {
        Self {
            key: self.key.clone(),
            raw: self.raw.at(revision),
            path: self.path,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    /// Namespace (empty for cluster-scoped objects) and name.
    pub(crate) fn place(&self) -> (&str, &str) {
        let path = &self.key[usize::from(self.path)..];
        path.split_once('/').unwrap_or(("", path))
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// A selectable field by its place in [`fields::of`].
    pub(crate) fn field(&self, at: usize) -> &str {
        self.fields.get(at).map_or("", |f| f.as_ref())
    }
}

/// What a list or a watch wants to see.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) resource: &'static Resource,
    /// Empty for all namespaces.
    pub(crate) namespace: String,
    pub(crate) labels: Selector,
    pub(crate) fields: FieldSelector,
}

impl Filter {
    pub(crate) fn matches(&self, object: &Object) -> bool {
        let (namespace, name) = object.place();
        if !self.namespace.is_empty() && self.namespace != namespace {
            return false;
        }
        if !self.labels.is_everything() && !self.labels.matches_with(|key| object.label(key)) {
            return false;
        }
        self.fields.is_everything()
            || self.fields.matches(|field| {
                Cow::Borrowed(match field {
                    "metadata.name" => name,
                    "metadata.namespace" => namespace,
                    other => fields::position(self.resource, other).map_or("", |at| object.field(at)),
                })
            })
    }

    /// Whether every object in scope matches.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_is_written_on_the_way_out() {
        let value = json!({"kind": "Pod", "apiVersion": "v1", "data": {"a": "{"},
            "metadata": {"name": "a", "resourceVersion": "3"}, "spec": {}});
        let raw = Raw::new(encode(&value), 7);
        let text = String::from_utf8(raw.to_bytes().to_vec()).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"a"},"data":{"a":"{"},"spec":{}}"#
        );
        let mut item = Vec::new();
        raw.write_item(&mut item);
        assert_eq!(
            String::from_utf8(item).unwrap(),
            r#"{"metadata":{"resourceVersion":"7","name":"a"},"data":{"a":"{"},"spec":{}}"#
        );
        assert_eq!(raw.value()["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn foreign_and_empty_metadata_are_put_in_order() {
        let foreign = Bytes::from_static(br#"{"apiVersion":"v1","metadata":{},"kind":"Pod"}"#);
        let raw = Raw::new(foreign, 7);
        let text = String::from_utf8(raw.to_bytes().to_vec()).unwrap();
        assert_eq!(text, r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7"}}"#);
    }
}
