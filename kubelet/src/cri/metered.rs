//! A runtime that counts and times what is asked of another, by the operation names of stock's dashboards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_kit::metrics::Metrics;
use bosun_proto::cri;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::{Events, Result, Runtime};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
}

/// A runtime whose operations are counted and timed.
pub struct MeteredRuntime {
    inner: Arc<dyn Runtime>,
    operations: Family<Operation, Counter>,
    errors: Family<Operation, Counter>,
    durations: Family<Operation, Histogram>,
    pods: Counter,
    pod_errors: Counter,
}

impl MeteredRuntime {
    /// Asks `inner`, and shows in `metrics` what it was asked.
    pub fn new(inner: Arc<dyn Runtime>, metrics: &Metrics) -> Self {
        let new = Self {
            inner,
            operations: Family::default(),
            errors: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.5, 14))),
            pods: Counter::default(),
            pod_errors: Counter::default(),
        };
        metrics.with(|registry| {
            let help = "Cumulative number of runtime operations by operation type";
            registry.register("kubelet_runtime_operations", help, new.operations.clone());
            let help = "Cumulative number of runtime operation errors by operation type";
            registry.register("kubelet_runtime_operations_errors", help, new.errors.clone());
            let help = "Duration in seconds of runtime operations. Broken down by operation type";
            registry.register("kubelet_runtime_operations_duration_seconds", help, new.durations.clone());
            let help = "Cumulative number of pods started";
            registry.register("kubelet_started_pods", help, new.pods.clone());
            let help = "Cumulative number of errors when starting pods";
            registry.register("kubelet_started_pods_errors", help, new.pod_errors.clone());
        });
        new
    }

    async fn timed<T>(&self, operation_type: &'static str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let labels = Operation { operation_type };
        self.operations.get_or_create(&labels).inc();
        let began = Instant::now();
        let answer = call.await;
        self.durations.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
        if answer.is_err() {
            self.errors.get_or_create(&labels).inc();
        }
        answer
    }
}

#[async_trait]
impl Runtime for MeteredRuntime {
    async fn version(&self) -> Result<cri::VersionResponse> {
        self.timed("version", self.inner.version()).await
    }

    async fn status(&self, verbose: bool) -> Result<cri::StatusResponse> {
        self.timed("status", self.inner.status(verbose)).await
    }

    async fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse> {
        self.timed("runtime_config", self.inner.runtime_config()).await
    }

    async fn set_pod_cidr(&self, ranges: &str) -> Result<()> {
        self.timed("update_runtime_config", self.inner.set_pod_cidr(ranges)).await
    }

    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<String> {
        self.pods.inc();
        let answer = self.timed("run_podsandbox", self.inner.run_sandbox(config, handler)).await;
        if answer.is_err() {
            self.pod_errors.inc();
        }
        answer
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.timed("stop_podsandbox", self.inner.stop_sandbox(id)).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.timed("remove_podsandbox", self.inner.remove_sandbox(id)).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        self.timed("podsandbox_status", self.inner.sandbox_status(id)).await
    }

    async fn list_sandboxes(&self) -> Result<Vec<cri::PodSandbox>> {
        self.timed("list_podsandbox", self.inner.list_sandboxes()).await
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String> {
        self.timed("create_container", self.inner.create_container(sandbox, config, sandbox_config)).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.timed("start_container", self.inner.start_container(id)).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.timed("stop_container", self.inner.stop_container(id, grace)).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.timed("remove_container", self.inner.remove_container(id)).await
    }

    async fn container_status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse> {
        self.timed("container_status", self.inner.container_status(id, verbose)).await
    }

    async fn list_containers(&self, sandbox: Option<&str>) -> Result<Vec<cri::Container>> {
        self.timed("list_containers", self.inner.list_containers(sandbox)).await
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.timed("reopen_container_log", self.inner.reopen_log(id)).await
    }

    async fn update_resources(&self, id: &str, resources: cri::LinuxContainerResources) -> Result<()> {
        self.timed("update_container", self.inner.update_resources(id, resources)).await
    }

    async fn checkpoint_container(&self, id: &str, location: &str, timeout: Duration) -> Result<()> {
        self.timed("checkpoint_container", self.inner.checkpoint_container(id, location, timeout)).await
    }

    async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<cri::ExecSyncResponse> {
        self.timed("exec_sync", self.inner.exec_sync(id, command, timeout)).await
    }

    async fn exec(&self, request: cri::ExecRequest) -> Result<String> {
        self.timed("exec", self.inner.exec(request)).await
    }

    async fn attach(&self, request: cri::AttachRequest) -> Result<String> {
        self.timed("attach", self.inner.attach(request)).await
    }

    async fn port_forward(&self, request: cri::PortForwardRequest) -> Result<String> {
        self.timed("port_forward", self.inner.port_forward(request)).await
    }

    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        self.timed("list_container_stats", self.inner.container_stats()).await
    }

    async fn events(&self) -> Result<Events> {
        // A stream has no duration; its end is no error.
        self.inner.events().await
    }

    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        self.timed("image_status", self.inner.image_status(image)).await
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String> {
        self.timed("pull_image", self.inner.pull_image(image, auth, sandbox_config)).await
    }

    async fn list_images(&self) -> Result<Vec<cri::Image>> {
        self.timed("list_images", self.inner.list_images()).await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.timed("remove_image", self.inner.remove_image(image)).await
    }

    async fn image_filesystems(&self) -> Result<cri::ImageFsInfoResponse> {
        self.timed("image_fs_info", self.inner.image_filesystems()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::fake::FakeRuntime;

    #[tokio::test]
    async fn operations_are_counted_by_stock_s_names() {
        let (fake, metrics) = (Arc::new(FakeRuntime::new()), Metrics::default());
        let runtime = MeteredRuntime::new(fake.clone(), &metrics);
        runtime.list_images().await.unwrap();
        fake.fail_next("RunPodSandbox", "no network");
        assert!(runtime.run_sandbox(cri::PodSandboxConfig::default(), String::new()).await.is_err());
        let page = metrics.render();
        for line in [
            r#"kubelet_runtime_operations_total{operation_type="list_images"} 1"#,
            r#"kubelet_runtime_operations_errors_total{operation_type="run_podsandbox"} 1"#,
            r#"kubelet_runtime_operations_duration_seconds_count{operation_type="run_podsandbox"} 1"#,
            "kubelet_started_pods_total 1",
            "kubelet_started_pods_errors_total 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in {page}");
        }
        assert!(!page.contains(r#"errors_total{operation_type="list_images"}"#));
    }
}
