//! bridge, host-local and loopback on a real kernel, each test in its own network namespaces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use node::{Node, answer, with_result};
use serde_json::{Value, json};
use std::{collections::HashSet, path::Path, time::Duration};

#[test]
fn a_container_reaches_its_gateway_and_its_neighbour() {
    let node = Node::new();
    let conf = node.network("1.0.0");
    let first = node.add("a", &conf);
    node.add("b", &conf);
    assert_eq!(first["ips"], json!([{"address": "10.88.0.2/22", "gateway": "10.88.0.1", "interface": 2}]));
    assert_eq!(first["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}]));
    for target in ["10.88.0.1", "10.88.0.3"] {
        node.reaches("a", target);
    }
    assert_eq!(node.exec("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    let port = node.exec("bridge -d link show");
    assert_eq!(port.matches("hairpin on").count(), 2, "{port}");
}

#[test]
fn results_are_the_reference_plugins() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let (ours, theirs) = (Node::new(), Node::reference());
        let [ours, theirs] = [&ours, &theirs].map(|node| shape(node.add("a", &node.network(version))));
        assert_eq!(ours, theirs, "{version}");
    }
}

/// A result without what differs from run to run.
fn shape(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().unwrap() {
        let mac = interface["mac"].as_str().unwrap();
        assert_eq!(mac.len(), 17, "{mac}");
        interface["mac"] = "mac".into();
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"] = "veth".into();
        }
        if let Some(sandbox) = interface.get_mut("sandbox") {
            assert!(sandbox.as_str().unwrap().starts_with("/run/netns/"));
            *sandbox = "sandbox".into();
        }
    }
    result
}

#[test]
fn both_families() {
    let node = Node::new();
    let mut conf = node.network("1.1.0");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]);
    let result = node.add("a", &conf);
    assert_eq!(result["ips"][1]["address"], "fd00:88::2/64");
    node.reaches("a", "fd00:88::1");
    let netns = format!("/run/netns/{}", node.host().replace("-host", "-a"));
    node.call("bridge", "CHECK", "a", Some(Path::new(&netns)), &with_result(&conf, &result)).unwrap();
    node.call("bridge", "DEL", "a", Some(Path::new(&netns)), &conf).unwrap();
    assert!(node.addresses().is_empty());
}

#[test]
fn delete_is_idempotent_and_needs_no_namespace() {
    let node = Node::new();
    let conf = node.network("0.4.0");
    let netns = node.container("a");
    let result = node.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap();
    assert_eq!((node.veths(), node.addresses().len()), (1, 1));
    for _ in 0..2 {
        node.call("bridge", "DEL", "a", Some(&netns), &with_result(&conf, &result)).unwrap();
        assert_eq!((node.veths(), node.addresses().len()), (0, 0));
    }
    node.add("b", &conf);
    node.remove_container("b");
    node.call("bridge", "DEL", "b", None, &conf).unwrap();
    let gone = Path::new("/run/netns/that-is-not-there");
    node.call("bridge", "DEL", "b", Some(gone), &conf).unwrap();
    assert!(node.addresses().is_empty());
    node.call("bridge", "DEL", "never-seen", Some(gone), &conf).unwrap();
}

#[test]
fn the_reference_plugins_attachments_are_ours_to_delete() {
    let ours = Node::new();
    let mut reference = Node::reference();
    let conf = reference.network("1.0.0");
    let netns = reference.container("a");
    let result = reference.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap();
    reference.plugins.clone_from(&ours.plugins);
    let conf = with_result(&conf, &result);
    reference.call("bridge", "CHECK", "a", Some(&netns), &conf).unwrap();
    reference.call("bridge", "DEL", "a", Some(&netns), &conf).unwrap();
    assert_eq!((reference.veths(), reference.addresses().len()), (0, 0));
}

#[test]
fn check_finds_what_was_tampered_with() {
    let node = Node::new();
    let conf = node.network("1.0.0");
    type Tamper<'a> = (&'a str, &'a dyn Fn(&Node));
    let tampering: [Tamper<'_>; 6] = [
        ("has no address 10.88", &|node| drop(node.inside("a", "ip addr flush dev eth0"))),
        ("has no route to 0.0.0.0/0", &|node| drop(node.inside("a", "ip route del default"))),
        ("no link veth", &|node| drop(node.inside("a", "ip link del eth0"))),
        ("eth0 in the container is down", &|node| drop(node.inside("a", "ip link set eth0 down"))),
        ("has hairpin mode", &|node| {
            let name = node.exec("ip -o link show type veth").split([':', '@']).nth(1).unwrap().trim().to_owned();
            node.exec(&format!("ip link set {name} type bridge_slave hairpin off"));
        }),
        ("Failed to find address", &|node| {
            let address = node.addresses().remove(0);
            std::fs::remove_file(node.data.path().join("networks/testnet").join(address)).unwrap();
        }),
    ];
    for (complaint, tamper) in tampering {
        let netns = node.container("a");
        let result = node.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap();
        let conf = with_result(&conf, &result);
        node.call("bridge", "CHECK", "a", Some(&netns), &conf).unwrap();
        tamper(&node);
        let error = node.call("bridge", "CHECK", "a", Some(&netns), &conf).unwrap_err();
        let message = error["msg"].as_str().unwrap();
        assert!(message.contains(complaint), "{message} is not {complaint}");
        node.call("bridge", "DEL", "a", Some(&netns), &conf).unwrap();
        node.remove_container("a");
    }
}

#[test]
fn a_hundred_at_once_get_a_hundred_addresses() {
    let node = Node::new();
    let conf = node.network("1.0.0");
    let ids: Vec<_> = (0..100).map(|n| format!("c{n}")).collect();
    let namespaces: Vec<_> = ids.iter().map(|id| node.container(id)).collect();
    let started: Vec<_> =
        ids.iter().zip(&namespaces).map(|(id, netns)| node.start("bridge", "ADD", id, Some(netns), &conf)).collect();
    let results: Vec<_> = started.into_iter().map(|child| answer(child).unwrap()).collect();
    let addresses: HashSet<_> = results.iter().map(|result| result["ips"][0]["address"].to_string()).collect();
    assert_eq!((addresses.len(), node.veths(), node.addresses().len()), (100, 100, 100));
    let started: Vec<_> =
        ids.iter().zip(&namespaces).map(|(id, netns)| node.start("bridge", "DEL", id, Some(netns), &conf)).collect();
    started.into_iter().for_each(|child| drop(answer(child).unwrap()));
    assert_eq!((node.veths(), node.addresses().len()), (0, 0));
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let mut conf = node.network("1.0.0");
    // A gateway that is not on the link makes the last step fail.
    conf["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    let netns = node.container("a");
    let error = node.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("route 192.0.2.0/24 via 203.0.113.1"), "{error}");
    assert_eq!((node.veths(), node.addresses().len()), (0, 0));
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let node = Node::new();
    let conf = node.network("1.0.0");
    let netns = node.container("a");
    node.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap();
    let error = node.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap_err();
    assert_eq!(error["msg"], "container a already has an interface eth0");
    node.reaches("a", "10.88.0.1");
    assert_eq!(node.addresses().len(), 1);
}

#[test]
fn killed_anywhere_garbage_collection_leaves_nothing() {
    let node = Node::new();
    let conf = node.network("1.1.0");
    let keep = node.add("keep", &conf);
    for round in 0..60u64 {
        let id = format!("c{round}");
        let netns = node.container(&id);
        let command = if round % 3 == 2 { "DEL" } else { "ADD" };
        if command == "DEL" {
            node.call("bridge", "ADD", &id, Some(&netns), &conf).unwrap();
        }
        let mut child = node.start("bridge", command, &id, Some(&netns), &conf);
        // Kills spread over the time that a call takes: `ip` becomes the plugin, so its process is hit.
        std::thread::sleep(Duration::from_micros(round * 97 % 6000));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    node.call("bridge", "GC", "", None, &gc).unwrap();
    let kept = keep["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    assert_eq!((node.addresses(), node.veths()), (vec![kept], 1));
    let folder = node.data.path().join("networks/testnet");
    assert_eq!(std::fs::read_dir(folder.join(".owners")).unwrap().count(), 1);
    assert!(!std::fs::read_dir(folder).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with(".new")));
    node.reaches("keep", "10.88.0.1");
}

#[test]
fn loopback_comes_up() {
    let node = Node::new();
    let netns = node.container("a");
    let conf = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let result = node.call("loopback", "ADD", "a", Some(&netns), &conf).unwrap();
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert_eq!(result["interfaces"][0]["name"], "lo");
    node.reaches("a", "127.0.0.1");
    for _ in 0..2 {
        node.call("loopback", "DEL", "a", Some(&netns), &conf).unwrap();
    }
    node.remove_container("a");
    node.call("loopback", "DEL", "a", Some(&netns), &conf).unwrap();
}

#[test]
fn bad_calls_have_their_codes() {
    let node = Node::new();
    let conf = node.network("1.0.0");
    let netns = node.container("a");
    let code = |command: &str, id: &str, netns: Option<&Path>, conf: &Value| {
        let error = node.call("bridge", command, id, netns, conf).unwrap_err();
        assert!(error["cniVersion"].is_string() && !error["msg"].as_str().unwrap().is_empty());
        error["code"].as_u64().unwrap()
    };
    let with = |key: &str, value: Value| {
        let mut conf = conf.clone();
        conf[key] = value;
        conf
    };
    assert_eq!(code("ADD", "a", Some(&netns), &with("cniVersion", json!("9.0.0"))), 1);
    assert_eq!(code("GC", "a", None, &conf), 1);
    assert_eq!(code("ADD", "a", Some(&netns), &with("vlan", json!(7))), 2);
    assert_eq!(code("ADD", "a", Some(Path::new("/run/netns/none")), &conf), 3);
    for (id, netns, command) in
        [("", Some(&*netns), "ADD"), ("a/b", Some(&netns), "ADD"), ("a", None, "ADD"), ("a", None, "NO")]
    {
        assert_eq!(code(command, id, netns, &conf), 4, "{id} {command}");
    }
    assert_eq!(code("ADD", "a", Some(&netns), &with("mtu", json!("many"))), 6);
    assert_eq!(code("ADD", "a", Some(&netns), &with("name", json!("a b"))), 7);
    assert_eq!(code("ADD", "a", Some(&netns), &with("ipam", json!({"type": "none-such"}))), 7);
    let full = json!({"type": "host-local", "dataDir": node.data.path().join("full"), "subnet": "10.9.0.0/30"});
    let full = with("ipam", full);
    node.call("bridge", "ADD", "a", Some(&netns), &full).unwrap();
    assert_eq!(code("ADD", "b", Some(&node.container("b")), &full), 101);
    let mut status = full;
    status["cniVersion"] = "1.1.0".into();
    assert_eq!(code("STATUS", "", None, &status), 50);
    assert_eq!(node.call("bridge", "STATUS", "", None, &node.network("1.1.0")), Ok(Value::Null));
    let versions = node.call("bridge", "VERSION", "", None, &json!({"cniVersion": "1.0.0"})).unwrap();
    assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
}

#[test]
fn another_ipam_plugin_is_run() {
    let node = Node::new();
    std::os::unix::fs::symlink(node::reference().join("static"), node.plugins.join("static")).unwrap();
    let mut conf = node.network("1.0.0");
    conf["ipam"] = json!({"type": "static", "addresses": [{"address": "10.88.0.77/22", "gateway": "10.88.0.1"}]});
    let result = node.add("a", &conf);
    assert_eq!(result["ips"][0]["address"], "10.88.0.77/22");
    node.reaches("a", "10.88.0.1");
}
