//! Asks upstream servers for names outside the cluster, and remembers what they said.

use crate::figures::Figures;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one server is waited for.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How often a question is sent before it fails.
const ATTEMPTS: usize = 3;
/// Answers are kept no longer, whatever they allow.
const LONGEST: Duration = Duration::from_secs(30);
/// Answers kept at most.
const CAPACITY: usize = 10_000;

/// Asks the upstream servers in turn; cheap to clone.
#[derive(Clone)]
pub struct Forwarder {
    inner: Arc<Inner>,
}

struct Inner {
    upstreams: Vec<SocketAddr>,
    next: AtomicUsize,
    cache: Mutex<HashMap<Key, Kept>>,
    figures: Figures,
}

/// What makes two questions the same: lower-case name, type, and whether signatures are wanted.
type Key = (Name, RecordType, bool);

struct Kept {
    answer: Message,
    since: Instant,
    until: Instant,
}

impl Forwarder {
    /// A forwarder to these servers.
    pub(crate) fn new(upstreams: Vec<SocketAddr>, figures: Figures) -> Self {
        let inner = Inner { upstreams, next: AtomicUsize::new(0), cache: Mutex::default(), figures };
        Self { inner: Arc::new(inner) }
    }

    /// What upstream says to the request's question; SERVFAIL when none answers in time.
    ///
    /// `stream` says that the client came by TCP, so that a truncated answer is no use.
    pub async fn ask(&self, request: &Message, stream: bool) -> Message {
        let Some(query) = request.queries.first() else { return failure(request, ResponseCode::FormErr) };
        let wants_signatures = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let key = (query.name().to_lowercase(), query.query_type(), wants_signatures);
        if let Some(mut answer) = self.inner.kept(&key) {
            self.inner.figures.cache_hits.inc();
            answer.metadata.id = request.metadata.id;
            answer.metadata.recursion_desired = request.metadata.recursion_desired;
            // The question is answered in the letters it was asked in.
            answer.queries.clone_from(&request.queries);
            return answer;
        }
        self.inner.figures.cache_misses.inc();
        for _ in 0..ATTEMPTS.min(self.inner.upstreams.len() * 2) {
            let turn = self.inner.next.fetch_add(1, Ordering::Relaxed);
            let upstream = self.inner.upstreams[turn % self.inner.upstreams.len()];
            self.inner.figures.forwarded.inc();
            match timeout(ATTEMPT, exchange(upstream, request, stream)).await {
                Ok(Ok(mut answer)) => {
                    answer.metadata.id = request.metadata.id;
                    self.inner.keep(key, &answer);
                    return answer;
                }
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "upstream failed"),
                Err(_) => tracing::debug!(%upstream, "upstream is silent"),
            }
        }
        self.inner.figures.forward_failures.inc();
        failure(request, ResponseCode::ServFail)
    }
}

/// An answer without records.
pub(crate) fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.queries.clone_from(&request.queries);
    answer
}

impl Inner {
    fn kept(&self, key: &Key) -> Option<Message> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = cache.get(key)?;
        let now = Instant::now();
        if kept.until <= now {
            cache.remove(key);
            return None;
        }
        let mut answer = kept.answer.clone();
        let age = u32::try_from((now - kept.since).as_secs()).unwrap_or(u32::MAX);
        let records = answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals);
        records.for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        Some(answer)
    }

    fn keep(&self, key: Key, answer: &Message) {
        let Some(lifetime) = lifetime(answer) else { return };
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CAPACITY {
            cache.retain(|_, kept| kept.until > now);
            if cache.len() >= CAPACITY {
                cache.clear();
            }
        }
        cache.insert(key, Kept { answer: answer.clone(), since: now, until: now + lifetime });
    }
}

/// How long an answer may be kept: by its records, or by its SOA when it has none (RFC 2308).
fn lifetime(answer: &Message) -> Option<Duration> {
    let code = answer.metadata.response_code;
    if answer.metadata.truncation || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let of_records = answer.answers.iter().map(|record| record.ttl).min();
    let of_denial = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let seconds = if answer.answers.is_empty() { of_denial } else { of_records }?;
    Some(Duration::from_secs(seconds.into()).min(LONGEST)).filter(|lifetime| !lifetime.is_zero())
}

/// Sends the request under a fresh identifier from a fresh port, which is what keeps forged answers out.
async fn exchange(upstream: SocketAddr, request: &Message, stream: bool) -> io::Result<Message> {
    let mut request = request.clone();
    request.metadata.id = rand::random();
    let bytes = request.to_vec().map_err(io::Error::other)?;
    let answer = by_udp(upstream, &request, &bytes).await?;
    if answer.metadata.truncation && stream { by_tcp(upstream, &request, &bytes).await } else { Ok(answer) }
}

fn answers(request: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == request.metadata.id && answer.queries == request.queries;
    same.then_some(answer)
}

async fn by_udp(upstream: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let local: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit the question was not sent by the server we asked.
        if let Some(answer) = answers(request, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(upstream: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    answers(request, &buffer).ok_or_else(|| io::Error::other("the answer is to another question"))
}
