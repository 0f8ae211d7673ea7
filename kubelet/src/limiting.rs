//! What this node keeps from its pods: reservations and their enforcement, and what of cgroups and swap the machine must
//! have for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bosun_api::pod::Resources;
use bosun_api::quantity::Quantity;
use bosun_kit::events::{EventType, Recorder};
use bosun_kubelet_cgroup::allocatable::{Enforce, PIDS, Reservations};
use bosun_kubelet_cgroup::limits::page_size;
use bosun_kubelet_cgroup::{Driver, Layout, Limits, Name, Tree};
use bosun_kubelet_node::machine::MachineReader;
use bosun_kubelet_node::pressure::Thresholds;
use bosun_proto::cri;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cgroups::Cgroups;
use crate::config::KubeletConfiguration;
use crate::cri::{CriErrorKind, Runtime};
use crate::make::Node;
use crate::make::resources::{self, Settings, Swap};

/// How long to wait before limits that were refused are set again; evictions may have made them fit.
const AGAIN: Duration = Duration::from_secs(60);
/// The reasons of events, in stock's words.
const ENFORCED: &str = "NodeAllocatableEnforced";
const FAILED: &str = "FailedNodeAllocatableEnforcement";

/// What is said of version 1 hierarchies.
const OLD_CGROUPS: &str = "cgroup v1 detected. cgroup v1 support is unsupported and will be removed in a future release. \
    Please migrate to cgroup v2. More information at \
    https://git.k8s.io/enhancements/keps/sig-node/5573-cgroup-v1-unsupported";

/// Checks that the machine is one that the configuration allows.
pub(crate) fn check_machine(config: &KubeletConfiguration, layout: &Layout) -> Result<()> {
    let separate = matches!(layout, Layout::Separate(_));
    if separate && config.fail_cgroup_v1 {
        bail!(
            "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is unsupported and will be \
             removed in a future release; boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false"
        );
    }
    if separate && config.single_process_oom_kill == Some(false) {
        bail!("invalid configuration: singleProcessOOMKill must not be explicitly set to false when using cgroup v1");
    }
    if separate {
        tracing::warn!("{OLD_CGROUPS}");
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    match swaps_in_use(&swaps).as_slice() {
        [] => {}
        _ if config.fail_swap_on => bail!(
            "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false; /proc/swaps \
             contained: {}",
            swaps.trim_end()
        ),
        _ => tracing::info!("swap is on; /proc/swaps contained:\n{}", swaps.trim_end()),
    }
    Ok(())
}

/// The lines of `/proc/swaps` beyond its heading.
fn swaps_in_use(text: &str) -> Vec<&str> {
    text.lines().skip(1).filter(|line| !line.trim().is_empty()).collect()
}

/// Turns `reservedSystemCPUs` into a reservation of so many cores for the system, in place of any that is configured.
pub(crate) fn reserve_cores(config: &mut KubeletConfiguration) -> Result<()> {
    if config.reserved_system_cpus.is_empty() {
        return Ok(());
    }
    let cores = cores(&config.reserved_system_cpus)
        .with_context(|| format!("reservedSystemCPUs {:?} is no list of cores", config.reserved_system_cpus))?;
    let online = cores_online().unwrap_or_default();
    if let Some(core) = cores.iter().find(|core| !online.contains(core)) {
        bail!("reservedSystemCPUs {:?}: core {core} is not online", config.reserved_system_cpus);
    }
    tracing::info!(
        reserved = config.reserved_system_cpus,
        "option reservedSystemCPUs overwrites the cpu setting in kubeReserved and systemReserved"
    );
    config.kube_reserved.remove("cpu");
    config.system_reserved.insert("cpu".to_owned(), cores.len().to_string());
    Ok(())
}

fn cores(list: &str) -> Option<std::collections::BTreeSet<u32>> {
    let mut found = std::collections::BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > 1 << 16 {
            return None;
        }
        found.extend(first..=last);
    }
    Some(found)
}

fn online_list() -> Option<String> {
    Some(std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?.trim().to_owned())
}

fn cores_online() -> Option<std::collections::BTreeSet<u32>> {
    cores(&online_list()?)
}

/// What is reserved for daemons and how it is enforced.
pub(crate) fn reservations(config: &KubeletConfiguration) -> Result<Reservations> {
    let read = |field: &str, list: &BTreeMap<String, String>| -> Result<Resources> {
        let amount = |(name, text): (&String, &String)| {
            let amount = text.parse::<Quantity>().map_err(|error| anyhow!("{field}.{name}: {text:?}: {error}"))?;
            Ok((name.clone(), amount))
        };
        list.iter().map(amount).collect()
    };
    let pods = vec!["pods".to_owned()];
    let enforce = config.enforce_node_allocatable.as_ref().unwrap_or(&pods);
    Ok(Reservations {
        kube: read("kubeReserved", &config.kube_reserved)?,
        system: read("systemReserved", &config.system_reserved)?,
        enforce: enforce.iter().filter_map(|text| Enforce::parse(text)).collect(),
    })
}

/// Who makes cgroups: whoever the runtime says, and for a runtime that does not say (before containerd 2), whoever is
/// configured.
pub(crate) async fn driver(
    runtime: &dyn Runtime,
    config: &KubeletConfiguration,
    ask: bool,
) -> crate::cri::Result<Driver> {
    let configured = || if config.cgroup_driver == "systemd" { Driver::Systemd } else { Driver::Cgroupfs };
    if !ask {
        return Ok(configured());
    }
    let told = match runtime.runtime_config().await {
        Ok(answer) => answer.linux.map(|linux| linux.cgroup_driver()),
        Err(error) if error.kind == CriErrorKind::Unimplemented => None,
        Err(error) => return Err(error),
    };
    let driver = match told {
        Some(cri::CgroupDriver::Systemd) => Driver::Systemd,
        Some(cri::CgroupDriver::Cgroupfs) => Driver::Cgroupfs,
        None => {
            tracing::info!(
                driver = config.cgroup_driver,
                "CRI implementation should be updated to support RuntimeConfig. Falling back to using cgroupDriver from kubelet config."
            );
            configured()
        }
    };
    tracing::info!(driver = driver.as_str(), "cgroup driver");
    Ok(driver)
}

/// How pods and containers are limited on this machine.
pub(crate) fn settings(config: &KubeletConfiguration, layout: &Layout) -> Settings {
    let machine = MachineReader::default().machine();
    let unified = layout.is_unified();
    let counted = match layout {
        Layout::Unified(root) => counts_swap(root),
        other => other.folder("memory", "").is_some_and(|root| root.join("memory.memsw.limit_in_bytes").exists()),
    };
    let swap = match (counted, config.memory_swap.swap_behavior.as_str()) {
        (false, _) => Swap::Uncounted,
        (true, "LimitedSwap") => Swap::Limited(i64::try_from(machine.swap).unwrap_or(i64::MAX)),
        (true, _) => Swap::None,
    };
    Settings {
        unified,
        pids: u64::try_from(config.pod_pids_limit).ok().filter(|limit| *limit > 0),
        page_sizes: machine.hugepages.keys().filter_map(|name| page_size(name.strip_prefix("hugepages-")?)).collect(),
        kill_groups: unified && !config.single_process_oom_kill.unwrap_or(false),
        swap,
    }
}

/// Whether the unified hierarchy counts swap. The root has no such file, so our own cgroup is looked at, or any other.
fn counts_swap(root: &Path) -> bool {
    let own = crate::usage::own_cgroup().map(|path| root.join(path.trim_start_matches('/')));
    let others = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    own.into_iter().chain(others).any(|folder| folder.join("memory.swap.max").exists())
}

/// Has the kubelet live in `kubeletCgroups`.
pub(crate) fn enter(config: &KubeletConfiguration, cgroups: &Cgroups) -> Result<()> {
    match config.kubelet_cgroups.as_str() {
        "" => Ok(()),
        path => cgroups.tree().enter(path).with_context(|| format!("kubeletCgroups {path}")),
    }
}

/// What is enforced on this node.
pub(crate) struct Enforced {
    node: String,
    pods: Option<(Name, Limits)>,
    daemons: Vec<(Enforce, String, Limits)>,
}

impl Enforced {
    /// Works out the limits of the cgroups of all pods and of daemons.
    pub(crate) fn new(
        node: &Node,
        config: &KubeletConfiguration,
        reservations: Reservations,
        eviction_hard: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let (machine, reader) = (MachineReader::default().machine(), MachineReader::default());
        let whole = |bytes: u64| Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
        let mut capacity = Resources::from([
            ("cpu".to_owned(), Quantity::from_value(i64::from(machine.cpus))),
            ("memory".to_owned(), whole(machine.memory)),
        ]);
        capacity.extend(machine.hugepages.iter().map(|(name, bytes)| (name.clone(), whole(*bytes))));
        let thresholds = Thresholds::parse(eviction_hard)?;
        let evicted = [("memory".to_owned(), whole(thresholds.reserved("memory.available", machine.memory)))];
        reservations.check(&capacity, &evicted.into()).map_err(anyhow::Error::msg)?;
        let pids = reader.resources(&node.root_dir).map(|now| now.pids).unwrap_or(0);
        if pids > 0 {
            capacity.insert(PIDS.to_owned(), Quantity::from_value(i64::try_from(pids).unwrap_or(i64::MAX)));
        }
        let pods = node.cgroups_per_qos.then(|| {
            // systemd forgets the cpuset controller of a slice that it was told no cores for. Which of them pods may run
            // on is the CPU manager's to say, if there is a policy.
            let cpus = online_list().filter(|_| matches!(config.cpu_manager_policy.as_str(), "" | "none"));
            (resources::pods_cgroup(node), Limits { cpus, ..reservations.of_pods(&capacity) })
        });
        let daemons = reservations.enforce.iter().filter(|what| **what != Enforce::Pods).map(|what| {
            let cgroup = match what {
                Enforce::SystemReserved | Enforce::SystemReservedCompressible => &config.system_reserved_cgroup,
                _ => &config.kube_reserved_cgroup,
            };
            (*what, cgroup.clone(), reservations.of_daemons(*what))
        });
        Ok(Self { node: node.name.clone(), pods, daemons: daemons.collect() })
    }

    /// Enforces it. The limits of all pods may be refused while pods use more; that is tried again.
    ///
    /// # Errors
    /// A daemons' cgroup is not there, or refuses its limits.
    pub(crate) async fn start(
        self,
        tree: &Tree,
        recorder: &Recorder,
        parts: &mut JoinSet<()>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let about = reference(&self.node);
        if matches!(tree.layout(), Layout::Separate(_)) {
            recorder.event(&about, EventType::Warning, "CgroupV1", OLD_CGROUPS);
        }
        if let Some((name, limits)) = self.pods {
            let (tree, recorder, about, cancel) = (tree.clone(), recorder.clone(), about.clone(), cancel.clone());
            parts.spawn(async move { limit_pods(&tree, &name, &limits, &recorder, &about, &cancel).await });
        }
        for (what, cgroup, limits) in self.daemons {
            let name = Name::parse(&cgroup, tree.driver());
            let done = match tree.validate(&name) {
                Ok(()) => tree.update(&name, &limits).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                let message = what.failed(&cgroup, &error.to_string());
                recorder.event(&about, EventType::Warning, FAILED, message.clone());
                bail!(
                    "{message}; make the cgroup before the kubelet starts, or leave it out of enforceNodeAllocatable"
                );
            }
            recorder.event(&about, EventType::Normal, ENFORCED, what.done(&cgroup));
        }
        Ok(())
    }
}

async fn limit_pods(
    tree: &Tree,
    name: &Name,
    limits: &Limits,
    recorder: &Recorder,
    about: &ObjectReference,
    cancel: &CancellationToken,
) {
    let text = name.quoted();
    loop {
        match tree.update(name, limits).await {
            Ok(()) => {
                recorder.event(about, EventType::Normal, ENFORCED, Enforce::Pods.done(&text));
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the limits of all pods were not set; they will be tried again");
                let message = Enforce::Pods.failed(&text, &error.to_string());
                recorder.event(about, EventType::Warning, FAILED, message);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// The node in events about it: it may not be known yet, so it goes by its name.
fn reference(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(fields: serde_json::Value) -> KubeletConfiguration {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn an_old_machine_is_refused_unless_allowed() {
        let separate = Layout::Separate(Vec::new());
        let error = check_machine(&config(serde_json::json!({})), &separate).unwrap_err().to_string();
        assert!(error.starts_with("kubelet is configured to not run on a host using cgroup v1."), "{error}");
        let allowed = serde_json::json!({"failCgroupV1": false, "failSwapOn": false});
        check_machine(&config(allowed), &separate).unwrap();
        let groups = serde_json::json!({"failCgroupV1": false, "failSwapOn": false, "singleProcessOOMKill": false});
        assert!(check_machine(&config(groups), &separate).is_err());
    }

    #[test]
    fn swap_is_seen() {
        let heading = "Filename\t\tType\t\tSize\tUsed\tPriority\n";
        assert!(swaps_in_use(heading).is_empty() && swaps_in_use("").is_empty());
        assert_eq!(swaps_in_use(&format!("{heading}/dev/sda2 partition 1 0 -2\n")).len(), 1);
    }

    #[test]
    fn reserved_cores_stand_in_for_reserved_time() {
        let mut config =
            config(serde_json::json!({"reservedSystemCPUs": "0", "kubeReserved": {"cpu": "1", "memory": "1Mi"}}));
        reserve_cores(&mut config).unwrap();
        let all = reservations(&config).unwrap();
        assert_eq!((all.system["cpu"].value(), all.kube.len()), (1, 1));
        assert_eq!(all.enforce.into_iter().collect::<Vec<_>>(), [Enforce::Pods]);
        config.reserved_system_cpus = "60000".to_owned();
        assert!(reserve_cores(&mut config).unwrap_err().to_string().contains("core 60000 is not online"));
        config.reserved_system_cpus = "x".to_owned();
        assert!(reserve_cores(&mut config).is_err());
    }

    #[test]
    fn a_reservation_that_cannot_be_read_is_named() {
        let error =
            reservations(&config(serde_json::json!({"kubeReserved": {"cpu": "much"}}))).unwrap_err().to_string();
        assert!(error.starts_with("kubeReserved.cpu: \"much\": "), "{error}");
    }
}
