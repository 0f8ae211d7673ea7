//! Collection of images that no container uses: which go, and in what order. Pure; the kubelet lists, removes and
//! measures.
//!
//! The least recently used image goes first. An image counts as used as long as a container is there that was made of
//! it, running or not, and is kept for a minimum time after it was first seen, so that a pod just being started finds
//! it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// An image of the node, as a listing shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The runtime's id.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether the runtime says that it must stay.
    pub pinned: bool,
    /// Whether a container was made of it.
    pub in_use: bool,
}

/// `imageGCHighThresholdPercent` and its kin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Disk use in percent that starts a collection.
    pub high: u64,
    /// Disk use in percent that a collection aims at.
    pub low: u64,
    /// An image younger than this is kept.
    pub min_age: Duration,
    /// An image unused for longer than this goes; zero for never.
    pub max_age: Duration,
}

impl Policy {
    /// Whether nothing is ever to be collected on its own account.
    pub fn is_idle(&self) -> bool {
        self.high >= 100 && self.max_age.is_zero()
    }
}

/// How full the file system of the images is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub capacity: u64,
    /// What is left.
    pub available: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// None for one that was there when the kubelet started.
    detected: Option<Timestamp>,
    last_used: Option<Timestamp>,
}

/// What is remembered of images between collections.
#[derive(Clone, Debug, Default)]
pub struct Records {
    since: Option<Timestamp>,
    images: BTreeMap<String, Record>,
}

/// An image that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The runtime's id.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePlan {
    /// Unused for too long: all of these.
    pub old: Vec<Candidate>,
    /// To be removed one after another until [`ImagePlan::want`] bytes are won, those of `old` included.
    pub candidates: Vec<Candidate>,
    /// Bytes to win; 0 for none.
    pub want: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid capacity {0} on image filesystem")]
pub struct InvalidCapacity(pub u64);

impl Records {
    /// Takes a listing in.
    pub fn detect(&mut self, images: &[Image], now: Timestamp) {
        let first = self.since.is_none();
        self.since.get_or_insert(now);
        self.images.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let fresh = Record { detected: (!first).then_some(now), last_used: None };
            let record = self.images.entry(image.id.clone()).or_insert(fresh);
            if image.in_use {
                record.last_used = Some(now);
            }
        }
    }

    /// Images that may go, the first to go first.
    fn order(&self, images: &[Image], min_age: Duration, now: Timestamp) -> Vec<(Record, Candidate)> {
        let mut order: Vec<_> = images
            .iter()
            .filter(|image| !image.pinned && !image.in_use)
            .filter_map(|image| {
                let record = *self.images.get(&image.id)?;
                let young = record.detected.is_some_and(|at| age(at, now) < min_age);
                (!young).then(|| (record, Candidate { id: image.id.clone(), size: image.size }))
            })
            .collect();
        order.sort_by(|(a, x), (b, y)| (a.last_used, a.detected, &x.id).cmp(&(b.last_used, b.detected, &y.id)));
        order
    }

    /// What to collect, now that the disk is this full.
    ///
    /// # Errors
    /// The disk has no size, so that nothing can be said of it.
    pub fn plan(
        &self,
        images: &[Image],
        policy: &Policy,
        disk: Disk,
        now: Timestamp,
    ) -> Result<ImagePlan, InvalidCapacity> {
        if disk.capacity == 0 {
            return Err(InvalidCapacity(0));
        }
        // Without a minimum age for those that are too old: their age is what counts.
        let old = self.order(images, Duration::ZERO, now).into_iter();
        let old: Vec<Candidate> = old.filter(|(record, _)| self.is_old(record, policy, now)).map(|(_, c)| c).collect();
        let available = disk.available.min(disk.capacity);
        let used = 100 - percent(available, disk.capacity);
        let want = match used >= policy.high {
            true => share(disk.capacity, 100 - policy.low.min(100)).saturating_sub(available),
            false => 0,
        };
        let candidates = match want {
            0 => Vec::new(),
            _ => {
                let order = self.order(images, policy.min_age, now).into_iter().map(|(_, candidate)| candidate);
                order.filter(|candidate| !old.contains(candidate)).collect()
            }
        };
        Ok(ImagePlan { old, candidates, want })
    }

    /// Everything unused, for a disk that is full.
    pub fn plan_all(&self, images: &[Image], policy: &Policy, now: Timestamp) -> ImagePlan {
        let order = self.order(images, policy.min_age, now);
        ImagePlan { candidates: order.into_iter().map(|(_, c)| c).collect(), want: u64::MAX, ..ImagePlan::default() }
    }

    fn is_old(&self, record: &Record, policy: &Policy, now: Timestamp) -> bool {
        // What was not seen in use since the start may have been used right before it.
        let since = record.last_used.or(record.detected).or(self.since);
        !policy.max_age.is_zero() && since.is_some_and(|at| age(at, now) > policy.max_age)
    }
}

/// The words for a collection that won too little.
pub fn too_little(want: u64, freed: u64) -> String {
    format!(
        "Failed to garbage collect required amount of images. Attempted to free {want} bytes, but only found {freed} bytes eligible to free."
    )
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    let age: SignedDuration = now.duration_since(then);
    Duration::try_from(age).unwrap_or_default()
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100)
}

fn share(whole: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(whole) * u128::from(percent) / 100).unwrap_or(whole)
}

impl fmt::Display for ImagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.old {
            writeln!(f, "remove {} ({} bytes): unused for too long", image.id, image.size)?;
        }
        if self.want > 0 {
            writeln!(f, "win {} bytes from", self.want)?;
        }
        for image in &self.candidates {
            writeln!(f, "  {} ({} bytes)", image.id, image.size)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn image(id: &str, size: u64) -> Image {
        Image { id: id.into(), size, ..Image::default() }
    }

    fn used(id: &str, size: u64) -> Image {
        Image { in_use: true, ..image(id, size) }
    }

    const POLICY: Policy =
        Policy { high: 85, low: 80, min_age: Duration::from_secs(120), max_age: Duration::from_secs(0) };

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut records = Records::default();
        let pinned = Image { pinned: true, ..image("pause", 1) };
        records.detect(&[image("never", 10), used("early", 20), used("late", 30), pinned.clone()], at(0));
        records.detect(&[image("never", 10), image("early", 20), used("late", 30), pinned.clone()], at(300));
        let now = [image("never", 10), image("early", 20), image("late", 30), image("new", 5), used("busy", 9), pinned];
        records.detect(&now, at(600));
        let full = Disk { capacity: 1000, available: 150 };
        let plan = records.plan(&now, &POLICY, full, at(601)).unwrap();
        assert_eq!(plan.to_string(), "win 50 bytes from\n  never (10 bytes)\n  early (20 bytes)\n  late (30 bytes)\n");
        let fine = Disk { capacity: 1000, available: 160 };
        assert_eq!(records.plan(&now, &POLICY, fine, at(601)).unwrap(), ImagePlan::default());
        assert_eq!(records.plan(&now, &POLICY, Disk { capacity: 0, available: 0 }, at(601)), Err(InvalidCapacity(0)));
        // Once old enough, the new one may go too; it was never used.
        let all = records.plan_all(&now, &POLICY, at(720));
        let ids: Vec<&str> = all.candidates.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["never", "new", "early", "late"]);
    }

    #[test]
    fn what_is_unused_for_too_long_goes() {
        let policy = Policy { max_age: Duration::from_secs(1000), ..POLICY };
        let mut records = Records::default();
        let images = [image("old", 10), image("young", 10)];
        records.detect(&[used("young", 10), image("old", 10)], at(0));
        records.detect(&[used("young", 10), image("old", 10)], at(900));
        let fine = Disk { capacity: 1000, available: 900 };
        assert_eq!(records.plan(&images, &policy, fine, at(1000)).unwrap().old, []);
        let plan = records.plan(&images, &policy, fine, at(1001)).unwrap();
        assert_eq!(plan.to_string(), "remove old (10 bytes): unused for too long\n");
        assert!(!policy.is_idle() && Policy { high: 100, ..POLICY }.is_idle());
    }

    proptest::proptest! {
        #[test]
        fn only_idle_images_go_and_each_once(
            flags in proptest::collection::vec((0u64..1000, proptest::bool::ANY, proptest::bool::ANY), 0..20),
            available in 0u64..1200, wait in 0i64..400
        ) {
            let images: Vec<Image> = flags.iter().enumerate()
                .map(|(n, (size, pinned, in_use))| Image { id: format!("i{n}"), size: *size, pinned: *pinned, in_use: *in_use })
                .collect();
            let mut records = Records::default();
            records.detect(&images[..images.len() / 2], at(0));
            records.detect(&images, at(10));
            let policy = Policy { max_age: Duration::from_secs(200), ..POLICY };
            let plan = records.plan(&images, &policy, Disk { capacity: 1000, available }, at(10 + wait)).unwrap();
            let mut gone: Vec<&str> = plan.old.iter().chain(&plan.candidates).map(|c| c.id.as_str()).collect();
            let idle = |id: &str| images.iter().any(|i| i.id == id && !i.pinned && !i.in_use);
            assert!(gone.iter().all(|id| idle(id)));
            let count = gone.len();
            gone.sort_unstable();
            gone.dedup();
            assert_eq!(gone.len(), count);
            assert_eq!(plan.want > 0, available < 200 && 100 - available.min(1000) * 100 / 1000 >= 85);
        }
    }
}
