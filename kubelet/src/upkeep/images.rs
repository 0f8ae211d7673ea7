//! Images that nobody uses are removed when the disk fills up, or when they grow old.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bosun_kit::events::EventType;
use bosun_kubelet_upkeep::images::{self, Candidate, Disk, Image, ImagePlan, Policy, Records};
use bosun_kubelet_upkeep::usage;
use bosun_proto::cri;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{Upkeep, blocking, runtime_file_systems};
use crate::cri::Runtime;
use crate::images::pulled;

/// How often images are looked at, as in stock.
const PERIOD: Duration = Duration::from_secs(300);

/// Why a collection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The runtime did not answer, or the disk could not be measured.
    #[error("{0}")]
    Unknown(String),
    /// The disk has no size.
    #[error(transparent)]
    Capacity(#[from] images::InvalidCapacity),
    /// Less was won than is needed.
    #[error("{}", images::too_little(*.want, *.freed))]
    TooLittle {
        /// Bytes to win.
        want: u64,
        /// Bytes won.
        freed: u64,
    },
}

impl Failure {
    /// The reason of the event about it, beside the one that the collection failed.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Unknown(_) => None,
            Self::Capacity(_) => Some("InvalidDiskCapacity"),
            Self::TooLittle { .. } => Some("FreeDiskSpaceFailed"),
        }
    }
}

/// Knows when images were used and removes them.
pub(super) struct Collector {
    runtime: Arc<dyn Runtime>,
    policy: Policy,
    records: Mutex<Records>,
    /// Who may use which image; what is gone is forgotten.
    pulled: Option<Arc<pulled::Records>>,
}

impl Collector {
    pub(super) fn new(runtime: Arc<dyn Runtime>, policy: Policy, pulled: Option<Arc<pulled::Records>>) -> Self {
        Self { runtime, policy, records: Mutex::default(), pulled }
    }

    /// The images of the node, and whether containers use them.
    async fn list(&self) -> Result<Vec<Image>, Failure> {
        let listed = futures::try_join!(self.runtime.list_images(), self.runtime.list_containers(None));
        let (images, containers) = listed.map_err(|error| Failure::Unknown(error.to_string()))?;
        let mut used: HashSet<String> = containers
            .into_iter()
            .flat_map(|c| [c.image_ref, c.image_id, c.image.map(|image| image.image).unwrap_or_default()])
            .collect();
        used.extend(self.sandbox_image().await);
        let image = |image: cri::Image| {
            let mut names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
            let in_use = names.any(|name| used.contains(name));
            Image { in_use, pinned: image.pinned, size: image.size, id: image.id.clone() }
        };
        Ok(images.into_iter().map(image).collect())
    }

    /// The image of sandboxes, which a runtime that does not pin it yet tells in its configuration.
    async fn sandbox_image(&self) -> Option<String> {
        let info = self.runtime.status(true).await.ok()?.info;
        let config: serde_json::Value = serde_json::from_str(info.get("config")?).ok()?;
        config["sandboxImage"].as_str().map(str::to_owned)
    }

    /// Notes which images are used now.
    async fn detect(&self) -> Result<Vec<Image>, Failure> {
        let began = Timestamp::now();
        let images = self.list().await?;
        if let Some(pulled) = self.pulled.clone() {
            let present = images.iter().map(|image| image.id.clone()).collect();
            blocking(move || pulled.prune(&present, began)).await;
        }
        self.records.lock().await.detect(&images, Timestamp::now());
        Ok(images)
    }

    /// Removes what is too old, and more if the disk is too full.
    async fn collect(&self, disk: Disk) -> Result<u64, Failure> {
        let images = self.detect().await?;
        let plan = self.records.lock().await.plan(&images, &self.policy, disk, Timestamp::now())?;
        let (want, freed) = (plan.want, self.apply(plan).await);
        if freed < want { Err(Failure::TooLittle { want, freed }) } else { Ok(freed) }
    }

    /// Removes everything that is not used. Returns the bytes won.
    pub(super) async fn collect_all(&self) -> Result<u64, Failure> {
        let images = self.detect().await?;
        let plan = self.records.lock().await.plan_all(&images, &self.policy, Timestamp::now());
        Ok(self.apply(plan).await)
    }

    async fn apply(&self, plan: ImagePlan) -> u64 {
        let mut freed = 0;
        for image in &plan.old {
            freed += self.remove(image).await;
        }
        for image in &plan.candidates {
            if freed >= plan.want {
                break;
            }
            freed += self.remove(image).await;
        }
        freed
    }

    async fn remove(&self, image: &Candidate) -> u64 {
        match self.runtime.remove_image(&image.id).await {
            Ok(()) => {
                tracing::info!(image = image.id, bytes = image.size, "an unused image was removed");
                image.size
            }
            Err(error) => {
                tracing::warn!(image = image.id, %error, "an unused image was not removed");
                0
            }
        }
    }
}

impl Upkeep {
    /// Collects images now and then, for ever.
    pub(super) async fn collect_images(self: Arc<Self>) {
        if let Err(error) = self.images.detect().await {
            tracing::warn!(%error, "images were not listed");
        }
        let mut failed = false;
        loop {
            tokio::time::sleep(PERIOD).await;
            if self.settings.images.is_idle() {
                let _ = self.images.detect().await;
                continue;
            }
            failed = self.collect_images_once(failed).await;
        }
    }

    /// Collects once; returns whether that failed. The first failure in a row is no event: numbers may be missing early.
    pub async fn collect_images_once(&self, failed_before: bool) -> bool {
        let collected = match self.image_disk().await {
            Ok(disk) => self.images.collect(disk).await,
            Err(error) => Err(error),
        };
        let Err(error) = collected else { return false };
        tracing::warn!(%error, "images were not collected");
        if let Some(reason) = error.reason() {
            self.node_event(EventType::Warning, reason, error.to_string());
        }
        if failed_before {
            self.node_event(EventType::Warning, "ImageGCFailed", error.to_string());
        }
        true
    }

    async fn image_disk(&self) -> Result<Disk, Failure> {
        let (point, _) = runtime_file_systems(&self.context).await;
        let point = point.ok_or_else(|| Failure::Unknown("the runtime names no image file system".to_owned()))?;
        let found = blocking(move || usage::file_system(&point)).await;
        let found = found.ok_or_else(|| Failure::Unknown("the image file system was not measured".to_owned()))?;
        let (space, _) = found.map_err(|error| Failure::Unknown(error.to_string()))?;
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(Disk { capacity: number(space.capacity), available: number(space.available) })
    }
}
