//! What a manifest must be before its pod may run: nobody else looks at a static pod, so the kubelet does what an API
//! server does with other pods. It is defaulted, validated, and must refer to nothing that only the API has.

use bosun_api::{defaults, names, resource, validation};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::pod::spec;

/// The largest manifest that is read, as in stock.
pub(super) const LARGEST: u64 = 10 << 20;

/// The pod with its defaults.
///
/// # Errors
/// What is wrong with it, each fault with the path of its field.
pub(super) fn check(pod: &Pod) -> Result<Pod, String> {
    let kind = resource::find_kind("", "v1", "Pod").ok_or("the object model has no Pod")?;
    let mut value = serde_json::to_value(pod).map_err(|error| error.to_string())?;
    (value["apiVersion"], value["kind"]) = ("v1".into(), "Pod".into());
    // The node's own name was put there by us, whatever it is.
    let node = value["spec"].as_object_mut().and_then(|spec| spec.remove("nodeName"));
    defaults::apply(kind, &mut value);
    let mut faults: Vec<String> = validation::validate_create(kind, &value).iter().map(ToString::to_string).collect();
    // Folders are named after it.
    faults.extend(names::path_segment(spec::uid(pod)).into_iter().map(|fault| format!("metadata.uid: {fault}")));
    if !faults.is_empty() {
        return Err(format!("invalid pod: {}", faults.join("; ")));
    }
    if let Some(what) = refers_to(pod) {
        return Err(format!("static pods may not reference {what}"));
    }
    if let Some(node) = node {
        value["spec"]["nodeName"] = node;
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// The first kind of object of the API that the pod refers to, as stock names it: its pods would wait for an API server
/// that may be one of them.
fn refers_to(pod: &Pod) -> Option<&'static str> {
    let given = spec::spec(pod);
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    let volumes = || given.volumes.iter().flatten();
    if named(&given.service_account_name) || named(&given.service_account) {
        return Some("serviceaccounts");
    }
    let containers: Vec<Container> = spec::containers(pod).map(|(_, container)| container.clone()).collect();
    let from_env = |secret: bool| {
        containers.iter().any(|container| {
            let values = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
            let mut values = values.map(|from| (from.secret_key_ref.is_some(), from.config_map_key_ref.is_some()));
            let sources = container.env_from.iter().flatten();
            let mut sources = sources.map(|from| (from.secret_ref.is_some(), from.config_map_ref.is_some()));
            let is = |(of_secret, of_map): (bool, bool)| if secret { of_secret } else { of_map };
            values.any(is) || sources.any(is)
        })
    };
    if given.image_pull_secrets.iter().flatten().count() > 0 || from_env(true) || volumes().any(|v| v.secret.is_some())
    {
        return Some("secrets");
    }
    if from_env(false) || volumes().any(|v| v.config_map.is_some()) {
        return Some("configmaps");
    }
    if given.resource_claims.iter().flatten().count() > 0 {
        return Some("resourceclaims");
    }
    volumes().find_map(volume_refers_to)
}

fn volume_refers_to(volume: &Volume) -> Option<&'static str> {
    if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        return Some("persistentvolumeclaims");
    }
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.into_iter().find_map(|source| {
        let kinds = [
            (source.config_map.is_some(), "configmaps (via projected volumes)"),
            (source.secret.is_some(), "secrets (via projected volumes)"),
            (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
            (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
            (source.pod_certificate.is_some(), "podcertificates"),
        ];
        kinds.into_iter().find(|(is, _)| *is).map(|(_, what)| what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn checked(metadata: Value, spec: Value) -> Result<Pod, String> {
        let mut pod = json!({"metadata": {"name": "web-n", "namespace": "default", "uid": "u"}, "spec": spec});
        pod["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        check(&serde_json::from_value(pod).unwrap())
    }

    fn one(more: Value) -> Value {
        let mut container = json!({"name": "a", "image": "b"});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"containers": [container]})
    }

    #[test]
    fn a_good_pod_gets_its_defaults() {
        let pod = checked(json!({}), one(json!({}))).unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(
            (spec.restart_policy.as_deref(), spec.dns_policy.as_deref()),
            (Some("Always"), Some("ClusterFirst"))
        );
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
    }

    #[test]
    fn names_that_are_paths_and_other_nonsense_are_refused_by_their_field() {
        for (metadata, spec, field) in [
            (json!({"name": "../../etc"}), one(json!({})), "metadata.name"),
            (json!({"namespace": "../.."}), one(json!({})), "metadata.namespace"),
            (json!({"uid": "../../../etc"}), one(json!({})), "metadata.uid"),
            (json!({"uid": ".."}), one(json!({})), "metadata.uid"),
            (json!({}), one(json!({"name": "../x"})), "spec.containers[0].name"),
            (json!({}), one(json!({"image": ""})), "spec.containers[0].image"),
            (json!({}), json!({"containers": []}), "spec.containers"),
            (
                json!({}),
                json!({"containers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]}),
                "spec.containers[1].name: Duplicate value",
            ),
            (
                json!({}),
                json!({"containers": [{"name": "a", "image": "b"}], "volumes": [{"name": "../v", "emptyDir": {}}]}),
                "spec.volumes[0].name",
            ),
            (json!({}), one(json!({"ports": [{"containerPort": 70000}]})), "spec.containers[0].ports[0].containerPort"),
        ] {
            let error = checked(metadata.clone(), spec.clone()).expect_err(field);
            assert!(error.starts_with("invalid pod: ") && error.contains(field), "{metadata} {spec}: {error}");
        }
    }

    #[test]
    fn what_only_the_api_has_is_refused_by_its_kind() {
        let with = |more: Value| {
            let mut spec = one(json!({}));
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            checked(json!({}), spec).unwrap_err()
        };
        let volume = |source: Value| {
            let mut volume = json!({"name": "v"});
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            with(json!({"volumes": [volume]}))
        };
        let says = |what: &str| format!("static pods may not reference {what}");
        assert_eq!(with(json!({"serviceAccountName": "s"})), says("serviceaccounts"));
        assert_eq!(with(json!({"imagePullSecrets": [{"name": "s"}]})), says("secrets"));
        assert_eq!(volume(json!({"secret": {"secretName": "s"}})), says("secrets"));
        assert_eq!(volume(json!({"configMap": {"name": "s"}})), says("configmaps"));
        assert_eq!(volume(json!({"persistentVolumeClaim": {"claimName": "s"}})), says("persistentvolumeclaims"));
        let projected = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
        assert_eq!(volume(projected), says("serviceaccounts (via projected volumes)"));
        let from = json!([{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]);
        let error = checked(json!({}), one(json!({"env": from}))).unwrap_err();
        assert_eq!(error, says("configmaps"));
    }
}
