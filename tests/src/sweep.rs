//! Taking a fabric down, and the proof that nothing of it remains.
//!
//! What belongs to a fabric is decided by what the kernel shows (a process's network namespace, cgroup, command line
//! and ancestors; a mount's place; a link's name), never by a list kept on the side. So it works after any crash.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process::TICK;
use crate::program::succeeds;
use crate::{Fabric, Say};

/// How long processes and cgroups may take to go.
const LIMIT: Duration = Duration::from_secs(20);
/// Where containerd's shims put their sockets, whatever its own state folder is.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// Where containerd's CNI library keeps what plugins answered.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// What there is of a fabric. Prints as a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Pids with their command lines.
    pub processes: BTreeMap<i32, String>,
    /// Network namespaces, by the files that keep them.
    pub namespaces: BTreeSet<PathBuf>,
    /// Names of links in the host's namespace.
    pub links: BTreeSet<String>,
    /// Mount points, deepest last.
    pub mounts: BTreeSet<PathBuf>,
    /// cgroup folders, deepest last.
    pub cgroups: BTreeSet<PathBuf>,
    /// Files outside the data folder.
    pub files: BTreeSet<PathBuf>,
}

impl Remains {
    /// Looks at the machine as it is now.
    pub fn of(fabric: &Fabric) -> Self {
        let namespaces = namespaces(fabric);
        Self {
            processes: processes(fabric, &namespaces),
            links: links(fabric),
            mounts: mounts(fabric),
            cgroups: cgroups(fabric),
            files: files(fabric),
            namespaces,
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pid, line) in &self.processes {
            writeln!(f, "process {pid}: {line}")?;
        }
        for path in &self.namespaces {
            writeln!(f, "network namespace {}", path.display())?;
        }
        for name in &self.links {
            writeln!(f, "link {name}")?;
        }
        for (kind, paths) in [("mount", &self.mounts), ("cgroup", &self.cgroups), ("file", &self.files)] {
            for path in paths {
                writeln!(f, "{kind} {}", path.display())?;
            }
        }
        Ok(())
    }
}

/// Ends everything that runs in the fabric and removes everything of it but its logs, then looks whether anything
/// remains: that is the error.
pub fn take_down(fabric: &Fabric, say: Say<'_>) -> Result<()> {
    let namespaces = namespaces(fabric);
    say("ending processes");
    end_processes(fabric, &namespaces);
    say("removing mounts");
    for mount in mounts(fabric).iter().rev() {
        let _ = umount2(mount, MntFlags::MNT_DETACH);
    }
    say("removing namespaces and links");
    for namespace in &namespaces {
        let _ = umount2(namespace, MntFlags::MNT_DETACH);
    }
    remove_links(fabric);
    say("removing cgroups");
    remove_cgroups(fabric);
    for file in files(fabric).iter().rev() {
        let _ = fs::remove_file(file);
    }
    let _ = fs::remove_dir_all(fabric.run());
    remove_data(fabric);
    let _ = fabric.run().parent().map(fs::remove_dir);
    let remains = Remains::of(fabric);
    if !remains.is_empty() {
        bail!("this remains of {:?} and could not be removed:\n{remains}", fabric.name);
    }
    Ok(())
}

/// The nodes' and the pods'.
fn namespaces(fabric: &Fabric) -> BTreeSet<PathBuf> {
    mount_points(fabric, |kind| kind == "nsfs")
}

fn mounts(fabric: &Fabric) -> BTreeSet<PathBuf> {
    mount_points(fabric, |kind| kind != "nsfs")
}

fn mount_points(fabric: &Fabric, wanted: impl Fn(&str) -> bool) -> BTreeSet<PathBuf> {
    let (run, data) = (fabric.run(), &fabric.data);
    mount_table()
        .filter(|(_, kind)| wanted(kind))
        .map(|(point, _)| point)
        .filter(|point| point.starts_with(&run) || point.starts_with(data))
        .collect()
}

/// Every mount point with its file system's kind.
fn mount_table() -> impl Iterator<Item = (PathBuf, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let row = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        Some((unescape(place.split(' ').nth(4)?), kind.split(' ').next()?.to_owned()))
    };
    table.lines().filter_map(row).collect::<Vec<_>>().into_iter()
}

fn links(fabric: &Fabric) -> BTreeSet<String> {
    let (bridge, prefix) = (fabric.bridge(), fabric.link_prefix());
    names(Path::new("/sys/class/net")).filter(|name| *name == bridge || name.starts_with(&prefix)).collect()
}

/// Mount points come with blanks as octal escapes.
fn unescape(point: &str) -> PathBuf {
    PathBuf::from(point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

fn cgroups(fabric: &Fabric) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies() {
        let top = hierarchy.join(fabric.bridge());
        if top.is_dir() {
            collect_folders(&top, &mut found);
        }
    }
    found
}

/// The roots of all mounted cgroup hierarchies, of either version.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    mount_table().filter(|(_, kind)| kind == "cgroup" || kind == "cgroup2").map(|(point, _)| point)
}

fn collect_folders(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    found.insert(folder.to_owned());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_folders(&entry.path(), found);
        }
    }
}

/// What the runtime keeps outside the folders it was given: its shims' sockets and its CNI library's results.
fn files(fabric: &Fabric) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut containers = HashSet::new();
    for node in fabric.nodes().unwrap_or_default() {
        let bundles = node.run.join("containerd/io.containerd.runtime.v2.task/k8s.io");
        for id in names(&bundles) {
            let bundle = bundles.join(&id);
            // 1.6 writes the address alone, 2.x a JSON object around it.
            for told in ["address", "bootstrap.json"] {
                let text = fs::read_to_string(bundle.join(told)).unwrap_or_default();
                if let Some(at) = text.find(SHIM_SOCKETS) {
                    let end = text[at..].find(['"', '\n']).map_or(text.len(), |length| at + length);
                    files.insert(PathBuf::from(&text[at..end]));
                }
            }
            containers.insert(id);
        }
    }
    for name in names(Path::new(CNI_RESULTS)) {
        if name.rsplit('-').nth(1).is_some_and(|id| containers.contains(id)) {
            files.insert(Path::new(CNI_RESULTS).join(name));
        }
    }
    files.retain(|path| path.symlink_metadata().is_ok());
    if fabric.run().exists() {
        files.insert(fabric.run());
    }
    files
}

/// Every process of the fabric, but never this one or its ancestors.
fn processes(fabric: &Fabric, namespaces: &BTreeSet<PathBuf>) -> BTreeMap<i32, String> {
    let inodes: HashSet<u64> = namespaces.iter().filter_map(|path| Some(fs::metadata(path).ok()?.ino())).collect();
    let run = format!("{}/", fabric.run().display());
    let cgroup = format!("/{}/", fabric.bridge());
    let all = all_processes();
    let mut ours: BTreeSet<i32> = BTreeSet::new();
    for (pid, process) in &all {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let inside = fs::metadata(folder.join("ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino()));
        let limited = || fs::read_to_string(folder.join("cgroup")).is_ok_and(|text| text.contains(&cgroup));
        if inside || process.line.contains(&run) || daemon_of(fabric, *pid) || limited() {
            ours.insert(*pid);
        }
    }
    // A container's processes are its shim's descendants.
    while let Some((pid, _)) = all.iter().find(|(pid, process)| !ours.contains(pid) && ours.contains(&process.parent)) {
        ours.insert(*pid);
    }
    let mut own = Some(Pid::this().as_raw());
    while let Some(pid) = own {
        ours.remove(&pid);
        own = all.get(&pid).map(|process| process.parent);
    }
    ours.into_iter().filter_map(|pid| Some((pid, all.get(&pid)?.line.clone()))).collect()
}

/// Whether a pid file of the fabric names this process.
fn daemon_of(fabric: &Fabric, pid: i32) -> bool {
    names(&fabric.run()).filter(|name| name.ends_with(".pid")).any(|name| {
        let text = fs::read_to_string(fabric.run().join(name)).unwrap_or_default();
        text.split(' ').next() == Some(pid.to_string().as_str())
    })
}

struct Process {
    parent: i32,
    line: String,
}

fn all_processes() -> BTreeMap<i32, Process> {
    let pids = names(Path::new("/proc")).filter_map(|name| name.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, process(pid)?))).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
    Some(Process { parent, line })
}

/// SIGKILL for all: whoever wants a gentle end asks for it before. New ones may start meanwhile, so look again.
fn end_processes(fabric: &Fabric, namespaces: &BTreeSet<PathBuf>) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = processes(fabric, namespaces);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left.keys() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        thread::sleep(TICK);
    }
}

/// Removes all data but the logs, which one may want to read after.
fn remove_data(fabric: &Fabric) {
    let logs = fabric.logs();
    for name in names(&fabric.data) {
        let path = fabric.data.join(name);
        if path != logs {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn remove_links(fabric: &Fabric) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = links(fabric);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for name in left {
            // A namespace in its last moments takes its end of the link with it.
            let _ = succeeds("ip", &["link", "delete", &name]);
        }
        thread::sleep(TICK);
    }
}

fn remove_cgroups(fabric: &Fabric) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = cgroups(fabric);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for folder in left.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
        thread::sleep(TICK);
    }
}

/// Names in a folder; none when it cannot be read.
fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}
