//! The kernel's settings that a node needs, as stock checks them (`protectKernelDefaults`).
//!
//! They are the machine's, not a namespace's. So they are set only by a kubelet that stands for the machine: one whose
//! network namespace is that of process 1. Several nodes on one machine (each in a namespace of its own) leave them
//! and say so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A setting by its path below `/proc/sys`, and the value that a node needs.
///
/// Memory is promised beyond what there is, since limits add up to more; the OOM killer, not a panic, answers its lack;
/// an oops ends in a reboot after ten seconds; and root's keys suffice for one keyring a container.
const NEEDED: [(&str, i64); 6] = [
    ("vm/overcommit_memory", 1),
    ("vm/panic_on_oom", 0),
    ("kernel/panic", 10),
    ("kernel/panic_on_oops", 1),
    ("kernel/keys/root_maxkeys", 1_000_000),
    ("kernel/keys/root_maxbytes", 25_000_000),
];

/// What is done about a setting with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The start fails (`protectKernelDefaults: true`).
    Refuse,
    /// It is set (stock's default).
    Set,
    /// It is set, and a refusal is only told (stock in a user namespace, by the gate `KubeletInUserNamespace`).
    TrySet,
    /// It is told and left.
    Leave,
}

/// One step to bring the settings about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Write this value.
    Write(&'static str, i64),
    /// Say that this setting, wanted so, is otherwise.
    Tell(&'static str, i64, i64),
    /// Fail with this text.
    Fail(String),
}

/// What to do about settings that were found so.
fn plan(found: &[(&'static str, i64, io::Result<i64>)], policy: Policy) -> Vec<Step> {
    let step = |(name, wanted, actual): &(&'static str, i64, io::Result<i64>)| match actual {
        Err(error) => Some(Step::Fail(format!("read {name}: {error}"))),
        Ok(actual) if actual == wanted => None,
        Ok(actual) => Some(match policy {
            Policy::Refuse => {
                Step::Fail(format!("invalid kernel flag: {name}, expected value: {wanted}, actual value: {actual}"))
            }
            Policy::Set | Policy::TrySet => Step::Write(name, *wanted),
            Policy::Leave => Step::Tell(name, *wanted, *actual),
        }),
    };
    found.iter().filter_map(step).collect()
}

/// Where the settings are and whose they are.
#[derive(Clone, Debug)]
pub struct Kernel {
    proc: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { proc: "/proc".into() }
    }
}

impl Kernel {
    /// Of a `proc` filesystem elsewhere.
    pub fn at(proc: &Path) -> Self {
        Self { proc: proc.to_owned() }
    }

    /// Whether this process stands for the machine: its network namespace is process 1's. Not if that cannot be told.
    pub fn is_machine(&self) -> bool {
        let namespace = |process: &str| fs::read_link(self.proc.join(process).join("ns/net")).ok();
        namespace("self").is_some_and(|own| namespace("1") == Some(own))
    }

    /// Has the settings as a node needs them, or says which are not.
    ///
    /// # Errors
    /// A setting cannot be read, has another value and must not ([`Policy::Refuse`]), or cannot be set
    /// ([`Policy::Set`]); all such at once, each in stock's words.
    pub fn prepare(&self, policy: Policy) -> Result<(), String> {
        let found: Vec<_> = NEEDED.iter().map(|(name, wanted)| (*name, *wanted, self.read(name))).collect();
        let mut failures = Vec::new();
        for step in plan(&found, policy) {
            match step {
                Step::Fail(text) => failures.push(text),
                Step::Tell(name, wanted, actual) => {
                    tracing::warn!(name, wanted, actual, "a kernel setting is not as pods need it; it is left so");
                }
                Step::Write(name, value) => {
                    tracing::info!(name, value, "setting");
                    match fs::write(self.path(name), value.to_string()) {
                        Ok(()) => {}
                        Err(error) if policy == Policy::TrySet => {
                            tracing::warn!(name, value, %error, "a kernel setting was not set");
                        }
                        Err(error) => failures.push(format!(
                            "open {}: {error} (set {name} to {value} by sysctl(8), or run the kubelet as root)",
                            self.path(name).display()
                        )),
                    }
                }
            }
        }
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(format!("[{}]", failures.join(", "))),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.proc.join("sys").join(name)
    }

    fn read(&self, name: &str) -> io::Result<i64> {
        let text = fs::read_to_string(self.path(name))?;
        text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine of files: nothing here touches the one that the test runs on.
    fn machine(values: [i64; 6]) -> (tempfile::TempDir, Kernel) {
        let folder = tempfile::tempdir().unwrap();
        let kernel = Kernel::at(folder.path());
        for ((name, _), value) in NEEDED.iter().zip(values) {
            let path = kernel.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        (folder, kernel)
    }

    fn values(kernel: &Kernel) -> Vec<i64> {
        NEEDED.iter().map(|(name, _)| kernel.read(name).unwrap()).collect()
    }

    const GOOD: [i64; 6] = [1, 0, 10, 1, 1_000_000, 25_000_000];
    const FRESH: [i64; 6] = [0, 0, 1, 0, 1_000_000, 25_000_000];

    #[test]
    fn protected_settings_fail_the_start_in_stock_s_words_and_stay() {
        let (_folder, kernel) = machine(FRESH);
        let error = kernel.prepare(Policy::Refuse).unwrap_err();
        let flag = |text: &str| format!("invalid kernel flag: {text}");
        let want = [
            flag("vm/overcommit_memory, expected value: 1, actual value: 0"),
            flag("kernel/panic, expected value: 10, actual value: 1"),
            flag("kernel/panic_on_oops, expected value: 1, actual value: 0"),
        ];
        assert_eq!(error, format!("[{}]", want.join(", ")));
        assert_eq!(values(&kernel), FRESH);
        let (_folder, kernel) = machine([0, 0, 10, 1, 1_000_000, 25_000_000]);
        assert_eq!(kernel.prepare(Policy::Refuse).unwrap_err(), want[0]);
        assert_eq!(machine(GOOD).1.prepare(Policy::Set), machine(GOOD).1.prepare(Policy::Refuse));
    }

    #[test]
    fn settings_are_set_or_left() {
        let (_folder, kernel) = machine(FRESH);
        kernel.prepare(Policy::Leave).unwrap();
        assert_eq!(values(&kernel), FRESH);
        kernel.prepare(Policy::Set).unwrap();
        assert_eq!(values(&kernel), GOOD);
        kernel.prepare(Policy::Refuse).unwrap();
    }

    #[test]
    fn a_host_that_refuses_fails_the_start_but_not_in_a_user_namespace() {
        let (_folder, kernel) = machine(FRESH);
        let path = kernel.path("kernel/panic");
        fs::remove_file(&path).unwrap();
        // A number that the kernel lets no one write, root neither.
        symlink("/proc/sys/kernel/ngroups_max", &path).unwrap();
        let error = kernel.prepare(Policy::Set).unwrap_err();
        assert!(error.contains("kernel/panic") && error.contains("Permission denied"), "{error}");
        kernel.prepare(Policy::TrySet).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(kernel.prepare(Policy::TrySet).unwrap_err().starts_with("read kernel/panic: "));
    }

    #[test]
    fn steps() {
        let found = || vec![("a", 1, Ok(0)), ("b", 2, Ok(2)), ("c", 3, Err(io::ErrorKind::NotFound.into()))];
        let lost = Step::Fail("read c: entity not found".into());
        assert_eq!(plan(&found(), Policy::Set), [Step::Write("a", 1), lost.clone()]);
        assert_eq!(plan(&found(), Policy::Leave), [Step::Tell("a", 1, 0), lost]);
    }

    #[test]
    fn only_who_shares_the_first_process_s_network_is_the_machine() {
        let (folder, kernel) = machine(GOOD);
        assert!(!kernel.is_machine(), "it cannot be told");
        for (process, namespace) in [("self", "net:[1]"), ("1", "net:[2]")] {
            fs::create_dir_all(folder.path().join(process).join("ns")).unwrap();
            symlink(namespace, folder.path().join(process).join("ns/net")).unwrap();
        }
        assert!(!kernel.is_machine());
        fs::remove_file(folder.path().join("self/ns/net")).unwrap();
        symlink("net:[2]", folder.path().join("self/ns/net")).unwrap();
        assert!(kernel.is_machine());
    }
}
