//! A shutdown of the machine is held off until the pods have ended, lowest priority first.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::events::EventType;
use bosun_kubelet_upkeep::logind::{Error, Lock, Logind};
use bosun_kubelet_upkeep::shutdown::{self, Stage};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;

use super::Upkeep;
use crate::pod::spec;
use crate::worker::{Message, Verdict};

/// Where the login manager looks for files that change its configuration.
const DROP_INS: &str = "/etc/systemd/logind.conf.d";
/// How long until a lost login manager is looked for again.
const RETRY: Duration = Duration::from_secs(60);

impl Upkeep {
    /// Waits for a shutdown and ends pods before it, for ever.
    pub(super) async fn watch_shutdowns(self: Arc<Self>) {
        loop {
            match self.follow_logind().await {
                Ok(()) => tracing::warn!("systemd-logind went away"),
                Err(error) => tracing::warn!(%error, "no graceful node shutdown; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Holds shutdowns off until the login manager goes away.
    async fn follow_logind(&self) -> Result<(), Error> {
        let logind = Logind::connect().await?;
        logind.allow_delay(shutdown::total(&self.settings.shutdown), Path::new(DROP_INS)).await?;
        let mut lock = Some(logind.inhibit().await?);
        let mut shutdowns = logind.shutdowns().await?;
        tracing::info!("shutdowns of the machine wait for pods");
        while let Some(begins) = shutdowns.next().await {
            if begins {
                self.shut_down(lock.take()).await;
            } else {
                self.node_event(
                    EventType::Normal,
                    "Shutdown",
                    "Shutdown manager detected shutdown cancellation".to_owned(),
                );
                self.strain(|strain| strain.shutting_down = false);
                lock = Some(logind.inhibit().await?);
            }
        }
        Ok(())
    }

    /// Ends all pods and lets the shutdown go on.
    pub async fn shut_down(&self, lock: Option<Lock>) {
        tracing::warn!("the machine is about to be shut down");
        self.strain(|strain| strain.shutting_down = true);
        self.node_event(EventType::Normal, "Shutdown", "Shutdown manager detected shutdown event".to_owned());
        let pods: Vec<Arc<Pod>> = self.active().into_iter().map(|snapshot| snapshot.pod).collect();
        let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        for stage in shutdown::plan(&self.settings.shutdown, &pods) {
            tracing::info!(plan = %stage, "ending pods");
            self.end_stage(&stage).await;
        }
        drop(lock);
    }

    async fn end_stage(&self, stage: &Stage) {
        for ending in &stage.pods {
            let handle = self.pods.read().unwrap_or_else(PoisonError::into_inner).get(&ending.uid).cloned();
            let Some(handle) = handle else { continue };
            handle.tell(Message::End(Box::new(Verdict {
                reason: shutdown::REASON,
                message: shutdown::MESSAGE.to_owned(),
                grace: Some(ending.grace),
                disruption: Some(shutdown::MESSAGE.to_owned()),
            })));
        }
        let until = Instant::now() + Duration::from_secs(u64::try_from(stage.seconds).unwrap_or(0));
        let runs = || {
            let of_stage = |uid: &str| stage.pods.iter().any(|ending| ending.uid == uid);
            self.snapshots().iter().any(|s| of_stage(spec::uid(&s.pod)) && !is_over(s))
        };
        while runs() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Whether nothing of the pod runs any more, and will not.
fn is_over(snapshot: &crate::worker::Snapshot) -> bool {
    bosun_api::pod::is_terminal(&snapshot.pod) && snapshot.runtime.running().count() == 0
}
