//! The node log query (KEP-2258): `query` names services or one file; the other parameters choose lines.
//!
//! A service that the journal knows is read by `journalctl`; another's log is looked for below the log folder under the
//! names that services usually give it. Of such a file the last lines and those of a pattern can be had; lines by time
//! or boot cannot, and are refused.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bosun_kit::http::{Body, BoxError, stream, text};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use regex::Regex;
use thiserror::Error;
use tokio::process::Command;
use tokio_util::io::ReaderStream;

/// The program that reads the journal.
pub(super) const JOURNAL: &str = "journalctl";
/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(30);
const MOST_LINES: usize = 100_000;
const LONGEST_NAME: usize = 256;
const LONGEST_PATTERN: usize = 2000;

/// Why a query was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum QueryError {
    /// A parameter is no value of its kind.
    #[error("{0}")]
    Unreadable(String),
    /// What is asked for cannot be had.
    #[error("{0}")]
    Unacceptable(String),
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum LogQuery {
    /// One file below the log folder.
    File(String),
    /// Services.
    Services(ServiceQuery),
}

/// The logs of services.
#[derive(Debug, Default)]
pub(super) struct ServiceQuery {
    services: Vec<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    lines: Option<usize>,
    pattern: Option<Regex>,
    boot: Option<i64>,
}

impl LogQuery {
    /// Reads parameters; `None` if none of them is a query's.
    pub(super) fn parse(pairs: &[(String, String)]) -> Result<Option<Self>, QueryError> {
        let of = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let queries: Vec<&str> = pairs.iter().filter(|(key, _)| key == "query").map(|(_, v)| v.as_str()).collect();
        let (files, services): (Vec<&str>, Vec<&str>) = queries.iter().partition(|query| query.contains(['/', '\\']));
        let options = ["sinceTime", "untilTime", "tailLines", "pattern", "boot"].iter().any(|name| of(name).is_some());
        let query = ServiceQuery {
            services: services.iter().map(|service| (*service).to_owned()).collect(),
            since: of("sinceTime").map(|value| time("sinceTime", value)).transpose()?,
            until: of("untilTime").map(|value| time("untilTime", value)).transpose()?,
            lines: of("tailLines").map(|value| number("tailLines", value)).transpose()?,
            pattern: of("pattern").map(pattern).transpose()?,
            boot: of("boot").map(|value| number("boot", value)).transpose()?,
        };
        let unacceptable = |message: &str| Err(QueryError::Unacceptable(message.to_owned()));
        match (files.as_slice(), services.is_empty()) {
            ([], true) if queries.is_empty() && !options => Ok(None),
            ([], true) => unacceptable("query: Required value: cannot be empty with options"),
            ([], false) => query.check().map(|()| Some(Self::Services(query))),
            (_, false) => unacceptable("query: Invalid value: cannot specify a file and service"),
            ([_], true) if options => unacceptable("query: Invalid value: cannot specify file with options"),
            ([file], true) => Ok(Some(Self::File(file.replace('\\', "/")))),
            _ => unacceptable("query: Invalid value: cannot specify more than one file"),
        }
    }
}

fn time(name: &str, value: &str) -> Result<Timestamp, QueryError> {
    value
        .parse()
        .map_err(|_| QueryError::Unreadable(format!("{name}: Invalid value: {value:?}: not a time in RFC 3339 format")))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, QueryError> {
    value
        .parse()
        .map_err(|_| QueryError::Unreadable(format!("{name}: Invalid value: {value:?}: not a number in range")))
}

fn pattern(value: &str) -> Result<Regex, QueryError> {
    if value.len() > LONGEST_PATTERN {
        let message = format!("pattern: Invalid value: longer than {LONGEST_PATTERN} characters");
        return Err(QueryError::Unacceptable(message));
    }
    Regex::new(value).map_err(|error| QueryError::Unacceptable(format!("pattern: Invalid value: {value:?}: {error}")))
}

impl ServiceQuery {
    fn check(&self) -> Result<(), QueryError> {
        let unacceptable = |message: String| Err(QueryError::Unacceptable(message));
        // What a unit's name may hold (systemd.unit(5)); above all no path and no option.
        let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.@".contains(c);
        for service in &self.services {
            if service.is_empty()
                || service.len() > LONGEST_NAME
                || service.starts_with('-')
                || !service.chars().all(plain)
            {
                return unacceptable(format!("query: Invalid value: {service:?} is no name of a service"));
            }
        }
        if self.since.zip(self.until).is_some_and(|(since, until)| since > until) {
            return unacceptable("untilTime: Invalid value: must be after `sinceTime`".to_owned());
        }
        if self.lines.is_some_and(|lines| lines > MOST_LINES) {
            return unacceptable(format!("tailLines: Invalid value: must be between 0 and {MOST_LINES}, inclusive"));
        }
        if self.boot.is_some_and(|boot| boot > 0) {
            return unacceptable("boot: Invalid value: must be 0 or negative".to_owned());
        }
        Ok(())
    }

    /// The logs, from `journal` or below `root`.
    pub(super) async fn respond(self, root: PathBuf, journal: &str) -> Response<Body> {
        let known = units(journal).await;
        let in_journal = |service: &String| known.contains(service) || known.contains(&format!("{service}.service"));
        let (journalled, others): (Vec<String>, Vec<String>) = self.services.iter().cloned().partition(in_journal);
        if !others.is_empty() && (self.since.is_some() || self.until.is_some() || self.boot.is_some()) {
            let others = others.join(", ");
            let message =
                format!("{others}: not in the journal; of a log file only tailLines and pattern can be had\n");
            return text(StatusCode::NOT_ACCEPTABLE, message);
        }
        let files = match self.read_files(root, others).await {
            Ok(text) => text,
            Err(error) => return text(StatusCode::NOT_FOUND, format!("{error}\n")),
        };
        let mut parts = vec![futures::stream::iter([Ok::<_, BoxError>(files.into())]).boxed()];
        if !journalled.is_empty() {
            match self.read_journal(journal, &journalled) {
                Ok(output) => parts.push(output.boxed()),
                Err(error) => {
                    return text(StatusCode::INTERNAL_SERVER_ERROR, format!("run {journal}: {error}\n"));
                }
            }
        }
        let mut response = Response::new(stream(futures::stream::iter(parts).flatten()));
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }

    /// The last lines of each service's file that fit the pattern.
    async fn read_files(&self, root: PathBuf, services: Vec<String>) -> Result<Vec<u8>, String> {
        let (lines, pattern) = (self.lines, self.pattern.clone());
        let read = move || {
            let mut out = Vec::new();
            for service in &services {
                let file = file_of(&root, service).ok_or_else(|| {
                    format!("log not found for {service}: not in the journal, no file below {}", root.display())
                })?;
                let file = std::fs::File::open(&file).map_err(|error| format!("open {}: {error}", file.display()))?;
                select(file, pattern.as_ref(), lines, &mut out).map_err(|error| format!("read {service}: {error}"))?;
            }
            Ok(out)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn read_journal(
        &self,
        journal: &str,
        services: &[String],
    ) -> std::io::Result<impl futures::Stream<Item = Result<bytes::Bytes, BoxError>> + Send + 'static> {
        let mut child = Command::new(journal)
            .args(self.arguments(services))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().ok_or_else(|| std::io::Error::other("it has no output"))?;
        let output = ReaderStream::new(output).map_err(BoxError::from);
        // The child lives as long as its output is read, and no longer than the deadline.
        let output = output.map(move |chunk| {
            let _running = &child;
            chunk
        });
        Ok(output.take_until(tokio::time::sleep(DEADLINE)))
    }

    fn arguments(&self, services: &[String]) -> Vec<String> {
        let mut arguments = ["--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).to_vec();
        let at = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        arguments.extend(self.since.map(|time| format!("--since={}", at(time))));
        arguments.extend(self.until.map(|time| format!("--until={}", at(time))));
        arguments.extend(self.lines.map(|lines| format!("--lines={lines}")));
        arguments.extend(services.iter().map(|service| format!("--unit={service}")));
        arguments.extend(self.pattern.as_ref().map(|pattern| format!("--grep={pattern}")));
        arguments.extend(self.boot.map(|boot| format!("--boot={boot}")));
        arguments
    }
}

/// The units that the journal knows; none where there is no journal.
async fn units(journal: &str) -> Vec<String> {
    let ask = Command::new(journal).args(["--field", "_SYSTEMD_UNIT"]).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(DEADLINE, ask).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Where services usually write.
fn file_of(root: &Path, service: &str) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let names = [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")];
    let candidates = names.iter().filter_map(|name| root.join(name).canonicalize().ok());
    // A link that leads out of the folder is not followed.
    candidates.into_iter().find(|path| path.starts_with(&root) && path.is_file())
}

/// The last `lines` of those that fit the pattern.
fn select(
    from: impl std::io::Read,
    pattern: Option<&Regex>,
    lines: Option<usize>,
    into: &mut Vec<u8>,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
    loop {
        let mut line = Vec::new();
        if from.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if pattern.is_some_and(|pattern| !pattern.is_match(&String::from_utf8_lossy(&line))) {
            continue;
        }
        match lines {
            None => into.append(&mut line),
            Some(0) => {}
            Some(most) => {
                if kept.len() == most {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        }
    }
    into.extend(kept.into_iter().flatten());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use http_body_util::BodyExt;

    use super::*;

    fn pairs(query: &str) -> Vec<(String, String)> {
        crate::route::query_pairs(Some(query))
    }

    fn services(query: &str) -> ServiceQuery {
        match LogQuery::parse(&pairs(query)).unwrap() {
            Some(LogQuery::Services(services)) => services,
            other => panic!("{other:?}"),
        }
    }

    async fn get(query: &str, root: &Path, journal: &str) -> (u16, String) {
        let response = services(query).respond(root.to_owned(), journal).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn reads_and_refuses_queries() {
        assert!(LogQuery::parse(&pairs("")).unwrap().is_none());
        assert!(matches!(LogQuery::parse(&pairs("query=/a.log")), Ok(Some(LogQuery::File(file))) if file == "/a.log"));
        let refused = |query: &str| match LogQuery::parse(&pairs(query)) {
            Err(QueryError::Unreadable(text)) => format!("400 {text}"),
            Err(QueryError::Unacceptable(text)) => format!("406 {text}"),
            Ok(query) => panic!("{query:?}"),
        };
        for (query, want) in [
            ("query=kubelet&sinceTime=now", "400 sinceTime"),
            ("query=kubelet&tailLines=-1", "400 tailLines"),
            ("tailLines=1", "406 query: Required"),
            ("query=/a.log&query=kubelet", "406 query: Invalid value: cannot specify a file and service"),
            ("query=/a.log&query=/b.log", "406 query: Invalid value: cannot specify more than one file"),
            ("query=/a.log&boot=0", "406 query: Invalid value: cannot specify file with options"),
            ("query=a%20b", "406 query"),
            ("query=--file", "406 query"),
            ("query=kubelet&boot=1", "406 boot"),
            ("query=kubelet&tailLines=100001", "406 tailLines"),
            ("query=kubelet&pattern=(", "406 pattern"),
            ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", "406 untilTime"),
        ] {
            assert!(refused(query).starts_with(want), "{query}: {}", refused(query));
        }
    }

    #[test]
    fn asks_the_journal_in_its_words() {
        let query = services(
            "query=kubelet&sinceTime=2026-01-02T03:04:05Z&tailLines=7&pattern=a.b&boot=-1&untilTime=2026-01-03T00:00:00Z",
        );
        let want = [
            "--utc",
            "--no-pager",
            "--output=short-precise",
            "--since=2026-01-02 03:04:05 UTC",
            "--until=2026-01-03 00:00:00 UTC",
            "--lines=7",
            "--unit=kubelet",
            "--grep=a.b",
            "--boot=-1",
        ];
        assert_eq!(query.arguments(&query.services), want);
    }

    #[tokio::test]
    async fn files_stand_in_for_what_the_journal_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("log");
        std::fs::create_dir_all(root.join("web")).unwrap();
        std::fs::write(root.join("web/web.log"), "one\ntwo\nthree\n").unwrap();
        std::fs::write(folder.path().join("secret"), "no").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("way-out")).unwrap();
        let journal = folder.path().join("journal");
        let script = "#!/bin/sh\ncase $1 in --field) echo kubelet.service;; *) echo \"journal $4\";; esac\n";
        std::fs::write(&journal, script).unwrap();
        std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o755)).unwrap();
        let journal = journal.to_str().unwrap();

        assert_eq!(get("query=kubelet", &root, journal).await, (200, "journal --unit=kubelet\n".into()));
        assert_eq!(get("query=web&tailLines=2&pattern=o", &root, journal).await, (200, "one\ntwo\n".into()));
        assert_eq!(get("query=web&tailLines=1", &root, "/nowhere").await, (200, "three\n".into()));
        assert_eq!(get("query=kubelet&query=web&tailLines=1", &root, journal).await.1, "three\njournal --lines=1\n");
        for missing in ["query=way-out", "query=db", "query=.."] {
            assert_eq!(get(missing, &root, journal).await.0, 404, "{missing}");
        }
        assert_eq!(get("query=web&boot=0", &root, journal).await.0, 406);
    }
}
