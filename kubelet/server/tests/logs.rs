//! Following a log file that is written, rotated and finished while it is read.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bosun_kubelet_server::host::ContainerLog;
use bosun_kubelet_server::logs::{Flow, LogFilter, LogQuery, read};
use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};

/// A log file in the writing.
struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    fn new(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        Self { path: path.to_owned(), file }
    }

    fn line(&mut self, text: &str) {
        self.file.write_all(format!("2026-01-01T00:00:00Z stdout F {text}\n").as_bytes()).unwrap();
    }

    /// As the kubelet and the runtime do it: rename, then open anew.
    fn rotate(&mut self, to: &str) -> File {
        fs::rename(&self.path, self.path.with_file_name(to)).unwrap();
        let new = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        std::mem::replace(&mut self.file, new)
    }
}

struct Follower {
    chunks: mpsc::UnboundedReceiver<String>,
    text: String,
    done: Option<oneshot::Sender<()>>,
}

impl Follower {
    async fn start(path: &Path, query: LogQuery) -> Self {
        let (sender, chunks) = mpsc::unbounded_channel();
        let (done, ended) = oneshot::channel::<()>();
        let log = ContainerLog { path: Some(path.to_owned()), done: ended.map(drop).boxed() };
        let stream = read(log, query).await.unwrap();
        tokio::spawn(async move {
            let mut stream = Box::pin(stream);
            while let Some(chunk) = stream.next().await {
                sender.send(String::from_utf8(chunk.unwrap().to_vec()).unwrap()).unwrap();
            }
        });
        Self { chunks, text: String::new(), done: Some(done) }
    }

    async fn sees(&mut self, want: &str) {
        let seen = async {
            while self.text != want {
                let chunk = self.chunks.recv().await.unwrap_or_else(|| panic!("ended at {:?}", self.text));
                self.text += &chunk;
                assert!(want.starts_with(&self.text), "{:?} is no beginning of {want:?}", self.text);
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), seen).await.is_ok();
        assert!(in_time, "never saw {want:?}, only {:?}", self.text);
    }

    fn container_ends(&mut self) {
        self.done.take().unwrap().send(()).unwrap();
    }

    async fn ends(&mut self) {
        let end = tokio::time::timeout(Duration::from_secs(10), self.chunks.recv()).await.unwrap();
        assert_eq!(end, None);
    }
}

fn follow() -> LogQuery {
    LogQuery { follow: true, ..LogQuery::default() }
}

#[tokio::test]
async fn follows_writes_until_the_container_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut writer = Writer::new(&path);
    writer.line("one");
    let mut follower = Follower::start(&path, follow()).await;
    follower.sees("one\n").await;
    writer.line("two");
    follower.sees("one\ntwo\n").await;
    // A line that comes in two writes is shown whole.
    writer.file.write_all(b"2026-01-01T00:00:00Z stdout F th").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    writer.file.write_all(b"ree\n").unwrap();
    follower.sees("one\ntwo\nthree\n").await;
    // What was written last is read even when the end is told first.
    writer.line("last");
    follower.container_ends();
    follower.sees("one\ntwo\nthree\nlast\n").await;
    follower.ends().await;
}

#[tokio::test]
async fn follows_over_rotations_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut writer = Writer::new(&path);
    let mut follower = Follower::start(&path, follow()).await;
    let mut want = String::new();
    for turn in 0..20 {
        for line in 0..turn {
            writer.line(&format!("{turn}.{line}"));
            want += &format!("{turn}.{line}\n");
        }
        writer.rotate(&format!("0.log.{turn}"));
        // Two rotations in one instant would hide the file between them, from us as from stock.
        writer.line("new file");
        want += "new file\n";
        follower.sees(&want).await;
    }
    writer.line("end");
    want += "end\n";
    follower.container_ends();
    follower.sees(&want).await;
    follower.ends().await;
}

#[tokio::test]
async fn follows_a_file_that_is_yet_to_come_and_one_that_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut follower = Follower::start(&path, follow()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut writer = Writer::new(&path);
    writer.line("first");
    follower.sees("first\n").await;
    writer.file.set_len(0).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    writer.line("new");
    follower.sees("first\nnew\n").await;
    // The container's end ends it, also when nothing more is written.
    follower.container_ends();
    follower.ends().await;
}

#[tokio::test]
async fn follows_from_the_tail() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut writer = Writer::new(&path);
    for line in 0..1000 {
        writer.line(&line.to_string());
    }
    let mut follower = Follower::start(&path, LogQuery { tail_lines: Some(2), ..follow() }).await;
    follower.sees("998\n999\n").await;
    writer.line("more");
    follower.sees("998\n999\nmore\n").await;
    let mut nothing = Follower::start(&path, LogQuery { tail_lines: Some(0), ..follow() }).await;
    writer.line("only");
    nothing.sees("only\n").await;
    // A limit ends the following.
    let mut limited = Follower::start(&path, LogQuery { limit_bytes: Some(3), ..follow() }).await;
    limited.sees("0\n1").await;
    limited.ends().await;
}

#[tokio::test]
async fn a_log_that_is_not_there_is_empty() {
    for path in [None, Some("/nowhere/0.log".into())] {
        let log = ContainerLog { path, done: futures::future::ready(()).boxed() };
        let chunks: Vec<_> = read(log, LogQuery::default()).await.unwrap().collect().await;
        assert!(chunks.is_empty());
    }
}

proptest! {
    /// However a file is cut into reads, the answer is the same.
    #[test]
    fn cuts_do_not_matter(
        entries in prop::collection::vec(("(stdout|stderr)", "[PF]", "[a-z \u{e9}]{0,40}"), 0..30),
        cuts in prop::collection::vec(1usize..64, 1..20),
        timestamps: bool,
        limit in prop::option::of(1u64..400),
    ) {
        let line = |(i, (stream, tag, text)): (usize, &(String, String, String))| {
            format!("2026-01-01T00:00:{:02}Z {stream} {tag} {text}\n", i % 60)
        };
        let log: String = entries.iter().enumerate().map(line).collect();
        let query = LogQuery { timestamps, limit_bytes: limit, ..LogQuery::default() };
        let mut whole = Vec::new();
        LogFilter::new(&query).push(log.as_bytes(), &mut whole);
        let mut filter = LogFilter::new(&query);
        let (mut out, mut rest, mut cuts) = (Vec::new(), log.as_bytes(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (chunk, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            rest = tail;
            if filter.push(chunk, &mut out) == Flow::Full {
                break;
            }
        }
        prop_assert_eq!(&out, &whole);
        if let Some(limit) = limit {
            prop_assert!(out.len() as u64 <= limit);
        }
    }
}
