//! Which hierarchies a machine has, and where they are mounted.

use std::fs;
use std::path::{Path, PathBuf};

/// The hierarchies of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A single hierarchy (version 2), mounted here.
    Unified(PathBuf),
    /// One hierarchy a controller (version 1): its name and where it is mounted. Beside them a bare version 2 may stand,
    /// called `unified`.
    Separate(Vec<(String, PathBuf)>),
    /// None; nothing is written.
    Absent,
}

/// Options of a version 1 mount that name no controller.
const NO_CONTROLLER: [&str; 6] = ["rw", "ro", "relatime", "xattr", "noprefix", "clone_children"];

impl Layout {
    /// What this machine has.
    pub fn detect() -> Self {
        Self::from_mountinfo(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Reads `/proc/self/mountinfo`. Of a hierarchy that is mounted in several places the shortest path counts.
    pub fn from_mountinfo(text: &str) -> Self {
        let (mut separate, mut unified) = (Vec::<(String, PathBuf)>::new(), None::<PathBuf>);
        let length = |path: &Path| path.as_os_str().len();
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let point = PathBuf::from(left.split(' ').nth(4).unwrap_or_default());
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    for name in options.split(',').filter(|option| !NO_CONTROLLER.contains(option)) {
                        let name = name.strip_prefix("name=").unwrap_or(name);
                        match separate.iter_mut().find(|(other, _)| other == name) {
                            Some((_, other)) if length(other) > length(&point) => other.clone_from(&point),
                            Some(_) => {}
                            None => separate.push((name.to_owned(), point.clone())),
                        }
                    }
                }
                (Some("cgroup2"), _) if unified.as_ref().is_none_or(|other| length(other) > length(&point)) => {
                    unified = Some(point);
                }
                _ => {}
            }
        }
        match (separate.is_empty(), unified) {
            (true, Some(point)) => Self::Unified(point),
            (true, None) => Self::Absent,
            (false, point) => {
                separate.extend(point.map(|point| ("unified".to_owned(), point)));
                Self::Separate(separate)
            }
        }
    }

    /// Whether this is a single hierarchy.
    pub fn is_unified(&self) -> bool {
        matches!(self, Self::Unified(_))
    }

    /// Where a cgroup of this path is, in each hierarchy.
    pub fn folders(&self, path: &str) -> Vec<PathBuf> {
        let inside = path.trim_start_matches('/');
        match self {
            Self::Unified(root) => vec![root.join(inside)],
            Self::Separate(all) => {
                let mut folders: Vec<_> = all.iter().map(|(_, root)| root.join(inside)).collect();
                folders.sort();
                folders.dedup();
                folders
            }
            Self::Absent => Vec::new(),
        }
    }

    /// Where a controller's files of a cgroup are; none if there is no such controller.
    pub fn folder(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let inside = path.trim_start_matches('/');
        match self {
            Self::Unified(root) => Some(root.join(inside)),
            Self::Separate(all) => all.iter().find(|(name, _)| name == controller).map(|(_, root)| root.join(inside)),
            Self::Absent => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let v1 = "30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 29 0:26 / /a/much/longer/place/for/the/same rw - cgroup cgroup rw,cpu,cpuacct\n";
        let Layout::Separate(all) = Layout::from_mountinfo(v1) else { panic!("separate hierarchies") };
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuacct", "systemd", "unified"]);
        assert_eq!(all[0].1, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        let layout = Layout::Separate(all);
        assert_eq!(layout.folders("/a").len(), 3);
        assert_eq!(layout.folder("memory", "/a"), None);
        let v2 = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(Layout::from_mountinfo(v2), Layout::Unified("/sys/fs/cgroup".into()));
        assert_eq!(Layout::from_mountinfo(""), Layout::Absent);
    }
}
