//! The node service of one driver: a trait, and the real one over gRPC. Every call ends by a deadline.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bosun_kubelet_plugins::socket;
use bosun_proto::csi::node_client::NodeClient;
use bosun_proto::csi::node_service_capability::rpc::Type as Can;
use bosun_proto::csi::{self, node_service_capability};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long a driver may take, as in stock.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What a driver's node service can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<i32>);

impl Capabilities {
    /// These.
    pub fn of(can: impl IntoIterator<Item = Can>) -> Self {
        Self(can.into_iter().map(|can| can as i32).collect())
    }

    /// Whether it can do that.
    pub fn has(&self, can: Can) -> bool {
        self.0.contains(&(can as i32))
    }

    fn read(answer: &csi::NodeGetCapabilitiesResponse) -> Self {
        let rpc = |can: &csi::NodeServiceCapability| {
            can.r#type.as_ref().map(|node_service_capability::Type::Rpc(rpc)| rpc.r#type)
        };
        Self(answer.capabilities.iter().filter_map(rpc).collect())
    }
}

/// A driver's node service.
#[async_trait]
pub trait NodeService: Send + Sync + 'static {
    /// What it says of the node.
    async fn info(&self) -> Result<csi::NodeGetInfoResponse, Status>;
    /// What it can do.
    async fn capabilities(&self) -> Result<Capabilities, Status>;
    /// Stages a volume.
    async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<(), Status>;
    /// Takes back what was staged.
    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> Result<(), Status>;
    /// Publishes a volume.
    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status>;
    /// Takes back what was published.
    async fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> Result<(), Status>;
    /// Has the file system grow.
    async fn expand(&self, request: csi::NodeExpandVolumeRequest) -> Result<csi::NodeExpandVolumeResponse, Status>;
    /// How full a volume is.
    async fn stats(&self, request: csi::NodeGetVolumeStatsRequest) -> Result<csi::NodeGetVolumeStatsResponse, Status>;
}

/// A node service behind a socket.
pub struct GrpcNode {
    client: NodeClient<Channel>,
    deadline: Duration,
}

impl GrpcNode {
    /// The service at the socket; connects when it is first called.
    pub fn new(socket: &Path, deadline: Duration) -> Self {
        Self { client: NodeClient::new(socket::channel(socket)), deadline }
    }

    async fn within<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        match tokio::time::timeout(self.deadline, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
        }
    }
}

#[async_trait]
impl NodeService for GrpcNode {
    async fn info(&self) -> Result<csi::NodeGetInfoResponse, Status> {
        self.within(self.client.clone().node_get_info(csi::NodeGetInfoRequest {})).await
    }

    async fn capabilities(&self) -> Result<Capabilities, Status> {
        let call = self.within(self.client.clone().node_get_capabilities(csi::NodeGetCapabilitiesRequest {})).await;
        call.map(|answer| Capabilities::read(&answer))
    }

    async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<(), Status> {
        self.within(self.client.clone().node_stage_volume(request)).await.map(drop)
    }

    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> Result<(), Status> {
        self.within(self.client.clone().node_unstage_volume(request)).await.map(drop)
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
        self.within(self.client.clone().node_publish_volume(request)).await.map(drop)
    }

    async fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> Result<(), Status> {
        self.within(self.client.clone().node_unpublish_volume(request)).await.map(drop)
    }

    async fn expand(&self, request: csi::NodeExpandVolumeRequest) -> Result<csi::NodeExpandVolumeResponse, Status> {
        self.within(self.client.clone().node_expand_volume(request)).await
    }

    async fn stats(&self, request: csi::NodeGetVolumeStatsRequest) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        self.within(self.client.clone().node_get_volume_stats(request)).await
    }
}

/// A driver's refusal as stock writes it.
pub fn words(status: &Status) -> String {
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

/// Whether the call is over and did nothing; otherwise the driver may still be at it, or have done it.
pub fn is_final(status: &Status) -> bool {
    let open = [Code::Cancelled, Code::DeadlineExceeded, Code::Unavailable, Code::ResourceExhausted, Code::Aborted];
    !open.contains(&status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_stocks_words() {
        assert_eq!(words(&Status::internal("no disk")), "rpc error: code = Internal desc = no disk");
        assert_eq!(words(&Status::cancelled("x")), "rpc error: code = Canceled desc = x");
        assert!(is_final(&Status::invalid_argument("")) && !is_final(&Status::aborted("")));
    }
}
