//! Programs that are not ours: fetched from Debian and PyPI into `target/deps`, the system left alone where it can be.
//!
//! The mirror and its key are the system's own; suites newer than the system's are read through a private apt
//! configuration (own lists, own cache). What has a daemon or may clash with another's copy is unpacked, not installed.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::program::{call, output, run, succeeds};
use crate::{Layout, Say};

/// Debian's name for the release the system must be.
const RELEASE: &str = "bookworm";
/// Suites read beside it, for newer parts.
const NEWER: [&str; 2] = ["trixie", "sid"];
/// Signs every Debian suite.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Installed into the system: command-line programs without a daemon, and libraries.
const SYSTEM: &[&str] = &["iproute2", "nftables", "iptables", "conntrack", "libseccomp2"];
/// Installed besides for the tests.
const SYSTEM_FOR_TESTS: &[&str] = &["bsdutils", "curl", "python3", "python3-venv"];

/// A Debian package unpacked below `target/deps`.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// The suite it is taken from.
    pub suite: &'static str,
    /// The program it is fetched for, within the package.
    pub program: &'static str,
}

/// containerd 1.6.20, without an event stream in its CRI.
pub const CONTAINERD_1_6: Package = Package { name: "containerd", suite: RELEASE, program: "usr/bin/containerd" };
/// containerd 2.1.9.
pub const CONTAINERD_2_1: Package = Package { name: "containerd", suite: "sid", program: "usr/bin/containerd" };
/// runc 1.1.5; newer ones want a newer C library.
pub const RUNC: Package = Package { name: "runc", suite: RELEASE, program: "usr/sbin/runc" };
/// kubectl 1.20.
pub const KUBECTL_OLD: Package = Package { name: "kubernetes-client", suite: RELEASE, program: "usr/bin/kubectl" };
/// kubectl 1.36.
pub const KUBECTL: Package = Package { name: "kubectl", suite: "sid", program: "usr/bin/kubectl" };
/// The reference CNI plugins 1.9.1, the peer of ours.
pub const CNI_PLUGINS: Package =
    Package { name: "containernetworking-plugins", suite: "sid", program: "usr/lib/cni/bridge" };
/// What a guest machine needs besides: its kernel, systemd with a bus, and the programs that tests call.
const GUEST: &[&str] = &[
    "linux-image-cloud-amd64",
    "systemd",
    "systemd-sysv",
    "dbus",
    "kmod",
    "bash",
    "coreutils",
    "curl",
    "iproute2",
    "mount",
    "util-linux",
];
/// Wanted only by scripts that run when a package is installed; in a guest they are unpacked.
const NOT_IN_GUEST: &[&str] =
    &["debconf", "dpkg", "initramfs-tools", "klibc", "libgdbm", "libklibc", "libperl", "perl", "usrmerge"];
/// Installed into the system for guests: the machine, and what makes its disk.
const SYSTEM_FOR_GUESTS: &[&str] = &["qemu-system-x86", "e2fsprogs"];
/// One static binary with a shell and the usual commands, for an image.
pub const BUSYBOX: Package = Package { name: "busybox-static", suite: RELEASE, program: "bin/busybox" };

/// What a cluster needs.
const FOR_A_CLUSTER: &[&Package] = &[&CONTAINERD_1_6, &CONTAINERD_2_1, &RUNC, &KUBECTL, &BUSYBOX];
/// What tests and benchmark need besides.
const FOR_TESTS: &[&Package] = &[&KUBECTL_OLD, &CNI_PLUGINS];

/// How much to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What `up` needs.
    Cluster,
    /// And what only tests and benchmark need.
    Tests,
}

/// The fetched programs.
#[derive(Clone, Debug)]
pub struct Tools {
    deps: PathBuf,
}

impl Tools {
    /// Fetches what is missing. Without anything missing it is instant and needs no network.
    pub fn fetch(layout: &Layout, scope: Scope, say: Say<'_>) -> Result<Self> {
        let tools = Self { deps: layout.deps() };
        if !geteuid().is_root() {
            bail!("nodes need root: namespaces, mounts and cgroups are made; run this as root");
        }
        let _one_at_a_time = lock(&tools.deps)?;
        let mut system = SYSTEM.to_vec();
        let mut packages = FOR_A_CLUSTER.to_vec();
        if scope == Scope::Tests {
            system.extend(SYSTEM_FOR_TESTS);
            packages.extend(FOR_TESTS);
        }
        install(&system, say)?;
        packages.retain(|package| !tools.path(package).exists());
        if !packages.is_empty() {
            let apt = PrivateApt::new(&tools.deps)?;
            say("reading Debian's package lists");
            apt.update()?;
            for package in packages {
                say(&format!("fetching {} ({})", package.name, package.suite));
                apt.unpack(package, &tools.deps)?;
            }
        }
        if scope == Scope::Tests && !succeeds(&tools.python().to_string_lossy(), &["-c", "import kubernetes"]) {
            say("fetching the Python client");
            tools.fetch_python_client()?;
        }
        Ok(tools)
    }

    /// Fetches what a guest machine is made of, and returns the folder of its root file system: Debian packages of the
    /// system's release with all that they need, unpacked. Nothing in it is configured.
    pub fn fetch_guest(&self, say: Say<'_>) -> Result<PathBuf> {
        let _one_at_a_time = lock(&self.deps)?;
        install(SYSTEM_FOR_GUESTS, say)?;
        let root = self.deps.join("guest-root");
        if root.exists() {
            return Ok(root);
        }
        let apt = PrivateApt::new(&self.deps)?;
        say("reading Debian's package lists");
        apt.update()?;
        say("fetching a guest's kernel, systemd and programs");
        let archives = apt.download_whole(GUEST)?;
        let partial = self.deps.join("guest-root.partial");
        let _ = fs::remove_dir_all(&partial);
        // Debian's packages still have /bin and /lib; a system has links there.
        for folder in ["bin", "lib", "lib64", "sbin"] {
            fs::create_dir_all(partial.join("usr").join(folder))?;
            symlink(Path::new("usr").join(folder), partial.join(folder))?;
        }
        for entry in fs::read_dir(&archives)? {
            let archive = entry?.path();
            let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let wanted = name.ends_with(".deb") && !NOT_IN_GUEST.iter().any(|other| name.starts_with(other));
            if wanted {
                unpack_into(&archive, &partial)?;
            }
        }
        fs::remove_dir_all(&archives)?;
        fs::rename(&partial, &root)?;
        Ok(root)
    }

    /// The program a package was fetched for.
    pub fn path(&self, package: &Package) -> PathBuf {
        self.deps.join(link_name(package)).join(package.program)
    }

    /// The folder of that program.
    pub fn folder(&self, package: &Package) -> PathBuf {
        self.path(package).parent().map(Path::to_owned).unwrap_or_default()
    }

    /// A Python with the official client.
    pub fn python(&self) -> PathBuf {
        self.deps.join("python/bin/python3")
    }

    fn fetch_python_client(&self) -> Result<()> {
        let folder = self.deps.join("python");
        let _ = fs::remove_dir_all(&folder);
        run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(folder.join("bin/pip")).args(["--quiet", "--no-input", "install", "kubernetes"]))
            .context("the Python client cannot be fetched from PyPI")?;
        Ok(())
    }
}

/// Package lists and downloads of our own, read with the system's apt from the system's mirror.
struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    fn new(deps: &Path) -> Result<Self> {
        let folder = deps.join("apt");
        for inner in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(inner)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let apt = Self { folder };
        let mirror = mirror()?;
        fs::write(apt.folder.join("sources.list"), sources(&mirror, Path::new(KEYRING).exists()))?;
        fs::write(apt.folder.join("apt.conf"), configuration(&apt.folder))?;
        Ok(apt)
    }

    fn update(&self) -> Result<()> {
        run(self.apt().arg("update")).context("Debian's package lists cannot be read; is its mirror reachable?")?;
        Ok(())
    }

    /// Downloads into a folder of its own and unpacks beside the final place, so that what is there is whole.
    fn unpack(&self, package: &Package, deps: &Path) -> Result<()> {
        let archives = self.folder.join("download");
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(&archives)?;
        let wanted = format!("{}/{}", package.name, package.suite);
        run(self.apt().args(["download", &wanted]).current_dir(&archives))
            .with_context(|| format!("{wanted} cannot be fetched"))?;
        let archive = fs::read_dir(&archives)?.next().context("apt downloaded nothing")??.path();
        let version = run(Command::new("dpkg-deb").arg("-f").arg(&archive).arg("Version"))?;
        let name = format!("{}-{}", package.name, version.trim().replace(':', "_"));
        let partial = deps.join(format!("{name}.partial"));
        let _ = fs::remove_dir_all(&partial);
        run(Command::new("dpkg").arg("-x").arg(&archive).arg(&partial))?;
        let _ = fs::remove_dir_all(deps.join(&name));
        fs::rename(&partial, deps.join(&name))?;
        let link = deps.join(link_name(package));
        let _ = fs::remove_file(&link);
        symlink(&name, &link).with_context(|| format!("cannot make {}", link.display()))?;
        fs::remove_dir_all(&archives)?;
        if !link.join(package.program).exists() {
            bail!("{wanted} has no {}", package.program);
        }
        Ok(())
    }

    /// Downloads packages of the system's release with all that they need on a system where nothing is, and returns the
    /// folder they are in.
    fn download_whole(&self, packages: &[&str]) -> Result<PathBuf> {
        let archives = self.folder.join("whole");
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(archives.join("partial"))?;
        let nothing = self.folder.join("nothing-installed");
        fs::write(&nothing, "")?;
        let mut command = self.apt();
        command.arg("-o").arg(format!("Dir::State::status={}", nothing.display()));
        command.arg("-o").arg(format!("Dir::Cache::archives={}/", archives.display()));
        command.arg("-o").arg(format!("APT::Default-Release={RELEASE}"));
        command.args(["-y", "--no-install-recommends", "--download-only", "install"]).args(packages);
        run(&mut command).with_context(|| format!("{} cannot be fetched", packages.join(" ")))?;
        Ok(archives)
    }

    fn apt(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-qq").arg("-c").arg(self.folder.join("apt.conf"));
        command
    }
}

/// Unpacks a package over others, through the links of the tree; without what nobody reads in a test.
fn unpack_into(archive: &Path, root: &Path) -> Result<()> {
    let mut files = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped()).spawn()?;
    let mut tar = Command::new("tar");
    tar.arg("-xC").arg(root).arg("--keep-directory-symlink");
    for folder in ["doc", "locale", "man", "zoneinfo"] {
        tar.arg(format!("--exclude=./usr/share/{folder}/*"));
    }
    tar.stdin(files.stdout.take().context("dpkg-deb has no output")?);
    let unpacked = tar.status().context("tar cannot be run; is it installed?")?;
    if !files.wait()?.success() || !unpacked.success() {
        bail!("{} cannot be unpacked", archive.display());
    }
    Ok(())
}

fn link_name(package: &Package) -> String {
    format!("{}-{}", package.name, package.suite)
}

/// Held while fetching, so that two runs beside each other do not fetch the same; the kernel drops it at our end.
fn lock(deps: &Path) -> Result<File> {
    fs::create_dir_all(deps).with_context(|| format!("cannot make {}", deps.display()))?;
    let path = deps.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(lock)
}

/// Installs what is missing into the system.
fn install(packages: &[&str], say: Say<'_>) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(" ")));
    let mut install = Command::new("apt-get");
    install.args(["-qq", "-y", "--no-install-recommends", "install"]).args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    // The lists may be old or, on a fresh system, absent.
    if !output(&mut install)?.status.success() {
        call("apt-get", &["-qq", "update"]).context("the package lists cannot be read")?;
        run(&mut install).with_context(|| format!("cannot install {}", missing.join(" ")))?;
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    let status = output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]));
    status.is_ok_and(|output| output.stdout == b"installed")
}

/// The mirror the system takes its own release from.
fn mirror() -> Result<String> {
    let targets = call("apt-get", &["indextargets", "--format", "$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)"])
        .context("apt does not tell its sources; this works on Debian 12")?;
    choose_mirror(&targets).with_context(|| format!("apt's sources have no {RELEASE} main; this works on Debian 12"))
}

fn choose_mirror(targets: &str) -> Option<String> {
    let wanted = format!("Packages {RELEASE} main ");
    targets.lines().find_map(|line| line.strip_prefix(&wanted)).map(str::to_owned)
}

fn sources(mirror: &str, keyring: bool) -> String {
    let signed = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let suites = std::iter::once(RELEASE).chain(NEWER);
    suites.map(|suite| format!("deb {signed}{mirror} {suite} main\n")).collect()
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Sandbox::User "root";
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_systems() {
        let targets = "Translations bookworm main http://a/debian/\n\
            Packages bookworm-security main http://a/security/\n\
            Packages bookworm main http://b/debian/\n";
        assert_eq!(choose_mirror(targets).as_deref(), Some("http://b/debian/"));
        assert_eq!(choose_mirror("Packages jammy main http://u/"), None);
        assert_eq!(
            sources("http://b/debian/", false),
            "deb http://b/debian/ bookworm main\ndeb http://b/debian/ trixie main\ndeb http://b/debian/ sid main\n"
        );
    }
}
