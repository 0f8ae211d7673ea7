//! Metrics: one registry a process, answered in the Prometheus text format.

use std::sync::{Arc, Mutex};

use ::http::{Response, StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::http::{Body, full, text};

/// A registry that many parts of a process add to; cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// An empty registry with the process's own figures (`process_*`) in it.
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.with(|registry| registry.register_collector(Box::new(process::Process)));
        metrics
    }

    /// Lets `register` add its metrics.
    pub fn with<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// All metrics as text. `# EOF`, which OpenMetrics has and the Prometheus text format has not, is left out.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = encode(&mut out, &registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        out.truncate(out.trim_end_matches("# EOF\n").len());
        out
    }

    /// The answer to `GET /metrics`.
    pub fn respond(&self) -> Response<Body> {
        let mut response = Response::new(full(self.render()));
        let content_type = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// The answer for a path that is not served.
pub fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

mod process {
    //! What the kernel says of this process, read when asked.

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::ConstCounter;
    use prometheus_client::metrics::gauge::ConstGauge;

    #[derive(Debug, Default)]
    pub(super) struct Process;

    impl Collector for Process {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let Some((cpu_seconds, resident)) = sample() else { return Ok(()) };
            let cpu = ConstCounter::new(cpu_seconds);
            let entry = encoder.encode_descriptor(
                "process_cpu_seconds",
                "Total user and system CPU time spent in seconds",
                None,
                cpu.metric_type(),
            )?;
            cpu.encode(entry)?;
            let memory = ConstGauge::new(resident);
            let entry = encoder.encode_descriptor(
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                None,
                memory.metric_type(),
            )?;
            memory.encode(entry)
        }
    }

    /// CPU seconds used and bytes resident, from `/proc/self/stat` (proc(5): fields 14, 15 and 24).
    fn sample() -> Option<(f64, i64)> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        let pages: i64 = fields.get(21)?.parse().ok()?;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
        let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        Some((ticks / per_second, pages * page_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_process_without_an_end_mark() {
        let text = Metrics::new().render();
        assert!(text.contains("process_cpu_seconds_total"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(!text.contains("# EOF"));
    }
}
