//! A runtime in memory that behaves like one: states go forward only, removal is forced, a name is taken once. It
//! records every call that changes something, so that a test can compare the sequence.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bosun_proto::cri;
use jiff::Timestamp;

use super::{CriError, CriErrorKind, Events, Result, Runtime};

/// A runtime in memory.
#[derive(Default)]
pub struct FakeRuntime {
    world: Mutex<World>,
}

#[derive(Default)]
struct World {
    serial: u32,
    sandboxes: BTreeMap<String, cri::PodSandboxStatus>,
    containers: BTreeMap<String, (String, cri::ContainerStatus)>,
    images: BTreeMap<String, cri::Image>,
    calls: Vec<String>,
    failures: BTreeMap<&'static str, String>,
    image_filesystem: Option<String>,
}

impl FakeRuntime {
    /// A runtime without sandboxes, containers or images.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an image on the node.
    pub fn add_image(&self, name: &str) {
        let image =
            cri::Image { id: format!("sha256:{name}"), repo_tags: vec![name.into()], size: 1024, ..Default::default() };
        self.world().images.insert(name.into(), image);
    }

    /// Puts images on the file system that holds `path`.
    pub fn set_image_filesystem(&self, path: &str) {
        self.world().image_filesystem = Some(path.into());
    }

    /// Makes the next call of that name fail with `message`.
    pub fn fail_next(&self, call: &'static str, message: &str) {
        self.world().failures.insert(call, message.into());
    }

    /// Lets the running container of that name exit.
    pub fn exit(&self, name: &str, code: i32) {
        let mut world = self.world();
        let found = world.containers.values_mut().map(|(_, c)| c).find(|c| {
            c.metadata.as_ref().is_some_and(|m| m.name == name) && c.state() == cri::ContainerState::ContainerRunning
        });
        if let Some(container) = found {
            finish(container, code);
        }
    }

    /// What changed something so far, in order, and forgets it.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world().calls)
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn record(&self, call: &'static str, what: &str) -> Result<std::sync::MutexGuard<'_, World>> {
        let mut world = self.world();
        world.calls.push(format!("{call} {what}"));
        match world.failures.remove(call) {
            Some(message) => Err(CriError { call, kind: CriErrorKind::Other, message }),
            None => Ok(world),
        }
    }
}

fn now() -> i64 {
    Timestamp::now().as_nanosecond() as i64
}

fn finish(container: &mut cri::ContainerStatus, code: i32) {
    container.set_state(cri::ContainerState::ContainerExited);
    container.exit_code = code;
    container.finished_at = now();
    container.reason = if code == 0 { "Completed" } else { "Error" }.into();
}

fn missing(call: &'static str, id: &str) -> CriError {
    CriError { call, kind: CriErrorKind::NotFound, message: format!("{id}: not found") }
}

fn unimplemented(call: &'static str) -> CriError {
    CriError { call, kind: CriErrorKind::Unimplemented, message: format!("unknown method {call}") }
}

fn name_of(container: &cri::ContainerStatus) -> String {
    container.metadata.as_ref().map(|m| format!("{}#{}", m.name, m.attempt)).unwrap_or_default()
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<cri::VersionResponse> {
        Ok(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self, _verbose: bool) -> Result<cri::StatusResponse> {
        let ready = |kind: &str| cri::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let conditions = vec![ready("RuntimeReady"), ready("NetworkReady")];
        Ok(cri::StatusResponse { status: Some(cri::RuntimeStatus { conditions }), ..Default::default() })
    }

    async fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse> {
        Err(unimplemented("RuntimeConfig"))
    }

    async fn set_pod_cidr(&self, ranges: &str) -> Result<()> {
        self.record("UpdateRuntimeConfig", ranges).map(drop)
    }

    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<String> {
        let metadata = config.metadata.unwrap_or_default();
        let mut world = self.record("RunPodSandbox", &format!("{}#{}", metadata.name, metadata.attempt))?;
        if world.sandboxes.values().any(|s| s.metadata.as_ref() == Some(&metadata)) {
            let message = format!("name {} is reserved", metadata.name);
            return Err(CriError { call: "RunPodSandbox", kind: CriErrorKind::Other, message });
        }
        world.serial += 1;
        let id = format!("s{}", world.serial);
        let status = cri::PodSandboxStatus {
            id: id.clone(),
            metadata: Some(metadata),
            state: cri::PodSandboxState::SandboxReady as i32,
            created_at: now(),
            network: Some(cri::PodSandboxNetworkStatus {
                ip: format!("10.0.0.{}", world.serial),
                ..Default::default()
            }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: handler,
            ..Default::default()
        };
        world.sandboxes.insert(id.clone(), status);
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let mut world = self.record("StopPodSandbox", id)?;
        if let Some(sandbox) = world.sandboxes.get_mut(id) {
            sandbox.set_state(cri::PodSandboxState::SandboxNotready);
        }
        for (sandbox, container) in world.containers.values_mut() {
            if sandbox == id && container.state() == cri::ContainerState::ContainerRunning {
                finish(container, 137);
            }
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut world = self.record("RemovePodSandbox", id)?;
        world.sandboxes.remove(id);
        world.containers.retain(|_, (sandbox, _)| sandbox != id);
        Ok(())
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        self.world().sandboxes.get(id).cloned().ok_or_else(|| missing("PodSandboxStatus", id))
    }

    async fn list_sandboxes(&self) -> Result<Vec<cri::PodSandbox>> {
        let list = |s: &cri::PodSandboxStatus| cri::PodSandbox {
            id: s.id.clone(),
            metadata: s.metadata.clone(),
            state: s.state,
            created_at: s.created_at,
            labels: s.labels.clone(),
            annotations: s.annotations.clone(),
            runtime_handler: s.runtime_handler.clone(),
        };
        Ok(self.world().sandboxes.values().map(list).collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        _sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let mut world = self.record("CreateContainer", &format!("{}#{}", metadata.name, metadata.attempt))?;
        if !world.sandboxes.contains_key(sandbox) {
            return Err(missing("CreateContainer", sandbox));
        }
        world.serial += 1;
        let id = format!("c{}", world.serial);
        let image = config.image.clone().unwrap_or_default();
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata,
            state: cri::ContainerState::ContainerCreated as i32,
            created_at: now(),
            image_ref: image.image.clone(),
            image: config.image,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: config.log_path,
            ..Default::default()
        };
        world.containers.insert(id.clone(), (sandbox.into(), status));
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let name = self.world().containers.get(id).map(|(_, c)| name_of(c)).unwrap_or_default();
        let mut world = self.record("StartContainer", &name)?;
        let (_, container) = world.containers.get_mut(id).ok_or_else(|| missing("StartContainer", id))?;
        container.set_state(cri::ContainerState::ContainerRunning);
        container.started_at = now();
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let name = self.world().containers.get(id).map(|(_, c)| name_of(c)).unwrap_or_default();
        let mut world = self.record("StopContainer", &format!("{name} {}s", grace.as_secs()))?;
        if let Some((_, container)) = world.containers.get_mut(id)
            && container.state() == cri::ContainerState::ContainerRunning
        {
            finish(container, 143);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.record("RemoveContainer", id)?.containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &str, _verbose: bool) -> Result<cri::ContainerStatusResponse> {
        let world = self.world();
        let (_, status) = world.containers.get(id).ok_or_else(|| missing("ContainerStatus", id))?;
        Ok(cri::ContainerStatusResponse { status: Some(status.clone()), info: BTreeMap::new() })
    }

    async fn list_containers(&self, sandbox: Option<&str>) -> Result<Vec<cri::Container>> {
        let world = self.world();
        let wanted = world.containers.values().filter(|(s, _)| sandbox.is_none_or(|wanted| s == wanted));
        Ok(wanted
            .map(|(sandbox, c)| cri::Container {
                id: c.id.clone(),
                pod_sandbox_id: sandbox.clone(),
                metadata: c.metadata.clone(),
                image: c.image.clone(),
                image_ref: c.image_ref.clone(),
                state: c.state,
                created_at: c.created_at,
                labels: c.labels.clone(),
                annotations: c.annotations.clone(),
                image_id: c.image_id.clone(),
            })
            .collect())
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.record("ReopenContainerLog", id).map(drop)
    }

    async fn update_resources(&self, id: &str, _resources: cri::LinuxContainerResources) -> Result<()> {
        self.record("UpdateContainerResources", id).map(drop)
    }

    async fn checkpoint_container(&self, id: &str, location: &str, _timeout: Duration) -> Result<()> {
        self.record("CheckpointContainer", &format!("{id} {location}")).map(drop)
    }

    async fn exec_sync(&self, _id: &str, command: Vec<String>, _timeout: Duration) -> Result<cri::ExecSyncResponse> {
        drop(self.record("ExecSync", &command.join(" "))?);
        // A command `exit N` gives N; anything else succeeds.
        let code = match command.as_slice() {
            [word, code] if word == "exit" => code.parse().unwrap_or(0),
            _ => 0,
        };
        Ok(cri::ExecSyncResponse { exit_code: code, ..Default::default() })
    }

    async fn exec(&self, _request: cri::ExecRequest) -> Result<String> {
        Err(unimplemented("Exec"))
    }

    async fn attach(&self, _request: cri::AttachRequest) -> Result<String> {
        Err(unimplemented("Attach"))
    }

    async fn port_forward(&self, _request: cri::PortForwardRequest) -> Result<String> {
        Err(unimplemented("PortForward"))
    }

    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        Ok(Vec::new())
    }

    async fn events(&self) -> Result<Events> {
        Err(unimplemented("GetContainerEvents"))
    }

    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        Ok(self.world().images.get(image).cloned())
    }

    async fn pull_image(
        &self,
        image: &str,
        _auth: Option<cri::AuthConfig>,
        _sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String> {
        drop(self.record("PullImage", image)?);
        self.add_image(image);
        Ok(format!("sha256:{image}"))
    }

    async fn list_images(&self) -> Result<Vec<cri::Image>> {
        Ok(self.world().images.values().cloned().collect())
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.record("RemoveImage", image)?.images.retain(|name, known| name != image && known.id != image);
        Ok(())
    }

    async fn image_filesystems(&self) -> Result<cri::ImageFsInfoResponse> {
        let usage = |mountpoint: String| cri::FilesystemUsage {
            fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
            ..Default::default()
        };
        let image_filesystems = self.world().image_filesystem.clone().map(usage).into_iter().collect();
        Ok(cri::ImageFsInfoResponse { image_filesystems, ..Default::default() })
    }
}
