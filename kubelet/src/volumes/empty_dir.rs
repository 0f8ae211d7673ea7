//! emptyDir volumes, on disk, in memory and in huge pages; and the memory that secrets and their kin lie in, so that
//! they never reach a disk.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use bosun_api::quantity::{self, Quantity};
use bosun_kubelet_cgroup::Amount;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::journal::{Journal, Kind};
use super::mountinfo;
use crate::make::{Node, resources};
use crate::pod::spec;

/// What an emptyDir lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// The node's disk.
    Disk,
    /// Memory, at most so many bytes.
    Memory(i64),
    /// Huge pages of this size.
    HugePages(String),
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("disk"),
            Self::Memory(size) => write!(f, "tmpfs size={size}"),
            Self::HugePages(size) => write!(f, "hugetlbfs pagesize={size}"),
        }
    }
}

/// What the volume is to lie in.
///
/// # Errors
/// A medium that there is not, or huge pages that no container asks for; in stock's words.
pub(super) fn medium(pod: &Pod, node: &Node, source: &EmptyDirVolumeSource) -> Result<Medium, String> {
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Medium::Disk),
        "Memory" => Ok(Medium::Memory(memory_size(pod, node, source.size_limit.as_ref().map(quantity::of)))),
        medium if medium == "HugePages" || medium.starts_with("HugePages-") => {
            page_size(pod, medium).map(Medium::HugePages)
        }
        other => Err(format!("unknown storage medium {other:?}")),
    }
}

/// The least of what the volume, the pod and all pods together may use.
pub(super) fn memory_size(pod: &Pod, node: &Node, limit: Option<Quantity>) -> i64 {
    let of_pod = match resources::pod_limits(pod, node).memory {
        Some(Amount::Of(bytes)) => i64::try_from(bytes).unwrap_or(i64::MAX),
        Some(Amount::Max) | None => 0,
    };
    let limits = [limit.map_or(0, |limit| limit.value()), of_pod, node.memory_allocatable];
    limits.into_iter().filter(|bytes| *bytes > 0).min().unwrap_or(0)
}

/// The size of the huge pages that the containers ask for.
fn page_size(pod: &Pod, medium: &str) -> Result<String, String> {
    let wanted = medium.strip_prefix("HugePages-").map(parse_size).transpose()?;
    let mut found: Option<(Quantity, String)> = None;
    for (_, container) in spec::containers(pod) {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        for size in requests.into_iter().flat_map(|r| r.keys()).filter_map(|name| name.strip_prefix("hugepages-")) {
            let bytes = parse_size(size)?;
            match (&wanted, &found) {
                (None, Some((known, _))) if *known != bytes => {
                    return Err(format!(
                        "medium: {medium} can't be used if container requests multiple huge page sizes"
                    ));
                }
                (Some(wanted), _) if *wanted != bytes => {}
                _ => found = Some((bytes, size.to_owned())),
            }
        }
    }
    found.map(|(_, size)| size).ok_or_else(|| {
        format!("medium {medium}: hugePages storage requested, but there is no resource request for huge pages")
    })
}

fn parse_size(size: &str) -> Result<Quantity, String> {
    size.parse().map_err(|_| format!("{size:?} is no size of huge pages"))
}

/// Makes the volume at `folder`, once: what containers do to it later is theirs. Memory that a reboot of the node took
/// is mounted anew.
///
/// # Errors
/// Any I/O error, or what the kernel says to the mount.
pub(super) fn set_up(pod: &Path, name: &str, folder: &Path, medium: &Medium, group: Option<u32>) -> io::Result<()> {
    let ready = pod.join("plugins/kubernetes.io~empty-dir").join(name).join("ready");
    let mounted = folder.is_dir() && is_mounted(pod, folder)?;
    if ready.exists() && folder.is_dir() && (mounted || *medium == Medium::Disk) {
        return Ok(());
    }
    bosun_kit::files::create_dir(folder, 0o777)?;
    match medium {
        Medium::Memory(size) if !mounted => mount_memory(pod, folder, *size)?,
        Medium::HugePages(size) if !mounted => {
            Journal::of(pod).record(folder, Kind::Hugetlbfs)?;
            let options = format!("pagesize={size}");
            mount(Some("nodev"), folder, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str()))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        }
        _ => {}
    }
    if let Some(group) = group {
        hand_to(folder, group, 0o770)?;
    }
    super::make_dir(ready.parent().unwrap_or(pod), 0o750)?;
    fs::File::create(&ready).map(drop)
}

/// Gives the folder to the group, which may do there what `bits` say. The set-group-ID bit hands the group down to what
/// is made inside.
pub(super) fn hand_to(folder: &Path, group: u32, bits: u32) -> io::Result<()> {
    chown(folder, None, Some(group))?;
    let mode = fs::metadata(folder)?.permissions().mode();
    fs::set_permissions(folder, fs::Permissions::from_mode((mode & 0o7777) | 0o2000 | bits))
}

fn mount_memory(pod: &Path, folder: &Path, size: i64) -> io::Result<()> {
    Journal::of(pod).record(folder, Kind::Tmpfs)?;
    let size = if size > 0 { format!("size={size},") } else { String::new() };
    let attempt = |options: &str| mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(options));
    match attempt(&format!("{size}noswap")) {
        // Kernels before 6.4 cannot keep it out of the swap.
        Err(Errno::EINVAL) => Ok(attempt(size.trim_end_matches(','))?),
        other => Ok(other?),
    }
}

/// Whether something is mounted right on `folder`, below the pod's.
pub(super) fn is_mounted(pod: &Path, folder: &Path) -> io::Result<bool> {
    let inside = folder.strip_prefix(pod).map_err(io::Error::other)?;
    Ok(mountinfo::below(pod)?.iter().any(|point| point == inside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::{in_own_mounts, node};

    fn pod(resources: serde_json::Value) -> Pod {
        let containers = serde_json::json!([{"name": "a", "resources": resources}]);
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u1"}, "spec": {"containers": containers}}))
            .unwrap()
    }

    #[test]
    fn the_medium_follows_volume_pod_and_node() {
        let node = node(Path::new("/nowhere"));
        let show = |resources: serde_json::Value, source: serde_json::Value| {
            let source = serde_json::from_value(source).unwrap();
            medium(&pod(resources), &node, &source).map_or_else(|error| error, |medium| medium.to_string())
        };
        let none = serde_json::json!({});
        let limited = serde_json::json!({"limits": {"memory": "64Mi"}});
        let huge = serde_json::json!({"requests": {"hugepages-2Mi": "4Mi"}});
        let two = serde_json::json!({"requests": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}});
        let of = |medium: &str| serde_json::json!({"medium": medium});
        let lines = [
            show(none.clone(), none.clone()),
            show(none.clone(), of("Memory")),
            show(limited.clone(), of("Memory")),
            show(limited.clone(), serde_json::json!({"medium": "Memory", "sizeLimit": "1Mi"})),
            show(limited, serde_json::json!({"medium": "Memory", "sizeLimit": "1Gi"})),
            show(huge.clone(), of("HugePages")),
            show(two.clone(), of("HugePages-1Gi")),
            show(two, of("HugePages")),
            show(huge, of("HugePages-1Gi")),
            show(none.clone(), of("HugePages")),
            show(none, of("Wood")),
        ];
        let golden = "\
disk
tmpfs size=536870912
tmpfs size=67108864
tmpfs size=1048576
tmpfs size=67108864
hugetlbfs pagesize=2Mi
hugetlbfs pagesize=1Gi
medium: HugePages can't be used if container requests multiple huge page sizes
medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages
medium HugePages: hugePages storage requested, but there is no resource request for huge pages
unknown storage medium \"Wood\"";
        assert_eq!(lines.join("\n"), golden);
    }

    #[test]
    fn made_once_with_mode_group_and_size_and_anew_after_a_reboot() {
        in_own_mounts(|| {
            let pod = tempfile::tempdir().unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            let disk = pod.path().join("volumes/kubernetes.io~empty-dir/disk");
            set_up(pod.path(), "disk", &disk, &Medium::Disk, Some(2000)).unwrap();
            assert_eq!(mode(&disk), 0o2777);
            fs::set_permissions(&disk, fs::Permissions::from_mode(0o700)).unwrap();
            set_up(pod.path(), "disk", &disk, &Medium::Disk, Some(2000)).unwrap();
            assert_eq!(mode(&disk), 0o700, "what a container chose stays");

            let memory = pod.path().join("volumes/kubernetes.io~empty-dir/memory");
            let make = || set_up(pod.path(), "memory", &memory, &Medium::Memory(1 << 20), None).unwrap();
            make();
            make();
            assert_eq!(mode(&memory) & 0o777, 0o777);
            let full = fs::write(memory.join("big"), vec![0; 2 << 20]).unwrap_err();
            assert_eq!(full.raw_os_error(), Some(Errno::ENOSPC as i32));
            let mounted = mountinfo::below(pod.path()).unwrap();
            assert_eq!(mounted, [Path::new("volumes/kubernetes.io~empty-dir/memory")]);
            assert_eq!(Journal::of(pod.path()).read()[0].target, mounted[0]);
            nix::mount::umount(&memory).unwrap();
            make();
            assert_eq!(mountinfo::below(pod.path()).unwrap().len(), 1);
            nix::mount::umount(&memory).unwrap();
        });
    }
}
