//! Real kubectl, of either version, against one cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::program::{failure, feed, run};

/// Every call ends by itself after this, whatever the server does.
const TIMEOUT: &str = "--request-timeout=60s";

/// One kubectl with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    /// `program` as the user of `kubeconfig`.
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned(), namespace: None }
    }

    /// The same in another namespace than `default`.
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// A command to which nothing but kubectl's own arguments need to be added. Nothing outside is read or written:
    /// no kubeconfig of the user's, no cache in their home.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let home = self.kubeconfig.with_extension("home");
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("HOME", &home);
        command.env_remove("KUBERNETES_MASTER").env("KUBECACHEDIR", home.join("cache"));
        command
    }

    /// Runs it to its end and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }

    /// As [`run`](Self::run), with a deadline on each request it makes. Not for calls that stream.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        // Before the arguments: they may hold a command of their own after `--`.
        run(&mut self.command(&[&[TIMEOUT], arguments].concat()))
    }

    /// Runs it with `input` (a manifest, say) on its standard input.
    pub fn feed(&self, arguments: &[&str], input: &str) -> Result<String> {
        feed(&mut self.command(arguments), input)
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.feed(&["apply", "-f", "-"], manifest)
    }

    /// Runs it to an end that must be a failure, and returns what it said.
    pub fn refused(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command(arguments);
        let output = crate::program::output_of(&mut command, input)?;
        if output.status.success() {
            bail!("this should have been refused: {}", failure(&command, &output));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
