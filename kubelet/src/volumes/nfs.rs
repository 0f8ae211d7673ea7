//! NFS: mounted by mount(8) and the helper of the node's own NFS client, as in stock.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::NFSVolumeSource;
use tokio::process::Command;

use super::journal::{Journal, Kind};
use super::{empty_dir, on_disk};

/// How long a server may take; as long as stock's other mounts.
const DEADLINE: Duration = Duration::from_secs(120);
/// Where mount(8) looks for its helpers.
const HELPERS: [&str; 2] = ["/sbin/mount.nfs", "/usr/sbin/mount.nfs"];

/// What is mounted, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nfs {
    source: String,
    options: Vec<String>,
}

impl Nfs {
    /// The export of a volume; read-only if the source or the pod says so.
    pub(super) fn new(source: &NFSVolumeSource, options: Option<&[String]>, read_only: bool) -> Self {
        // An address with colons would be taken for the end of the host's name.
        let server = &source.server;
        let server = if server.contains(':') { format!("[{server}]") } else { server.clone() };
        let read_only = read_only || source.read_only == Some(true);
        let options = options.unwrap_or_default().iter().cloned().chain(read_only.then(|| "ro".to_owned()));
        Self { source: format!("{server}:{}", source.path), options: options.collect() }
    }

    fn arguments(&self, target: &Path) -> Vec<String> {
        let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
        if !self.options.is_empty() {
            arguments.extend(["-o".to_owned(), self.options.join(",")]);
        }
        arguments.extend([self.source.clone(), target.display().to_string()]);
        arguments
    }

    /// Mounts it at `target`, below the pod's folder. Harmless to repeat.
    ///
    /// # Errors
    /// The helper is missing, or what it said.
    pub(super) async fn mount(&self, pod: &Path, target: &Path) -> Result<(), String> {
        let (folder, place) = (pod.to_path_buf(), target.to_path_buf());
        let prepare = move || {
            super::make_dir(&place, 0o750).map_err(|error| error.to_string())?;
            let mounted = empty_dir::is_mounted(&folder, &place).map_err(|error| error.to_string())?;
            if !mounted {
                Journal::of(&folder).record(&place, Kind::Nfs).map_err(|error| error.to_string())?;
            }
            Ok(mounted)
        };
        if on_disk(prepare).await? {
            return Ok(());
        }
        if !HELPERS.iter().any(|helper| Path::new(helper).exists()) {
            let missing = "mount failed: this node has no mount.nfs; install the NFS client (nfs-common or nfs-utils)";
            return Err(missing.to_owned());
        }
        self.run(target).await
    }

    async fn run(&self, target: &Path) -> Result<(), String> {
        let arguments = self.arguments(target);
        let mut command = Command::new("mount");
        command.args(&arguments).stdin(Stdio::null()).kill_on_drop(true);
        let shown = || format!("Mounting command: mount\nMounting arguments: {}", arguments.join(" "));
        match tokio::time::timeout(DEADLINE, command.output()).await {
            Ok(Ok(out)) if out.status.success() => Ok(()),
            Ok(Ok(out)) => {
                let said = [out.stdout, out.stderr].concat();
                let (status, said) = (out.status, String::from_utf8_lossy(&said).into_owned());
                Err(format!("mount failed: {status}\n{}\nOutput: {said}", shown()))
            }
            Ok(Err(error)) => Err(format!("mount failed: {error}\n{}", shown())),
            Err(_) => Err(format!("mount failed: no answer within {} s\n{}", DEADLINE.as_secs(), shown())),
        }
    }
}

impl fmt::Display for Nfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// Where an export is mounted for a pod, by the name of the volume or of the persistent volume.
pub(super) fn target(pod: &Path, name: &str) -> PathBuf {
    pod.join("volumes/kubernetes.io~nfs").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mount_is_given() {
        let source =
            |server: &str, read_only| NFSVolumeSource { path: "/export".into(), read_only, server: server.into() };
        let options = ["nfsvers=4.1".to_owned(), "hard".to_owned()];
        let show = |nfs: Nfs| nfs.arguments(Path::new("/t")).join(" ");
        let lines = [
            show(Nfs::new(&source("nas", None), None, false)),
            show(Nfs::new(&source("nas", None), Some(&options), true)),
            show(Nfs::new(&source("fd00::1", Some(true)), None, false)),
        ];
        let golden = "\
-t nfs nas:/export /t
-t nfs -o nfsvers=4.1,hard,ro nas:/export /t
-t nfs -o ro [fd00::1]:/export /t";
        assert_eq!(lines.join("\n"), golden);
    }

    #[tokio::test]
    async fn a_node_without_a_client_says_what_to_install() {
        if HELPERS.iter().any(|helper| Path::new(helper).exists()) {
            return;
        }
        let pod = tempfile::tempdir().unwrap();
        let source = NFSVolumeSource { path: "/export".into(), read_only: None, server: "nas".into() };
        let target = target(pod.path(), "v");
        let error = Nfs::new(&source, None, false).mount(pod.path(), &target).await.unwrap_err();
        assert!(error.contains("no mount.nfs; install"), "{error}");
    }
}
