//! The connection to the collector.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Error;

const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// A connection that is made when it is first needed, and anew whenever it is lost.
pub(crate) fn lazy(endpoint: &str) -> Result<Channel, Error> {
    let wrong = |reason: &str| Error::Endpoint { endpoint: endpoint.to_owned(), reason: reason.to_owned() };
    if let Some(path) = endpoint.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(wrong("the path of the socket is not absolute"));
        }
        let path = path.to_owned();
        let dial = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        return Ok(Endpoint::from_static("http://collector.invalid").connect_with_connector_lazy(dial));
    }
    let url = match endpoint.split_once("://") {
        None => format!("http://{endpoint}"),
        Some(("http", _)) => endpoint.to_owned(),
        Some((scheme, _)) => return Err(wrong(&format!("connections by {scheme} are not made"))),
    };
    let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
    if uri.port().is_none() {
        return Err(wrong("no port"));
    }
    Ok(Endpoint::from(uri).connect_timeout(DIAL_DEADLINE).connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints() {
        for good in ["localhost:4317", "http://10.0.0.1:4317", "[::1]:4317", "unix:///run/otel.sock"] {
            lazy(good).unwrap();
        }
        for (bad, why) in [
            ("collector", "no port"),
            ("https://collector:4317", "by https"),
            ("unix://relative", "not absolute"),
            ("a b:1", "invalid"),
        ] {
            let error = lazy(bad).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(bad), "{error}");
        }
    }
}
