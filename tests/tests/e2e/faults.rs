//! SIGKILL of any process: the cluster goes on, and no pod restarts for it.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bosun_faultcri::census;
use bosun_tests::Holdings;
use bosun_tests::images::{BUSYBOX_IMAGE, WEB};
use bosun_tests::process::eventually;

use crate::Cases;
use crate::case::{Case, LIMIT};

pub(crate) const CASES: Cases = &[
    ("a_killed_agent_comes_back", a_killed_agent_comes_back),
    ("a_killed_containerd_comes_back", a_killed_containerd_comes_back),
    ("a_killed_server_comes_back", a_killed_server_comes_back),
    ("everything_killed_at_once_comes_back", everything_killed_at_once_comes_back),
    ("an_agent_killed_again_and_again", an_agent_killed_again_and_again),
    ("a_containerd_killed_again_and_again", a_containerd_killed_again_and_again),
];

/// How often the agent is killed, unless `BOSUN_KILLS` says otherwise (then things are done at length: more pods, more
/// kills of containerd).
const KILLS: u32 = 10;

fn kills() -> Option<u32> {
    std::env::var("BOSUN_KILLS").ok().and_then(|text| text.parse().ok())
}

/// Pods that run all the while.
fn steady_pods() -> usize {
    if kills().is_some() { 50 } else { 6 }
}

/// How often containerd is killed.
fn runtime_kills() -> u32 {
    if kills().is_some() { 6 } else { 2 }
}

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

/// A watch of the steady pods, as lines `NAME READY RESTARTS`, in a file.
struct Watch {
    child: Child,
    seen: std::path::PathBuf,
}

impl Watch {
    fn start(case: &Case) -> Result<Self> {
        let seen = case.cluster.fabric.data.join(format!("{}.watch", case.namespace));
        let columns = r#"jsonpath={.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.status.containerStatuses[*].restartCount}{"\n"}"#;
        let mut command = case.kubectl.command(&["get", "pods", "-l", "steady=yes", "--watch", "-o", columns]);
        let child = command.stdout(fs::File::create(&seen)?).stderr(Stdio::inherit()).spawn()?;
        Ok(Self { child, seen })
    }

    /// Every line must say Ready and no restart.
    fn check(&self) -> Result<()> {
        let seen = fs::read_to_string(&self.seen)?;
        ensure!(seen.lines().count() >= steady_pods(), "the watch saw only:\n{seen}");
        let bad: Vec<&str> = seen.lines().filter(|line| !line.ends_with(" True 0")).collect();
        ensure!(bad.is_empty(), "a steady pod was not Ready, or restarted:\n{}", bad.join("\n"));
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pod whose init container leaves a line each time it runs.
fn counting(case: &Case, name: &str, steady: bool) -> String {
    let spec = format!(
        "initContainers:\n- name: count\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  \
         command: [sh, -c, 'echo ran >> /data/runs']\n  volumeMounts: [{{name: data, mountPath: /data}}]\n\
         containers:\n- name: web\n  image: {WEB}\n  imagePullPolicy: Never\n  resources: {{requests: {{cpu: 1m}}}}\n  \
         readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}\n  \
         volumeMounts: [{{name: data, mountPath: /data}}]\nvolumes: [{{name: data, emptyDir: {{}}}}]\n"
    );
    let labels = format!("labels: {{app: {name}, steady: '{}'}}", if steady { "yes" } else { "no" });
    case.pod(name, &spec).replace(&format!("labels: {{app: {name}}}"), &labels)
}

/// Moments to kill at, the same each time, spread by a fixed sequence: milliseconds below `most`.
fn moments(most: u64) -> impl FnMut() -> Duration {
    let mut seed = 12_345_u64;
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(50 + (seed >> 33) % most)
    }
}

/// Pods that run all the while, and what the node held before them.
struct Steady<'a> {
    case: &'a Case,
    names: Vec<String>,
    watch: Watch,
    identity: String,
    before: Holdings,
}

impl<'a> Steady<'a> {
    fn start(case: &'a Case) -> Result<Self> {
        // The cluster's own pods hold what they hold before and after.
        let all = ["wait", "pods", "--all", "-n", "kube-system", "--for=condition=Ready", "--timeout=60s"];
        case.cluster.kubectl().run(&all)?;
        let before = Holdings::of(&case.member.node)?;
        let names: Vec<String> = (0..steady_pods()).map(|number| format!("steady-{number}")).collect();
        let manifests: Vec<String> = names.iter().map(|name| counting(case, name, true)).collect();
        case.kubectl.apply(&manifests.join("---\n"))?;
        names.iter().try_for_each(|name| case.ready(name))?;
        Ok(Self { identity: identity(case)?, watch: Watch::start(case)?, case, names, before })
    }

    /// Gives one of them other requests, in place.
    fn update(&self, round: usize) -> Result<()> {
        let (name, cpu) = (&self.names[round % self.names.len()], 10 + round % 7);
        let patch =
            format!(r#"{{"spec":{{"containers":[{{"name":"web","resources":{{"requests":{{"cpu":"{cpu}m"}}}}}}]}}}}"#);
        let newest = self.case.cluster.kubectl().within(&self.case.namespace);
        newest.ask(&["patch", "pod", name, "--subresource", "resize", "--patch", &patch])?;
        self.case.becomes(
            &format!("pod/{name}"),
            ".status.containerStatuses[0].resources.requests.cpu",
            &format!("{cpu}m"),
        )
    }

    /// Makes, updates and deletes pods until `over`.
    fn churn(&self, over: &AtomicBool) -> Result<()> {
        let mut round = 0;
        while !over.load(Ordering::Relaxed) {
            round += 1;
            let name = format!("comes-{round}");
            self.case.kubectl.apply(&counting(self.case, &name, false))?;
            self.update(round)?;
            self.case.ready(&name)?;
            self.case.kubectl.ask(&["delete", "pod", &name])?;
        }
        eprintln!("{round} pods came and went");
        Ok(())
    }

    /// Runs `disturb` while pods come and go.
    fn under(&self, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let churn = scope.spawn(|| self.churn(&over));
            let disturbed = disturb();
            over.store(true, Ordering::Relaxed);
            let churned = churn.join().map_err(|_| anyhow!("the thread that makes pods panicked"))?;
            disturbed.and(churned)
        })
    }

    /// None of them restarted, lost its readiness or ran its init container again; and once all are deleted, the node
    /// holds what it held before.
    fn end(self) -> Result<()> {
        let Self { case, names, watch, identity: before, .. } = &self;
        case.cluster.wait_ready(&case.member)?;
        let after = identity(case)?;
        ensure!(*before == after, "before: {before}\nafter: {after}");
        watch.check()?;
        let pods = case.member.node.data.join("agent/kubelet/pods");
        for name in names {
            let uid = case.field(&format!("pod/{name}"), ".metadata.uid")?;
            let runs = pods.join(uid).join("volumes/kubernetes.io~empty-dir/data/runs");
            let runs = fs::read_to_string(&runs).with_context(|| runs.display().to_string())?;
            ensure!(runs == "ran\n", "the init container of {name} ran more than once:\n{runs}");
        }
        case.kubectl.run(&["delete", "pods", "--all", "--timeout=120s"])?;
        // Folders of pods that were gone while nobody looked go with the next clean-up of left-overs, within a minute.
        eventually("nothing left of any pod", LIMIT * 2, || {
            let now = Holdings::of(&case.member.node)?;
            // A shim that was being started when its caller died is forgotten by containerd, which says that the sandbox
            // is removed and ends the shim at its own next start. Nobody can ask for that; what it still lists counts.
            let known = census::ids(&case.member.node.socket()).map_err(|error| anyhow!(error))?;
            let forgotten = |line: &&str| {
                let of_shim = line.starts_with("shim of ") || line.contains("/io.containerd.runtime.v2.task/k8s.io/");
                of_shim && !known.iter().any(|id| line.contains(id.as_str()))
            };
            let left: Vec<&str> = now.beyond(&self.before).into_iter().filter(|line| !forgotten(line)).collect();
            ensure!(left.is_empty(), "{}", left.join("\n"));
            Ok(())
        })
    }
}

/// Killed at any moment while pods are made, probed, updated and removed: those that run never restart, never lose
/// their readiness and never run their init container again; those that are made come to run; those removed leave
/// nothing.
fn an_agent_killed_again_and_again(case: &Case) -> Result<()> {
    let steady = Steady::start(case)?;
    let mut moment = moments(1500);
    steady.under(|| {
        (0..kills().unwrap_or(KILLS)).try_for_each(|_| {
            thread::sleep(moment());
            case.member.agent.kill()?;
            case.cluster.start_agent(&case.member)
        })
    })?;
    steady.end()
}

/// The same with containerd, which stays away for a moment: no container is lost with it, the node stays Ready.
fn a_containerd_killed_again_and_again(case: &Case) -> Result<()> {
    let steady = Steady::start(case)?;
    let ready = || case.cluster.kubectl().ask(&["get", "node", &case.member.node.name, "-o", READY_SINCE]);
    let before = ready()?;
    let mut moment = moments(3000);
    steady.under(|| {
        (0..runtime_kills()).try_for_each(|_| {
            thread::sleep(moment() + Duration::from_secs(2));
            case.member.containerd.daemon.kill()?;
            thread::sleep(moment());
            case.member.containerd.start()
        })
    })?;
    let after = ready()?;
    ensure!(before.starts_with("True") && before == after, "the node's readiness: before: {before}, after: {after}");
    steady.end()
}

const READY_SINCE: &str = r#"jsonpath={.status.conditions[?(@.type=="Ready")]['status','lastTransitionTime']}"#;
