//! The gRPC health protocol, as far as probes need it: one unary call, spelled out by hand since both messages have a
//! single field.

use std::time::Duration;

use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::probes::Outcome;

const SERVING: u64 = 1;

/// Asks the server at `host:port` whether `service` is served.
pub async fn check(host: &str, port: u16, service: &str, deadline: Duration) -> Outcome {
    let ask = async {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| format!("connection error: {error}"))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = client.unary(Request::new(service.to_owned()), path, Health).await;
        answer.map(|answer| answer.into_inner()).map_err(|status| format!("error: {}", status.message()))
    };
    match tokio::time::timeout(deadline, ask).await {
        Ok(Ok(SERVING)) => Outcome::Success,
        Ok(Ok(other)) => Outcome::Failure(format!("service unhealthy (responded with {other})")),
        Ok(Err(error)) => Outcome::Failure(error),
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {}s", deadline.as_secs())),
    }
}

/// Sends the service's name as field 1, takes the status from field 1.
#[derive(Clone, Copy, Default)]
struct Health;

impl Codec for Health {
    type Encode = String;
    type Decode = u64;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Health {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, service: String, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if !service.is_empty() {
            buffer.put_u8(0x0a);
            put_varint(buffer, service.len() as u64);
            buffer.put_slice(service.as_bytes());
        }
        Ok(())
    }
}

impl Decoder for Health {
    type Item = u64;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<u64>, Status> {
        let mut status = 0;
        if buffer.remaining() >= 2 && buffer.get_u8() == 0x08 {
            status = u64::from(buffer.get_u8());
        }
        buffer.advance(buffer.remaining());
        Ok(Some(status))
    }
}

fn put_varint(buffer: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}
