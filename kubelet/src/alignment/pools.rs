//! Keeps running containers on their CPUs: whenever some are given away or come back, all others are moved, at once and
//! without a restart.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bosun_proto::cri;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::manager::Pods;
use crate::pod::spec;
use crate::worker::{Handle, Message, Snapshot};

/// A container and the CPUs on which it runs.
struct Wanted {
    id: String,
    cpus: String,
}

/// Moves containers until cancelled. `period` is how often that is looked at without a cause, which also finds
/// containers that started while the pool changed.
pub async fn keep(context: Arc<Context>, pods: Pods, period: Duration, cancel: CancellationToken) {
    if context.alignment.aligner.is_idle() {
        return;
    }
    let mut changes = context.alignment.aligner.changes();
    let mut look = tokio::time::interval(period.max(Duration::from_millis(100)));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What each container was last told.
    let mut told: HashMap<String, String> = HashMap::new();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
            () = cancel.cancelled() => return,
        }
        let wanted: Vec<Wanted> = snapshots(&pods).iter().flat_map(|snapshot| wanted(&context, snapshot)).collect();
        told.retain(|id, _| wanted.iter().any(|container| container.id == *id));
        for Wanted { id, cpus } in wanted {
            if told.get(&id) == Some(&cpus) {
                continue;
            }
            let resources = cri::LinuxContainerResources { cpuset_cpus: cpus.clone(), ..Default::default() };
            match context.runtime.update_resources(&id, resources).await {
                Ok(()) => drop(told.insert(id, cpus)),
                // Tried again with the next look; a container that has just ended is no longer among them then.
                Err(error) => tracing::warn!(container = id, cpus, %error, "a container was not moved to its CPUs"),
            }
        }
    }
}

fn snapshots(pods: &Pods) -> Vec<Snapshot> {
    pods.read().unwrap_or_else(PoisonError::into_inner).values().map(Handle::snapshot).collect()
}

fn wanted(context: &Context, snapshot: &Snapshot) -> Vec<Wanted> {
    let uid = spec::uid(&snapshot.pod);
    let running = snapshot.runtime.running();
    let wanted = running.filter_map(|container| {
        let cpus = context.alignment.aligner.cpus(uid, &container.name)?.to_string();
        Some(Wanted { id: container.id.clone(), cpus })
    });
    wanted.collect()
}

/// Has pods look at their devices whenever those have changed, until cancelled; `also` is told too.
pub async fn tell_of_devices(context: Arc<Context>, pods: Pods, also: impl Fn(), cancel: CancellationToken) {
    let mut changes = context.alignment.devices.changes();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
        also();
        for uid in context.alignment.devices.owners() {
            if let Some(handle) = pods.read().unwrap_or_else(PoisonError::into_inner).get(&uid) {
                handle.tell(Message::Look);
            }
        }
    }
}
