//! The steps that make, change or remove a cgroup, for each driver on each version. Pure: a plan is data and prints as
//! text.
//!
//! What systemd is told follows runc's libcontainer, which stock's kubelet is built with: a slice is a transient unit
//! that wants its parent, accounts everything, and has the limits that systemd knows. Whatever it knows not (huge pages)
//! or only roughly (it keeps a quota as whole percents) is written into the files afterwards.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::layout::Layout;
use crate::limits::{Amount, Limits, Quota, weight};
use crate::name::{Driver, Name};

/// systemd keeps a quota in hundredths of a core: microseconds a second, in steps of this.
const QUOTA_STEP: u64 = 10_000;
/// What a pod has in version 1: the hierarchies that hold a limit. The runtime makes the rest as it needs them.
const LIMITING: [&str; 4] = ["cpu", "memory", "pids", "hugetlb"];

/// A property of a unit, by systemd's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
}

/// The value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A number; the greatest stands for no bound.
    Number(u64),
    /// A text.
    Text(String),
    /// Names of units.
    Units(Vec<String>),
    /// Cores, as a mask with the lowest first.
    Cores(Vec<u8>),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have systemd make a slice; one that is there is left as it is.
    Start {
        /// The slice.
        unit: String,
        /// What it is made with.
        properties: Vec<Property>,
    },
    /// Have systemd change a unit until the next boot.
    Set {
        /// The slice.
        unit: String,
        /// What changes.
        properties: Vec<Property>,
    },
    /// Have systemd forget a slice and all in it.
    Stop {
        /// The slice.
        unit: String,
    },
    /// Make the folders down from a hierarchy's root. In the unified hierarchy every level hands its controllers down.
    Make {
        /// The hierarchy's root.
        root: PathBuf,
        /// The folder below it.
        inside: PathBuf,
        /// Whether controllers are handed down.
        hand_down: bool,
    },
    /// Write a file.
    Write {
        /// The file.
        file: PathBuf,
        /// What into it.
        value: String,
        /// Whether it is no fault if there is no such file.
        optional: bool,
    },
    /// Remove a cgroup's folder with those in it.
    Remove {
        /// The folder.
        folder: PathBuf,
    },
}

/// Makes a cgroup, or brings one that is there to these limits.
pub fn make(layout: &Layout, driver: Driver, name: &Name, limits: &Limits) -> Vec<Step> {
    let path = name.path(driver);
    let inside = PathBuf::from(path.trim_start_matches('/'));
    let mut steps = Vec::new();
    if driver == Driver::Systemd {
        let known = properties(layout, limits);
        let described = described(layout, name);
        steps
            .push(Step::Start { unit: name.slice(), properties: described.into_iter().chain(known.clone()).collect() });
        if !known.is_empty() {
            steps.push(Step::Set { unit: name.slice(), properties: known });
        }
    }
    match layout {
        Layout::Unified(root) => steps.push(Step::Make { root: root.clone(), inside, hand_down: true }),
        Layout::Separate(all) => {
            let mut roots: Vec<&PathBuf> = Vec::new();
            for (_, root) in all.iter().filter(|(name, _)| LIMITING.contains(&name.as_str())) {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
            let make = |root: &PathBuf| Step::Make { root: root.clone(), inside: inside.clone(), hand_down: false };
            steps.extend(roots.into_iter().map(make));
        }
        Layout::Absent => {}
    }
    steps.extend(writes(layout, &path, limits));
    steps
}

/// Changes the limits of a cgroup that is there.
pub fn update(layout: &Layout, driver: Driver, name: &Name, limits: &Limits) -> Vec<Step> {
    let known = properties(layout, limits);
    let set =
        (driver == Driver::Systemd && !known.is_empty()).then(|| Step::Set { unit: name.slice(), properties: known });
    set.into_iter().chain(writes(layout, &name.path(driver), limits)).collect()
}

/// Removes a cgroup and what is in it; no process may be left there.
pub fn remove(layout: &Layout, driver: Driver, name: &Name) -> Vec<Step> {
    let stop = (driver == Driver::Systemd).then(|| Step::Stop { unit: name.slice() });
    let folders = layout.folders(&name.path(driver)).into_iter().map(|folder| Step::Remove { folder });
    stop.into_iter().chain(folders).collect()
}

/// What every slice of ours has, whatever its limits.
fn described(layout: &Layout, name: &Name) -> Vec<Property> {
    let io = if layout.is_unified() { "IOAccounting" } else { "BlockIOAccounting" };
    let yes = |name| Property { name, value: Value::Bool(true) };
    vec![
        Property { name: "Description", value: Value::Text(format!("libcontainer container {}", name.slice())) },
        Property { name: "Wants", value: Value::Units(vec![name.parent().slice()]) },
        yes("MemoryAccounting"),
        yes("CPUAccounting"),
        yes(io),
        yes("TasksAccounting"),
        Property { name: "DefaultDependencies", value: Value::Bool(false) },
    ]
}

/// The limits that systemd knows.
fn properties(layout: &Layout, limits: &Limits) -> Vec<Property> {
    let unified = layout.is_unified();
    let number = |name, value| Property { name, value: Value::Number(value) };
    let bound = |amount: Amount| match amount {
        Amount::Max => u64::MAX,
        Amount::Of(value) => value,
    };
    let mut found = Vec::new();
    if let Some(amount) = limits.memory {
        found.push(number(if unified { "MemoryMax" } else { "MemoryLimit" }, bound(amount)));
    }
    if let Some(shares) = limits.shares {
        found.push(if unified { number("CPUWeight", weight(shares)) } else { number("CPUShares", shares) });
    }
    if let Some(Quota { quota, period }) = limits.quota {
        found.push(number("CPUQuotaPeriodUSec", period));
        let a_second = |quota: u64| quota.saturating_mul(1_000_000) / period.max(1);
        let rounded = |quota: u64| a_second(quota).div_ceil(QUOTA_STEP) * QUOTA_STEP;
        let value = if let Amount::Of(quota) = quota { rounded(quota) } else { u64::MAX };
        found.push(number("CPUQuotaPerSecUSec", value));
    }
    if let Some(amount) = limits.pids {
        found.push(number("TasksMax", bound(amount)));
    }
    if let Some(mask) = limits.cpus.as_deref().filter(|_| unified).and_then(cores) {
        found.push(Property { name: "AllowedCPUs", value: Value::Cores(mask) });
    }
    found
}

/// A list of cores (`0-3,8`) as a mask; none if it is no such list.
fn cores(list: &str) -> Option<Vec<u8>> {
    /// More cores than any machine has; keeps a typing error from taking all memory.
    const MOST: usize = 1 << 16;
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for core in first..=last {
            if mask.len() <= core / 8 {
                mask.resize(core / 8 + 1, 0);
            }
            mask[core / 8] |= 1 << (core % 8);
        }
    }
    Some(mask)
}

/// The limits as files.
fn writes(layout: &Layout, path: &str, limits: &Limits) -> Vec<Step> {
    let folder = |controller: &str| layout.folder(controller, path);
    let mut steps = Vec::new();
    let mut write = |folder: Option<&Path>, file: &str, value: String, optional: bool| {
        steps.extend(folder.map(|folder| Step::Write { file: folder.join(file), value, optional }));
    };
    let unified = layout.is_unified();
    let text = |amount: Amount| match amount {
        Amount::Of(value) => value.to_string(),
        Amount::Max if unified => "max".to_owned(),
        Amount::Max => "-1".to_owned(),
    };
    let cpu = folder("cpu");
    if let Some(shares) = limits.shares {
        let (file, value) = if unified { ("cpu.weight", weight(shares)) } else { ("cpu.shares", shares) };
        write(cpu.as_deref(), file, value.to_string(), false);
    }
    match limits.quota {
        Some(Quota { quota, period }) if unified => {
            write(cpu.as_deref(), "cpu.max", format!("{} {period}", text(quota)), false);
        }
        Some(Quota { quota, period }) => {
            write(cpu.as_deref(), "cpu.cfs_period_us", period.to_string(), false);
            write(cpu.as_deref(), "cpu.cfs_quota_us", text(quota), false);
        }
        None => {}
    }
    if let Some(amount) = limits.memory {
        let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        write(folder("memory").as_deref(), file, text(amount), false);
    }
    if let Some(amount) = limits.pids {
        let value = if let Amount::Of(value) = amount { value.to_string() } else { "max".to_owned() };
        write(folder("pids").as_deref(), "pids.max", value, false);
    }
    // The kernel may have no such pages, and older ones count no reservations.
    let hugetlb = folder("hugetlb");
    for (size, amount) in &limits.hugepages {
        let files: [&str; 2] = if unified { ["max", "rsvd.max"] } else { ["limit_in_bytes", "rsvd.limit_in_bytes"] };
        for file in files {
            write(hugetlb.as_deref(), &format!("hugetlb.{size}.{file}"), text(*amount), true);
        }
    }
    if let Some(cpus) = limits.cpus.as_ref().filter(|_| unified) {
        write(folder("cpuset").as_deref(), "cpuset.cpus", cpus.clone(), true);
    }
    steps
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, properties: &[Property]| {
            properties.iter().try_for_each(|property| write!(f, " {property}"))
        };
        match self {
            Self::Start { unit, properties } => {
                write!(f, "start {unit}:")?;
                list(f, properties)
            }
            Self::Set { unit, properties } => {
                write!(f, "set {unit}:")?;
                list(f, properties)
            }
            Self::Stop { unit } => write!(f, "stop {unit}"),
            Self::Make { root, inside, hand_down } => {
                let handing = if *hand_down { ", handing controllers down" } else { "" };
                write!(f, "make {} in {}{handing}", inside.display(), root.display())
            }
            Self::Write { file, value, optional } => {
                write!(f, "write {}: {value}{}", file.display(), if *optional { " (if there)" } else { "" })
            }
            Self::Remove { folder } => write!(f, "remove {}", folder.display()),
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        match &self.value {
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(u64::MAX) => write!(f, "infinity"),
            Value::Number(value) => write!(f, "{value}"),
            Value::Text(value) => write!(f, "{value:?}"),
            Value::Units(units) => write!(f, "{}", units.join(",")),
            Value::Cores(mask) => mask.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unified() -> Layout {
        Layout::Unified("/cg".into())
    }

    fn separate() -> Layout {
        let all = ["cpu", "cpuacct", "memory", "pids", "hugetlb", "systemd"];
        Layout::Separate(all.iter().map(|name| ((*name).to_owned(), Path::new("/cg").join(name))).collect())
    }

    fn pod() -> Name {
        Name::from_path("/kubepods/burstable/pod1-2")
    }

    fn limits() -> Limits {
        Limits {
            shares: Some(512),
            quota: Some(Quota { quota: Amount::Of(33_300), period: 100_000 }),
            memory: Some(Amount::Of(1 << 20)),
            pids: Some(Amount::Of(100)),
            hugepages: [("2MB".to_owned(), Amount::Of(4 << 20))].into(),
            cpus: None,
        }
    }

    fn text(steps: &[Step]) -> String {
        steps.iter().map(|step| format!("{step}\n")).collect()
    }

    #[test]
    fn folders_of_the_unified_hierarchy() {
        let want = "\
make kubepods/burstable/pod1-2 in /cg, handing controllers down
write /cg/kubepods/burstable/pod1-2/cpu.weight: 20
write /cg/kubepods/burstable/pod1-2/cpu.max: 33300 100000
write /cg/kubepods/burstable/pod1-2/memory.max: 1048576
write /cg/kubepods/burstable/pod1-2/pids.max: 100
write /cg/kubepods/burstable/pod1-2/hugetlb.2MB.max: 4194304 (if there)
write /cg/kubepods/burstable/pod1-2/hugetlb.2MB.rsvd.max: 4194304 (if there)
";
        assert_eq!(text(&make(&unified(), Driver::Cgroupfs, &pod(), &limits())), want);
    }

    #[test]
    fn folders_of_separate_hierarchies() {
        let want = "\
make kubepods/burstable/pod1-2 in /cg/cpu
make kubepods/burstable/pod1-2 in /cg/memory
make kubepods/burstable/pod1-2 in /cg/pids
make kubepods/burstable/pod1-2 in /cg/hugetlb
write /cg/cpu/kubepods/burstable/pod1-2/cpu.shares: 512
write /cg/cpu/kubepods/burstable/pod1-2/cpu.cfs_period_us: 100000
write /cg/cpu/kubepods/burstable/pod1-2/cpu.cfs_quota_us: 33300
write /cg/memory/kubepods/burstable/pod1-2/memory.limit_in_bytes: 1048576
write /cg/pids/kubepods/burstable/pod1-2/pids.max: 100
write /cg/hugetlb/kubepods/burstable/pod1-2/hugetlb.2MB.limit_in_bytes: 4194304 (if there)
write /cg/hugetlb/kubepods/burstable/pod1-2/hugetlb.2MB.rsvd.limit_in_bytes: 4194304 (if there)
";
        assert_eq!(text(&make(&separate(), Driver::Cgroupfs, &pod(), &limits())), want);
    }

    #[test]
    fn slices_of_the_unified_hierarchy() {
        let want = "\
start kubepods-burstable-pod1_2.slice: Description=\"libcontainer container kubepods-burstable-pod1_2.slice\" \
Wants=kubepods-burstable.slice MemoryAccounting=true CPUAccounting=true IOAccounting=true TasksAccounting=true \
DefaultDependencies=false MemoryMax=1048576 CPUWeight=20 CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=340000 TasksMax=100
set kubepods-burstable-pod1_2.slice: MemoryMax=1048576 CPUWeight=20 CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=340000 \
TasksMax=100
make kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice in /cg, handing controllers down
";
        let steps = make(&unified(), Driver::Systemd, &pod(), &limits());
        assert_eq!(text(&steps[..3]), want);
        // The exact quota stands in the file, whatever systemd made of it.
        let exact =
            "write /cg/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cpu.max: 33300 100000\n";
        assert!(text(&steps).contains(exact), "{}", text(&steps));
    }

    #[test]
    fn slices_of_separate_hierarchies() {
        let want = "\
set kubepods.slice: MemoryLimit=infinity CPUShares=2048
write /cg/cpu/kubepods.slice/cpu.shares: 2048
write /cg/memory/kubepods.slice/memory.limit_in_bytes: -1
";
        let limits = Limits { shares: Some(2048), memory: Some(Amount::Max), ..Limits::default() };
        assert_eq!(text(&update(&separate(), Driver::Systemd, &Name::from_path("kubepods"), &limits)), want);
    }

    #[test]
    fn removal() {
        let name = Name::from_path("kubepods/pod1");
        let want = "stop kubepods-pod1.slice\nremove /cg/kubepods.slice/kubepods-pod1.slice\n";
        assert_eq!(text(&remove(&unified(), Driver::Systemd, &name)), want);
        assert_eq!(remove(&separate(), Driver::Cgroupfs, &name).len(), 6);
        assert!(remove(&Layout::Absent, Driver::Cgroupfs, &name).is_empty());
    }

    #[test]
    fn cores_as_a_mask() {
        assert_eq!(cores("0-3,8"), Some(vec![0x0f, 0x01]));
        assert_eq!((cores("3-1"), cores("0-99999999"), cores("x")), (None, None, None));
    }

    proptest! {
        /// systemd's quota is never below what the containers are given, or their own could not be set.
        #[test]
        fn a_quota_is_rounded_up(quota in 1000_u64..10_000_000, period in 1000_u64..1_000_000) {
            let limits = Limits { quota: Some(Quota { quota: Amount::Of(quota), period }), ..Limits::default() };
            let found = properties(&unified(), &limits);
            let Value::Number(a_second) = found[1].value else { panic!("a number") };
            prop_assert_eq!(a_second % QUOTA_STEP, 0);
            prop_assert!(a_second >= quota * 1_000_000 / period);
        }
    }
}
