//! UDP and TCP: requests in, answers out.

use crate::{
    answer::{Answer, Outcome, answer},
    figures::Figures,
    forward::{Forwarder, failure},
    zone::Zone,
};
use anyhow::{Context, Result};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::RecordType,
};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// The largest answer by UDP, which no path fragments (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// What a client without EDNS takes.
const PLAIN_PAYLOAD: u16 = 512;
/// Questions at upstream servers and TCP connections at one time; more are dropped, and clients ask again.
const CONCURRENT: usize = 1000;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);

/// The name server; cheap to clone.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    zone: Arc<RwLock<Zone>>,
    forwarder: Forwarder,
    figures: Figures,
    turn: AtomicUsize,
    room: Arc<Semaphore>,
}

/// What a request came to without waiting.
enum Quick {
    Answer(Message),
    Forward,
    Chase(Message, Query),
    Ignore,
}

impl Server {
    pub(crate) fn new(zone: Arc<RwLock<Zone>>, forwarder: Forwarder, figures: Figures) -> Self {
        let room = Arc::new(Semaphore::new(CONCURRENT));
        Self { inner: Arc::new(Inner { zone, forwarder, figures, turn: AtomicUsize::new(0), room }) }
    }

    /// Serves at the addresses until cancelled.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn serve(self, addresses: &[SocketAddr], cancel: &CancellationToken) -> Result<()> {
        let mut tasks = JoinSet::new();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for address in addresses {
            for _ in 0..cores {
                let socket = udp(*address).with_context(|| format!("listen on {address} (UDP)"))?;
                tasks.spawn(self.clone().serve_udp(Arc::new(socket)));
            }
            let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address} (TCP)"))?;
            tasks.spawn(self.clone().serve_tcp(listener));
            tracing::info!(%address, "serving names");
        }
        cancel.cancelled().await;
        tasks.shutdown().await;
        Ok(())
    }

    async fn serve_udp(self, socket: Arc<UdpSocket>) {
        let mut buffer = [0; UDP_PAYLOAD as usize * 4];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An earlier answer's ICMP error; the socket is as good as before.
                    tracing::debug!(%error, "receive failed");
                    continue;
                }
            };
            self.inner.figures.request("udp");
            let Some(request) = read(&buffer[..length]) else { continue };
            match self.quick(&request) {
                Quick::Answer(answer) => {
                    if let Some(bytes) = self.inner.finish_udp(&request, answer) {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                }
                Quick::Ignore => {}
                slow => self.spawn_slow(slow, request, socket.clone(), client),
            }
        }
    }

    fn spawn_slow(&self, slow: Quick, request: Message, socket: Arc<UdpSocket>, client: SocketAddr) {
        let Ok(permit) = self.inner.room.clone().try_acquire_owned() else {
            self.inner.figures.dropped.inc();
            return;
        };
        let server = self.clone();
        tokio::spawn(async move {
            if let Some(answer) = server.slow(slow, &request, false).await
                && let Some(bytes) = server.inner.finish_udp(&request, answer)
            {
                let _ = socket.send_to(&bytes, client).await;
            }
            drop(permit);
        });
    }

    async fn serve_tcp(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let Ok(permit) = self.inner.room.clone().try_acquire_owned() else {
                        self.inner.figures.dropped.inc();
                        continue;
                    };
                    let server = self.clone();
                    tokio::spawn(async move {
                        // A client that goes away has no more use for the answer.
                        let _ = server.connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let length = timeout(IDLE, stream.read_u16()).await??;
            let mut buffer = vec![0; length.into()];
            timeout(IDLE, stream.read_exact(&mut buffer)).await??;
            self.inner.figures.request("tcp");
            let Some(request) = read(&buffer) else { return Ok(()) };
            let quick = self.quick(&request);
            let Some(mut answer) = self.slow(quick, &request, true).await else { return Ok(()) };
            self.inner.decorate(&request, &mut answer);
            let Ok(bytes) = answer.to_vec() else { return Ok(()) };
            let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
            timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat())).await??;
        }
    }

    /// Answers what needs no other server.
    fn quick(&self, request: &Message) -> Quick {
        if request.metadata.message_type != MessageType::Query {
            return Quick::Ignore;
        }
        if request.metadata.op_code != OpCode::Query {
            return Quick::Answer(failure(request, ResponseCode::NotImp));
        }
        let [query] = &request.queries[..] else { return Quick::Answer(failure(request, ResponseCode::FormErr)) };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Quick::Answer(failure(request, ResponseCode::BADVERS));
        }
        let outcome = answer(&self.inner.zone.read().unwrap_or_else(PoisonError::into_inner), query);
        match outcome {
            Outcome::Forward => Quick::Forward,
            Outcome::Answer(mut answer) => {
                self.inner.rotate(&mut answer);
                let chase = answer.chase.take();
                let message = message(request, answer);
                match chase {
                    Some(target) => Quick::Chase(message, Query::query(target, query.query_type())),
                    None => Quick::Answer(message),
                }
            }
        }
    }

    /// Completes what upstream servers have to say something to.
    async fn slow(&self, quick: Quick, request: &Message, stream: bool) -> Option<Message> {
        match quick {
            Quick::Answer(answer) => Some(answer),
            Quick::Ignore => None,
            Quick::Forward => Some(self.inner.forwarder.ask(request, stream).await),
            Quick::Chase(mut answer, query) => {
                let mut onward = request.clone();
                onward.queries = vec![query];
                let found = self.inner.forwarder.ask(&onward, true).await;
                answer.metadata.response_code = found.metadata.response_code;
                answer.answers.extend(found.answers);
                answer.authorities.extend(found.authorities);
                Some(answer)
            }
        }
    }
}

impl Inner {
    /// Begins with another address each time, so that clients that take the first spread.
    fn rotate(&self, answer: &mut Answer) {
        let first = answer.answers.iter().position(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA));
        if let Some(addresses) = first.map(|first| &mut answer.answers[first..])
            && addresses.len() > 1
        {
            let by = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses.rotate_left(by);
        }
    }

    /// What every answer has: EDNS when the request has it, and that names are looked up for clients.
    fn decorate(&self, request: &Message, answer: &mut Message) {
        answer.metadata.recursion_available = true;
        answer.edns = request.edns.as_ref().map(|edns| {
            let mut ours = Edns::new();
            ours.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(edns.flags().dnssec_ok);
            ours.set_rcode_high(answer.metadata.response_code.high());
            ours
        });
        self.figures.response(answer.metadata.response_code);
    }

    /// The answer as it goes by UDP: cut when the client could not take it.
    fn finish_udp(&self, request: &Message, mut answer: Message) -> Option<Vec<u8>> {
        self.decorate(request, &mut answer);
        let payload = request.edns.as_ref().map_or(PLAIN_PAYLOAD, |edns| edns.max_payload());
        let room = usize::from(payload.clamp(PLAIN_PAYLOAD, UDP_PAYLOAD));
        let mut bytes = answer.to_vec().ok()?;
        if bytes.len() > room && !answer.additionals.is_empty() {
            answer.additionals.clear();
            bytes = answer.to_vec().ok()?;
        }
        if bytes.len() > room {
            let mut cut = failure(request, answer.metadata.response_code);
            cut.metadata.truncation = true;
            cut.metadata.authoritative = answer.metadata.authoritative;
            cut.edns = answer.edns;
            bytes = cut.to_vec().ok()?;
        }
        Some(bytes)
    }
}

/// Reads a request; what cannot be read has nobody to answer.
fn read(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes).ok()
}

fn message(request: &Message, answer: Answer) -> Message {
    let mut message = failure(request, answer.code);
    message.metadata.authoritative = true;
    message.answers = answer.answers;
    message.authorities = answer.authorities;
    message.additionals = answer.additionals;
    message
}

/// A UDP socket that shares its address with others: the kernel spreads clients over them.
fn udp(address: SocketAddr) -> Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket::socket(family, SockType::Datagram, flags, None)?;
    socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from_std(socket.into())?)
}

#[cfg(test)]
mod tests;
