//! Credential providers: programs that know how to log in to a registry (KEP-2133).
//!
//! Each is run with a request on its standard input and answers on its standard output; answers are kept for as long as
//! they say. Which images a provider is asked about is its configuration's `matchImages`. With `tokenAttributes`
//! (KEP-4412) it is told who the pod is by a token of the pod's service account, and answers hold for that account only.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::config::{ConfigError, from_yaml};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::io::AsyncWriteExt;

use super::keyring::{AccountRef, Credential, Login, Source, fitting};
use super::reference::matches;
use crate::config::GoDuration;
use crate::objects::{Objects, TokenRequest};
use crate::pod::spec;

const KIND: &str = "CredentialProviderConfig";
const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const PROTOCOLS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];
/// How long a provider may take, as in stock.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a token for a provider lives: what the API gives when nothing else is asked for, in seconds.
const TOKEN_SECONDS: i64 = 3600;
/// The longest answer taken.
const MAX_ANSWER: usize = 1 << 20;

/// Why credential providers cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be read or decoded.
    #[error(transparent)]
    Decode(#[from] ConfigError),
    /// It decodes but asks for what cannot be.
    #[error("{origin}: {message}")]
    Invalid {
        /// The file.
        origin: String,
        /// What is wrong with it.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Settings>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Settings {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<GoDuration>,
    api_version: String,
    args: Vec<String>,
    env: Vec<Variable>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TokenAttributes {
    service_account_token_audience: String,
    cache_type: String,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Vec<String>,
    optional_service_account_annotation_keys: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: BTreeMap<String, String>,
}

/// The pod's service account, as a provider with `tokenAttributes` is told it.
#[derive(Default)]
struct Account {
    token: String,
    annotations: BTreeMap<String, String>,
    reference: Option<AccountRef>,
}

impl Account {
    /// What an answer for this account holds for, in a cache of that type.
    fn key(&self, cache_type: &str) -> String {
        let Some(AccountRef { uid, namespace, name }) = &self.reference else { return String::new() };
        let token = if cache_type == "Token" { hex::encode(Sha256::digest(&self.token)) } else { String::new() };
        format!("{namespace}/{name}/{uid}/{:?}/{token}", self.annotations)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<GoDuration>,
    #[serde(default)]
    auth: BTreeMap<String, Login>,
}

type Logins = BTreeMap<String, Login>;

struct Provider {
    settings: Settings,
    program: PathBuf,
    /// Until when an answer holds, by what it holds for.
    kept: Mutex<HashMap<(String, String), (Instant, Logins)>>,
}

/// The credential providers of the node.
#[derive(Default)]
pub struct Providers(Vec<Provider>);

impl Providers {
    /// Reads `--image-credential-provider-config`, a file or a folder whose files are taken in the order of their names;
    /// the programs are in `programs`.
    ///
    /// # Errors
    /// A file cannot be read, is wrong, names a program that is not there, or a provider that another names as well.
    pub fn load(config: &Path, programs: &Path) -> Result<Self, Error> {
        let mut providers: Vec<Provider> = Vec::new();
        for file in config_files(config)? {
            for provider in load_file(&file, programs)? {
                let name = &provider.settings.name;
                if providers.iter().any(|known| known.settings.name == *name) {
                    let message = format!("provider {name:?}: duplicate provider name; each provider is named once");
                    return Err(Error::Invalid { origin: file.display().to_string(), message });
                }
                providers.push(provider);
            }
        }
        Ok(Self(providers))
    }

    /// What the providers know about a repository, for a pod.
    pub async fn credentials(&self, repository: &str, pod: &Pod, objects: &dyn Objects) -> Vec<Credential> {
        let mut found = Vec::new();
        for provider in self.0.iter().filter(|p| p.settings.match_images.iter().any(|glob| matches(glob, repository))) {
            match provider.credentials(repository, pod, objects).await {
                Ok(credentials) => found.extend(credentials),
                Err(error) => {
                    let (provider, pod) = (&provider.settings.name, spec::title(pod));
                    tracing::warn!(provider, pod, image = repository, error, "no credentials from a provider");
                }
            }
        }
        found
    }
}

/// The configuration's files: itself, or those in the folder that it is.
fn config_files(config: &Path) -> Result<Vec<PathBuf>, Error> {
    if !config.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let origin = config.display().to_string();
    let entries = std::fs::read_dir(config).map_err(|source| ConfigError::Read { path: origin.clone(), source })?;
    let named = |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(named).collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::Invalid {
            origin,
            message: "no configuration files (.json, .yaml, .yml) in this folder".into(),
        });
    }
    Ok(files)
}

fn load_file(config: &Path, programs: &Path) -> Result<Vec<Provider>, Error> {
    let origin = config.display().to_string();
    let text = std::fs::read_to_string(config).map_err(|source| ConfigError::Read { path: origin.clone(), source })?;
    let invalid = |message: String| Error::Invalid { origin: origin.clone(), message };
    let config: Config = from_yaml(&text, &origin)?;
    if config.kind != KIND || !VERSIONS.contains(&config.api_version.as_str()) {
        return Err(invalid(format!("{} {} is no {KIND} of {}", config.api_version, config.kind, VERSIONS[0])));
    }
    let provider = |settings: Settings| {
        let program = programs.join(&settings.name);
        check(&settings, &program).map_err(|text| invalid(format!("provider {:?}: {text}", settings.name)))?;
        Ok(Provider { settings, program, kept: Mutex::default() })
    };
    config.providers.into_iter().map(provider).collect()
}

fn check(settings: &Settings, program: &Path) -> Result<(), String> {
    let name = &settings.name;
    if name.is_empty() || name.contains('/') || name.contains(char::is_whitespace) || name == "." || name == ".." {
        return Err("name is required, and must be the name of a file".into());
    }
    if settings.match_images.is_empty() {
        return Err("matchImages is required".into());
    }
    if settings.default_cache_duration.is_none() {
        return Err("defaultCacheDuration is required".into());
    }
    if !PROTOCOLS.contains(&settings.api_version.as_str()) {
        return Err(format!("apiVersion {:?} must be one of {}", settings.api_version, PROTOCOLS.join(", ")));
    }
    if let Some(attributes) = &settings.token_attributes {
        check_token(settings, attributes).map_err(|text| format!("tokenAttributes{text}"))?;
    }
    if !program.is_file() {
        return Err(format!("plugin binary executable {} did not exist", program.display()));
    }
    Ok(())
}

fn check_token(settings: &Settings, attributes: &TokenAttributes) -> Result<(), String> {
    let (required, optional) =
        (&attributes.required_service_account_annotation_keys, &attributes.optional_service_account_annotation_keys);
    if settings.api_version != PROTOCOLS[0] {
        return Err(format!(" is only supported for {} API version", PROTOCOLS[0]));
    }
    if attributes.service_account_token_audience.is_empty() {
        return Err(".serviceAccountTokenAudience: Required value".into());
    }
    let Some(must) = attributes.require_service_account else {
        return Err(".requireServiceAccount: Required value".into());
    };
    if !must && !required.is_empty() {
        return Err(".requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when \
                    requiredServiceAccountAnnotationKeys is set"
            .into());
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = required.iter().chain(optional).find(|key| !seen.insert(*key)) {
        return Err(format!(": annotation key {twice:?} is listed more than once"));
    }
    match attributes.cache_type.as_str() {
        "ServiceAccount" | "Token" => Ok(()),
        "" => Err(".cacheType: Required value: Supported values are: ServiceAccount, Token".into()),
        other => Err(format!(".cacheType: Unsupported value: {other:?}: supported values: ServiceAccount, Token")),
    }
}

impl Provider {
    async fn credentials(&self, image: &str, pod: &Pod, objects: &dyn Objects) -> Result<Vec<Credential>, String> {
        let Some(account) = self.account(pod, objects).await? else { return Ok(Vec::new()) };
        let logins = self.logins(image, &account).await?;
        let source = account.reference.map_or(Source::Node, Source::ServiceAccount);
        let credential = |login| Credential { login, source: source.clone() };
        Ok(fitting(&logins, image).into_iter().map(credential).collect())
    }

    /// The pod's service account with a token, an empty one if the provider is to be asked without; none if it is not to
    /// be asked for this pod.
    async fn account(&self, pod: &Pod, objects: &dyn Objects) -> Result<Option<Account>, String> {
        let Some(attributes) = &self.settings.token_attributes else { return Ok(Some(Account::default())) };
        let name = spec::spec(pod).service_account_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            let asked = attributes.require_service_account == Some(false);
            return Ok(asked.then(Account::default));
        }
        let namespace = spec::namespace(pod);
        let found = objects.service_account(namespace, name).await?;
        let found = found.ok_or_else(|| format!("serviceaccount {namespace}/{name} not found"))?;
        let has = found.metadata.annotations.unwrap_or_default();
        let (required, optional) = (
            &attributes.required_service_account_annotation_keys,
            &attributes.optional_service_account_annotation_keys,
        );
        // An account without the annotation has not asked for it.
        if !required.iter().all(|key| has.contains_key(key)) {
            return Ok(None);
        }
        let annotations = required.iter().chain(optional);
        let annotations = annotations.filter_map(|key| Some((key.clone(), has.get(key)?.clone()))).collect();
        let request = TokenRequest {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            pod: spec::name(pod).to_owned(),
            pod_uid: spec::uid(pod).to_owned(),
            audience: Some(attributes.service_account_token_audience.clone()),
            seconds: TOKEN_SECONDS,
        };
        let token = objects.token(&request).await?.token;
        let uid = found.metadata.uid.unwrap_or_default();
        let reference = AccountRef { uid, namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(Some(Account { token, annotations, reference: Some(reference) }))
    }

    async fn logins(&self, image: &str, account: &Account) -> Result<Logins, String> {
        let registry = image.split('/').next().unwrap_or_default();
        let cache_type = self.settings.token_attributes.as_ref().map_or("", |attributes| &attributes.cache_type);
        let whose = account.key(cache_type);
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|_, (until, _)| *until > Instant::now());
            // As the answers' cacheKeyType says: for one image, for all of a registry, for all.
            let keys = [image, registry, ""].map(|key| (key.to_owned(), whose.clone()));
            if let Some((_, logins)) = keys.iter().find_map(|key| kept.get(key)) {
                return Ok(logins.clone());
            }
        }
        let response = self.ask(image, account).await?;
        let echoed = |login: &Login| !account.token.is_empty() && login.password == account.token;
        if cache_type != "Token" && response.auth.values().any(echoed) {
            return Err("the answer's password is the service account's token, which needs cacheType Token".into());
        }
        let key = match response.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => registry,
            "Global" => "",
            other => return Err(format!("cacheKeyType {other:?} is none of Image, Registry and Global")),
        };
        let duration = response.cache_duration.or(self.settings.default_cache_duration).unwrap_or_default();
        if !duration.is_zero() {
            let until = Instant::now() + duration.0;
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert((key.to_owned(), whose), (until, response.auth.clone()));
        }
        Ok(response.auth)
    }

    async fn ask(&self, image: &str, account: &Account) -> Result<Response, String> {
        let version = &self.settings.api_version;
        let request = Request {
            kind: "CredentialProviderRequest",
            api_version: version,
            image,
            service_account_token: &account.token,
            service_account_annotations: account.annotations.clone(),
        };
        let request = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(DEADLINE, self.run(&request)).await;
        let answer = answer.map_err(|_| format!("no answer in {} s", DEADLINE.as_secs()))??;
        let response: Response = serde_json::from_slice(&answer).map_err(|error| format!("the answer: {error}"))?;
        if response.kind != "CredentialProviderResponse" || response.api_version != *version {
            return Err(format!("the answer is a {} {}", response.api_version, response.kind));
        }
        Ok(response)
    }

    async fn run(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |error: std::io::Error| format!("run {}: {error}", self.program.display());
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.settings.args)
            .envs(self.settings.env.iter().map(|variable| (&variable.name, &variable.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read what it is asked may answer all the same.
            let _ = stdin.write_all(request).await;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: {}", output.status, words.trim().chars().take(1000).collect::<String>()));
        }
        if output.stdout.len() > MAX_ANSWER {
            return Err("the answer is too long".into());
        }
        Ok(output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use k8s_openapi::api::core::v1::ServiceAccount;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::images::reference::repository;
    use crate::objects::{NoObjects, Token};

    fn rig(folder: &Path, script: &str, duration: &str, more: &str) -> Result<Providers, Error> {
        let program = folder.join("login");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = folder.join("config.yaml");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: login\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [\"*.registry.io\"]\n  \
             defaultCacheDuration: {duration}\n  args: [\"--who\"]\n  env: [{{name: WORD, value: secret}}]\n{more}"
        );
        std::fs::write(&config, text).unwrap();
        Providers::load(&config, folder)
    }

    const ANSWER: &str = r#"cat > "$(dirname "$0")/asked"; echo >> "$(dirname "$0")/times"
echo "{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"cacheKeyType\":\"Registry\",
\"auth\":{\"*.registry.io\":{\"username\":\"$1\",\"password\":\"$WORD\"},\"other.io\":{}}}""#;

    /// One test, since a program that another thread is just writing cannot be run.
    #[tokio::test]
    async fn providers_are_asked() {
        is_asked_once_while_its_answer_holds().await;
        gives_nothing_when_it_fails().await;
        is_told_the_pods_service_account().await;
        may_be_configured_by_a_folder().await;
    }

    async fn is_asked_once_while_its_answer_holds() {
        let folder = tempfile::tempdir().unwrap();
        let providers = rig(folder.path(), ANSWER, "1h", "").unwrap();
        let ask = async |image: &str| providers.credentials(&repository(image), &Pod::default(), &NoObjects).await;
        let found = ask("eu.registry.io/a:1").await;
        assert_eq!((found.len(), &found[0].source), (1, &Source::Node));
        assert_eq!((found[0].login.username.as_str(), found[0].login.password.as_str()), ("--who", "secret"));
        let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
        assert!(asked.contains("\"image\":\"eu.registry.io/a\""), "{asked}");
        ask("eu.registry.io/b").await;
        assert!(ask("busybox").await.is_empty());
        let times = || std::fs::read_to_string(folder.path().join("times")).unwrap().lines().count();
        assert_eq!(times(), 1, "one answer for the registry");
        ask("us.registry.io/b").await;
        assert_eq!(times(), 2);
    }

    async fn gives_nothing_when_it_fails() {
        for script in ["exit 1", "echo {}"] {
            let folder = tempfile::tempdir().unwrap();
            let providers = rig(folder.path(), script, "0s", "").unwrap();
            assert!(providers.credentials("eu.registry.io/a", &Pod::default(), &NoObjects).await.is_empty());
            std::fs::remove_file(folder.path().join("login")).unwrap();
            let error = Providers::load(&folder.path().join("config.yaml"), folder.path()).err().unwrap().to_string();
            assert!(error.contains("login") && error.contains("did not exist"), "{error}");
        }
    }

    /// A service account with an annotation, and tokens for it.
    struct Accounts;

    #[async_trait::async_trait]
    impl Objects for Accounts {
        async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<ServiceAccount>, String> {
            let annotations = [("example.com/role".to_owned(), "puller".to_owned())].into();
            let (namespace, name) = (Some(namespace.into()), Some(name.into()));
            let uid = Some("sa-uid".to_owned());
            let metadata = ObjectMeta { namespace, name, uid, annotations: Some(annotations), ..Default::default() };
            Ok(Some(ServiceAccount { metadata, ..Default::default() }))
        }

        async fn token(&self, request: &TokenRequest) -> Result<Token, String> {
            let token = format!("{}-for-{}", request.service_account, request.audience.as_deref().unwrap_or_default());
            Ok(Token { token, expires: jiff::Timestamp::MAX })
        }
    }

    fn pod(account: &str) -> Pod {
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"serviceAccountName": account, "containers": []}});
        serde_json::from_value(pod).unwrap()
    }

    async fn is_told_the_pods_service_account() {
        let folder = tempfile::tempdir().unwrap();
        let attributes = |more: &str| {
            format!("  tokenAttributes: {{serviceAccountTokenAudience: reg, requireServiceAccount: true{more}}}\n")
        };
        let wanted = ", cacheType: ServiceAccount, requiredServiceAccountAnnotationKeys: [example.com/role]";
        let providers = rig(folder.path(), ANSWER, "1h", &attributes(wanted)).unwrap();
        let times = || std::fs::read_to_string(folder.path().join("times")).map_or(0, |text| text.lines().count());
        assert!(providers.credentials("eu.registry.io/a", &pod(""), &Accounts).await.is_empty());
        assert_eq!(times(), 0, "a pod without an account does not ask");
        let found = providers.credentials("eu.registry.io/a", &pod("sa"), &Accounts).await;
        let account = AccountRef { uid: "sa-uid".into(), namespace: "n".into(), name: "sa".into() };
        assert_eq!(found[0].source, Source::ServiceAccount(account));
        let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
        assert!(asked.contains(r#""serviceAccountToken":"sa-for-reg""#), "{asked}");
        assert!(asked.contains(r#""serviceAccountAnnotations":{"example.com/role":"puller"}"#), "{asked}");
        providers.credentials("eu.registry.io/a", &pod("sa"), &Accounts).await;
        providers.credentials("eu.registry.io/a", &pod("other"), &Accounts).await;
        assert_eq!(times(), 2, "an answer holds for its account");
        let other = ", cacheType: ServiceAccount, requiredServiceAccountAnnotationKeys: [example.com/none]";
        let providers = rig(folder.path(), ANSWER, "1h", &attributes(other)).unwrap();
        assert!(providers.credentials("eu.registry.io/a", &pod("sa"), &Accounts).await.is_empty());
        assert_eq!(times(), 2, "an account without the annotation does not ask");
        let error = rig(folder.path(), ANSWER, "1h", &attributes("")).err().unwrap().to_string();
        assert!(error.contains("tokenAttributes.cacheType: Required value"), "{error}");
    }

    async fn may_be_configured_by_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        rig(folder.path(), ANSWER, "1h", "").unwrap();
        let configs = folder.path().join("configs");
        std::fs::create_dir(&configs).unwrap();
        assert!(Providers::load(&configs, folder.path()).is_err(), "an empty folder");
        std::fs::rename(folder.path().join("config.yaml"), configs.join("a.yaml")).unwrap();
        assert_eq!(Providers::load(&configs, folder.path()).unwrap().0.len(), 1);
        std::fs::copy(configs.join("a.yaml"), configs.join("b.yml")).unwrap();
        let error = Providers::load(&configs, folder.path()).err().unwrap().to_string();
        assert!(error.contains("duplicate provider name") && error.contains("b.yml"), "{error}");
    }
}
