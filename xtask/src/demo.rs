//! `up` and `down`: the demo cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bosun_tests::cluster::{exec, manifest};
use bosun_tests::containerd::Version;
use bosun_tests::process::eventually;
use bosun_tests::sweep::{Remains, take_down};
use bosun_tests::tools::{KUBECTL, Scope};
use bosun_tests::{Cluster, Fabric, Kubectl, Layout, Tools, images};

use crate::build;
use crate::progress::Progress;

/// How long the demo may take to be there, and each call of it to be answered.
const LIMIT: Duration = Duration::from_secs(90);
const NODE_PORT: u16 = 30080;

fn fabric(layout: &Layout) -> Fabric {
    Fabric::new("up", &layout.target.join("up"), 0)
}

/// Makes the cluster be there with the demo on it, shows that it works and says what to try next.
pub(crate) fn up(layout: &Layout, nodes: u8, version: Version, debug: bool) -> Result<()> {
    let progress = Progress::new();
    let tools = Tools::fetch(layout, Scope::Cluster, &|line| progress.say(line))?;
    progress.done("the programs it needs are there");
    drop(progress);
    let profile = if debug { "debug" } else { "release" };
    let binaries = build::binaries(layout, profile)?;

    let progress = Progress::new();
    progress.say("making images");
    let archives = images::build(images::ALL, &binaries, &tools, &layout.images(profile))?;
    let fabric = fabric(layout);
    let count = fabric.nodes()?.len().max(nodes.into());
    let cluster = Cluster::new(&fabric, &tools, binaries, &vec![version; count])?;
    cluster
        .start(&archives, &|line| progress.say(line))
        .context("the cluster did not start; `cargo xtask down` ends it")?;
    progress.done(&format!("{count} node(s) Ready"));
    let kubectl = cluster.kubectl();
    progress.say("applying the demo");
    kubectl.apply(&manifest(layout, "demo.yaml")?)?;
    wait_for_demo(&kubectl, &progress)?;
    let called = call_demo(&cluster, &kubectl, &progress)?;
    drop(progress);
    report(layout, &cluster, &kubectl, &called)
}

/// Ends the cluster and proves that nothing remains.
pub(crate) fn down(layout: &Layout) -> Result<()> {
    let fabric = fabric(layout);
    let progress = Progress::new();
    let before = Remains::of(&fabric);
    take_down(&fabric, &|line| progress.say(line))?;
    drop(progress);
    if before.is_empty() {
        println!("Nothing was running.");
    } else {
        println!(
            "Gone: {} processes, {} network namespaces, {} links, {} mounts, {} cgroups, {} other files.",
            before.processes.len(),
            before.namespaces.len(),
            before.links.len(),
            before.mounts.len(),
            before.cgroups.len(),
            before.files.len()
        );
    }
    println!("Looked again: no process, namespace, link, mount, cgroup or file of the cluster remains.");
    println!("Logs are kept in {}.", fabric.logs().display());
    Ok(())
}

fn wait_for_demo(kubectl: &Kubectl, progress: &Progress) -> Result<()> {
    eventually("the demo's pods being Ready", LIMIT, || {
        let columns =
            r"jsonpath={range .items[*]}{.metadata.name}={.status.phase}/{.status.containerStatuses[*].ready} {end}";
        let pods = kubectl.ask(&["get", "pods", "-A", "-o", columns])?;
        let ready = pods.split_whitespace().filter(|pod| pod.ends_with("/true")).count();
        let all = pods.split_whitespace().count();
        progress.say(&format!("{ready} of {all} pods Ready"));
        if ready < all || all < 5 {
            bail!("{}", kubectl.ask(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default());
        }
        progress.done(&format!("{all} pods Ready"));
        Ok(())
    })
}

/// Calls the Service in every way and returns a line for each.
fn call_demo(cluster: &Cluster, kubectl: &Kubectl, progress: &Progress) -> Result<Vec<String>> {
    progress.say("calling the Service");
    let address = kubectl.ask(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let node = cluster.members.first().context("there is no node")?.node.address;
    let mut called = Vec::new();
    for (way, url) in [
        ("ClusterIP, from a pod", format!("http://{address}/")),
        ("NodePort, from a pod", format!("http://{node}:{NODE_PORT}/")),
        ("DNS name, from a pod", "http://web.default.svc.cluster.local/".to_owned()),
        ("file from the ConfigMap", "http://web/files/notice.txt".to_owned()),
    ] {
        let answer = exec(kubectl, "shell", &["wget", "-T", "3", "-qO-", &url], LIMIT)?;
        called.push(format!("{way:<24} {url:<40} {}", answer.lines().next().unwrap_or_default()));
    }
    progress.done("the Service answers by ClusterIP, NodePort and name");
    Ok(called)
}

fn report(layout: &Layout, cluster: &Cluster, kubectl: &Kubectl, called: &[String]) -> Result<()> {
    let program = cluster.tools.path(&KUBECTL);
    let short = |path: &std::path::Path| path.strip_prefix(&layout.root).unwrap_or(path).display().to_string();
    println!("\n{}", kubectl.ask(&["get", "nodes,pods,services", "-A", "-o", "wide"])?.trim_end());
    println!("\n{}", called.join("\n"));
    let node = cluster.members.first().context("there is no node")?;
    println!(
        "
kubeconfig  {kubeconfig}
kubectl     {kubectl} (any other will do)
logs        {logs}

What to try next:
  export KUBECONFIG={kubeconfig}
  kubectl get pods -A -o wide
  kubectl scale deployment web --replicas=10
  kubectl logs -f deployment/web
  kubectl exec -it shell -- wget -qO- http://web/
  curl http://{address}:{NODE_PORT}/                       # from this machine, by NodePort
  nsenter --net={netns} nft list ruleset      # the node's rules
  cargo xtask up --nodes 3                                 # more nodes
  cargo xtask down                                         # leaves nothing behind",
        kubeconfig = short(&cluster.kubeconfig()),
        kubectl = short(&program),
        logs = short(&cluster.fabric.logs()),
        address = node.node.address,
        netns = node.node.netns.display(),
    );
    Ok(())
}
