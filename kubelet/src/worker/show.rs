//! What others see of a pod: its status in this process, at the API server and on its mirror, and what is kept on disk.

use std::sync::{Arc, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::{Done, Worker, tasks};
use crate::api_status;
use crate::pod::spec;
use crate::pod::status::status;

/// How long a change of the status that is not urgent waits for others, to be written with them.
const GATHER: SignedDuration = SignedDuration::from_millis(100);

impl Worker {
    /// Computes the status and shows it to those who ask this process.
    pub(super) fn show(&mut self, now: Timestamp) {
        let mut new = status(&self.input(now));
        if let Some(condition) = &self.disruption {
            bosun_api::pod::set_condition(&mut new, condition.clone());
        }
        self.context.alignment.tell_health(&self.uid, &mut new);
        if let Some(claims) = &self.context.claims {
            claims.tell_health(&self.pod, &mut new);
        }
        if self.pod.status.as_ref() != Some(&new) {
            Arc::make_mut(&mut self.pod).status = Some(new);
        }
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.pod = self.pod.clone();
        snapshot.runtime = self.runtime.clone();
    }

    /// Keeps readiness and resources on disk, so that a restart of the kubelet flips and forgets nothing.
    pub(super) fn remember(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.keep_allocation();
        let kept = self.probes.to_remember(&self.pod, &self.runtime);
        if kept != self.remembered {
            tasks::keep(&self.context.node, &self.pod, &kept);
            self.remembered = kept;
        }
    }

    /// Writes to the API server what it does not know yet: at most one write at a time, the latest state wins.
    pub(super) fn write(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.ended && self.removed {
            self.deleted = true;
            return None;
        }
        let client = self.context.client.clone()?;
        if self.writing || self.deleted {
            return None;
        }
        if let Some(after) = self.write_after.filter(|at| *at > now) {
            return Some(after);
        }
        self.write_after = None;
        let (namespace, name) = (spec::namespace(&self.pod).to_owned(), spec::name(&self.pod).to_owned());
        if self.is_static && self.api_uid.is_none() {
            if self.mirror_known && self.ending.is_none() {
                self.mirror_known = false;
                let mirror = crate::sources::mirror_of(&self.pod, &self.context.node.name);
                self.writing = true;
                self.tasks.spawn(async move { Done::MirrorWritten(api_status::create(client, &mirror).await) });
            }
            return None;
        }
        let uid = self.api_uid.clone()?;
        let status = self.pod.status.clone()?;
        if let Some(patch) = api_status::patch(&uid, self.sent.as_ref(), &status) {
            if !self.ended && !api_status::is_urgent(self.sent.as_ref(), &status) {
                let until = self.gathered.unwrap_or(now) + GATHER;
                self.gathered.get_or_insert(now);
                if until > now {
                    return Some(until);
                }
            }
            self.gathered = None;
            self.writing = true;
            self.tasks.spawn(async move {
                let result = api_status::send(client, &namespace, &name, patch).await;
                Done::Sent(Box::new(status), result)
            });
        } else if self.ended && self.pod.metadata.deletion_timestamp.is_some() && !self.is_static {
            self.writing = true;
            self.tasks.spawn(async move { Done::Deleted(api_status::delete(client, &namespace, &name, &uid).await) });
        }
        None
    }

    /// Follows the mirror pod: creates it, recreates it when it shows another definition, writes to it while it is right.
    pub(super) fn mirror(&mut self, mirror: Option<&Pod>) {
        let wanted = spec::annotation(&self.pod, crate::pod::labels::CONFIG_HASH);
        match mirror {
            None => {
                self.api_uid = None;
                self.sent = None;
            }
            Some(mirror) => {
                let right = spec::annotation(mirror, crate::pod::labels::CONFIG_MIRROR) == wanted;
                let going = mirror.metadata.deletion_timestamp.is_some();
                if right && !going {
                    if self.api_uid.as_deref() != Some(spec::uid(mirror)) {
                        self.api_uid = Some(spec::uid(mirror).to_owned());
                        self.sent = mirror.status.clone();
                    }
                    return;
                }
                self.api_uid = None;
                self.mirror_known = false;
                if let Some(client) = self.context.client.clone() {
                    let (namespace, name) = (spec::namespace(mirror).to_owned(), spec::name(mirror).to_owned());
                    let uid = spec::uid(mirror).to_owned();
                    self.tasks.spawn(async move {
                        Done::MirrorWritten(api_status::delete(client, &namespace, &name, &uid).await)
                    });
                }
            }
        }
    }
}
