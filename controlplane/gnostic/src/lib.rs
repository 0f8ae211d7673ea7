//! The OpenAPI v2 document in the protobuf form of gnostic (`openapiv2.proto`), the only one that kubectl before 1.27
//! takes. Of its messages, those that describe types are here; clients of that age read nothing else.

use prost::Message;
use serde_json::Value;

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<NamedSchemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

/// No path is described.
#[derive(Clone, PartialEq, Message)]
struct Paths {}

/// `Definitions` and `Properties`, which are alike on the wire.
#[derive(Clone, PartialEq, Message)]
struct NamedSchemas {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<Types>,
    #[prost(message, optional, boxed, tag = "23")]
    items: Option<Box<Items>>,
    #[prost(message, optional, tag = "25")]
    properties: Option<NamedSchemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

#[derive(Clone, PartialEq, Message)]
struct Types {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Items {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// Encodes the definitions of an OpenAPI v2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let message = Document {
        swagger: "2.0".to_owned(),
        info: Some(Info { title: text(&document["info"]["title"]), version: text(&document["info"]["version"]) }),
        paths: Some(Paths {}),
        definitions: Some(named(&document["definitions"])),
    };
    message.encode_to_vec()
}

fn named(schemas: &Value) -> NamedSchemas {
    let entries = schemas.as_object().into_iter().flatten();
    let entry = |(name, value): (&String, &Value)| NamedSchema { name: name.clone(), value: Some(schema(value)) };
    NamedSchemas { additional_properties: entries.map(entry).collect() }
}

fn schema(value: &Value) -> Schema {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let strings = |key: &str| {
        let list = value[key].as_array().into_iter().flatten();
        list.filter_map(|item| item.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let kind = text("type");
    let extensions = value.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-"));
    Schema {
        reference: text("$ref"),
        format: text("format"),
        description: text("description"),
        required: strings("required"),
        additional_properties: value
            .get("additionalProperties")
            .filter(|v| v.is_object())
            .map(|inner| Box::new(AdditionalProperties { schema: Some(Box::new(schema(inner))) })),
        kind: (!kind.is_empty()).then(|| Types { value: vec![kind] }),
        items: value.get("items").map(|items| Box::new(Items { schema: vec![schema(items)] })),
        properties: value.get("properties").map(named),
        vendor_extension: extensions
            // JSON is YAML.
            .map(|(name, value)| NamedAny { name: name.clone(), value: Some(Any { yaml: value.to_string() }) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn definitions_survive() {
        let bytes = encode(&json!({
            "info": {"title": "Kubernetes", "version": "v1.36.0"},
            "definitions": {"io.k8s.api.core.v1.Pod": {
                "description": "a pod",
                "type": "object",
                "required": ["spec"],
                "properties": {
                    "spec": {"$ref": "#/definitions/io.k8s.api.core.v1.PodSpec"},
                    "names": {"type": "array", "items": {"type": "string"}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
                "x-kubernetes-group-version-kind": [{"group": "", "kind": "Pod", "version": "v1"}],
            }},
        }));
        let document = Document::decode(bytes.as_slice()).unwrap();
        let pod = document.definitions.unwrap().additional_properties.remove(0);
        assert_eq!(pod.name, "io.k8s.api.core.v1.Pod");
        let pod = pod.value.unwrap();
        assert_eq!(pod.kind.unwrap().value, ["object"]);
        assert_eq!(
            pod.vendor_extension[0].value.as_ref().unwrap().yaml,
            r#"[{"group":"","kind":"Pod","version":"v1"}]"#
        );
        let properties = pod.properties.unwrap().additional_properties;
        let spec = properties.iter().find(|p| p.name == "spec").unwrap().value.as_ref().unwrap();
        assert_eq!(spec.reference, "#/definitions/io.k8s.api.core.v1.PodSpec");
    }
}
