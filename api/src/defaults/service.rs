//! Services, their endpoints, network policies.

use serde_json::{Map, Value, json};

use super::{child, child_if_there, each, set, set_text, text};

const THREE_HOURS: i64 = 10_800;

pub(super) fn service(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set_text(spec, "sessionAffinity", "None");
        if text(spec, "sessionAffinity") == "ClientIP" {
            child(spec, "sessionAffinityConfig", |config| {
                child(config, "clientIP", |client| set(client, "timeoutSeconds", THREE_HOURS));
            });
        } else {
            spec.remove("sessionAffinityConfig");
        }
        set_text(spec, "type", "ClusterIP");
        each(spec, "ports", port);
        policies(spec);
    });
    child(object, "status", |status| set(status, "loadBalancer", json!({})));
}

fn port(port: &mut Map<String, Value>) {
    set_text(port, "protocol", "TCP");
    let unset = match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => name.is_empty(),
        Some(number) => number.as_i64() == Some(0),
    };
    if unset && let Some(number) = port.get("port").cloned() {
        port.insert("targetPort".to_owned(), number);
    }
}

fn policies(spec: &mut Map<String, Value>) {
    let kind = text(spec, "type").to_owned();
    let outside = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer") || kind == "ClusterIP" && outside;
    if external {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

pub(super) fn endpoints(object: &mut Map<String, Value>) {
    each(object, "subsets", |subset| each(subset, "ports", |port| set_text(port, "protocol", "TCP")));
}

pub(super) fn endpoint_slice(object: &mut Map<String, Value>) {
    each(object, "ports", |port| {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    });
}

pub(super) fn network_policy(spec: &mut Map<String, Value>) {
    for direction in ["ingress", "egress"] {
        each(spec, direction, |rule| each(rule, "ports", |port| set(port, "protocol", "TCP")));
    }
    let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
    set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    set(spec, "podSelector", json!({}));
    child_if_there(spec, "podSelector", |_| {});
}
