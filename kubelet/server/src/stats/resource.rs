//! `/metrics/resource`: the few figures that autoscaling reads, in Prometheus text with the time of each reading.

use std::fmt::Write;

use super::summary::{CpuStats, MemoryStats, PodStats, Summary, SwapStats};

/// One sample: labels (with braces, or empty), value, time in milliseconds.
type Sample = (String, String, i64);

/// The page for a summary.
pub fn render(summary: &Summary) -> String {
    let mut out = String::new();
    let node = &summary.node;
    let one = |sample: Option<Sample>| sample.into_iter().collect::<Vec<_>>();
    let containers = |sample: &dyn Fn(&super::ContainerStats, String) -> Option<Sample>| -> Vec<Sample> {
        let of_pod = |pod: &PodStats| {
            let labels = |name: &str| {
                let PodStats { pod_ref, .. } = pod;
                format!("{{container={name:?},namespace={:?},pod={:?}}}", pod_ref.namespace, pod_ref.name)
            };
            pod.containers.iter().filter_map(|c| sample(c, labels(&c.name))).collect::<Vec<_>>()
        };
        summary.pods.iter().flat_map(of_pod).collect()
    };
    let pods = |sample: &dyn Fn(&PodStats, String) -> Option<Sample>| -> Vec<Sample> {
        let labels = |pod: &PodStats| format!("{{namespace={:?},pod={:?}}}", pod.pod_ref.namespace, pod.pod_ref.name);
        summary.pods.iter().filter_map(|pod| sample(pod, labels(pod))).collect()
    };
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<Sample>| {
        if samples.is_empty() {
            return;
        }
        let stability = if name.contains("swap") { "ALPHA" } else { "STABLE" };
        let _ = writeln!(out, "# HELP {name} [{stability}] {help}\n# TYPE {name} {kind}");
        for (labels, value, at) in samples {
            let _ = writeln!(out, "{name}{labels} {value} {at}");
        }
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        containers(&|c, labels| c.cpu.as_ref().map(|cpu| cpu_sample(labels, cpu))),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        containers(&|c, labels| c.memory.as_ref().map(|memory| memory_sample(labels, memory))),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        containers(&|c, labels| {
            let started = c.start_time?;
            Some((labels, seconds(u64::try_from(started.as_nanosecond()).ok()?), started.as_millisecond()))
        }),
    );
    family(
        "container_swap_limit_bytes",
        "gauge",
        "Current amount of the container swap limit in bytes. Reported only on non-windows systems",
        containers(&|c, labels| c.swap.as_ref().and_then(|swap| swap_limit_sample(labels, swap))),
    );
    family(
        "container_swap_usage_bytes",
        "gauge",
        "Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        containers(&|c, labels| c.swap.as_ref().map(|swap| swap_sample(labels, swap))),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        one(node.cpu.as_ref().map(|cpu| cpu_sample(String::new(), cpu))),
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        one(node.memory.as_ref().map(|memory| memory_sample(String::new(), memory))),
    );
    family(
        "node_swap_usage_bytes",
        "gauge",
        "Current swap usage of the node in bytes. Reported only on non-windows systems",
        one(node.swap.as_ref().map(|swap| swap_sample(String::new(), swap))),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods(&|pod, labels| pod.cpu.as_ref().map(|cpu| cpu_sample(labels, cpu))),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        pods(&|pod, labels| pod.memory.as_ref().map(|memory| memory_sample(labels, memory))),
    );
    family(
        "pod_swap_usage_bytes",
        "gauge",
        "Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        pods(&|pod, labels| pod.swap.as_ref().map(|swap| swap_sample(labels, swap))),
    );
    out +=
        "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n";
    out += "# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n";
    out
}

fn cpu_sample(labels: String, cpu: &CpuStats) -> Sample {
    (labels, seconds(cpu.usage_core_nano_seconds), cpu.time.as_millisecond())
}

fn memory_sample(labels: String, memory: &MemoryStats) -> Sample {
    (labels, memory.working_set_bytes.to_string(), memory.time.as_millisecond())
}

fn swap_sample(labels: String, swap: &SwapStats) -> Sample {
    (labels, swap.swap_usage_bytes.to_string(), swap.time.as_millisecond())
}

fn swap_limit_sample(labels: String, swap: &SwapStats) -> Option<Sample> {
    let limit = swap.swap_available_bytes? + swap.swap_usage_bytes;
    Some((labels, limit.to_string(), swap.time.as_millisecond()))
}

fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::super::{ContainerStats, NodeStats, PodReference};
    use super::*;

    #[test]
    fn the_page() {
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        let cpu = Some(CpuStats { time, usage_nano_cores: None, usage_core_nano_seconds: 1_500_000_000, psi: None });
        let memory = Some(MemoryStats {
            time,
            available_bytes: None,
            usage_bytes: 9,
            working_set_bytes: 7,
            rss_bytes: 0,
            page_faults: 0,
            major_page_faults: 0,
            psi: None,
        });
        let container = ContainerStats {
            name: "app".into(),
            start_time: Some(time),
            cpu: cpu.clone(),
            memory: memory.clone(),
            swap: Some(SwapStats { time, swap_available_bytes: Some(5), swap_usage_bytes: 3 }),
            ..ContainerStats::default()
        };
        let pod = PodStats {
            pod_ref: PodReference { name: "web".into(), namespace: "default".into(), uid: "u".into() },
            containers: vec![container],
            cpu: cpu.clone(),
            memory: memory.clone(),
            ..PodStats::default()
        };
        let node = NodeStats { node_name: "node-1".into(), cpu, memory, ..NodeStats::default() };
        let page = render(&Summary { node, pods: vec![pod] });
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "container_cpu_usage_seconds_total{container=\"app\",namespace=\"default\",pod=\"web\"} 1.500000000 1767225600000",
                "container_memory_working_set_bytes{container=\"app\",namespace=\"default\",pod=\"web\"} 7 1767225600000",
                "container_start_time_seconds{container=\"app\",namespace=\"default\",pod=\"web\"} 1767225600.000000000 1767225600000",
                "container_swap_limit_bytes{container=\"app\",namespace=\"default\",pod=\"web\"} 8 1767225600000",
                "container_swap_usage_bytes{container=\"app\",namespace=\"default\",pod=\"web\"} 3 1767225600000",
                "node_cpu_usage_seconds_total 1.500000000 1767225600000",
                "node_memory_working_set_bytes 7 1767225600000",
                "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"web\"} 1.500000000 1767225600000",
                "pod_memory_working_set_bytes{namespace=\"default\",pod=\"web\"} 7 1767225600000",
                "resource_scrape_error 0",
            ]
        );
    }
}
