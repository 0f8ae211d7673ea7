//! A machine inside this one, emulated by QEMU: Debian's kernel, version 2 cgroups alone, systemd as process 1. For what
//! the machine at hand may not have. It needs no KVM, and nothing is mounted here: its disk is made as a file.
//!
//! It boots in some ten seconds, runs one script, says what it says over its second serial line, and ends. Its processor
//! is slow and its behaviour right: it is for function, not for speed.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::program::run;
use crate::tools::{BUSYBOX, CONTAINERD_2_1, RUNC, Tools};

/// The guest's disk, most of it never written.
const DISK: &str = "4G";
/// How often its lines are read.
const LOOK: Duration = Duration::from_millis(200);
/// What starts on it and nothing else.
const TARGET: &str = "[Unit]\nRequires=basic.target tests.service\nAfter=basic.target\nAllowIsolate=yes\n";
/// The script as a unit. It is not stopped by a shutdown but ends with the machine, so that it can tell of one.
const UNIT: &str = "\
[Unit]
DefaultDependencies=no
Requires=dbus.socket
After=basic.target dbus.socket
FailureAction=poweroff-force
SuccessAction=poweroff-force
[Service]
Type=oneshot
KillMode=process
Environment=PATH=/usr/sbin:/usr/bin HOME=/root
ExecStart=/bin/bash /tests/script
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
";
/// Users and groups that systemd and the bus look up.
const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash
messagebus:x:100:100::/nonexistent:/usr/sbin/nologin
systemd-network:x:998:998::/:/usr/sbin/nologin
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
";
/// See [`PASSWD`].
const GROUP: &str = "\
root:x:0:
tty:x:5:
disk:x:6:
lp:x:7:
kmem:x:15:
dialout:x:20:
cdrom:x:24:
tape:x:26:
audio:x:29:
shadow:x:42:
utmp:x:43:
video:x:44:
messagebus:x:100:
input:x:106:
kvm:x:107:
render:x:108:
sgx:x:109:
systemd-network:x:998:
systemd-journal:x:999:
nogroup:x:65534:
";

/// A machine that has not been started yet.
#[derive(Debug)]
pub struct Guest {
    folder: PathBuf,
    root: PathBuf,
}

impl Guest {
    /// Makes a guest in `folder` (which is emptied): the fetched root file system, configured, with containerd and runc.
    ///
    /// # Errors
    /// A file cannot be copied; a program is missing.
    pub fn new(folder: PathBuf, fetched: &Path, tools: &Tools) -> Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        let root = folder.join("root");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Links to the fetched files: nothing writes into any of them.
        run(Command::new("cp").arg("-al").arg(fetched).arg(&root))?;
        let guest = Self { folder, root };
        guest.configure()?;
        for package in [&CONTAINERD_2_1, &RUNC, &BUSYBOX] {
            for entry in fs::read_dir(tools.folder(package))? {
                let file = entry?.path();
                let program = guest.root.join("usr/bin").join(file.file_name().unwrap_or_default());
                let _ = fs::remove_file(&program);
                fs::copy(&file, program)?;
            }
        }
        Ok(guest)
    }

    fn configure(&self) -> Result<()> {
        for folder in [
            "dev",
            "etc/systemd/system",
            "etc/tmpfiles.d",
            "mnt",
            "opt",
            "proc",
            "root",
            "run",
            "sys",
            "tests",
            "tmp",
            "var/lib",
            "var/log",
            "var/tmp",
        ] {
            fs::create_dir_all(self.root.join(folder))?;
        }
        fs::set_permissions(self.root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        for (link, to) in [("usr/bin/sh", "bash"), ("var/run", "/run")] {
            let link = self.root.join(link);
            let _ = fs::remove_file(&link).or_else(|_| fs::remove_dir_all(&link));
            symlink(to, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        let files = [
            ("etc/passwd", PASSWD),
            ("etc/group", GROUP),
            ("etc/fstab", ""),
            ("etc/hostname", "guest\n"),
            ("etc/hosts", "127.0.0.1 localhost guest\n"),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("etc/systemd/system/tests.target", TARGET),
            // In place of systemd's own, which empties /tmp at the start: our tree may be there.
            ("etc/tmpfiles.d/tmp.conf", ""),
            ("etc/systemd/system/tests.service", UNIT),
        ];
        for (path, text) in files {
            let path = self.root.join(path);
            // What a package brought is a link to the fetched tree, which must stay as it is.
            let _ = fs::remove_file(&path);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let modules =
            fs::read_dir(self.root.join("usr/lib/modules"))?.next().context("the guest has no kernel modules")??;
        run(Command::new("chroot").arg(&self.root).arg("/usr/sbin/depmod").arg(modules.file_name()))?;
        Ok(())
    }

    /// Puts a program of ours at the same path as it has here, without what only a debugger reads.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn put(&self, program: &Path) -> Result<()> {
        let place = self.root.join(program.strip_prefix("/").context("a program's path must be absolute")?);
        fs::create_dir_all(place.parent().context("a program is in a folder")?)?;
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&place).arg(program))?;
        Ok(())
    }

    /// Starts the machine with a script for bash; its words can be followed line by line.
    ///
    /// # Errors
    /// The disk cannot be made, or QEMU does not start.
    pub fn boot(self, script: &str) -> Result<Running> {
        fs::write(self.root.join("tests/script"), script)?;
        let disk = self.folder.join("disk");
        // Without a journal: the disk is used once.
        let mut make = Command::new("/usr/sbin/mke2fs");
        make.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&self.root).arg(&disk).arg(DISK);
        run(&mut make).context("the guest's disk cannot be made")?;
        let kernel = fs::read_dir(self.root.join("boot"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
            .context("the guest has no kernel")?;
        let (console, words) = (self.folder.join("console.log"), self.folder.join("words.log"));
        File::create(&words)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
        qemu.args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(kernel).arg("-append").arg(
            "root=/dev/nvme0n1 rw console=ttyS0 panic=-1 mitigations=off systemd.unified_cgroup_hierarchy=1 systemd.unit=tests.target",
        );
        qemu.arg("-drive").arg(format!("file={},format=raw,if=none,id=disk,cache=unsafe", disk.display()));
        qemu.args(["-device", "nvme,serial=disk,drive=disk"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.arg("-serial").arg(format!("file:{}", words.display()));
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = qemu.spawn().context("qemu-system-x86_64 cannot be run; is it installed?")?;
        Ok(Running { child, words, console, read: 0, rest: String::new() })
    }
}

/// A machine that runs; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    words: PathBuf,
    console: PathBuf,
    read: u64,
    rest: String,
}

impl Running {
    /// What the guest's kernel and systemd said.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// Hands each line that the script prints to `line`, until the machine ends by itself.
    ///
    /// # Errors
    /// It does not end in time, or QEMU fails.
    pub fn follow(mut self, limit: Duration, mut line: impl FnMut(&str)) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait()?;
            for text in self.fresh()? {
                line(&text);
            }
            match ended {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let mut words = String::new();
                    let _ = self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut words));
                    bail!("qemu-system-x86_64 failed ({status}): {}", words.trim());
                }
                None if Instant::now() > end => {
                    bail!("the guest is not done within {limit:?}; see {}", self.console.display());
                }
                None => thread::sleep(LOOK),
            }
        }
    }

    /// The lines that have come since, without the line's carriage returns.
    fn fresh(&mut self) -> Result<Vec<String>> {
        let mut file = File::open(&self.words)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let Some(last) = self.rest.rfind('\n') else { return Ok(Vec::new()) };
        let rest = self.rest.split_off(last + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        Ok(whole.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
