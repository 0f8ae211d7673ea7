//! Certificates with their keys, kept as stock keeps them: one PEM file a certificate, named by its date, and a link
//! `<prefix>-current.pem` to the newest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bosun_kit::files::{create_dir, write_atomic};
use jiff::Timestamp;

/// The certificates of one kind (`kubelet-client`, `kubelet-server`) in a folder.
#[derive(Debug, Clone)]
pub struct CertificateStore {
    folder: PathBuf,
    prefix: &'static str,
}

impl CertificateStore {
    /// The store of this kind in `folder`, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>, prefix: &'static str) -> Self {
        Self { folder: folder.into(), prefix }
    }

    /// The link to the newest certificate; it holds certificate and key.
    pub fn current_path(&self) -> PathBuf {
        self.folder.join(format!("{}-current.pem", self.prefix))
    }

    /// Where a key waits until its certificate is issued, so that a restart asks for the same certificate again.
    pub fn pending_key_path(&self) -> PathBuf {
        self.folder.join(format!("{}.key.tmp", self.prefix))
    }

    /// The newest certificate and key, in one PEM text.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn current(&self) -> io::Result<Option<String>> {
        read(&self.current_path())
    }

    /// The key that waits for its certificate.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn pending_key(&self) -> io::Result<Option<String>> {
        read(&self.pending_key_path())
    }

    /// Keeps a key until its certificate is issued.
    ///
    /// # Errors
    /// Writing the file.
    pub fn keep_pending_key(&self, key_pem: &str) -> io::Result<()> {
        create_dir(&self.folder, 0o755)?;
        write_atomic(&self.pending_key_path(), key_pem.as_bytes(), 0o600)
    }

    /// Makes a certificate and its key the newest, and forgets the key that waited.
    ///
    /// # Errors
    /// Writing the files; the certificate before is then still the newest.
    pub fn update(&self, cert_pem: &str, key_pem: &str, now: Timestamp) -> io::Result<()> {
        create_dir(&self.folder, 0o755)?;
        let date = now.strftime("%Y-%m-%d-%H-%M-%S");
        let name = format!("{}-{date}.pem", self.prefix);
        let end = if cert_pem.ends_with('\n') { "" } else { "\n" };
        write_atomic(&self.folder.join(&name), format!("{cert_pem}{end}{key_pem}").as_bytes(), 0o600)?;
        let link = self.current_path();
        let beside = link.with_extension("pem.tmp");
        remove(&beside)?;
        std::os::unix::fs::symlink(&name, &beside)?;
        fs::rename(&beside, &link)?;
        fs::File::open(&self.folder)?.sync_all()?;
        remove(&self.pending_key_path())?;
        self.forget_old(&name)
    }

    /// Removes certificates but the newest and the one before it.
    fn forget_old(&self, newest: &str) -> io::Result<()> {
        let prefix = format!("{}-2", self.prefix);
        let mut names: Vec<String> = fs::read_dir(&self.folder)?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix) && name.ends_with(".pem") && name != newest)
            .collect();
        names.sort();
        names.pop();
        names.iter().try_for_each(|name| remove(&self.folder.join(name)))
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("read {}: {error}", path.display()))),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_link_leads_to_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(folder.path().join("pki"), "kubelet-client");
        assert_eq!(store.current().unwrap(), None);
        store.keep_pending_key("KEY\n").unwrap();
        assert_eq!(store.pending_key().unwrap().as_deref(), Some("KEY\n"));
        for (day, cert) in [(1, "A"), (2, "B"), (3, "C")] {
            let now = format!("2026-01-0{day}T10:20:30Z").parse().unwrap();
            store.update(cert, "KEY\n", now).unwrap();
            assert_eq!(store.current().unwrap().as_deref(), Some(format!("{cert}\nKEY\n").as_str()));
        }
        assert_eq!(store.pending_key().unwrap(), None);
        let link = fs::read_link(store.current_path()).unwrap();
        assert_eq!(link, Path::new("kubelet-client-2026-01-03-10-20-30.pem"));
        assert_eq!(fs::metadata(store.current_path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("pki")).unwrap().count(), 3, "two certificates and the link");
    }
}
