//! CNI plugins, run as containerd runs them: ours and the reference ones, one after the other in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use bosun_tests::program::{call, feed};
use bosun_tests::tools::CNI_PLUGINS;
use bosun_tests::{Fabric, Node, Tools};

/// Median seconds for one attachment, made and removed.
pub(crate) struct Times {
    pub(crate) ours: f64,
    pub(crate) reference: f64,
}

/// One set of plugins with a network of its own.
struct Set {
    plugins: PathBuf,
    configuration: String,
    seconds: Vec<f64>,
}

/// Attaches and detaches `rounds` network namespaces with each set of plugins, on a node of the fabric.
pub(crate) fn compare(fabric: &Fabric, tools: &Tools, ours: &Path, rounds: usize) -> Result<Times> {
    fabric.raise()?;
    let node = fabric.node(8)?;
    node.raise()?;
    let folder = node.data.join("ours");
    fs::create_dir_all(&folder)?;
    for plugin in ["bridge", "host-local"] {
        fs::copy(ours, folder.join(plugin))
            .with_context(|| format!("cannot copy {}; was it built?", ours.display()))?;
    }
    let mut sets = [Set::new("ours", &folder, &node, 252), Set::new("theirs", &tools.folder(&CNI_PLUGINS), &node, 253)];
    for round in 0..rounds {
        for set in &mut sets {
            set.round(&node, round)?;
        }
    }
    let [ours, reference] = sets.map(|set| crate::run::median(set.seconds));
    Ok(Times { ours, reference })
}

impl Set {
    fn new(name: &str, plugins: &Path, node: &Node, second: u8) -> Self {
        let data = node.data.join(format!("{name}-networks"));
        let configuration = format!(
            r#"{{"cniVersion":"0.4.0","name":"{name}","type":"bridge","bridge":"{name}0","isGateway":true,"hairpinMode":true,
               "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.{second}.0.0/16"}}]],
               "routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#,
            data.display()
        );
        Self { plugins: plugins.to_owned(), configuration, seconds: Vec::new() }
    }

    fn round(&mut self, node: &Node, round: usize) -> Result<()> {
        let netns = node.run.join("attached");
        fs::write(&netns, "")?;
        call("unshare", &[&format!("--net={}", netns.display()), "true"])?;
        let started = Instant::now();
        let result = self.call(node, &netns, round, "ADD").and_then(|()| self.call(node, &netns, round, "DEL"));
        self.seconds.push(started.elapsed().as_secs_f64());
        call("umount", &[&netns.display().to_string()])?;
        result
    }

    fn call(&self, node: &Node, netns: &Path, round: usize, verb: &str) -> Result<()> {
        let mut command = node.enter(self.plugins.join("bridge"));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("bench{round}")).env("CNI_NETNS", netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", &self.plugins);
        feed(&mut command, &self.configuration)?;
        Ok(())
    }
}
