//! What a case is given: a client, a node, a namespace.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bosun_tests::cluster::Member;
use bosun_tests::images::{BUSYBOX_IMAGE, WEB};
use bosun_tests::process::eventually;
use bosun_tests::{Cluster, Kubectl};

/// How long anything may take that should take a second; the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Which versions a case runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// kubectl 1.20, containerd 1.6.20.
    Old,
    /// kubectl 1.36, containerd 2.1.9.
    New,
}

/// One case's surroundings.
pub(crate) struct Case {
    pub(crate) cluster: Cluster,
    pub(crate) era: Era,
    /// Works in [`namespace`](Self::namespace).
    pub(crate) kubectl: Kubectl,
    pub(crate) namespace: String,
    pub(crate) member: Member,
}

impl Era {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

impl Case {
    /// Makes the namespace and waits until pods can be made in it.
    pub(crate) fn new(cluster: &Cluster, era: Era, name: &str) -> Result<Self> {
        let (kubectl, index) = match era {
            Era::Old => (cluster.old_kubectl(), 0),
            Era::New => (cluster.kubectl(), 1),
        };
        let namespace = format!("{}-{}", name.replace('_', "-"), era.name());
        kubectl.ask(&["create", "namespace", &namespace])?;
        let kubectl = kubectl.within(&namespace);
        eventually("the namespace's service account", LIMIT, || kubectl.ask(&["get", "serviceaccount", "default"]))?;
        Ok(Self { cluster: cluster.clone(), era, kubectl, namespace, member: cluster.members[index].clone() })
    }

    /// Runs the check; the namespace goes when it holds and stays, with what it shows, when it does not.
    pub(crate) fn run(self, check: impl Fn(&Self) -> Result<()>) -> Result<()> {
        match check(&self) {
            Ok(()) => {
                self.kubectl.ask(&["delete", "namespace", &self.namespace, "--wait=false"])?;
                Ok(())
            }
            Err(error) => {
                let mut shown = String::new();
                for arguments in [
                    &["get", "pods,services,endpoints", "-o", "wide"][..],
                    &["get", "events", "--sort-by=.lastTimestamp"],
                ] {
                    shown += &self.kubectl.ask(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
                }
                Err(error.context(format!("namespace {}:\n{shown}", self.namespace)))
            }
        }
    }

    /// A pod on this case's node: `spec` is YAML at the depth of the pod's spec.
    pub(crate) fn pod(&self, name: &str, spec: &str) -> String {
        let node = &self.member.node.name;
        let spec = indent(spec, "  ");
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  \
             nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 2\n{spec}"
        )
    }

    /// A pod with a shell, up and running.
    pub(crate) fn shell(&self, name: &str) -> Result<()> {
        let spec = format!(
            "containers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n"
        );
        self.kubectl.apply(&self.pod(name, &spec))?;
        self.ready(name)
    }

    /// A pod with our web server, up and running.
    pub(crate) fn web(&self, name: &str) -> Result<()> {
        let spec = format!("containers:\n- name: web\n  image: {WEB}\n  imagePullPolicy: Never\n");
        self.kubectl.apply(&self.pod(name, &spec))?;
        self.ready(name)
    }

    /// Waits until a pod is Ready.
    pub(crate) fn ready(&self, name: &str) -> Result<()> {
        self.kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
        Ok(())
    }

    /// A field of an object, by JSONPath.
    pub(crate) fn field(&self, object: &str, path: &str) -> Result<String> {
        self.kubectl.ask(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Waits until a field is as wanted.
    pub(crate) fn becomes(&self, object: &str, path: &str, wanted: &str) -> Result<()> {
        eventually(&format!("{object} {path} being {wanted:?}"), LIMIT, || {
            let is = self.field(object, path)?;
            ensure!(is == wanted, "it is {is:?}");
            Ok(())
        })
    }

    /// Runs a command in a pod.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl.ask(&[&["exec", pod, "--"], command].concat())
    }

    /// Fetches a URL from inside a pod, trying until it is answered.
    pub(crate) fn fetch(&self, pod: &str, url: &str) -> Result<String> {
        let command = ["wget", "-T", "3", "-qO-", url];
        eventually(&format!("{url} from {pod}"), LIMIT, || self.exec(pod, &command))
    }
}

/// Fails with the whole text when a part is not in it.
pub(crate) fn has(text: &str, part: &str) -> Result<()> {
    if !text.contains(part) {
        bail!("{part:?} should be in:\n{text}");
    }
    Ok(())
}

fn indent(text: &str, by: &str) -> String {
    text.lines().map(|line| format!("{by}{line}\n")).collect()
}
