//! `/metrics/cadvisor`: the metrics that cAdvisor has within stock's kubelet, by the same names, types and labels, read
//! from cgroups and `/proc` when asked.
//!
//! What cAdvisor shows as a constant because stock switches the collector off (`container_tasks_state`, the load
//! averages) is left out.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;

use super::collect::{Stats, meminfo};
use super::detail::{Detail, DeviceIo};
use super::network::{Device, Traffic, devices};
use super::page::{Kind, Page};
use super::pressure::{Pressures, PsiStats};
use crate::host::{PodUsageSource, UsageSources};

use Kind::{Counter, Gauge};

/// Beyond this many processes in one cgroup their open files are not counted.
const MOST_PROCESSES: usize = 4096;

/// Who a cgroup belongs to, as labels; empty for none.
#[derive(Debug, Clone, Default)]
struct Labels {
    container: String,
    id: String,
    image: String,
    name: String,
    namespace: String,
    pod: String,
}

impl Labels {
    fn of_cgroup(id: &str) -> Self {
        let id = if id.is_empty() { "/" } else { id };
        Self { id: id.to_owned(), ..Self::default() }
    }

    fn of_pod(pod: &PodUsageSource) -> Self {
        Self { namespace: pod.namespace.clone(), pod: pod.name.clone(), ..Self::of_cgroup(&pod.cgroup) }
    }

    fn pairs<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own: [(&str, &str); 6] = [
            ("container", &self.container),
            ("id", &self.id),
            ("image", &self.image),
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("pod", &self.pod),
        ];
        own.iter().copied().chain(more.iter().copied()).collect()
    }
}

/// One cgroup's part of the page.
struct Group<'a> {
    page: &'a mut Page,
    labels: Labels,
    at: i64,
}

impl Group<'_> {
    /// A sample with the time of the reading.
    fn add(&mut self, kind: Kind, name: &'static str, help: &'static str, more: &[(&str, &str)], value: f64) {
        self.page.add((name, kind, help), &self.labels.pairs(more), value, Some(self.at));
    }

    /// A sample of what was set and not read: without a time.
    fn spec(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.page.add((name, Gauge, help), &self.labels.pairs(&[]), value, None);
    }
}

impl Stats {
    /// The page for the node and `sources`. Blocks for some dozens of file reads a container.
    pub fn cadvisor(&self, sources: &UsageSources) -> String {
        let mut page = Page::default();
        let devices = block_devices(&self.read("diskstats"));
        self.root(&mut page, &devices);
        for cgroup in &sources.cgroups {
            self.group(&mut page, Labels::of_cgroup(cgroup), cgroup, None, &devices);
        }
        for pod in &sources.pods {
            self.group(&mut page, Labels::of_pod(pod), &pod.cgroup, pod.started, &devices);
            if let Some(sandbox) = &pod.sandbox {
                let labels = Labels { id: sandbox.cgroup.clone(), name: sandbox.id.clone(), ..Labels::of_pod(pod) };
                self.group(&mut page, labels.clone(), &sandbox.cgroup, pod.started, &devices);
                self.network(&mut page, labels, self.pod_process(pod));
            }
            for container in &pod.containers {
                let labels = Labels {
                    container: container.name.clone(),
                    id: container.cgroup.clone(),
                    image: container.image.clone(),
                    name: container.id.clone(),
                    ..Labels::of_pod(pod)
                };
                self.group(&mut page, labels, &container.cgroup, container.started, &devices);
            }
        }
        self.machine(&mut page);
        page.add(("container_scrape_error", Gauge, SCRAPE_ERROR), &[], 0.0, None);
        page.render()
    }

    /// The machine as a whole is the cgroup `/`; what the kernel does not count there comes from `/proc`.
    fn root(&self, page: &mut Page, devices: &HashMap<(u32, u32), String>) {
        let Some(mut detail) = self.cgroups().detail("/") else { return };
        let info = self.read("meminfo");
        let of = |name: &str| meminfo(&info, name).unwrap_or(0);
        if detail.usage.memory == 0 {
            detail.usage.memory = of("MemTotal").saturating_sub(of("MemFree"));
            detail.usage.inactive_file = of("Inactive(file)");
            detail.usage.rss = of("AnonPages");
            detail.memory.cache = of("Cached");
            detail.usage.swap = Some(of("SwapTotal").saturating_sub(of("SwapFree")));
        }
        if detail.pressures == Pressures::default() {
            detail.pressures = Pressures::of_machine(self.proc());
        }
        // Stock does not look into every process of the machine either.
        detail.processes.clear();
        let labels = Labels::of_cgroup("/");
        let mut group = Group { page, labels: labels.clone(), at: Timestamp::now().as_millisecond() };
        group.everything(&detail, None, devices);
        self.file_system(&mut group);
        self.network(page, labels, Some("self".to_owned()));
    }

    fn group(
        &self,
        page: &mut Page,
        labels: Labels,
        cgroup: &str,
        started: Option<Timestamp>,
        devices: &HashMap<(u32, u32), String>,
    ) {
        let Some(detail) = self.cgroups().detail(cgroup) else { return };
        let mut group = Group { page, labels, at: Timestamp::now().as_millisecond() };
        group.everything(&detail, started, devices);
        self.processes_of(&mut group, &detail);
    }

    fn network(&self, page: &mut Page, labels: Labels, process: Option<String>) {
        let Some(process) = process else { return };
        let mut group = Group { page, labels, at: Timestamp::now().as_millisecond() };
        for device in devices(&self.read(&format!("{process}/net/dev"))) {
            group.device(&device);
        }
    }

    fn file_system(&self, group: &mut Group<'_>) {
        let Some((device, stats)) = self.root_file_system() else { return };
        let more = [("device", device.as_str())];
        group.add(Gauge, "container_fs_inodes_free", "Number of available Inodes", &more, stats.inodes_free as f64);
        group.add(Gauge, "container_fs_inodes_total", "Number of Inodes", &more, stats.inodes as f64);
        let help = "Number of bytes that can be consumed by the container on this filesystem.";
        group.add(Gauge, "container_fs_limit_bytes", help, &more, stats.capacity_bytes as f64);
        let help = "Number of bytes that are consumed by the container on this filesystem.";
        group.add(Gauge, "container_fs_usage_bytes", help, &more, stats.used_bytes as f64);
    }

    fn processes_of(&self, group: &mut Group<'_>, detail: &Detail) {
        let count = detail.processes.len();
        group.add(Gauge, "container_processes", "Number of processes running inside the container.", &[], count as f64);
        if count > MOST_PROCESSES {
            return;
        }
        let (mut files, mut sockets) = (0u64, 0u64);
        for process in &detail.processes {
            let links = fs::read_dir(self.proc().join(process.to_string()).join("fd")).into_iter().flatten().flatten();
            for target in links.filter_map(|link| fs::read_link(link.path()).ok()) {
                files += 1;
                sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
            }
        }
        let help = "Number of open file descriptors for the container.";
        group.add(Gauge, "container_file_descriptors", help, &[], files as f64);
        group.add(Gauge, "container_sockets", "Number of open sockets for the container.", &[], sockets as f64);
        let first = detail.processes.first().map(|process| self.read(&format!("{process}/limits")));
        if let Some(limit) = first.as_deref().and_then(open_files_limit) {
            let help = "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice";
            group.add(Gauge, "container_ulimits_soft", help, &[("ulimit", "max_open_files")], limit);
        }
    }

    fn machine(&self, page: &mut Page) {
        let line = |path: PathBuf| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let boot = line(self.proc().join("sys/kernel/random/boot_id"));
        let machine = line(PathBuf::from("/etc/machine-id"));
        let system = line(PathBuf::from("/sys/class/dmi/id/product_uuid"));
        let system = if system.is_empty() { machine.clone() } else { system };
        let labels = [("boot_id", boot.as_str()), ("machine_id", &machine), ("system_uuid", &system)];
        let mut add = |name, help, value: f64| page.add((name, Gauge, help), &labels, value, None);
        let topology = Topology::read(&self.read("cpuinfo"));
        add("machine_cpu_cores", "Number of logical CPU cores.", topology.threads as f64);
        add("machine_cpu_physical_cores", "Number of physical CPU cores.", topology.cores as f64);
        add("machine_cpu_sockets", "Number of CPU sockets.", topology.sockets as f64);
        let info = self.read("meminfo");
        let of = |name: &str| meminfo(&info, name).unwrap_or(0) as f64;
        add("machine_memory_bytes", "Amount of memory installed on the machine.", of("MemTotal"));
        add("machine_swap_bytes", "Amount of swap memory available on the machine.", of("SwapTotal"));
        let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
        page.add(("machine_scrape_error", Gauge, help), &[], 0.0, None);
    }
}

const SCRAPE_ERROR: &str = "1 if there was an error while getting container metrics, 0 otherwise";

impl Group<'_> {
    fn everything(&mut self, detail: &Detail, started: Option<Timestamp>, devices: &HashMap<(u32, u32), String>) {
        self.times(detail, started);
        self.limits(detail);
        self.processor(detail);
        self.memory(detail);
        self.memory_of_version_2(detail);
        self.block_devices(&detail.io, devices);
        if let Some((threads, most)) = detail.threads {
            self.add(Gauge, "container_threads", "Number of threads running inside the container", &[], threads as f64);
            let help = "Maximum number of threads allowed inside the container, infinity if value is zero";
            self.add(Gauge, "container_threads_max", help, &[], most as f64);
        }
        if let Some(kills) = detail.oom_kills {
            let help = "Count of out of memory events observed for the container";
            self.add(Counter, "container_oom_events_total", help, &[], kills as f64);
        }
        self.pressures(&detail.pressures);
    }

    fn times(&mut self, detail: &Detail, started: Option<Timestamp>) {
        let help = "Last time a container was seen by the exporter";
        self.add(Gauge, "container_last_seen", help, &[], (self.at / 1000) as f64);
        if let Some(created) = detail.created {
            let help = "Container creation time since unix epoch in seconds.";
            self.spec("container_creation_time_seconds", help, created as f64);
        }
        if let Some(started) = started.map(|time| time.as_second()).or(detail.created) {
            let help = "Start time of the container since unix epoch in seconds.";
            self.spec("container_start_time_seconds", help, started as f64);
        }
    }

    fn limits(&mut self, detail: &Detail) {
        if let Some(cpu) = detail.cpu_limits {
            self.spec("container_spec_cpu_period", "CPU period of the container.", cpu.period as f64);
            if let Some(quota) = cpu.quota {
                self.spec("container_spec_cpu_quota", "CPU quota of the container.", quota as f64);
            }
            self.spec("container_spec_cpu_shares", "CPU share of the container.", cpu.shares as f64);
        }
        if let Some([memory, swap, reservation]) = detail.memory_limits {
            self.spec("container_spec_memory_limit_bytes", "Memory limit for the container.", memory as f64);
            let help = "Memory swap limit for the container.";
            self.spec("container_spec_memory_swap_limit_bytes", help, swap as f64);
            let help = "Memory reservation limit for the container.";
            self.spec("container_spec_memory_reservation_limit_bytes", help, reservation as f64);
        }
    }

    fn processor(&mut self, detail: &Detail) {
        let help = "Cumulative cpu time consumed in seconds.";
        let used = seconds(detail.usage.cpu);
        self.add(Counter, "container_cpu_usage_seconds_total", help, &[("cpu", "total")], used);
        if let Some((user, system)) = detail.cpu_modes {
            let help = "Cumulative user cpu time consumed in seconds.";
            self.add(Counter, "container_cpu_user_seconds_total", help, &[], seconds(user));
            let help = "Cumulative system cpu time consumed in seconds.";
            self.add(Counter, "container_cpu_system_seconds_total", help, &[], seconds(system));
        }
        // As in stock, only where a quota is set: elsewhere nothing is ever enforced.
        let limited = detail.cpu_limits.is_some_and(|limits| limits.quota.is_some());
        let Some(throttling) = detail.throttling.filter(|_| limited) else { return };
        let help = "Number of elapsed enforcement period intervals.";
        self.add(Counter, "container_cpu_cfs_periods_total", help, &[], throttling.periods as f64);
        let (name, help) = ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.");
        self.add(Counter, name, help, &[], throttling.throttled_periods as f64);
        let help = "Total time duration the container has been throttled.";
        self.add(Counter, "container_cpu_cfs_throttled_seconds_total", help, &[], seconds(throttling.throttled));
        if let Some((bursts, time)) = throttling.bursts {
            let help = "Number of periods when burst occurs.";
            self.add(Counter, "container_cpu_cfs_burst_periods_total", help, &[], bursts as f64);
            let help = "Total time duration the container has been bursted.";
            self.add(Counter, "container_cpu_cfs_burst_seconds_total", help, &[], seconds(time));
        }
    }

    fn memory(&mut self, detail: &Detail) {
        let (usage, memory) = (&detail.usage, &detail.memory);
        let mut gauge = |name, help, value: u64| self.add(Gauge, name, help, &[], value as f64);
        gauge("container_memory_cache", "Number of bytes of page cache memory.", memory.cache);
        gauge("container_memory_rss", "Size of RSS in bytes.", usage.rss);
        gauge("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", memory.kernel);
        gauge("container_memory_mapped_file", "Size of memory mapped files in bytes.", memory.mapped);
        gauge("container_memory_swap", "Container swap usage in bytes.", usage.swap.unwrap_or(0));
        let help = "Current memory usage in bytes, including all memory regardless of when it was accessed";
        gauge("container_memory_usage_bytes", help, usage.memory);
        if let Some(most) = memory.most {
            gauge("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", most);
        }
        gauge("container_memory_working_set_bytes", "Current working set in bytes.", usage.working_set());
        let help = "Current total active file in bytes.";
        gauge("container_memory_total_active_file_bytes", help, memory.active_file);
        let help = "Current total inactive file in bytes.";
        gauge("container_memory_total_inactive_file_bytes", help, usage.inactive_file);
        let help = "Number of memory usage hits limits";
        self.add(Counter, "container_memory_failcnt", help, &[], memory.failcnt as f64);
        for (kind, count) in [("pgfault", usage.faults), ("pgmajfault", usage.major_faults)] {
            for scope in ["container", "hierarchy"] {
                let help = "Cumulative count of memory allocation failures.";
                let more = [("failure_type", kind), ("scope", scope)];
                self.add(Counter, "container_memory_failures_total", help, &more, count as f64);
            }
        }
    }

    fn memory_of_version_2(&mut self, detail: &Detail) {
        let Some(memory) = detail.memory.unified else { return };
        let mut add = |kind, name, help, value: u64| self.add(kind, name, help, &[], value as f64);
        let help = "Cumulative count of memory.high throttle events for the container";
        add(Counter, "container_memory_events_high_total", help, memory.high_events);
        let help = "Cumulative count of memory.max limit hit events for the container";
        add(Counter, "container_memory_events_max_total", help, memory.max_events);
        let help = "Number of bytes of file cache that has been modified but not yet written back to disk.";
        add(Gauge, "container_memory_file_dirty_bytes", help, memory.dirty);
        let help = "Number of bytes of file cache that is currently being written back to disk.";
        add(Gauge, "container_memory_file_writeback_bytes", help, memory.writeback);
        let help = "Cumulative number of pages scanned by the page reclaim algorithm.";
        add(Counter, "container_memory_pgscan_total", help, memory.scanned);
        let help = "Cumulative number of pages reclaimed by the page reclaim algorithm.";
        add(Counter, "container_memory_pgsteal_total", help, memory.stolen);
        let help = "Cumulative number of refaults of previously evicted file pages.";
        add(Counter, "container_memory_workingset_refault_file_total", help, memory.refault_file);
        let help = "Cumulative number of refaults of previously evicted anonymous pages.";
        add(Counter, "container_memory_workingset_refault_anon_total", help, memory.refault_anon);
    }

    fn block_devices(&mut self, io: &[DeviceIo], names: &HashMap<(u32, u32), String>) {
        for device in io {
            let name = names.get(&(device.major, device.minor)).map_or("", String::as_str);
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            for (operation, bytes) in &device.bytes {
                let more = [("device", name), ("major", &major), ("minor", &minor), ("operation", operation)];
                let help = "Blkio Device bytes usage";
                self.add(Counter, "container_blkio_device_usage_total", help, &more, *bytes as f64);
            }
            let more = [("device", name)];
            let mut add = |name, help, value: Option<&u64>| {
                if let Some(value) = value {
                    self.add(Counter, name, help, &more, *value as f64);
                }
            };
            let (bytes, requests) = (&device.bytes, &device.requests);
            add("container_fs_reads_bytes_total", "Cumulative count of bytes read", bytes.get("Read"));
            add("container_fs_reads_total", "Cumulative count of reads completed", requests.get("Read"));
            add("container_fs_writes_bytes_total", "Cumulative count of bytes written", bytes.get("Write"));
            add("container_fs_writes_total", "Cumulative count of writes completed", requests.get("Write"));
        }
    }

    fn pressures(&mut self, pressures: &Pressures) {
        const CPU: [(&str, &str); 2] = [
            (
                "container_pressure_cpu_stalled_seconds_total",
                "Total time duration no tasks in the container could make progress due to CPU congestion.",
            ),
            (
                "container_pressure_cpu_waiting_seconds_total",
                "Total time duration tasks in the container have waited due to CPU congestion.",
            ),
        ];
        const MEMORY: [(&str, &str); 2] = [
            (
                "container_pressure_memory_stalled_seconds_total",
                "Total time duration no tasks in the container could make progress due to memory congestion.",
            ),
            (
                "container_pressure_memory_waiting_seconds_total",
                "Total time duration tasks in the container have waited due to memory congestion.",
            ),
        ];
        const IO: [(&str, &str); 2] = [
            (
                "container_pressure_io_stalled_seconds_total",
                "Total time duration no tasks in the container could make progress due to IO congestion.",
            ),
            (
                "container_pressure_io_waiting_seconds_total",
                "Total time duration tasks in the container have waited due to IO congestion.",
            ),
        ];
        let resources = [(CPU, pressures.cpu), (MEMORY, pressures.memory), (IO, pressures.io)];
        for ([stalled, waiting], stats) in resources {
            let Some(PsiStats { full, some }) = stats else { continue };
            self.add(Counter, stalled.0, stalled.1, &[], full.total as f64 / 1e6);
            self.add(Counter, waiting.0, waiting.1, &[], some.total as f64 / 1e6);
        }
    }

    fn device(&mut self, device: &Device) {
        let more = [("interface", device.name.as_str())];
        let mut add = |name, help, value: u64| self.add(Counter, name, help, &more, value as f64);
        let Traffic { bytes, packets, errors, dropped } = device.received;
        add("container_network_receive_bytes_total", "Cumulative count of bytes received", bytes);
        add("container_network_receive_packets_total", "Cumulative count of packets received", packets);
        let help = "Cumulative count of errors encountered while receiving";
        add("container_network_receive_errors_total", help, errors);
        let help = "Cumulative count of packets dropped while receiving";
        add("container_network_receive_packets_dropped_total", help, dropped);
        let Traffic { bytes, packets, errors, dropped } = device.sent;
        add("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", bytes);
        add("container_network_transmit_packets_total", "Cumulative count of packets transmitted", packets);
        let help = "Cumulative count of errors encountered while transmitting";
        add("container_network_transmit_errors_total", help, errors);
        let help = "Cumulative count of packets dropped while transmitting";
        add("container_network_transmit_packets_dropped_total", help, dropped);
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Names of block devices by their numbers, from `/proc/diskstats`.
fn block_devices(diskstats: &str) -> HashMap<(u32, u32), String> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let numbers = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((numbers, format!("/dev/{}", words.next()?)))
    };
    diskstats.lines().filter_map(device).collect()
}

/// The soft limit of open files in a `/proc/<pid>/limits`; -1 for none.
fn open_files_limit(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(-1.0),
        number => number.parse().ok(),
    }
}

/// How many processors of which kind there are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Topology {
    threads: usize,
    cores: usize,
    sockets: usize,
}

impl Topology {
    fn read(cpuinfo: &str) -> Self {
        let (mut threads, mut socket) = (0, String::new());
        let (mut cores, mut sockets) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for line in cpuinfo.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key.trim() {
                "processor" => threads += 1,
                "physical id" => {
                    value.clone_into(&mut socket);
                    sockets.insert(value.to_owned());
                }
                "core id" => drop(cores.insert((socket.clone(), value.to_owned()))),
                _ => {}
            }
        }
        // Machines that tell no cores and sockets have one socket, and a core a thread.
        Self {
            threads,
            cores: if cores.is_empty() { threads } else { cores.len() },
            sockets: if sockets.is_empty() { 1 } else { sockets.len() },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::StatsConfig;
    use super::super::cgroup::tests::tree;
    use super::*;
    use crate::host::{ContainerUsageSource, SandboxUsageSource};

    fn stats(root: &Path) -> Stats {
        Stats::new(StatsConfig {
            proc: root.join("proc"),
            cgroups: root.join("cg"),
            ..StatsConfig::new("node-1", root)
        })
    }

    fn sources() -> UsageSources {
        let pod = PodUsageSource {
            name: "web".into(),
            namespace: "default".into(),
            cgroup: "/kubepods/pod1".into(),
            sandbox: Some(SandboxUsageSource { id: "s1".into(), cgroup: "/kubepods/pod1/s1".into() }),
            containers: vec![ContainerUsageSource {
                name: "app".into(),
                id: "c1".into(),
                image: "web:1".into(),
                cgroup: "/kubepods/pod1/c1".into(),
                started: Timestamp::from_second(1_767_225_600).ok(),
                ..ContainerUsageSource::default()
            }],
            ..PodUsageSource::default()
        };
        UsageSources { pods: vec![pod], cgroups: vec!["/kubepods".into()], ..UsageSources::default() }
    }

    /// The page without times, which change.
    fn page(root: &Path) -> Vec<String> {
        let without_time = |line: &str| match line.rsplit_once(' ') {
            Some((rest, at)) if at.len() == 13 && !line.starts_with('#') => rest.to_owned(),
            _ => line.to_owned(),
        };
        stats(root).cadvisor(&sources()).lines().map(without_time).collect()
    }

    #[test]
    fn a_pod_has_stock_s_names_and_labels() {
        let net =
            "Inter-|\n face |\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 5 1 0 2 0 0 0 0 6 3 0 0 0 0 0 0\n";
        let tree = tree(&[
            ("cg/cgroup.controllers", ""),
            ("cg/cpu.stat", "usage_usec 9000000\nuser_usec 8\nsystem_usec 1\n"),
            ("cg/kubepods/cpu.stat", "usage_usec 7000000\n"),
            ("cg/kubepods/pod1/cpu.stat", "usage_usec 4000000\n"),
            ("cg/kubepods/pod1/s1/cpu.stat", "usage_usec 1000000\n"),
            ("cg/kubepods/pod1/s1/cgroup.procs", "77\n"),
            (
                "cg/kubepods/pod1/c1/cpu.stat",
                "usage_usec 2500000\nnr_periods 4\nnr_throttled 1\nthrottled_usec 500000\n",
            ),
            ("cg/kubepods/pod1/c1/cpu.max", "50000 100000\n"),
            ("cg/kubepods/pod1/c1/cpu.weight", "1\n"),
            ("cg/kubepods/pod1/c1/memory.current", "1000\n"),
            ("cg/kubepods/pod1/c1/memory.max", "5000\n"),
            ("cg/kubepods/pod1/c1/memory.stat", "anon 600\nfile 300\ninactive_file 200\n"),
            ("cg/kubepods/pod1/c1/memory.events", "oom_kill 2\n"),
            ("cg/kubepods/pod1/c1/cpu.pressure", "some avg10=0 avg60=0 avg300=0 total=1500000\n"),
            ("cg/kubepods/pod1/c1/io.stat", "8:0 rbytes=512 wbytes=1 rios=2 wios=3 dbytes=0 dios=0\n"),
            ("proc/diskstats", "   8       0 sda 1 2 3\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 300 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"),
            ("proc/77/net/dev", net),
            ("proc/self/net/dev", net),
            (
                "proc/cpuinfo",
                "processor : 0\nphysical id : 0\ncore id : 0\nprocessor : 1\nphysical id : 0\ncore id : 0\n",
            ),
        ]);
        let page = page(tree.path());
        let app = r#"id="/kubepods/pod1/c1",image="web:1",name="c1",namespace="default",pod="web""#;
        let sandbox = r#"id="/kubepods/pod1/s1",image="",interface="eth0",name="s1",namespace="default",pod="web""#;
        for want in [
            format!(r#"container_cpu_usage_seconds_total{{container="app",cpu="total",{app}}} 2.5"#),
            format!(r#"container_cpu_cfs_throttled_seconds_total{{container="app",{app}}} 0.5"#),
            format!(r#"container_spec_cpu_quota{{container="app",{app}}} 50000"#),
            format!(r#"container_spec_memory_limit_bytes{{container="app",{app}}} 5000"#),
            format!(r#"container_memory_working_set_bytes{{container="app",{app}}} 800"#),
            format!(r#"container_memory_usage_bytes{{container="app",{app}}} 1000"#),
            format!(r#"container_memory_rss{{container="app",{app}}} 600"#),
            format!(r#"container_memory_cache{{container="app",{app}}} 300"#),
            format!(r#"container_oom_events_total{{container="app",{app}}} 2"#),
            format!(r#"container_start_time_seconds{{container="app",{app}}} 1767225600"#),
            format!(r#"container_pressure_cpu_waiting_seconds_total{{container="app",{app}}} 1.5"#),
            format!(r#"container_fs_reads_bytes_total{{container="app",device="/dev/sda",{app}}} 512"#),
            format!(r#"container_network_receive_packets_dropped_total{{container="",{sandbox}}} 2"#),
            format!(r#"container_network_transmit_bytes_total{{container="",{sandbox}}} 6"#),
            r#"container_cpu_usage_seconds_total{container="",cpu="total",id="/",image="",name="",namespace="",pod=""} 9"#.into(),
            r#"container_cpu_usage_seconds_total{container="",cpu="total",id="/kubepods",image="",name="",namespace="",pod=""} 7"#.into(),
            r#"container_memory_usage_bytes{container="",id="/",image="",name="",namespace="",pod=""} 716800"#.into(),
            "# TYPE container_cpu_usage_seconds_total counter".into(),
            "# TYPE container_memory_working_set_bytes gauge".into(),
        ] {
            assert!(page.contains(&want), "{want} in\n{}", page.join("\n"));
        }
        let machine = |name: &str| page.iter().find(|line| line.starts_with(name)).unwrap().rsplit(' ').next().unwrap();
        assert_eq!((machine("machine_cpu_cores{"), machine("machine_cpu_physical_cores{")), ("2", "1"));
        assert_eq!(machine("machine_memory_bytes{"), "1024000");
        let of_pod = |line: &&String| line.starts_with("container_network") && line.contains(r#"container="app""#);
        assert_eq!(page.iter().find(of_pod), None, "network belongs to the sandbox");
    }

    #[test]
    fn reads_limits_and_topologies() {
        assert_eq!(open_files_limit("Limit\nMax open files            1024        4096   files\n"), Some(1024.0));
        assert_eq!(open_files_limit("Max open files            unlimited   unlimited   files\n"), Some(-1.0));
        assert_eq!(Topology::read("processor : 0\n"), Topology { threads: 1, cores: 1, sockets: 1 });
    }
}
