//! Images: looked up by pull policy, pulled a bounded number at a time, one pull for all who wait for the same image,
//! with back-off after a failure. What is on the node is given to pods that may use it ([`pulled`]).

pub mod keyring;
pub mod providers;
pub mod pulled;
pub mod reference;
mod requests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::events::EventType;
use bosun_kit::rate::Limit;
use bosun_proto::cri;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use tokio::sync::{OnceCell, Semaphore};

use crate::cri::{CriError, CriErrorKind, Runtime};
use crate::make::security::ImageUser;
use crate::objects::Objects;
use crate::pod::plan::Failure;
use crate::pod::restart::{INITIAL, RestartDelay};
use crate::pod::spec;
use crate::report::Report;
use crate::startup::ImagePulls;
use keyring::Credential;
use providers::Providers;
use pulled::Records;
use reference::{repository, with_default_tag};
use requests::Requests;

const MAX_DELAY: Duration = Duration::from_secs(300);

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// What the runtime calls it.
    pub reference: String,
    /// Who it runs as.
    pub user: ImageUser,
}

/// An image that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The container that runs it; none if a volume shows it.
    pub container: Option<&'a str>,
    /// The image as written.
    pub image: &'a str,
    /// `Always`, `IfNotPresent` or `Never`.
    pub policy: &'a str,
}

impl<'a> Wanted<'a> {
    /// The image of a container.
    pub fn of(container: &'a Container) -> Self {
        let (image, policy) = (spec::image(container), spec::pull_policy(container));
        Self { container: Some(&container.name), image, policy }
    }

    /// The image that a volume shows.
    pub fn shown(source: &'a ImageVolumeSource) -> Self {
        let image = source.reference.as_deref().unwrap_or_default();
        Self { container: None, image, policy: spec::pull_policy_of(image, source.pull_policy.as_deref()) }
    }
}

type Pull = Shared<BoxFuture<'static, Result<String, CriError>>>;

/// The images of the node.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    objects: Arc<dyn Objects>,
    report: Report,
    providers: Providers,
    slots: Arc<Semaphore>,
    limit: Arc<Limit>,
    pulls: Mutex<HashMap<(String, String), Pull>>,
    failures: Mutex<HashMap<(String, String), Failed>>,
    records: Option<Arc<Records>>,
    requests: Requests,
    measured: ImagePulls,
}

/// The last failure of a pull: how long it is left alone, and what it said.
struct Failed {
    delay: RestartDelay,
    text: String,
}

impl Images {
    /// Images of `runtime`, at most `parallel` pulls at a time.
    pub fn new(runtime: Arc<dyn Runtime>, objects: Arc<dyn Objects>, report: Report, parallel: usize) -> Self {
        Self {
            runtime,
            objects,
            report,
            providers: Providers::default(),
            slots: Arc::new(Semaphore::new(parallel.max(1))),
            limit: Arc::new(Limit::none()),
            pulls: Mutex::default(),
            failures: Mutex::default(),
            records: None,
            requests: Requests::default(),
            measured: ImagePulls::default(),
        }
    }

    /// The same, with programs that know credentials.
    pub fn with_providers(self, providers: Providers) -> Self {
        Self { providers, ..self }
    }

    /// The same, with so many pulls a second. Stock refuses what is more; here it waits.
    pub fn with_limit(self, limit: Limit) -> Self {
        Self { limit: Arc::new(limit), ..self }
    }

    /// The same, with records of who may use what was pulled. Without, every pod may use every image of the node.
    pub fn with_records(self, records: Arc<Records>) -> Self {
        Self { requests: Requests::of(records.clone()), records: Some(records), ..self }
    }

    /// The records of who may use what was pulled.
    pub fn records(&self) -> Option<&Arc<Records>> {
        self.records.as_ref()
    }

    /// The pulls, as metrics.
    pub fn measured(&self) -> &ImagePulls {
        &self.measured
    }

    /// Shows pulls and requests in `metrics`.
    pub fn register(&self, metrics: &bosun_kit::metrics::Metrics) {
        self.measured.register(metrics);
        self.requests.register(metrics);
    }

    /// Makes sure that the image is there, as its pull policy wants.
    ///
    /// # Errors
    /// The reason and message for the status, and when to try again.
    pub async fn ensure(&self, pod: &Pod, wanted: Wanted<'_>) -> Result<Present, Failure> {
        let written = wanted.image;
        let event = |kind: EventType, reason: &str, message: String| self.tell(pod, wanted, kind, reason, message);
        let image = match with_default_tag(written) {
            Ok(image) => image,
            Err(error) => {
                let message = format!("Failed to apply default image tag {written:?}: {error}");
                event(EventType::Warning, "InspectFailed", message.clone());
                return Err(failure("InvalidImageName", message, MAX_DELAY));
            }
        };
        // With `Always` it does not matter whether it is there.
        let found = match wanted.policy {
            "Always" => None,
            _ => self.runtime.image_status(&image).await.map_err(|error| {
                let message = format!("Failed to inspect image {written:?}: {}", error.message);
                event(EventType::Warning, "InspectFailed", message.clone());
                failure("ImageInspectError", message, INITIAL)
            })?,
        };
        let credentials = OnceCell::new();
        let credentials = || async { credentials.get_or_init(|| self.credentials(pod, &image)).await.clone() };
        let present_locally = (wanted.policy != "Always").then_some(found.is_some());
        if let Some(found) = found {
            let must_pull = match &self.records {
                Some(records) => records.must_pull(&image, &found.id, credentials).await,
                None => false,
            };
            if !must_pull {
                let text =
                    format!("Container image {written:?} already present on machine and can be accessed by the pod");
                event(EventType::Normal, "Pulled", text);
                self.requests.ensured(wanted.policy, present_locally, Some(false));
                return Ok(present(found));
            }
        }
        self.requests.ensured(wanted.policy, present_locally, (wanted.policy != "Never").then_some(true));
        if wanted.policy == "Never" {
            let message = format!("Container image {written:?} is not present with pull policy of Never");
            event(EventType::Warning, "ErrImageNeverPull", message.clone());
            return Err(failure("ErrImageNeverPull", message, INITIAL));
        }
        self.pull(pod, wanted, &image, &credentials().await).await
    }

    /// Tells of the container, or of the pod if none is concerned.
    fn tell(&self, pod: &Pod, wanted: Wanted<'_>, kind: EventType, reason: &str, message: String) {
        match wanted.container {
            Some(container) => self.report.container(pod, container, kind, reason, message),
            None => self.report.pod(pod, kind, reason, message),
        }
    }

    async fn pull(
        &self,
        pod: &Pod,
        wanted: Wanted<'_>,
        image: &str,
        credentials: &[Credential],
    ) -> Result<Present, Failure> {
        let key = (spec::uid(pod).to_owned(), image.to_owned());
        let event = |kind: EventType, reason: &str, message: String| self.tell(pod, wanted, kind, reason, message);
        if let Some((until, text)) = self.held_back(&key) {
            let message = format!("Back-off pulling image {image:?}");
            event(EventType::Normal, "BackOff", message.clone());
            let message = format!("{message}: {text}");
            return Err(Failure { reason: "ImagePullBackOff".into(), message, retry: until });
        }
        event(EventType::Normal, "Pulling", format!("Pulling image {image:?}"));
        let (began, began_at) = (Instant::now(), Timestamp::now());
        match self.pull_as_any(image, credentials).await {
            Ok(reference) => {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                let found = self.runtime.image_status(image).await.ok().flatten();
                let size = found.as_ref().map_or(0, |image| image.size);
                self.measured.pulled(spec::uid(pod), began_at, Timestamp::now(), size);
                let took = crate::config::GoDuration(Duration::from_millis(began.elapsed().as_millis() as u64));
                event(
                    EventType::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes."
                    ),
                );
                let user = ImageUser::default();
                Ok(found.map_or(Present { reference, user }, present))
            }
            Err(error) => {
                event(EventType::Warning, "Failed", format!("Failed to pull image {image:?}: {}", error.message));
                let (reason, message) = pull_failure(image, &error.message);
                event(EventType::Warning, "Failed", format!("Error: {reason}"));
                let delay = self.fail(key, format!("{reason}: {message}"));
                Err(failure(reason, message, delay))
            }
        }
    }

    /// Pulls with each credential that fits, or with none; one pull serves all who ask for the same.
    async fn pull_as_any(&self, image: &str, credentials: &[Credential]) -> Result<String, CriError> {
        if credentials.is_empty() {
            return self.shared(image, None).await;
        }
        let mut last = None;
        for credential in credentials {
            match self.shared(image, Some(credential.clone())).await {
                Ok(reference) => return Ok(reference),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there is one credential at least"))
    }

    fn shared(&self, image: &str, credential: Option<Credential>) -> Pull {
        // Whose it is matters too: the record of the pull says who may use the image.
        let key = (image.to_owned(), format!("{credential:?}"));
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, pull| pull.peek().is_none());
        let start = || {
            let (runtime, slots, image) = (self.runtime.clone(), self.slots.clone(), image.to_owned());
            let (records, limit) = (self.records.clone(), self.limit.clone());
            // A task of its own: the pull goes on even if the first to ask goes away.
            let task = tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                limit.ready().await;
                recorded(&*runtime, records.as_deref(), &image, credential.as_ref()).await
            });
            let flat = task.map(|done| done.unwrap_or_else(|error| Err(interrupted(error))));
            flat.boxed().shared()
        };
        pulls.entry(key).or_insert_with(start).clone()
    }

    async fn credentials(&self, pod: &Pod, image: &str) -> Vec<Credential> {
        let (mut found, repository) = (Vec::new(), repository(image));
        for reference in spec::spec(pod).image_pull_secrets.iter().flatten() {
            match self.objects.secret(spec::namespace(pod), &reference.name).await {
                Ok(Some(secret)) => found.extend(keyring::of_secret(&secret, &repository)),
                Ok(None) | Err(_) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.report.pod(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
                }
            }
        }
        found.extend(self.providers.credentials(&repository, pod, &*self.objects).await);
        found
    }

    /// Until when a pull that failed is left alone, and what it said.
    fn held_back(&self, key: &(String, String)) -> Option<(Timestamp, String)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Failed { delay, text } = failures.get(key)?;
        let until = delay.updated.checked_add(delay.delay).ok().filter(|until| *until > Timestamp::now())?;
        Some((until, text.clone()))
    }

    fn fail(&self, key: (String, String), text: String) -> Duration {
        let now = Timestamp::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = RestartDelay::next(failures.get(&key).map(|failed| &failed.delay), now, now, MAX_DELAY);
        failures.insert(key, Failed { delay, text });
        delay.delay
    }

    /// Forgets the back-off of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.measured.forget(uid);
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pod, _), _| pod != uid);
    }
}

/// One pull, with its record written before and after.
async fn recorded(
    runtime: &dyn Runtime,
    records: Option<&Records>,
    image: &str,
    credential: Option<&Credential>,
) -> Result<String, CriError> {
    if let Some(records) = records {
        records.begin(image).map_err(|error| {
            let message = format!("Failed to record image pull intent for container image {image:?}: {error}");
            CriError { call: "PullImage", kind: CriErrorKind::Other, message }
        })?;
    }
    let pulled = runtime.pull_image(image, credential.map(Credential::auth), None).await;
    match (records, &pulled) {
        (Some(records), Ok(reference)) => records.succeeded(image, reference, credential),
        (Some(records), Err(_)) => records.failed(image),
        (None, _) => {}
    }
    pulled
}

fn interrupted(error: tokio::task::JoinError) -> CriError {
    CriError { call: "PullImage", kind: CriErrorKind::Other, message: format!("the pull was interrupted: {error}") }
}

/// The reason and message for the status. Runtimes begin their message with a name for two failures that a user can tell
/// apart by it (cri-api `pkg/errors`).
fn pull_failure(image: &str, text: &str) -> (&'static str, String) {
    for (reason, cause) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = text.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {cause}{rest}"));
        }
    }
    ("ErrImagePull", text.to_owned())
}

fn failure(reason: &str, message: String, delay: Duration) -> Failure {
    let retry = Timestamp::now() + delay;
    Failure { reason: reason.to_owned(), message, retry }
}

fn present(image: cri::Image) -> Present {
    let user = ImageUser { uid: image.uid.map(|uid| uid.value), name: image.username };
    Present { reference: image.id, user }
}
