//! Errors as the specification wants them: a number, a message, details, JSON on standard output.

/// Error codes of CNI specification 1.1.0; 100 and up are a plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not supported.
    IncompatibleVersion = 1,
    /// A field asks for what is not supported; the message names key and value.
    UnsupportedField = 2,
    /// The container is unknown or has no such attachment.
    UnknownContainer = 3,
    /// A necessary environment variable is missing or malformed.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Content could not be decoded.
    Decode = 6,
    /// The network configuration is invalid.
    InvalidConfig = 7,
    /// A passing condition: the runtime should try again.
    TryAgainLater = 11,
    /// STATUS: ADD cannot be served.
    NotAvailable = 50,
    /// STATUS: ADD cannot be served, and containers on the network may be cut off.
    LimitedConnectivity = 51,
    /// Our own: the kernel refused a link, an address, a route or a rule.
    Kernel = 100,
    /// Our own: no address is left to give.
    Exhausted = 101,
    /// Our own: CHECK found the attachment changed.
    Changed = 102,
    /// Our own: a delegated plugin failed.
    Delegate = 103,
}

/// What a command answers when it fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct Error {
    /// The code; a delegated plugin's own code is passed on.
    pub code: u32,
    /// What failed, in a sentence.
    pub message: String,
    /// More to find the cause by.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as u32, message: message.into(), details: String::new() }
    }

    /// The same error with the circumstances in front of its message.
    #[must_use]
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same error with details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The error object of the specification.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        let mut object = serde_json::json!({ "cniVersion": version, "code": self.code, "msg": self.message });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object.to_string()
    }
}

/// Collects what went wrong in a teardown that goes on after an error.
#[derive(Debug, Default)]
pub struct Failures(Option<Error>);

impl Failures {
    /// Keeps the error of `done`, if it has one.
    pub fn note<T>(&mut self, done: Result<T, Error>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(error) => {
                match &mut self.0 {
                    None => self.0 = Some(error),
                    Some(first) => {
                        first.details = format!("{}; also {error}", first.details).trim_start_matches("; ").to_owned()
                    }
                }
                None
            }
        }
    }

    /// The first error with the others in its details.
    ///
    /// # Errors
    /// When any was noted.
    pub fn finish(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}
