//! An API server on this machine with everything it needs made on the spot, for trying clients:
//!
//!   cargo run -p bosun-apiserver --example standalone -- DIRECTORY PORT
//!
//! The administrator's kubeconfig is DIRECTORY/admin.kubeconfig.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bosun_apiserver::Options;
use bosun_kit::client::{Credential, kubeconfig_yaml};
use bosun_kit::pki::{CertificateAuthority, LeafParams, Usage, new_signing_key};
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> Result<()> {
    bosun_kit::tls::install_crypto();
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().context("a directory is needed")?.into();
    let port = args.next().context("a port is needed")?;
    let file = |name: &str| dir.join(name).display().to_string();
    prepare(&dir, &port)?;
    let flags = [
        "standalone".to_owned(),
        format!("--data-dir={}", dir.display()),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        format!("--service-account-key-file={}", file("sa.pub")),
    ];
    Cli::parse_from(flags.into_iter().chain(args)).options.run(bosun_kit::shutdown::token()).await
}

fn prepare(dir: &std::path::Path, port: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    if dir.join("admin.kubeconfig").exists() {
        return Ok(());
    }
    let ca = CertificateAuthority::load_or_generate(&dir.join("ca.crt"), &dir.join("ca.key"), "kubernetes")?;
    let leaf = |cn: &str, groups: &[&str], usage| LeafParams {
        cn: cn.to_owned(),
        organizations: groups.iter().map(|g| (*g).to_owned()).collect(),
        sans: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
        usages: vec![usage],
        lifetime: Duration::from_secs(86400 * 365),
    };
    ca.issue(&leaf("kube-apiserver", &[], Usage::ServerAuth))?
        .write(&dir.join("server.crt"), &dir.join("server.key"))?;
    let admin = ca.issue(&leaf("kubernetes-admin", &["system:masters"], Usage::ClientAuth))?;
    let (private, public) = new_signing_key()?;
    std::fs::write(dir.join("sa.key"), private)?;
    std::fs::write(dir.join("sa.pub"), public)?;
    let credential = Credential::Certificate { cert_pem: &admin.cert_pem, key_pem: &admin.key_pem };
    let server = format!("https://127.0.0.1:{port}");
    let text = kubeconfig_yaml("standalone", &server, ca.cert_pem(), "admin", &credential);
    std::fs::write(dir.join("admin.kubeconfig"), text)?;
    Ok(())
}
