//! The measurements in their order, on nodes raised for them and taken down after.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bosun_kit::client::from_kubeconfig;
use bosun_tests::cluster::Member;
use bosun_tests::images::{self, Archive};
use bosun_tests::process::Daemon;
use bosun_tests::sweep::take_down;
use bosun_tests::tools::{CNI_PLUGINS, Scope};
use bosun_tests::{Cluster, Fabric, Layout, Tools};
use futures::future::try_join_all;
use kube::Client;

use crate::cni;
use crate::cri::Runtime;
use crate::report::{Row, table, write};
use crate::{Options, Part, footprint, latency, pods, probes, writes};

/// How long things settle before memory and processor time are read.
const SETTLE: Duration = Duration::from_secs(10);
/// How long processor time is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// A network of the reference plugins: the same work as ours do.
const REFERENCE_NETWORK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "reference",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "DATA",
        "ranges": [[{ "subnet": "10.251.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;

/// Medians of raw CRI calls, in seconds.
#[derive(Clone, Copy)]
struct Raw {
    one: f64,
    all_ready: f64,
    all_gone: f64,
}

/// Takes the nodes down whatever happens.
struct Guard<'a>(&'a Fabric);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = take_down(self.0, &|_| {}) {
            eprintln!("{error:#}");
        }
    }
}

/// Measures what `options` ask for and returns the table.
pub(crate) async fn run(options: &Options) -> Result<String> {
    let layout = Layout::find();
    let tools = Tools::fetch(&layout, Scope::Tests, &|line| eprintln!("{line}"))?;
    let binaries = layout.binaries(&options.profile);
    let fabric = Fabric::new(&format!("b{}", layout.tag()), &layout.target.join("bench"), 1);
    take_down(&fabric, &|_| {})?;
    let _guard = Guard(&fabric);
    let mut rows = Vec::new();

    if options.wants(Part::Cni) {
        eprintln!("CNI plugins by themselves");
        let times = cni::compare(&fabric, &tools, &binaries.join("bosun-cni"), options.rounds * 3)?;
        let note = "one bridge attachment made and removed; at most the peer: the reference plugins 1.9.1";
        let (here, peer) = (times.ours * 1000.0, times.reference * 1000.0);
        rows.push(row("CNI ADD and DEL", "ms", here, peer, Some(peer), note));
    }
    let reference = if options.wants(Part::Reference) {
        eprintln!("raw CRI calls with the reference CNI plugins");
        let wanted = [images::PAUSE, images::WEB];
        let archives = images::build(&wanted, &binaries, &tools, &layout.images(&options.profile))?;
        Some(reference(options, &fabric, &tools, &archives).await?)
    } else {
        None
    };
    if [Part::Node, Part::Probes, Part::Latency, Part::Writes].into_iter().any(|part| options.wants(part)) {
        let archives = images::build(images::ALL, &binaries, &tools, &layout.images(&options.profile))?;
        let cluster = Cluster::new(&fabric, &tools, binaries, &[options.version()])?;
        cluster.fabric.raise()?;
        if options.wants(Part::Node) {
            cluster.members[0].start_runtime(&archives)?;
            rows.extend(node(options, &cluster, reference).await?);
        }
        if options.wants(Part::Latency) || options.wants(Part::Probes) {
            cluster.members[0].start_runtime(&archives)?;
            let client = running(&cluster).await?;
            if options.wants(Part::Latency) {
                rows.extend(latency(options, &cluster, &client).await?);
            }
            if options.wants(Part::Probes) {
                rows.extend(probing(options, &cluster, &client).await?);
            }
        }
        if options.wants(Part::Writes) {
            eprintln!("objects written per second");
            cluster.start_server()?;
            let here = writes::services_and_slices(&cluster.kubeconfig(), options.services).await?;
            let name = format!("{} Services and their EndpointSlices, 8 clients", options.services);
            rows.push(Row { more_is_better: true, ..row(&name, "objects/s", here, 1500.0, Some(357.0), STOCK) });
        }
    }
    let path = layout.target.join("bench.json");
    let containerd = if options.old_containerd { "1.6" } else { "2.1" };
    write(&path, containerd, &rows)?;
    let mut text = table(&rows);
    if let Some(raw) = reference {
        text += &format!(
            "\nraw CRI calls with the reference CNI plugins: one pod {:.3} s, {} pods {:.2} s, gone {:.2} s",
            raw.one, options.pods, raw.all_ready, raw.all_gone
        );
    }
    Ok(format!("{text}\nAs JSON: {}", path.display()))
}

const STOCK: &str = "peer: stock 1.36 on this kind of machine";

/// Everything that needs a node.
async fn node(options: &Options, cluster: &Cluster, reference: Option<Raw>) -> Result<Vec<Row>> {
    let member = &cluster.members[0];
    let name = member.node.name.as_str();
    eprintln!("start of the control plane → node Ready");
    let started = Instant::now();
    cluster.start_server()?;
    let client = from_kubeconfig(&cluster.kubeconfig()).await?;
    cluster.start_agent(member)?;
    pods::node_ready(&client, name).await?;
    let start = started.elapsed().as_secs_f64();

    eprintln!("control plane idle");
    // The first pods need what the cluster makes at its start (service account, DNS); the second of them is typical.
    pods::round(&client, name, "first", 1).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = footprint::memory(cluster.server.running().context("the server ended")?)?;

    eprintln!("pods through the API");
    let mut one = Vec::new();
    for round in 0..options.rounds {
        one.push(pods::round(&client, name, &format!("one{round}"), 1).await?.ready);
    }
    let (mut all_ready, mut all_gone) = (Vec::new(), Vec::new());
    for round in 0..options.rounds.div_ceil(2) {
        let times = pods::round(&client, name, &format!("all{round}"), options.pods).await?;
        all_ready.push(times.ready);
        all_gone.push(times.gone);
    }
    let [agent, kubelet] = footprints(options, cluster, &client).await?;

    eprintln!("raw CRI calls with our CNI plugins");
    member.agent.stop(Duration::from_secs(10))?;
    let floor = raw(options, &Runtime::connect(&cluster.fabric, &member.node).await?).await?;

    let many = options.pods;
    let least = floor.all_ready * 1.3;
    let peer = |value: fn(Raw) -> f64| reference.map(value);
    let with_floor = |floor: f64, row: Row| Row { floor: Some(floor), ..row };
    let with_agent =
        format!("{STOCK}; kubelet, proxy and network daemon in one: {:.1} MB, {:.2} %", agent.memory, agent.cpu);
    let raw_peer = "peer: raw calls with the reference plugins";
    Ok(vec![
        with_floor(
            floor.one,
            row(
                "one pod, create → Ready",
                "s",
                median(one),
                floor.one * 1.5,
                peer(|raw| raw.one),
                &format!("1.5 × the raw calls; {raw_peer}; stock 0.50 s"),
            ),
        ),
        with_floor(
            floor.all_ready,
            row(
                &format!("{many} pods at once, all Ready"),
                "s",
                median(all_ready),
                least.min(2.5),
                peer(|raw| raw.all_ready),
                &format!("1.3 × the raw calls, at most 2.5 s; {raw_peer}; stock 3.3 s"),
            ),
        ),
        with_floor(
            floor.all_gone,
            row(
                &format!("{many} pods at once, all gone"),
                "s",
                median(all_gone),
                2.5,
                peer(|raw| raw.all_gone),
                &format!("{raw_peer}; stock 3.5 s"),
            ),
        ),
        row("control plane idle, all parts", "MB", idle, 60.0, Some(547.0), STOCK),
        row(&format!("kubelet with {many} pods, memory"), "MB", kubelet.memory, 25.0, Some(105.0), &with_agent),
        row(&format!("kubelet with {many} pods, CPU"), "% of a core", kubelet.cpu, 0.3, Some(1.5), &with_agent),
        row("start of the control plane → node Ready", "s", start, 4.0, None, "containerd runs already"),
    ])
}

/// A node that takes more than the usual pods, its kubelet within the agent.
async fn running(cluster: &Cluster) -> Result<Client> {
    let member = &cluster.members[0];
    cluster.start_server()?;
    let client = from_kubeconfig(&cluster.kubeconfig()).await?;
    member.agent.stop(Duration::from_secs(10))?;
    cluster.start_agent_with(member, &member.node.socket(), "maxPods: 200\n")?;
    pods::node_ready(&client, &member.node.name).await?;
    pods::round(&client, &member.node.name, "warm", 1).await?;
    Ok(client)
}

/// How soon a watcher knows that a container runs.
async fn latency(options: &Options, cluster: &Cluster, client: &Client) -> Result<Vec<Row>> {
    let node = &cluster.members[0].node;
    eprintln!("container's start → seen by a watcher");
    let runtime = Runtime::connect(&cluster.fabric, node).await?;
    let bare = latency::bare(client, &node.name, options.seen).await?;
    let seen = latency::running(client, &runtime, &node.name, options.seen).await?;
    let quantile = |name: &str, share: f64| {
        let (here, floor) = (seen.quantile(share), bare.quantile(share));
        let note = format!("{:.1} × one bare write of a status, from the write to the watch event", here / floor);
        Row {
            floor: Some(floor),
            ..row(&format!("container's start → seen by a watcher, {name}"), "ms", here, 50.0, None, &note)
        }
    };
    Ok(vec![quantile("median", 0.5), quantile("99th of 100", 0.99)])
}

/// A node full of pods, first without probes, then each probed once a second.
async fn probing(options: &Options, cluster: &Cluster, client: &Client) -> Result<Vec<Row>> {
    let (member, count) = (&cluster.members[0], options.probed);
    let node = &member.node;
    eprintln!("{count} pods without probes");
    pods::create(client, &node.name, "idle", count).await?;
    let idle = alone(cluster, client).await?;
    pods::delete(client, "idle", count).await?;
    eprintln!("{count} pods, each probed once a second");
    pods::create_of(client, &node.name, "probed", count, probes::probed).await?;
    let here = alone(cluster, client).await?;
    eprintln!("a bare client that asks the same");
    let addresses = probes::addresses(client, "probed").await?;
    let floor = probes::bare(node, addresses, WATCHED).await?;
    pods::delete(client, "probed", count).await?;
    let ratio = format!("{:.1} × a bare client that sends the same requests", here.cpu / floor);
    let name = |what: &str| format!("kubelet with {count} pods, each probed once a second: {what}");
    Ok(vec![
        row(&name("memory"), "MB", here.memory, 40.0, None, ""),
        Row { floor: Some(floor), ..row(&name("CPU"), "% of a core", here.cpu, 5.0, None, &ratio) },
        row(&format!("kubelet with {count} pods without probes: CPU"), "% of a core", idle.cpu, 0.5, None, ""),
    ])
}

/// What the kubelet uses as a process of its own, with the pods that are there.
async fn alone(cluster: &Cluster, client: &Client) -> Result<Footprint> {
    let member = &cluster.members[0];
    member.agent.stop(Duration::from_secs(10))?;
    let daemon = Daemon::new("kubelet", &member.node.run, &cluster.fabric.logs().join(&member.node.name));
    daemon.start(&mut kubelet(cluster, member))?;
    let used = footprint(&daemon).await;
    daemon.stop(Duration::from_secs(10))?;
    cluster.start_agent_with(member, &member.node.socket(), "maxPods: 200\n")?;
    pods::node_ready(client, &member.node.name).await?;
    used
}

/// What one process uses.
#[derive(Clone, Copy)]
struct Footprint {
    memory: f64,
    cpu: f64,
}

/// The node's process with many pods on it, and then the kubelet in its place, as a process of its own.
async fn footprints(options: &Options, cluster: &Cluster, client: &Client) -> Result<[Footprint; 2]> {
    let member = &cluster.members[0];
    pods::create(client, &member.node.name, "resident", options.pods).await?;
    eprintln!("the node agent with {} pods", options.pods);
    let agent = footprint(&member.agent).await?;
    member.agent.stop(Duration::from_secs(10))?;
    eprintln!("the kubelet with {} pods", options.pods);
    let daemon = Daemon::new("kubelet", &member.node.run, &cluster.fabric.logs().join(&member.node.name));
    daemon.start(&mut kubelet(cluster, member))?;
    let kubelet = footprint(&daemon).await?;
    daemon.stop(Duration::from_secs(10))?;
    cluster.start_agent(member)?;
    pods::node_ready(client, &member.node.name).await?;
    pods::delete(client, "resident", options.pods).await?;
    Ok([agent, kubelet])
}

async fn footprint(daemon: &Daemon) -> Result<Footprint> {
    tokio::time::sleep(SETTLE).await;
    let pid = daemon.running().with_context(|| format!("{} ended:\n{}", daemon.name, daemon.last_words()))?;
    let cpu = footprint::cpu(pid, WATCHED).await?;
    Ok(Footprint { memory: footprint::memory(pid)?, cpu })
}

/// The kubelet with what the agent left: its configuration, identity and pods.
fn kubelet(cluster: &Cluster, member: &Member) -> Command {
    let data = member.node.data.join("agent");
    let mut command = member.node.enter(cluster.binaries.join("kubelet"));
    for (flag, file) in
        [("config", "kubelet.yaml"), ("kubeconfig", "kubelet.kubeconfig"), ("cert-dir", "pki"), ("root-dir", "kubelet")]
    {
        command.arg(format!("--{flag}={}", data.join(file).display()));
    }
    command.arg(format!("--hostname-override={}", member.node.name)).arg(format!("--node-ip={}", member.node.address));
    command
}

/// Raw calls on a node of its own with the reference plugins.
async fn reference(options: &Options, fabric: &Fabric, tools: &Tools, archives: &[Archive]) -> Result<Raw> {
    fabric.raise()?;
    let node = fabric.node(9)?;
    let containerd = bosun_tests::Containerd::new(options.version(), fabric, &node, tools);
    node.raise()?;
    fs::create_dir_all(node.cni_configuration())?;
    let text = REFERENCE_NETWORK.replace("DATA", &node.data.join("cni/networks").display().to_string());
    fs::write(node.cni_configuration().join("10-reference.conflist"), text)?;
    symlink(tools.folder(&CNI_PLUGINS), node.cni_plugins())?;
    containerd.start()?;
    containerd.import(archives)?;
    let times = raw(options, &Runtime::connect(fabric, &node).await?).await;
    containerd.stop()?;
    times
}

/// Medians of raw calls: one pod after another, then many at once.
async fn raw(options: &Options, runtime: &Runtime) -> Result<Raw> {
    let mut one = Vec::new();
    for round in 0..options.rounds {
        let started = Instant::now();
        let pod = runtime.run(&format!("one-{round}")).await?;
        one.push(started.elapsed().as_secs_f64());
        runtime.remove(pod).await?;
    }
    let (mut all_ready, mut all_gone) = (Vec::new(), Vec::new());
    for round in 0..options.rounds.div_ceil(2) {
        let names: Vec<String> = (0..options.pods).map(|number| format!("all-{round}-{number}")).collect();
        let started = Instant::now();
        let made = try_join_all(names.iter().map(|name| runtime.run(name))).await?;
        all_ready.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        try_join_all(made.into_iter().map(|pod| runtime.remove(pod))).await?;
        all_gone.push(started.elapsed().as_secs_f64());
    }
    Ok(Raw { one: median(one), all_ready: median(all_ready), all_gone: median(all_gone) })
}

fn row(name: &str, unit: &'static str, here: f64, bound: f64, peer: Option<f64>, note: &str) -> Row {
    Row { name: name.to_owned(), unit, here, floor: None, peer, bound, note: note.to_owned(), more_is_better: false }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
