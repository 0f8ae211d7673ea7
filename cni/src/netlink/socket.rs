//! A blocking rtnetlink socket: batches of requests, each with its answer, and dumps.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket as Raw, SocketAddr, protocols::NETLINK_ROUTE};
use std::{fmt, io};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const ATTR_MESSAGE: u16 = 1;
/// Larger than the kernel ever fills for one answer.
const RECEIVE: usize = 64 * 1024;

/// A request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The positive error number.
    pub(crate) errno: i32,
    /// The kernel's own words, when it gave any.
    pub(crate) message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.errno);
        if self.message.is_empty() { write!(f, "{text}") } else { write!(f, "{} ({text})", self.message) }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self { errno, message: String::new() },
            None => Self { errno: libc::EIO, message: error.to_string() },
        }
    }
}

/// One socket in the namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Socket {
    raw: Raw,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        let mut raw = Raw::new(NETLINK_ROUTE)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        // Older kernels do without: then answers are longer, and unfiltered.
        let _ = (raw.set_cap_ack(true), raw.set_ext_ack(true), raw.set_netlink_get_strict_chk(true));
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(RECEIVE) })
    }

    /// Sends the requests in one call; the kernel works them off in order, and goes on after a refusal.
    ///
    /// The flags must hold `NLM_F_ACK`.
    pub(crate) fn batch(&mut self, requests: &[(RouteNetlinkMessage, u16)]) -> io::Result<Vec<Result<(), Refusal>>> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        for (message, flags) in requests {
            self.serialize(message.clone(), *flags, &mut bytes);
        }
        self.raw.send(&bytes, 0)?;
        let mut answers: Vec<Option<Result<(), Refusal>>> = vec![None; requests.len()];
        let mut missing = answers.len();
        while missing > 0 {
            self.receive()?;
            for message in Messages(&self.buffer) {
                let slot = message.sequence.wrapping_sub(first) as usize;
                if let (NLMSG_ERROR, Some(answer @ None)) = (message.kind, answers.get_mut(slot)) {
                    *answer = Some(message.verdict());
                    missing -= 1;
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Asks for objects; answers each one's message without the netlink header.
    pub(crate) fn get(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut bytes = Vec::new();
        self.serialize(request, flags, &mut bytes);
        self.raw.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            self.receive()?;
            for message in Messages(&self.buffer).filter(|message| message.sequence == self.sequence) {
                match message.kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => return message.verdict().map(|()| answers),
                    _ => answers.push(message.body.to_vec()),
                }
            }
            if flags & NLM_F_DUMP == 0 && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }

    fn serialize(&mut self, message: RouteNetlinkMessage, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len().next_multiple_of(4);
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        loop {
            match self.raw.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                other => return other.map(drop),
            }
        }
    }
}

/// One message of a datagram.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// Reads an `NLMSG_ERROR`, which is also how the kernel says yes.
    fn verdict(&self) -> Result<(), Refusal> {
        let errno = self.body.first_chunk().map_or(-libc::EPROTO, |bytes| i32::from_ne_bytes(*bytes));
        if errno == 0 {
            return Ok(());
        }
        // With a capped acknowledgement the request's header follows, then attributes.
        let attributes = self.body.get(4 + HEADER..).unwrap_or_default();
        let text = super::parse::attributes(attributes).find(|(kind, _)| *kind == ATTR_MESSAGE);
        let message = text.map(|(_, value)| super::parse::text(value)).unwrap_or_default();
        Err(Refusal { errno: -errno, message })
    }
}

/// The messages of a datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER)?;
        let length = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes(*header[8..].first_chunk()?);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    }
}
