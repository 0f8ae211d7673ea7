//! Registers the Node and keeps its status: observe, [`status::plan`], patch.
//!
//! Until the node is Ready it looks often, so that a node is Ready as soon as its runtime and network are; then each
//! `nodeStatusUpdateFrequency`, or at once when [`NodeHandle::poke`]d. A status is sent when it changed, and each
//! `nodeStatusReportFrequency` anyhow.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosun_kit::backoff::Backoff;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus, ObjectReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::address::node_ips;
use crate::config::NodeConfig;
use crate::csr::chain;
use crate::facts::{RuntimeFacts, RuntimeStatus};
use crate::lease;
use crate::machine::{Machine, MachineReader};
use crate::pressure::{BadThreshold, Thresholds};
use crate::register::{initial_node, reconcile};
use crate::status::{self, NodeEvent, Observed, Plan};

/// How long the API server has for one answer.
const API_DEADLINE: Duration = Duration::from_secs(10);
/// How long the container runtime has for one answer.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(10);
/// How often to look while the node is not Ready: at first, and after [`EAGER`].
const EAGER_PERIOD: Duration = Duration::from_millis(100);
const WAITING_PERIOD: Duration = Duration::from_secs(1);
/// For how long after the start to look eagerly.
const EAGER: Duration = Duration::from_secs(60);
/// How often the list of images is asked for.
const IMAGES_PERIOD: Duration = Duration::from_secs(60);

/// What others hold of the node: to be told of it, and to make it look at once. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    poke: Arc<Notify>,
    node: watch::Receiver<Option<Arc<Node>>>,
    ready: watch::Receiver<bool>,
}

impl NodeHandle {
    /// Something changed (the runtime came or went, images were pulled): look now.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// The Node as last known, with labels, taints, pod CIDR and allocatable; none before registration.
    pub fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.node.clone()
    }

    /// Whether the node was last reported Ready.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }
}

/// Keeps one Node.
pub struct NodeAgent {
    config: NodeConfig,
    thresholds: Thresholds,
    client: Client,
    facts: Arc<dyn RuntimeFacts>,
    recorder: Recorder,
    reader: MachineReader,
    machine: Machine,
    poke: Arc<Notify>,
    node: watch::Sender<Option<Arc<Node>>>,
    ready: watch::Sender<bool>,
    uid: watch::Sender<Option<String>>,
    images: Option<(Instant, Vec<ContainerImage>)>,
    runtime_version: Option<String>,
    /// What the runtime said last, and when.
    runtime_seen: Option<(Instant, RuntimeStatus)>,
    runtime_silent: bool,
    reported: Option<Instant>,
}

impl NodeAgent {
    /// Nothing happens before [`NodeAgent::run`].
    ///
    /// # Errors
    /// An eviction threshold cannot be read.
    pub fn new(
        config: NodeConfig,
        client: Client,
        facts: Arc<dyn RuntimeFacts>,
        recorder: Recorder,
    ) -> Result<Self, BadThreshold> {
        let reader = MachineReader::default();
        Ok(Self {
            thresholds: Thresholds::parse(&config.eviction_hard)?,
            machine: reader.machine(),
            config,
            client,
            facts,
            recorder,
            reader,
            poke: Arc::default(),
            node: watch::Sender::default(),
            ready: watch::Sender::default(),
            uid: watch::Sender::default(),
            images: None,
            runtime_version: None,
            runtime_seen: None,
            runtime_silent: false,
            reported: None,
        })
    }

    /// For others to hold.
    pub fn handle(&self) -> NodeHandle {
        NodeHandle { poke: self.poke.clone(), node: self.node.subscribe(), ready: self.ready.subscribe() }
    }

    /// Registers the node, keeps its lease and status, until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) {
        self.event(&NodeEvent { warning: false, reason: "Starting", message: "Starting kubelet.".to_owned() });
        let (client, name) = (self.client.clone(), self.config.name.clone());
        let lease = lease::keep(client, name, self.uid.subscribe(), self.config.lease_duration, cancel.child_token());
        let lease = tokio::spawn(lease);
        tokio::select! {
            () = self.work(&cancel) => {}
            () = cancel.cancelled() => {}
        }
        let _ = lease.await;
    }

    async fn work(&mut self, cancel: &CancellationToken) {
        self.register().await;
        let api = Api::<Node>::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.config.name));
        let mut changes = Informer::start(api, config, cancel.child_token()).subscribe();
        let start = Instant::now();
        let mut failures = Backoff::new(Duration::from_millis(100), self.config.update_frequency);
        loop {
            let delay = match self.sync().await {
                Ok(ready) => {
                    failures.reset();
                    self.period(ready, start)
                }
                Err(error) => {
                    tracing::warn!(error, node = self.config.name, "node status not updated");
                    failures.next_delay()
                }
            };
            self.wait(delay, &mut changes).await;
        }
    }

    fn period(&self, ready: bool, start: Instant) -> Duration {
        match ready {
            // A runtime that is silent is asked again soon: whether that lasts decides about the node.
            true if self.runtime_silent => WAITING_PERIOD.min(self.config.update_frequency),
            true => self.config.update_frequency,
            false if start.elapsed() < EAGER => EAGER_PERIOD,
            false => WAITING_PERIOD.min(self.config.update_frequency),
        }
    }

    /// Until it is time to look again; takes changes of the Node in meanwhile.
    async fn wait(&mut self, delay: Duration, changes: &mut mpsc::UnboundedReceiver<Delta<Node>>) {
        let until = tokio::time::sleep(delay);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return,
                () = self.poke.notified() => return,
                change = changes.recv() => match change {
                    Some(Delta::Applied(node)) => {
                        self.learn(node);
                        if self.contradicted() {
                            return;
                        }
                    }
                    Some(Delta::Deleted(_)) => tracing::warn!(
                        node = self.config.name,
                        "the Node object was deleted; restart the kubelet to register again"
                    ),
                    None => return until.await,
                },
            }
        }
    }

    /// Somebody else (the node lifecycle controller, after a silence) says of the node what we do not.
    fn contradicted(&self) -> bool {
        let node = self.node.borrow();
        let said = node.as_ref().and_then(|node| bosun_api::node::condition(node, "Ready"));
        said.is_some_and(|said| (said.status == "True") != *self.ready.borrow())
    }

    /// Takes a Node in, unless a newer one is known.
    fn learn(&self, node: Arc<Node>) {
        let version = |node: &Node| node.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
        self.uid.send_if_modified(|uid| {
            let differs = *uid != node.metadata.uid;
            uid.clone_from(&node.metadata.uid);
            differs
        });
        self.node.send_if_modified(|known| {
            let newer = known.as_ref().is_none_or(|known| {
                known.metadata.uid != node.metadata.uid || version(known) < version(&node) || version(&node).is_none()
            });
            if newer {
                *known = Some(node);
            }
            newer
        });
    }

    /// Makes the Node, or finds it, however long that takes.
    async fn register(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
        loop {
            match self.try_register().await {
                Ok(node) => {
                    tracing::info!(node = self.config.name, "registered");
                    return self.learn(Arc::new(node));
                }
                Err(error) => tracing::warn!(error, node = self.config.name, "node not registered yet"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn try_register(&mut self) -> Result<Node, String> {
        let api = Api::<Node>::all(self.client.clone());
        if self.config.register {
            let plan = self.plan(&Node::default()).await;
            let node = initial_node(&self.config, plan.status);
            match within(API_DEADLINE, api.create(&PostParams::default(), &node)).await {
                Ok(mut node) => {
                    // The status may not be taken at creation: then the first report brings it.
                    plan.events.iter().for_each(|event| self.event(event));
                    node.status.get_or_insert_with(NodeStatus::default);
                    return Ok(node);
                }
                Err(ApiFailure::Exists) => {}
                Err(ApiFailure::Other(error)) => return Err(error),
            }
        }
        let existing = within(API_DEADLINE, api.get(&self.config.name)).await.map_err(|e| e.to_string())?;
        let Some(patch) = reconcile(&self.config, &existing).filter(|_| self.config.register) else {
            return Ok(existing);
        };
        let params = PatchParams::default();
        within(API_DEADLINE, api.patch(&self.config.name, &params, &Patch::Merge(patch)))
            .await
            .map_err(|e| e.to_string())
    }

    /// One report, if one is due. Gives whether the node is Ready.
    async fn sync(&mut self) -> Result<bool, String> {
        let previous = self.node.borrow().clone().unwrap_or_default();
        let plan = self.plan(&previous).await;
        let due = self.reported.is_none_or(|at| at.elapsed() >= self.config.report_frequency);
        if plan.changed || due {
            let api = Api::<Node>::all(self.client.clone());
            let patch = Patch::Strategic(&plan.patch);
            let params = PatchParams::default();
            let answer = api.patch_status(&self.config.name, &params, &patch);
            let node = within(API_DEADLINE, answer).await.map_err(|e| e.to_string())?;
            self.learn(Arc::new(node));
            self.reported = Some(Instant::now());
            plan.events.iter().for_each(|event| self.event(event));
        }
        self.ready.send_if_modified(|ready| std::mem::replace(ready, plan.ready) != plan.ready);
        Ok(plan.ready)
    }

    async fn plan(&mut self, previous: &Node) -> Plan {
        let observed = self.observe().await;
        status::plan(&self.config, &self.thresholds, &observed, previous, Timestamp::now())
    }

    async fn observe(&mut self) -> Observed {
        let resources = self.reader.resources(&self.config.root_dir);
        let resources = resources.inspect_err(|error| tracing::warn!(%error, "resources not read")).ok();
        let ips = node_ips(&self.config.node_ips);
        let ips = ips.inspect_err(|error| tracing::warn!(%error, "node address")).unwrap_or_default();
        let answered = answer(self.facts.status()).await;
        if let Err(error) = &answered {
            tracing::warn!(error, "container runtime status");
        }
        // A runtime that went away may come back as another version, with other images.
        let version = if answered.is_ok() { answer(self.facts.version()).await.ok() } else { None };
        let renewed = version.is_some() && version != self.runtime_version;
        if version.is_some() {
            self.runtime_version = version;
        }
        Observed {
            machine: self.machine.clone(),
            resources,
            pressure: self.facts.pressure(),
            ips,
            runtime_version: self.runtime_version.clone(),
            images: if answered.is_ok() { self.images(renewed).await } else { self.known_images() },
            runtime: Some(self.bridged(answered)),
            devices: self.facts.devices(),
            errors: self.facts.errors(),
            volumes_in_use: self.facts.volumes_in_use(),
        }
    }

    /// What the runtime said last, where it said nothing just now and that was not long ago.
    fn bridged(&mut self, answered: Result<RuntimeStatus, String>) -> Result<RuntimeStatus, String> {
        self.runtime_silent = answered.is_err();
        match (answered, &self.runtime_seen) {
            (Ok(status), _) => {
                self.runtime_seen = Some((Instant::now(), status.clone()));
                Ok(status)
            }
            (Err(_), Some((at, status))) if at.elapsed() < self.config.runtime_grace => Ok(status.clone()),
            (Err(error), _) => Err(error),
        }
    }

    fn known_images(&self) -> Option<Vec<ContainerImage>> {
        self.images.as_ref().map(|(_, images)| images.clone())
    }

    async fn images(&mut self, renewed: bool) -> Option<Vec<ContainerImage>> {
        let fresh = self.images.as_ref().filter(|(at, _)| !renewed && at.elapsed() < IMAGES_PERIOD);
        if fresh.is_none() {
            match answer(self.facts.images()).await {
                Ok(images) => self.images = Some((Instant::now(), images)),
                Err(error) => tracing::debug!(error, "images of the container runtime"),
            }
        }
        self.known_images()
    }

    fn event(&self, event: &NodeEvent) {
        let name = &self.config.name;
        // Events about nodes carry the name as UID: that is how kubectl finds them.
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        let event_type = if event.warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(&about, event_type, event.reason, event.message.clone());
    }
}

async fn answer<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let timed_out = || format!("the container runtime gave no answer in {RUNTIME_DEADLINE:?}");
    tokio::time::timeout(RUNTIME_DEADLINE, question).await.unwrap_or_else(|_| Err(timed_out()))
}

/// Why the API server did not do it.
#[derive(Debug, thiserror::Error)]
enum ApiFailure {
    #[error("already exists")]
    Exists,
    #[error("{0}")]
    Other(String),
}

async fn within<T>(deadline: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiFailure> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Err(ApiFailure::Exists),
        Ok(Err(error)) => Err(ApiFailure::Other(chain(&error))),
        Err(_) => Err(ApiFailure::Other(format!("no answer in {deadline:?}"))),
    }
}
