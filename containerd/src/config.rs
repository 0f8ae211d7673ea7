//! containerd's configuration file, versions 2 (containerd 1.6 and 1.7) and 3 (containerd 2).

use std::path::PathBuf;

/// Which layout the file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigVersion {
    /// For containerd 1.x.
    Two,
    /// For containerd 2.x.
    Three,
}

impl ConfigVersion {
    /// Reads `containerd github.com/containerd/containerd 1.6.20~ds1 …`.
    pub(crate) fn of_program(printed: &str) -> Option<Self> {
        let version = printed.split_whitespace().nth(2)?;
        let major: u32 = version.trim_start_matches('v').split('.').next()?.parse().ok()?;
        match major {
            0 => None,
            1 => Some(Self::Two),
            _ => Some(Self::Three),
        }
    }
}

/// All that one containerd needs to stand beside others on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What must outlast a reboot: images, snapshots.
    pub root: PathBuf,
    /// What need not: running tasks.
    pub state: PathBuf,
    /// The CRI's socket.
    pub socket: PathBuf,
    /// Where containerd keeps programs of its own.
    pub opt: PathBuf,
    /// Where CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Where the CNI configuration is.
    pub cni_conf_dir: PathBuf,
    /// The image that holds a pod's namespaces.
    pub sandbox_image: String,
    /// runc, by path or name.
    pub runc: PathBuf,
    /// Where runc keeps its state.
    pub runc_root: PathBuf,
    /// Leave `oom_score_adj` where it is when it may not be lowered (no CAP_SYS_RESOURCE).
    pub restrict_oom_score_adj: bool,
    /// Whether cgroups are systemd's to make.
    pub systemd_cgroup: bool,
}

impl Settings {
    /// The file's text.
    pub fn render(&self, version: ConfigVersion) -> String {
        let head = format!(
            "version = {}\nroot = {}\nstate = {}\n\n[grpc]\naddress = {}\n\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {}\n",
            if version == ConfigVersion::Two { 2 } else { 3 },
            quoted(self.root.display()),
            quoted(self.state.display()),
            quoted(self.socket.display()),
            quoted(self.opt.display()),
        );
        let restrict = self.restrict_oom_score_adj;
        let conf_dir = quoted(self.cni_conf_dir.display());
        let bin_dir = quoted(self.cni_bin_dir.display());
        let sandbox = quoted(&self.sandbox_image);
        let (plugin, own) = match version {
            ConfigVersion::Two => (
                "io.containerd.grpc.v1.cri",
                format!(
                    "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {sandbox}\nrestrict_oom_score_adj = {restrict}\n\
                     netns_mounts_under_state_dir = true\nenable_unprivileged_ports = true\nenable_unprivileged_icmp = true\n\n\
                     [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {bin_dir}\nconf_dir = {conf_dir}\n"
                ),
            ),
            ConfigVersion::Three => (
                "io.containerd.cri.v1.runtime",
                format!(
                    "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {sandbox}\n\n\
                     [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = {restrict}\n\
                     netns_mounts_under_state_dir = true\nenable_cdi = false\n\n\
                     [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [{bin_dir}]\nconf_dir = {conf_dir}\n"
                ),
            ),
        };
        let runtime = format!(
            "[plugins.\"{plugin}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\n\
             [plugins.\"{plugin}\".containerd.runtimes.runc.options]\nBinaryName = {}\nRoot = {}\nSystemdCgroup = {}\n",
            quoted(self.runc.display()),
            quoted(self.runc_root.display()),
            self.systemd_cgroup,
        );
        format!("{head}\n{own}\n{runtime}")
    }
}

/// A TOML basic string.
fn quoted(text: impl std::fmt::Display) -> String {
    let escaped: String = text
        .to_string()
        .chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => format!("\\u{:04X}", u32::from(c)).chars().collect(),
            c => vec![c],
        })
        .collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            root: "/n/root".into(),
            state: "/n/state".into(),
            socket: "/n/containerd.sock".into(),
            opt: "/n/opt".into(),
            cni_bin_dir: "/n/cni/bin".into(),
            cni_conf_dir: "/n/cni/net.d".into(),
            sandbox_image: "localhost/pause:dev".into(),
            runc: "runc".into(),
            runc_root: "/n/runc".into(),
            restrict_oom_score_adj: true,
            systemd_cgroup: false,
        }
    }

    #[test]
    fn versions_by_what_the_program_prints() {
        let of = ConfigVersion::of_program;
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3";
        assert_eq!(of(debian), Some(ConfigVersion::Two));
        assert_eq!(of("containerd github.com/containerd/containerd/v2 v2.1.9 abc"), Some(ConfigVersion::Three));
        assert_eq!(of("something else"), None);
    }

    #[test]
    fn golden_version_2() {
        assert_eq!(settings().render(ConfigVersion::Two), include_str!("../tests/golden/config-v2.toml"));
    }

    #[test]
    fn golden_version_3() {
        assert_eq!(settings().render(ConfigVersion::Three), include_str!("../tests/golden/config-v3.toml"));
    }

    #[test]
    fn a_path_cannot_break_out_of_its_string() {
        assert_eq!(quoted("/a\"b\\c\n"), r#""/a\"b\\c\u000A""#);
    }
}
