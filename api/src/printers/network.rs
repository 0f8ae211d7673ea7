//! Services and what is around them.

use serde_json::Value;

use super::{NONE, UNSET, View, labels, or, selector, text};

pub(super) fn service(view: &View<'_>) -> Vec<Value> {
    vec![
        view.name(),
        view.text("/spec/type").into(),
        view.or_none("/spec/clusterIP"),
        external(view).into(),
        or(&ports(view), NONE).into(),
        view.age(),
        labels(view.at("/spec/selector")).into(),
    ]
}

fn strings(view: &View<'_>, pointer: &str) -> String {
    view.list(pointer).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn balancer(view: &View<'_>) -> String {
    let list = view.list("/status/loadBalancer/ingress");
    let addresses: Vec<&str> = list.iter().map(|entry| or(text(entry, "ip"), text(entry, "hostname"))).collect();
    addresses.join(",")
}

fn external(view: &View<'_>) -> String {
    let own = strings(view, "/spec/externalIPs");
    match view.text("/spec/type") {
        "ExternalName" => view.text("/spec/externalName").to_owned(),
        "LoadBalancer" => match (balancer(view), own) {
            (addresses, own) if addresses.is_empty() => or(&own, "<pending>").to_owned(),
            (addresses, own) if own.is_empty() => addresses,
            (addresses, own) => format!("{addresses},{own}"),
        },
        _ => or(&own, NONE).to_owned(),
    }
}

fn ports(view: &View<'_>) -> String {
    let show = |port: &Value| {
        let number = port["port"].as_i64().unwrap_or_default();
        let protocol = text(port, "protocol");
        match port["nodePort"].as_i64().unwrap_or_default() {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    view.list("/spec/ports").iter().map(show).collect::<Vec<_>>().join(",")
}

pub(super) fn endpoints(view: &View<'_>) -> Vec<Value> {
    let mut shown: Vec<String> = Vec::new();
    let mut count = 0;
    for subset in view.list("/subsets") {
        let empty = Vec::new();
        let (addresses, ports) =
            (subset["addresses"].as_array().unwrap_or(&empty), subset["ports"].as_array().unwrap_or(&empty));
        for address in addresses {
            let ip = text(address, "ip");
            let numbers = ports.iter().map(|port| Some(port["port"].as_i64().unwrap_or_default()));
            let numbers: Vec<Option<i64>> = if ports.is_empty() { vec![None] } else { numbers.collect() };
            for number in numbers {
                count += 1;
                if shown.len() < 3 {
                    shown.push(match number {
                        Some(number) if ip.contains(':') => format!("[{ip}]:{number}"),
                        Some(number) => format!("{ip}:{number}"),
                        None => ip.to_owned(),
                    });
                }
            }
        }
    }
    let mut cell = or(&shown.join(","), NONE).to_owned();
    if count > 3 {
        cell.push_str(&format!(" + {} more...", count - 3));
    }
    vec![view.name(), cell.into(), view.age()]
}

/// At most three, and how many more there are.
fn few(items: Vec<String>, otherwise: &str) -> String {
    match items.len() {
        0 => otherwise.to_owned(),
        count if count > 3 => format!("{} + {} more...", items[..3].join(","), count - 3),
        _ => items.join(","),
    }
}

pub(super) fn endpoint_slice(view: &View<'_>) -> Vec<Value> {
    let ports = view.list("/ports").iter().map(|port| {
        port["port"].as_i64().map_or_else(|| or(text(port, "name"), "*").to_owned(), |number| number.to_string())
    });
    let addresses = view.list("/endpoints").iter().flat_map(|endpoint| {
        endpoint["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
    });
    vec![
        view.name(),
        view.text("/addressType").into(),
        few(ports.collect(), UNSET).into(),
        few(addresses.collect(), UNSET).into(),
        view.age(),
    ]
}

pub(super) fn networking(kind: &str, view: &View<'_>) -> Vec<Value> {
    match kind {
        "Ingress" => ingress(view),
        "IngressClass" => {
            let parameters = view.at("/spec/parameters");
            let shown = if parameters.is_null() {
                NONE.to_owned()
            } else {
                let group = text(parameters, "apiGroup");
                format!("{}/{}", crate::status::qualified(text(parameters, "kind"), group), text(parameters, "name"))
            };
            vec![view.name(), view.text("/spec/controller").into(), shown.into(), view.age()]
        }
        "NetworkPolicy" => vec![view.name(), selector(view.at("/spec/podSelector")).into(), view.age()],
        "IPAddress" => {
            let parent = view.at("/spec/parentRef");
            let mut shown = text(parent, "resource").to_owned();
            if !text(parent, "group").is_empty() {
                shown = format!("{shown}.{}", text(parent, "group"));
            }
            if !text(parent, "namespace").is_empty() {
                shown = format!("{shown}/{}", text(parent, "namespace"));
            }
            vec![view.name(), format!("{shown}/{}", text(parent, "name")).into(), view.age()]
        }
        _ => vec![view.name(), strings(view, "/spec/cidrs").into(), view.age()],
    }
}

fn ingress(view: &View<'_>) -> Vec<Value> {
    let hosts: Vec<String> = view
        .list("/spec/rules")
        .iter()
        .map(|rule| text(rule, "host").to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    let ports = if view.list("/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        view.name(),
        view.or_none("/spec/ingressClassName"),
        few(hosts, "*").into(),
        balancer(view).into(),
        ports.into(),
        view.age(),
    ]
}
