//! The feature gates of a 1.36 kubelet that people set.

use bosun_kit::gates::{Gate, Stage};

const fn gate(name: &'static str, stage: Stage, default: bool, locked: bool) -> Gate {
    Gate { name, stage, default, locked }
}

/// The gates that this kubelet takes. One outside the table fails the start, as in stock.
pub const GATES: &[Gate] = &[
    gate("AllAlpha", Stage::Ga, false, false),
    gate("AllBeta", Stage::Ga, false, false),
    gate("ContainerCheckpoint", Stage::Beta, true, false),
    gate("ContainerRestartRules", Stage::Beta, true, false),
    gate("ContainerStopSignals", Stage::Alpha, false, false),
    gate("CustomCPUCFSQuotaPeriod", Stage::Alpha, false, false),
    gate("DynamicResourceAllocation", Stage::Ga, true, false),
    gate("EnvFiles", Stage::Beta, true, false),
    gate("EventedPLEG", Stage::Alpha, false, false),
    gate("GracefulNodeShutdown", Stage::Beta, true, false),
    gate("HostnameOverride", Stage::Beta, true, false),
    gate("ImageMaximumGCAge", Stage::Ga, true, true),
    gate("ImageVolume", Stage::Beta, true, false),
    gate("InPlacePodLevelResourcesVerticalScaling", Stage::Beta, true, false),
    gate("InPlacePodVerticalScaling", Stage::Ga, true, true),
    gate("KubeletCgroupDriverFromCRI", Stage::Ga, true, false),
    gate("KubeletCrashLoopBackOffMax", Stage::Beta, true, false),
    gate("KubeletEnsureSecretPulledImages", Stage::Beta, true, false),
    gate("KubeletFineGrainedAuthz", Stage::Ga, true, true),
    gate("KubeletInUserNamespace", Stage::Alpha, false, false),
    gate("KubeletPSI", Stage::Ga, true, true),
    gate("KubeletTracing", Stage::Ga, true, true),
    gate("LocalStorageCapacityIsolationFSQuotaMonitoring", Stage::Beta, false, false),
    gate("MemoryQoS", Stage::Alpha, false, false),
    gate("NodeLogQuery", Stage::Ga, true, false),
    gate("NodeSwap", Stage::Ga, true, true),
    gate("PodLevelResources", Stage::Beta, true, false),
    gate("PodLifecycleSleepAction", Stage::Ga, true, true),
    gate("PodObservedGenerationTracking", Stage::Ga, true, true),
    gate("PodReadyToStartContainersCondition", Stage::Beta, true, false),
    gate("ProcMountType", Stage::Beta, true, false),
    gate("ReduceDefaultCrashLoopBackOffDecay", Stage::Alpha, false, false),
    gate("ResourceHealthStatus", Stage::Beta, true, false),
    gate("RestartAllContainersOnContainerExits", Stage::Beta, true, false),
    gate("RotateKubeletServerCertificate", Stage::Beta, true, false),
    gate("SELinuxMount", Stage::Beta, false, false),
    gate("SidecarContainers", Stage::Ga, true, true),
    gate("SupplementalGroupsPolicy", Stage::Ga, true, true),
    gate("SystemdWatchdog", Stage::Ga, true, true),
    gate("UserNamespacesSupport", Stage::Ga, true, false),
];
