//! portmap and the bridge's masquerade on a real kernel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use nix::sched::{CloneFlags, setns};
use node::{Node, with_result};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Runs `work` on a thread in a namespace.
fn within<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(netns).unwrap();
    let run = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::spawn(run).join().unwrap()
}

/// Serves a name and the client's address, by TCP and UDP, on port 80 of every address in the namespace.
fn serve(netns: &Path, name: &'static str) {
    let (listener, socket) =
        within(netns, || (TcpListener::bind("[::]:80").unwrap(), UdpSocket::bind("[::]:80").unwrap()));
    thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _ = write!(stream, "{name} {}", client.ip().to_canonical());
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", client.ip().to_canonical()).as_bytes(), client);
        }
    });
}

fn tcp(netns: &Path, target: &str) -> Result<String, ErrorKind> {
    let target: SocketAddr = target.parse().unwrap();
    within(netns, move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3)).map_err(|e| e.kind())?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.kind())?;
        Ok(text)
    })
}

struct Fixture {
    node: Node,
    host: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let node = Node::new();
        let host = Path::new("/run/netns").join(node.host());
        Self { node, host }
    }

    fn portmap(&self, result: &Value, mappings: Value) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "testnet", "type": "portmap", "snat": true,
            "runtimeConfig": {"portMappings": mappings}, "prevResult": result,
        })
    }

    /// A container that serves its name.
    fn container(&self, name: &'static str) -> (PathBuf, Value) {
        let netns = self.node.container(name);
        let result = self.node.call("bridge", "ADD", name, Some(&netns), &self.node.network("1.1.0")).unwrap();
        serve(&netns, name);
        (netns, result)
    }

    fn elements(&self) -> usize {
        self.node.exec("nft list ruleset").matches("comment \"testnet/").count()
    }
}

#[test]
fn a_host_port_leads_to_the_container_from_everywhere() {
    let fixture = Fixture::new();
    let (first, result) = fixture.container("a");
    let (second, _) = fixture.container("b");
    let conf = fixture.portmap(
        &result,
        json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "10.88.0.1"},
            {"hostPort": 5353, "containerPort": 80, "protocol": "udp"},
        ]),
    );
    let answer = fixture.node.call("portmap", "ADD", "a", Some(&first), &conf).unwrap();
    assert_eq!(answer["ips"], result["ips"]);
    fixture.node.call("portmap", "CHECK", "a", Some(&first), &conf).unwrap();
    // From the host, from its loopback, from a neighbour on the bridge, and from the container itself.
    for (netns, target) in [
        (&fixture.host, "10.88.0.1:8080"),
        (&fixture.host, "127.0.0.1:8080"),
        (&second, "10.88.0.1:8080"),
        (&first, "10.88.0.1:8080"),
        (&second, "10.88.0.1:8081"),
    ] {
        let text = tcp(netns, target).unwrap();
        assert!(text.starts_with("a "), "{text} of {target}");
    }
    assert_eq!(tcp(&second, "10.88.0.1:8080").unwrap(), "a 10.88.0.1", "masqueraded");
    assert_eq!(tcp(&fixture.host, "127.0.0.1:8081").unwrap_err(), ErrorKind::ConnectionRefused);
    let text = within(&fixture.host, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.send_to(b"?", "10.88.0.1:5353").unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    assert!(text.starts_with("a "), "{text}");
    assert_eq!(fixture.elements(), 4);
    for _ in 0..2 {
        fixture.node.call("portmap", "DEL", "a", Some(&first), &conf).unwrap();
        assert_eq!(fixture.elements(), 0);
    }
    assert_eq!(tcp(&fixture.host, "10.88.0.1:8080").unwrap_err(), ErrorKind::ConnectionRefused);
    let error = fixture.node.call("portmap", "CHECK", "a", Some(&first), &conf).unwrap_err();
    assert_eq!(error["msg"], "portmap: no rule for port 6/any/8080 to 10.88.0.2/80");
}

#[test]
fn the_newest_container_has_the_port_and_the_oldest_does_not_take_it_along() {
    let fixture = Fixture::new();
    let (first, result) = fixture.container("a");
    let (second, newer) = fixture.container("b");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let [old, new] = [result, newer].map(|result| fixture.portmap(&result, ports.clone()));
    fixture.node.call("portmap", "ADD", "a", Some(&first), &old).unwrap();
    fixture.node.call("portmap", "ADD", "b", Some(&second), &new).unwrap();
    assert!(tcp(&fixture.host, "10.88.0.1:8080").unwrap().starts_with("b "));
    fixture.node.call("portmap", "DEL", "a", None, &old).unwrap();
    assert!(tcp(&fixture.host, "10.88.0.1:8080").unwrap().starts_with("b "));
    let mut gc = new.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    fixture.node.call("portmap", "GC", "", None, &gc).unwrap();
    assert!(tcp(&fixture.host, "10.88.0.1:8080").is_ok());
    gc["cni.dev/valid-attachments"] = json!([]);
    fixture.node.call("portmap", "GC", "", None, &gc).unwrap();
    assert_eq!(fixture.elements(), 0);
}

#[test]
fn flushed_rules_come_back_with_the_next_container() {
    let fixture = Fixture::new();
    let (first, result) = fixture.container("a");
    let conf = fixture.portmap(&result, json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    fixture.node.call("portmap", "ADD", "a", Some(&first), &conf).unwrap();
    fixture.node.exec("nft flush chain inet bosun-cni hostports");
    assert!(fixture.node.call("portmap", "CHECK", "a", Some(&first), &conf).is_err());
    fixture.node.call("portmap", "ADD", "a", Some(&first), &conf).unwrap();
    assert!(tcp(&fixture.host, "10.88.0.1:8080").is_ok());
    assert_eq!(fixture.elements(), 2);
}

#[test]
fn a_hundred_port_mappings_at_once() {
    let fixture = Fixture::new();
    let (netns, result) = fixture.container("a");
    let started: Vec<_> = (0..100)
        .map(|n| {
            let ports = json!([{"hostPort": 9000 + n, "containerPort": 80, "protocol": "tcp"}]);
            let conf = fixture.portmap(&result, ports);
            fixture.node.start("portmap", "ADD", &format!("c{n}"), Some(&netns), &conf)
        })
        .collect();
    started.into_iter().for_each(|child| drop(node::answer(child).unwrap()));
    let ruleset = fixture.node.exec("nft list ruleset");
    assert_eq!(ruleset.matches("jump hostports").count(), 2, "{ruleset}");
    assert_eq!(ruleset.matches(": 10.88.0.2 . 80").count(), 100, "{ruleset}");
}

/// A Service's address is translated on the host. Its pod on the same bridge answers the client directly, past the host,
/// unless bridged packets meet the host's rules: `bridge-nf-call-iptables`, which the network daemon sets.
#[test]
fn a_neighbour_behind_a_translated_address_answers_when_bridged_packets_are_filtered() {
    let fixture = Fixture::new();
    let (first, _) = fixture.container("a");
    fixture.container("b");
    fixture.node.exec("nft add table ip service");
    fixture.node.exec("nft add chain ip service pre { type nat hook prerouting priority -100 ; }");
    fixture.node.exec("nft add rule ip service pre ip daddr 10.96.0.1 tcp dport 80 dnat to 10.88.0.3:80");
    let key = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    within(&fixture.host, move || std::fs::write(key, "1").unwrap());
    assert_eq!(tcp(&first, "10.96.0.1:80").unwrap(), "b 10.88.0.2");
    within(&fixture.host, move || std::fs::write(key, "0").unwrap());
    assert!(tcp(&first, "10.96.0.1:80").is_err());
}

#[test]
fn masqueraded_outside_and_not_inside() {
    let fixture = Fixture::new();
    let node = &fixture.node;
    // A network beyond the host, whose members do not know the way to containers.
    let beyond = node.container("beyond");
    let beyond_name = beyond.file_name().unwrap().to_str().unwrap().to_owned();
    node.exec(&format!("ip link add up0 type veth peer name eth0 netns {beyond_name}"));
    node.exec("ip addr add 192.0.2.1/24 dev up0");
    node.exec("ip link set up0 up");
    node.inside("beyond", "ip addr add 192.0.2.2/24 dev eth0");
    node.inside("beyond", "ip link set eth0 up");
    serve(&beyond, "beyond");
    let mut conf = node.network("1.0.0");
    conf["ipMasq"] = true.into();
    let (netns, peer) = (node.container("a"), node.container("b"));
    let result = node.call("bridge", "ADD", "a", Some(&netns), &conf).unwrap();
    node.call("bridge", "ADD", "b", Some(&peer), &conf).unwrap();
    serve(&peer, "b");
    assert_eq!(tcp(&netns, "192.0.2.2:80").unwrap(), "beyond 192.0.2.1");
    assert_eq!(tcp(&netns, "10.88.0.3:80").unwrap(), "b 10.88.0.2");
    let conf = with_result(&conf, &result);
    node.call("bridge", "CHECK", "a", Some(&netns), &conf).unwrap();
    node.exec("nft flush set inet bosun-cni masquerade4");
    let error = node.call("bridge", "CHECK", "a", Some(&netns), &conf).unwrap_err();
    assert_eq!(error["msg"], "no rule to masquerade 10.88.0.2 but to 10.88.0.0/22");
    for id in ["a", "b", "a"] {
        node.call("bridge", "DEL", id, None, &conf).unwrap();
    }
    assert_eq!(fixture.elements(), 0);
}
