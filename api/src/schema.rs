//! The shape of every type of the API, and decoding by it.
//!
//! `openapi/types.txt` has one line a type. From it an object is read in one pass, from bytes or from a [`serde_json::Value`]: fields
//! nobody knows are dropped and told of, nulls and empty lists disappear, times and quantities become canonical, and
//! what has the wrong type is refused in the words a stock server uses. The same table tells [`crate::patch`] which list
//! is merged by which key.

mod decode;
mod types;

pub use decode::{DecodeError, Decoded, decode, decode_bytes, decode_value, refusal};
pub(crate) use decode::{micro_time, second_time};
pub use types::{Definition, Field, Leaf, Strategy, Type, definition};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: &Value) -> Result<Decoded, DecodeError> {
        decode_bytes("io.k8s.api.core.v1.Pod", value.to_string().as_bytes())
    }

    #[test]
    fn every_resource_and_reference_is_defined() {
        for resource in crate::resource::RESOURCES {
            assert!(definition(resource.definition).is_some(), "{}", resource.definition);
            if resource.is_stored() {
                assert!(definition(&format!("{}List", resource.definition)).is_some(), "{}", resource.definition);
            }
        }
    }

    #[test]
    fn drops_what_nobody_knows_and_tells() {
        let decoded = pod(&json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "labels": {}, "creationTimestamp": null},
            "spec": {"foo": 1, "containers": [{"name": "a", "bar": {"x": [1]}, "args": [], "resources": {}}]},
        }))
        .unwrap();
        assert_eq!(decoded.unknown, ["unknown field \"spec.containers[0].bar\"", "unknown field \"spec.foo\""]);
        assert_eq!(
            decoded.object,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"},
                "spec": {"containers": [{"name": "a", "resources": {}}]}})
        );
        assert_eq!(
            decoded.strict_error().unwrap(),
            "strict decoding error: unknown field \"spec.containers[0].bar\", unknown field \"spec.foo\""
        );
    }

    #[test]
    fn duplicates_are_told() {
        let text = r#"{"metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}}}"#;
        let decoded = decode_bytes("io.k8s.api.core.v1.Pod", text.as_bytes()).unwrap();
        assert_eq!(decoded.unknown, ["duplicate field \"metadata.name\"", "duplicate field \"metadata.labels.x\""]);
        assert_eq!(decoded.object["metadata"]["name"], "b");
    }

    #[test]
    fn values_become_canonical() {
        let decoded = pod(&json!({
            "metadata": {"creationTimestamp": "2026-01-02T03:04:05.678+01:00"},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": 0.5, "memory": "1024Ki"}}}]},
        }))
        .unwrap();
        assert_eq!(decoded.object["metadata"]["creationTimestamp"], "2026-01-02T02:04:05Z");
        let requests = &decoded.object["spec"]["containers"][0]["resources"]["requests"];
        assert_eq!(*requests, json!({"cpu": "500m", "memory": "1Mi"}));
        let lease = json!({"spec": {"renewTime": "2026-01-02T03:04:05.6Z"}});
        let lease = decode_value("io.k8s.api.coordination.v1.Lease", lease).unwrap();
        assert_eq!(lease.object["spec"]["renewTime"], "2026-01-02T03:04:05.600000Z");
    }

    #[test]
    fn wrong_types_are_refused_in_known_words() {
        let error = |value: Value| pod(&value).unwrap_err().to_string();
        let container = |field: &str, value: Value| json!({"spec": {"containers": [{field: value}]}});
        assert_eq!(
            error(container("name", json!(1))),
            "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string"
        );
        assert_eq!(
            error(container("ports", json!([{"containerPort": "x"}]))),
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of \
             type int32"
        );
        assert_eq!(
            error(json!({"spec": {"containers": {}}})),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
        );
        assert_eq!(
            error(json!({"spec": {"activeDeadlineSeconds": 1.5}})),
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.activeDeadlineSeconds of type int64"
        );
        assert!(error(container("resources", json!({"limits": {"cpu": "x"}}))).starts_with("quantities must match"));
        let secret = decode_value("io.k8s.api.core.v1.Secret", json!({"data": {"a": "%"}}));
        assert_eq!(secret.unwrap_err().to_string(), "illegal base64 data at input byte 0");
        assert!(matches!(decode_bytes("io.k8s.api.core.v1.Pod", b"{"), Err(DecodeError::Syntax(_))));
    }
}
