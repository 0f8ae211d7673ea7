//! Who may use an image that is already on the node (KEP-2535): records of what was pulled with whose login, kept in
//! stock's files, and the decision whether a pod has to show its own login first.
//!
//! `image_manager/pulling` holds an intent for each pull under way; `image_manager/pulled` a record for each image that
//! was pulled. An image without either was there before: it is preloaded.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keyring::{AccountRef, Credential, SecretRef, Source};
use super::reference::repository;

const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const VERSIONS: [&str; 2] = [VERSION, "kubelet.config.k8s.io/v1alpha1"];
/// So many secrets are remembered for an image only because they hold a login that is known already.
const MOST_SECRETS: usize = 100;

/// When a pod has to show that it may use an image that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// Never.
    Never,
    /// When a kubelet pulled it.
    #[default]
    NeverPreloaded,
    /// Unless the image, without tag and digest, is listed; an entry that ends in `/*` lists all below it.
    NeverListed(Vec<String>),
    /// Always.
    Always,
}

impl Verification {
    /// `imagePullCredentialsVerificationPolicy` with `preloadedImagesVerificationAllowlist`.
    pub fn of(policy: &str, listed: &[String]) -> Self {
        match policy {
            "NeverVerify" => Self::Never,
            "NeverVerifyAllowlistedImages" => Self::NeverListed(listed.to_vec()),
            "AlwaysVerify" => Self::Always,
            _ => Self::NeverPreloaded,
        }
    }

    /// Whether the image is to be verified.
    fn asks(&self, image: &str, pulled_by_kubelet: bool) -> bool {
        match self {
            Self::Never => false,
            Self::NeverPreloaded => pulled_by_kubelet,
            Self::Always => true,
            Self::NeverListed(listed) => {
                let name = repository(image);
                !listed.iter().any(|entry| match entry.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => *entry == name,
                })
            }
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

/// What is known of an image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    kind: String,
    api_version: String,
    last_updated_time: Timestamp,
    image_ref: String,
    /// By the image's name without tag and digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Access>,
}

/// Who may use an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Access {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<SecretRef>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<AccountRef>,
}

impl Access {
    /// What a pull with this login, or without one, proves.
    fn by(credential: Option<&Credential>) -> Self {
        match credential.map(|credential| &credential.source) {
            None | Some(Source::Node) => Self { node_pods_accessible: true, ..Self::default() },
            Some(Source::Secret(secret)) => Self { kubernetes_secrets: vec![secret.clone()], ..Self::default() },
            Some(Source::ServiceAccount(account)) => {
                Self { kubernetes_service_accounts: vec![account.clone()], ..Self::default() }
            }
        }
    }

    /// Adds what else is proven. A secret's newest login replaces its older one; once every pod may, no list is needed.
    fn merge(&mut self, new: Self) {
        if self.node_pods_accessible || new.node_pods_accessible {
            *self = Self { node_pods_accessible: true, ..Self::default() };
            return;
        }
        for secret in new.kubernetes_secrets {
            self.kubernetes_secrets.retain(|known| !same_secret(known, &secret));
            self.kubernetes_secrets.push(secret);
        }
        self.kubernetes_secrets.sort();
        self.kubernetes_service_accounts.extend(new.kubernetes_service_accounts);
        self.kubernetes_service_accounts.sort();
        self.kubernetes_service_accounts.dedup();
    }
}

fn same_secret(a: &SecretRef, b: &SecretRef) -> bool {
    (&a.uid, &a.namespace, &a.name) == (&b.uid, &b.namespace, &b.name)
}

/// Whether a pod may use an image, and what that teaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may. The secret, if there is one, proves it and is not in the record yet.
    Granted(Option<SecretRef>),
    /// It has to pull, to prove it.
    MustPull,
}

/// Decides for a pod that brings these logins, given the image's record and whether a kubelet pulled the image.
pub fn decide(
    verification: &Verification,
    image: &str,
    record: Option<&Record>,
    pulled_by_kubelet: bool,
    credentials: &[Credential],
) -> Verdict {
    if !verification.asks(image, pulled_by_kubelet) {
        return Verdict::Granted(None);
    }
    let Some(access) = record.and_then(|record| record.credential_mapping.get(&repository(image))) else {
        return Verdict::MustPull;
    };
    if access.node_pods_accessible {
        return Verdict::Granted(None);
    }
    let known = &access.kubernetes_secrets;
    for secret in credentials.iter().filter_map(|credential| match &credential.source {
        Source::Secret(secret) => Some(secret),
        _ => None,
    }) {
        let same_login = |k: &&SecretRef| !k.credential_hash.is_empty() && k.credential_hash == secret.credential_hash;
        let by_login = known.iter().find(same_login);
        // The same secret with another login counts as well: its owner may change the password.
        let Some(proof) = by_login.or_else(|| known.iter().find(|k| same_secret(k, secret))) else { continue };
        let news = *proof != *secret && known.len() < MOST_SECRETS;
        return Verdict::Granted(news.then(|| secret.clone()));
    }
    let account = credentials.iter().find_map(|credential| match &credential.source {
        Source::ServiceAccount(account) => Some(account),
        _ => None,
    });
    match account {
        Some(account) if access.kubernetes_service_accounts.contains(account) => Verdict::Granted(None),
        _ => Verdict::MustPull,
    }
}

/// The records on disk. One reader and writer at a time: they are small and rarely touched.
pub struct Records {
    pulling: PathBuf,
    pulled: PathBuf,
    verification: Verification,
    /// Pulls under way, by image.
    intents: Mutex<HashMap<String, usize>>,
}

impl Records {
    /// Opens the records of the kubelet whose folder is `root`.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn open(root: &Path, verification: Verification) -> io::Result<Self> {
        let (pulling, pulled) = (root.join("image_manager/pulling"), root.join("image_manager/pulled"));
        bosun_kit::files::create_dir(&pulling, 0o700)?;
        bosun_kit::files::create_dir(&pulled, 0o700)?;
        Ok(Self { pulling, pulled, verification, intents: Mutex::default() })
    }

    /// Turns intents that a killed kubelet left into records of images that are there: pulled, by whom is not known.
    /// `images` are the ids of the runtime's images with their tags and digests.
    pub fn recover<'a>(&self, images: impl Iterator<Item = (&'a str, Vec<&'a str>)>) {
        let mut left: HashSet<String> = HashSet::new();
        for path in files(&self.pulling) {
            match read::<Intent>(&path, "ImagePullIntent") {
                Ok(Some(intent)) => drop(left.insert(intent.image)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "an intent to pull an image is not readable"),
            }
        }
        for (id, names) in images {
            for name in names.into_iter().filter(|name| left.contains(*name)) {
                match self.note(name, id, None) {
                    Ok(()) => remove(&file(&self.pulling, name)),
                    Err(error) => tracing::warn!(%error, image = name, "an image's record was not written"),
                }
            }
        }
    }

    /// Notes that a pull begins, before it does.
    ///
    /// # Errors
    /// The note cannot be kept: the pull must not begin.
    pub fn begin(&self, image: &str) -> io::Result<()> {
        let mut intents = self.intents.lock().unwrap_or_else(PoisonError::into_inner);
        let intent = Intent { kind: "ImagePullIntent".into(), api_version: VERSION.into(), image: image.to_owned() };
        write(&file(&self.pulling, image), &intent)?;
        *intents.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Notes that a pull brought `reference`, with that login.
    pub fn succeeded(&self, image: &str, reference: &str, credential: Option<&Credential>) {
        // Without a record the intent stays: the image counts as pulled, and the next start tries again.
        match self.note(image, reference, Some(Access::by(credential))) {
            Ok(()) => self.failed(image),
            Err(error) => tracing::warn!(%error, image, "an image's record was not written"),
        }
    }

    /// Notes that a pull brought nothing.
    pub fn failed(&self, image: &str) {
        let mut intents = self.intents.lock().unwrap_or_else(PoisonError::into_inner);
        match intents.get_mut(image) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                remove(&file(&self.pulling, image));
                intents.remove(image);
            }
        }
    }

    /// Whether a pod that brings these logins has to pull an image that is there. Asks for the logins only if they matter.
    pub async fn must_pull<F>(&self, image: &str, reference: &str, credentials: impl FnOnce() -> F) -> bool
    where
        F: Future<Output = Vec<Credential>>,
    {
        let (record, pulled) = match self.known(image, reference) {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, image, "an image's record is not readable; the image is verified anew");
                return true;
            }
        };
        let first = decide(&self.verification, image, record.as_ref(), pulled, &[]);
        if first == Verdict::MustPull && record.is_some() {
            return match decide(&self.verification, image, record.as_ref(), pulled, &credentials().await) {
                Verdict::MustPull => true,
                Verdict::Granted(None) => false,
                Verdict::Granted(Some(secret)) => {
                    let access = Access { kubernetes_secrets: vec![secret], ..Access::default() };
                    if let Err(error) = self.note(image, reference, Some(access)) {
                        tracing::warn!(%error, image, "an image's record was not written");
                    }
                    false
                }
            };
        }
        first == Verdict::MustPull
    }

    /// Forgets images that are gone, unless their record is younger than `before`.
    pub fn prune(&self, present: &HashSet<String>, before: Timestamp) {
        for path in files(&self.pulled) {
            let gone = match read::<Record>(&path, "ImagePulledRecord") {
                Ok(Some(record)) => !present.contains(&record.image_ref) && record.last_updated_time < before,
                Ok(None) => false,
                Err(error) => {
                    tracing::warn!(%error, "an image's record is not readable");
                    false
                }
            };
            if gone {
                remove(&path);
            }
        }
    }

    /// How many intents and records there are.
    pub fn count(&self) -> (usize, usize) {
        (files(&self.pulling).count(), files(&self.pulled).count())
    }

    fn known(&self, image: &str, reference: &str) -> io::Result<(Option<Record>, bool)> {
        let intents = self.intents.lock().unwrap_or_else(PoisonError::into_inner);
        let record: Option<Record> = read(&file(&self.pulled, reference), "ImagePulledRecord")?;
        let record = record.filter(|record| record.image_ref == reference);
        let pulled = record.is_some() || intents.contains_key(image) || file(&self.pulling, image).exists();
        Ok((record, pulled))
    }

    /// Adds what is proven to the image's record; with nothing proven a record alone says that a kubelet pulled it.
    fn note(&self, image: &str, reference: &str, access: Option<Access>) -> io::Result<()> {
        let _one = self.intents.lock().unwrap_or_else(PoisonError::into_inner);
        let path = file(&self.pulled, reference);
        let known = read::<Record>(&path, "ImagePulledRecord").ok().flatten();
        let known = known.filter(|record| record.image_ref == reference);
        let mut record = known.clone().unwrap_or_else(|| Record {
            kind: "ImagePulledRecord".into(),
            api_version: VERSION.into(),
            last_updated_time: Timestamp::now(),
            image_ref: reference.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        if let Some(access) = access {
            record.credential_mapping.entry(repository(image)).or_default().merge(access);
        }
        if known.as_ref() == Some(&record) {
            return Ok(());
        }
        record.last_updated_time = Timestamp::now();
        VERSION.clone_into(&mut record.api_version);
        write(&path, &record)
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("sha256-{}", hex::encode(Sha256::digest(name))))
}

/// The records in a folder, without what is being written.
fn files(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("sha256-") && !name.ends_with(".tmp") && path.is_file()
    })
}

trait Kinded: for<'a> Deserialize<'a> {
    fn kind(&self) -> (&str, &str);
}

impl Kinded for Intent {
    fn kind(&self) -> (&str, &str) {
        (&self.kind, &self.api_version)
    }
}

impl Kinded for Record {
    fn kind(&self) -> (&str, &str) {
        (&self.kind, &self.api_version)
    }
}

fn read<T: Kinded>(path: &Path, kind: &str) -> io::Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io::Error::new(error.kind(), format!("read {}: {error}", path.display()))),
    };
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text}", path.display()));
    let found: T = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    match found.kind() {
        (k, version) if k == kind && VERSIONS.contains(&version) => Ok(Some(found)),
        (k, version) => Err(wrong(format!("is a {version} {k}, not a {kind}"))),
    }
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    bosun_kit::files::write_atomic(path, &serde_json::to_vec(value).map_err(io::Error::other)?, 0o600)
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a record of a pull was not removed");
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "pulled_tests.rs"]
mod tests;
