//! The kubelet's own identity towards the API server: TLS bootstrap, and rotation of the client certificate.
//!
//! A bootstrap kubeconfig holds a token of short life. With it a certificate is asked for
//! (`kubernetes.io/kube-apiserver-client-kubelet`), and a kubeconfig is written that points to where the certificate is
//! kept. From then on the certificate itself is used to ask for the next one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use bosun_kit::backoff::{Backoff, jittered};
use bosun_kit::client::{self, Following};
use bosun_kit::files::write_atomic;
use bosun_kit::{pki, tls};
use jiff::Timestamp;
use kube::Client;
use kube::config::Kubeconfig;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::csr::{self, CsrError, Wanted};
use crate::store::CertificateStore;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const USAGES: &[&str] = &["digital signature", "key encipherment", "client auth"];
/// How long a refusal is taken for a control plane that is still starting.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(10);

/// Where the kubelet's identity is kept and comes from.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// Name of the node.
    pub node_name: String,
    /// `--kubeconfig`: read, or written by the bootstrap.
    pub kubeconfig: PathBuf,
    /// `--bootstrap-kubeconfig`.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--cert-dir`.
    pub cert_dir: PathBuf,
}

/// Why the kubelet has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither file is there.
    #[error("kubeconfig {} does not exist, and no --bootstrap-kubeconfig is given to get one with", .0.display())]
    NoKubeconfig(PathBuf),
    /// The certificate cannot be used any more, and there is no token to get another with.
    #[error(
        "kubeconfig {}: its client certificate expired at {until}; give --bootstrap-kubeconfig with a new bootstrap token",
        .kubeconfig.display()
    )]
    Expired {
        /// The kubeconfig.
        kubeconfig: PathBuf,
        /// When it expired.
        until: Timestamp,
    },
    /// A kubeconfig is missing or broken.
    #[error("{0}")]
    Kubeconfig(String),
    /// The token is no (longer) good.
    #[error(
        "bootstrap kubeconfig {}: the API server does not know its token (it may have expired): {message}; make a new bootstrap token",
        .kubeconfig.display()
    )]
    Token {
        /// The bootstrap kubeconfig.
        kubeconfig: PathBuf,
        /// The API server's words.
        message: String,
    },
    /// The token may not ask for certificates.
    #[error("bootstrap kubeconfig {}: {message}; bind its group to the role system:node-bootstrapper", .kubeconfig.display())]
    Forbidden {
        /// The bootstrap kubeconfig.
        kubeconfig: PathBuf,
        /// The API server's words.
        message: String,
    },
    /// The certificate was not issued.
    #[error("{0}")]
    NotIssued(String),
    /// The certificate could not be kept.
    #[error("keep client certificate: {0}")]
    Store(#[from] std::io::Error),
    /// The key or the request could not be made.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// The kubelet was told to stop.
    #[error("stopped while waiting for a client certificate")]
    Cancelled,
}

/// Gets the kubelet's identity: the kubeconfig as it is when its certificate is still good, by bootstrap otherwise.
/// Waits for the API server, and for the certificate to be issued, until `cancel`.
///
/// # Errors
/// See [`IdentityError`].
pub async fn establish(config: &IdentityConfig, cancel: &CancellationToken) -> Result<Identity, IdentityError> {
    let shown = Shown::by(&config.kubeconfig);
    if shown.is_good(Timestamp::now()) {
        return Identity::load(config.clone()).await;
    }
    match (&config.bootstrap_kubeconfig, shown) {
        (Some(bootstrap), _) => tokio::select! {
            done = self::bootstrap(config, bootstrap) => done?,
            () = cancel.cancelled() => return Err(IdentityError::Cancelled),
        },
        (None, Shown::Certificate(until)) => {
            return Err(IdentityError::Expired { kubeconfig: config.kubeconfig.clone(), until });
        }
        (None, _) if !config.kubeconfig.exists() => {
            return Err(IdentityError::NoKubeconfig(config.kubeconfig.clone()));
        }
        // Broken in some way: loading it tells how.
        (None, _) => {}
    }
    Identity::load(config.clone()).await
}

/// What a kubeconfig has to show.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// Nothing, or it cannot be read.
    Nothing,
    /// A client certificate that holds until then.
    Certificate(Timestamp),
    /// Something whose life we do not know.
    Other,
}

impl Shown {
    fn by(path: &Path) -> Self {
        let Ok(kubeconfig) = Kubeconfig::read_from(path) else { return Self::Nothing };
        let Some(user) = kubeconfig.auth_infos.first().and_then(|user| user.auth_info.as_ref()) else {
            return Self::Nothing;
        };
        let pem = match (&user.client_certificate, &user.client_certificate_data) {
            (Some(file), _) => std::fs::read(file).unwrap_or_default(),
            (None, Some(data)) => base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default(),
            (None, None) => return Self::Other,
        };
        validity(&pem).map_or(Self::Nothing, |(_, until)| Self::Certificate(until))
    }

    fn is_good(&self, now: Timestamp) -> bool {
        match self {
            Self::Nothing => false,
            Self::Certificate(until) => now < *until,
            Self::Other => true,
        }
    }
}

/// From when to when the leaf certificate in a PEM text holds.
fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let certs = tls::parse_certs(pem).ok()?;
    let (from, until) = tls::validity(certs.first()?)?;
    Some((Timestamp::from_second(from).ok()?, Timestamp::from_second(until).ok()?))
}

async fn bootstrap(config: &IdentityConfig, path: &Path) -> Result<(), IdentityError> {
    let kubeconfig = |error: anyhow::Error| IdentityError::Kubeconfig(format!("bootstrap: {error:#}"));
    let client = client::from_kubeconfig(path).await.map_err(kubeconfig)?;
    tracing::info!(kubeconfig = %path.display(), "asking for a client certificate with the bootstrap token");
    let store = CertificateStore::new(&config.cert_dir, "kubelet-client");
    let (csr_pem, key_pem) = pending_request(config, &store)?;
    let (cn, organizations) = subject(&config.node_name);
    let identity = format!("{cn}|{}", organizations.join("|"));
    let name = csr::digested_name(&csr_pem, &identity, USAGES);
    let wanted = Wanted { signer: SIGNER, usages: USAGES, csr_pem: &csr_pem, name: Some(name) };
    let name = ask_with_token(&client, &wanted, path).await?;
    tracing::info!(csr = name, "waiting for the client certificate to be issued");
    let cert_pem = csr::wait(&client, &name).await.map_err(|error| IdentityError::NotIssued(error.to_string()))?;
    check_pair(&cert_pem, &key_pem)?;
    store.update(&cert_pem, &key_pem, Timestamp::now())?;
    write_kubeconfig(path, &config.kubeconfig, &store.current_path())?;
    tracing::info!(kubeconfig = %config.kubeconfig.display(), "client certificate issued");
    Ok(())
}

/// The request for the key that was kept from an earlier try, or for a new one.
fn pending_request(config: &IdentityConfig, store: &CertificateStore) -> Result<(String, String), IdentityError> {
    let (cn, organizations) = subject(&config.node_name);
    if let Some(key_pem) = store.pending_key()?
        && let Ok(csr_pem) = pki::csr_for_key(&key_pem, &cn, &organizations, &[])
    {
        return Ok((csr_pem, key_pem));
    }
    let (csr_pem, key_pem) = pki::new_csr(&cn, &organizations, &[])?;
    store.keep_pending_key(&key_pem)?;
    Ok((csr_pem, key_pem))
}

pub(crate) fn subject(node_name: &str) -> (String, Vec<String>) {
    (format!("system:node:{node_name}"), vec!["system:nodes".to_owned()])
}

/// Makes the request. An API server that is away is waited for; one that refuses is given a moment, as it may be
/// starting and its tokens and roles not be there yet.
async fn ask_with_token(client: &Client, wanted: &Wanted<'_>, path: &Path) -> Result<String, IdentityError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut refused_since = None;
    loop {
        match csr::create(client, wanted).await {
            Ok(name) => return Ok(name),
            Err(CsrError::Refused(status)) => {
                let since = *refused_since.get_or_insert_with(tokio::time::Instant::now);
                let final_word = !matches!(status.code, 401 | 403);
                if final_word || since.elapsed() >= REFUSAL_PATIENCE {
                    let (kubeconfig, message) = (path.to_owned(), status.message.clone());
                    return Err(match status.code {
                        401 => IdentityError::Token { kubeconfig, message },
                        403 => IdentityError::Forbidden { kubeconfig, message },
                        _ => IdentityError::NotIssued(format!("certificate signing request: {message}")),
                    });
                }
            }
            Err(error) => {
                refused_since = None;
                tracing::debug!(%error, "the API server cannot be asked for a client certificate yet");
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

fn check_pair(cert_pem: &str, key_pem: &str) -> Result<(), IdentityError> {
    tls::certified_key(cert_pem.as_bytes(), key_pem.as_bytes())
        .map(drop)
        .map_err(|error| IdentityError::NotIssued(format!("the issued certificate cannot be used: {error}")))
}

/// Writes the kubeconfig that points to the certificate, with the cluster of the bootstrap kubeconfig.
fn write_kubeconfig(bootstrap: &Path, path: &Path, certificate: &Path) -> Result<(), IdentityError> {
    let broken =
        |what: &str| IdentityError::Kubeconfig(format!("bootstrap kubeconfig {}: {what}", bootstrap.display()));
    let source = Kubeconfig::read_from(bootstrap).map_err(|error| broken(&error.to_string()))?;
    let context = source.current_context.as_deref().unwrap_or_default();
    let context = source.contexts.iter().find(|c| c.name == context).and_then(|c| c.context.as_ref());
    let cluster = match context {
        Some(context) => source.clusters.iter().find(|c| c.name == context.cluster),
        None => source.clusters.first(),
    };
    let cluster = cluster.and_then(|c| c.cluster.as_ref()).ok_or_else(|| broken("has no cluster"))?;
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "users": [{
            "name": "default-auth",
            "user": {"client-certificate": certificate, "client-key": certificate},
        }],
        "contexts": [{
            "name": "default-context",
            "context": {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"},
        }],
        "current-context": "default-context",
    });
    // JSON is YAML.
    let text = serde_json::to_string_pretty(&document).map_err(|error| broken(&error.to_string()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    write_atomic(path, text.as_bytes(), 0o600)?;
    Ok(())
}

/// The kubelet's identity and a client that always uses the newest certificate.
pub struct Identity {
    config: IdentityConfig,
    following: Following,
    client: Client,
}

impl Identity {
    /// After the kubeconfig.
    ///
    /// # Errors
    /// It is missing or broken.
    pub async fn load(config: IdentityConfig) -> Result<Self, IdentityError> {
        let following = Following::load(&config.kubeconfig).await.map_err(kubeconfig_error)?;
        let client = following.client();
        Ok(Self { config, following, client })
    }

    /// The client. It stays good over rotations: new requests go out on connections with the new certificate, those
    /// under way end on the old ones.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Renews the client certificate at 70–90 % of its life, for ever. Ends at once when the kubeconfig does not
    /// point into our certificate folder: somebody else then keeps the certificate.
    pub async fn keep_fresh(self, cancel: CancellationToken) {
        tokio::select! {
            () = self.rotate() => {}
            () = cancel.cancelled() => {}
        }
    }

    async fn rotate(&self) {
        let store = CertificateStore::new(&self.config.cert_dir, "kubelet-client");
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        loop {
            let Ok(Some(pem)) = store.current() else { return };
            let Some((from, until)) = validity(pem.as_bytes()) else { return };
            sleep_until(rotation_time(from, until)).await;
            match self.renew(&store).await {
                Ok(()) => {
                    backoff.reset();
                    tracing::info!("client certificate renewed");
                }
                Err(error) => {
                    tracing::warn!(%error, "client certificate not renewed; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Asks for a new certificate with the present one and turns to it.
    ///
    /// # Errors
    /// It was not issued, or could not be kept; the present one goes on.
    async fn renew(&self, store: &CertificateStore) -> Result<(), IdentityError> {
        let (cn, organizations) = subject(&self.config.node_name);
        let (csr_pem, key_pem) = pki::new_csr(&cn, &organizations, &[])?;
        let wanted = Wanted { signer: SIGNER, usages: USAGES, csr_pem: &csr_pem, name: None };
        let not_issued = |error: CsrError| IdentityError::NotIssued(error.to_string());
        let name = csr::create(&self.client, &wanted).await.map_err(not_issued)?;
        let issued = tokio::time::timeout(Duration::from_secs(900), csr::wait(&self.client, &name)).await;
        let cert_pem = issued
            .map_err(|_| IdentityError::NotIssued(format!("certificate signing request {name} is not decided")))?
            .map_err(not_issued)?;
        check_pair(&cert_pem, &key_pem)?;
        store.update(&cert_pem, &key_pem, Timestamp::now())?;
        self.following.reload().await.map_err(kubeconfig_error)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn kubeconfig_error(error: anyhow::Error) -> IdentityError {
    IdentityError::Kubeconfig(format!("{error:#}"))
}

/// When to ask for the next certificate: at 70 % of the life of this one, plus up to 20 % by chance, so that the nodes
/// of a cluster do not all ask at once.
pub(crate) fn rotation_time(from: Timestamp, until: Timestamp) -> Timestamp {
    let life = Duration::try_from(until - from).unwrap_or_default();
    let after = jittered(life.mul_f64(0.7), 0.2 / 0.7);
    from.checked_add(after).unwrap_or(until)
}

/// Sleeps by the clock on the wall, which may be set: looks again each hour.
pub(crate) async fn sleep_until(at: Timestamp) {
    while let Ok(left) = Duration::try_from(at - Timestamp::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_between_70_and_90_percent() {
        let from = Timestamp::UNIX_EPOCH;
        let until = Timestamp::from_second(1000).unwrap();
        for _ in 0..1000 {
            let at = rotation_time(from, until).as_second();
            assert!((700..=900).contains(&at), "{at}");
        }
    }

    #[test]
    fn the_kubeconfig_points_to_the_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let (bootstrap, path) = (folder.path().join("bootstrap"), folder.path().join("conf/kubelet"));
        let ca = pki::CertificateAuthority::generate("ca").unwrap();
        let token = client::Credential::Token("abc.def");
        std::fs::write(&bootstrap, client::kubeconfig_yaml("c", "https://10.0.0.1:6443", ca.cert_pem(), "u", &token))
            .unwrap();
        let current = folder.path().join("pki/kubelet-client-current.pem");
        write_kubeconfig(&bootstrap, &path, &current).unwrap();
        let written = Kubeconfig::read_from(&path).unwrap();
        assert_eq!(written.current_context.as_deref(), Some("default-context"));
        let user = written.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.client_certificate.as_deref(), current.to_str());
        assert!(user.token.is_none());
        let cluster = written.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.0.0.1:6443"));
        assert!(cluster.certificate_authority_data.is_some());

        assert_eq!(Shown::by(&path), Shown::Nothing, "no certificate yet");
        let leaf = pki::LeafParams {
            cn: "system:node:a".into(),
            organizations: vec![],
            sans: vec![],
            usages: vec![pki::Usage::ClientAuth],
            lifetime: Duration::from_secs(60),
        };
        let issued = ca.issue(&leaf).unwrap();
        let store = CertificateStore::new(folder.path().join("pki"), "kubelet-client");
        store.update(&issued.cert_pem, &issued.key_pem, Timestamp::now()).unwrap();
        let shown = Shown::by(&path);
        assert!(shown.is_good(Timestamp::now()));
        assert!(!shown.is_good(Timestamp::now() + jiff::SignedDuration::from_secs(61)));
        assert_eq!(Shown::by(&bootstrap), Shown::Other);
    }
}
