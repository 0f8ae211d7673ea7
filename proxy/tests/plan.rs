//! The plan as text, compared with golden files; `UPDATE_GOLDEN=1` writes them anew.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::path::Path;

use bosun_proxy::config::NodePortScope;
use bosun_proxy::convert;
use bosun_proxy::model::{Change, Node};
use bosun_proxy::plan::{Delta, Front, FrontKey, Planner};
use proptest::prelude::*;
use serde_json::{Value, json};

fn planner() -> Planner {
    let mut planner = Planner::new("node", NodePortScope::Nets { primary: true, nets: Vec::new() });
    planner.take(Change::Node(Node {
        name: "node".into(),
        addresses: ["192.168.7.1".parse().unwrap(), "fd07::1".parse().unwrap()].into(),
        zone: Some("a".into()),
        ..Node::default()
    }));
    planner
}

fn service(planner: &mut Planner, name: &str, spec: Value, status: Value) {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec, "status": status});
    let service = convert::service(&serde_json::from_value(object).unwrap());
    planner.take(Change::Service(format!("default/{name}").into(), service));
}

fn slice(planner: &mut Planner, name: &str, kind: &str, ports: Value, endpoints: Value) {
    let object = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name.trim_end_matches(['4', '6', '-'])}},
        "addressType": kind, "ports": ports, "endpoints": endpoints,
    });
    let slice = convert::slice(&serde_json::from_value(object).unwrap(), "node");
    planner.take(Change::Slice(format!("default/{name}").into(), slice));
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "differs from {}; UPDATE_GOLDEN=1 accepts it", path.display());
}

#[test]
fn every_kind_of_front() {
    let mut planner = planner();
    planner.take(Change::ServiceCidrs(vec!["10.96.0.0/12".parse().unwrap()]));
    let http = json!([{"name": "http", "port": 8080}]);
    let both = json!([
        {"addresses": ["10.1.0.1"], "nodeName": "node"},
        {"addresses": ["10.1.0.2"], "nodeName": "other"},
        {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    let port = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    service(
        &mut planner,
        "plain",
        json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}),
        json!({}),
    );
    slice(&mut planner, "plain-4", "IPv4", http.clone(), both.clone());
    service(
        &mut planner,
        "dual",
        json!({"type": "NodePort", "clusterIPs": ["10.96.0.2", "fd96::2"], "clusterIP": "10.96.0.2", "ports": port, "sessionAffinity": "ClientIP"}),
        json!({}),
    );
    slice(&mut planner, "dual-4", "IPv4", http.clone(), both.clone());
    slice(&mut planner, "dual-6", "IPv6", http.clone(), json!([{"addresses": ["fd01::1"], "nodeName": "node"}]));
    service(
        &mut planner,
        "balancer",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.3", "externalIPs": ["203.0.113.1"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "loadBalancerSourceRanges": ["192.0.2.0/24", "fd00::/8"], "ports": [{"name": "http", "port": 80, "nodePort": 30081}],
        }),
        json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}, {"ip": "203.0.113.3", "ipMode": "Proxy"}]}}),
    );
    slice(&mut planner, "balancer-4", "IPv4", http.clone(), both);
    service(
        &mut planner,
        "empty",
        json!({"clusterIP": "10.96.0.4", "ports": [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "sctp", "protocol": "SCTP", "port": 9}]}),
        json!({}),
    );
    service(
        &mut planner,
        "draining",
        json!({"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}]}),
        json!({}),
    );
    let leaving =
        json!([{"addresses": ["10.1.0.9"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    slice(&mut planner, "draining-4", "IPv4", http.clone(), leaving);
    service(
        &mut planner,
        "zoned",
        json!({"clusterIP": "10.96.0.6", "ports": [{"name": "http", "port": 80}]}),
        json!({}),
    );
    let hinted = json!([
        {"addresses": ["10.1.1.1"], "hints": {"forZones": [{"name": "a"}]}},
        {"addresses": ["10.1.1.2"], "hints": {"forZones": [{"name": "b"}]}},
    ]);
    slice(&mut planner, "zoned-4", "IPv4", http, hinted);
    service(
        &mut planner,
        "remote",
        json!({"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80}]}),
        json!({}),
    );
    slice(&mut planner, "remote-4", "IPv4", json!([{"name": "http", "port": 1}]), json!([{"addresses": ["10.1.2.1"]}]));
    planner.delta();
    golden("fronts.txt", &planner.plan().to_string());
    assert_eq!(
        planner.health_checks().get(&32000).map(|(name, count)| (&**name, *count)),
        Some(("default/balancer", 1))
    );
}

/// A change of a small cluster, in which Services fight for addresses and slices change their Service.
fn change() -> impl Strategy<Value = Change> {
    let service = (0..4u8, prop::option::of((0..3u8, any::<bool>(), any::<bool>(), 0..3u16)));
    let slice = (0..4u8, prop::option::of((0..4u8, prop::collection::vec((0..4u8, 0..4u8), 0..3))));
    prop_oneof![
        service.prop_map(|(name, spec)| {
            let made = spec.map(|(ip, local, udp, node_port)| {
                let protocol = if udp { "UDP" } else { "TCP" };
                let spec = json!({
                    "type": "NodePort", "clusterIP": format!("10.96.0.{ip}"), "externalIPs": ["203.0.113.1"],
                    "externalTrafficPolicy": if local { "Local" } else { "Cluster" },
                    "ports": [{"name": "p", "protocol": protocol, "port": 80, "nodePort": node_port}],
                });
                let object = json!({"metadata": {"name": "x", "namespace": "default"}, "spec": spec});
                convert::service(&serde_json::from_value(object).unwrap()).unwrap()
            });
            Change::Service(format!("default/s{name}").into(), made)
        }),
        slice.prop_map(|(name, made)| {
            let made = made.map(|(service, endpoints)| {
                let endpoints: Vec<Value> = endpoints
                    .iter()
                    .map(|(ip, state)| {
                        let conditions = json!({"ready": state % 2 == 0, "serving": true, "terminating": state % 2 == 1});
                        json!({"addresses": [format!("10.1.0.{ip}")], "conditions": conditions, "nodeName": if *state > 1 { "node" } else { "other" }})
                    })
                    .collect();
                let object = json!({
                    "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": format!("s{service}")}},
                    "addressType": "IPv4", "endpoints": endpoints,
                    "ports": [{"name": "p", "port": 8080}, {"name": "p", "protocol": "UDP", "port": 8080}],
                });
                convert::slice(&serde_json::from_value(object).unwrap(), "node").unwrap()
            });
            Change::Slice(format!("default/slice{name}").into(), made)
        }),
    ]
}

/// What a reader of differences has after each.
#[derive(Default)]
struct Follower {
    fronts: BTreeMap<FrontKey, Front>,
    cluster_ips: std::collections::BTreeSet<std::net::IpAddr>,
    local: std::collections::BTreeSet<std::net::IpAddr>,
}

impl Follower {
    fn take(&mut self, delta: Delta) {
        for change in delta.fronts {
            let before = match change.new {
                Some(new) => self.fronts.insert(change.key, new),
                None => self.fronts.remove(&change.key),
            };
            assert_eq!(before, change.old, "{}", change.key);
        }
        delta.cluster_ips_added.iter().for_each(|ip| assert!(self.cluster_ips.insert(*ip)));
        delta.cluster_ips_removed.iter().for_each(|ip| assert!(self.cluster_ips.remove(ip)));
        delta.local_added.iter().for_each(|ip| assert!(self.local.insert(*ip)));
        delta.local_removed.iter().for_each(|ip| assert!(self.local.remove(ip)));
    }
}

proptest! {
    #[test]
    fn differences_add_up_to_the_plan(rounds in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..12)) {
        let mut planner = planner();
        let mut follower = Follower::default();
        for changes in rounds {
            changes.into_iter().for_each(|change| planner.take(change));
            follower.take(planner.delta());
            let plan = planner.plan();
            let fronts: BTreeMap<_, _> = plan.fronts.into_iter().map(|(key, (_, front))| (key, front)).collect();
            prop_assert_eq!(&fronts, &follower.fronts);
            prop_assert_eq!(&plan.cluster_ips, &follower.cluster_ips);
            prop_assert_eq!(&plan.local_endpoints, &follower.local);
            prop_assert!(planner.delta().is_empty());
        }
    }
}
