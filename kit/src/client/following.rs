//! A client that stays good while the certificates its kubeconfig names are replaced (the kubelet's rotation, or whoever
//! else keeps them).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube::config::Kubeconfig;

use super::config_from_kubeconfig;
use crate::followed::{self, Followed};

/// How often the files are looked at, at most, and only when a request is made.
const PERIOD: Duration = Duration::from_secs(10);

/// A client after a kubeconfig and the files that it names. New requests go out on connections with the newest
/// certificate, those under way end on the old ones. A broken change is logged, and what was there goes on.
#[derive(Clone)]
pub struct Following(Arc<Shared>);

struct Shared {
    kubeconfig: PathBuf,
    client: Followed<Client>,
}

impl Following {
    /// After the kubeconfig at `path`.
    ///
    /// # Errors
    /// The file is missing or broken (the text names it and the field), or its TLS material is.
    pub async fn load(path: &Path) -> anyhow::Result<Self> {
        Self::looking_every(PERIOD, path).await
    }

    async fn looking_every(period: Duration, path: &Path) -> anyhow::Result<Self> {
        let files = named_files(path);
        let stamps = followed::stamps(&files);
        let client = Followed::new(files, stamps, period, dial(path).await?);
        Ok(Self(Arc::new(Shared { kubeconfig: path.to_owned(), client })))
    }

    /// The client; without files to follow it is the plain one.
    pub fn client(&self) -> Client {
        let current = self.0.client.value();
        if self.0.client.files().is_empty() {
            return current;
        }
        let namespace = current.default_namespace().to_owned();
        Client::new(Service(self.clone()), namespace)
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// They are broken; what was there goes on.
    pub async fn reload(&self) -> anyhow::Result<()> {
        let stamps = followed::stamps(self.0.client.files());
        self.0.client.put(dial(&self.0.kubeconfig).await?, stamps);
        Ok(())
    }

    async fn newest(&self) -> Client {
        if self.0.client.changed().is_some() {
            match self.reload().await {
                Ok(()) => tracing::info!(kubeconfig = %self.0.kubeconfig.display(), "client certificate reloaded"),
                Err(error) => tracing::warn!("client certificate not reloaded; the old one goes on: {error:#}"),
            }
        }
        self.0.client.value()
    }
}

async fn dial(path: &Path) -> anyhow::Result<Client> {
    let config = config_from_kubeconfig(path).await?;
    Client::try_from(config).with_context(|| format!("kubeconfig {}", path.display()))
}

/// The files that hold certificates and keys. (Token files are followed by `kube` itself.)
fn named_files(path: &Path) -> Vec<PathBuf> {
    let Ok(kubeconfig) = Kubeconfig::read_from(path) else { return Vec::new() };
    let users = kubeconfig.auth_infos.into_iter().filter_map(|user| user.auth_info);
    let of_users = users.flat_map(|user| [user.client_certificate, user.client_key]);
    let clusters = kubeconfig.clusters.into_iter().filter_map(|cluster| cluster.cluster);
    let of_clusters = clusters.map(|cluster| cluster.certificate_authority);
    of_users.chain(of_clusters).flatten().map(PathBuf::from).collect()
}

/// Hands each request to the client of the moment.
#[derive(Clone)]
struct Service(Following);

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let following = self.0.clone();
        Box::pin(async move { following.newest().await.send(request).await })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::client::{Credential, kubeconfig_yaml};
    use crate::http::{self, Peer};
    use crate::pki::{CertificateAuthority, LeafParams, Usage};
    use crate::tls;

    fn leaf(cn: &str, usage: Usage) -> LeafParams {
        let (sans, lifetime) = (vec!["127.0.0.1".to_owned()], Duration::from_secs(60));
        LeafParams { cn: cn.to_owned(), organizations: vec![], sans, usages: vec![usage], lifetime }
    }

    /// A server that answers with the common name of whoever calls.
    async fn who_is_it(ca: &CertificateAuthority, cancel: CancellationToken) -> SocketAddr {
        let own = ca.issue(&leaf("server", Usage::ServerAuth)).unwrap();
        let cert = tls::FixedCert::new(own.cert_pem.as_bytes(), own.key_pem.as_bytes()).unwrap();
        let config = tls::server_config(cert, Some(tls::roots(ca.cert_pem().as_bytes()).unwrap())).unwrap();
        let listener = http::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = tower::service_fn(|request: Request<http::Body>| async move {
            let peer = request.extensions().get::<Peer>().unwrap();
            let identity = tls::identity(&peer.certificates[0]).unwrap();
            Ok::<_, std::convert::Infallible>(http::text(::http::StatusCode::OK, identity.user))
        });
        tokio::spawn(http::serve(listener, Some(Arc::new(config)), service, cancel));
        addr
    }

    #[tokio::test]
    async fn a_replaced_certificate_is_used() {
        tls::install_crypto();
        let ca = CertificateAuthority::generate("ca").unwrap();
        let stop = CancellationToken::new();
        let addr = who_is_it(&ca, stop.clone()).await;
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
        let become_ = |name: &str| ca.issue(&leaf(name, Usage::ClientAuth)).unwrap().write(&cert, &key).unwrap();
        become_("before");
        let kubeconfig = folder.path().join("kubeconfig");
        let credential = Credential::CertificateFiles { cert: &cert, key: &key };
        let text = kubeconfig_yaml("c", &format!("https://{addr}"), ca.cert_pem(), "me", &credential);
        std::fs::write(&kubeconfig, text).unwrap();

        let following = Following::looking_every(Duration::ZERO, &kubeconfig).await.unwrap();
        let client = following.client();
        let ask = || client.request_text(Request::get("/").body(Vec::new()).unwrap());
        assert_eq!(ask().await.unwrap(), "before");

        std::fs::write(&cert, "broken").unwrap();
        assert_eq!(ask().await.unwrap(), "before", "a broken change is not taken");

        become_("after");
        assert_eq!(ask().await.unwrap(), "after");
        stop.cancel();
    }
}
