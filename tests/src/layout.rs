//! Where things are: the source tree and the build folder.

use std::env;
use std::path::{Path, PathBuf};

/// The folders everything else is derived from.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The workspace's root.
    pub root: PathBuf,
    /// The build folder, `target` unless cargo was told otherwise.
    pub target: PathBuf,
}

impl Layout {
    /// Finds the tree this crate was built from.
    pub fn find() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned);
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Self { root, target }
    }

    /// Fetched programs: `target/deps`.
    pub fn deps(&self) -> PathBuf {
        self.target.join("deps")
    }

    /// Where cargo puts the binaries of a profile (`debug` or `release`). All are built for a named target.
    pub fn binaries(&self, profile: &str) -> PathBuf {
        self.target.join(format!("{}-unknown-linux-gnu", env::consts::ARCH)).join(profile)
    }

    /// Image archives made of a profile's binaries: `target/images/PROFILE`.
    pub fn images(&self, profile: &str) -> PathBuf {
        self.target.join("images").join(profile)
    }

    /// Four hexadecimal digits that differ between two trees on one machine.
    pub fn tag(&self) -> String {
        let sum = self.target.as_os_str().as_encoded_bytes().iter();
        let hash = sum.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("{:04x}", (hash >> 16) ^ (hash & 0xffff))
    }
}
