//! How long the kernel takes to hold a cluster's Services: ours against the layout of stock loaded by `nft -f`, in one
//! run, in a network namespace of its own. Run as root: `cargo run --release -p bosun-proxy --example bench`.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bosun_proxy::config::NodePortScope;
use bosun_proxy::model::{Change, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort};
use bosun_proxy::nftables::{Backend, Detector, Options};
use bosun_proxy::plan::Planner;
use nix::sched::{CloneFlags, unshare};

/// Services in each round, with two endpoints each.
const ROUNDS: [u32; 2] = [5_000, 44_000];
/// Stock's layout is not loaded beyond this: it takes minutes.
const STOCK_MAX: u32 = 5_000;

fn main() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (root is needed)")?;
    println!("{:>8}  {:<28} {:>10}", "services", "what", "seconds");
    for services in ROUNDS {
        round(services)?;
    }
    Ok(())
}

fn round(services: u32) -> Result<()> {
    let start = Instant::now();
    let mut planner = Planner::new("node", NodePortScope::All);
    for n in 0..services {
        add(&mut planner, n);
    }
    let mut backend = Backend::open(options())?;
    planner.delta();
    let planned = start.elapsed();
    backend.reconcile(&planner)?;
    let programmed = start.elapsed();
    report(services, "plan", planned);
    report(services, "start to programmed", programmed);

    let start = Instant::now();
    add(&mut planner, services);
    let delta = planner.delta();
    backend.apply(&delta)?;
    report(services, "one more service", start.elapsed());

    let start = Instant::now();
    let mut restarted = Backend::open(options())?;
    ensure!(!restarted.reconcile(&planner)?, "a restart must find nothing to change");
    report(services, "restart, nothing to change", start.elapsed());
    report_memory(services);
    Backend::clean_up()?;

    if services <= STOCK_MAX {
        let stock = stock_ruleset(services);
        let path = std::env::temp_dir().join(format!("stock-{}.nft", std::process::id()));
        std::fs::write(&path, stock)?;
        let start = Instant::now();
        let status = Command::new("nft").arg("-f").arg(&path).status().context("run nft")?;
        let took = start.elapsed();
        std::fs::remove_file(&path)?;
        ensure!(status.success(), "nft could not load stock's layout");
        report(services, "stock layout by nft -f", took);
        println!("{services:>8}  {:<28} {:>9.1}x", "ratio", took.as_secs_f64() / programmed.as_secs_f64());
        let start = Instant::now();
        Command::new("nft")
            .args(["add", "element", "ip", "stock", "service-ips"])
            .arg(stock_element(services))
            .status()?;
        report(services, "one element by nft", start.elapsed());
        Command::new("nft").args(["delete", "table", "ip", "stock"]).status()?;
    }
    Ok(())
}

fn report(services: u32, what: &str, took: Duration) {
    println!("{services:>8}  {what:<28} {:>10.4}", took.as_secs_f64());
}

fn report_memory(services: u32) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for name in ["VmRSS", "VmHWM"] {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        println!("{services:>8}  {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

fn options() -> Options {
    let pods = "10.0.0.0/8".parse().expect("a literal network");
    Options { mark: 0x4000, masquerade_all: false, detector: Detector::Nets(vec![pods]) }
}

fn vip(n: u32) -> IpAddr {
    Ipv4Addr::from(0xac10_0000 + n).into()
}

fn endpoint(n: u32, which: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + 2 * n + which).into()
}

fn add(planner: &mut Planner, n: u32) {
    let name = format!("default/service-{n}");
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    let service = Service { cluster_ips: [vip(n)].into(), ports: [port].into(), ..Service::default() };
    planner.take(Change::Service(name.as_str().into(), Some(service)));
    let endpoint = |which| Endpoint {
        address: endpoint(n, which),
        ready: true,
        serving: true,
        terminating: false,
        local: n.is_multiple_of(100),
        for_nodes: Box::default(),
        for_zones: Box::default(),
    };
    let slice = Slice {
        service: name.as_str().into(),
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: [endpoint(0), endpoint(1)].into(),
    };
    planner.take(Change::Slice(format!("{name}-abcde").into(), Some(slice)));
}

fn stock_element(n: u32) -> String {
    format!("{{ {} . tcp . 80 : goto service-0 }}", vip(n))
}

/// A chain for each Service and for each endpoint, as stock's mode lays them out.
fn stock_ruleset(services: u32) -> String {
    let mut text = String::from("table ip stock {\n");
    for n in 0..services {
        for which in 0..2 {
            let address = endpoint(n, which);
            let _ = writeln!(
                text,
                "chain endpoint-{n}-{which} {{ ip saddr {address} meta mark set meta mark | 0x4000\nmeta l4proto tcp dnat to {address}:8080; }}"
            );
        }
        let _ = writeln!(
            text,
            "chain service-{n} {{ ip daddr {} tcp dport 80 ip saddr != 10.0.0.0/8 meta mark set meta mark | 0x4000\nnumgen random mod 2 vmap {{ 0 : goto endpoint-{n}-0, 1 : goto endpoint-{n}-1 }}; }}",
            vip(n)
        );
    }
    text += "map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {\n";
    for n in 0..services {
        let _ = writeln!(text, "{} . tcp . 80 : goto service-{n},", vip(n));
    }
    text += "} }\nchain services { ip daddr . meta l4proto . th dport vmap @service-ips; }\n";
    text += "chain nat-prerouting { type nat hook prerouting priority -100; jump services; }\n}\n";
    text
}
