//! A node, two pods on it and a client outside, each a thread in a network namespace of its own.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use bosun_proxy::config::NodePortScope;
use bosun_proxy::convert;
use bosun_proxy::model::{Change, Node};
use bosun_proxy::nftables::{Backend, Detector, Options};
use bosun_proxy::plan::{FrontKey, Planner};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_millis(700);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that keeps it.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    tid: i32,
    jobs: mpsc::Sender<Job>,
}

impl Host {
    fn new(name: &'static str, v4: &str, v6: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (sender, tid) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // Addresses are usable at once, also link-local ones, without which neighbours are not found.
            sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0");
            sender.send(nix::unistd::gettid().as_raw()).unwrap();
            queue.iter().for_each(|job| job());
        });
        Self { name, v4: v4.parse().unwrap(), v6: v6.parse().unwrap(), tid: tid.recv().unwrap(), jobs }
    }

    /// Runs something in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        self.jobs.send(Box::new(move || _ = sender.send(job()))).unwrap();
        result.recv().unwrap()
    }

    pub(crate) fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }

    /// Answers each connection and each datagram on a port with this host's name and the asker's address.
    pub(crate) fn serve(&self, port: u16) {
        let (name, listener) = (self.name, self.run(move || TcpListener::bind(("::", port)).unwrap()));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                std::thread::spawn(move || {
                    let _ = stream.write_all(format!("{name} {peer}").as_bytes());
                    // A connection stays open until the client ends it, answering each line.
                    let mut byte = [0];
                    while matches!(stream.read(&mut byte), Ok(1)) {
                        let _ = stream.write_all(&byte);
                    }
                });
            }
        });
        let socket = self.run(move || UdpSocket::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            let mut buf = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buf) {
                let _ = socket.send_to(format!("{name} {}", peer.ip().to_canonical()).as_bytes(), peer);
            }
        });
    }

    /// A connection, or the error's kind.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<TcpStream, std::io::ErrorKind> {
        self.run(move || {
            let stream = TcpStream::connect_timeout(&to, TIMEOUT).map_err(|error| error.kind())?;
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            Ok(stream)
        })
    }

    /// Who answers over TCP, and whom it sees; or the error's kind.
    pub(crate) fn ask(&self, to: SocketAddr) -> Result<String, std::io::ErrorKind> {
        let mut stream = self.connect(to)?;
        let mut buf = [0; 64];
        let len = stream.read(&mut buf).map_err(|error| error.kind())?;
        Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
    }

    /// A UDP socket of this host.
    pub(crate) fn udp(&self, v6: bool) -> UdpSocket {
        let socket = self.run(move || UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    }
}

/// Who answers a datagram, and whom it sees.
pub(crate) fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> Result<String, std::io::ErrorKind> {
    let mut buf = [0; 64];
    socket.send_to(b"?", to).map_err(|error| error.kind())?;
    let (len, _) = socket.recv_from(&mut buf).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
}

/// Runs a program in the calling thread's namespace.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The node with its proxy, and who talks through it.
pub(crate) struct Lab {
    pub(crate) node: Host,
    pub(crate) pods: [Host; 2],
    pub(crate) client: Host,
    pub(crate) planner: Planner,
    pub(crate) backend: Backend,
}

/// The node's address on a second network, where node ports are not served.
pub(crate) const OTHER_ADDRESS: &str = "192.168.8.1";

pub(crate) fn options() -> Options {
    let nets = ["10.1.0.0/16", "fd01::/32"].map(|net| net.parse().unwrap());
    Options { mark: 0x4000, masquerade_all: false, detector: Detector::Nets(nets.to_vec()) }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let node = Host::new("node", "192.168.7.1", "fd07::1");
        let pods = [Host::new("pod1", "10.1.1.2", "fd01:0:1::2"), Host::new("pod2", "10.1.2.2", "fd01:0:2::2")];
        let client = Host::new("client", "192.168.7.2", "fd07::2");
        node.run(|| {
            sh(&format!("ip link set lo up; ip addr add {OTHER_ADDRESS}/24 dev lo"));
            sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        });
        for (host, gateway4, gateway6) in [
            (&pods[0], "10.1.1.1", "fd01:0:1::1"),
            (&pods[1], "10.1.2.1", "fd01:0:2::1"),
            (&client, "192.168.7.1", "fd07::1"),
        ] {
            let (name, tid) = (host.name, host.tid);
            node.run(move || {
                sh(&format!(
                    "ip link add {name} type veth peer name eth0 netns {tid}; ip link set {name} up;
                     ip addr add {gateway4}/24 dev {name}; ip addr add {gateway6}/64 dev {name} nodad"
                ))
            });
            let (v4, v6) = (host.v4, host.v6);
            host.run(move || {
                sh(&format!(
                    "ip link set lo up; ip link set eth0 up; ip addr add {v4}/24 dev eth0;
                     ip addr add {v6}/64 dev eth0 nodad; ip route add default via {gateway4};
                     ip route add default via {gateway6}"
                ))
            });
        }
        // Service addresses need a route from the node, as they have on any real one.
        node.run(|| _ = sh("ip route add default via 192.168.7.2; ip route add default via fd07::2"));
        pods.iter().for_each(|pod| pod.serve(8080));
        let mut planner = Planner::new("node", NodePortScope::Nets { primary: true, nets: Vec::new() });
        planner.take(Change::Node(Node {
            name: "node".into(),
            addresses: [node.v4, node.v6].into(),
            ..Node::default()
        }));
        planner.take(Change::ServiceCidrs(vec!["10.96.0.0/16".parse().unwrap(), "fd96::/108".parse().unwrap()]));
        let mut backend = node.run(|| Backend::open(options())).unwrap();
        planner.delta();
        backend.reconcile(&planner).unwrap();
        Self { node, pods, client, planner, backend }
    }

    /// Adds or changes a Service of the default name and syncs.
    pub(crate) fn service(&mut self, spec: Value) {
        self.named_service("web", spec);
    }

    pub(crate) fn named_service(&mut self, name: &str, spec: Value) {
        let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec,
            "status": {"loadBalancer": {"ingress": spec.get("ingress").cloned().unwrap_or(json!([]))}}});
        let service = convert::service(&serde_json::from_value(object).unwrap());
        self.planner.take(Change::Service(format!("default/{name}").into(), service));
    }

    /// Sets the endpoints of the default Service: indices of pods, in both families, with conditions.
    pub(crate) fn endpoints(&mut self, pods: &[usize], conditions: Value) {
        for (v6, kind) in [(false, "IPv4"), (true, "IPv6")] {
            let endpoints: Vec<Value> = pods
                .iter()
                .map(|pod| {
                    let address = self.pods[*pod].address(v6).to_string();
                    json!({"addresses": [address], "conditions": conditions, "nodeName": if *pod == 0 { "node" } else { "other" }})
                })
                .collect();
            let object = json!({
                "metadata": {"namespace": "default", "name": format!("web-{kind}"), "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": kind, "endpoints": endpoints,
                "ports": [{"name": "tcp", "port": 8080}, {"name": "udp", "protocol": "UDP", "port": 8080}],
            });
            let slice = convert::slice(&serde_json::from_value(object).unwrap(), "node");
            self.planner.take(Change::Slice(format!("default/web-{kind}").into(), slice));
        }
    }

    /// Brings the kernel to the plan by the difference.
    pub(crate) fn sync(&mut self) {
        let delta = self.planner.delta();
        self.backend.apply(&delta).unwrap();
        if delta.stale_udp {
            let gone: Vec<FrontKey> = delta.fronts.iter().filter(|c| c.new.is_none()).map(|c| c.key).collect();
            self.backend.clean_udp(&self.planner, &gone).unwrap();
        }
        // What the difference leads to is what the whole plan says.
        assert!(!self.backend.reconcile(&self.planner).unwrap(), "{}", self.node.run(|| sh("nft list ruleset")));
    }
}

/// A Service of both families with a TCP and a UDP port, and more fields.
pub(crate) fn dual(more: Value) -> Value {
    let mut spec = json!({
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd96::10"],
        "ports": [
            {"name": "tcp", "port": 80, "nodePort": 30080},
            {"name": "udp", "protocol": "UDP", "port": 80, "nodePort": 30080},
        ],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

pub(crate) fn vip(v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(if v6 { "fd96::10" } else { "10.96.0.10" }.parse().unwrap(), port)
}
