//! watch: a stream of changes, one JSON document a line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bosun_api::status::ApiError;
use bosun_kit::http::{Body, BoxError, stream};
use bosun_store::Revision;
use bytes::Bytes;
use futures::Stream;
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cache::{Change, Changes, Seen, line};
use crate::call::{Call, metadata_only};
use crate::codec::{self, Accept, Shape};
use crate::object::Raw;
use crate::read::resource_version;
use crate::server::{Inner, stored};
use crate::{convert, table};

/// How often a client that asked for bookmarks gets one.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// A watch without a timeout ends after between once and twice this.
const SHORTEST: u64 = 1800;
/// At most this many changes go into one chunk.
const BURST: usize = 128;

impl Inner {
    pub(crate) async fn watch(self: &Arc<Self>, call: Call) -> Result<Response<Body>, ApiError> {
        let filter = self.filter(&call)?;
        let since = resource_version(&call)?;
        let initial = call.query.get("sendInitialEvents").filter(|v| !v.is_empty()).map(|v| v == "true");
        check_initial(&call, initial)?;
        let (bookmarks, timeout) = (call.query.flag("allowWatchBookmarks"), call.query.number("timeoutSeconds")?);
        let mut first = VecDeque::new();
        let with_state = initial.unwrap_or(matches!(since, None | Some(0)));
        let since = if with_state {
            match since {
                Some(0) => {}
                Some(wanted) => self.wait_for(wanted).await?,
                None => self.wait_until_fresh().await?,
            }
            let snapshot = self.caches.list(&filter, None, 0);
            first.extend(snapshot.objects.into_iter().map(|o| Item::State(o.raw.clone())));
            if initial == Some(true) && bookmarks {
                first.push_back(Item::InitialEnd(snapshot.revision));
            }
            snapshot.revision
        } else {
            match since {
                None | Some(0) => self.caches.revision(),
                Some(since) => since,
            }
        };
        let started = self.caches.watch(self.store.as_ref(), &filter, since).await.map_err(|e| match e {
            bosun_store::Error::Compacted { requested, oldest } => ApiError::too_old(requested - 1, oldest),
            other => stored(other),
        })?;
        let Some(started) = started else {
            return Err(ApiError::method_not_supported(call.resource.group, call.resource.plural, "watch"));
        };
        first.extend(started.missed.into_iter().map(|(seen, change)| Item::Change(seen, change)));
        let seconds = match timeout {
            Some(seconds) if seconds > 0 => seconds.unsigned_abs(),
            _ => rand::rng().random_range(SHORTEST..SHORTEST * 2),
        };
        let state = Watching {
            inner: self.clone(),
            form: Form { plain: call.accept == Accept::JSON && is_stored_form(&call), call },
            first,
            changes: started.changes,
            deadline: Instant::now() + Duration::from_secs(seconds),
            bookmark: bookmarks.then(|| Instant::now() + BOOKMARK_PERIOD),
            seen: since,
            buffer: Vec::new(),
        };
        Ok(codec::answer_bytes(StatusCode::OK, stream(state.chunks())))
    }
}

fn is_stored_form(call: &Call) -> bool {
    std::ptr::eq(call.resource.stored_as(), call.resource)
}

fn check_initial(call: &Call, initial: Option<bool>) -> Result<(), ApiError> {
    let version_match = call.query.get("resourceVersionMatch").unwrap_or_default();
    let why = match (initial, version_match) {
        (Some(true), "NotOlderThan") | (None, "") | (Some(false), "") => return Ok(()),
        (Some(_), "NotOlderThan") => return Ok(()),
        (Some(_), _) => {
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to \
                         NotOlderThan"
        }
        (None, _) => {
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless \
                      sendInitialEvents is provided"
        }
    };
    Err(ApiError::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {why}")))
}

/// Something to be written to the client.
enum Item {
    State(Raw),
    Change(Seen, Arc<Change>),
    InitialEnd(Revision),
}

/// How one client wants to see objects.
struct Form {
    call: Call,
    /// As they are stored: no need to look inside.
    plain: bool,
}

impl Form {
    fn encode(&self, item: &Item) -> Bytes {
        match item {
            Item::State(raw) if self.plain => line(Seen::Added, raw),
            Item::State(raw) => self.event(Seen::Added.as_str(), self.shape(raw.value())),
            Item::Change(seen, change) if self.plain => change.line(*seen),
            Item::Change(seen, change) => self.event(seen.as_str(), self.shape(change.shown(*seen).value())),
            Item::InitialEnd(revision) => self.bookmark(*revision, true),
        }
    }

    fn event(&self, kind: &str, object: Value) -> Bytes {
        let event = json!({"type": kind, "object": object});
        let text = match self.call.accept.yaml {
            true => format!("---\n{}", serde_yaml_ng::to_string(&event).unwrap_or_default()),
            false => format!("{event}\n"),
        };
        text.into()
    }

    fn shape(&self, stored: Value) -> Value {
        let value = convert::from_stored(self.call.resource, stored);
        match self.call.accept.shape {
            Shape::Full => value,
            Shape::Metadata => metadata_only(&value),
            Shape::Table => {
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                table::render(self.call.resource, &[value], self.call.include_object(), metadata)
            }
        }
    }

    fn bookmark(&self, revision: Revision, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let resource = self.call.resource;
        let object = match self.call.accept.shape {
            Shape::Full => json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata}),
            Shape::Metadata => metadata_only(&json!({"metadata": metadata})),
            Shape::Table => table::render(resource, &[], "None", metadata),
        };
        self.event("BOOKMARK", object)
    }
}

/// The state of one watch.
struct Watching {
    inner: Arc<Inner>,
    form: Form,
    first: VecDeque<Item>,
    changes: Changes,
    deadline: Instant,
    /// When the next bookmark is due.
    bookmark: Option<Instant>,
    /// The revision of the last change written.
    seen: Revision,
    buffer: Vec<(Seen, Arc<Change>)>,
}

impl Watching {
    fn chunks(self) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        futures::stream::unfold(self, |mut state| async move { state.next().await.map(|chunk| (Ok(chunk), state)) })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(chunk) = self.next_first() {
            return Some(chunk);
        }
        let bookmark = self.bookmark.unwrap_or(self.deadline);
        tokio::select! {
            biased;
            count = self.changes.recv_many(&mut self.buffer, BURST) => {
                (count > 0).then(|| self.take_buffer())
            }
            () = tokio::time::sleep_until(self.deadline) => None,
            () = self.inner.cancel.cancelled() => None,
            () = tokio::time::sleep_until(bookmark) => Some(self.take_bookmark()),
        }
    }

    /// The state and the missed changes, many to a chunk.
    fn next_first(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.len() < 64 * 1024 {
            let Some(item) = self.first.pop_front() else { break };
            if let Item::Change(_, change) = &item {
                self.seen = change.revision;
            }
            out.extend_from_slice(&self.form.encode(&item));
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn take_buffer(&mut self) -> Bytes {
        let mut lines = self.buffer.drain(..).map(|(seen, change)| {
            self.seen = change.revision;
            self.form.encode(&Item::Change(seen, change))
        });
        let first = lines.next().unwrap_or_default();
        let mut rest = lines.peekable();
        if rest.peek().is_none() {
            return first;
        }
        let mut out = first.to_vec();
        rest.for_each(|line| out.extend_from_slice(&line));
        out.into()
    }

    fn take_bookmark(&mut self) -> Bytes {
        self.bookmark = Some(Instant::now() + BOOKMARK_PERIOD);
        // What the caches show has been put into the channel before they say so: with the channel emptied after the
        // look, nothing up to that revision is missing.
        let revision = self.inner.caches.revision().max(self.seen);
        let mut out = Vec::new();
        while let Ok((seen, change)) = self.changes.try_recv() {
            self.seen = change.revision;
            out.extend_from_slice(&self.form.encode(&Item::Change(seen, change)));
        }
        out.extend_from_slice(&self.form.bookmark(revision.max(self.seen), false));
        out.into()
    }
}
