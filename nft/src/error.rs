//! What can go wrong, and what to do about it.

use std::fmt;
use std::io;

/// The result of everything that talks to the kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the kernel could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netfilter netlink socket could be opened.
    #[error("cannot open a netfilter socket: {}", hint(errno_of(.0)))]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("cannot {action} the kernel: {source}")]
    Io {
        /// "send to" or "receive from".
        action: &'static str,
        /// What the socket said.
        source: io::Error,
    },
    /// The kernel refused an operation; of a batch nothing was applied.
    #[error("{0}")]
    Refused(Refusal),
    /// The rule set changed while it was being read: read again.
    #[error("the rule set changed while it was being read")]
    Interrupted,
    /// The kernel's answer made no sense.
    #[error("unexpected answer from the kernel: {0}")]
    Protocol(&'static str),
}

/// The kernel's refusal of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number (positive).
    pub errno: i32,
    /// What was asked, for example `add rule ip kube-proxy services`.
    pub operation: String,
    /// The kernel's own explanation, when it gave one.
    pub explanation: Option<String>,
}

impl Error {
    /// The error number of a refusal or a failed call.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            Self::Open(error) | Self::Io { source: error, .. } => error.raw_os_error(),
            Self::Interrupted | Self::Protocol(_) => None,
        }
    }

    /// Whether the kernel said that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }

    /// Whether the kernel has no nf_tables, or no netfilter at all.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.operation, hint(self.errno))?;
        match &self.explanation {
            Some(text) => write!(out, " ({text})"),
            None => Ok(()),
        }
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}

/// An error number in words that say what is missing.
fn hint(errno: i32) -> String {
    match errno {
        libc::EPERM | libc::EACCES => "not permitted: CAP_NET_ADMIN in this network namespace is needed".into(),
        libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => {
            "not supported: kernel without nf_tables, or without this part of it (CONFIG_NF_TABLES, CONFIG_NFT_*)"
                .into()
        }
        libc::ENOENT => "no such object, or an expression that this kernel does not have".into(),
        libc::EEXIST => "exists already, with other contents".into(),
        libc::EBUSY => "in use".into(),
        libc::EMSGSIZE => "transaction too big for the socket's send buffer".into(),
        errno => io::Error::from_raw_os_error(errno).to_string(),
    }
}
