//! Eviction at work: measure, show the node's conditions, give back what nobody needs, and only then end one pod, wait
//! until it is gone and measure again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::events::EventType;
use bosun_kubelet_upkeep::eviction::{self, Candidate, Config, Eviction, History, Reclaim, Starved};
use bosun_kubelet_upkeep::psi::MemoryStalls;
use bosun_kubelet_upkeep::signals::Resource;
use bosun_kubelet_upkeep::thresholds::with_container_fs;
use bosun_kubelet_upkeep::usage::PodUsage;
use bosun_kubelet_upkeep::{limits, logs};

use super::measure::Observed;
use super::{Upkeep, exists, title};
use crate::pod::spec;
use crate::worker::{Message, Snapshot, Verdict};

/// How long an evicted pod is waited for before the next look.
const CLEANUP: Duration = Duration::from_secs(30);
/// The least time between two looks, however often the kernel calls.
const BREATH: Duration = Duration::from_secs(1);

/// What is remembered from round to round.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    history: History,
    storage_measured: Option<Instant>,
}

impl Upkeep {
    /// Looks at the node each interval, and when the kernel says that processes stall for want of memory; for ever.
    pub(super) async fn watch_shortages(self: Arc<Self>) {
        let stalls = MemoryStalls::watch(Path::new("/proc/pressure/memory"));
        let mut stalls = stalls.inspect_err(|error| tracing::debug!(%error, "no notice of memory stalls")).ok();
        let mut rounds = Rounds::default();
        loop {
            let evicted = self.round(&mut rounds).await;
            if !evicted.is_empty() {
                self.wait_for_end(&evicted).await;
                continue;
            }
            tokio::time::sleep(BREATH).await;
            tokio::select! {
                () = tokio::time::sleep(self.settings.eviction_interval.saturating_sub(BREATH)) => {}
                gone = next_stall(&stalls) => if gone { stalls = None },
            }
        }
    }

    /// One round. Returns the UIDs of the pods that it ends.
    pub(super) async fn round(&self, rounds: &mut Rounds) -> Vec<String> {
        let observed = self.observe().await;
        let config = self.config(&observed);
        let found = eviction::assess(&config, &observed.signals, &rounds.history, Instant::now());
        rounds.history = found.history;
        self.strain(|strain| strain.short_of = found.conditions);
        let over = self.over_limits(rounds, &observed).await;
        if !over.is_empty() {
            return self.evict(over);
        }
        let Some(starved) = found.starved else { return Vec::new() };
        tracing::warn!(threshold = %starved.threshold, left = %starved.available, "reclaiming {}", starved.resource());
        let message = format!("Attempting to reclaim {}", starved.resource());
        self.node_event(EventType::Warning, "EvictionThresholdMet", message);
        let starved = match self.reclaim(&config, &observed, starved).await {
            Some(starved) => starved,
            None => return Vec::new(),
        };
        let pods = self.active();
        let usage = self.measure(&pods, starved.resource()).await;
        match eviction::choose(&config, observed.layout, &starved, &candidates(&pods, &usage)) {
            Some(chosen) => self.evict(vec![chosen]),
            None => {
                tracing::warn!("no pod can be evicted");
                Vec::new()
            }
        }
    }

    /// The thresholds, with those of the file system of writable layers if that was found.
    fn config(&self, observed: &Observed) -> Config {
        let on_image_fs = observed.layout.image_fs && !observed.layout.container_fs;
        let config = &self.settings.eviction;
        Config { thresholds: with_container_fs(&config.thresholds, on_image_fs), ..config.clone() }
    }

    /// Pods that might go: all that have not ended.
    pub(super) fn active(&self) -> Vec<Snapshot> {
        self.snapshots().into_iter().filter(|s| !bosun_api::pod::is_terminal(&s.pod)).collect()
    }

    async fn over_limits(&self, rounds: &mut Rounds, observed: &Observed) -> Vec<Eviction> {
        let Some(interval) = self.settings.storage_interval else { return Vec::new() };
        if rounds.storage_measured.is_some_and(|at| at.elapsed() < interval) {
            return Vec::new();
        }
        rounds.storage_measured = Some(Instant::now());
        let pods: Vec<Snapshot> = self.active().into_iter().filter(|s| limits::has_any(&s.pod)).collect();
        if pods.is_empty() {
            return Vec::new();
        }
        let usage = self.measure(&pods, Resource::EphemeralStorage).await;
        limits::plan(observed.layout, &candidates(&pods, &usage))
    }

    /// Gives back what nobody needs. Returns what is still starved, with what is left of it now.
    async fn reclaim(&self, config: &Config, observed: &Observed, starved: Starved) -> Option<Starved> {
        let reclaims = starved.reclaims(observed.layout);
        for reclaim in reclaims {
            match reclaim {
                Reclaim::Containers => self.reclaim_containers().await,
                Reclaim::Images => match self.images.collect_all().await {
                    Ok(freed) => tracing::info!(bytes = freed, "unused images were removed"),
                    Err(error) => tracing::warn!(%error, "unused images were not removed"),
                },
            }
        }
        if reclaims.is_empty() {
            return Some(starved);
        }
        let now = self.observe().await.signals;
        if !eviction::is_short(config, &now) {
            return None;
        }
        let left = now.get(&starved.threshold.signal).map(|o| bosun_kubelet_upkeep::signals::amount(o.available));
        Some(Starved { available: left.unwrap_or(starved.available), ..starved })
    }

    /// Removes what is left in the runtime of pods that have ended, with its logs.
    async fn reclaim_containers(&self) {
        let runtime = &self.context.runtime;
        let over = |s: &Snapshot| {
            bosun_api::pod::is_terminal(&s.pod)
                && s.runtime.running().count() == 0
                && s.runtime.sandboxes.iter().all(|sandbox| !sandbox.ready || sandbox.stopped)
        };
        for snapshot in self.snapshots().into_iter().filter(over) {
            let folder = self.context.node.log_dir(&snapshot.pod);
            for container in &snapshot.runtime.containers {
                if let Err(error) = runtime.remove_container(&container.id).await {
                    tracing::warn!(pod = title(&snapshot), %error, "a dead container was not removed");
                    continue;
                }
                let log = folder.join(format!("{}/{}.log", container.name, container.attempt));
                if let Err(error) = logs::remove(&log) {
                    tracing::warn!(pod = title(&snapshot), %error, "a dead container's log was not removed");
                }
            }
            for sandbox in &snapshot.runtime.sandboxes {
                if let Err(error) = runtime.remove_sandbox(&sandbox.id).await {
                    tracing::warn!(pod = title(&snapshot), %error, "a dead sandbox was not removed");
                }
            }
        }
        // The workers learn of it.
        if let Err(error) = self.context.observer.list().await {
            tracing::warn!(%error, "the container runtime was not listed");
        }
    }

    /// Ends pods. Returns the UIDs of those that were there.
    fn evict(&self, evictions: Vec<Eviction>) -> Vec<String> {
        let mut ended = Vec::new();
        for eviction in evictions {
            let handle = self.pods.read().unwrap_or_else(PoisonError::into_inner).get(&eviction.uid).cloned();
            let Some(handle) = handle else { continue };
            tracing::warn!(plan = %eviction, "evicting a pod");
            self.context.report.pod(&handle.pod(), EventType::Warning, eviction::REASON, eviction.message.clone());
            handle.tell(Message::End(Box::new(Verdict {
                reason: eviction::REASON,
                disruption: eviction.disruption.then(|| eviction.message.clone()),
                message: eviction.message,
                grace: Some(eviction.grace),
            })));
            ended.push(eviction.uid);
        }
        ended
    }

    /// Waits until nothing of the pods runs and their folders are gone, but not for ever.
    async fn wait_for_end(&self, uids: &[String]) {
        let until = Instant::now() + CLEANUP;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let left = self.snapshots().into_iter().filter(|s| uids.iter().any(|uid| uid == spec::uid(&s.pod)));
            let there = |s: &Snapshot| {
                !bosun_api::pod::is_terminal(&s.pod)
                    || s.runtime.running().count() > 0
                    || exists(&self.context.node.pod_dir(&s.pod))
            };
            match left.into_iter().find(there) {
                None => return,
                Some(pod) if Instant::now() >= until => {
                    return tracing::warn!(pod = title(&pod), "an evicted pod is not gone yet");
                }
                Some(_) => {}
            }
        }
    }
}

fn candidates<'a>(pods: &'a [Snapshot], usage: &HashMap<String, PodUsage>) -> Vec<Candidate<'a>> {
    pods.iter().map(|s| Candidate { pod: &s.pod, usage: usage.get(spec::uid(&s.pod)).cloned() }).collect()
}

/// Waits for a notice of the kernel; returns whether there will be no more.
async fn next_stall(stalls: &Option<MemoryStalls>) -> bool {
    match stalls {
        Some(stalls) => {
            stalls.next().await.inspect_err(|error| tracing::warn!(%error, "no more notice of memory stalls")).is_err()
        }
        None => std::future::pending().await,
    }
}
