//! Real packets through the real kernel: who answers, and whom it sees.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

use lab::{Lab, OTHER_ADDRESS, ask_udp, dual, options, sh, vip};
use serde_json::json;

const FAMILIES: [bool; 2] = [false, true];

/// Who answers within several tries.
fn answers(ask: impl Fn() -> Result<String, ErrorKind>) -> BTreeSet<String> {
    (0..24).map(|_| ask().unwrap().split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn cluster_ips_answer_pods_node_and_client() {
    let mut lab = Lab::new();
    lab.service(dual(json!({})));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    for v6 in FAMILIES {
        let to = vip(v6, 80);
        for host in [&lab.pods[0], &lab.node, &lab.client] {
            let who = answers(|| host.ask(to));
            assert_eq!(who, BTreeSet::from(["pod1".into(), "pod2".into()]), "{} {to}", host.name);
        }
        // Between pods the address is kept; the client outside the cluster appears as the node.
        let seen = (0..24).map(|_| lab.pods[0].ask(to).unwrap()).find(|answer| answer.starts_with("pod2")).unwrap();
        assert_eq!(seen, format!("pod2 {}", lab.pods[0].address(v6)));
        let seen = lab.client.ask(to).unwrap();
        assert!(!seen.ends_with(&format!(" {}", lab.client.address(v6))), "{seen}");
        assert!(ask_udp(&lab.pods[0].udp(v6), to).unwrap().starts_with("pod"));
        assert!(ask_udp(&lab.node.udp(v6), to).unwrap().starts_with("pod"));
    }
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    let mut lab = Lab::new();
    lab.service(dual(json!({})));
    lab.endpoints(&[0], json!({}));
    lab.sync();
    for v6 in FAMILIES {
        let seen = lab.pods[0].ask(vip(v6, 80)).unwrap();
        assert!(seen.starts_with("pod1 ") && seen != format!("pod1 {}", lab.pods[0].address(v6)), "{seen}");
        assert!(ask_udp(&lab.pods[0].udp(v6), vip(v6, 80)).unwrap().starts_with("pod1"));
    }
}

#[test]
fn node_ports_answer_on_the_primary_address_only() {
    let mut lab = Lab::new();
    lab.service(dual(json!({"type": "NodePort"})));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    for v6 in FAMILIES {
        let to = SocketAddr::new(lab.node.address(v6), 30080);
        for host in [&lab.client, &lab.pods[0], &lab.node] {
            assert_eq!(answers(|| host.ask(to)).len(), 2, "{} {to}", host.name);
        }
        assert!(ask_udp(&lab.client.udp(v6), to).unwrap().starts_with("pod"));
    }
    let other = SocketAddr::new(OTHER_ADDRESS.parse().unwrap(), 30080);
    assert_eq!(lab.client.ask(other), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn what_is_not_served_is_refused_at_once() {
    let mut lab = Lab::new();
    lab.service(dual(json!({"type": "NodePort"})));
    lab.sync();
    for v6 in FAMILIES {
        let node_port = SocketAddr::new(lab.node.address(v6), 30080);
        for host in [&lab.pods[0], &lab.node, &lab.client] {
            for to in [vip(v6, 80), vip(v6, 81), node_port] {
                let start = Instant::now();
                assert_eq!(host.ask(to), Err(ErrorKind::ConnectionRefused), "{} {to}", host.name);
                assert!(start.elapsed().as_millis() < 500, "{} {to}", host.name);
            }
        }
    }
    // An address of the range that is nobody's is silent; a Service's that comes to life answers.
    assert_eq!(lab.pods[0].ask("10.96.0.99:80".parse().unwrap()), Err(ErrorKind::TimedOut));
    lab.endpoints(&[1], json!({}));
    lab.sync();
    assert!(lab.pods[0].ask(vip(false, 80)).unwrap().starts_with("pod2"));
}

#[test]
fn a_udp_client_moves_when_its_endpoint_goes() {
    let mut lab = Lab::new();
    lab.service(dual(json!({})));
    lab.endpoints(&[0], json!({}));
    lab.sync();
    for v6 in FAMILIES {
        lab.endpoints(&[0], json!({}));
        lab.sync();
        let socket = lab.client.udp(v6);
        let steady = lab.client.udp(v6);
        assert!(ask_udp(&socket, vip(v6, 80)).unwrap().starts_with("pod1"));
        lab.endpoints(&[1], json!({}));
        lab.sync();
        assert!(ask_udp(&socket, vip(v6, 80)).unwrap().starts_with("pod2"));
        assert!(ask_udp(&steady, vip(v6, 80)).unwrap().starts_with("pod2"));
    }
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint_until_it_goes() {
    let mut lab = Lab::new();
    let sticky = json!({"sessionAffinity": "ClientIP", "type": "NodePort"});
    lab.service(dual(sticky.clone()));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    for v6 in FAMILIES {
        for to in [vip(v6, 80), SocketAddr::new(lab.node.address(v6), 30080)] {
            lab.endpoints(&[0, 1], json!({}));
            lab.sync();
            let first = answers(|| lab.client.ask(to));
            assert_eq!(first.len(), 1, "{to}");
            let (gone, stays) = if first.contains("pod1") { (1, "pod2") } else { (0, "pod1") };
            lab.endpoints(&[gone], json!({}));
            lab.sync();
            assert_eq!(answers(|| lab.client.ask(to)), BTreeSet::from([stays.to_owned()]));
            // It stays with its second endpoint when the first comes back.
            lab.endpoints(&[0, 1], json!({}));
            lab.sync();
            assert_eq!(answers(|| lab.client.ask(to)), BTreeSet::from([stays.to_owned()]));
        }
    }
    lab.service(dual(json!({"type": "NodePort"})));
    lab.sync();
    assert_eq!(answers(|| lab.client.ask(vip(false, 80))).len(), 2);
}

#[test]
fn external_policy_local_keeps_the_client_and_short_circuits_pods() {
    let mut lab = Lab::new();
    lab.service(dual(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    for v6 in FAMILIES {
        let to = SocketAddr::new(lab.node.address(v6), 30080);
        assert_eq!(lab.client.ask(to).unwrap(), format!("pod1 {}", lab.client.address(v6)));
        assert_eq!(answers(|| lab.pods[0].ask(to)).len(), 2);
        assert_eq!(answers(|| lab.node.ask(to)).len(), 2);
    }
    lab.endpoints(&[1], json!({}));
    lab.sync();
    let to = SocketAddr::new(lab.node.address(false), 30080);
    assert_eq!(lab.client.ask(to), Err(ErrorKind::TimedOut), "no endpoint here: dropped");
    assert!(lab.pods[0].ask(to).unwrap().starts_with("pod2"));
    assert!(lab.client.ask(vip(false, 80)).unwrap().starts_with("pod2"), "the cluster IP has another policy");
}

#[test]
fn internal_policy_local_uses_this_node_or_drops() {
    let mut lab = Lab::new();
    lab.service(dual(json!({"internalTrafficPolicy": "Local"})));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    assert_eq!(answers(|| lab.pods[1].ask(vip(false, 80))), BTreeSet::from(["pod1".to_owned()]));
    lab.endpoints(&[1], json!({}));
    lab.sync();
    assert_eq!(lab.pods[1].ask(vip(false, 80)), Err(ErrorKind::TimedOut));
}

#[test]
fn terminating_endpoints_serve_when_there_is_no_other() {
    let mut lab = Lab::new();
    lab.service(dual(json!({})));
    lab.endpoints(&[1], json!({"ready": false, "serving": true, "terminating": true}));
    lab.sync();
    assert!(lab.pods[0].ask(vip(false, 80)).unwrap().starts_with("pod2"));
    lab.endpoints(&[1], json!({"ready": false, "serving": false, "terminating": true}));
    lab.sync();
    assert_eq!(lab.pods[0].ask(vip(false, 80)), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn external_and_balancer_addresses_with_source_ranges() {
    let mut lab = Lab::new();
    let spec = |ranges: &[&str]| {
        dual(
            json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.1"], "ingress": [{"ip": "203.0.113.2"}, {"ip": "203.0.113.3", "ipMode": "Proxy"}],
            "loadBalancerSourceRanges": ranges}),
        )
    };
    lab.service(spec(&[]));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    let at = |last: u8| SocketAddr::from(([203, 0, 113, last], 80));
    assert_eq!(answers(|| lab.client.ask(at(1))).len(), 2);
    assert_eq!(answers(|| lab.client.ask(at(2))).len(), 2);
    assert!(lab.client.ask(at(3)).is_err());
    lab.service(spec(&["192.168.7.64/26", "10.1.0.0/16"]));
    lab.sync();
    assert_eq!(lab.client.ask(at(2)), Err(ErrorKind::TimedOut));
    assert!(lab.pods[0].ask(at(2)).is_ok());
    assert!(lab.client.ask(at(1)).is_ok(), "ranges are the balancer's only");
    assert!(lab.client.ask(SocketAddr::new(lab.node.v4, 30080)).is_ok(), "and not the node ports'");
    lab.service(spec(&["192.168.7.0/24"]));
    lab.sync();
    assert!(lab.client.ask(at(2)).is_ok());
}

#[test]
fn connections_outlive_changes_restarts_and_repair() {
    let mut lab = Lab::new();
    lab.service(dual(json!({})));
    lab.endpoints(&[0, 1], json!({}));
    lab.sync();
    let mut open = lab.client.connect(vip(false, 80)).unwrap();
    let mut buf = [0; 64];
    assert!(open.read(&mut buf).unwrap() > 0);
    let mut still_works = || {
        open.write_all(b"x").unwrap();
        assert_eq!(open.read(&mut buf).unwrap(), 1);
    };
    // A new process finds everything as it should be.
    let mut second = lab.node.run(|| bosun_proxy::nftables::Backend::open(options())).unwrap();
    assert!(!second.reconcile(&lab.planner).unwrap());
    // Endpoints come and go.
    lab.endpoints(&[0], json!({}));
    lab.sync();
    still_works();
    // Someone takes out elements, a rule, everything: each is mended and no connection notices.
    for damage in [
        "nft delete element ip kube-proxy service-ips '{ 10.96.0.10 . tcp . 80 }'",
        "nft add element ip kube-proxy cluster-ips '{ 10.96.0.77 }'",
        "nft flush chain ip kube-proxy services",
        "nft flush set ip kube-proxy hairpin-connections",
        "nft flush map ip kube-proxy endpoints",
        "nft flush ruleset",
    ] {
        lab.node.run(move || sh(damage));
        assert!(lab.backend.reconcile(&lab.planner).unwrap(), "{damage}");
        assert!(!lab.backend.reconcile(&lab.planner).unwrap(), "{damage}");
        assert!(lab.client.ask(vip(false, 80)).unwrap().starts_with("pod1"), "{damage}");
        still_works();
    }
    lab.node.run(bosun_proxy::nftables::Backend::clean_up).unwrap();
    assert_eq!(lab.node.run(|| sh("nft list ruleset")), "");
}

#[test]
fn two_services_with_one_address_do_not_fight() {
    let mut lab = Lab::new();
    lab.service(dual(json!({})));
    lab.endpoints(&[0], json!({}));
    lab.sync();
    let other =
        json!({"clusterIP": "10.96.0.11", "externalIPs": ["10.96.0.10"], "ports": [{"name": "tcp", "port": 80}]});
    lab.named_service("other", other);
    lab.sync();
    assert!(lab.client.ask(vip(false, 80)).unwrap().starts_with("pod1"), "the first keeps it");
    lab.planner.take(bosun_proxy::model::Change::Service("default/web".into(), None));
    lab.sync();
    assert_eq!(
        lab.client.ask(vip(false, 80)),
        Err(ErrorKind::ConnectionRefused),
        "the second has it, without endpoints"
    );
}
