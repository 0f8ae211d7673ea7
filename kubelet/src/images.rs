//! Images: looked up by pull policy, pulled a bounded number at a time, one pull for all who wait for the same image,
//! with back-off after a failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bosun_kit::events::EventType;
use bosun_proto::cri;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod, Secret};
use tokio::sync::Semaphore;

use crate::credentials::Providers;
use crate::cri::{CriError, Runtime};
use crate::make::security::ImageUser;
use crate::objects::Objects;
use crate::pod::plan::Failure;
use crate::pod::restart::{INITIAL, RestartDelay};
use crate::pod::spec;
use crate::report::Report;
use crate::startup::ImagePulls;

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
    pulls: Mutex<HashMap<(String, String), Pull>>,
    delays: Mutex<HashMap<(String, String), RestartDelay>>,
    measured: ImagePulls,
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
            pulls: Mutex::default(),
            delays: Mutex::default(),
            measured: ImagePulls::default(),
        }
    }

    /// The same, with programs that know credentials.
    pub fn with_providers(self, providers: Providers) -> Self {
        Self { providers, ..self }
    }

    /// The pulls, as metrics.
    pub fn measured(&self) -> &ImagePulls {
        &self.measured
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
        let found = self.runtime.image_status(&image).await.map_err(|error| {
            let message = format!("Failed to inspect image {written:?}: {}", error.message);
            event(EventType::Warning, "InspectFailed", message.clone());
            failure("ImageInspectError", message, INITIAL)
        })?;
        match (wanted.policy, found) {
            ("Never", None) => {
                let message = format!("Container image {written:?} is not present with pull policy of Never");
                event(EventType::Warning, "ErrImageNeverPull", message.clone());
                Err(failure("ErrImageNeverPull", message, INITIAL))
            }
            ("Never" | "IfNotPresent", Some(found)) => {
                event(
                    EventType::Normal,
                    "Pulled",
                    format!("Container image {written:?} already present on machine and can be accessed by the pod"),
                );
                Ok(present(found))
            }
            _ => self.pull(pod, wanted, &image).await,
        }
    }

    /// Tells of the container, or of the pod if none is concerned.
    fn tell(&self, pod: &Pod, wanted: Wanted<'_>, kind: EventType, reason: &str, message: String) {
        match wanted.container {
            Some(container) => self.report.container(pod, container, kind, reason, message),
            None => self.report.pod(pod, kind, reason, message),
        }
    }

    async fn pull(&self, pod: &Pod, wanted: Wanted<'_>, image: &str) -> Result<Present, Failure> {
        let written = wanted.image;
        let key = (spec::uid(pod).to_owned(), image.to_owned());
        let event = |kind: EventType, reason: &str, message: String| self.tell(pod, wanted, kind, reason, message);
        if let Some(delay) = self.delay(&key)
            && let Ok(until) = delay.updated.checked_add(delay.delay)
            && until > Timestamp::now()
        {
            let message = format!("Back-off pulling image {written:?}");
            event(EventType::Normal, "BackOff", message.clone());
            return Err(Failure { reason: "ImagePullBackOff".into(), message, retry: until });
        }
        event(EventType::Normal, "Pulling", format!("Pulling image {written:?}"));
        let (began, began_at) = (Instant::now(), Timestamp::now());
        match self.pull_as_any(pod, image).await {
            Ok(reference) => {
                self.delays.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                let found = self.runtime.image_status(image).await.ok().flatten();
                let size = found.as_ref().map_or(0, |image| image.size);
                self.measured.pulled(spec::uid(pod), began_at, Timestamp::now(), size);
                let took = crate::config::GoDuration(Duration::from_millis(began.elapsed().as_millis() as u64));
                event(
                    EventType::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image {written:?} in {took} ({took} including waiting). Image size: {size} bytes."
                    ),
                );
                let user = ImageUser::default();
                Ok(found.map_or(Present { reference, user }, present))
            }
            Err(error) => {
                event(EventType::Warning, "Failed", format!("Failed to pull image {written:?}: {}", error.message));
                event(EventType::Warning, "Failed", "Error: ErrImagePull".into());
                let delay = self.fail(key);
                Err(failure("ErrImagePull", error.message, delay))
            }
        }
    }

    /// Pulls with each credential that fits, then without; one pull serves all who ask for the same.
    async fn pull_as_any(&self, pod: &Pod, image: &str) -> Result<String, CriError> {
        let mut last = None;
        for auth in self.credentials(pod, image).await.into_iter().map(Some).chain([None]) {
            if last.is_some() && auth.is_none() {
                break;
            }
            match self.shared(image, auth).await {
                Ok(reference) => return Ok(reference),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("the loop runs once at least"))
    }

    fn shared(&self, image: &str, auth: Option<cri::AuthConfig>) -> Pull {
        let who = auth.as_ref().map(|a| format!("{}:{}:{}", a.username, a.auth, a.server_address)).unwrap_or_default();
        let key = (image.to_owned(), who);
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, pull| pull.peek().is_none());
        let start = || {
            let (runtime, slots, image) = (self.runtime.clone(), self.slots.clone(), image.to_owned());
            // A task of its own: the pull goes on even if the first to ask goes away.
            let task = tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                runtime.pull_image(&image, auth, None).await
            });
            let flat = task.map(|done| {
                done.unwrap_or_else(|error| {
                    let kind = crate::cri::CriErrorKind::Other;
                    Err(CriError { call: "PullImage", kind, message: format!("the pull was interrupted: {error}") })
                })
            });
            flat.boxed().shared()
        };
        pulls.entry(key).or_insert_with(start).clone()
    }

    async fn credentials(&self, pod: &Pod, image: &str) -> Vec<cri::AuthConfig> {
        let mut found = Vec::new();
        for reference in spec::spec(pod).image_pull_secrets.iter().flatten() {
            match self.objects.secret(spec::namespace(pod), &reference.name).await {
                Ok(Some(secret)) => found.extend(from_secret(&secret, image)),
                Ok(None) | Err(_) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.report.pod(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
                }
            }
        }
        found.extend(self.providers.credentials(image).await);
        found
    }

    fn delay(&self, key: &(String, String)) -> Option<RestartDelay> {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn fail(&self, key: (String, String)) -> Duration {
        let now = Timestamp::now();
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        let next = RestartDelay::next(delays.get(&key), now, now, MAX_DELAY);
        delays.insert(key, next);
        next.delay
    }

    /// Forgets the back-off of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.measured.forget(uid);
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pod, _), _| pod != uid);
    }
}

fn failure(reason: &str, message: String, delay: Duration) -> Failure {
    let retry = Timestamp::now() + delay;
    Failure { reason: reason.to_owned(), message, retry }
}

fn present(image: cri::Image) -> Present {
    let user = ImageUser { uid: image.uid.map(|uid| uid.value), name: image.username };
    Present { reference: image.id, user }
}

/// The image with `:latest` if it has neither tag nor digest.
///
/// # Errors
/// The text is no image reference.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let invalid = || format!("couldn't parse image name {image:?}: invalid reference format");
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let after_host = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[after_host..].split_once(':') {
        Some((last, tag)) => (&name[..after_host + last.len()], Some(tag)),
        None => (name, None),
    };
    let part = |text: &str| {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        text.starts_with(fine) && text.ends_with(fine) && text.chars().all(|c| fine(c) || "._-".contains(c))
    };
    let host = |text: &str| {
        text.split(':')
            .next()
            .is_some_and(|h| !h.is_empty() && h.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)))
    };
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let first_fine = part(first) || (!rest.is_empty() && host(first));
    let tag_fine = tag.is_none_or(|tag| {
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    });
    let digest_fine = digest.is_none_or(|d| d.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32));
    if !first_fine || !rest.iter().all(|p| part(p)) || !tag_fine || !digest_fine {
        return Err(invalid());
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// The registry of an image: the part before the first slash if it looks like a host.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Credentials of a docker configuration secret that fit the image.
fn from_secret(secret: &Secret, image: &str) -> Vec<cri::AuthConfig> {
    let data = secret.data.as_ref();
    let read = |key: &str| data.and_then(|d| d.get(key)).and_then(|v| serde_json::from_slice(&v.0).ok());
    let entries: serde_json::Value = match (read(".dockerconfigjson"), read(".dockercfg")) {
        (Some(config @ serde_json::Value::Object(_)), _) => config["auths"].clone(),
        (_, Some(config)) => config,
        _ => return Vec::new(),
    };
    let wanted = registry(image);
    let entries = entries.as_object().cloned().unwrap_or_default();
    let fits = |server: &str| {
        let host = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        host == wanted || (wanted == "docker.io" && host.ends_with("docker.io"))
    };
    entries.iter().filter(|(server, _)| fits(server)).map(|(server, entry)| auth_config(server, entry)).collect()
}

fn auth_config(server: &str, entry: &serde_json::Value) -> cri::AuthConfig {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let joined = STANDARD.decode(text("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, password) = match joined.as_deref().and_then(|joined| joined.split_once(':')) {
        Some((user, password)) => (user.to_owned(), password.to_owned()),
        None => (text("username"), text("password")),
    };
    cri::AuthConfig {
        username: user,
        password,
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        server_address: server.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_gets_a_tag_or_is_refused() {
        for (given, wanted) in [
            ("busybox", Ok("busybox:latest")),
            ("reg:5000/a/b", Ok("reg:5000/a/b:latest")),
            ("a/b:1", Ok("a/b:1")),
            ("Nope", Err(())),
            ("a//b", Err(())),
            ("a:b:c", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(with_default_tag(given).as_deref().map_err(|_| ()), wanted, "{given}");
        }
        assert_eq!(registry("busybox"), "docker.io");
        assert_eq!(registry("localhost/a"), "localhost");
    }

    #[test]
    fn credentials_are_those_of_the_registry() {
        let config = serde_json::json!({"auths": {"reg:5000": {"auth": STANDARD.encode("me:word")}, "other.io": {}}});
        let data = [(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(config.to_string().into_bytes()))];
        let secret = Secret { data: Some(data.into()), ..Default::default() };
        let found = from_secret(&secret, "reg:5000/a:1");
        assert_eq!((found.len(), found[0].username.as_str(), found[0].password.as_str()), (1, "me", "word"));
    }
}
