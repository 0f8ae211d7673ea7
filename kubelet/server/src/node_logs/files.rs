//! Files and listings of the log folder.

use std::io;
use std::path::{Component, Path, PathBuf};

use bosun_kit::http::{Body, BoxError, full, stream, text};
use futures::TryStreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use tokio_util::io::ReaderStream;

/// Answers with the file or the listing of `path` below `root`. A link that leads out of `root` is not followed:
/// whoever can write a link into a log folder must not read the node by it.
pub(crate) async fn respond(root: PathBuf, path: String) -> Response<Body> {
    match open(root, path).await {
        Ok(response) => response,
        Err(error) if error.kind() == io::ErrorKind::NotFound => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn open(root: PathBuf, path: String) -> io::Result<Response<Body>> {
    let found = tokio::task::spawn_blocking(move || find(&root, &path)).await.map_err(io::Error::other)??;
    match found {
        Found::Listing(names) => Ok(html(&names)),
        Found::File(path) => {
            let file = tokio::fs::File::open(&path).await?;
            let mut response = Response::new(stream(ReaderStream::new(file).map_err(BoxError::from)));
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            Ok(response)
        }
    }
}

enum Found {
    File(PathBuf),
    Listing(Vec<String>),
}

fn find(root: &Path, path: &str) -> io::Result<Found> {
    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let relative = Path::new(path);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(not_found());
    }
    let root = root.canonicalize()?;
    let target = root.join(relative).canonicalize()?;
    if !target.starts_with(&root) {
        return Err(not_found());
    }
    let meta = target.metadata()?;
    if meta.is_file() {
        return Ok(Found::File(target));
    }
    if !meta.is_dir() {
        return Err(not_found());
    }
    let mut names = Vec::new();
    for entry in target.read_dir()? {
        let entry = entry?;
        let slash = if entry.path().is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(Found::Listing(names))
}

fn html(names: &[String]) -> Response<Body> {
    let mut page = String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        let shown = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        page += &format!("<a href=\"{}\">{shown}</a>\n", percent(name));
    }
    page += "</pre>\n";
    let mut response = Response::new(full(page));
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, html);
    response
}

fn percent(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn get(root: &Path, path: &str) -> (u16, String) {
        let response = respond(root.to_owned(), path.to_owned()).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn serves_files_and_listings_and_nothing_outside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("log");
        std::fs::create_dir_all(root.join("apt")).unwrap();
        std::fs::write(root.join("sys<log"), "hello").unwrap();
        std::fs::write(folder.path().join("secret"), "no").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("way-out")).unwrap();

        assert_eq!(get(&root, "sys<log").await, (200, "hello".to_owned()));
        let (status, listing) = get(&root, "").await;
        assert_eq!(status, 200);
        assert!(listing.contains("<a href=\"apt/\">apt/</a>\n<a href=\"sys%3Clog\">sys&lt;log</a>"), "{listing}");
        for outside in ["../secret", "way-out", "apt/../../secret", "/etc/passwd", "nowhere"] {
            assert_eq!(get(&root, outside).await.0, 404, "{outside}");
        }
    }
}
