//! A CSI driver for tests, behind real sockets: volumes are folders (or files, for devices) below one folder of the
//! node; staging and publishing bind-mount them. It writes down what it is asked, refuses and hangs as told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bosun_proto::csi;
use bosun_proto::csi::identity_server::{Identity, IdentityServer};
use bosun_proto::csi::node_server::{Node, NodeServer};
use bosun_proto::csi::node_service_capability::rpc::Type as Can;
use bosun_proto::csi::volume_capability::AccessType;
use bosun_proto::pluginregistration as registration;
use bosun_proto::pluginregistration::registration_server::{Registration, RegistrationServer};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// The driver's name.
pub(crate) const NAME: &str = "test.csi.example.com";

/// What tests see and set.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) log: Mutex<Vec<String>>,
    /// Calls that begin with one of these never end.
    pub(crate) hang: Mutex<BTreeSet<String>>,
    /// Set once the kubelet said that it is registered.
    pub(crate) registered: tokio::sync::Notify,
}

impl Told {
    /// Writes a call down; one that is to hang does that.
    async fn call(&self, line: String) {
        let hangs = self.hang.lock().unwrap().iter().any(|begin| line.starts_with(begin));
        self.log.lock().unwrap().push(line);
        if hangs {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn count(&self, begin: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(begin)).count()
    }

    pub(crate) fn line(&self, begin: &str) -> Option<String> {
        self.log.lock().unwrap().iter().rev().find(|line| line.starts_with(begin)).cloned()
    }
}

#[derive(Clone)]
struct Service {
    told: Arc<Told>,
    data: PathBuf,
    socket: PathBuf,
}

/// The driver while it serves; its sockets go with it.
pub(crate) struct Driver {
    tasks: Vec<JoinHandle<()>>,
    sockets: Vec<PathBuf>,
}

impl Driver {
    /// Serves below `root` (the kubelet's folder) with volumes in `data`.
    pub(crate) fn start(root: &Path, data: &Path, told: &Arc<Told>) -> Self {
        let folder = root.join("plugins").join(NAME);
        let registry = root.join("plugins_registry");
        for folder in [&folder, &registry, &data.to_path_buf()] {
            fs::create_dir_all(folder).unwrap();
        }
        let (socket, register) = (folder.join("csi.sock"), registry.join(format!("{NAME}-reg.sock")));
        let service = Service { told: told.clone(), data: data.to_path_buf(), socket: socket.clone() };
        let (own, registering) = (service.clone(), service);
        let listen = |path: &Path| UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let (at_socket, at_register) = (listen(&socket), listen(&register));
        let serve = tokio::spawn(async move {
            let server = tonic::transport::Server::builder()
                .add_service(IdentityServer::new(own.clone()))
                .add_service(NodeServer::new(own));
            server.serve_with_incoming(at_socket).await.unwrap();
        });
        let tell = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(registering));
            server.serve_with_incoming(at_register).await.unwrap();
        });
        Self { tasks: vec![serve, tell], sockets: vec![register, socket] }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.sockets.iter().for_each(|socket| fs::remove_file(socket).unwrap());
    }
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
    let none: Option<&str> = None;
    if is_mounted(to) {
        return Ok(());
    }
    mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(failed)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, to, none, flags, none).map_err(failed)?;
    }
    Ok(())
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn unmount(path: &Path) {
    while is_mounted(path) && umount2(path, MntFlags::MNT_DETACH).is_ok() {}
}

fn is_block(capability: &Option<csi::VolumeCapability>) -> bool {
    matches!(capability.as_ref().and_then(|c| c.access_type.as_ref()), Some(AccessType::Block(_)))
}

fn keys(map: &BTreeMap<String, String>) -> String {
    map.keys().map(|key| key.trim_start_matches("csi.storage.k8s.io/").to_owned()).collect::<Vec<_>>().join(",")
}

/// The loop device of a file; made if need be.
fn device(file: &Path) -> Result<PathBuf, Status> {
    let run = |args: &[&str]| {
        let out = Command::new("losetup").args(args).arg(file).output().map_err(failed)?;
        Ok::<_, Status>(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let known = run(&["-n", "-O", "NAME", "-j"])?;
    let name = if known.is_empty() { run(&["-f", "--show"])? } else { known };
    if name.is_empty() { Err(failed("no loop device")) } else { Ok(PathBuf::from(name)) }
}

#[async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse { name: NAME.into(), ..Default::default() }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}

#[async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.told.call(format!("stage {} secrets {}", request.volume_id, keys(&request.secrets))).await;
        let from = self.data.join(&request.volume_id);
        if is_block(&request.volume_capability) {
            device(&from)?;
        } else {
            fs::create_dir_all(&from).map_err(failed)?;
            bind(&from, Path::new(&request.staging_target_path), false)?;
        }
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.told.call(format!("unstage {}", request.volume_id)).await;
        unmount(Path::new(&request.staging_target_path));
        let from = self.data.join(&request.volume_id);
        if from.is_file() {
            let _ = Command::new("losetup").arg("-d").arg(device(&from)?).status();
        }
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = &request.volume_id;
        let mode = request.volume_capability.as_ref().and_then(|c| c.access_mode.as_ref()).map(|m| m.mode());
        let mode = mode.map(|mode| mode.as_str_name()).unwrap_or_default();
        let (context, secrets) = (keys(&request.volume_context), keys(&request.secrets));
        self.told.call(format!("publish {id} {mode} context {context} secrets {secrets}")).await;
        let (from, target) = (self.data.join(id), Path::new(&request.target_path));
        if is_block(&request.volume_capability) {
            let device = device(&from)?;
            fs::File::create(target).map_err(failed)?;
            bind(&device, target, false)?;
        } else if request.staging_target_path.is_empty() {
            fs::create_dir_all(&from).and_then(|()| fs::create_dir_all(target)).map_err(failed)?;
            bind(&from, target, request.readonly)?;
        } else {
            if !is_mounted(Path::new(&request.staging_target_path)) {
                return Err(Status::failed_precondition("not staged"));
            }
            fs::create_dir_all(target).map_err(failed)?;
            bind(Path::new(&request.staging_target_path), target, request.readonly)?;
        }
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.told.call(format!("unpublish {}", request.volume_id)).await;
        let target = Path::new(&request.target_path);
        unmount(target);
        let _ = fs::remove_file(target).or_else(|_| fs::remove_dir(target));
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        if !is_mounted(Path::new(&request.volume_path)) {
            return Err(Status::not_found("not published"));
        }
        let usage = |unit: csi::volume_usage::Unit, total, used| csi::VolumeUsage {
            total,
            used,
            available: total - used,
            unit: unit as i32,
        };
        let usage =
            vec![usage(csi::volume_usage::Unit::Bytes, 1000, 250), usage(csi::volume_usage::Unit::Inodes, 100, 7)];
        Ok(Response::new(csi::NodeGetVolumeStatsResponse { usage, volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let capacity_bytes = request.capacity_range.unwrap_or_default().required_bytes;
        self.told.call(format!("expand {} {capacity_bytes}", request.volume_id)).await;
        Ok(Response::new(csi::NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let can = [Can::StageUnstageVolume, Can::GetVolumeStats, Can::ExpandVolume, Can::SingleNodeMultiWriter];
        let rpc = |can: Can| csi::node_service_capability::Rpc { r#type: can as i32 };
        let capability =
            |can| csi::NodeServiceCapability { r#type: Some(csi::node_service_capability::Type::Rpc(rpc(can))) };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: can.map(capability).to_vec() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let segments = [("topology.test.csi.example.com/rack".to_owned(), "r1".to_owned())].into();
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: "machine-1".into(),
            max_volumes_per_node: 16,
            accessible_topology: Some(csi::Topology { segments }),
        }))
    }
}

#[async_trait]
impl Registration for Service {
    async fn get_info(
        &self,
        _: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.socket.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        assert!(status.get_ref().plugin_registered, "{}", status.get_ref().error);
        self.told.registered.notify_one();
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
