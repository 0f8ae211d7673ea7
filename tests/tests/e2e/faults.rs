//! SIGKILL of any process: the cluster goes on, and no pod restarts for it.

use anyhow::{Result, ensure};
use bosun_tests::process::eventually;

use crate::Cases;
use crate::case::{Case, LIMIT};

pub(crate) const CASES: Cases = &[
    ("a_killed_agent_comes_back", a_killed_agent_comes_back),
    ("a_killed_containerd_comes_back", a_killed_containerd_comes_back),
    ("a_killed_server_comes_back", a_killed_server_comes_back),
    ("everything_killed_at_once_comes_back", everything_killed_at_once_comes_back),
];

/// What must not change: container ids and restart counts.
fn identity(case: &Case) -> Result<String> {
    let path = ".items[*].status.containerStatuses[*]";
    case.field("pods", &format!("{path}['containerID','restartCount','ready']"))
}

/// Two pods that run before, and one more that must come to run after.
fn survives(case: &Case, disturb: impl Fn() -> Result<()>) -> Result<()> {
    case.web("first")?;
    case.shell("second")?;
    let before = identity(case)?;
    let address = case.field("pod/first", ".status.podIP")?;
    disturb()?;
    case.cluster.wait_ready(&case.member)?;
    // They ran on all the while.
    case.member.fetch(&case.cluster.binaries, &format!("http://{address}:8080/"))?;
    case.web("third")?;
    ensure!(case.exec("second", &["echo", "still here"])? == "still here\n");
    case.kubectl.ask(&["delete", "pod", "third"])?;
    let after = eventually("the pods as before", LIMIT, || {
        let after = identity(case)?;
        ensure!(after == before, "before: {before}\nafter: {after}");
        Ok(after)
    })?;
    ensure!(before == after, "before: {before}\nafter: {after}");
    case.kubectl.ask(&["delete", "pods", "--all"])?;
    Ok(())
}

fn a_killed_agent_comes_back(case: &Case) -> Result<()> {
    survives(case, || {
        case.member.agent.kill()?;
        case.cluster.start_agent(&case.member)
    })
}

fn a_killed_containerd_comes_back(case: &Case) -> Result<()> {
    survives(case, || {
        case.member.containerd.daemon.kill()?;
        case.member.containerd.start()
    })
}

fn a_killed_server_comes_back(case: &Case) -> Result<()> {
    case.kubectl.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {a: b}\n")?;
    survives(case, || {
        case.cluster.server.kill()?;
        case.cluster.start_server()
    })?;
    ensure!(case.field("configmap/kept", ".data.a")? == "b");
    Ok(())
}

fn everything_killed_at_once_comes_back(case: &Case) -> Result<()> {
    survives(case, || {
        case.cluster.server.kill()?;
        case.member.agent.kill()?;
        case.member.containerd.daemon.kill()?;
        case.member.containerd.start()?;
        case.cluster.start_server()?;
        case.cluster.start_agent(&case.member)
    })
}
