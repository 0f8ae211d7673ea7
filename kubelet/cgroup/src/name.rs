//! A cgroup's name. Inside the kubelet it is a list of parts from the root on (`kubepods`, `burstable`, `pod<uid>`);
//! each driver has its own way to write it down.

use std::fmt;

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// We ourselves, as folders.
    Cgroupfs,
    /// systemd, as slices.
    Systemd,
}

impl Driver {
    /// As configurations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// A cgroup's name: its parts from the root on, none for the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<String>);

impl Name {
    /// Reads a path below a hierarchy's root: `/kubepods/burstable`.
    pub fn from_path(path: &str) -> Self {
        Self(path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }

    /// Reads what a configuration calls a cgroup in the driver's own way. Of a systemd path only the last slice counts:
    /// its name says what is above it.
    pub fn parse(text: &str, driver: Driver) -> Self {
        match driver {
            Driver::Cgroupfs => Self::from_path(text),
            Driver::Systemd => {
                let base = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                let base = base.strip_suffix(".slice").unwrap_or(base);
                let parts = base.split('-').filter(|part| !part.is_empty());
                Self(parts.map(|part| part.replace('_', "-")).collect())
            }
        }
    }

    /// The cgroup of that name within this one.
    pub fn child(&self, part: &str) -> Self {
        Self(self.0.iter().cloned().chain([part.to_owned()]).collect())
    }

    /// The cgroup it is in; the root is in itself.
    pub fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last part.
    pub fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }

    /// The slice of this name: `kubepods-burstable-pod1_2.slice`; the root is `-.slice`. A dash is systemd's step
    /// between levels, so one within a part becomes an underscore.
    pub fn slice(&self) -> String {
        if self.is_root() {
            return "-.slice".to_owned();
        }
        let parts: Vec<String> = self.0.iter().map(|part| part.replace('-', "_")).collect();
        format!("{}.slice", parts.join("-"))
    }

    /// Where the driver has the cgroup, below a hierarchy's root: `/kubepods/pod1`, or
    /// `/kubepods.slice/kubepods-pod1.slice`.
    pub fn path(&self, driver: Driver) -> String {
        match driver {
            Driver::Cgroupfs => format!("/{}", self.0.join("/")),
            Driver::Systemd if self.is_root() => "/".to_owned(),
            Driver::Systemd => {
                (1..=self.0.len()).map(|end| format!("/{}", Self(self.0[..end].to_vec()).slice())).collect()
            }
        }
    }

    /// As stock quotes it in messages: `["kubepods" "burstable"]`.
    pub fn quoted(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|part| format!("{part:?}")).collect();
        format!("[{}]", parts.join(" "))
    }

    /// The part that a folder within this cgroup stands for; none if the driver has not made it.
    pub fn part_of(&self, folder: &str, driver: Driver) -> Option<String> {
        match driver {
            Driver::Cgroupfs => Some(folder.to_owned()),
            Driver::Systemd => {
                let child = Self::parse(folder.strip_suffix(".slice")?, driver);
                (child.parent().slice() == self.slice()).then(|| child.last().to_owned())
            }
        }
    }
}

/// As a path.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_driver_has_its_way() {
        let pod = Name::from_path("/kubepods").child("burstable").child("pod12-34");
        assert_eq!(pod.path(Driver::Cgroupfs), "/kubepods/burstable/pod12-34");
        let slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice";
        assert_eq!(pod.path(Driver::Systemd), slices);
        assert_eq!(pod.slice(), "kubepods-burstable-pod12_34.slice");
        assert_eq!(Name::parse(slices, Driver::Systemd), pod);
        assert_eq!(Name::parse("/kubelet.slice", Driver::Systemd), Name::from_path("kubelet"));
        assert_eq!(
            (Name::default().path(Driver::Systemd).as_str(), Name::default().slice().as_str()),
            ("/", "-.slice")
        );
    }

    #[test]
    fn folders_are_read_back() {
        let class = Name::from_path("/kubepods/burstable");
        let read = |folder: &str| class.part_of(folder, Driver::Systemd);
        assert_eq!(read("kubepods-burstable-pod1_2.slice").as_deref(), Some("pod1-2"));
        assert_eq!(read("cri-containerd-abc.scope"), None);
        assert_eq!(read("other-pod1.slice"), None);
        assert_eq!(class.part_of("pod1-2", Driver::Cgroupfs).as_deref(), Some("pod1-2"));
    }

    proptest! {
        #[test]
        fn a_slice_says_all_of_a_name(parts in prop::collection::vec("[a-z0-9][a-z0-9-]{0,8}", 1..5)) {
            let name = Name(parts);
            prop_assert_eq!(&Name::parse(&name.path(Driver::Systemd), Driver::Systemd), &name);
            prop_assert_eq!(&Name::from_path(&name.path(Driver::Cgroupfs)), &name);
        }
    }
}
