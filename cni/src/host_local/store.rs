//! The addresses' files, laid out as the reference plugin does it: `<dataDir>/<network>/<address>` holds the container
//! and the interface it was given to, `last_reserved_ip.<n>` where the next search begins, `lock` is locked meanwhile.
//!
//! `.owners/<hash>` is ours: a symbolic link whose target names an attachment's addresses, so that DEL need not read
//! every file. It is written before the addresses and removed after them, and trusted only as a hint: what counts is an
//! address's own file, which appears complete or not at all.

use super::range::{Range, RangeSet};
use crate::{Attachment, Code, Error, plan::fnv1a};
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};
use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// One network's folder.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

/// The line break between container and interface in an address's file.
const BREAK: &str = "\r\n";
const OWNERS: &str = ".owners";

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::new(Code::Io, format!("{what} {path}")).details(error.to_string())
}

/// Removes a file that may be gone.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

impl Store {
    /// Opens the network's folder and makes what is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, Error> {
        let dir = data_dir.join(network);
        let owners = dir.join(OWNERS);
        if !owners.is_dir() {
            fs::create_dir_all(&owners).map_err(failed("create", &owners))?;
        }
        Ok(Self { dir })
    }

    /// The network's folder, if anything was ever given.
    ///
    /// # Errors
    /// When it exists and cannot be used.
    pub fn existing(data_dir: &Path, network: &str) -> Result<Option<Self>, Error> {
        if data_dir.join(network).is_dir() { Self::open(data_dir, network).map(Some) } else { Ok(None) }
    }

    /// Waits for the folder's lock, which the reference plugin takes too.
    pub(super) fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.dir.join("lock");
        let file = File::options().create(true).append(true).open(&path).map_err(failed("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed("lock", &path)(errno.into()))
    }

    fn file(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    fn owner_file(&self, owner: &Attachment) -> PathBuf {
        let name = format!("{}/{}", owner.container_id, owner.ifname);
        self.dir.join(OWNERS).join(format!("{:016x}", fnv1a(name.as_bytes())))
    }

    /// Whether the address has a file.
    #[must_use]
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.file(address).exists()
    }

    /// Who has the address.
    fn owner_of(&self, address: IpAddr) -> Option<Attachment> {
        parse_owner(&fs::read_to_string(self.file(address)).ok()?)
    }

    /// Takes an address of the set for `owner`: the one requested, or the next that is free.
    ///
    /// The caller holds the lock; `taken` is what `owner` has of other sets.
    pub(super) fn take<'a>(
        &self,
        number: usize,
        set: &'a RangeSet,
        owner: &Attachment,
        request: Option<IpAddr>,
        taken: &[IpAddr],
    ) -> Result<(IpAddr, &'a Range), Error> {
        let staged = self.dir.join(format!(".new.{}", std::process::id()));
        fs::write(&staged, format!("{}{BREAK}{}", owner.container_id, owner.ifname))
            .map_err(failed("write", &staged))?;
        let found = match request {
            Some(address) => self.take_requested(set, owner, address, taken, &staged),
            None => self.take_next(number, set, owner, taken, &staged),
        };
        if found.is_err() {
            remove(&staged)?;
        }
        let address = found?;
        set.range_of(address)
            .map(|range| (address, range))
            .ok_or_else(|| Error::new(Code::InvalidConfig, format!("{address} is in no range")))
    }

    fn take_requested(
        &self,
        set: &RangeSet,
        owner: &Attachment,
        address: IpAddr,
        taken: &[IpAddr],
        staged: &Path,
    ) -> Result<IpAddr, Error> {
        if set.range_of(address).is_some_and(|range| range.gateway == Some(address)) {
            return Err(Error::new(Code::InvalidConfig, format!("requested ip {address} is subnet's gateway")));
        }
        if self.claim(owner, address, taken, staged)? {
            return Ok(address);
        }
        Err(Error::new(Code::Exhausted, format!("requested IP address {address} is not available in range set {set}")))
    }

    fn take_next(
        &self,
        number: usize,
        set: &RangeSet,
        owner: &Attachment,
        taken: &[IpAddr],
        staged: &Path,
    ) -> Result<IpAddr, Error> {
        let mark = self.dir.join(format!("last_reserved_ip.{number}"));
        let last = fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok());
        for address in set.candidates(last) {
            if !self.is_taken(address) && self.claim(owner, address, taken, staged)? {
                overwrite(&mark, &address.to_string()).map_err(failed("write", &mark))?;
                return Ok(address);
            }
        }
        Err(Error::new(Code::Exhausted, format!("no IP addresses available in range set: {set}")))
    }

    /// Moves the staged file to the address, unless it is taken.
    fn claim(&self, owner: &Attachment, address: IpAddr, taken: &[IpAddr], staged: &Path) -> Result<bool, Error> {
        self.write_hint(owner, taken.iter().copied().chain([address]))?;
        let target = self.file(address);
        match renameat2(nix::fcntl::AT_FDCWD, staged, nix::fcntl::AT_FDCWD, &target, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(nix::Error::EEXIST) => Ok(false),
            Err(errno) => Err(failed("create", &target)(errno.into())),
        }
    }

    fn write_hint(&self, owner: &Attachment, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
        let path = self.owner_file(owner);
        let text = addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(",");
        remove(&path)?;
        std::os::unix::fs::symlink(text, &path).map_err(failed("write", &path))
    }

    /// What an attachment has: by the hint, or when there is none by reading all files.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn addresses_of(&self, owner: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let hinted = self.hinted(owner);
        if !hinted.is_empty() {
            return Ok(hinted);
        }
        Ok(self.all()?.into_iter().filter(|(_, has)| has.as_ref() == Some(owner)).map(|(address, _)| address).collect())
    }

    /// What an attachment has by the hint, each confirmed by the address's own file.
    pub(super) fn hinted(&self, owner: &Attachment) -> Vec<IpAddr> {
        let hint = fs::read_link(self.owner_file(owner)).unwrap_or_default();
        let addresses = hint.to_str().unwrap_or_default().split(',').filter_map(|text| text.parse().ok());
        addresses.filter(|address| self.owner_of(*address).as_ref() == Some(owner)).collect()
    }

    /// Every address with a file and whose it is; none for a file that a crash left empty.
    fn all(&self) -> Result<Vec<(IpAddr, Option<Attachment>)>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(failed("list", &self.dir))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).map(|address| (address, self.owner_of(address))).collect())
    }

    /// Gives back what an attachment has.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn release(&self, owner: &Attachment) -> Result<(), Error> {
        let _lock = self.lock()?;
        let addresses = self.addresses_of(owner)?;
        self.release_locked(owner, &addresses)
    }

    /// Gives back these addresses of an attachment; the caller holds the lock.
    pub(super) fn release_locked(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<(), Error> {
        addresses.iter().try_for_each(|address| remove(&self.file(*address)))?;
        remove(&self.owner_file(owner))
    }

    /// Gives back everything that belongs to none of `valid`, and what crashes left.
    pub(super) fn retain(&self, valid: &HashSet<Attachment>) -> Result<(), Error> {
        let _lock = self.lock()?;
        let mut hints = HashSet::new();
        for (address, owner) in self.all()? {
            match owner {
                Some(owner) if valid.contains(&owner) => {
                    hints.insert(self.owner_file(&owner));
                }
                _ => remove(&self.file(address))?,
            }
        }
        let entries = |dir: &Path| fs::read_dir(dir).map_err(failed("list", dir));
        for hint in entries(&self.dir.join(OWNERS))?.flatten().map(|entry| entry.path()) {
            if !hints.contains(&hint) {
                remove(&hint)?;
            }
        }
        // Whoever stages a file holds the lock, so what is there now was left.
        for staged in entries(&self.dir)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(".new.")) {
            remove(&staged.path())?;
        }
        Ok(())
    }
}

/// Writes over a small file; cutting it first would wait for the file system.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all_at(text.as_bytes(), 0)?;
    let length = text.len() as u64;
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}

fn parse_owner(text: &str) -> Option<Attachment> {
    let mut lines = text.trim().lines().map(str::trim);
    let container_id = lines.next().filter(|line| !line.is_empty())?.to_owned();
    // Files of old versions have no interface.
    Some(Attachment { container_id, ifname: lines.next().unwrap_or_default().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: usize) -> Attachment {
        Attachment { container_id: format!("container{number}"), ifname: "eth0".into() }
    }

    fn set(subnet: &str) -> RangeSet {
        let config = serde_json::from_value(serde_json::json!([{ "subnet": subnet }])).unwrap();
        RangeSet::new(&serde_json::from_value::<Vec<_>>(config).unwrap()).unwrap()
    }

    #[test]
    fn gives_takes_back_and_gives_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let set = set("10.0.0.0/29");
        let take = |n: usize| store.take(0, &set, &owner(n), None, &[]).map(|(ip, _)| ip.to_string());
        assert_eq!(take(0).unwrap(), "10.0.0.2");
        assert_eq!(take(1).unwrap(), "10.0.0.3");
        assert_eq!(fs::read_to_string(dir.path().join("net/10.0.0.3")).unwrap(), "container1\r\neth0");
        assert_eq!(fs::read_to_string(dir.path().join("net/last_reserved_ip.0")).unwrap(), "10.0.0.3");
        store.release(&owner(0)).unwrap();
        store.release(&owner(0)).unwrap();
        let rest: Vec<_> = (2..6).map(|n| take(n).unwrap()).collect();
        assert_eq!(rest, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
        let full = take(6).unwrap_err();
        assert_eq!(full.message, "no IP addresses available in range set: 10.0.0.1-10.0.0.6");
    }

    #[test]
    fn files_of_the_reference_plugin_are_found_without_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        fs::write(dir.path().join("net/10.0.0.7"), "container1\r\neth0").unwrap();
        assert_eq!(store.addresses_of(&owner(1)).unwrap(), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        store.release(&owner(1)).unwrap();
        assert!(!dir.path().join("net/10.0.0.7").exists());
    }

    #[test]
    fn a_hint_that_is_not_true_releases_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let set = set("10.0.0.0/24");
        let (address, _) = store.take(0, &set, &owner(1), None, &[]).unwrap();
        // A crash between hint and address, the address went to another since.
        store.write_hint(&owner(2), [address].into_iter()).unwrap();
        store.release(&owner(2)).unwrap();
        assert!(store.is_taken(address));
    }

    #[test]
    fn retain_leaves_exactly_what_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let set = set("10.0.0.0/24");
        let kept = store.take(0, &set, &owner(1), None, &[]).unwrap().0;
        let stale = store.take(0, &set, &owner(2), None, &[]).unwrap().0;
        fs::write(dir.path().join("net/10.0.0.99"), "").unwrap();
        fs::write(dir.path().join("net/.new.1"), "half").unwrap();
        store.write_hint(&owner(3), ["10.0.0.5".parse().unwrap()].into_iter()).unwrap();
        store.retain(&HashSet::from([owner(1)])).unwrap();
        assert!(store.is_taken(kept) && !store.is_taken(stale));
        let mut left: Vec<_> = fs::read_dir(dir.path().join("net"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".owners", "10.0.0.2", "last_reserved_ip.0", "lock"]);
        assert_eq!(fs::read_dir(dir.path().join("net/.owners")).unwrap().count(), 1);
    }
}
