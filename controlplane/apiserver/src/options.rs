//! Flags of `bosun apiserver`, under stock's names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bosun_kit::tls;
use bosun_store::EmbeddedStore;
use clap::{ArgAction, Args};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::server::{ApiServer, Config, ServiceAccountKeys};

/// Run the API server alone.
///
/// It needs a serving certificate and the authority of its clients:
///
///   bosun apiserver --data-dir=/var/lib/bosun/server --tls-cert-file=apiserver.crt \
///     --tls-private-key-file=apiserver.key --client-ca-file=ca.crt \
///     --service-account-signing-key-file=sa.key --service-account-key-file=sa.pub \
///     --kubelet-client-certificate=kubelet-client.crt --kubelet-client-key=kubelet-client.key
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Where the embedded store keeps its file.
    #[arg(long, default_value = "/var/lib/bosun/server", help_heading = "Store")]
    pub data_dir: PathBuf,

    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), help_heading = "Serving")]
    pub bind_address: IpAddr,
    /// The port to listen on.
    #[arg(long, default_value_t = 6443, help_heading = "Serving")]
    pub secure_port: u16,
    /// The address that pods reach this server by: the endpoint of the `kubernetes` Service.
    #[arg(long, help_heading = "Serving")]
    pub advertise_address: Option<IpAddr>,
    /// Serving certificate, PEM; read again when it changes.
    #[arg(long, help_heading = "Serving")]
    pub tls_cert_file: PathBuf,
    /// Its private key, PEM.
    #[arg(long, help_heading = "Serving")]
    pub tls_private_key_file: PathBuf,

    /// The authority whose client certificates are taken: CN is the user, O the groups.
    #[arg(long, help_heading = "Authentication and authorization")]
    pub client_ca_file: Option<PathBuf>,
    /// Let callers who show nothing see health and version.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true",
        help_heading = "Authentication and authorization")]
    pub anonymous_auth: bool,
    /// `Node,RBAC`, or `AlwaysAllow` for experiments.
    #[arg(long, default_value = "Node,RBAC", value_delimiter = ',', help_heading = "Authentication and authorization")]
    pub authorization_mode: Vec<String>,
    /// The key that signs service accounts' tokens (EC P-256 or RSA, PEM); without it there are none.
    #[arg(long, help_heading = "Authentication and authorization")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Its public key, PEM.
    #[arg(long, help_heading = "Authentication and authorization")]
    pub service_account_key_file: Option<PathBuf>,
    /// The issuer of tokens.
    #[arg(
        long,
        default_value = "https://kubernetes.default.svc.cluster.local",
        help_heading = "Authentication and authorization"
    )]
    pub service_account_issuer: String,
    /// The audiences of tokens for this server; the issuer if not given.
    #[arg(long, value_delimiter = ',', help_heading = "Authentication and authorization")]
    pub api_audiences: Vec<String>,

    /// Where service addresses come from; two ranges, of both families, for dual stack.
    #[arg(long, default_value = "10.96.0.0/12", value_delimiter = ',', help_heading = "Services")]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Where node ports come from.
    #[arg(long, default_value = "30000-32767", help_heading = "Services")]
    pub service_node_port_range: String,

    /// The authority of kubelets' serving certificates; that of clients if not given.
    #[arg(long, help_heading = "Kubelets")]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// This server's certificate for kubelets, PEM; without it there are no logs and no exec.
    #[arg(long, help_heading = "Kubelets")]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, help_heading = "Kubelets")]
    pub kubelet_client_key: Option<PathBuf>,
}

impl Options {
    /// Open the store, start, and serve until cancelled.
    ///
    /// # Errors
    /// A file is missing or broken, the port is taken, the store is damaged; the text names it.
    pub async fn run(self, cancel: CancellationToken) -> Result<()> {
        let listener = bosun_kit::http::bind(SocketAddr::new(self.bind_address, self.secure_port)).await?;
        let config = self.config()?;
        let certificate = tls::ReloadingCert::load(&self.tls_cert_file, &self.tls_private_key_file)?;
        let clients = match &self.client_ca_file {
            Some(path) => Some(tls::roots(read(path)?.as_bytes())?),
            None => None,
        };
        let serving = tls::server_config(certificate, clients)?;
        bosun_kit::files::create_dir(&self.data_dir, 0o700)?;
        let store = Arc::new(EmbeddedStore::open(self.data_dir.join("store.redb"))?);
        let server = ApiServer::start(config, store).await?;
        tracing::info!(address = %self.bind_address, port = self.secure_port, "API server started");
        let service = server.service();
        bosun_kit::http::serve(listener, Some(Arc::new(serving)), service, stopping(&server, cancel)).await;
        Ok(())
    }

    fn config(&self) -> Result<Config> {
        let issuer = self.service_account_issuer.clone();
        let audiences = match self.api_audiences.as_slice() {
            [] => vec![issuer.clone()],
            given => given.to_vec(),
        };
        let authorization = match self.authorization_mode.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["AlwaysAllow"] => crate::Authorization::AlwaysAllow,
            ["Node", "RBAC"] | ["RBAC", "Node"] => crate::Authorization::Policy,
            other => bail!("--authorization-mode={}: choose Node,RBAC or AlwaysAllow", other.join(",")),
        };
        Ok(Config {
            service_account_keys: self.keys()?,
            audiences,
            issuer,
            service_cidrs: self.service_cluster_ip_range.clone(),
            node_ports: parse_ports(&self.service_node_port_range)?,
            advertise: self.advertise_address.map(|ip| SocketAddr::new(ip, self.secure_port)),
            kubelet_tls: self.kubelet_tls()?,
            authorization,
            anonymous: self.anonymous_auth,
        })
    }

    fn keys(&self) -> Result<Option<ServiceAccountKeys>> {
        match (&self.service_account_signing_key_file, &self.service_account_key_file) {
            (Some(private), Some(public)) => {
                Ok(Some(ServiceAccountKeys { private_pem: read(private)?, public_pem: read(public)? }))
            }
            (None, None) => Ok(None),
            _ => bail!("--service-account-signing-key-file and --service-account-key-file go together"),
        }
    }

    fn kubelet_tls(&self) -> Result<Option<Arc<rustls::ClientConfig>>> {
        let (cert, key) = match (&self.kubelet_client_certificate, &self.kubelet_client_key) {
            (Some(cert), Some(key)) => (read(cert)?, read(key)?),
            (None, None) => return Ok(None),
            _ => bail!("--kubelet-client-certificate and --kubelet-client-key go together"),
        };
        let Some(ca) = self.kubelet_certificate_authority.as_ref().or(self.client_ca_file.as_ref()) else {
            bail!("--kubelet-certificate-authority or --client-ca-file is needed to verify kubelets");
        };
        let config = tls::client_config(tls::roots(read(ca)?.as_bytes())?, Some((cert.as_bytes(), key.as_bytes())))?;
        Ok(Some(Arc::new(config)))
    }
}

/// A token that stops the server's watches together with its connections.
fn stopping(server: &ApiServer, cancel: CancellationToken) -> CancellationToken {
    let (server, stop) = (server.clone(), cancel.clone());
    tokio::spawn(async move {
        stop.cancelled().await;
        server.stop();
    });
    cancel
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn parse_ports(text: &str) -> Result<std::ops::RangeInclusive<u16>> {
    let range = text.split_once('-').and_then(|(low, high)| Some(low.parse().ok()?..=high.parse().ok()?));
    match range {
        Some(range) if !range.is_empty() => Ok(range),
        _ => bail!("--service-node-port-range={text}: give a range such as 30000-32767"),
    }
}
