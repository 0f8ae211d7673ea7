//! Nodes by themselves: raised, used, killed and taken down on a real kernel with both versions of containerd.

use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use bosun_tests::containerd::Version;
use bosun_tests::process::eventually;
use bosun_tests::program::{call, run};
use bosun_tests::sweep::{Remains, take_down};
use bosun_tests::tools::Scope;
use bosun_tests::{Containerd, Fabric, Layout, Tools, images};

fn quiet(_: &str) {}

/// A fabric that is taken down whatever happens.
struct Guard(Fabric);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = take_down(&self.0, &quiet) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn nodes_run_containers_and_leave_nothing() -> Result<()> {
    let layout = Layout::find();
    let tools = Tools::fetch(&layout, Scope::Tests, &quiet)?;
    let archives = images::build(
        &[images::PAUSE, images::WEB, images::BUSYBOX_IMAGE],
        &layout.binaries("debug"),
        &tools,
        &layout.images("debug"),
    )?;
    let data = layout.target.join("nodes");
    let fabric = Fabric::new(&format!("n{}", layout.tag()), &data, 250);
    take_down(&fabric, &quiet)?;
    assert!(Remains::of(&fabric).is_empty());
    let guard = Guard(fabric.clone());

    fabric.raise()?;
    let mut daemons = Vec::new();
    for (number, version) in [(1, Version::V1_6), (2, Version::V2_1)] {
        let node = fabric.node(number)?;
        node.raise()?;
        node.raise()?;
        let containerd = Containerd::new(version, &fabric, &node, &tools);
        containerd.start()?;
        containerd.import(&archives)?;
        containerd.import(&archives)?;
        daemons.push((node, containerd));
    }
    for (node, containerd) in &daemons {
        // In the node's network, so that it is reached from the host by the node's address.
        let netns = format!("network:{}", node.netns.display());
        let limits = format!("{}/web", node.cgroup);
        // What the CRI takes from the configuration, this client must be told.
        let own = node.run.join("runc").display().to_string();
        let limits = ["--cgroup", &limits, "--runc-root", &own];
        let create = ["run", "--detach", "--with-ns", &netns];
        run(containerd.ctr().args(create).args(limits).args([images::WEB, "web"]))?;
        let answer = eventually("an answer", Duration::from_secs(5), || get(node.address, "/healthz"))?;
        assert!(answer.ends_with("ok\n"), "{answer}");
    }
    // From one node to the other over the bridge.
    let (first, second) = (&daemons[0].0, daemons[1].0.address);
    let url = format!("http://{second}:8080/healthz");
    let said = run(first.enter(layout.binaries("debug").join("bosun-web")).args(["--get", &url]))?;
    assert_eq!(said, "ok\n");

    // A killed containerd comes back and finds its container running.
    let containerd = &daemons[1].1;
    let before = tasks(containerd)?;
    containerd.daemon.kill()?;
    containerd.start()?;
    assert_eq!(before, tasks(containerd)?);

    let shown = Remains::of(&fabric);
    assert_eq!(shown.namespaces.len(), 2);
    assert_eq!(shown.links.len(), 3, "{shown}");
    assert!(shown.processes.len() >= 6 && !shown.cgroups.is_empty() && !shown.files.is_empty(), "{shown}");
    drop(guard);
    let left = Remains::of(&fabric);
    assert!(left.is_empty(), "{left}");
    let names = call("ip", &["-o", "link"])?;
    assert!(!names.contains(&fabric.bridge()), "{names}");
    Ok(())
}

fn tasks(containerd: &Containerd) -> Result<String> {
    run(containerd.ctr().args(["tasks", "list"]))
}

fn get(address: Ipv4Addr, path: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_fetched_programs_are_the_versions_promised() -> Result<()> {
    let layout = Layout::find();
    let tools = Tools::fetch(&layout, Scope::Tests, &quiet)?;
    let said = |program: &std::path::Path, arguments: &[&str]| run(Command::new(program).args(arguments));
    use bosun_tests::tools::{CONTAINERD_1_6, CONTAINERD_2_1, KUBECTL, KUBECTL_OLD};
    assert!(said(&tools.path(&CONTAINERD_1_6), &["--version"])?.contains(" 1.6."));
    assert!(said(&tools.path(&CONTAINERD_2_1), &["--version"])?.contains(" 2.1."));
    assert!(said(&tools.path(&KUBECTL_OLD), &["version", "--client"])?.contains("v1.20."));
    assert!(said(&tools.path(&KUBECTL), &["version", "--client"])?.contains("v1.36."));
    said(&tools.python(), &["-c", "import kubernetes"])?;
    Ok(())
}
