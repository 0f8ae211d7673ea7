//! Makes volumes ready for pods and gives them back, step by step as [`crate::plan`] says.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::backoff::Backoff;
use bosun_kubelet_plugins::plan::delay;
use bosun_proto::csi;
use bosun_proto::csi::node_service_capability::rpc::Type as Can;
use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use thiserror::Error;
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::cluster::Cluster;
use crate::drivers::{Driver, Drivers};
use crate::plan::{self, Left, Phase, Step, Wanted};
use crate::record::{self, Kept, Record};
use crate::service::{Capabilities, is_final, words};
use crate::volume::{Lifecycle, SecretRef, Volume};
use crate::{attributes, block, names};

/// How long one try waits for the control plane to attach a volume; the next try goes on waiting.
const ATTACH_PATIENCE: Duration = Duration::from_secs(10);
/// How soon is looked whether a volume has grown, or told again to drivers that want that.
const AGAIN: Duration = Duration::from_secs(60);
/// The longest pause while only the driver's registration is waited for: it costs nothing to look.
const UNREGISTERED_RETRY: Duration = Duration::from_secs(5);
/// A token is renewed when this part of its life is over, in percent, as in stock.
const TOKEN_AGE: u32 = 80;

/// For which pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// Its group for files.
    pub group: Option<u32>,
}

/// A claim that may have to grow.
#[derive(Clone, Debug)]
pub struct Growing {
    /// The claim.
    pub claim: PersistentVolumeClaim,
    /// The size of its volume.
    pub capacity: Option<Quantity>,
}

/// Gives what is below a path to the pod's group; may take long.
pub type GiveToGroup = Box<dyn FnOnce(&Path) -> Result<(), String> + Send>;

/// A volume that is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Where it is: a folder, or the link to a device.
    pub path: PathBuf,
    /// When to ask for it again, to have it grow or told anew.
    pub again: Option<Duration>,
    /// What went wrong while it stayed usable, in the words of an event.
    pub complaint: Option<String>,
    /// It has grown, in the words of an event.
    pub grown: Option<String>,
}

/// Why a volume is not ready; the text is what stock's event says.
#[derive(Debug, Error)]
#[error("{what} failed for volume {volume:?} : {message}")]
pub struct CsiError {
    /// Which part of it, in stock's words.
    pub what: &'static str,
    /// The volume's name.
    pub volume: String,
    /// Why.
    pub message: String,
    /// How long to wait before the next try.
    pub retry: Duration,
    /// Whether a device was wanted: stock's events then have another reason.
    pub block: bool,
}

/// CSI on this node.
pub struct Csi {
    root: PathBuf,
    node: String,
    boot: String,
    drivers: Arc<Drivers>,
    cluster: Arc<dyn Cluster>,
    locks: Locks,
    failures: Mutex<HashMap<(String, String), u32>>,
    used: Notify,
    tokens: Mutex<HashMap<TokenKey, (Instant, TokenRequestStatus)>>,
}

/// The pod's UID, the audience, the life asked for.
type TokenKey = (String, String, Option<i64>);

/// One volume's calls follow each other, whatever pods they are for.
#[derive(Default)]
struct Locks(Mutex<HashMap<(String, String), Lock>>);

type Lock = Arc<tokio::sync::Mutex<()>>;

impl Locks {
    async fn lock(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry((driver.to_owned(), handle.to_owned())).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// One volume being made ready.
struct Work<'a> {
    volume: &'a Volume,
    pod: &'a PodUse,
    growing: Option<&'a Growing>,
    object: Option<CSIDriver>,
    driver: Arc<Driver>,
    can: Capabilities,
    wanted: Wanted,
    record: Record,
    file: PathBuf,
    context: BTreeMap<String, String>,
    grown: Option<String>,
}

impl Csi {
    /// CSI of the node of that name, with everything below `root` (stock's `/var/lib/kubelet`). `boot` names the boot of
    /// the machine: what was mounted in another one is not any more.
    pub fn new(root: &Path, node: &str, boot: &str, drivers: Arc<Drivers>, cluster: Arc<dyn Cluster>) -> Self {
        Self {
            root: root.to_path_buf(),
            node: node.to_owned(),
            boot: boot.to_owned(),
            drivers,
            cluster,
            locks: Locks::default(),
            failures: Mutex::default(),
            used: Notify::new(),
            tokens: Mutex::default(),
        }
    }

    /// Makes a volume ready for a pod; harmless to repeat. A volume that is ready stays so, whatever goes wrong with it
    /// later: that is then the complaint.
    ///
    /// # Errors
    /// What failed, and when to try again.
    pub async fn set_up(
        &self,
        volume: &Volume,
        pod: &PodUse,
        growing: Option<&Growing>,
        give: GiveToGroup,
    ) -> Result<Made, CsiError> {
        let key = (pod.uid.clone(), volume.name.clone());
        let done = self.try_set_up(volume, pod, growing, give).await;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(made) => {
                failures.remove(&key);
                Ok(made)
            }
            Err(error) => {
                let count = failures.entry(key).or_default();
                *count = count.saturating_add(1);
                let wait = bosun_kit::backoff::jittered(delay(*count), 0.1);
                Err(CsiError { retry: wait.min(error.retry), ..error })
            }
        }
    }

    async fn try_set_up(
        &self,
        volume: &Volume,
        pod: &PodUse,
        growing: Option<&Growing>,
        give: GiveToGroup,
    ) -> Result<Made, CsiError> {
        let _lock = self.locks.lock(&volume.driver, &volume.handle).await;
        let file = record::pod_file(&self.root, &pod.uid, &volume.name, volume.block);
        let known = record::read(&file).map_err(|error| failed(volume, SET_UP, error.to_string()))?;
        let ready = known.as_ref().is_some_and(|record| record.phase_in(&self.boot) == Phase::Ready);
        let done = self.work(volume, pod, growing, known, file, give).await;
        match done {
            Ok(made) => Ok(made),
            Err(error) if ready => Ok(Made {
                path: self.path(volume, pod),
                again: Some(AGAIN),
                complaint: Some(error.to_string()),
                grown: None,
            }),
            Err(error) => Err(error),
        }
    }

    /// Where a pod finds the volume.
    pub fn path(&self, volume: &Volume, pod: &PodUse) -> PathBuf {
        match volume.block {
            true => names::pod_device(&self.root, &pod.uid, &volume.name),
            false => names::target(&self.root, &pod.uid, &volume.name),
        }
    }

    async fn work(
        &self,
        volume: &Volume,
        pod: &PodUse,
        growing: Option<&Growing>,
        known: Option<Record>,
        file: PathBuf,
        give: GiveToGroup,
    ) -> Result<Made, CsiError> {
        let init = match volume.block {
            true => "MapVolume.NewBlockVolumeMapper initialization",
            false => "MountVolume.NewMounter initialization",
        };
        let object = self.cluster.driver(&volume.driver).await.map_err(|error| failed(volume, init, error))?;
        let spec = object.as_ref().map(|object| &object.spec);
        attributes::check_lifecycle(spec, volume).map_err(|error| failed(volume, init, error))?;
        let driver = self.drivers.get(&volume.driver).map_err(|error| not_registered(volume, &error))?;
        let can = driver.capabilities().await.map_err(|status| failed(volume, SET_UP, words(&status)))?.clone();
        let persistent = volume.lifecycle == Lifecycle::Persistent;
        let growth = growing.and_then(|g| crate::cluster::growth(&g.claim, g.capacity.as_ref()));
        let may_grow = persistent && !volume.read_only && growing.is_some() && can.has(Can::ExpandVolume);
        let wanted = Wanted {
            attach: persistent && spec.is_none_or(|spec| spec.attach_required != Some(false)),
            stage: persistent && can.has(Can::StageUnstageVolume),
            block: volume.block,
            group: pod.group.is_some() && volume.wants_group(group_policy(object.as_ref()), &can),
            expand: may_grow && growth.is_some(),
            republish: spec.is_some_and(|spec| spec.requires_republish == Some(true)) && !volume.block,
        };
        let attachment = wanted.attach.then(|| names::attachment(&volume.handle, &volume.driver, &self.node));
        let record = known.unwrap_or_else(|| Record::new(volume, &self.node, attachment, &self.boot));
        let phase = record.phase_in(&self.boot);
        if phase < Phase::Published {
            self.check_one_pod(volume, pod)?;
            record::write(&file, &record).map_err(|error| failed(volume, SET_UP, error.to_string()))?;
            self.used.notify_one();
        }
        let staged = self.is_staged(&record).map_err(|error| failed(volume, SET_UP, error.to_string()))?;
        let again = (wanted.republish || may_grow).then_some(AGAIN);
        let mut work = Work {
            volume,
            pod,
            growing,
            object,
            driver,
            can,
            wanted,
            record,
            file,
            context: BTreeMap::new(),
            grown: None,
        };
        let mut give = Some(give);
        for step in plan::set_up(wanted, phase, staged) {
            tracing::debug!(volume = volume.name, pod = pod.uid, %step, "CSI volume");
            match step {
                Step::Attach => work.context = self.attached(volume).await?,
                Step::Stage => self.stage(&work).await?,
                Step::Publish => self.publish(&mut work).await?,
                Step::Map => self.map(&work).await?,
                Step::Expand => self.expand(&mut work).await?,
                Step::Group => self.give(&work, give.take()).await?,
                Step::Finish => work.reach(Phase::Ready, &self.boot)?,
                Step::Unmap | Step::Unpublish | Step::Unstage | Step::Forget => {}
            }
        }
        Ok(Made { path: self.path(volume, pod), again, complaint: None, grown: work.grown })
    }

    /// A volume for one pod only is refused while another pod of the node has it.
    fn check_one_pod(&self, volume: &Volume, pod: &PodUse) -> Result<(), CsiError> {
        let taken = |kept: &Kept| {
            kept.pod != pod.uid
                && is_of(&kept.record, &volume.driver, &volume.handle)
                && kept.record.phase > Phase::Wanted
        };
        if volume.one_pod() && record::all(&self.root).iter().any(taken) {
            let why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(failed(volume, if volume.block { "MapVolume" } else { "MountVolume" }, why.to_owned()));
        }
        Ok(())
    }

    fn is_staged(&self, record: &Record) -> io::Result<bool> {
        let staged = record::read(&record::staged_file(&self.root, record))?;
        Ok(staged.is_some_and(|staged| staged.phase_in(&self.boot) >= Phase::Published))
    }

    /// Waits until the volume is attached; returns what the attachment says for the driver.
    async fn attached(&self, volume: &Volume) -> Result<BTreeMap<String, String>, CsiError> {
        let what = if volume.block { "MapVolume.WaitForAttach" } else { "MountVolume.WaitForAttach" };
        let name = names::attachment(&volume.handle, &volume.driver, &self.node);
        let began = Instant::now();
        let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let found = self.cluster.attachment(&name).await.map_err(|error| failed(volume, what, error))?;
            let status = found.as_ref().and_then(|found| found.status.as_ref());
            if found.as_ref().is_some_and(|found| found.metadata.deletion_timestamp.is_some()) {
                return Err(failed(volume, what, "volume attachment is being deleted".to_owned()));
            }
            let attached = status.filter(|status| status.attached);
            if let Some(status) = attached
                && self.is_reported(volume).await.map_err(|error| failed(volume, what, error))?
            {
                return Ok(status.attachment_metadata.clone().unwrap_or_default());
            }
            if let Some(error) = status.and_then(|status| status.attach_error.as_ref()) {
                return Err(failed(volume, what, error.message.clone().unwrap_or_default()));
            }
            if began.elapsed() > ATTACH_PATIENCE {
                let (driver, handle) = (&volume.driver, &volume.handle);
                if attached.is_some() {
                    let text = "it is attached, but the node's status does not show it in use yet; the node has to be able to write its status";
                    return Err(failed(volume, what, text.to_owned()));
                }
                let text =
                    format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
                return Err(failed(volume, what, text));
            }
            tokio::time::sleep(pause.next_delay()).await;
        }
    }

    /// Whether the node's status shows the volume in use, so that nobody detaches it while it is mounted.
    async fn is_reported(&self, volume: &Volume) -> Result<bool, String> {
        let unique = names::unique(&volume.driver, &volume.handle);
        let node = self.cluster.node().await?;
        let Some(node) = node else { return Ok(true) };
        let in_use = node.status.and_then(|status| status.volumes_in_use).unwrap_or_default();
        let reported = in_use.contains(&unique);
        if !reported {
            self.used.notify_one();
        }
        Ok(reported)
    }

    fn staging_path(&self, volume: &Volume) -> PathBuf {
        match volume.block {
            true => names::block_staging(&self.root, &volume.name),
            false => names::global_mount(&self.root, &volume.driver, &volume.handle),
        }
    }

    async fn stage(&self, work: &Work<'_>) -> Result<(), CsiError> {
        let volume = work.volume;
        let what = if volume.block { "MapVolume.SetUpDevice" } else { "MountVolume.MountDevice" };
        let wrong = |error: io::Error| failed(volume, what, error.to_string());
        let secrets = self.secret(volume.stage_secret.as_ref(), "NodeStageSecretRef").await;
        let secrets = secrets.map_err(|error| failed(volume, what, error))?;
        let path = self.staging_path(volume);
        let file = record::staged_file(&self.root, &work.record);
        // An earlier try may have had its effect without an answer: then it is to be taken back, whatever comes now.
        let begun = record::read(&file).map_err(wrong)?.is_some();
        let mut staged = Record { phase: Phase::Publishing, boot: self.boot.clone(), ..work.record.clone() };
        record::write(&file, &staged).map_err(wrong)?;
        bosun_kit::files::create_dir(&path, 0o750).map_err(wrong)?;
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: work.context.clone(),
            staging_target_path: path.display().to_string(),
            volume_capability: Some(volume.capability(&work.can, work.pod.group)),
            secrets,
            volume_context: volume.attributes.clone(),
        };
        match work.driver.service.stage(request).await {
            Ok(()) => {
                staged.phase = Phase::Published;
                record::write(&file, &staged).map_err(wrong)
            }
            Err(status) => {
                if is_final(&status) && !begun {
                    self.forget_staged(&file, &path).await.map_err(wrong)?;
                }
                Err(failed(volume, what, words(&status)))
            }
        }
    }

    async fn forget_staged(&self, file: &Path, path: &Path) -> io::Result<()> {
        let (file, path, top) = (file.to_path_buf(), path.to_path_buf(), self.root.join("plugins").join(names::PLUGIN));
        blocking(move || remove_mount_dir(&path).and_then(|()| record::remove(&file, &top))).await
    }

    async fn publish(&self, work: &mut Work<'_>) -> Result<(), CsiError> {
        let volume = work.volume;
        let what = if volume.block { "MapVolume.MapPodDevice" } else { SET_UP };
        let wrong = |error: String| failed(volume, what, error);
        if work.wanted.attach && work.context.is_empty() {
            work.context = self.attached(volume).await?;
        }
        let target = self.target(&work.record, &work.pod.uid);
        if let Some(folder) = target.parent().filter(|folder| !folder.is_dir()) {
            bosun_kit::files::create_dir(folder, 0o750).map_err(|error| wrong(error.to_string()))?;
        }
        let mut secrets = self.secret(volume.publish_secret.as_ref(), "NodePublishSecretRef").await.map_err(wrong)?;
        let mut context = volume.attributes.clone();
        context.extend(attributes::of_pod(work.object.as_ref(), work.pod, volume));
        if let Some(tokens) = self.tokens(work.object.as_ref(), work.pod).await.map_err(wrong)? {
            let in_secrets =
                work.object.as_ref().is_some_and(|object| object.spec.service_account_token_in_secrets == Some(true));
            let place = if in_secrets { &mut secrets } else { &mut context };
            place.insert(attributes::TOKENS.to_owned(), tokens);
        }
        let again = work.record.phase_in(&self.boot) >= Phase::Published;
        let begun = work.record.phase >= Phase::Publishing;
        if !again {
            work.reach(Phase::Publishing, &self.boot)?;
        }
        let staging = self.staging_path(volume).display().to_string();
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: work.context.clone(),
            staging_target_path: if work.wanted.stage { staging } else { String::new() },
            target_path: target.display().to_string(),
            volume_capability: Some(volume.capability(&work.can, work.pod.group)),
            readonly: volume.read_only,
            secrets,
            volume_context: context,
        };
        match work.driver.service.publish(request).await {
            Ok(()) if again => Ok(()),
            Ok(()) => work.reach(Phase::Published, &self.boot),
            Err(status) => {
                if is_final(&status) && !begun {
                    let _ = blocking(move || remove_mount_dir(&target)).await;
                    work.reach(Phase::Wanted, &self.boot)?;
                }
                Err(failed(volume, what, words(&status)))
            }
        }
    }

    fn target(&self, record: &Record, pod_uid: &str) -> PathBuf {
        match record.is_block() {
            true => names::block_target(&self.root, &record.name, pod_uid),
            false => names::target(&self.root, pod_uid, &record.name),
        }
    }

    async fn map(&self, work: &Work<'_>) -> Result<(), CsiError> {
        let (name, uid) = (&work.volume.name, &work.pod.uid);
        let device = names::block_target(&self.root, name, uid);
        let global = names::block_global_map(&self.root, name, uid);
        let link = names::pod_device(&self.root, uid, name);
        let mapped = blocking(move || block::map(&device, &global, &link)).await;
        mapped.map_err(|error| failed(work.volume, "MapVolume.MapBlockVolume", error.to_string()))
    }

    async fn expand(&self, work: &mut Work<'_>) -> Result<(), CsiError> {
        let volume = work.volume;
        let what = if volume.block { "MapVolume.NodeExpandVolume" } else { "MountVolume.NodeExpandVolume" };
        let Some(growing) = work.growing else { return Ok(()) };
        let Some(capacity) = crate::cluster::growth(&growing.claim, growing.capacity.as_ref()) else { return Ok(()) };
        let secrets = self.secret(volume.expand_secret.as_ref(), "NodeExpandSecretRef").await;
        let required = bosun_api::quantity::of(&capacity).value();
        let staging = self.staging_path(volume).display().to_string();
        let request = csi::NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: self.target(&work.record, &work.pod.uid).display().to_string(),
            capacity_range: Some(csi::CapacityRange { required_bytes: required, limit_bytes: 0 }),
            staging_target_path: if work.wanted.stage { staging } else { String::new() },
            volume_capability: Some(volume.capability(&work.can, work.pod.group)),
            secrets: secrets.map_err(|error| failed(volume, what, error))?,
        };
        match work.driver.service.expand(request).await {
            Ok(_) => {}
            // The driver cannot while it is in use: it will when it is not, and the pod runs meanwhile.
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                tracing::info!(volume = volume.name, error = words(&status), "a volume in use does not grow");
                return Ok(());
            }
            Err(status) => return Err(failed(volume, what, words(&status))),
        }
        let told = self.cluster.grown(&growing.claim, &capacity).await;
        told.map_err(|error| failed(volume, what, error))?;
        work.grown = Some(format!("{what} succeeded for volume {:?} {}", volume.name, self.node));
        Ok(())
    }

    async fn give(&self, work: &Work<'_>, give: Option<GiveToGroup>) -> Result<(), CsiError> {
        let Some(give) = give else { return Ok(()) };
        let path = self.path(work.volume, work.pod);
        let given = blocking(move || give(&path).map_err(io::Error::other)).await;
        let message = |error: io::Error| format!("applyFSGroup failed for vol {}: {error}", work.volume.handle);
        given.map_err(|error| failed(work.volume, SET_UP, message(error)))
    }

    async fn secret(&self, secret: Option<&SecretRef>, field: &str) -> Result<BTreeMap<String, String>, String> {
        let Some(secret) = secret else { return Ok(BTreeMap::new()) };
        let SecretRef { namespace, name } = secret;
        let failed = |why: String| format!("fetching {field} {namespace}/{name} failed: {why}");
        let missing = || failed(format!("secrets {name:?} not found"));
        let found = self.cluster.secret(secret).await.map_err(failed)?.ok_or_else(missing)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect())
    }

    /// The tokens that the driver asks for, as one text; each is kept until most of its life is over.
    async fn tokens(&self, object: Option<&CSIDriver>, pod: &PodUse) -> Result<Option<String>, String> {
        let requests = object.and_then(|object| object.spec.token_requests.as_ref());
        let Some(requests) = requests.filter(|requests| !requests.is_empty()) else { return Ok(None) };
        let mut found = BTreeMap::new();
        for request in requests {
            let key = (pod.uid.clone(), request.audience.clone(), request.expiration_seconds);
            let known = {
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                tokens.retain(|_, (until, _)| *until > Instant::now());
                tokens.get(&key).map(|(_, status)| status.clone())
            };
            let status = match known {
                Some(status) => status,
                None => self.new_token(key, pod).await?,
            };
            found.insert(request.audience.clone(), status);
        }
        Ok(Some(attributes::tokens(&found)))
    }

    async fn new_token(&self, key: TokenKey, pod: &PodUse) -> Result<TokenRequestStatus, String> {
        let failed = |error| format!("failed to get service account token attributes: {error}");
        let status = self.cluster.token(pod, &key.1, key.2).await.map_err(failed)?;
        // An hour is what the API server gives where nothing was asked for.
        let life = Duration::from_secs(u64::try_from(key.2.unwrap_or(3600)).unwrap_or_default());
        let until = Instant::now() + life * TOKEN_AGE / 100;
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (until, status.clone()));
        Ok(status)
    }

    /// Gives back all volumes of a pod that is gone. Safe to repeat; what cannot be given back stays recorded.
    ///
    /// # Errors
    /// The first thing that failed; the other volumes were still tried.
    pub async fn tear_down(&self, pod_uid: &str) -> Result<(), String> {
        let kept = record::of_pod(&self.root, pod_uid).map_err(|error| error.to_string())?;
        let mut first = None;
        for kept in kept {
            let volume = kept.record.name.clone();
            if let Err(error) = self.tear_down_one(kept).await {
                let what = "UnmountVolume.TearDown";
                first.get_or_insert(format!("{what} failed for volume {volume:?} (pod {pod_uid:?}) : {error}"));
            }
        }
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _), _| uid != pod_uid);
        first.map_or(Ok(()), Err)
    }

    async fn tear_down_one(&self, kept: Kept) -> Result<(), String> {
        let Kept { pod, file, record } = kept;
        let _lock = self.locks.lock(&record.driver, &record.handle).await;
        let staged_file = record::staged_file(&self.root, &record);
        let staged = record.is_persistent() && record::read(&staged_file).map_err(|e| e.to_string())?.is_some();
        let other = |kept: &Kept| kept.pod != pod && is_of(&kept.record, &record.driver, &record.handle);
        let others = record.is_persistent() && record::all(&self.root).iter().any(other);
        let left = Left { phase: record.phase, block: record.is_block(), staged, others };
        for step in plan::tear_down(left) {
            tracing::debug!(volume = record.name, pod, %step, "CSI volume");
            match step {
                Step::Unmap => self.unmap(&record, &pod).await?,
                Step::Unpublish => {
                    doubt(&file).map_err(|error| error.to_string())?;
                    self.unpublish(&record, &pod).await?;
                }
                Step::Unstage => {
                    doubt(&staged_file).map_err(|error| error.to_string())?;
                    self.unstage(&record, &staged_file).await?;
                }
                Step::Forget => self.forget(&record, &pod, &file).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn unmap(&self, record: &Record, pod_uid: &str) -> Result<(), String> {
        let global = names::block_global_map(&self.root, &record.name, pod_uid);
        let link = names::pod_device(&self.root, pod_uid, &record.name);
        blocking(move || block::unmap(&global, &link)).await.map_err(|error| error.to_string())
    }

    async fn unpublish(&self, record: &Record, pod_uid: &str) -> Result<(), String> {
        let client = |error| format!("{}: Unmounter.TearDownAt failed to get CSI client: {error}", names::PLUGIN);
        let driver = self.drivers.get(&record.driver).map_err(client)?;
        let target = self.target(record, pod_uid);
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: record.handle.clone(),
            target_path: target.display().to_string(),
        };
        let refused = |status| format!("{}: Unmounter.TearDownAt failed: {}", names::PLUGIN, words(&status));
        driver.service.unpublish(request).await.map_err(refused)?;
        blocking(move || remove_mount_dir(&target)).await.map_err(|error| error.to_string())
    }

    async fn unstage(&self, record: &Record, file: &Path) -> Result<(), String> {
        let client =
            |error| format!("{}: attacher.UnmountDevice failed to create newCsiDriverClient: {error}", names::PLUGIN);
        let driver = self.drivers.get(&record.driver).map_err(client)?;
        let path = match record.is_block() {
            true => names::block_staging(&self.root, &record.name),
            false => names::global_mount(&self.root, &record.driver, &record.handle),
        };
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: record.handle.clone(),
            staging_target_path: path.display().to_string(),
        };
        let refused = |status| format!("{}: attacher.UnmountDevice failed: {}", names::PLUGIN, words(&status));
        driver.service.unstage(request).await.map_err(refused)?;
        self.forget_staged(file, &path).await.map_err(|error| error.to_string())
    }

    async fn forget(&self, record: &Record, pod_uid: &str, file: &Path) -> Result<(), String> {
        let top = match record.is_block() {
            true => names::block_volumes(&self.root),
            false => names::pod_volumes(&self.root, pod_uid),
        };
        let (file, name) = (file.to_path_buf(), record.name.clone());
        let spare = record.is_block().then(|| {
            let target = names::block_target(&self.root, &name, pod_uid);
            let map = names::block_global_map(&self.root, &name, pod_uid);
            [target, map].map(|path| path.parent().map(Path::to_path_buf).unwrap_or_default())
        });
        blocking(move || {
            for folder in spare.iter().flatten() {
                // As far as it is empty: other pods have theirs there.
                let _ = std::fs::remove_dir(folder);
            }
            record::remove(&file, &top)
        })
        .await
        .map_err(|error| error.to_string())?;
        self.used.notify_one();
        Ok(())
    }

    /// Notified when what [`Csi::in_use`] tells may have changed.
    pub fn used(&self) -> &Notify {
        &self.used
    }

    /// Where volumes with file systems are published to a pod: drivers mounted there, and drivers unmount.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn targets(&self, pod_uid: &str) -> io::Result<Vec<PathBuf>> {
        let kept = record::of_pod(&self.root, pod_uid)?.into_iter().filter(|kept| !kept.record.is_block());
        Ok(kept.map(|kept| names::target(&self.root, pod_uid, &kept.record.name)).collect())
    }

    /// Whether a pod may use the volume at this place, as [`Csi::path`] gives it.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn is_ready(&self, pod_uid: &str, place: &Path) -> io::Result<bool> {
        let there = |record: &Record| match record.is_block() {
            true => names::pod_device(&self.root, pod_uid, &record.name),
            false => names::target(&self.root, pod_uid, &record.name),
        };
        let ready = |kept: &Kept| kept.record.phase_in(&self.boot) == Phase::Ready && there(&kept.record) == place;
        Ok(record::of_pod(&self.root, pod_uid)?.iter().any(ready))
    }

    /// Whether anything is recorded of a pod.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn has(&self, pod_uid: &str) -> io::Result<bool> {
        record::of_pod(&self.root, pod_uid).map(|kept| !kept.is_empty())
    }

    /// The attachable volumes that pods of this node use, by the names that the node's status has for them.
    pub fn in_use(&self) -> Vec<String> {
        let kept = record::all(&self.root).into_iter().filter(|kept| !kept.record.attachment.is_empty());
        let mut names: Vec<String> = kept.map(|k| names::unique(&k.record.driver, &k.record.handle)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// How full a pod's volume is; none if the driver does not say, or the volume is not ready.
    ///
    /// # Errors
    /// The driver's refusal.
    pub async fn stats(
        &self,
        pod_uid: &str,
        name: &str,
        block: bool,
    ) -> Result<Option<csi::NodeGetVolumeStatsResponse>, String> {
        let record = record::read(&record::pod_file(&self.root, pod_uid, name, block)).map_err(|e| e.to_string())?;
        let Some(record) = record.filter(|record| record.phase_in(&self.boot) == Phase::Ready) else { return Ok(None) };
        let driver = self.drivers.get(&record.driver)?;
        let can = driver.capabilities().await.map_err(|status| words(&status))?;
        if !can.has(Can::GetVolumeStats) {
            return Ok(None);
        }
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: record.handle.clone(),
            volume_path: self.target(&record, pod_uid).display().to_string(),
            staging_target_path: String::new(),
        };
        driver.service.stats(request).await.map(Some).map_err(|status| words(&status))
    }
}

impl Work<'_> {
    /// Writes down how far the volume is.
    fn reach(&mut self, phase: Phase, boot: &str) -> Result<(), CsiError> {
        self.record.phase = phase;
        boot.clone_into(&mut self.record.boot);
        record::write(&self.file, &self.record).map_err(|error| failed(self.volume, SET_UP, error.to_string()))
    }
}

const SET_UP: &str = "MountVolume.SetUp";

fn failed(volume: &Volume, what: &'static str, message: String) -> CsiError {
    CsiError { what, volume: volume.name.clone(), message, retry: Duration::MAX, block: volume.block }
}

fn not_registered(volume: &Volume, error: &str) -> CsiError {
    let plugin = names::PLUGIN;
    let (what, text) = match (volume.lifecycle, volume.block) {
        (Lifecycle::Ephemeral, _) => (SET_UP, format!("{plugin}: mounter.SetUpAt failed to get CSI client: {error}")),
        (_, false) => (
            "MountVolume.MountDevice",
            format!("{plugin}: attacher.MountDevice failed to create newCsiDriverClient: {error}"),
        ),
        (_, true) => {
            ("MapVolume.SetUpDevice", format!("{plugin}: blockMapper.SetUpDevice failed to get CSI client: {error}"))
        }
    };
    CsiError { retry: UNREGISTERED_RETRY, ..failed(volume, what, text) }
}

fn group_policy(object: Option<&CSIDriver>) -> &str {
    object.and_then(|object| object.spec.fs_group_policy.as_deref()).unwrap_or("ReadWriteOnceWithFSType")
}

fn is_of(record: &Record, driver: &str, handle: &str) -> bool {
    record.driver == driver && record.handle == handle
}

/// Writes down that what a record tells of is about to be taken back: from now on it may be there or not.
fn doubt(file: &Path) -> io::Result<()> {
    match record::read(file)? {
        Some(record) if record.phase > Phase::Publishing => {
            record::write(file, &Record { phase: Phase::Publishing, ..record })
        }
        _ => Ok(()),
    }
}

/// Removes a folder or file that a driver may have left. What is still mounted stays, and is logged, as in stock.
#[expect(clippy::unnecessary_wraps, reason = "a step among others that fail")]
fn remove_mount_dir(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a driver left something where its volume was");
        }
        _ => {}
    }
    Ok(())
}

/// Does what may wait for a disk, without holding others up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
