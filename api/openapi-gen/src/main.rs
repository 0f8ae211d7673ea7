//! Writes what `bosun-api` knows of the API's types, from the schemas of k8s-openapi:
//!
//! - `openapi/definitions.json.gz`: all definitions with their descriptions, for OpenAPI documents;
//! - `openapi/types.txt`: one line a definition, for decoding and patching.
//!
//! Run it after a change to the version of k8s-openapi, to the list of kinds or to the merge keys below.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use k8s_openapi::Resource;
use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

/// The kinds served, by definition name, with their group, version and kind.
type Kinds = BTreeMap<String, Vec<(String, String, String)>>;

/// Strategic merge: type and field, the key that tells items apart (empty for plain values), the strategy.
const MERGE: &[(&str, &str, &str, &str)] = &[
    ("ObjectMeta", "ownerReferences", "uid", "merge"),
    ("ObjectMeta", "finalizers", "", "merge"),
    ("PodSpec", "containers", "name", "merge"),
    ("PodSpec", "initContainers", "name", "merge"),
    ("PodSpec", "ephemeralContainers", "name", "merge"),
    ("PodSpec", "volumes", "name", "merge,retainKeys"),
    ("PodSpec", "imagePullSecrets", "name", "merge"),
    ("PodSpec", "hostAliases", "ip", "merge"),
    ("PodSpec", "topologySpreadConstraints", "topologyKey", "merge"),
    ("PodSpec", "resourceClaims", "name", "merge,retainKeys"),
    ("PodSpec", "schedulingGates", "name", "merge"),
    ("PodStatus", "conditions", "type", "merge"),
    ("PodStatus", "podIPs", "ip", "merge"),
    ("PodStatus", "hostIPs", "ip", "merge"),
    ("PodStatus", "resourceClaimStatuses", "name", "merge,retainKeys"),
    ("Container", "ports", "containerPort", "merge"),
    ("Container", "env", "name", "merge"),
    ("Container", "volumeMounts", "mountPath", "merge"),
    ("Container", "volumeDevices", "devicePath", "merge"),
    ("EphemeralContainer", "ports", "containerPort", "merge"),
    ("EphemeralContainer", "env", "name", "merge"),
    ("EphemeralContainer", "volumeMounts", "mountPath", "merge"),
    ("EphemeralContainer", "volumeDevices", "devicePath", "merge"),
    ("NodeSpec", "podCIDRs", "", "merge"),
    ("NodeStatus", "conditions", "type", "merge"),
    ("NodeStatus", "addresses", "type", "merge"),
    ("NamespaceStatus", "conditions", "type", "merge"),
    ("ServiceSpec", "ports", "port", "merge"),
    ("ServiceStatus", "conditions", "type", "merge"),
    ("ServiceAccount", "secrets", "name", "merge"),
    ("ComponentStatus", "conditions", "type", "merge"),
    ("ReplicationControllerStatus", "conditions", "type", "merge"),
    ("PersistentVolumeClaimStatus", "conditions", "type", "merge"),
    ("DeploymentSpec", "strategy", "", "retainKeys"),
    ("DeploymentStatus", "conditions", "type", "merge"),
    ("ReplicaSetStatus", "conditions", "type", "merge"),
    ("StatefulSetStatus", "conditions", "type", "merge"),
    ("DaemonSetStatus", "conditions", "type", "merge"),
    ("JobStatus", "conditions", "type", "merge"),
    ("HorizontalPodAutoscalerStatus", "conditions", "type", "merge"),
    ("PodDisruptionBudgetSpec", "selector", "", "replace"),
    ("PodDisruptionBudgetStatus", "conditions", "type", "merge"),
    ("ServiceCIDRStatus", "conditions", "type", "merge"),
    ("CSINodeSpec", "drivers", "name", "merge"),
    ("MutatingWebhookConfiguration", "webhooks", "name", "merge"),
    ("MutatingWebhook", "matchConditions", "name", "merge"),
    ("ValidatingWebhookConfiguration", "webhooks", "name", "merge"),
    ("ValidatingWebhook", "matchConditions", "name", "merge"),
    ("ValidatingAdmissionPolicySpec", "matchConditions", "name", "merge"),
    ("ValidatingAdmissionPolicySpec", "variables", "name", "merge"),
];

fn add<K: Resource + JsonSchema>(schemas: &mut SchemaGenerator, kinds: &mut Kinds) {
    schemas.subschema_for::<K>();
    let gvk = (K::GROUP.to_owned(), K::VERSION.to_owned(), K::KIND.to_owned());
    kinds.entry(K::schema_name().into_owned()).or_default().push(gvk);
}

fn add_list<K>(schemas: &mut SchemaGenerator, kinds: &mut Kinds)
where
    K: k8s_openapi::ListableResource + JsonSchema,
{
    add::<K>(schemas, kinds);
    let gvk = (K::GROUP.to_owned(), K::VERSION.to_owned(), K::LIST_KIND.to_owned());
    kinds.entry(format!("{}List", K::schema_name())).or_default().push(gvk);
}

/// Lists are all alike and made here.
fn list_definition(item: &str, kind: &Value) -> Value {
    let short = item.rsplit('.').next().unwrap_or_default();
    json!({
        "description": format!("{short}List is a list of {short} objects."),
        "type": "object",
        "properties": {
            "apiVersion": kind["properties"]["apiVersion"],
            "items": {
                "description": format!("items is the list of {short} objects."),
                "type": "array",
                "items": {"$ref": format!("#/definitions/{item}")},
            },
            "kind": kind["properties"]["kind"],
            "metadata": {
                "$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
                "description": "Standard list metadata.",
            },
        },
        "required": ["items"],
    })
}

macro_rules! kinds {
    ($generator:expr, $kinds:expr, listed: [$($listed:ty),* $(,)?], plain: [$($plain:ty),* $(,)?]) => {
        $(add_list::<$listed>($generator, $kinds);)*
        $(add::<$plain>($generator, $kinds);)*
    };
}

fn collect() -> (Map<String, Value>, Kinds) {
    let mut settings = SchemaSettings::default();
    settings.definitions_path = "/definitions".into();
    let mut schemas = SchemaGenerator::new(settings);
    let mut kinds = Kinds::new();
    kinds!(&mut schemas, &mut kinds,
        listed: [
            api::admissionregistration::v1::MutatingWebhookConfiguration,
            api::admissionregistration::v1::ValidatingAdmissionPolicy,
            api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
            api::admissionregistration::v1::ValidatingWebhookConfiguration,
            api::apps::v1::ControllerRevision,
            api::apps::v1::DaemonSet,
            api::apps::v1::Deployment,
            api::apps::v1::ReplicaSet,
            api::apps::v1::StatefulSet,
            api::autoscaling::v1::HorizontalPodAutoscaler,
            api::autoscaling::v2::HorizontalPodAutoscaler,
            api::batch::v1::CronJob,
            api::batch::v1::Job,
            api::certificates::v1::CertificateSigningRequest,
            api::coordination::v1::Lease,
            api::core::v1::ComponentStatus,
            api::core::v1::ConfigMap,
            api::core::v1::Endpoints,
            api::core::v1::Event,
            api::core::v1::LimitRange,
            api::core::v1::Namespace,
            api::core::v1::Node,
            api::core::v1::PersistentVolume,
            api::core::v1::PersistentVolumeClaim,
            api::core::v1::Pod,
            api::core::v1::PodTemplate,
            api::core::v1::ReplicationController,
            api::core::v1::ResourceQuota,
            api::core::v1::Secret,
            api::core::v1::Service,
            api::core::v1::ServiceAccount,
            api::discovery::v1::EndpointSlice,
            api::events::v1::Event,
            api::networking::v1::Ingress,
            api::networking::v1::IngressClass,
            api::networking::v1::IPAddress,
            api::networking::v1::NetworkPolicy,
            api::networking::v1::ServiceCIDR,
            api::node::v1::RuntimeClass,
            api::policy::v1::PodDisruptionBudget,
            api::rbac::v1::ClusterRole,
            api::rbac::v1::ClusterRoleBinding,
            api::rbac::v1::Role,
            api::rbac::v1::RoleBinding,
            api::scheduling::v1::PriorityClass,
            api::storage::v1::CSIDriver,
            api::storage::v1::CSINode,
            api::storage::v1::CSIStorageCapacity,
            api::storage::v1::StorageClass,
            api::storage::v1::VolumeAttachment,
            api::storage::v1::VolumeAttributesClass,
        ],
        plain: [
            api::authentication::v1::SelfSubjectReview,
            api::authentication::v1::TokenRequest,
            api::authentication::v1::TokenReview,
            api::authorization::v1::LocalSubjectAccessReview,
            api::authorization::v1::SelfSubjectAccessReview,
            api::authorization::v1::SelfSubjectRulesReview,
            api::authorization::v1::SubjectAccessReview,
            api::autoscaling::v1::Scale,
            api::core::v1::Binding,
            api::policy::v1::Eviction,
            metav1::Status,
        ]
    );
    schemas.subschema_for::<metav1::DeleteOptions>();
    schemas.subschema_for::<metav1::APIGroup>();
    schemas.subschema_for::<metav1::APIGroupList>();
    schemas.subschema_for::<metav1::APIResourceList>();
    schemas.subschema_for::<metav1::APIVersions>();
    schemas.subschema_for::<metav1::Condition>();
    schemas.subschema_for::<metav1::ListMeta>();
    let mut definitions = schemas.take_definitions(true);
    for name in kinds.keys() {
        if let Some(item) = name.strip_suffix("List").filter(|item| kinds.contains_key(*item)) {
            let list = list_definition(item, &definitions[item]);
            definitions.insert(name.clone(), list);
        }
    }
    (definitions, kinds)
}

/// Sets right what k8s-openapi says otherwise than the API's own document.
fn mend(name: &str, definition: &mut Map<String, Value>, kinds: &Kinds) {
    let string = match name {
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Some(json!("int-or-string")),
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Some(Value::Null),
        _ => None,
    };
    if let Some(format) = string {
        definition.remove("x-kubernetes-int-or-string");
        definition.insert("type".into(), json!("string"));
        if !format.is_null() {
            definition.insert("format".into(), format);
        }
    }
    if let Some(gvks) = kinds.get(name) {
        let gvks: Vec<Value> = gvks.iter().map(|(g, v, k)| json!({"group": g, "version": v, "kind": k})).collect();
        definition.insert("x-kubernetes-group-version-kind".into(), Value::Array(gvks));
        if name != "io.k8s.api.core.v1.Event"
            && let Some(Value::Array(required)) = definition.get_mut("required")
        {
            required.retain(|field| field != "metadata");
            if required.is_empty() {
                definition.remove("required");
            }
        }
    }
    let short = name.rsplit('.').next().unwrap_or_default();
    for (_, field, key, strategy) in MERGE.iter().filter(|(kind, ..)| *kind == short) {
        let Some(Value::Object(property)) = definition.get_mut("properties").and_then(|all| all.get_mut(*field)) else {
            continue;
        };
        if !key.is_empty() {
            property.insert("x-kubernetes-patch-merge-key".into(), json!(key));
        }
        property.insert("x-kubernetes-patch-strategy".into(), json!(strategy));
    }
}

/// A type in one word: `string`, `[]Def`, `{}string`; `@name` refers to a definition.
fn word(schema: &Value) -> String {
    let reference = schema.get("$ref").and_then(Value::as_str);
    if let Some(reference) = reference {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return match name {
            "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => "time".into(),
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => "microtime".into(),
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => "quantity".into(),
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => "intorstring".into(),
            "io.k8s.apimachinery.pkg.runtime.RawExtension" | "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1" => {
                "any".into()
            }
            _ => format!("@{name}"),
        };
    }
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    match (schema.get("type").and_then(Value::as_str).unwrap_or_default(), format) {
        ("string", "byte") => "bytes".into(),
        ("string", "date-time") => "time".into(),
        ("string", _) => "string".into(),
        ("integer", "int32") => "int32".into(),
        ("integer", _) => "int64".into(),
        ("number", _) => "float".into(),
        ("boolean", _) => "bool".into(),
        ("array", _) => format!("[]{}", word(&schema["items"])),
        ("object", _) if schema.get("additionalProperties").is_some_and(Value::is_object) => {
            format!("{{}}{}", word(&schema["additionalProperties"]))
        }
        _ => "any".into(),
    }
}

/// One line a definition: `name field:type[!][~strategy[=key]] …`, where `!` marks a required field.
fn lines(definitions: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (name, definition) in definitions {
        let Some(properties) = definition.get("properties").and_then(Value::as_object) else { continue };
        let required = definition.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        text.push_str(name);
        for (field, schema) in properties {
            write!(text, " {field}:{}", word(schema)).expect("a string takes everything");
            if required.iter().any(|name| name == field) {
                text.push('!');
            }
            if let Some(strategy) = schema.get("x-kubernetes-patch-strategy").and_then(Value::as_str) {
                text.push('~');
                text.push_str(strategy);
                if let Some(key) = schema.get("x-kubernetes-patch-merge-key").and_then(Value::as_str) {
                    text.push('=');
                    text.push_str(key);
                }
            }
        }
        text.push('\n');
    }
    text
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut definitions, kinds) = collect();
    definitions.sort_keys();
    for (name, definition) in &mut definitions {
        if let Value::Object(definition) = definition {
            mend(name, definition, &kinds);
        }
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("types.txt"), lines(&definitions))?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&serde_json::to_vec(&definitions)?)?;
    let packed = gzip.finish()?;
    let (count, size) = (definitions.len(), packed.len());
    std::fs::write(folder.join("definitions.json.gz"), packed)?;
    let mut report = std::io::stderr();
    writeln!(report, "{count} definitions, {size} bytes packed")?;
    Ok(())
}
