//! The CNI plugins in one binary: bridge, host-local, loopback and portmap, after CNI specification 1.1.0.
//!
//! The name the program is called by picks the plugin, so `/opt/cni/bin` holds one file and links to it. Configuration
//! keys, results and the addresses' files on disk are those of the reference plugins; a node can be moved from one to
//! the other with pods running. Links, addresses and routes are set by netlink, no other program is run but an IPAM
//! plugin that is not ours.
//!
//! How a command runs: [`call`] reads environment and configuration, a plugin observes the kernel, decides a list of
//! [`plan::Step`]s in pure code and applies them through [`plan::Kernel`]; what ADD began and could not finish it undoes.

pub mod bridge;
pub mod call;
pub mod error;
pub mod host_local;
mod install;
mod ipam;
mod loopback;
mod nat;
mod netlink;
pub mod plan;
pub mod portmap;
pub mod result;

use std::{
    ffi::OsStr,
    io::{Read, Write},
    path::Path,
};

pub use call::{Attachment, Call, Command, SUPPORTED_VERSIONS};
pub use error::{Code, Error};
pub use install::install;
pub use netlink::{Netlink, NetnsFd};
pub use result::CniResult;

/// What a plugin does for each command of the specification.
pub trait Plugin: Sync {
    /// Joins the container to the network.
    ///
    /// # Errors
    /// Anything that keeps the attachment from being complete; nothing of it is left then.
    fn add(&self, call: &Call) -> Result<CniResult, Error>;
    /// Takes the container off the network; succeeds when there is nothing to take off.
    ///
    /// # Errors
    /// What could not be removed; the runtime tries again.
    fn del(&self, call: &Call) -> Result<(), Error>;
    /// Verifies that the attachment is as `prevResult` says.
    ///
    /// # Errors
    /// What differs.
    fn check(&self, call: &Call) -> Result<(), Error>;
    /// Removes what belongs to attachments that are not in `cni.dev/valid-attachments`.
    ///
    /// # Errors
    /// What could not be removed, after all else was.
    fn gc(&self, call: &Call) -> Result<(), Error>;
    /// Says whether ADD can be served.
    ///
    /// # Errors
    /// [`Code::NotAvailable`] with the reason.
    fn status(&self, call: &Call) -> Result<(), Error>;
}

/// The plugins of this binary.
pub const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// The plugin of that type, when it is one of ours.
#[must_use]
pub fn plugin(name: &str) -> Option<&'static dyn Plugin> {
    match name {
        "bridge" => Some(&bridge::Bridge),
        "host-local" => Some(&host_local::HostLocal),
        "loopback" => Some(&loopback::Loopback),
        "portmap" => Some(&portmap::Portmap),
        _ => None,
    }
}

/// The plugin named by `argv0`, which may be a path.
#[must_use]
pub fn plugin_name(argv0: &OsStr) -> Option<&'static str> {
    let name = Path::new(argv0).file_name()?.to_str()?;
    PLUGINS.into_iter().find(|plugin| *plugin == name)
}

/// Runs the program as called: as a plugin when `argv0` names one, else `install DIR` and `version`.
///
/// Returns the exit status. The binary and an all-in-one multi-call binary share this entry.
pub fn main(argv0: &OsStr, args: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    if let Some(name) = plugin_name(argv0) {
        return serve(name, &mut std::io::stdin().lock(), &mut std::io::stdout().lock());
    }
    let args: Vec<_> = args.collect();
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    match words.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
        ["install", dir] => report(std::env::current_exe().and_then(|exe| install(&exe, Path::new(dir)))),
        ["version"] | ["--version"] => report(writeln!(std::io::stdout(), "bosun-cni {}", env!("CARGO_PKG_VERSION"))),
        _ => {
            let usage = format!(
                "usage: bosun-cni install DIR\nCalled by one of these names it is that CNI plugin: {}\n",
                PLUGINS.join(", ")
            );
            report(std::io::stderr().write_all(usage.as_bytes())).max(2)
        }
    }
}

fn report(done: std::io::Result<()>) -> u8 {
    let Err(error) = done else { return 0 };
    // Nothing is left to tell when standard error is closed too.
    let _ = writeln!(std::io::stderr(), "bosun-cni: {error}");
    1
}

/// Serves one CNI command for the plugin `name`: environment and `stdin` in, result or error as JSON out.
pub fn serve(name: &str, stdin: &mut dyn Read, stdout: &mut dyn Write) -> u8 {
    let mut input = Vec::with_capacity(8192);
    let read =
        stdin.read_to_end(&mut input).map_err(|e| Error::new(Code::Io, format!("read the network configuration: {e}")));
    let (version, outcome) = match read.and_then(|_| call::Environment::from_process()) {
        Ok(environment) => respond(name, environment, &input),
        Err(error) => (call::version_of(&input), Err(error)),
    };
    let (text, status) = match outcome {
        Ok(text) => (text, 0),
        Err(error) => (error.to_json(&version), 1),
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(_) => 1,
    }
}

/// The answer to one command, and the version it is to be written in.
fn respond(name: &str, environment: call::Environment, input: &[u8]) -> (String, Result<String, Error>) {
    let version = call::version_of(input);
    let outcome = run(name, environment, input);
    (version, outcome)
}

fn run(name: &str, environment: call::Environment, input: &[u8]) -> Result<String, Error> {
    if environment.command == Command::Version {
        return Ok(call::version_answer(input));
    }
    let plugin =
        plugin(name).ok_or_else(|| Error::new(Code::InvalidConfig, format!("no plugin {name:?} in this program")))?;
    let call = Call::new(environment, input)?;
    match call.environment.command {
        Command::Add => plugin.add(&call).map(|result| result.to_json(&call.conf.cni_version)),
        Command::Del => plugin.del(&call).map(|()| String::new()),
        Command::Check => plugin.check(&call).map(|()| String::new()),
        Command::Gc => plugin.gc(&call).map(|()| String::new()),
        Command::Status => plugin.status(&call).map(|()| String::new()),
        Command::Version => Ok(String::new()),
    }
}
