//! What a deployment's next writes are. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use bosun_api::hash::pod_template_hash;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::status;
use crate::objects::{controller_ref, created};
use crate::runtime::Again;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations of the deployment that its sets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// How much history may be kept in an annotation.
const HISTORY_BYTES: usize = 2000;

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// The deployment's sets.
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// Uids of those with pods that have not finished.
    pub(super) running: Vec<String>,
}

/// One write.
#[derive(Debug)]
pub(super) enum Write {
    /// Create the set of the current template.
    Create(Box<ReplicaSet>),
    /// Replace a set; with the words of the event, if it is a scaling.
    Update(Box<ReplicaSet>, Option<String>),
    /// Delete a set that history no longer needs.
    Delete(Arc<ReplicaSet>),
    /// Note the current revision on the deployment.
    Revision(String),
}

/// All of one pass.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    /// The status to write, if it changed.
    pub(super) status: Option<DeploymentStatus>,
    pub(super) again: Again,
}

/// The deployment with its defaults filled in, as the rules below need it.
pub(super) struct Target<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) spec: &'a DeploymentSpec,
    pub(super) replicas: i32,
    pub(super) max_surge: i32,
    /// Bounded by `replicas`.
    pub(super) max_unavailable: i32,
}

impl<'a> Target<'a> {
    pub(super) fn new(deployment: &'a Deployment, spec: &'a DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        let (max_surge, max_unavailable) = if recreates(deployment) {
            (0, 0)
        } else {
            let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
            let surge = rolling.and_then(|r| r.max_surge.as_ref());
            let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
            fence_posts(surge, unavailable, replicas)
        };
        Self { deployment, spec, replicas, max_surge, max_unavailable: max_unavailable.min(replicas) }
    }

    fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }
}

/// Surge is rounded up and unavailability down; both zero would never move, so then one may be unavailable.
fn fence_posts(surge: Option<&IntOrString>, unavailable: Option<&IntOrString>, replicas: i32) -> (i32, i32) {
    let quarter = IntOrString::String("25%".to_owned());
    let surge = scaled(surge.unwrap_or(&quarter), replicas, true);
    let unavailable = scaled(unavailable.unwrap_or(&quarter), replicas, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// A number, or a percentage of `total`.
pub(crate) fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            let product = percent * i64::from(total);
            let rounded = if up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// Whether the old pods must be gone before the new ones start.
pub(super) fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH);
        }
        meta.labels = meta.labels.take().filter(|l| !l.is_empty());
        meta.creation_timestamp = None;
    }
    template.metadata = template.metadata.filter(|m| *m != ObjectMeta::default());
    template
}

/// Whether the set was made of the deployment's current template.
pub(super) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment.spec.as_ref().map(|s| without_hash(&s.template));
    let have = set.spec.as_ref().and_then(|s| s.template.as_ref()).map(without_hash);
    wanted == have
}

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or_default()
}

pub(super) fn ripe(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or_default()
}

fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// Plans the next pass.
pub(super) fn plan(deployment: &Deployment, observed: &Observed, now: Timestamp) -> Plan {
    let Some(spec) = &deployment.spec else { return Plan::default() };
    let target = Target::new(deployment, spec);
    let mut sets = observed.sets.clone();
    sets.sort_by(|a, b| created(&a.metadata).cmp(&created(&b.metadata)).then_with(|| a.name_any().cmp(&b.name_any())));
    let newest = sets.iter().position(|s| same_template(deployment, s)).map(|i| sets.remove(i));
    let mut work = Work { target, new: newest, old: sets, writes: Vec::new(), created: None };
    if deployment.metadata.deletion_timestamp.is_none() {
        work.decide(observed);
    }
    let (status, again) = status::plan(&work.target, work.new.as_deref(), &work.old, work.created.as_deref(), now);
    Plan { writes: work.writes, status, again }
}

struct Work<'a> {
    target: Target<'a>,
    new: Option<Arc<ReplicaSet>>,
    /// Oldest first.
    old: Vec<Arc<ReplicaSet>>,
    writes: Vec<Write>,
    created: Option<String>,
}

impl Work<'_> {
    fn decide(&mut self, observed: &Observed) {
        let paused = self.target.spec.paused == Some(true);
        if paused || self.is_scaling() {
            self.sync_revision();
            self.scale_all();
            if paused {
                self.clean_up();
            }
            return;
        }
        if recreates(self.target.deployment) {
            self.recreate(observed);
        } else {
            self.roll();
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.new.iter().chain(&self.old)
    }

    /// Whether someone changed the deployment's size since its sets were last scaled.
    fn is_scaling(&self) -> bool {
        let wanted = self.target.replicas.to_string();
        self.all()
            .filter(|s| size(s) > 0)
            .any(|s| s.annotations().get(DESIRED_REPLICAS).is_some_and(|noted| *noted != wanted))
    }

    fn recreate(&mut self, observed: &Observed) {
        self.sync_revision();
        let mut scaled = false;
        for set in self.old.clone().iter().filter(|s| size(s) > 0) {
            self.scale(set, 0);
            scaled = true;
        }
        let busy = self.old.iter().any(|s| s.metadata.uid.as_ref().is_some_and(|uid| observed.running.contains(uid)));
        if scaled || busy {
            return;
        }
        if self.new.is_none() {
            return self.create();
        }
        self.scale_new();
        self.clean_up();
    }

    fn roll(&mut self) {
        if self.new.is_none() {
            return self.create();
        }
        self.sync_revision();
        if self.scale_new() {
            return;
        }
        if self.scale_old_down() {
            return;
        }
        self.clean_up();
    }

    /// Brings the new set's annotations and the deployment's revision up to date.
    fn sync_revision(&mut self) {
        let Some(new) = self.new.clone() else { return };
        let latest = self.old.iter().map(|s| revision(s)).max().unwrap_or_default() + 1;
        let mut set = (*new).clone();
        let changed = inherit_annotations(self.target.deployment, &mut set) | raise_revision(&mut set, latest);
        let min_ready = self.target.spec.min_ready_seconds;
        let spec = set.spec.get_or_insert_default();
        let other_min_ready = spec.min_ready_seconds.unwrap_or_default() != min_ready.unwrap_or_default();
        spec.min_ready_seconds = min_ready;
        let noted = set.annotations().get(REVISION).cloned().unwrap_or_default();
        if changed || other_min_ready {
            self.writes.push(Write::Update(Box::new(set.clone()), None));
        }
        if self.target.deployment.annotations().get(REVISION) != Some(&noted) {
            self.writes.push(Write::Revision(noted));
        }
        if changed || other_min_ready {
            // The scaling of a set that was just replaced would be refused: the next pass does it.
            self.new = Some(Arc::new(set));
        }
    }

    /// Whether an update of this set is among the writes already.
    fn is_touched(&self, set: &ReplicaSet) -> bool {
        self.writes.iter().any(|w| matches!(w, Write::Update(other, _) if other.metadata.uid == set.metadata.uid))
    }

    fn create(&mut self) {
        let deployment = self.target.deployment;
        let spec = self.target.spec;
        let latest = self.old.iter().map(|s| revision(s)).max().unwrap_or_default() + 1;
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = pod_template_hash(&spec.template, collisions);
        let mut template = spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector: LabelSelector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
        let replicas = self.new_size(0);
        let name = format!("{}-{hash}", deployment.name_any());
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: deployment.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(BTreeMap::new()),
                owner_references: Some(vec![controller_ref(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: Some(replicas),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        inherit_annotations(deployment, &mut set);
        raise_revision(&mut set, latest);
        self.note_replicas(&mut set);
        self.created = Some(name);
        self.writes.push(Write::Create(Box::new(set)));
        if deployment.annotations().get(REVISION) != Some(&latest.to_string()) {
            self.writes.push(Write::Revision(latest.to_string()));
        }
    }

    /// How large the new set may be now.
    fn new_size(&self, current: i32) -> i32 {
        if recreates(self.target.deployment) {
            return self.target.replicas;
        }
        let total: i32 = self.all().map(|s| size(s)).sum();
        let room = self.target.replicas + self.target.max_surge - total;
        if room <= 0 {
            return current;
        }
        current + room.min(self.target.replicas - current)
    }

    fn scale_new(&mut self) -> bool {
        let Some(new) = self.new.clone() else { return false };
        let current = size(&new);
        let wanted = if current > self.target.replicas { self.target.replicas } else { self.new_size(current) };
        self.scale(&new, wanted)
    }

    /// Takes old pods away as far as availability allows: unhealthy ones first.
    fn scale_old_down(&mut self) -> bool {
        let old_pods: i32 = self.old.iter().map(|s| size(s)).sum();
        if old_pods == 0 {
            return false;
        }
        let all_pods: i32 = self.all().map(|s| size(s)).sum();
        let unavailable_new = self.new.as_ref().map(|s| size(s) - ripe(s)).unwrap_or_default();
        let mut budget = all_pods - self.target.min_available() - unavailable_new;
        if budget <= 0 {
            return false;
        }
        let mut sizes: Vec<i32> = self.old.iter().map(|s| size(s)).collect();
        for (set, size) in self.old.iter().zip(&mut sizes) {
            let unhealthy = (*size - ripe(set)).clamp(0, budget);
            *size -= unhealthy;
            budget -= unhealthy;
        }
        let available: i32 = self.all().map(|s| ripe(s)).sum();
        let mut surplus = (available - self.target.min_available()).max(0);
        for size in &mut sizes {
            let fewer = (*size).min(surplus);
            *size -= fewer;
            surplus -= fewer;
        }
        let mut any = false;
        for (set, size) in self.old.clone().iter().zip(sizes) {
            any |= self.scale(set, size);
        }
        any
    }

    /// Spreads a new size over all sets in proportion, when the size changes amid a rollout or a pause.
    fn scale_all(&mut self) {
        let active: Vec<Arc<ReplicaSet>> = self.all().filter(|s| size(s) > 0).cloned().collect();
        if active.len() <= 1 {
            let only = active.first().cloned().or_else(|| self.new.clone()).or_else(|| self.old.last().cloned());
            if let Some(only) = only {
                self.scale_noting(&only, self.target.replicas);
            }
            return;
        }
        if self.new.as_ref().is_some_and(|s| self.is_saturated(s)) {
            for set in self.old.clone().iter().filter(|s| size(s) > 0) {
                self.scale_noting(set, 0);
            }
            return;
        }
        if !recreates(self.target.deployment) {
            self.scale_in_proportion(active);
        }
    }

    fn is_saturated(&self, new: &ReplicaSet) -> bool {
        let noted = new.annotations().get(DESIRED_REPLICAS).and_then(|v| v.parse().ok());
        size(new) == self.target.replicas && noted == Some(self.target.replicas) && ripe(new) == self.target.replicas
    }

    fn scale_in_proportion(&mut self, mut sets: Vec<Arc<ReplicaSet>>) {
        let total: i32 = sets.iter().map(|s| size(s)).sum();
        let allowed = if self.target.replicas > 0 { self.target.replicas + self.target.max_surge } else { 0 };
        let change = allowed - total;
        // Larger sets bear more; among equals the newer grow and the older shrink first.
        sets.sort_by(|a, b| {
            let age = created(&a.metadata).cmp(&created(&b.metadata));
            size(b).cmp(&size(a)).then(if change > 0 { age.reverse() } else { age })
        });
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
        for set in &sets {
            let share = self.share(set, change - added, change > 0);
            sizes.push(size(set) + share);
            added += share;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + change - added).max(0);
        }
        for (set, size) in sets.iter().zip(sizes) {
            self.scale_noting(set, size);
        }
    }

    /// One set's part of a change; never beyond what is left of it.
    fn share(&self, set: &ReplicaSet, left: i32, growing: bool) -> i32 {
        if left == 0 {
            return 0;
        }
        if self.target.replicas == 0 {
            return (-size(set)).max(left);
        }
        let status = self.target.deployment.status.as_ref();
        let noted = set.annotations().get(MAX_REPLICAS).and_then(|v| v.parse::<i32>().ok());
        let before = noted.or(status.and_then(|s| s.replicas)).filter(|n| *n > 0);
        let Some(before) = before else { return 0 };
        let ceiling = self.target.replicas + self.target.max_surge;
        let wanted = f64::from(size(set)) * f64::from(ceiling) / f64::from(before);
        let share = wanted.round() as i32 - size(set);
        if growing { share.min(left) } else { share.max(left) }
    }

    /// Scales and notes the deployment's size even where the set's stays.
    fn scale_noting(&mut self, set: &Arc<ReplicaSet>, wanted: i32) {
        if !self.scale(set, wanted) && !self.is_touched(set) {
            let mut noted = (**set).clone();
            if self.note_replicas(&mut noted) {
                self.writes.push(Write::Update(Box::new(noted), None));
            }
        }
    }

    fn scale(&mut self, set: &Arc<ReplicaSet>, wanted: i32) -> bool {
        let current = size(set);
        if current == wanted || self.is_touched(set) {
            return false;
        }
        let mut changed = (**set).clone();
        self.note_replicas(&mut changed);
        changed.spec.get_or_insert_default().replicas = Some(wanted);
        let direction = if wanted > current { "up" } else { "down" };
        let event = format!("Scaled {direction} replica set {} from {current} to {wanted}", set.name_any());
        self.writes.push(Write::Update(Box::new(changed), Some(event)));
        true
    }

    /// Notes on the set how large the deployment is and may become.
    fn note_replicas(&self, set: &mut ReplicaSet) -> bool {
        let noted =
            [(DESIRED_REPLICAS, self.target.replicas), (MAX_REPLICAS, self.target.replicas + self.target.max_surge)];
        let annotations = set.annotations_mut();
        let mut changed = false;
        for (key, value) in noted {
            let value = value.to_string();
            changed |= annotations.get(key) != Some(&value);
            annotations.insert(key.to_owned(), value);
        }
        changed
    }

    /// Deletes the oldest empty sets beyond the history's length, once the rollout is complete.
    fn clean_up(&mut self) {
        let Some(limit) = self.target.spec.revision_history_limit else { return };
        let complete = self.target.deployment.status.as_ref().is_some_and(|s| status::is_complete(&self.target, s));
        if !complete {
            return;
        }
        let mut old: Vec<Arc<ReplicaSet>> =
            self.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).cloned().collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        old.sort_by_key(|s| revision(s));
        for set in old.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let seen = set.metadata.generation.unwrap_or_default() <= status.observed_generation.unwrap_or_default();
            if status.replicas == 0 && size(&set) == 0 && seen && !self.is_touched(&set) {
                self.writes.push(Write::Delete(set));
            }
        }
    }
}

/// Copies the deployment's annotations to a set. Answers whether that changed anything.
fn inherit_annotations(deployment: &Deployment, set: &mut ReplicaSet) -> bool {
    let mut changed = false;
    for (key, value) in deployment.annotations() {
        if NOT_INHERITED.contains(&key.as_str()) || set.annotations().get(key) == Some(value) {
            continue;
        }
        set.annotations_mut().insert(key.clone(), value.clone());
        changed = true;
    }
    changed
}

/// Notes the revision if it is higher than the one noted; the earlier one goes into the history.
fn raise_revision(set: &mut ReplicaSet, latest: i64) -> bool {
    let before = set.annotations().get(REVISION).cloned();
    let number: i64 = before.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default();
    if number >= latest {
        return false;
    }
    let annotations = set.annotations_mut();
    annotations.insert(REVISION.to_owned(), latest.to_string());
    if let Some(before) = before {
        let mut history: Vec<String> = annotations
            .get(REVISION_HISTORY)
            .filter(|h| !h.is_empty())
            .map(|h| h.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        history.push(before);
        while history.len() > 1 && history.iter().map(|h| h.len() + 1).sum::<usize>() > HISTORY_BYTES {
            history.remove(0);
        }
        annotations.insert(REVISION_HISTORY.to_owned(), history.join(","));
    }
    true
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
