//! The edge to a device plugin: what the kubelet asks of it.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bosun_proto::deviceplugin::device_plugin_client::DevicePluginClient;
use bosun_proto::deviceplugin::{
    self as api, AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Empty, PreStartContainerRequest, PreferredAllocationRequest,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::table::{Device, Options};
use crate::unix;

/// Questions that need no work.
const QUICK: Duration = Duration::from_secs(10);
/// A plugin may have to set a device up; stock waits without end, and then so does every other pod.
const ALLOCATE: Duration = Duration::from_secs(120);
/// As in stock.
const PRE_START: Duration = Duration::from_secs(30);
const HEALTHY: &str = "Healthy";
/// The largest answer taken, as in stock.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// All devices, again whenever one changes. Its end is the end of the plugin.
pub type Devices = BoxStream<'static, Result<Vec<Device>, String>>;

/// A device plugin. Errors are in words.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// What it wants to be asked.
    async fn options(&self) -> Result<Options, String>;
    /// Its devices.
    async fn watch(&self) -> Result<Devices, String>;
    /// Which `count` of the available ones go well together, with those that are included already.
    async fn preferred(
        &self,
        available: Vec<String>,
        included: Vec<String>,
        count: usize,
    ) -> Result<Vec<String>, String>;
    /// What a container with these devices needs.
    async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, String>;
    /// A container with these devices is about to start.
    async fn pre_start(&self, ids: Vec<String>) -> Result<(), String>;
}

/// A plugin behind its socket.
pub struct GrpcPlugin(DevicePluginClient<Channel>);

impl GrpcPlugin {
    /// The plugin that listens at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self(DevicePluginClient::new(unix::channel(socket)).max_decoding_message_size(MAX_MESSAGE))
    }
}

fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn words(status: Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// Calls with a deadline on our side too: a peer that hangs before it has read the call never sees the one in it.
async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner).map_err(words),
        Err(_) => Err(format!("rpc error: code = DeadlineExceeded desc = no answer within {}s", deadline.as_secs())),
    }
}

fn device(device: api::Device) -> Device {
    let nodes = device.topology.map(|topology| topology.nodes.iter().map(|node| node.id).collect());
    Device { id: device.id, healthy: device.health == HEALTHY, nodes }
}

#[async_trait]
impl Plugin for GrpcPlugin {
    async fn options(&self) -> Result<Options, String> {
        let mut client = self.0.clone();
        let answer = within(QUICK, client.get_device_plugin_options(request(Empty {}, QUICK))).await?;
        Ok(Options { pre_start: answer.pre_start_required, preferred: answer.get_preferred_allocation_available })
    }

    async fn watch(&self) -> Result<Devices, String> {
        // The stream itself lasts as long as the plugin.
        let stream = within(QUICK, self.0.clone().list_and_watch(Request::new(Empty {}))).await?;
        let devices = stream.map(|answer| match answer {
            Ok(answer) => Ok(answer.devices.into_iter().map(device).collect()),
            Err(status) => Err(words(status)),
        });
        Ok(devices.boxed())
    }

    async fn preferred(
        &self,
        available: Vec<String>,
        included: Vec<String>,
        count: usize,
    ) -> Result<Vec<String>, String> {
        let one = ContainerPreferredAllocationRequest {
            available_device_i_ds: available,
            must_include_device_i_ds: included,
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let message = PreferredAllocationRequest { container_requests: vec![one] };
        let answer = within(QUICK, self.0.clone().get_preferred_allocation(request(message, QUICK))).await?;
        Ok(answer.container_responses.into_iter().next().map(|one| one.device_i_ds).unwrap_or_default())
    }

    async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, String> {
        let message = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids }] };
        let answer = within(ALLOCATE, self.0.clone().allocate(request(message, ALLOCATE))).await?;
        let first = answer.container_responses.into_iter().next();
        first.ok_or_else(|| "no containers return in allocation response".to_owned())
    }

    async fn pre_start(&self, ids: Vec<String>) -> Result<(), String> {
        let message = PreStartContainerRequest { devices_ids: ids };
        within(PRE_START, self.0.clone().pre_start_container(request(message, PRE_START))).await.map(drop)
    }
}
