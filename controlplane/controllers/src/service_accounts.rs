//! What every namespace is born with: the service account `default` and the config map with the root CA.

use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::runtime::{Context, Controller, Key, SyncError, Synced, code};
use crate::watches::ROOT_CA_CONFIG_MAP;

const DEFAULT: &str = "default";
const DESCRIPTION: &str = "kubernetes.io/description";
const ABOUT_CA: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                        endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                        guaranteed across distributions of Kubernetes clusters.";

/// Whether things may still be created in the namespace.
fn is_open(namespaces: &Informer<Namespace>, name: &str) -> bool {
    namespaces.get(None, name).is_some_and(|n| n.metadata.deletion_timestamp.is_none())
}

fn in_namespace(meta_name: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta { name: Some(meta_name.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() }
}

/// Creates; that it exists already, or that the namespace is going, is fine.
async fn create<K>(client: &Client, object: &K) -> Result<(), SyncError>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    let namespace = object.meta().namespace.clone().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(code(&error), 404 | 409) || crate::pods::is_namespace_ending(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Routes changes of one well-known object per namespace to that namespace.
fn watch_copies<K>(controller: &mut Controller, copies: &Informer<K>, name: &'static str)
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    controller.watch(copies, move |delta, queue| {
        let meta = delta.object().meta();
        if meta.name.as_deref() == Some(name) {
            queue.add(Key::new("", meta.namespace.as_deref().unwrap_or_default()));
        }
    });
}

/// Keeps the service account `default` in every namespace.
pub(crate) fn start_service_accounts(context: &Context) {
    let mut controller = Controller::new(context, "service-account-controller");
    let (namespaces, accounts) = (context.watches.namespaces(), context.watches.service_accounts());
    controller.watch_own(&namespaces);
    controller.watch(&accounts, |delta, queue| {
        let meta = &delta.object().metadata;
        if matches!(delta, Delta::Deleted(_)) && meta.name.as_deref() == Some(DEFAULT) {
            queue.add(Key::new("", meta.namespace.as_deref().unwrap_or_default()));
        }
    });
    let client = controller.client.clone();
    controller.run(1, move |key| {
        let (namespaces, accounts, client) = (namespaces.clone(), accounts.clone(), client.clone());
        async move {
            if !is_open(&namespaces, &key.name) || accounts.get(Some(&key.name), DEFAULT).is_some() {
                return Ok(None);
            }
            let account = ServiceAccount { metadata: in_namespace(DEFAULT, &key.name), ..ServiceAccount::default() };
            create(&client, &account).await?;
            Ok(None)
        }
    });
}

/// Keeps the root CA in every namespace.
pub(crate) fn start_root_ca(context: &Context) {
    let Some(pem) = context.config.root_ca_pem.clone() else {
        tracing::info!("no root CA given: {ROOT_CA_CONFIG_MAP} is not published");
        return;
    };
    let mut controller = Controller::new(context, "root-ca-cert-publisher");
    let (namespaces, copies) = (context.watches.namespaces(), context.watches.root_ca_config_maps());
    controller.watch_own(&namespaces);
    watch_copies(&mut controller, &copies, ROOT_CA_CONFIG_MAP);
    let client = controller.client.clone();
    controller.run(1, move |key| {
        let (namespaces, copies, client, pem) = (namespaces.clone(), copies.clone(), client.clone(), pem.clone());
        async move { sync_root_ca(&namespaces, &copies, &client, pem, key).await }
    });
}

async fn sync_root_ca(
    namespaces: &Informer<Namespace>,
    copies: &Informer<ConfigMap>,
    client: &Client,
    pem: String,
    key: Key,
) -> Synced {
    if !is_open(namespaces, &key.name) {
        return Ok(None);
    }
    let data = [("ca.crt".to_owned(), pem)].into();
    match copies.get(Some(&key.name), ROOT_CA_CONFIG_MAP) {
        None => {
            let mut metadata = in_namespace(ROOT_CA_CONFIG_MAP, &key.name);
            metadata.annotations = Some([(DESCRIPTION.to_owned(), ABOUT_CA.to_owned())].into());
            create(client, &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await?;
        }
        Some(copy) if copy.data.as_ref() == Some(&data) => {}
        Some(copy) => {
            let mut copy = (*copy).clone();
            copy.data = Some(data);
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &key.name);
            api.replace(ROOT_CA_CONFIG_MAP, &PostParams::default(), &copy).await?;
        }
    }
    Ok(None)
}
