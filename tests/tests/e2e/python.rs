//! The official Python client.

use std::process::Command;

use anyhow::Result;
use bosun_tests::program::run;

use crate::Cases;
use crate::case::{Case, Era, has};

pub(crate) const CASES: Cases = &[("the_python_client_works", the_python_client_works)];

const SCRIPT: &str = include_str!("client.py");

fn the_python_client_works(case: &Case) -> Result<()> {
    let containerd = if case.era == Era::Old { "1.6" } else { "2.1" };
    let mut command = Command::new(case.cluster.tools.python());
    command.args(["-c", SCRIPT]).arg(case.cluster.kubeconfig());
    command.args([&case.namespace, &case.member.node.name, bosun_tests::images::BUSYBOX_IMAGE, containerd]);
    has(&run(&mut command)?, "all done\n")
}
