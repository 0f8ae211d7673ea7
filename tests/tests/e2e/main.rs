//! The whole path, end to end: `bosun server`, and `bosun agent` on two nodes, with real clients.
//!
//! Every case runs twice: as `old` with kubectl 1.20 on the node with containerd 1.6.20, and as `new` with kubectl
//! 1.36 on the node with containerd 2.1.9. Each has a namespace of its own and runs beside others; what disturbs the
//! cluster runs afterwards, alone. At the end the cluster is taken down and nothing may remain.

mod case;
mod cli;
mod cri;
#[path = "../../../kubelet/tests/csi_driver/mod.rs"]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod csi_driver;
mod faults;
mod input;
mod network;
mod python;
mod volumes;
mod workloads;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use bosun_tests::containerd::Version;
use bosun_tests::sweep::take_down;
use bosun_tests::tools::Scope;
use bosun_tests::{Cluster, Fabric, Layout, Tools, images};
use libtest_mimic::{Arguments, Conclusion, Trial};

use case::{Case, Era};

type Check = fn(&Case) -> Result<()>;

/// A module's cases, by name.
type Cases = &'static [(&'static str, Check)];

/// Cases that disturb a node: they run afterwards, at most one on each node.
const ON_A_NODE: &[(&str, Cases)] = &[("cri", cri::CASES)];

/// Cases that disturb the cluster: they run at last, one by one.
const ALONE: &[(&str, Cases)] = &[("faults", faults::CASES)];

/// Cases that stand beside each other.
const BESIDE: &[(&str, Cases)] = &[
    ("cli", cli::CASES),
    ("input", input::CASES),
    ("network", network::CASES),
    ("python", python::CASES),
    ("volumes", volumes::CASES),
    ("workloads", workloads::CASES),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases wait more than they compute.
    arguments.test_threads.get_or_insert(4);
    if arguments.list || !wanted(&arguments) {
        return libtest_mimic::run(&arguments, every(None)).exit_code();
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let layout = Layout::find();
    let say = |line: &str| eprintln!("{line}");
    let tools = Tools::fetch(&layout, Scope::Tests, &say)?;
    let binaries = layout.binaries("debug");
    let archives = images::build(images::ALL, &binaries, &tools, &layout.images("debug"))?;
    let fabric = Fabric::new(&format!("t{}", layout.tag()), &layout.target.join("e2e"), 2);
    take_down(&fabric, &|_| {})?;
    let _ = std::fs::remove_dir_all(fabric.logs());
    let cluster = Cluster::new(&fabric, &tools, binaries, &[Version::V1_6, Version::V2_1])?;
    let started = Instant::now();
    let result = cluster.start(&archives, &say).map(|()| {
        eprintln!("the cluster is there after {:.1} s", started.elapsed().as_secs_f64());
        let cluster = Arc::new(cluster.clone());
        let first = libtest_mimic::run(arguments, all(BESIDE, Some(&cluster)));
        let one_each = Arguments { test_threads: Some(2), ..arguments.clone() };
        let second = libtest_mimic::run(&one_each, all(ON_A_NODE, Some(&cluster)));
        let alone = Arguments { test_threads: Some(1), ..arguments.clone() };
        let third = libtest_mimic::run(&alone, all(ALONE, Some(&cluster)));
        [first, second, third].iter().all(passed)
    });
    if std::env::var_os("BOSUN_KEEP").is_some() {
        eprintln!("kept as wished: KUBECONFIG={}", cluster.kubeconfig().display());
        return result;
    }
    cluster.stop();
    take_down(&fabric, &|_| {})?;
    result
}

/// Whether any case is asked for: a cluster for nothing takes seconds.
fn wanted(arguments: &Arguments) -> bool {
    let Some(filter) = &arguments.filter else { return true };
    every(None).into_iter().any(|trial| trial.name().contains(filter.as_str()))
}

fn passed(conclusion: &Conclusion) -> bool {
    !conclusion.has_failed()
}

fn every(cluster: Option<&Arc<Cluster>>) -> Vec<Trial> {
    [BESIDE, ON_A_NODE, ALONE].into_iter().flat_map(|modules| all(modules, cluster)).collect()
}

fn all(modules: &[(&str, Cases)], cluster: Option<&Arc<Cluster>>) -> Vec<Trial> {
    modules.iter().flat_map(|(module, cases)| trials(module, cases, cluster)).collect()
}

fn trials(module: &str, cases: Cases, cluster: Option<&Arc<Cluster>>) -> Vec<Trial> {
    let both = |(name, check): &(&'static str, Check)| {
        [Era::Old, Era::New].map(|era| {
            let (cluster, check, name) = (cluster.cloned(), *check, *name);
            Trial::test(format!("{module}::{name}::{}", era.name()), move || {
                let Some(cluster) = cluster else { return Err("there is no cluster".into()) };
                Case::new(&cluster, era, name)
                    .and_then(|case| case.run(check))
                    .map_err(|error| format!("{error:#}").into())
            })
        })
    };
    cases.iter().flat_map(both).collect()
}
