//! Which claims a pod refers to, and whether it may use them: plain functions.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::cache::Key;

/// A claim that a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its name; its namespace is the pod's.
    pub name: String,
    /// It was made for one pod from a template: only that pod may use it.
    pub made_for_pod: bool,
}

/// A claim with what the scheduler gave to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Namespace and name.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// The drivers of its devices.
    pub drivers: BTreeSet<String>,
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether the pod uses claims at all.
pub fn uses_claims(pod: &Pod) -> bool {
    let listed = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_ref()).is_some_and(|list| !list.is_empty());
    listed || extended(pod).is_some()
}

/// The claim that the scheduler made for extended resources which a driver provides (KEP-5004).
fn extended(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodExtendedResourceClaimStatus> {
    pod.status.as_ref()?.extended_resource_claim_status.as_ref()
}

/// The claim behind an entry of `spec.resourceClaims`; none if its template leads to none.
///
/// # Errors
/// The claim was not made yet, or the entry names neither a claim nor a template.
fn resolve(pod: &Pod, entry: &PodResourceClaim) -> Result<Option<Reference>, String> {
    let pod_name = format!("pod \"{}/{}\"", namespace(pod), name(pod));
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some(Reference { name: name.clone(), made_for_pod: false }));
    }
    if entry.resource_claim_template_name.is_none() {
        return Err(format!("{pod_name}, spec.resourceClaim {:?}: none of the supported fields are set", entry.name));
    }
    let statuses = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref());
    let status = statuses.unwrap_or_default().iter().find(|status| status.name == entry.name);
    let status = status.ok_or_else(|| format!("{pod_name}: ResourceClaim not created yet"))?;
    Ok(status.resource_claim_name.clone().map(|name| Reference { name, made_for_pod: true }))
}

/// All claims that the pod refers to, each once, in the order of its spec.
///
/// # Errors
/// As stock words them: a claim was not made yet, or an entry names none.
pub fn of_pod(pod: &Pod) -> Result<Vec<Reference>, String> {
    let entries = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
    let mut references: Vec<Reference> = Vec::new();
    let found = entries.iter().filter_map(|entry| resolve(pod, entry).transpose());
    let extended =
        extended(pod).map(|status| Ok(Reference { name: status.resource_claim_name.clone(), made_for_pod: false }));
    for reference in found.chain(extended) {
        let reference = reference?;
        if references.iter().all(|known| known.name != reference.name) {
            references.push(reference);
        }
    }
    Ok(references)
}

/// The requests of claims that a container uses: the claim's name with the request's; none for all its requests.
///
/// # Errors
/// As [`of_pod`].
pub fn of_container(pod: &Pod, container: &Container) -> Result<Vec<(String, Option<String>)>, String> {
    let entries = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
    let wanted = container.resources.as_ref().and_then(|resources| resources.claims.as_deref()).unwrap_or_default();
    let mut uses = Vec::new();
    for entry in entries {
        let requests = wanted.iter().filter(|claim| claim.name == entry.name).map(|claim| &claim.request);
        let requests: Vec<_> = requests.map(|request| request.clone().filter(|name| !name.is_empty())).collect();
        if requests.is_empty() {
            continue;
        }
        if let Some(claim) = resolve(pod, entry)? {
            uses.extend(requests.into_iter().map(|request| (claim.name.clone(), request)));
        }
    }
    if let Some(status) = extended(pod) {
        let asked = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let mapped = status.request_mappings.iter().filter(|mapping| {
            let quantity = asked.and_then(|requests| requests.get(&mapping.resource_name));
            mapping.container_name == container.name && quantity.is_some_and(|quantity| quantity.0 != "0")
        });
        uses.extend(mapped.map(|mapping| (status.resource_claim_name.clone(), Some(mapping.request_name.clone()))));
    }
    Ok(uses)
}

/// What the claim gives to the pod.
///
/// # Errors
/// As stock words them: it was made for another pod, is not reserved for this one, or not allocated.
pub fn check(pod: &Pod, reference: &Reference, claim: &ResourceClaim) -> Result<Allocated, String> {
    let (claim_name, claim_uid) = (&reference.name, claim.metadata.uid.clone().unwrap_or_default());
    let owner = claim.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    if reference.made_for_pod && owner.is_none_or(|owner| owner.uid != uid(pod)) {
        let namespace = namespace(pod);
        return Err(format!(
            "ResourceClaim {namespace}/{claim_name} was not created for Pod {namespace}/{} (Pod is not owner)",
            name(pod)
        ));
    }
    let status = claim.status.clone().unwrap_or_default();
    if !status.reserved_for.iter().flatten().any(|consumer| consumer.uid == uid(pod)) {
        let (name, uid) = (name(pod), uid(pod));
        return Err(format!("pod {name} ({uid}) is not allowed to use ResourceClaim {claim_name} ({claim_uid})"));
    }
    let allocation = status.allocation.ok_or_else(|| format!("ResourceClaim {claim_name}: not allocated"))?;
    let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
    Ok(Allocated {
        key: Key::new(namespace(pod), claim_name),
        uid: claim_uid,
        drivers: results.into_iter().map(|result| result.driver).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(claims: Value, status: Value) -> Pod {
        let spec = json!({"containers": [], "resourceClaims": claims});
        let metadata = json!({"name": "web", "namespace": "shop", "uid": "p1"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn container(resources: Value) -> Container {
        serde_json::from_value(json!({"name": "app", "resources": resources})).unwrap()
    }

    fn claim(metadata: Value, status: Value) -> ResourceClaim {
        serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()
    }

    #[test]
    fn claims_by_name_by_template_and_for_extended_resources() {
        let of = pod(
            json!([
                {"name": "shared", "resourceClaimName": "gpu"},
                {"name": "own", "resourceClaimTemplateName": "t"},
                {"name": "again", "resourceClaimName": "gpu"},
                {"name": "none", "resourceClaimTemplateName": "t"},
            ]),
            json!({
                "resourceClaimStatuses": [{"name": "own", "resourceClaimName": "web-own-x1"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "web-ext", "requestMappings": [
                    {"containerName": "app", "resourceName": "example.com/gpu", "requestName": "r-0"},
                    {"containerName": "app", "resourceName": "example.com/not", "requestName": "r-1"},
                    {"containerName": "other", "resourceName": "example.com/gpu", "requestName": "r-2"}]},
            }),
        );
        let reference = |name: &str, made_for_pod| Reference { name: name.into(), made_for_pod };
        let all = [reference("gpu", false), reference("web-own-x1", true), reference("web-ext", false)];
        assert_eq!(of_pod(&of).unwrap(), all);
        let app = container(json!({
            "claims": [{"name": "own", "request": "big"}, {"name": "shared"}, {"name": "none"}],
            "requests": {"example.com/gpu": "1", "example.com/not": "0"},
        }));
        let uses = of_container(&of, &app).unwrap();
        let used = |claim: &str, request: Option<&str>| (claim.to_owned(), request.map(str::to_owned));
        assert_eq!(uses, [used("gpu", None), used("web-own-x1", Some("big")), used("web-ext", Some("r-0"))]);
        assert!(uses_claims(&of) && !uses_claims(&pod(json!([]), json!({}))));
    }

    #[test]
    fn what_is_missing_is_said_in_stock_s_words() {
        let early = pod(json!([{"name": "own", "resourceClaimTemplateName": "t"}]), json!({}));
        assert_eq!(of_pod(&early).unwrap_err(), "pod \"shop/web\": ResourceClaim not created yet");
        let empty = pod(json!([{"name": "own"}]), json!({}));
        let error = of_pod(&empty).unwrap_err();
        assert_eq!(error, "pod \"shop/web\", spec.resourceClaim \"own\": none of the supported fields are set");
    }

    #[test]
    fn a_claim_must_be_the_pod_s_and_allocated() {
        let of = pod(json!([]), json!({}));
        let made = Reference { name: "gpu".into(), made_for_pod: true };
        let named = Reference { made_for_pod: false, ..made.clone() };
        let owned = |uid: &str| {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid, "controller": true});
            json!({"name": "gpu", "uid": "c1", "ownerReferences": [owner]})
        };
        let reserved = json!([{"resource": "pods", "name": "web", "uid": "p1"}]);
        let result = |driver: &str| json!({"driver": driver, "pool": "n", "device": "d", "request": "r"});
        let results = json!([result("a.example.com"), result("b.example.com"), result("a.example.com")]);
        let whole = json!({"reservedFor": reserved, "allocation": {"devices": {"results": results}}});
        let good = check(&of, &made, &claim(owned("p1"), whole.clone())).unwrap();
        assert_eq!((good.key.to_string().as_str(), good.uid.as_str(), good.drivers.len()), ("shop/gpu", "c1", 2));
        let error = check(&of, &made, &claim(owned("p2"), whole.clone())).unwrap_err();
        assert_eq!(error, "ResourceClaim shop/gpu was not created for Pod shop/web (Pod is not owner)");
        check(&of, &named, &claim(owned("p2"), whole)).unwrap();
        let error = check(&of, &named, &claim(owned("p1"), json!({}))).unwrap_err();
        assert_eq!(error, "pod web (p1) is not allowed to use ResourceClaim gpu (c1)");
        let error = check(&of, &named, &claim(owned("p1"), json!({"reservedFor": reserved}))).unwrap_err();
        assert_eq!(error, "ResourceClaim gpu: not allocated");
    }
}
