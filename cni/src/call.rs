//! One call of a plugin: the environment and the network configuration, validated as the specification says.

use crate::{Code, Error, result::CniResult};
use serde::Deserialize;
use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
};

/// The specification versions whose configurations are taken and whose results are written.
pub const SUPPORTED_VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a configuration without `cniVersion` is taken for.
const UNVERSIONED: &str = "0.1.0";

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The first version that has the command.
    fn since(self) -> &'static str {
        match self {
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
            _ => "0.1.0",
        }
    }
}

/// The `CNI_*` variables.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`, empty where the command has none.
    pub container_id: String,
    /// `CNI_NETNS`; DEL may come without.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`, split at `;` and `=`.
    pub args: Vec<(String, String)>,
    /// `CNI_PATH`: where plugins we delegate to are looked for.
    pub path: String,
}

impl Environment {
    /// Reads this process's environment.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`] naming each variable that is missing or malformed.
    pub fn from_process() -> Result<Self, Error> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads the variables from `lookup`.
    ///
    /// # Errors
    /// As [`Environment::from_process`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| lookup(name).unwrap_or_default();
        let word = get("CNI_COMMAND");
        let command = Command::parse(&word).ok_or_else(|| invalid(format!("unknown CNI_COMMAND: {word:?}")))?;
        let environment = Self {
            command,
            container_id: get("CNI_CONTAINERID"),
            netns: Some(get("CNI_NETNS")).filter(|path| !path.is_empty()).map(PathBuf::from),
            ifname: get("CNI_IFNAME"),
            args: split_args(&get("CNI_ARGS")),
            path: get("CNI_PATH"),
        };
        environment.validate()?;
        Ok(environment)
    }

    fn validate(&self) -> Result<(), Error> {
        let attachment = matches!(self.command, Command::Add | Command::Del | Command::Check);
        let needed = [
            ("CNI_CONTAINERID", attachment, !self.container_id.is_empty()),
            ("CNI_NETNS", attachment && self.command != Command::Del, self.netns.is_some()),
            ("CNI_IFNAME", attachment, !self.ifname.is_empty()),
            ("CNI_PATH", self.command != Command::Version, !self.path.is_empty()),
        ];
        let missing: Vec<_> =
            needed.iter().filter(|(_, needed, present)| *needed && !present).map(|(name, ..)| *name).collect();
        if !missing.is_empty() {
            return Err(invalid(format!("required env variables [{}] missing", missing.join(","))));
        }
        if attachment && !is_identifier(&self.container_id) {
            return Err(invalid(format!("invalid characters in containerID {:?}", self.container_id)));
        }
        if attachment && !is_interface_name(&self.ifname) {
            return Err(invalid(format!("CNI_IFNAME {:?} is no valid interface name", self.ifname)));
        }
        Ok(())
    }

    /// The value of `key` in `CNI_ARGS`, whatever its letters' case.
    #[must_use]
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.as_str())
    }
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidEnvironment, message)
}

fn split_args(text: &str) -> Vec<(String, String)> {
    text.split(';')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// Container identifiers and network names: a letter or digit, then also `_`, `.` and `-`.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_interface_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.len() < libc::IFNAMSIZ
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

/// One attachment: a container and the interface in it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// The container's (sandbox's) identifier.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// The keys every plugin's configuration has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetConf {
    /// `cniVersion`.
    pub cni_version: String,
    /// The network's name.
    pub name: String,
    /// The plugin's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which plugin gives the addresses.
    pub ipam: Ipam,
    /// Name service settings to hand to the container.
    pub dns: crate::result::Dns,
    /// GC: what exists.
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// The head of the `ipam` object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// The IPAM plugin; empty for none.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Environment and configuration of one command.
#[derive(Clone, Debug)]
pub struct Call {
    /// The `CNI_*` variables.
    pub environment: Environment,
    /// The keys all plugins share.
    pub conf: NetConf,
    /// The configuration as it came.
    pub input: Vec<u8>,
    /// What the plugin before this one in the list, or ADD, answered.
    pub prev_result: Option<CniResult>,
}

impl Call {
    /// Validates the configuration for the command.
    ///
    /// # Errors
    /// What is wrong with configuration or environment, with the specification's code.
    pub fn new(environment: Environment, input: &[u8]) -> Result<Self, Error> {
        let mut conf: NetConf = decode(input)?;
        if conf.cni_version.is_empty() {
            conf.cni_version = UNVERSIONED.to_owned();
        }
        check_version(&conf.cni_version, environment.command)?;
        if conf.name.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "missing network name"));
        }
        if !is_identifier(&conf.name) {
            return Err(Error::new(Code::InvalidConfig, format!("invalid characters in network name {:?}", conf.name)));
        }
        let prev_result = prev_result(input, &conf.cni_version)?;
        Ok(Self { environment, conf, input: input.to_vec(), prev_result })
    }

    /// The configuration as the plugin's own type.
    ///
    /// # Errors
    /// [`Code::Decode`] with the place in the text.
    pub fn config<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        decode(&self.input)
    }

    /// The attachment the command is about.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.environment.container_id.clone(), ifname: self.environment.ifname.clone() }
    }

    /// The container's network namespace, which ADD and CHECK always have.
    #[must_use]
    pub fn netns(&self) -> Option<&Path> {
        self.environment.netns.as_deref()
    }

    /// What ADD answered, which CHECK needs.
    ///
    /// # Errors
    /// When the runtime did not pass it.
    pub fn required_prev_result(&self) -> Result<&CniResult, Error> {
        self.prev_result.as_ref().ok_or_else(|| Error::new(Code::InvalidConfig, "Required prevResult missing"))
    }

    /// The attachments GC has to keep.
    #[must_use]
    pub fn valid_attachments(&self) -> HashSet<Attachment> {
        self.conf.valid_attachments.iter().flatten().cloned().collect()
    }
}

fn decode<T: serde::de::DeserializeOwned>(input: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(input)
        .map_err(|error| Error::new(Code::Decode, format!("failed to load the network configuration: {error}")))
}

fn prev_result(input: &[u8], version: &str) -> Result<Option<CniResult>, Error> {
    #[derive(Deserialize)]
    struct Carrier {
        #[serde(rename = "prevResult")]
        prev_result: Option<serde_json::Value>,
    }
    let Some(value) = decode::<Carrier>(input)?.prev_result else {
        return Ok(None);
    };
    CniResult::from_value(value, version)
        .map(Some)
        .map_err(|error| Error::new(Code::Decode, format!("could not parse prevResult: {error}")))
}

fn check_version(version: &str, command: Command) -> Result<(), Error> {
    if !SUPPORTED_VERSIONS.contains(&version) {
        return Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
            .details(format!("config is {version:?}, plugin supports {SUPPORTED_VERSIONS:?}")));
    }
    // The versions are listed oldest first.
    let place = |v: &str| SUPPORTED_VERSIONS.iter().position(|known| *known == v);
    if place(version) < place(command.since()) {
        return Err(Error::new(
            Code::IncompatibleVersion,
            format!("config version {version:?} does not allow {command:?}, which came with {}", command.since()),
        ));
    }
    Ok(())
}

/// The version an answer to `input` is written in, even when the rest of it cannot be used.
#[must_use]
pub fn version_of(input: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(rename = "cniVersion", default)]
        version: String,
    }
    match serde_json::from_slice::<Versioned>(input) {
        Ok(conf) if !conf.version.is_empty() => conf.version,
        Ok(_) => UNVERSIONED.to_owned(),
        Err(_) => SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1].to_owned(),
    }
}

/// The answer to VERSION.
#[must_use]
pub fn version_answer(input: &[u8]) -> String {
    serde_json::json!({ "cniVersion": version_of(input), "supportedVersions": SUPPORTED_VERSIONS }).to_string()
}
