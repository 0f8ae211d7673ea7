//! The edge to the objects that pods refer to: configMaps, secrets, services, service-account tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest as ApiTokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::make::env;
use crate::pod::spec;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a list of services serves the pods that start together.
const SERVICES_AGE: Duration = Duration::from_secs(2);

/// For whom a token is asked.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Namespace of the service account and the pod.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: String,
    /// Its UID.
    pub pod_uid: String,
    /// The audience; none for the API server.
    pub audience: Option<String>,
    /// The life asked for.
    pub seconds: i64,
}

/// A token and its end.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub token: String,
    /// When it expires.
    pub expires: Timestamp,
}

/// Where objects that pods refer to come from. Errors are texts that go into events. What a source does not have, it says
/// by what is written here: there is no API server.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// A configMap; none if it is not there.
    async fn config_map(&self, _namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
        standalone("configmap", name)
    }
    /// A secret; none if it is not there.
    async fn secret(&self, _namespace: &str, name: &str) -> Result<Option<Secret>, String> {
        standalone("secret", name)
    }
    /// A service account; none if it is not there.
    async fn service_account(&self, _namespace: &str, name: &str) -> Result<Option<ServiceAccount>, String> {
        standalone("serviceaccount", name)
    }
    /// A claim; none if it is not there.
    async fn claim(&self, _namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, String> {
        standalone("persistentvolumeclaim", name)
    }
    /// A persistent volume; none if it is not there.
    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
        standalone("persistentvolume", name)
    }
    /// A bundle of trusted certificates; none if it is not there.
    async fn trust_bundle(&self, name: &str) -> Result<Option<ClusterTrustBundle>, String> {
        standalone("clustertrustbundle", name)
    }
    /// All bundles of a signer.
    async fn trust_bundles(&self, signer: &str) -> Result<Vec<ClusterTrustBundle>, String> {
        standalone("clustertrustbundles of signer", signer)
    }
    /// A runtime class; none if it is not there.
    async fn runtime_class(&self, name: &str) -> Result<Option<RuntimeClass>, String> {
        standalone("runtimeclass", name)
    }
    /// Services of the namespace and `kubernetes` of `default`.
    async fn services(&self, _namespace: &str) -> Result<Vec<Service>, String> {
        Ok(Vec::new())
    }
    /// A token for a pod's service account.
    async fn token(&self, request: &TokenRequest) -> Result<Token, String> {
        standalone("token of service account", &request.service_account)
    }
    /// Begins (or, with none, ends) to watch what the pod's volumes show; changes are told by the pod's UID.
    fn follow(&self, _uid: &str, _pod: Option<&Pod>) {}
}

fn standalone<T>(what: &str, name: &str) -> Result<T, String> {
    Err(format!("{what} {name:?}: this kubelet runs without an API server"))
}

/// No API server: static pods that refer to objects fail with a clear error.
pub struct NoObjects;

impl Objects for NoObjects {}

/// Objects from the API server: fetched when a pod needs them, and watched as long as a volume shows them.
pub struct ApiObjects {
    client: Client,
    followed: Mutex<Followed>,
    services: tokio::sync::Mutex<BTreeMap<String, (Instant, Vec<Service>)>>,
    changes: mpsc::UnboundedSender<String>,
}

/// What an object is known by: whether a secret, its namespace, its name.
type Key = (bool, String, String);

#[derive(Default)]
struct Followed {
    by_object: BTreeMap<Key, (BTreeSet<String>, AbortOnDropHandle<()>)>,
    by_pod: BTreeMap<String, BTreeSet<Key>>,
}

impl ApiObjects {
    /// Objects by `client`. Objects that changed are told to `changes`, for
    /// [`ApiObjects::followers`].
    pub fn new(client: Client, changes: mpsc::UnboundedSender<String>) -> Arc<Self> {
        Arc::new(Self { client, followed: Mutex::default(), services: tokio::sync::Mutex::default(), changes })
    }

    fn watch(&self, key: &Key) -> AbortOnDropHandle<()> {
        let (secret, namespace, name) = key.clone();
        let (client, changes) = (self.client.clone(), self.changes.clone());
        let key = key.clone();
        // What is sent names the object; who follows it is asked when it is taken out ([`ApiObjects::followers`]).
        let told = move |key: &Key| {
            let _ = changes.send(encode(key));
        };
        AbortOnDropHandle::new(tokio::spawn(async move {
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            let tell = |version: Option<String>, last: &mut Option<Option<String>>| {
                if last.as_ref().is_some_and(|known| *known != version) {
                    told(&key);
                }
                *last = Some(version);
            };
            let mut last: Option<Option<String>> = None;
            if secret {
                let api = Api::<Secret>::namespaced(client, &namespace);
                let mut stream = std::pin::pin!(watcher(api, config).default_backoff().touched_objects());
                while let Some(Ok(object)) = next_ok(&mut stream).await {
                    tell(object.metadata.resource_version, &mut last);
                }
            } else {
                let api = Api::<ConfigMap>::namespaced(client, &namespace);
                let mut stream = std::pin::pin!(watcher(api, config).default_backoff().touched_objects());
                while let Some(Ok(object)) = next_ok(&mut stream).await {
                    tell(object.metadata.resource_version, &mut last);
                }
            }
        }))
    }

    /// The UIDs of pods to refresh for a change told by the channel.
    pub fn followers(&self, told: &str) -> Vec<String> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = followed.by_object.iter().find(|(key, _)| encode(key) == told);
        found.map(|(_, (uids, _))| uids.iter().cloned().collect()).unwrap_or_default()
    }
}

fn encode((secret, namespace, name): &Key) -> String {
    format!("{secret}/{namespace}/{name}")
}

/// The next object, passing over errors of the watch (it backs off and goes on by itself).
async fn next_ok<S, T, E>(stream: &mut S) -> Option<Result<T, E>>
where
    S: futures::Stream<Item = Result<T, E>> + Unpin,
{
    loop {
        match stream.next().await {
            Some(Err(_)) => {}
            other => return other,
        }
    }
}

async fn get<T>(what: &str, answer: impl Future<Output = kube::Result<Option<T>>>) -> Result<Option<T>, String> {
    match timeout(DEADLINE, answer).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
        Ok(Err(error)) => Err(format!("get {what}: {error}")),
        Err(_) => Err(format!("get {what}: timed out after {} s", DEADLINE.as_secs())),
    }
}

#[async_trait]
impl Objects for ApiObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        get("configmap", api.get_opt(name)).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        get("secret", api.get_opt(name)).await
    }

    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<ServiceAccount>, String> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        get("serviceaccount", api.get_opt(name)).await
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, String> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        get("persistentvolumeclaim", api.get_opt(name)).await
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
        let api = Api::<PersistentVolume>::all(self.client.clone());
        get("persistentvolume", api.get_opt(name)).await
    }

    async fn trust_bundle(&self, name: &str) -> Result<Option<ClusterTrustBundle>, String> {
        get("clustertrustbundle", Api::<ClusterTrustBundle>::all(self.client.clone()).get_opt(name)).await
    }

    async fn trust_bundles(&self, signer: &str) -> Result<Vec<ClusterTrustBundle>, String> {
        let api = Api::<ClusterTrustBundle>::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.signerName={signer}"));
        let list = async { api.list(&params).await.map(|list| Some(list.items)) };
        Ok(get("clustertrustbundles", list).await?.unwrap_or_default())
    }

    async fn runtime_class(&self, name: &str) -> Result<Option<RuntimeClass>, String> {
        get("runtimeclass", Api::<RuntimeClass>::all(self.client.clone()).get_opt(name)).await
    }

    async fn services(&self, namespace: &str) -> Result<Vec<Service>, String> {
        // Held while asking, so that pods that start together ask once.
        let mut known = self.services.lock().await;
        known.retain(|_, (at, _)| at.elapsed() < SERVICES_AGE);
        if let Some((_, services)) = known.get(namespace) {
            return Ok(services.clone());
        }
        let list = async {
            let of = |namespace: &str| Api::<Service>::namespaced(self.client.clone(), namespace);
            let mut services = of(namespace).list(&ListParams::default()).await?.items;
            if namespace != "default" {
                services.extend(of("default").get_opt("kubernetes").await?);
            }
            Ok(Some(services))
        };
        let services = get("services", list).await?.unwrap_or_default();
        known.insert(namespace.to_owned(), (Instant::now(), services.clone()));
        Ok(services)
    }

    async fn token(&self, request: &TokenRequest) -> Result<Token, String> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &request.namespace);
        let body = ApiTokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: request.audience.clone().map(|a| vec![a]),
                expiration_seconds: Some(request.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(request.pod.clone()),
                    uid: Some(request.pod_uid.clone()),
                }),
            }),
            ..Default::default()
        };
        let params = PostParams::default();
        let answer = api.create_token_request(&request.service_account, &params, &body);
        let failed = |error: String| format!("failed to fetch token: {error}");
        let status = match timeout(DEADLINE, answer).await {
            Ok(Ok(answer)) => answer.status,
            Ok(Err(kube::Error::Api(status))) => return Err(failed(status.message.clone())),
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("timed out".to_owned())),
        };
        let status = status.unwrap_or_default();
        match (status.token, status.expiration_timestamp) {
            (Some(token), Some(expires)) => Ok(Token { token, expires: expires.0 }),
            _ => Err(failed("the answer holds no token".to_owned())),
        }
    }

    fn follow(&self, uid: &str, pod: Option<&Pod>) {
        let wanted = pod.map(shown_objects).unwrap_or_default();
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = followed.by_pod.remove(uid).unwrap_or_default();
        for key in known.difference(&wanted) {
            if let Some((uids, _)) = followed.by_object.get_mut(key) {
                uids.remove(uid);
                if uids.is_empty() {
                    followed.by_object.remove(key);
                }
            }
        }
        for key in wanted.difference(&known) {
            let entry = followed.by_object.entry(key.clone());
            entry.or_insert_with(|| (BTreeSet::new(), self.watch(key))).0.insert(uid.to_owned());
        }
        if !wanted.is_empty() {
            followed.by_pod.insert(uid.to_owned(), wanted);
        }
    }
}

/// The configMaps and secrets that the pod's volumes show.
fn shown_objects(pod: &Pod) -> BTreeSet<Key> {
    let namespace = spec::namespace(pod);
    let mut keys = BTreeSet::new();
    let mut add = |secret: bool, name: &str| keys.insert((secret, namespace.to_owned(), name.to_owned()));
    for volume in spec::spec(pod).volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(false, &source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
            add(true, name);
        }
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(source) = &part.config_map {
                add(false, &source.name);
            }
            if let Some(source) = &part.secret {
                add(true, &source.name);
            }
        }
    }
    keys
}

/// Everything that a container's environment refers to.
///
/// # Errors
/// An object could not be asked for. One that is not there is no error here.
pub async fn for_env(
    objects: &dyn Objects,
    pod: &Pod,
    container: &k8s_openapi::api::core::v1::Container,
) -> Result<env::EnvObjects, String> {
    let namespace = spec::namespace(pod);
    let (config_maps, secrets) = env::references(container);
    let maps = config_maps.iter().map(|name| objects.config_map(namespace, name));
    let secret_list = secrets.iter().map(|name| objects.secret(namespace, name));
    let (maps, secret_list, services) = futures::try_join!(
        futures::future::try_join_all(maps),
        futures::future::try_join_all(secret_list),
        objects.services(namespace)
    )?;
    Ok(env::EnvObjects {
        config_maps: config_maps.into_iter().zip(maps).collect(),
        secrets: secrets.into_iter().zip(secret_list).collect(),
        services,
        files: Default::default(),
    })
}
