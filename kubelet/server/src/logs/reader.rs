//! One log file as a stream of bytes: from its tail, over its rotations, to its container's end.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, BoxFuture, Either, FutureExt};
use futures::{Stream, StreamExt, stream};
use inotify::{EventStream, Inotify, WatchMask};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Flow, LogFilter, LogQuery, tail};
use crate::host::ContainerLog;

const CHUNK: usize = 32 << 10;
/// How often to look when the kernel grants no more inotify instances.
const POLL: Duration = Duration::from_millis(500);

/// The answer's bytes for a query. Dropping the stream ends the reading at once.
///
/// # Errors
/// Opening the file; later errors come in the stream. A file that is not there is an empty log (followed, it is
/// waited for).
pub async fn read(
    log: ContainerLog,
    query: LogQuery,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let reader = match log.path {
        Some(path) => Reader::open(path, &query, log.done).await?,
        None => None,
    };
    Ok(stream::unfold(reader, |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Reader {
    path: PathBuf,
    file: Option<File>,
    /// Read position; a file shorter than this was cut.
    position: u64,
    filter: LogFilter,
    buffer: Vec<u8>,
    follow: Option<Follow>,
    full: bool,
}

struct Follow {
    changes: Changes,
    done: future::Shared<BoxFuture<'static, ()>>,
    ended: bool,
}

enum Changes {
    Events(Box<EventStream<[u8; 1024]>>),
    Poll,
}

impl Reader {
    async fn open(path: PathBuf, query: &LogQuery, done: BoxFuture<'static, ()>) -> io::Result<Option<Self>> {
        // The watch comes before the first read, so that no write falls between the two.
        let follow = query.follow.then(|| Follow { changes: Changes::watch(&path), done: done.shared(), ended: false });
        let mut file = open(&path).await?;
        if file.is_none() && follow.is_none() {
            return Ok(None);
        }
        let mut position = 0;
        if let Some(lines) = query.tail_lines
            && let Some(open) = file.take()
        {
            let mut blocking = open.into_std().await;
            let at = move || tail::offset(&mut blocking, lines).map(|at| (blocking, at));
            let (blocking, at) = tokio::task::spawn_blocking(at).await.map_err(io::Error::other)??;
            let mut open = File::from_std(blocking);
            open.seek(io::SeekFrom::Start(at)).await?;
            position = at;
            file = Some(open);
        }
        let filter = LogFilter::new(query);
        Ok(Some(Self { path, file, position, filter, buffer: vec![0; CHUNK], follow, full: false }))
    }

    /// The next bytes for the client; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut out = Vec::new();
        loop {
            if self.full {
                return Ok(None);
            }
            let got = match &mut self.file {
                Some(file) => file.read(&mut self.buffer).await?,
                None => 0,
            };
            if got > 0 {
                self.position += got as u64;
                self.full = self.filter.push(&self.buffer[..got], &mut out) == Flow::Full;
                if !out.is_empty() {
                    return Ok(Some(Bytes::from(out)));
                }
                continue;
            }
            if self.follow.is_none() {
                return Ok(None);
            }
            if self.reopen().await? {
                continue;
            }
            let Some(follow) = &mut self.follow else { return Ok(None) };
            if follow.ended {
                return Ok(None);
            }
            follow.wait().await;
        }
    }

    /// Turns to the new file after a rotation, or to the beginning of one that was cut. Call at the end of the old.
    async fn reopen(&mut self) -> io::Result<bool> {
        let Some(new) = open(&self.path).await? else { return Ok(false) };
        let new_meta = new.metadata().await?;
        if let Some(old) = &mut self.file {
            let old_meta = old.metadata().await?;
            if (old_meta.dev(), old_meta.ino()) == (new_meta.dev(), new_meta.ino()) {
                if new_meta.len() >= self.position {
                    return Ok(false);
                }
            } else if old_meta.len() > self.position {
                // Written between our last read and the rename: first to the end.
                return Ok(true);
            }
        }
        self.filter.restart();
        self.position = 0;
        self.file = Some(new);
        Ok(true)
    }
}

impl Follow {
    /// Until the file may have changed or the container has ended.
    async fn wait(&mut self) {
        let done = self.done.clone();
        let change = std::pin::pin!(self.changes.next());
        if let Either::Right(_) = future::select(change, done).await {
            self.ended = true;
        }
    }
}

impl Changes {
    /// Watches the folder, which tells of writes to the file and of a new file of its name alike.
    fn watch(path: &Path) -> Self {
        let watch = || -> io::Result<EventStream<[u8; 1024]>> {
            let inotify = Inotify::init()?;
            let folder = path.parent().unwrap_or(Path::new("/"));
            let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
            inotify.watches().add(folder, mask)?;
            inotify.into_event_stream([0; 1024])
        };
        watch().map_or_else(
            |error| {
                tracing::debug!(%error, path = %path.display(), "no inotify for this log; looking twice a second");
                Self::Poll
            },
            |events| Self::Events(Box::new(events)),
        )
    }

    async fn next(&mut self) {
        match self {
            Self::Events(events) => match events.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => *self = Self::Poll,
            },
            Self::Poll => tokio::time::sleep(POLL).await,
        }
    }
}

async fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
