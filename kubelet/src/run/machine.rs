//! What the kubelet asks of the machine that it runs on.

use anyhow::{Context as _, Result};
use bosun_kit::gates::FeatureGates;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::KubeletConfiguration;
use crate::kernel::{Kernel, Policy};
use crate::options::Options;

/// Looks after the kernel's settings, as far as they are this kubelet's to set.
pub(super) fn prepare_kernel(options: &Options, config: &KubeletConfiguration, gates: &FeatureGates) -> Result<()> {
    let kernel = Kernel::default();
    let policy = match config.protect_kernel_defaults {
        true => Policy::Refuse,
        false if options.leave_kernel_defaults || !kernel.is_machine() => Policy::Leave,
        false if gates.enabled("KubeletInUserNamespace") => Policy::TrySet,
        false => Policy::Set,
    };
    kernel.prepare(policy).map_err(anyhow::Error::msg).context("the kernel's settings (protectKernelDefaults)")
}

/// Lets this process have as many files open as the configuration says, or as the host lets it.
pub(super) fn open_files(wanted: i64) {
    let wanted = u64::try_from(wanted).unwrap_or_default();
    let set = |soft: u64, hard: u64| setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if set(wanted, wanted).is_err()
        && let Err(error) = set(wanted.min(hard), hard)
    {
        tracing::warn!(%error, wanted, "maxOpenFiles: the limit was not set");
    }
}

/// Lowers our own chance to be killed when memory runs out. A host that refuses is told about, no more.
pub(super) fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "the kubelet's oom_score_adj was not set; this host does not allow it");
    }
}

/// Whether the kernel has AppArmor, and it is switched on.
pub(super) fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}
