//! Services, endpoints, ingresses, network policies.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{port_number, port_or_name};
use super::fault::{Faults, Path, given, items, text};
use super::{meta, selector};
use crate::names;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn create(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let kind = text(&spec["type"]);
    let headless = spec["clusterIP"] == "None";
    if items(&spec["ports"]).is_empty() && !headless && kind != "ExternalName" {
        faults.required(&path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            faults.invalid(&path.child("clusterIPs").index(0), "None", &detail);
        }
        "ExternalName" => external_name(spec, &path, faults),
        _ => {}
    }
    ports(spec, kind, &path.child("ports"), faults);
    meta::labels(&spec["selector"], &path.child("selector"), faults);
    faults.required_one_of(&spec["sessionAffinity"], &path.child("sessionAffinity"), &["ClientIP", "None"]);
    faults.required_one_of(&spec["type"], &path.child("type"), TYPES);
    for (index, ip) in items(&spec["clusterIPs"]).iter().enumerate() {
        let ip = text(ip);
        if ip != "None" {
            faults.complaints(&path.child("clusterIPs").index(index), ip, names::ip_address(ip));
        }
    }
    for (index, ip) in items(&spec["externalIPs"]).iter().enumerate() {
        let ip = text(ip);
        faults.complaints(&path.child("externalIPs").index(index), ip, names::ip_address(ip));
    }
    faults.one_of(&spec["externalTrafficPolicy"], &path.child("externalTrafficPolicy"), &["Cluster", "Local"]);
    faults.one_of(&spec["internalTrafficPolicy"], &path.child("internalTrafficPolicy"), &["Cluster", "Local"]);
    faults.one_of(
        &spec["ipFamilyPolicy"],
        &path.child("ipFamilyPolicy"),
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
}

fn external_name(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    let ip = text(&spec["clusterIP"]);
    if !ip.is_empty() {
        faults.forbidden(&path.child("clusterIPs"), "may not be set for ExternalName services");
    }
    let (name, at) = (text(&spec["externalName"]), path.child("externalName"));
    if name.is_empty() {
        faults.required(&at, "");
    } else {
        faults.complaints(&at, name, names::dns1123_subdomain(name.trim_end_matches('.')));
    }
}

fn ports(spec: &Value, kind: &str, path: &Path<'_>, faults: &mut Faults) {
    let list = items(&spec["ports"]);
    let (mut seen, mut taken, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in list.iter().enumerate() {
        let path = path.index(index);
        let name = text(&port["name"]);
        if name.is_empty() {
            if list.len() > 1 {
                faults.required(&path.child("name"), "");
            }
        } else {
            faults.complaints(&path.child("name"), name, names::dns1123_label(name));
            if !seen.insert(name) {
                faults.duplicate(&path.child("name"), name);
            }
        }
        let number = port["port"].as_i64().unwrap_or_default();
        port_number(number, &path.child("port"), faults);
        faults.required_one_of(&port["protocol"], &path.child("protocol"), PROTOCOLS);
        port_or_name(&port["targetPort"], &path.child("targetPort"), faults);
        if !taken.insert((text(&port["protocol"]), number)) {
            faults.duplicate(&path, serde_json::json!({"port": number, "protocol": port["protocol"]}));
        }
        node_port(port, kind, &path, &mut node_ports, faults);
    }
}

fn node_port<'v>(
    port: &'v Value,
    kind: &str,
    path: &Path<'_>,
    taken: &mut HashSet<(&'v str, i64)>,
    faults: &mut Faults,
) {
    let number = port["nodePort"].as_i64().unwrap_or_default();
    if number == 0 {
        return;
    }
    if matches!(kind, "ClusterIP" | "ExternalName") {
        let detail = format!("may not be used when `type` is '{kind}'");
        faults.forbidden(&path.child("nodePort"), &detail);
    }
    if !taken.insert((text(&port["protocol"]), number)) {
        faults.duplicate(&path.child("nodePort"), number);
    }
}

pub(super) fn update(old: &Value, new: &Value, faults: &mut Faults) {
    let path = Path::root("spec");
    let (old, new) = (&old["spec"], &new["spec"]);
    let has_ip = |spec: &Value| text(&spec["type"]) != "ExternalName";
    // A client that leaves the address out keeps the one it has.
    let (old_ip, new_ip) = (text(&old["clusterIP"]), text(&new["clusterIP"]));
    if has_ip(old) && has_ip(new) && !old_ip.is_empty() && !new_ip.is_empty() && old_ip != new_ip {
        let list = serde_json::json!([new_ip]);
        faults.invalid(&path.child("clusterIPs").index(0), list, "may not change once set");
    }
}

pub(super) fn endpoints(object: &Value, faults: &mut Faults) {
    let list = Path::root("subsets");
    for (index, subset) in items(&object["subsets"]).iter().enumerate() {
        let path = list.index(index);
        if items(&subset["addresses"]).is_empty() && items(&subset["notReadyAddresses"]).is_empty() {
            faults.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(&subset[field]).iter().enumerate() {
                let at = path.child(field);
                let ip = text(&address["ip"]);
                faults.complaints(&at.index(index).child("ip"), ip, names::ip_address(ip));
            }
        }
        for (index, port) in items(&subset["ports"]).iter().enumerate() {
            let at = path.child("ports");
            port_number(port["port"].as_i64().unwrap_or_default(), &at.index(index).child("port"), faults);
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, faults: &mut Faults) {
    faults.required_one_of(&object["addressType"], &Path::root("addressType"), &["FQDN", "IPv4", "IPv6"]);
    let kind = text(&object["addressType"]);
    let endpoints = items(&object["endpoints"]);
    let list = Path::root("endpoints");
    if endpoints.len() > 1000 {
        faults.too_many(&list, endpoints.len(), 1000);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = list.index(index);
        let addresses = items(&endpoint["addresses"]);
        let at = path.child("addresses");
        match addresses.len() {
            0 => faults.required(&at, "must contain at least 1 address"),
            count if count > 100 => faults.too_many(&at, count, 100),
            _ => {}
        }
        for (index, address) in addresses.iter().enumerate() {
            slice_address(kind, text(address), &at.index(index), faults);
        }
    }
    slice_ports(&object["ports"], faults);
}

fn slice_address(kind: &str, address: &str, path: &Path<'_>, faults: &mut Faults) {
    match kind {
        "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
            faults.invalid(path, address, "must be a valid IPv4 address");
        }
        "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
            faults.invalid(path, address, "must be a valid IPv6 address");
        }
        "FQDN" => faults.complaints(path, address, names::dns1123_subdomain(address)),
        _ => {}
    }
}

fn slice_ports(ports: &Value, faults: &mut Faults) {
    let list = Path::root("ports");
    let mut seen = HashSet::new();
    for (index, port) in items(ports).iter().enumerate() {
        let path = list.index(index);
        let name = text(&port["name"]);
        if !name.is_empty() {
            faults.complaints(&path.child("name"), name, names::dns1123_label(name));
        }
        if !seen.insert(name) {
            faults.duplicate(&path.child("name"), name);
        }
        faults.required_one_of(&port["protocol"], &path.child("protocol"), PROTOCOLS);
    }
}

pub(super) fn ingress(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    if items(&spec["rules"]).is_empty() && !given(&spec["defaultBackend"]) {
        faults.invalid(&path, spec.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    let rules = path.child("rules");
    for (index, rule) in items(&spec["rules"]).iter().enumerate() {
        let rule_path = rules.index(index);
        let host = text(&rule["host"]);
        if host.starts_with('*') {
            faults.complaints(&rule_path.child("host"), host, names::wildcard_dns1123_subdomain(host));
        } else if !host.is_empty() {
            faults.complaints(&rule_path.child("host"), host, names::dns1123_subdomain(host));
        }
        let http = rule_path.child("http");
        let paths = http.child("paths");
        for (index, entry) in items(&rule["http"]["paths"]).iter().enumerate() {
            let at = paths.index(index);
            if text(&entry["pathType"]).is_empty() {
                faults.required(&at.child("pathType"), "pathType must be specified");
            } else {
                let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
                faults.one_of(&entry["pathType"], &at.child("pathType"), &kinds);
            }
            let location = text(&entry["path"]);
            if entry["pathType"] != "ImplementationSpecific" && !location.starts_with('/') {
                faults.invalid(&at.child("path"), location, "must be an absolute path");
            }
        }
    }
}

pub(super) fn network_policy(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    selector::label_selector(&spec["podSelector"], &path.child("podSelector"), faults);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let list = path.child(direction);
        for (index, rule) in items(&spec[direction]).iter().enumerate() {
            let at = list.index(index);
            for (index, peer) in items(&rule[peers]).iter().enumerate() {
                if peer.as_object().is_none_or(serde_json::Map::is_empty) {
                    faults.required(&at.child(peers).index(index), "must specify a peer");
                }
                let block = text(&peer["ipBlock"]["cidr"]);
                if given(&peer["ipBlock"]) && block.parse::<ipnet::IpNet>().is_err() {
                    let at = at.child(peers);
                    let at = at.index(index);
                    let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                    faults.invalid(&at.child("ipBlock").child("cidr"), block, detail);
                }
            }
        }
    }
    for (index, kind) in items(&spec["policyTypes"]).iter().enumerate() {
        faults.one_of(kind, &path.child("policyTypes").index(index), &["Egress", "Ingress"]);
    }
}
