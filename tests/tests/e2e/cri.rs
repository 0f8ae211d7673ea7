//! The runtime fails: every call that the kubelet makes of it, refused, delayed, or done with its answer lost, for one
//! pod or for the whole node. The pods come to where they should be nevertheless, none of them has two sandboxes, and
//! the node stays Ready while only some pods' calls fail.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bosun_faultcri::census::{self, Census};
use bosun_faultcri::{Fault, Proxy, Rule};
use bosun_tests::images::BUSYBOX_IMAGE;
use bosun_tests::process::eventually;

use crate::Cases;
use crate::case::{Case, Era};

pub(crate) const CASES: Cases = &[
    ("calls_of_one_pod_fail", calls_of_one_pod_fail),
    ("calls_of_the_node_fail", calls_of_the_node_fail),
    ("calls_fail_while_the_kubelet_starts", calls_fail_while_the_kubelet_starts),
];

/// How long a delayed call takes: long enough for every deadline of seconds, and less than that in the short form.
fn delay() -> Duration {
    Duration::from_secs(if at_length() { 10 } else { 4 })
}

/// Stock looks at every pod again after this long.
const SYNC: Duration = Duration::from_secs(10);
/// What everything beside the faults takes on a busy machine.
const WORK: Duration = Duration::from_secs(15);

/// Calls about a pod, in the order in which a pod's life has them.
const OF_A_POD: &[&str] = &[
    "RunPodSandbox",
    "PodSandboxStatus",
    "CreateContainer",
    "StartContainer",
    "ContainerStatus",
    "ExecSync",
    "ReopenContainerLog",
    "UpdateContainerResources",
    "RemoveContainer",
    "StopContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// Calls about the node.
const OF_THE_NODE: &[&str] = &[
    "ListPodSandbox",
    "ListContainers",
    "GetContainerEvents",
    "Status",
    "Version",
    "ImageStatus",
    "ListImages",
    "ImageFsInfo",
    "ListContainerStats",
];

/// The faults, and how many calls in a row meet each.
fn faults() -> [(&'static str, Fault, usize); 3] {
    [("error", Fault::Error, 2), ("delay", Fault::Delay(delay()), 1), ("cut", Fault::Cut, 2)]
}

/// One case at a time on each node.
static NODES: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];

/// Restarts without waiting, small logs: what a pod's life takes minutes for otherwise.
const CONFIGURATION: &str = "\
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
containerLogMaxSize: 4Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
";

/// Every combination at length, or a part of them, as `BOSUN_FAULTS` says.
fn at_length() -> bool {
    std::env::var_os("BOSUN_FAULTS").is_some()
}

/// The agent with the proxy between it and containerd. Ends with containerd by itself again.
fn through_a_proxy(case: &Case, work: impl FnOnce(&Proxy) -> Result<()>) -> Result<()> {
    let _alone = NODES[usize::from(case.era == Era::New)].lock().unwrap_or_else(PoisonError::into_inner);
    let (member, node) = (&case.member, &case.member.node);
    let proxy = Proxy::start(&node.run.join("faulty.sock"), &node.socket())?;
    member.agent.kill()?;
    case.cluster.start_agent_with(member, proxy.socket(), CONFIGURATION)?;
    let up = || case.cluster.agent_speaks(member, || proxy.seen("Status", None).0 > 0);
    let result = up().and_then(|()| work(&proxy));
    proxy.clear();
    member.agent.kill()?;
    case.cluster.start_agent(member)?;
    result.and_then(|()| case.cluster.wait_ready(member))
}

/// The node's Ready condition as a client sees it that watches.
struct NodeWatch {
    child: Child,
    seen: std::path::PathBuf,
}

impl NodeWatch {
    fn start(case: &Case) -> Result<Self> {
        let seen = case.cluster.fabric.data.join(format!("{}.node", case.namespace));
        let columns = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].message}{"\n"}"#;
        let node = &case.member.node.name;
        let mut command = case.cluster.kubectl().command(&["get", "node", node, "--watch", "-o", columns]);
        let child = command.stdout(fs::File::create(&seen)?).stderr(Stdio::inherit()).spawn()?;
        Ok(Self { child, seen })
    }

    fn always_ready(&self) -> Result<()> {
        let seen = fs::read_to_string(&self.seen)?;
        ensure!(seen.starts_with("True"), "the watch of the node saw only {seen:?}");
        match seen.lines().find(|line| !line.starts_with("True")) {
            Some(line) => bail!("the node was not Ready: {line}"),
            None => Ok(()),
        }
    }
}

impl Drop for NodeWatch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pod that ends itself `restarts` times and then serves, talks all the while, and has a probe by a command.
fn restless(case: &Case, name: &str, restarts: u32) -> String {
    let script = format!(
        "echo run >> /data/runs; trap 'exit 0' TERM; \
         if [ $(wc -l < /data/runs) -le {restarts} ]; then sleep 1; exit 1; fi; \
         while :; do echo 0123456789012345678901234567890123456789012345678901234567890; sleep 0.03; done & wait"
    );
    let spec = format!(
        "containers:\n- name: main\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  \
         command: [sh, -c, \"{}\"]\n  resources: {{requests: {{cpu: 10m}}}}\n  \
         readinessProbe: {{exec: {{command: [cat, /data/runs]}}, periodSeconds: 1, timeoutSeconds: 3}}\n  \
         volumeMounts: [{{name: data, mountPath: /data}}]\nvolumes: [{{name: data, emptyDir: {{}}}}]\n",
        script.replace('"', "\\\"")
    );
    case.pod(name, &spec)
}

/// Waits for a pod to be Ready with that many restarts at least; returns how long that took.
fn settled(case: &Case, name: &str, restarts: u32, limit: Duration) -> Result<Duration> {
    let began = Instant::now();
    let path = ".status.containerStatuses[0]['ready','restartCount']";
    eventually(&format!("{name} Ready after {restarts} restarts"), limit, || {
        let is = case.field(&format!("pod/{name}"), path)?;
        let (ready, count) = is.split_once(' ').context("no status yet")?;
        ensure!(ready == "true" && count.parse::<u32>()? >= restarts, "ready and restarts: {is}");
        Ok(())
    })?;
    Ok(began.elapsed())
}

/// Pods of this case that the runtime still holds.
fn held(case: &Case, uids: &[String]) -> Result<Vec<String>> {
    let pods = census::look(&case.member.node.socket()).map_err(|error| anyhow!(error))?;
    Ok(pods.into_iter().filter(|(uid, _)| uids.contains(uid)).map(|(_, holds)| holds.pod).collect())
}

/// Waits until the API server has none of the case's pods, and the runtime none of `uids`.
fn gone(case: &Case, uids: &[String], limit: Duration) -> Result<()> {
    eventually("the end of all pods", limit, || {
        let left = case.kubectl.ask(&["get", "pods", "-o", "name"])?;
        ensure!(left.is_empty(), "there are still {left}");
        let held = held(case, uids)?;
        ensure!(held.is_empty(), "the runtime still holds {held:?}");
        Ok(())
    })
}

/// One pod for every call and fault, all at once, each with its faults from the first call on; and one without. Each
/// pod is made, restarts, is resized, has its log rotated, is probed and deleted.
fn calls_of_one_pod_fail(case: &Case) -> Result<()> {
    through_a_proxy(case, |proxy| {
        let restarts = 2;
        // In the short form each fault is met by every third call, so that each call meets one.
        let chosen = |call: usize, fault: usize| at_length() || call % faults().len() == fault;
        let mut pods = Vec::new();
        for (number, method) in OF_A_POD.iter().enumerate() {
            for (_, (fault, what, times)) in
                faults().into_iter().enumerate().filter(|(which, _)| chosen(number, *which))
            {
                let name = format!("{}-{fault}", method.to_lowercase());
                let subject = Some(name.clone());
                proxy.inject(Rule { method: (*method).to_owned(), subject, fault: what, times });
                pods.push((name, *method, times));
            }
        }
        let census = Census::start(&case.member.node.socket());
        let node = NodeWatch::start(case)?;
        let manifests: Vec<String> = pods.iter().map(|(name, ..)| restless(case, name, restarts)).collect();
        case.kubectl.apply(&manifests.join("---\n"))?;
        // Nobody else is kept waiting.
        case.kubectl.apply(&restless(case, "spared", 0))?;
        let spared = settled(case, "spared", 0, WORK * 4)?;
        eprintln!("{} pods under faults, the spared one Ready after {spared:?}", pods.len());

        let limit = delay() + SYNC * 2 + WORK;
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        pods.iter().try_for_each(|(name, ..)| settled(case, name, restarts, left()).map(drop))?;
        let resize = r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"20m"}}}]}}"#;
        let newest = case.cluster.kubectl().within(&case.namespace);
        for (name, ..) in &pods {
            newest.ask(&["patch", "pod", name, "--subresource", "resize", "--patch", resize])?;
        }
        for (name, ..) in &pods {
            let path = ".status.containerStatuses[0].resources.requests.cpu";
            eventually(&format!("the resize of {name}"), limit, || {
                let is = case.field(&format!("pod/{name}"), path)?;
                ensure!(is == "20m", "it has {is:?}");
                Ok(())
            })?;
        }
        let rotated = |name: &str| {
            proxy.seen("ReopenContainerLog", Some(name)).0 > proxy.seen("ReopenContainerLog", Some(name)).1
        };
        eventually("the rotation of every log", limit, || {
            let not: Vec<_> = pods.iter().filter(|(name, ..)| !rotated(name)).map(|(name, ..)| name).collect();
            ensure!(not.is_empty(), "not yet: {not:?}");
            Ok(())
        })?;

        let uids = case.field("pods", ".items[*].metadata.uid")?;
        let uids: Vec<String> = uids.split(' ').map(str::to_owned).collect();
        case.kubectl.ask(&["delete", "pods", "--all", "--wait=false"])?;
        gone(case, &uids, limit)?;
        for (name, method, times) in &pods {
            let (calls, failed) = proxy.seen(method, Some(name));
            ensure!((1..=*times).contains(&failed), "{name}: {failed} of {calls} calls failed: the fault was not met");
        }
        node.always_ready()?;
        once_each(&census, &uids)
    })
}

/// No pod had two sandboxes, or two in its life: none of these sandboxes died.
fn once_each(census: &Census, uids: &[String]) -> Result<()> {
    let seen = census.seen();
    ensure!(seen.looks > 10, "the runtime was looked at {} times", seen.looks);
    ensure!(seen.doubles.is_empty(), "{:?}", seen.doubles);
    for uid in uids {
        let attempts = seen.attempts.get(uid).with_context(|| format!("{uid} was never seen"))?;
        ensure!(attempts.iter().eq([&0]), "pod {uid} had sandboxes {attempts:?}");
    }
    Ok(())
}

/// Calls that are about no pod fail, each by itself or all together, while a pod is made, restarts and goes.
fn calls_of_the_node_fail(case: &Case) -> Result<()> {
    through_a_proxy(case, |proxy| {
        let census = Census::start(&case.member.node.socket());
        let known = |method: &&&str| case.era == Era::New || **method != "GetContainerEvents";
        let methods: Vec<&str> = OF_THE_NODE.iter().filter(known).copied().collect();
        let groups: Vec<Vec<&str>> = match at_length() {
            true => methods.iter().map(|method| vec![*method]).collect(),
            false => vec![methods],
        };
        let mut uids = Vec::new();
        for (fault, what, times) in faults() {
            for group in &groups {
                let node = NodeWatch::start(case)?;
                for method in group {
                    proxy.inject(Rule { method: (*method).to_owned(), subject: None, fault: what, times });
                }
                let name = format!("{}-{fault}", group[0].to_lowercase());
                case.kubectl.apply(&restless(case, &name, 1))?;
                settled(case, &name, 1, delay() * 2 + SYNC * 2 + WORK)?;
                let uid = case.field(&format!("pod/{name}"), ".metadata.uid")?;
                case.kubectl.ask(&["delete", "pod", &name, "--wait=false"])?;
                gone(case, std::slice::from_ref(&uid), delay() + SYNC * 2 + WORK)?;
                node.always_ready().with_context(|| format!("under {group:?}, {fault}"))?;
                uids.push(uid);
                proxy.clear();
            }
        }
        once_each(&census, &uids)
    })
}

/// A kubelet that starts while its first calls fail takes over what runs, as if nothing were amiss.
fn calls_fail_while_the_kubelet_starts(case: &Case) -> Result<()> {
    through_a_proxy(case, |proxy| {
        case.kubectl.apply(&restless(case, "first", 0))?;
        case.kubectl.apply(&restless(case, "second", 0))?;
        settled(case, "first", 0, WORK * 4)?;
        settled(case, "second", 0, WORK * 4)?;
        let identity =
            || case.field("pods", ".items[*].status.containerStatuses[*]['containerID','restartCount','ready']");
        let before = identity()?;
        let uids = case.field("pods", ".items[*].metadata.uid")?;
        let uids: Vec<String> = uids.split(' ').map(str::to_owned).collect();
        let census = Census::start(&case.member.node.socket());
        let first = ["Version", "RuntimeConfig", "ListPodSandbox", "ListContainers", "Status"];
        for (fault, what, times) in faults() {
            case.member.agent.kill()?;
            for method in first.iter().chain(&["PodSandboxStatus", "ContainerStatus"]) {
                let pods: &[Option<&str>] = if first.contains(method) { &[None] } else { &[Some("first")] };
                for pod in pods {
                    let subject = pod.map(str::to_owned);
                    proxy.inject(Rule { method: (*method).to_owned(), subject, fault: what, times });
                }
            }
            case.cluster.start_agent_with(&case.member, proxy.socket(), CONFIGURATION)?;
            let name = format!("after-{fault}");
            case.kubectl.apply(&restless(case, &name, 0))?;
            settled(case, &name, 0, delay() * 5 + SYNC * 2 + WORK)?;
            proxy.clear();
            case.kubectl.ask(&["delete", "pod", &name])?;
            let after = identity()?;
            ensure!(after == before, "{fault}: before: {before}\nafter: {after}");
        }
        once_each(&census, &uids)?;
        case.kubectl.ask(&["delete", "pods", "--all", "--wait=false"])?;
        gone(case, &uids, SYNC * 2 + WORK)
    })
}
