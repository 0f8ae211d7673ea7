//! What a runtime really holds: asked directly, beside the proxy, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bosun_proto::cri;
use bosun_proto::cri::runtime_service_client::RuntimeServiceClient;
use bosun_proto::unix;
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// One pod's part of the runtime, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// The pod's name.
    pub pod: String,
    /// Attempts of its sandboxes that are up.
    pub ready: Vec<u32>,
    /// Attempts of all its sandboxes.
    pub sandboxes: BTreeSet<u32>,
    /// How many containers of each name run.
    pub running: BTreeMap<String, usize>,
}

/// What was seen over time.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often the runtime was asked, with an answer.
    pub looks: usize,
    /// Every attempt of a sandbox there ever was, by the pod's UID.
    pub attempts: BTreeMap<String, BTreeSet<u32>>,
    /// Moments at which a pod had two sandboxes up, or a container twice, in words.
    pub doubles: BTreeSet<String>,
}

/// Looks at a runtime on a thread of its own until this value ends.
#[derive(Debug)]
pub struct Census {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Asks the runtime at `socket` once; pods by UID.
///
/// # Errors
/// It does not answer.
pub fn look(socket: &Path) -> Result<BTreeMap<String, Holds>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async { ask(&mut client(socket)).await })
}

/// The ids of all sandboxes and containers that the runtime at `socket` knows of.
///
/// # Errors
/// It does not answer.
pub fn ids(socket: &Path) -> Result<BTreeSet<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let (sandboxes, containers) = list(&mut client(socket)).await?;
        Ok(sandboxes.into_iter().map(|s| s.id).chain(containers.into_iter().map(|c| c.id)).collect())
    })
}

impl Census {
    /// Starts to look.
    pub fn start(socket: &Path) -> Self {
        let (seen, over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (to, until, socket) = (seen.clone(), over.clone(), socket.to_owned());
        let thread = thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let mut client = client(&socket);
                while !until.load(Ordering::Relaxed) {
                    if let Ok(pods) = ask(&mut client).await {
                        to.lock().unwrap_or_else(PoisonError::into_inner).note(&pods);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        });
        Self { seen, over, thread: Some(thread) }
    }

    /// What was seen until now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn note(&mut self, pods: &BTreeMap<String, Holds>) {
        self.looks += 1;
        for (uid, holds) in pods {
            self.attempts.entry(uid.clone()).or_default().extend(&holds.sandboxes);
            if holds.ready.len() > 1 {
                self.doubles.insert(format!("{} has sandboxes {:?} up at once", holds.pod, holds.ready));
            }
            for (name, count) in holds.running.iter().filter(|(_, count)| **count > 1) {
                self.doubles.insert(format!("{count} containers {name} of {} run at once", holds.pod));
            }
        }
    }
}

fn client(socket: &Path) -> RuntimeServiceClient<Channel> {
    let endpoint = Endpoint::from_static("http://runtime.invalid").timeout(DEADLINE);
    RuntimeServiceClient::new(unix::channel(&endpoint, socket.to_owned())).max_decoding_message_size(64 << 20)
}

type Listed = (Vec<cri::PodSandbox>, Vec<cri::Container>);

async fn list(client: &mut RuntimeServiceClient<Channel>) -> Result<Listed, String> {
    let sandboxes = client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    let containers = client.list_containers(cri::ListContainersRequest::default()).await;
    let sandboxes = sandboxes.map_err(|status| status.to_string())?.into_inner().items;
    let containers = containers.map_err(|status| status.to_string())?.into_inner().containers;
    Ok((sandboxes, containers))
}

async fn ask(client: &mut RuntimeServiceClient<Channel>) -> Result<BTreeMap<String, Holds>, String> {
    let (sandboxes, containers) = list(client).await?;
    let mut pods = BTreeMap::<String, Holds>::new();
    let mut uids = BTreeMap::new();
    for sandbox in sandboxes {
        let ready = sandbox.state() == cri::PodSandboxState::SandboxReady;
        let Some(metadata) = sandbox.metadata else { continue };
        uids.insert(sandbox.id, metadata.uid.clone());
        let holds = pods.entry(metadata.uid).or_default();
        holds.pod = metadata.name;
        holds.sandboxes.insert(metadata.attempt);
        if ready {
            holds.ready.push(metadata.attempt);
        }
    }
    for container in containers.into_iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning) {
        let uid = uids.get(&container.pod_sandbox_id);
        if let (Some(holds), Some(metadata)) = (uid.and_then(|uid| pods.get_mut(uid)), container.metadata) {
            *holds.running.entry(metadata.name).or_default() += 1;
        }
    }
    Ok(pods)
}
