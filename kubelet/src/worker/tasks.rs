//! What a worker's actions do. Each function here is one task: it calls the runtime and the API, and returns what came
//! of it; the worker alone changes the pod's state.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosun_kit::backoff::Backoff;
use bosun_kit::events::EventType;
use bosun_kubelet_cgroup::Hierarchy;
use bosun_kubelet_devices::Given;
use bosun_proto::cri;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Message;
use crate::claims;
use crate::context::Context;
use crate::handler;
use crate::images::{Present, Wanted};
use crate::make::env::{self, EnvObjects, environment};
use crate::make::{Node, container as make_container, env_file, resources, sandbox as make_sandbox, security, text};
use crate::objects;
use crate::pod::plan::{Cause, Failure};
use crate::pod::probe::{Due, ProbeKind, Remembered, probe_of};
use crate::pod::record::{ContainerRecord, PodRecord, SandboxRecord, State};
use crate::pod::resize::{self, Allocation};
use crate::pod::spec;
use crate::probes::{self, Outcome};
use crate::userns;
use crate::volumes::{self, Made};

/// How long after a failure that only a change elsewhere mends.
const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(5);
const CREATE_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// How often the runtime is asked what became of a container.
const LOOKS: usize = 6;
/// How often what a pod leaves in the runtime is tried to be removed before that is left to the next listing.
const REMOVALS: usize = 3;
/// A container gets at least this long after its preStop hook, as in stock.
const LEAST_GRACE: i64 = 2;

/// What came of a task.
pub(super) enum TaskResult {
    /// What was made; or why not, and how long to wait before the next try.
    Mounted(Result<Made, (String, Duration)>),
    CleanedUp(Result<(), String>),
    Sandbox(Result<SandboxRecord, String>),
    SandboxStopped(String, Result<(), String>),
    Prepared(Result<Ready, Failure>),
    Started(Vec<ContainerRecord>, Option<Failure>),
    Killed(Option<ContainerRecord>),
    /// A container's id, and what it now has.
    Resized(String, Result<ResourceRequirements, String>),
    Collected(Vec<String>),
}

/// Forgets containers with their logs, and sandboxes. Returns what is gone; the rest is tried again by the plan.
pub(super) async fn collect(
    context: &Context,
    pod: &Pod,
    sandboxes: Vec<String>,
    containers: Vec<ContainerRecord>,
) -> TaskResult {
    let mut gone = Vec::new();
    for container in containers {
        match context.runtime.remove_container(&container.id).await {
            Ok(()) => {
                let log = format!("{}/{}.log", container.name, container.attempt);
                if let Err(error) = bosun_kubelet_upkeep::logs::remove(&context.node.log_dir(pod).join(log)) {
                    tracing::warn!(%error, "a dead container's log was not removed");
                }
                let _ = fs::remove_file(link_path(context, pod, &container.name, &container.id));
                gone.push(container.id);
            }
            Err(error) => tracing::warn!(%error, "a dead container was not removed"),
        }
    }
    for id in sandboxes {
        match context.runtime.remove_sandbox(&id).await {
            Ok(()) => gone.push(id),
            Err(error) => tracing::warn!(%error, "a dead sandbox was not removed"),
        }
    }
    if gone.is_empty() {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    TaskResult::Collected(gone)
}

/// What a container needs that can be had before its sandbox is up.
pub(super) struct Ready {
    pub(super) image: Present,
    pub(super) objects: EnvObjects,
    /// The images that its volumes show, by volume.
    pub(super) shown: BTreeMap<String, cri::ImageSpec>,
}

/// Volumes, folders and cgroup.
pub(super) async fn mount(context: &Context, pod: &Pod) -> TaskResult {
    match volumes::set_up(pod, &context.node, &*context.objects, &context.csi).await {
        Ok(made) => {
            for note in &made.notes {
                context.report.pod(pod, note.kind, note.reason, note.message.clone());
            }
            TaskResult::Mounted(Ok(made))
        }
        Err(error) => {
            let message = error.to_string();
            context.report.pod(pod, EventType::Warning, error.reason(), message.clone());
            TaskResult::Mounted(Err((message, error.retry())))
        }
    }
}

pub(super) async fn clean_up(context: &Context, pod: &Pod) -> TaskResult {
    if let Err(message) = claims::give_back(context, pod).await {
        return TaskResult::CleanedUp(Err(message));
    }
    if let Err(error) = context.cgroups.tear_down_pod(pod, &context.node).await {
        tracing::warn!(pod = spec::title(pod), %error, "the pod's cgroup was not removed");
    }
    let removed = volumes::tear_down(&context.node, &context.csi, spec::uid(pod)).await;
    TaskResult::CleanedUp(removed.map_err(|error| error.to_string()))
}

pub(super) async fn create_sandbox(context: &Context, pod: &Pod, attempt: u32) -> TaskResult {
    let failed = |message: String| {
        let event = format!("Failed to create pod sandbox: {message}");
        context.report.pod(pod, EventType::Warning, "FailedCreatePodSandBox", event);
        TaskResult::Sandbox(Err(message))
    };
    if let Err(message) = claims::prepare(context, pod).await {
        return TaskResult::Sandbox(Err(message));
    }
    if let Err(error) = context.cgroups.set_up_pod(pod, &context.alignment.node(&context.node, pod)).await {
        return failed(error.to_string());
    }
    let (handler, user_namespace) = match isolation(context, pod).await {
        Ok(found) => found,
        Err(message) => return failed(message),
    };
    let config = make_sandbox::config(pod, &context.node, attempt, &context.resolver_text(), user_namespace);
    if let Err(error) = fs::create_dir_all(&config.log_directory) {
        return failed(format!("make log folder {}: {error}", config.log_directory));
    }
    let made = match context.runtime.run_sandbox(config, handler).await {
        Ok(id) => context.observer.sandbox(&id).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(record) => TaskResult::Sandbox(Ok(record)),
        Err(error) => {
            // It may be there nevertheless, and only the answer was lost.
            context.observer.doubt([]);
            failed(error.message)
        }
    }
}

/// The runtime handler of the pod, and its user namespace.
async fn isolation(context: &Context, pod: &Pod) -> Result<(String, cri::UserNamespace), String> {
    if !userns::wants(pod) {
        return Ok((handler::name(context, pod).await?, context.user_namespaces.of(pod)?));
    }
    let handler = handler::of(context, pod).await?;
    if !handler.user_namespaces {
        return Err(handler::no_user_namespaces(&handler));
    }
    Ok((handler.name, context.user_namespaces.of(pod)?))
}

pub(super) async fn stop_sandbox(context: &Context, id: String) -> TaskResult {
    let stopped = context.runtime.stop_sandbox(&id).await.map_err(|error| error.to_string());
    if let Err(message) = &stopped {
        tracing::warn!(sandbox = id, message, "the sandbox was not stopped");
    }
    TaskResult::SandboxStopped(id, stopped)
}

/// The image and the objects that the environment refers to.
pub(super) async fn prepare(context: &Context, pod: &Pod, name: String, give_up: CancellationToken) -> TaskResult {
    let Some((_, container)) = spec::container(pod, &name) else {
        return TaskResult::Prepared(Err(config_failure(format!("container {name} is not in the pod"))));
    };
    let look = async {
        let objects = async {
            objects::for_env(&*context.objects, pod, &container).await.map_err(|message| {
                context.report.container(pod, &name, EventType::Warning, "Failed", format!("Error: {message}"));
                config_failure(message)
            })
        };
        let image = context.images.ensure(pod, Wanted::of(&container));
        let (image, objects, shown) = futures::try_join!(image, objects, show_images(context, pod, &container))?;
        if let Err(message) = security::check_non_root(pod, &container, &image.user) {
            context.report.container(pod, &name, EventType::Warning, "Failed", format!("Error: {message}"));
            return Err(config_failure(message));
        }
        Ok(Ready { image, objects, shown })
    };
    tokio::select! {
        looked = look => TaskResult::Prepared(looked),
        () = give_up.cancelled() => TaskResult::Prepared(Err(config_failure("the pod ends".to_owned()))),
    }
}

/// The images that the container's volumes show, by volume. A failure is the container's, with the reasons that its own
/// image would give.
async fn show_images(
    context: &Context,
    pod: &Pod,
    container: &Container,
) -> Result<BTreeMap<String, cri::ImageSpec>, Failure> {
    let mut shown = BTreeMap::new();
    for volume in spec::spec(pod).volumes.iter().flatten() {
        let mounted = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
        let Some(source) = volume.image.as_ref().filter(|_| mounted) else { continue };
        let wanted = Wanted::shown(source);
        let present = context.images.ensure(pod, wanted).await.inspect_err(|failure| {
            let message = format!("Error: {}", failure.reason);
            context.report.container(pod, &container.name, EventType::Warning, "Failed", message);
        })?;
        let user_specified_image = wanted.image.to_owned();
        let image = cri::ImageSpec { image: present.reference, user_specified_image, ..Default::default() };
        shown.insert(volume.name.clone(), image);
    }
    Ok(shown)
}

/// Whether the handler that runs the pod mounts recursively read-only, if the container asks for that.
async fn recursive_read_only(context: &Context, pod: &Pod, container: &Container) -> bool {
    if !volumes::mounts::wants_recursive_read_only(container) {
        return false;
    }
    let found = handler::of(context, pod).await;
    let found = found.inspect_err(|error| tracing::warn!(pod = spec::title(pod), error, "the handler is not known"));
    found.is_ok_and(|handler| handler.recursive_read_only)
}

fn config_failure(message: String) -> Failure {
    Failure { reason: "CreateContainerConfigError".into(), message, retry: Timestamp::now() + CONFIG_RETRY }
}

/// A container to start.
pub(super) struct StartContainer {
    pub(super) pod: Arc<Pod>,
    pub(super) container: String,
    pub(super) attempt: u32,
    /// See [`PodRecord::round`].
    pub(super) round: u32,
    pub(super) sandbox: String,
    /// The id of the container that an ephemeral one looks at, or why there is none.
    pub(super) target: Option<Result<String, String>>,
    pub(super) ips: Vec<String>,
    pub(super) ready: Ready,
    pub(super) messages: mpsc::UnboundedSender<Message>,
    pub(super) give_up: CancellationToken,
}

pub(super) async fn start(context: &Context, start: StartContainer) -> TaskResult {
    let pod = start.pod.clone();
    let Some((_, container)) = spec::container(&pod, &start.container) else {
        return TaskResult::Started(Vec::new(), None);
    };
    let event = |kind: EventType, reason: &str, message: String| {
        context.report.container(&pod, &start.container, kind, reason, message);
    };
    let failed = |reason: &str, message: String, after: SignedDuration| {
        event(EventType::Warning, "Failed", format!("Error: {message}"));
        let failure = Failure { reason: reason.to_owned(), message, retry: Timestamp::now() + after };
        TaskResult::Started(Vec::new(), Some(failure))
    };
    let recursive = recursive_read_only(context, &pod, &container).await;
    let configured = match context.alignment.prepare(&pod, &container).await {
        Ok(given) => configure(context, &start, &container, recursive, given),
        Err(message) => Err(message),
    };
    let (config, sandbox_config) = match configured {
        Ok(configs) => configs,
        Err(message) => return failed("CreateContainerConfigError", message, CONFIG_RETRY),
    };
    let log = PathBuf::from(&sandbox_config.log_directory).join(&config.log_path);
    let created = context.runtime.create_container(&start.sandbox, config, sandbox_config).await;
    let id = match created {
        Ok(id) => id,
        Err(error) => {
            // A sandbox that has died is a frequent cause, and nobody may have told yet.
            if let Ok(sandbox) = context.observer.sandbox(&start.sandbox).await {
                let _ = start.messages.send(Message::Sandbox(sandbox));
            }
            // The container may be there nevertheless, and only the answer was lost.
            context.observer.doubt([]);
            return failed("CreateContainerError", error.message, CREATE_RETRY);
        }
    };
    event(EventType::Normal, "Created", "Container created".into());
    if let Err(error) = context.runtime.start_container(&id).await {
        event(EventType::Warning, "Failed", format!("Error: {}", error.message));
        let record = look_at(context, &id, &start.sandbox).await;
        let ended = record.as_ref().is_some_and(|r| r.state == State::Exited);
        let retry = Timestamp::now() + if ended { SignedDuration::ZERO } else { CREATE_RETRY };
        let failure = Failure { reason: "RunContainerError".into(), message: error.message, retry };
        return TaskResult::Started(record.into_iter().collect(), Some(failure));
    }
    let record = look_at(context, &id, &start.sandbox).await;
    event(EventType::Normal, "Started", "Container started".into());
    link_log(context, &pod, &start.container, &id, &log);
    let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
        return TaskResult::Started(record.into_iter().collect(), None);
    };
    if let Some(record) = record {
        // Shown as running while the hook runs.
        let _ = start.messages.send(Message::Container(Box::new(record)));
    }
    let host = start.ips.first().cloned().unwrap_or_default();
    let ran = tokio::select! {
        ran = probes::hook(&*context.runtime, hook, &container, &id, &host, None) => ran,
        () = start.give_up.cancelled() => Ok(()),
    };
    let Err(message) = ran else { return TaskResult::Started(Vec::new(), None) };
    event(EventType::Warning, "FailedPostStartHook", format!("PostStartHook failed: {message}"));
    event(EventType::Normal, "Killing", "FailedPostStartHook".into());
    let grace = Duration::from_secs(spec::grace_period(&pod) as u64);
    if let Err(error) = context.runtime.stop_container(&id, grace).await {
        tracing::warn!(%error, "a container whose postStart hook failed was not stopped");
    }
    let record = context.observer.container(&id, &start.sandbox).await.ok();
    TaskResult::Started(record.into_iter().collect(), None)
}

/// What a container is after something was done with it. Asked again while the runtime does not tell, for a moment: a
/// container of which nothing is known would be made once more.
async fn look_at(context: &Context, id: &str, sandbox: &str) -> Option<ContainerRecord> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    for _ in 0..LOOKS {
        match context.observer.container(id, sandbox).await {
            Ok(record) => return Some(record),
            Err(error) if error.is_not_found() => return None,
            Err(error) => tracing::debug!(container = id, %error, "asking again"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    context.observer.doubt([id]);
    None
}

type Configs = (cri::ContainerConfig, cri::PodSandboxConfig);

/// The objects with the files of volumes that the environment names. Read late: a container that ran before may just have
/// written them.
fn with_files(node: &Node, pod: &Pod, container: &Container, objects: &EnvObjects) -> Result<EnvObjects, String> {
    let mut objects = objects.clone();
    for (volume, path) in env::files(container) {
        // The API lets such files be in emptyDir volumes alone.
        let text = volumes::read(&node.volume_dir(pod, "empty-dir", volume), Path::new(path), env_file::MAX_SIZE);
        let text = text.map_err(|error| format!("couldn't parse env file: {volume}/{path}: {error}"))?;
        objects.files.insert((volume.to_owned(), path.to_owned()), text);
    }
    Ok(objects)
}

fn configure(
    context: &Context,
    start: &StartContainer,
    container: &Container,
    recursive_read_only: bool,
    mut given: Given,
) -> Result<Configs, String> {
    let (pod, node) = (&*start.pod, &*context.node);
    let user_namespace = context.user_namespaces.of(pod)?;
    // What the pod says itself comes later, and so wins.
    let mut env: Vec<_> = std::mem::take(&mut given.envs).into_iter().collect();
    env.extend(environment(
        pod,
        container,
        node,
        &start.ips,
        &with_files(node, pod, container, &start.ready.objects)?,
    )?);
    let found = volumes::mounts::Looked { images: start.ready.shown.clone(), recursive_read_only };
    let mut mounts = volumes::mounts::for_container(pod, container, node, &start.ips, &env, &found)?;
    for mount in &mut mounts {
        // Files keep their owners as the pod sees them (idmapped mounts); empty on the node's own ids.
        (mount.uid_mappings, mount.gid_mappings) = (user_namespace.uids.clone(), user_namespace.gids.clone());
    }
    let looked = make_container::Looked {
        env,
        mounts,
        devices: volumes::devices::for_container(pod, container, node)?,
        image_ref: start.ready.image.reference.clone(),
        image_user: start.ready.image.user.clone(),
        target: start.target.clone().transpose()?,
        round: start.round,
        user_namespace: user_namespace.clone(),
    };
    let sandbox_config = make_sandbox::config(pod, node, 0, &context.resolver_text(), user_namespace);
    let logs = PathBuf::from(&sandbox_config.log_directory).join(&container.name);
    fs::create_dir_all(&logs).map_err(|error| format!("make log folder {}: {error}", logs.display()))?;
    let mut config = make_container::config(pod, container, node, start.attempt, looked);
    context.alignment.dress(pod, &container.name, given, &mut config);
    let by_claims = claims::cdi_devices(context, pod, container)?;
    config.cdi_devices.extend(by_claims.into_iter().map(|name| cri::CdiDevice { name }));
    Ok((config, sandbox_config))
}

/// The name by which log collectors find a container's log.
fn link_path(context: &Context, pod: &Pod, container: &str, id: &str) -> PathBuf {
    let name = format!("{}_{}_{container}-{id}.log", spec::name(pod), spec::namespace(pod));
    context.node.container_logs_dir.join(name)
}

fn link_log(context: &Context, pod: &Pod, container: &str, id: &str, log: &std::path::Path) {
    let link = link_path(context, pod, container, id);
    if let Err(error) = symlink(log, &link)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        tracing::warn!(link = text(&link), %error, "the link to a container's log was not made");
    }
}

/// Gives a running container the resources that its pod was granted.
pub(super) async fn resize(context: &Context, pod: &Pod, name: &str, id: String) -> TaskResult {
    let Some((_, container)) = spec::container(pod, name) else {
        return TaskResult::Resized(id, Err(format!("container {name} is not in the pod")));
    };
    let given = give(context, pod, &container, &id).await;
    TaskResult::Resized(id, given.map(|()| container.resources.clone().unwrap_or_default()))
}

/// Gives the pod as a whole the resources that it was granted, and its running containers what they have from it.
pub(super) async fn resize_whole(context: &Context, pod: &Pod, running: Vec<(String, String)>) -> TaskResult {
    let id = resize::WHOLE.to_owned();
    // Raised before what is within, lowered after: one of the two attempts fits.
    let before = context.cgroups.set_up_pod(pod, &context.node).await;
    for (name, container_id) in running {
        let Some((_, container)) = spec::container(pod, &name) else { continue };
        if let Err(message) = give(context, pod, &container, &container_id).await {
            return TaskResult::Resized(id, Err(message));
        }
    }
    if before.is_err()
        && let Err(error) = context.cgroups.set_up_pod(pod, &context.node).await
    {
        return TaskResult::Resized(id, Err(error.to_string()));
    }
    TaskResult::Resized(id, Ok(spec::spec(pod).resources.clone().unwrap_or_default()))
}

async fn give(context: &Context, pod: &Pod, container: &Container, id: &str) -> Result<(), String> {
    let mut resources = resources::container_resources(pod, container, &context.node);
    context.alignment.pin(pod, &container.name, &mut resources);
    let limit = resources.memory_limit_in_bytes;
    // Some kernels kill at once where others refuse.
    let cgroups = Hierarchy::new("/sys/fs/cgroup");
    let cgroup = cgroups.container(&resources::cgroup_parent(pod, &context.node), id);
    let usage = cgroup.and_then(|cgroup| cgroups.memory(&cgroup)).and_then(|usage| i64::try_from(usage).ok());
    if let Some(usage) = usage.filter(|usage| limit > 0 && *usage > limit) {
        return Err(format!("attempting to set container memory limit ({limit}) below current usage ({usage})"));
    }
    // The pod's own limits are raised before those within them and lowered after: one of the two attempts fits.
    let node = context.alignment.node(&context.node, pod);
    let before = context.cgroups.set_up_pod(pod, &node).await;
    context.runtime.update_resources(id, resources).await.map_err(|error| error.to_string())?;
    if before.is_ok() {
        return Ok(());
    }
    context.cgroups.set_up_pod(pod, &node).await.map_err(|error| error.to_string())
}

/// A container to stop.
pub(super) struct Kill {
    pub(super) pod: Arc<Pod>,
    pub(super) container: String,
    pub(super) id: String,
    pub(super) sandbox: String,
    pub(super) host: String,
    pub(super) grace: i64,
    pub(super) cause: Cause,
}

pub(super) async fn kill(context: &Context, kill: Kill) -> TaskResult {
    let pod = &*kill.pod;
    let event = |kind: EventType, reason: &str, message: String| {
        context.report.container(pod, &kill.container, kind, reason, message);
    };
    let name = &kill.container;
    let message = match &kill.cause {
        Cause::PodEnds | Cause::SandboxChanged => format!("Stopping container {name}"),
        Cause::DefinitionChanged => format!("Container {name} definition changed, will be restarted"),
        Cause::Resized => format!("Container {name} resize requires restart"),
        Cause::AllRestart => format!("Container {name} is restarted with all containers of the pod"),
        Cause::Probe(ProbeKind::Startup) => format!("Container {name} failed startup probe, will be restarted"),
        Cause::Probe(_) => format!("Container {name} failed liveness probe, will be restarted"),
    };
    event(EventType::Normal, "Killing", message);
    let began = Instant::now();
    let container = spec::container(pod, name).map(|(_, c)| c);
    let hook = container.as_ref().and_then(|c| c.lifecycle.as_ref()).and_then(|l| l.pre_stop.as_ref());
    if let (Some(container), Some(hook), 1..) = (&container, hook, kill.grace) {
        let limit = Duration::from_secs(kill.grace as u64);
        let ran = probes::hook(&*context.runtime, hook, container, &kill.id, &kill.host, Some(limit)).await;
        if let Err(message) = ran {
            event(EventType::Warning, "FailedPreStopHook", format!("PreStopHook failed: {message}"));
        }
    }
    let left = kill.grace - began.elapsed().as_secs() as i64;
    let grace = if kill.grace == 0 { 0 } else { left.max(LEAST_GRACE.min(kill.grace)) };
    if let Err(error) = context.runtime.stop_container(&kill.id, Duration::from_secs(grace as u64)).await {
        event(EventType::Warning, "FailedKillPod", format!("error killing pod: {error}"));
        // Tried again by the plan, since the container still runs; not at once.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    TaskResult::Killed(look_at(context, &kill.id, &kill.sandbox).await)
}

pub(super) async fn probe(context: &Context, pod: &Pod, due: &Due, host: &str) -> Outcome {
    let container = spec::container(pod, &due.container).map(|(_, c)| c);
    let Some((container, probe)) = container.as_ref().and_then(|c| Some((c, probe_of(c, due.kind)?))) else {
        return Outcome::Undecided("the probe is no longer in the pod".to_owned());
    };
    probes::run(&*context.runtime, probe, container, &due.container_id, host).await
}

/// Removes what a pod leaves in the runtime and its logs, once nobody asks for them any more. What fails again and again
/// is found by the next listing, which then shows something that nobody owns.
pub(super) async fn forget(context: &Context, pod: &Pod, runtime: &PodRecord) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    let mut left = Vec::new();
    for last in (0..REMOVALS).rev() {
        left = remove(context, runtime).await;
        if left.is_empty() || last == 0 {
            break;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    for container in &runtime.containers {
        let _ = fs::remove_file(link_path(context, pod, &container.name, &container.id));
    }
    if left.is_empty() {
        let _ = fs::remove_dir_all(context.node.log_dir(pod));
    }
    context.observer.doubt(left);
}

/// Removes sandboxes with what is in them, and containers without one; returns the ids of what would not go.
async fn remove<'a>(context: &Context, runtime: &'a PodRecord) -> Vec<&'a str> {
    let mut left = Vec::new();
    for sandbox in &runtime.sandboxes {
        if let Err(error) = context.runtime.remove_sandbox(&sandbox.id).await {
            tracing::warn!(%error, "a sandbox was not removed");
            left.push(sandbox.id.as_str());
        }
    }
    let known: Vec<&str> = runtime.sandboxes.iter().map(|s| s.id.as_str()).collect();
    for container in runtime.containers.iter().filter(|c| !known.contains(&c.sandbox.as_str())) {
        if let Err(error) = context.runtime.remove_container(&container.id).await {
            tracing::warn!(%error, "a container was not removed");
            left.push(container.id.as_str());
        }
    }
    left
}

fn kept_path(node: &Node, pod: &Pod) -> PathBuf {
    node.pod_dir(pod).join("probes.json")
}

/// What was kept of the pod's probes; nothing if there is nothing, or it is damaged.
pub(super) fn recall(node: &Node, pod: &Pod) -> BTreeMap<String, Remembered> {
    let bytes = fs::read(kept_path(node, pod)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Keeps what is known of the pod's probes.
pub(super) fn keep(node: &Node, pod: &Pod, kept: &BTreeMap<String, Remembered>) {
    write_beside(&kept_path(node, pod), kept);
}

fn allocation_path(node: &Node, pod: &Pod) -> PathBuf {
    node.pod_dir(pod).join("resources.json")
}

/// What was kept of the pod's resources; none if there is nothing. A damaged file is told of: what was granted is then
/// what the definition asks for.
pub(super) fn recall_allocation(node: &Node, pod: &Pod) -> Option<Allocation> {
    let path = allocation_path(node, pod);
    let bytes = fs::read(&path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(allocation) => Some(allocation),
        Err(error) => {
            tracing::warn!(path = text(&path), %error, "what was granted to the pod is not known; taking its definition");
            None
        }
    }
}

/// Keeps what was granted and given to the pod; false if it has no folder yet or the file cannot be written.
pub(super) fn keep_allocation(node: &Node, pod: &Pod, allocation: &Allocation) -> bool {
    node.pod_dir(pod).exists() && write_beside(&allocation_path(node, pod), allocation)
}

/// Written beside and renamed, so that it is whole or absent; not synced, since after a crash of the machine no
/// container runs to which it could apply.
fn write_beside(path: &Path, kept: &impl serde::Serialize) -> bool {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        fs::write(&beside, serde_json::to_vec(kept)?)?;
        fs::rename(&beside, path)
    };
    let written = write();
    if let Err(error) = &written {
        tracing::debug!(path = text(path), %error, "not kept");
    }
    written.is_ok()
}
