//! Delegation to the IPAM plugin: in this process when it is ours, else by running it as the specification says.

use crate::{Call, Code, Command, Error, plugin, result::CniResult};
use serde::Deserialize;
use std::{
    io::Write,
    path::PathBuf,
    process::{self, Stdio},
};

/// IPAM ADD.
pub(crate) fn add(call: &Call) -> Result<CniResult, Error> {
    match plugin(kind(call)) {
        Some(ours) => ours.add(call),
        None => run(call, Command::Add).and_then(|output| {
            serde_json::from_slice(&output)
                .and_then(|value| CniResult::from_value(value, &call.conf.cni_version))
                .map_err(|error| Error::new(Code::Decode, format!("result of IPAM plugin {:?}: {error}", kind(call))))
        }),
    }
}

/// IPAM DEL.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    plugin(kind(call)).map_or_else(|| run(call, Command::Del).map(drop), |ours| ours.del(call))
}

/// IPAM CHECK.
pub(crate) fn check(call: &Call) -> Result<(), Error> {
    plugin(kind(call)).map_or_else(|| run(call, Command::Check).map(drop), |ours| ours.check(call))
}

/// IPAM GC.
pub(crate) fn gc(call: &Call) -> Result<(), Error> {
    plugin(kind(call)).map_or_else(|| run(call, Command::Gc).map(drop), |ours| ours.gc(call))
}

/// IPAM STATUS.
pub(crate) fn status(call: &Call) -> Result<(), Error> {
    plugin(kind(call)).map_or_else(|| run(call, Command::Status).map(drop), |ours| ours.status(call))
}

fn kind(call: &Call) -> &str {
    &call.conf.ipam.kind
}

/// The program of a plugin that is not ours.
fn find(call: &Call) -> Result<PathBuf, Error> {
    let name = kind(call);
    if name.contains('/') {
        return Err(Error::new(Code::InvalidConfig, format!("invalid IPAM plugin name {name:?}")));
    }
    std::env::split_paths(&call.environment.path).map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or_else(
        || {
            Error::new(
                Code::InvalidConfig,
                format!("failed to find plugin {name:?} in path [{}]", call.environment.path),
            )
        },
    )
}

/// Runs it with this process's environment but for the command, which a rollback changes.
fn run(call: &Call, command: Command) -> Result<Vec<u8>, Error> {
    let path = find(call)?;
    let failed = |error: std::io::Error| Error::new(Code::Delegate, format!("run {}: {error}", path.display()));
    let mut child = process::Command::new(&path)
        .env("CNI_COMMAND", format!("{command:?}").to_uppercase())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that does not read has its say by its exit status.
        let _ = stdin.write_all(&call.input);
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() { Ok(output.stdout) } else { Err(refused(&path.display(), &output)) }
}

/// A delegate's error, passed on with its code.
fn refused(path: &dyn std::fmt::Display, output: &process::Output) -> Error {
    #[derive(Deserialize)]
    struct Answer {
        code: u32,
        msg: String,
        #[serde(default)]
        details: String,
    }
    match serde_json::from_slice::<Answer>(&output.stdout) {
        Ok(answer) => Error { code: answer.code, message: answer.msg, details: answer.details },
        Err(_) => Error::new(Code::Delegate, format!("plugin {path} failed: {}", output.status)),
    }
}
