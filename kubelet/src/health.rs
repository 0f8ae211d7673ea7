//! The gRPC health protocol, as far as probes need it: one unary call.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::Request;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::probes::Outcome;

const SERVING: i32 = 1;
/// Names of the other statuses, by number.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks the server at `host:port` whether `service` is served.
pub async fn check(host: &str, port: u16, service: &str, deadline: Duration) -> Outcome {
    let ask = async {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| format!("connection error: {error}"))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = CheckRequest { service: service.to_owned() };
        let codec = ProstCodec::<CheckRequest, CheckResponse>::default();
        let answer = client.unary(Request::new(request), path, codec).await;
        answer.map(|answer| answer.into_inner().status).map_err(|status| format!("error: {}", status.message()))
    };
    match tokio::time::timeout(deadline, ask).await {
        Ok(Ok(SERVING)) => Outcome::Success,
        Ok(Ok(other)) => {
            let name = usize::try_from(other).ok().and_then(|number| STATUSES.get(number));
            let name = name.map_or_else(|| other.to_string(), |name| (*name).to_owned());
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(error)) => Outcome::Failure(error),
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {}s", deadline.as_secs())),
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tonic::transport::Server;
    use tonic_health::ServingStatus;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    fn failure(outcome: Outcome) -> String {
        match outcome {
            Outcome::Failure(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_real_health_server_is_understood() {
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let ask = |service: &'static str| check("127.0.0.1", port, service, DEADLINE);
        reporter.set_service_status("good", ServingStatus::Serving).await;
        reporter.set_service_status("bad", ServingStatus::NotServing).await;
        assert!(matches!(ask("").await, Outcome::Success), "a server that names no service is asked as a whole");
        assert!(matches!(ask("good").await, Outcome::Success));
        assert_eq!(failure(ask("bad").await), "service unhealthy (responded with \"NOT_SERVING\")");
        assert!(failure(ask("none").await).starts_with("error: "));
        let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
        assert!(failure(check("127.0.0.1", nobody.port(), "", DEADLINE).await).starts_with("connection error: "));
    }
}
