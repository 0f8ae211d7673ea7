//! The edge: carries plans out, kills what is left in a cgroup, finds the cgroups of pods.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::layout::Layout;
use crate::limits::Limits;
use crate::name::{Driver, Name};
use crate::plan::{self, Step};
use crate::systemd::{self, Systemd, Units};

/// What the kubelet needs in the unified hierarchy, as far as the kernel has it.
const NEEDED: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];
/// In which version 1 hierarchies a cgroup must be to count as there.
const NEEDED_SEPARATE: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "systemd"];
/// Handed down in the unified hierarchy, as far as they are there.
const HANDED_DOWN: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
/// How often a cgroup is tried to be removed; processes that are just dying are waited for between, about half a second
/// in all.
const ATTEMPTS: u32 = 8;

/// Why a cgroup is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A unit.
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    /// It has not what it needs.
    #[error("cgroup {name} has some missing {what}: {missing}")]
    Missing {
        /// The cgroup, as stock quotes it.
        name: String,
        /// `controllers` or `paths`.
        what: &'static str,
        /// Those that are missing.
        missing: String,
    },
    /// It cannot be looked at.
    #[error("could not read controllers for cgroup {name}: {source}")]
    Unreadable {
        /// The cgroup.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The root of all is nobody's to remove.
    #[error("the root cgroup is not removed")]
    Root,
}

/// The cgroups of this machine, as one driver keeps them.
#[derive(Clone, Debug)]
pub struct Tree {
    layout: Layout,
    driver: Driver,
    units: Arc<dyn Units>,
}

impl Tree {
    /// The cgroups of this machine.
    pub fn detect(driver: Driver) -> Self {
        Self::new(Layout::detect(), driver, Arc::new(Systemd::default()))
    }

    /// The cgroups of these hierarchies; `units` are asked with the systemd driver only.
    pub fn new(layout: Layout, driver: Driver, units: Arc<dyn Units>) -> Self {
        Self { layout, driver, units }
    }

    /// No cgroups: nothing is ever written.
    pub fn absent() -> Self {
        Self::new(Layout::Absent, Driver::Cgroupfs, Arc::new(Systemd::default()))
    }

    /// Which hierarchies there are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Who makes cgroups.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Makes a cgroup, or brings one that is there to these limits.
    ///
    /// # Errors
    /// It cannot be made, or a limit is refused.
    pub async fn make(&self, name: &Name, limits: &Limits) -> Result<(), Error> {
        self.apply(&plan::make(&self.layout, self.driver, name, limits)).await
    }

    /// Changes the limits of a cgroup that is there.
    ///
    /// # Errors
    /// A limit is refused; memory, for one, is not taken from those who use it.
    pub async fn update(&self, name: &Name, limits: &Limits) -> Result<(), Error> {
        self.apply(&plan::update(&self.layout, self.driver, name, limits)).await
    }

    /// Kills what is in a cgroup and below. Does not wait for its end.
    pub fn kill(&self, name: &Name) {
        if !name.is_root() {
            self.layout.folders(&name.path(self.driver)).iter().for_each(|folder| kill(folder));
        }
    }

    /// Has this process live in a cgroup, which is made where it is not there; written as folders whatever the driver, as
    /// stock does with `kubeletCgroups`.
    ///
    /// # Errors
    /// It cannot be made or entered in some hierarchy.
    pub fn enter(&self, path: &str) -> Result<(), Error> {
        if let Layout::Separate(all) = &self.layout
            && let Some((_, root)) = all.iter().find(|(name, _)| name == "cpuset")
        {
            hand_cores_down(root, Path::new(path.trim_start_matches('/')))?;
        }
        for folder in self.layout.folders(path) {
            fs::create_dir_all(&folder).map_err(failed("make cgroup", &folder))?;
            write(&folder.join("cgroup.procs"), "0", false)?;
        }
        Ok(())
    }

    /// Kills what is in a cgroup and removes it with all below.
    ///
    /// # Errors
    /// Something in it is still alive, or a unit cannot be stopped.
    pub async fn remove(&self, name: &Name) -> Result<(), Error> {
        if name.is_root() {
            return Err(Error::Root);
        }
        let folders = self.layout.folders(&name.path(self.driver));
        if !folders.iter().any(|folder| folder.exists()) {
            return Ok(());
        }
        let steps = plan::remove(&self.layout, self.driver, name);
        let mut result = Ok(());
        for attempt in 0..ATTEMPTS {
            for folder in &folders {
                kill(folder);
            }
            result = self.apply(&steps).await;
            if result.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2 << attempt)).await;
        }
        result
    }

    /// Checks that a cgroup is there with all that the kubelet limits by.
    ///
    /// # Errors
    /// What is missing, in stock's words.
    pub fn validate(&self, name: &Name) -> Result<(), Error> {
        let (path, quoted) = (name.path(self.driver), name.quoted());
        let missing: (&'static str, Vec<String>) = match &self.layout {
            Layout::Unified(root) => {
                let unreadable = |source| Error::Unreadable { name: quoted.clone(), source };
                let there = controllers(root).map_err(unreadable)?;
                let enabled = controllers(&root.join(path.trim_start_matches('/'))).map_err(unreadable)?;
                let wanted = NEEDED.into_iter().filter(|name| there.contains(*name) && !enabled.contains(*name));
                ("controllers", wanted.map(str::to_owned).collect())
            }
            Layout::Separate(all) => {
                let wanted = all.iter().filter(|(controller, _)| NEEDED_SEPARATE.contains(&controller.as_str()));
                let folders = wanted.map(|(_, root)| root.join(path.trim_start_matches('/')));
                (
                    "paths",
                    folders.filter(|folder| !folder.exists()).map(|folder| folder.display().to_string()).collect(),
                )
            }
            Layout::Absent => ("controllers", Vec::new()),
        };
        match missing {
            (_, missing) if missing.is_empty() => Ok(()),
            (what, missing) => Err(Error::Missing { name: quoted, what, missing: missing.join(", ") }),
        }
    }

    /// The cgroups right below one, in whichever hierarchy.
    pub fn children(&self, name: &Name) -> BTreeSet<Name> {
        let mut found = BTreeSet::new();
        for folder in self.layout.folders(&name.path(self.driver)) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let folder = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Some(part) = name.part_of(&folder, self.driver)
                {
                    found.insert(name.child(&part));
                }
            }
        }
        found
    }

    async fn apply(&self, steps: &[Step]) -> Result<(), Error> {
        let mut result = Ok(());
        for step in steps {
            tracing::trace!(%step, "cgroup");
            let done = match step {
                Step::Start { unit, properties } => self.units.start(unit, properties).await.map_err(Error::from),
                Step::Set { unit, properties } => self.units.set(unit, properties).await.map_err(Error::from),
                Step::Stop { unit } => self.units.stop(unit).await.map_err(Error::from),
                Step::Make { root, inside, hand_down } => make(root, inside, *hand_down),
                Step::Write { file, value, optional } => write(file, value, *optional),
                Step::Remove { folder } => remove(folder),
            };
            // What can still be done is done: a limit that is refused must not keep the others from being set.
            result = result.and(done);
        }
        result
    }
}

fn failed<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { doing: doing.to_owned(), path: path.display().to_string(), source }
}

fn make(root: &Path, inside: &Path, hand_down: bool) -> Result<(), Error> {
    let mut folder = root.to_path_buf();
    for part in inside.components() {
        if hand_down {
            hand_controllers_down(&folder);
        }
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make cgroup", &folder)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the folders down from the root of the version 1 cpuset hierarchy, each with its parent's cores and memory nodes:
/// without any of its own a cgroup there takes no process.
fn hand_cores_down(root: &Path, inside: &Path) -> Result<(), Error> {
    let mut folder = root.to_path_buf();
    for part in inside.components() {
        let above = folder.clone();
        folder.push(part);
        make(&above, Path::new(part.as_os_str()), false)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let read =
                |folder: &Path| fs::read_to_string(folder.join(file)).map_err(failed("read", &folder.join(file)));
            if read(&folder)?.trim().is_empty() {
                write(&folder.join(file), read(&above)?.trim(), false)?;
            }
        }
    }
    Ok(())
}

/// One at a time: one that is refused (there are processes, or it cannot be had here) must not hold up the others. What
/// is missing in the end shows where its file is written.
fn hand_controllers_down(folder: &Path) {
    let file = folder.join("cgroup.subtree_control");
    let handed = words(&file).unwrap_or_default();
    let there = controllers(folder).unwrap_or_default();
    for controller in HANDED_DOWN.into_iter().filter(|name| there.contains(*name) && !handed.contains(*name)) {
        if let Err(error) = fs::write(&file, format!("+{controller}")) {
            tracing::debug!(controller, folder = %folder.display(), %error, "a controller is not handed down");
        }
    }
}

fn controllers(folder: &Path) -> io::Result<BTreeSet<String>> {
    words(&folder.join("cgroup.controllers"))
}

fn words(file: &Path) -> io::Result<BTreeSet<String>> {
    Ok(fs::read_to_string(file)?.split_whitespace().map(str::to_owned).collect())
}

/// The kernel's files are written, never made: in a folder that is no cgroup nothing may seem to be limited.
fn write(file: &Path, value: &str, optional: bool) -> Result<(), Error> {
    let written = fs::OpenOptions::new().write(true).truncate(true).open(file);
    let written = written.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    match written {
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed(&format!("write {value} to"), file)),
    }
}

/// Removes a cgroup's folder, those in it first.
fn remove(folder: &Path) -> Result<(), Error> {
    for inner in inner(folder) {
        remove(&inner)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove cgroup", folder)(error)),
        _ => Ok(()),
    }
}

fn inner(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Kills every process in a cgroup and below.
fn kill(folder: &Path) {
    // Linux 5.14 has it, in the unified hierarchy: no process escapes by forking.
    if fs::OpenOptions::new()
        .write(true)
        .open(folder.join("cgroup.kill"))
        .is_ok_and(|mut file| io::Write::write_all(&mut file, b"1").is_ok())
    {
        return;
    }
    for inner in inner(folder) {
        kill(&inner);
    }
    let members = || words(&folder.join("cgroup.procs")).unwrap_or_default();
    for member in members() {
        let Some(pid) = member.parse().ok().and_then(Pid::from_raw) else { continue };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The id may have been given to somebody else since; what the descriptor means no longer changes.
        if members().contains(&member) {
            tracing::info!(pid = pid.as_raw_nonzero().get(), cgroup = %folder.display(), "killing what is left in a cgroup");
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Amount;
    use crate::plan::Property;
    use std::sync::{Mutex, PoisonError};

    /// Units as a list of what was asked.
    #[derive(Debug, Default)]
    struct Recorded(Mutex<Vec<String>>);

    impl Recorded {
        fn note(&self, what: &str, unit: &str) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{what} {unit}"));
        }
    }

    #[async_trait::async_trait]
    impl Units for Recorded {
        async fn start(&self, unit: &str, _: &[Property]) -> Result<(), systemd::Error> {
            self.note("start", unit);
            Ok(())
        }
        async fn set(&self, unit: &str, _: &[Property]) -> Result<(), systemd::Error> {
            self.note("set", unit);
            Ok(())
        }
        async fn stop(&self, unit: &str) -> Result<(), systemd::Error> {
            self.note("stop", unit);
            Ok(())
        }
    }

    /// A folder in which the kernel's files of `name` stand ready.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        root
    }

    #[tokio::test]
    async fn limits_reach_files_and_units() {
        let root = folder(&["kubepods.slice/memory.max", "kubepods.slice/cpu.weight"]);
        let units = Arc::new(Recorded::default());
        let tree = Tree::new(Layout::Unified(root.path().into()), Driver::Systemd, units.clone());
        let name = Name::from_path("kubepods");
        let limits = Limits { shares: Some(1024), memory: Some(Amount::Max), ..Limits::default() };
        tree.make(&name, &limits).await.unwrap();
        assert_eq!(fs::read_to_string(root.path().join("kubepods.slice/memory.max")).unwrap(), "max");
        assert_eq!(*units.0.lock().unwrap(), ["start kubepods.slice", "set kubepods.slice"]);
        // What is no file of the kernel's is not made; the rest is set all the same.
        let more = Limits { pids: Some(Amount::Of(5)), memory: Some(Amount::Of(7)), ..Limits::default() };
        let error = tree.update(&name, &more).await.unwrap_err().to_string();
        assert!(error.starts_with("write 5 to ") && error.contains("kubepods.slice/pids.max: "), "{error}");
        assert_eq!(fs::read_to_string(root.path().join("kubepods.slice/memory.max")).unwrap(), "7");
        assert!(matches!(tree.remove(&Name::default()).await, Err(Error::Root)));
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = folder(&["a/cgroup.controllers"]);
        fs::write(root.path().join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        fs::write(root.path().join("a/cgroup.controllers"), "memory\n").unwrap();
        let tree = Tree::new(Layout::Unified(root.path().into()), Driver::Cgroupfs, Arc::new(Recorded::default()));
        let error = tree.validate(&Name::from_path("a")).unwrap_err().to_string();
        assert_eq!(error, "cgroup [\"a\"] has some missing controllers: cpu, pids");
        let error = tree.validate(&Name::from_path("a/b")).unwrap_err().to_string();
        assert!(error.starts_with("could not read controllers for cgroup [\"a\" \"b\"]: "), "{error}");
    }

    #[test]
    fn children_of_either_driver() {
        let root = folder(&["kubepods.slice/kubepods-pod1_2.slice/x", "kubepods.slice/cri-containerd-1.scope/x"]);
        let units = Arc::new(Recorded::default());
        let tree = Tree::new(Layout::Unified(root.path().into()), Driver::Systemd, units);
        let children = tree.children(&Name::from_path("kubepods"));
        assert_eq!(children.into_iter().collect::<Vec<_>>(), [Name::from_path("kubepods/pod1-2")]);
    }
}
