//! Test images: OCI archives made from static binaries, without a registry or an image builder.
//!
//! An archive depends on nothing but its contents: the same binaries give the same digests.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use oci_spec::image::{
    Arch, Config, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, Os, RootFsBuilder, Sha256Digest,
};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::program::run;
use crate::tools::{BUSYBOX, Tools};

/// Holds a pod's namespaces open.
pub const PAUSE: &str = "localhost/bosun-pause:dev";
/// The small web server of ours.
pub const WEB: &str = "localhost/bosun-web:dev";
/// A shell and the usual commands.
pub const BUSYBOX_IMAGE: &str = "localhost/busybox:dev";
/// Cluster DNS.
pub const DNS: &str = "localhost/bosun-dns:dev";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// What goes into an image's one layer.
enum Entry {
    Folder { path: &'static str, mode: u32 },
    File { path: String, mode: u32, content: Vec<u8> },
    Link { path: String, to: String },
}

/// An image in the making.
struct Image {
    name: &'static str,
    config: ConfigBuilder,
    layer: Vec<Entry>,
}

/// An image archive on disk.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The image's full name.
    pub name: &'static str,
    /// The archive.
    pub path: PathBuf,
    /// The manifest's digest, `sha256:…`.
    pub digest: String,
}

/// Every image there is.
pub const ALL: &[&str] = &[PAUSE, WEB, DNS, BUSYBOX_IMAGE];

/// Makes the `wanted` images from the binaries in `binaries` and writes the archives to `folder`.
pub fn build(wanted: &[&str], binaries: &Path, tools: &Tools, folder: &Path) -> Result<Vec<Archive>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let image = |name: &&str| match *name {
        PAUSE => program(PAUSE, "pause", &binaries.join("bosun-pause")),
        WEB => program(WEB, "web", &binaries.join("bosun-web")),
        DNS => program(DNS, "bosun-dns", &binaries.join("bosun-dns")),
        BUSYBOX_IMAGE => shell(&tools.path(&BUSYBOX), &binaries.join("bosun-web")),
        other => bail!("there is no image {other} to build; there are {}", ALL.join(", ")),
    };
    wanted.iter().map(|name| image(name)?.write(folder)).collect()
}

/// An image of one program, which is its entry point.
fn program(name: &'static str, called: &str, binary: &Path) -> Result<Image> {
    let content = fs::read(binary).with_context(|| format!("cannot read {}; was it built?", binary.display()))?;
    let mut layer = base();
    layer.push(Entry::File { path: called.to_owned(), mode: 0o755, content });
    let config = ConfigBuilder::default().entrypoint(vec![format!("/{called}")]).working_dir("/");
    Ok(Image { name, config, layer })
}

/// An image with busybox under all its names but `wget` and `ttysize`, which do not work in Debian's static build: those
/// are ours.
fn shell(busybox: &Path, ours: &Path) -> Result<Image> {
    let content = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let applets = run(Command::new(busybox).arg("--list"))?;
    let mut layer = base();
    for path in ["bin", "dev", "proc", "root", "sys", "usr", "usr/bin", "var"] {
        layer.push(Entry::Folder { path, mode: 0o755 });
    }
    layer.push(Entry::File { path: "bin/busybox".to_owned(), mode: 0o755, content });
    for applet in applets.lines().filter(|applet| !["busybox", "wget", "ttysize"].contains(applet)) {
        layer.push(Entry::Link { path: format!("bin/{applet}"), to: "busybox".to_owned() });
    }
    let content = fs::read(ours).with_context(|| format!("cannot read {}; was it built?", ours.display()))?;
    layer.push(Entry::File { path: "bin/wget".to_owned(), mode: 0o755, content });
    layer.push(Entry::Link { path: "bin/ttysize".to_owned(), to: "wget".to_owned() });
    let config =
        ConfigBuilder::default().cmd(vec!["sh".to_owned()]).env(vec!["PATH=/bin:/usr/bin".to_owned()]).working_dir("/");
    Ok(Image { name: BUSYBOX_IMAGE, config, layer })
}

fn base() -> Vec<Entry> {
    let file = |path: &str, text: &str| Entry::File { path: path.to_owned(), mode: 0o644, content: text.into() };
    vec![
        Entry::Folder { path: "etc", mode: 0o755 },
        file("etc/passwd", PASSWD),
        file("etc/group", GROUP),
        Entry::Folder { path: "tmp", mode: 0o1777 },
    ]
}

impl Image {
    fn write(self, folder: &Path) -> Result<Archive> {
        let layer = layer(&self.layer)?;
        let config = configuration(self.config.build()?, &layer)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &config)?)
            .layers(vec![descriptor(MediaType::ImageLayer, &layer)?])
            .build()?
            .to_string()?
            .into_bytes();
        let digest = hex(&manifest);
        let mut named = descriptor(MediaType::ImageManifest, &manifest)?;
        let tag = self.name.rsplit(':').next().unwrap_or_default();
        named.set_annotations(Some(HashMap::from([
            ("io.containerd.image.name".to_owned(), self.name.to_owned()),
            ("org.opencontainers.image.ref.name".to_owned(), tag.to_owned()),
        ])));
        let index = ImageIndexBuilder::default().schema_version(2_u32).manifests(vec![named]).build()?;

        let file = self.name.trim_start_matches("localhost/").replace(':', "-");
        let path = folder.join(format!("{file}.tar"));
        let partial = path.with_extension("partial");
        let mut archive = Builder::new(File::create(&partial)?);
        append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut archive, "index.json", 0o644, index.to_string()?.as_bytes())?;
        for blob in [&manifest, &config, &layer] {
            append(&mut archive, &format!("blobs/sha256/{}", hex(blob)), 0o644, blob)?;
        }
        archive.into_inner()?.flush()?;
        fs::rename(&partial, &path)?;
        Ok(Archive { name: self.name, path, digest: format!("sha256:{digest}") })
    }
}

fn configuration(config: Config, layer: &[u8]) -> Result<Vec<u8>> {
    let root = RootFsBuilder::default().typ("layers").diff_ids(vec![format!("sha256:{}", hex(layer))]).build()?;
    let image = ImageConfigurationBuilder::default()
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(config)
        .rootfs(root)
        .history(Vec::new())
        .build()?;
    Ok(image.to_string()?.into_bytes())
}

fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for entry in entries {
        match entry {
            Entry::Folder { path, mode } => {
                let mut header = header(EntryType::Directory, *mode, 0);
                layer.append_data(&mut header, format!("{path}/"), &[][..])?;
            }
            Entry::File { path, mode, content } => append(&mut layer, path, *mode, content)?,
            Entry::Link { path, to } => layer.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, to)?,
        }
    }
    Ok(layer.into_inner()?)
}

fn append(archive: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn descriptor(kind: MediaType, blob: &[u8]) -> Result<Descriptor> {
    let digest: Sha256Digest = hex(blob).parse()?;
    Ok(DescriptorBuilder::default().media_type(kind).digest(digest).size(blob.len() as u64).build()?)
}

fn hex(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_contents_give_the_same_archive() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("binary");
        fs::write(&binary, b"program").unwrap();
        let first = program(WEB, "web", &binary).unwrap().write(folder.path()).unwrap();
        let again = program(WEB, "web", &binary).unwrap().write(folder.path()).unwrap();
        assert_eq!(first.digest, again.digest);
        let mut archive = tar::Archive::new(File::open(&first.path).unwrap());
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(&names[..2], ["oci-layout", "index.json"]);
        assert_eq!(names.len(), 5);
        assert!(names.contains(&format!("blobs/sha256/{}", first.digest.trim_start_matches("sha256:"))));
    }
}
