//! Names of images: what they mean, and which patterns fit them.

/// The image with `:latest` if it has neither tag nor digest.
///
/// # Errors
/// The text is no image reference.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let invalid = || format!("couldn't parse image name {image:?}: invalid reference format");
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let after_host = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[after_host..].split_once(':') {
        Some((last, tag)) => (&name[..after_host + last.len()], Some(tag)),
        None => (name, None),
    };
    let part = |text: &str| {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        text.starts_with(fine) && text.ends_with(fine) && text.chars().all(|c| fine(c) || "._-".contains(c))
    };
    let host = |text: &str| {
        text.split(':')
            .next()
            .is_some_and(|h| !h.is_empty() && h.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)))
    };
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let first_fine = part(first) || (!rest.is_empty() && host(first));
    let tag_fine = tag.is_none_or(|tag| {
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    });
    let digest_fine = digest.is_none_or(|d| d.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32));
    if !first_fine || !rest.iter().all(|p| part(p)) || !tag_fine || !digest_fine {
        return Err(invalid());
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// The image's name in full: with its registry, without tag and digest.
pub fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let after_host = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[after_host..].find(':').map_or(name.len(), |at| after_host + at);
    let name = &name[..end];
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// Whether a pattern such as `*.registry.io:8080/path` fits an image: the same number of labels in the host, each fitting
/// its glob, the same port, and the pattern's path before the image's.
pub fn matches(pattern: &str, image: &str) -> bool {
    let bare = |text: &str| {
        let text = text.trim_start_matches("https://").trim_start_matches("http://");
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        (name.to_owned(), port.to_owned(), path.to_owned())
    };
    let ((host, port, path), (image_host, image_port, image_path)) = (bare(pattern), bare(image));
    let (globs, labels): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), image_host.split('.').collect());
    port == image_port
        && globs.len() == labels.len()
        && image_path.starts_with(&path)
        && globs.iter().zip(labels).all(|(glob, label)| glob_fits(glob.as_bytes(), label.as_bytes()))
}

fn glob_fits(glob: &[u8], text: &[u8]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skip| glob_fits(rest, &text[skip..])),
        (Some((b'?', glob)), Some((_, text))) => glob_fits(glob, text),
        (Some((want, glob)), Some((have, text))) => want == have && glob_fits(glob, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_gets_a_tag_or_is_refused() {
        for (given, wanted) in [
            ("busybox", Ok("busybox:latest")),
            ("reg:5000/a/b", Ok("reg:5000/a/b:latest")),
            ("a/b:1", Ok("a/b:1")),
            ("Nope", Err(())),
            ("a//b", Err(())),
            ("a:b:c", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(with_default_tag(given).as_deref().map_err(|_| ()), wanted, "{given}");
        }
    }

    #[test]
    fn patterns_fit_as_in_stock() {
        for (pattern, image, fits) in [
            ("registry.io", "registry.io/a/b", true),
            ("*.registry.io", "eu.registry.io/a", true),
            ("*.registry.io", "registry.io/a", false),
            ("*.registry.io", "a.b.registry.io/x", false),
            ("*.dkr.*.aws.com", "12.dkr.eu-1.aws.com/x", true),
            ("registry.io:8080/path", "registry.io:8080/path/x", true),
            ("registry.io:8080", "registry.io/x", false),
            ("registry.io/other", "registry.io/path", false),
        ] {
            assert_eq!(matches(pattern, image), fits, "{pattern} {image}");
        }
    }

    #[test]
    fn names_are_told_in_full() {
        assert_eq!(repository("busybox:1"), "docker.io/library/busybox");
        assert_eq!(repository("a/b@sha256:00"), "docker.io/a/b");
        assert_eq!(repository("reg:5000/a:1"), "reg:5000/a");
        assert_eq!(repository("localhost/a"), "localhost/a");
    }
}
