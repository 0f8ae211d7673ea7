//! The bootstrap token that nodes join with: made once, kept in a file, and known to the cluster as a Secret.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bosun_kit::files::write_atomic;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use rand::Rng as _;
use serde_json::json;

/// The token kept in `file`, made if there is none, with its Secret in the cluster.
///
/// # Errors
/// The file holds something else, or the API server refuses the Secret.
pub(crate) async fn ensure(client: &Client, file: &Path) -> Result<String> {
    let token = match file.exists() {
        true => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?.trim().to_owned(),
        false => {
            let token = format!("{}.{}", random(6), random(16));
            write_atomic(file, format!("{token}\n").as_bytes(), 0o600)?;
            token
        }
    };
    let Some((id, secret)) = token.split_once('.').filter(|(id, secret)| id.len() == 6 && secret.len() == 16) else {
        bail!("{} holds no bootstrap token (ID.SECRET); remove it and start again", file.display());
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let name = format!("bootstrap-token-{id}");
    if api.get_opt(&name).await.context("look for the bootstrap token")?.is_none() {
        let object = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "description": "Lets nodes join; made by bosun server.",
                "token-id": id,
                "token-secret": secret,
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
            },
        }))?;
        api.create(&PostParams::default(), &object).await.context("keep the bootstrap token in the cluster")?;
    }
    Ok(token)
}

fn random(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}
