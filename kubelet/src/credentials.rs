//! Credential providers: programs that know how to log in to a registry (KEP-2133).
//!
//! Each is run with a request on its standard input and answers on its standard output; answers are kept for as long as
//! they say. Which images a provider is asked about is its configuration's `matchImages`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::config::{ConfigError, from_yaml};
use bosun_proto::cri;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::AsyncWriteExt;

use crate::config::GoDuration;

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
    token_attributes: Option<serde_json::Value>,
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

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Login {
    username: String,
    password: String,
}

type Logins = BTreeMap<String, Login>;

struct Provider {
    settings: Settings,
    program: PathBuf,
    /// Until when an answer holds, by what it holds for.
    kept: Mutex<HashMap<String, (Instant, Logins)>>,
}

/// The credential providers of the node.
#[derive(Default)]
pub struct Providers(Vec<Provider>);

impl Providers {
    /// Reads `--image-credential-provider-config`; the programs are in `programs`.
    ///
    /// # Errors
    /// The file cannot be read, is wrong, or names a program that is not there.
    pub fn load(config: &Path, programs: &Path) -> Result<Self, Error> {
        let origin = config.display().to_string();
        let text =
            std::fs::read_to_string(config).map_err(|source| ConfigError::Read { path: origin.clone(), source })?;
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
        config.providers.into_iter().map(provider).collect::<Result<_, Error>>().map(Self)
    }

    /// What the providers know about an image, given with or without a tag.
    pub async fn credentials(&self, image: &str) -> Vec<cri::AuthConfig> {
        let image = repository(image);
        let mut found = Vec::new();
        for provider in self.0.iter().filter(|p| p.settings.match_images.iter().any(|glob| matches(glob, &image))) {
            match provider.logins(&image).await {
                // The last in order goes first, so that a pattern goes before those that are its beginning.
                Ok(logins) => {
                    let fitting = logins.into_iter().rev().filter(|(glob, _)| matches(glob, &image));
                    found.extend(fitting.map(|(server, login)| auth(&server, login)));
                }
                Err(error) => {
                    tracing::warn!(provider = provider.settings.name, image, error, "no credentials from a provider");
                }
            }
        }
        found
    }
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
    if settings.token_attributes.is_some() {
        return Err("tokenAttributes are not supported by this kubelet".into());
    }
    if !program.is_file() {
        return Err(format!("plugin binary executable {} did not exist", program.display()));
    }
    Ok(())
}

fn auth(server: &str, login: Login) -> cri::AuthConfig {
    let (username, password) = (login.username, login.password);
    cri::AuthConfig { username, password, server_address: server.to_owned(), ..Default::default() }
}

impl Provider {
    async fn logins(&self, image: &str) -> Result<Logins, String> {
        let registry = image.split('/').next().unwrap_or_default();
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|_, (until, _)| *until > Instant::now());
            // As the answers' cacheKeyType says: for one image, for all of a registry, for all.
            if let Some((_, logins)) = [image, registry, ""].iter().find_map(|key| kept.get(*key)) {
                return Ok(logins.clone());
            }
        }
        let response = self.ask(image).await?;
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
            kept.insert(key.to_owned(), (until, response.auth.clone()));
        }
        Ok(response.auth)
    }

    async fn ask(&self, image: &str) -> Result<Response, String> {
        let version = &self.settings.api_version;
        let request = Request { kind: "CredentialProviderRequest", api_version: version, image };
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

/// The image's full name without tag and digest: `docker.io/library/busybox`.
fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let after_host = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[after_host..].find(':').map_or(name.len(), |at| after_host + at);
    let name = &name[..end];
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// Whether a pattern such as `*.registry.io:8080/path` fits an image: the same number of labels in the host, each fitting
/// its glob, the same port, and the pattern's path before the image's.
fn matches(pattern: &str, image: &str) -> bool {
    let bare = |text: &str| {
        let text = text.trim_start_matches("https://").trim_start_matches("http://");
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        (name.to_owned(), port.to_owned(), path.to_owned())
    };
    let ((host, port, path), (image_host, image_port, image_path)) = (bare(pattern), bare(image));
    let (globs, labels): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), image_host.split('.').collect());
    port == image_port
        && globs.len() == labels.len()
        && image_path.starts_with(&path)
        && globs.iter().zip(labels).all(|(glob, label)| glob_fits(glob.as_bytes(), label.as_bytes()))
}

fn glob_fits(glob: &[u8], text: &[u8]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skip| glob_fits(rest, &text[skip..])),
        (Some((b'?', glob)), Some((_, text))) => glob_fits(glob, text),
        (Some((want, glob)), Some((have, text))) => want == have && glob_fits(glob, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn patterns_fit_as_in_stock() {
        for (pattern, image, fits) in [
            ("registry.io", "registry.io/a/b", true),
            ("*.registry.io", "eu.registry.io/a", true),
            ("*.registry.io", "registry.io/a", false),
            ("*.registry.io", "a.b.registry.io/x", false),
            ("*.dkr.*.aws.com", "12.dkr.eu-1.aws.com/x", true),
            ("registry.io:8080/path", "registry.io:8080/path/x", true),
            ("registry.io:8080", "registry.io/x", false),
            ("registry.io/other", "registry.io/path", false),
        ] {
            assert_eq!(matches(pattern, image), fits, "{pattern} {image}");
        }
        assert_eq!(repository("busybox:1"), "docker.io/library/busybox");
        assert_eq!(repository("a/b@sha256:00"), "docker.io/a/b");
        assert_eq!(repository("reg:5000/a:1"), "reg:5000/a");
    }

    fn rig(folder: &Path, script: &str, duration: &str) -> Result<Providers, Error> {
        let program = folder.join("login");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = folder.join("config.yaml");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: login\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [\"*.registry.io\"]\n  \
             defaultCacheDuration: {duration}\n  args: [\"--who\"]\n  env: [{{name: WORD, value: secret}}]\n"
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
    }

    async fn is_asked_once_while_its_answer_holds() {
        let folder = tempfile::tempdir().unwrap();
        let providers = rig(folder.path(), ANSWER, "1h").unwrap();
        let found = providers.credentials("eu.registry.io/a:1").await;
        assert_eq!((found.len(), found[0].username.as_str(), found[0].password.as_str()), (1, "--who", "secret"));
        let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
        assert!(asked.contains("\"image\":\"eu.registry.io/a\""), "{asked}");
        providers.credentials("eu.registry.io/b").await;
        assert!(providers.credentials("busybox").await.is_empty());
        let times = || std::fs::read_to_string(folder.path().join("times")).unwrap().lines().count();
        assert_eq!(times(), 1, "one answer for the registry");
        providers.credentials("us.registry.io/b").await;
        assert_eq!(times(), 2);
    }

    async fn gives_nothing_when_it_fails() {
        let folder = tempfile::tempdir().unwrap();
        assert!(rig(folder.path(), "exit 1", "0s").unwrap().credentials("eu.registry.io/a").await.is_empty());
        assert!(rig(folder.path(), "echo {}", "0s").unwrap().credentials("eu.registry.io/a").await.is_empty());
        std::fs::remove_file(folder.path().join("login")).unwrap();
        let error = Providers::load(&folder.path().join("config.yaml"), folder.path()).err().unwrap().to_string();
        assert!(error.contains("login") && error.contains("did not exist"), "{error}");
    }
}
