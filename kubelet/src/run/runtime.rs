//! The container runtime at the kubelet's start: found, waited for, and what was pulled by whom.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bosun_kit::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfiguration;
use crate::cri::{CriErrorKind, GrpcRuntime, Runtime};
use crate::images::providers::Providers;
use crate::images::pulled::{Records, Verification};
use crate::make::Node;
use crate::options::Options;

/// How long a container runtime that does not answer yet is waited for, from one answer to the next.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn connect(config: &KubeletConfiguration, cancel: &CancellationToken) -> Result<Arc<dyn Runtime>> {
    let endpoint = &config.container_runtime_endpoint;
    let runtime = GrpcRuntime::new(endpoint, &config.image_service_endpoint, config.runtime_request_timeout.0)
        .map_err(anyhow::Error::msg)?;
    let began = tokio::time::Instant::now();
    let mut told = false;
    loop {
        let Err(error) = runtime.version().await else { return Ok(Arc::new(runtime)) };
        if began.elapsed() > RUNTIME_PATIENCE {
            bail!(
                "no container runtime answers at {endpoint}: {error}; start containerd, or name its socket with --container-runtime-endpoint"
            );
        }
        if !told {
            tracing::warn!(endpoint, %error, "waiting for the container runtime");
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = cancel.cancelled() => bail!("stopped while waiting for the container runtime"),
        }
    }
}

/// Asks the runtime anew while it gives no answer: one lost answer at the start must not end the kubelet.
pub(super) async fn patiently<T, F: Future<Output = crate::cri::Result<T>>>(
    what: &str,
    cancel: &CancellationToken,
    ask: impl Fn() -> F,
) -> Result<T> {
    let began = tokio::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind == CriErrorKind::Unimplemented => return Err(error.into()),
            Err(error) => error,
        };
        if began.elapsed() > RUNTIME_PATIENCE {
            bail!("the container runtime does not answer ({what}): {error}; look at containerd's log");
        }
        tracing::warn!(what, %error, "asking the container runtime again");
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = cancel.cancelled() => bail!("stopped while waiting for the container runtime"),
        }
    }
}

/// The records of who may use which image, with what a killed kubelet left behind put right.
pub(super) async fn pull_records(
    runtime: &dyn Runtime,
    node: &Node,
    config: &KubeletConfiguration,
) -> Result<Arc<Records>> {
    let listed = config.preloaded_images_verification_allowlist.as_slice();
    let verification = Verification::of(&config.image_pull_credentials_verification_policy, listed);
    let records = Records::open(&node.root_dir, verification)?;
    let images = runtime.list_images().await.context("list the images of the container runtime")?;
    records.recover(images.iter().map(|image| {
        (image.id.as_str(), image.repo_tags.iter().chain(&image.repo_digests).map(String::as_str).collect())
    }));
    Ok(Arc::new(records))
}

pub(super) fn credential_providers(options: &Options) -> Result<Providers> {
    let pair =
        options.image_credential_provider_config.as_ref().zip(options.image_credential_provider_bin_dir.as_ref());
    Ok(pair.map(|(config, programs)| Providers::load(config, programs)).transpose()?.unwrap_or_default())
}
