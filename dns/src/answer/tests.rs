use super::*;
use serde_json::{Value, json};

fn service(zone: &mut Zone, namespace: &str, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    zone.apply_service(&serde_json::from_value(object).unwrap());
}

fn slice(zone: &mut Zone, namespace: &str, service: &str, endpoints: Value, ports: Value) {
    let labels = json!({"kubernetes.io/service-name": service});
    let object = json!({
        "metadata": {"name": format!("{service}-1"), "namespace": namespace, "labels": labels},
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    });
    zone.apply_slice(&serde_json::from_value(object).unwrap());
}

fn cluster() -> Zone {
    let mut zone = Zone::new("cluster.local").unwrap();
    service(
        &mut zone,
        "default",
        "kubernetes",
        json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}),
    );
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 9153}]);
    service(&mut zone, "kube-system", "kube-dns", json!({"clusterIPs": ["10.96.0.10", "fd00::a"], "ports": ports}));
    service(&mut zone, "default", "db", json!({"clusterIP": "None"}));
    service(&mut zone, "default", "early", json!({"clusterIP": "None", "publishNotReadyAddresses": true}));
    service(&mut zone, "default", "alias", json!({"type": "ExternalName", "externalName": "Example.com"}));
    service(
        &mut zone,
        "default",
        "inner",
        json!({"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"}),
    );
    service(
        &mut zone,
        "default",
        "loop",
        json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"}),
    );
    let endpoints = json!([
        {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.6"]},
        {"addresses": ["10.244.0.7"], "hostname": "db-2", "conditions": {"ready": false}},
    ]);
    slice(&mut zone, "default", "db", endpoints.clone(), json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]));
    slice(&mut zone, "default", "early", endpoints, json!([]));
    zone
}

fn ask(zone: &Zone, name: &str, kind: &str) -> String {
    let query = Query::query(Name::from_ascii(name).unwrap(), kind.parse().unwrap());
    let Outcome::Answer(answer) = answer(zone, &query) else { return "forward\n".into() };
    let mut text = format!("{:?}\n", answer.code);
    for (section, records) in
        [("", &answer.answers), ("authority ", &answer.authorities), ("additional ", &answer.additionals)]
    {
        records.iter().for_each(|record| text += &format!("{section}{record}\n"));
    }
    if let Some(name) = answer.chase {
        text += &format!("chase {name}\n");
    }
    text
}

const SOA_LINE: &str =
    "authority cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5\n";

#[test]
fn golden_answers() {
    let zone = cluster();
    let golden = [
        ("dns-version.cluster.local.", "TXT", "NoError\ndns-version.cluster.local. 5 IN TXT 1.1.0\n"),
        (
            "kubernetes.default.svc.cluster.local.",
            "A",
            "NoError\nkubernetes.default.svc.cluster.local. 5 IN A 10.96.0.1\n",
        ),
        (
            "KUBERNETES.Default.svc.cluster.LOCAL.",
            "A",
            "NoError\nKUBERNETES.Default.svc.cluster.LOCAL. 5 IN A 10.96.0.1\n",
        ),
        (
            "kube-dns.kube-system.svc.cluster.local.",
            "AAAA",
            "NoError\nkube-dns.kube-system.svc.cluster.local. 5 IN AAAA fd00::a\n",
        ),
        (
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            "SRV",
            "NoError\n_https._tcp.kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local.\n\
             additional kubernetes.default.svc.cluster.local. 5 IN A 10.96.0.1\n",
        ),
        (
            "_dns._udp.kube-dns.kube-system.svc.cluster.local.",
            "SRV",
            "NoError\n_dns._udp.kube-dns.kube-system.svc.cluster.local. 5 IN SRV 0 100 53 kube-dns.kube-system.svc.cluster.local.\n\
             additional kube-dns.kube-system.svc.cluster.local. 5 IN A 10.96.0.10\n\
             additional kube-dns.kube-system.svc.cluster.local. 5 IN AAAA fd00::a\n",
        ),
        (
            "1.0.96.10.in-addr.arpa.",
            "PTR",
            "NoError\n1.0.96.10.in-addr.arpa. 5 IN PTR kubernetes.default.svc.cluster.local.\n",
        ),
        (
            "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            "PTR",
            "NoError\na.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. 5 IN PTR kube-dns.kube-system.svc.cluster.local.\n",
        ),
        (
            "db.default.svc.cluster.local.",
            "A",
            "NoError\ndb.default.svc.cluster.local. 5 IN A 10.244.0.5\ndb.default.svc.cluster.local. 5 IN A 10.244.0.6\n",
        ),
        (
            "early.default.svc.cluster.local.",
            "A",
            "NoError\nearly.default.svc.cluster.local. 5 IN A 10.244.0.5\nearly.default.svc.cluster.local. 5 IN A 10.244.0.6\n\
             early.default.svc.cluster.local. 5 IN A 10.244.0.7\n",
        ),
        ("db-0.db.default.svc.cluster.local.", "A", "NoError\ndb-0.db.default.svc.cluster.local. 5 IN A 10.244.0.5\n"),
        (
            "10-244-0-6.db.default.svc.cluster.local.",
            "A",
            "NoError\n10-244-0-6.db.default.svc.cluster.local. 5 IN A 10.244.0.6\n",
        ),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            "SRV",
            "NoError\n_sql._tcp.db.default.svc.cluster.local. 5 IN SRV 0 100 5432 db-0.db.default.svc.cluster.local.\n\
             _sql._tcp.db.default.svc.cluster.local. 5 IN SRV 0 100 5432 10-244-0-6.db.default.svc.cluster.local.\n\
             additional db-0.db.default.svc.cluster.local. 5 IN A 10.244.0.5\n\
             additional 10-244-0-6.db.default.svc.cluster.local. 5 IN A 10.244.0.6\n",
        ),
        (
            "5.0.244.10.in-addr.arpa.",
            "PTR",
            "NoError\n5.0.244.10.in-addr.arpa. 5 IN PTR db-0.db.default.svc.cluster.local.\n\
             5.0.244.10.in-addr.arpa. 5 IN PTR db-0.early.default.svc.cluster.local.\n",
        ),
        (
            "alias.default.svc.cluster.local.",
            "CNAME",
            "NoError\nalias.default.svc.cluster.local. 5 IN CNAME Example.com.\n",
        ),
        (
            "alias.default.svc.cluster.local.",
            "A",
            "NoError\nalias.default.svc.cluster.local. 5 IN CNAME Example.com.\nchase Example.com.\n",
        ),
        (
            "inner.default.svc.cluster.local.",
            "A",
            "NoError\ninner.default.svc.cluster.local. 5 IN CNAME kubernetes.default.svc.cluster.local.\n\
             kubernetes.default.svc.cluster.local. 5 IN A 10.96.0.1\n",
        ),
        (
            "10-244-0-9.default.pod.cluster.local.",
            "A",
            "NoError\n10-244-0-9.default.pod.cluster.local. 5 IN A 10.244.0.9\n",
        ),
        (
            "fd00--9.default.pod.cluster.local.",
            "AAAA",
            "NoError\nfd00--9.default.pod.cluster.local. 5 IN AAAA fd00::9\n",
        ),
        ("cluster.local.", "NS", "NoError\ncluster.local. 5 IN NS ns.dns.cluster.local.\n"),
        ("example.com.", "A", "forward\n"),
        ("otherlocal.", "A", "forward\n"),
        ("9.9.9.9.in-addr.arpa.", "PTR", "forward\n"),
        ("96.10.in-addr.arpa.", "PTR", "forward\n"),
    ];
    for (name, kind, text) in golden {
        assert_eq!(ask(&zone, name, kind), text, "{name} {kind}");
    }
}

#[test]
fn nothing_there_and_no_such_type_are_told_apart() {
    let zone = cluster();
    for (name, kind) in [
        ("kubernetes.default.svc.cluster.local.", "AAAA"),
        ("kubernetes.default.svc.cluster.local.", "MX"),
        ("_tcp.kubernetes.default.svc.cluster.local.", "A"),
        ("default.svc.cluster.local.", "A"),
        ("svc.cluster.local.", "A"),
        ("cluster.local.", "A"),
        ("10-244-0-9.default.pod.cluster.local.", "AAAA"),
        ("dns-version.cluster.local.", "A"),
    ] {
        assert_eq!(ask(&zone, name, kind), format!("NoError\n{SOA_LINE}"), "{name} {kind}");
    }
    for name in [
        "nope.default.svc.cluster.local.",
        "kubernetes.nope.svc.cluster.local.",
        "nope.svc.cluster.local.",
        "_http._tcp.kubernetes.default.svc.cluster.local.",
        "_udp.kubernetes.default.svc.cluster.local.",
        "db-2.db.default.svc.cluster.local.",
        "x.kubernetes.default.svc.cluster.local.",
        "nonsense.default.pod.cluster.local.",
        "google.com.default.svc.cluster.local.",
        "x.cluster.local.",
    ] {
        assert_eq!(ask(&zone, name, "A"), format!("NXDomain\n{SOA_LINE}"), "{name}");
    }
}

#[test]
fn an_alias_of_itself_ends() {
    assert_eq!(ask(&cluster(), "loop.default.svc.cluster.local.", "A").lines().count(), 1 + ALIASES);
}

#[test]
fn what_goes_is_forgotten() {
    let mut zone = cluster();
    zone.remove_service("default", "kubernetes");
    zone.remove_service("default", "db");
    assert_eq!(ask(&zone, "kubernetes.default.svc.cluster.local.", "A"), format!("NXDomain\n{SOA_LINE}"));
    assert_eq!(ask(&zone, "1.0.96.10.in-addr.arpa.", "PTR"), "forward\n");
    // The slice is still there and the Service comes back.
    service(&mut zone, "default", "db", json!({"clusterIP": "None"}));
    assert!(ask(&zone, "db.default.svc.cluster.local.", "A").contains("10.244.0.6"));
    zone.retain_services(&Default::default());
    zone.retain_slices(&Default::default());
    assert!(zone.is_empty());
    assert_eq!(ask(&zone, "default.svc.cluster.local.", "A"), format!("NXDomain\n{SOA_LINE}"));
}
