//! The socket to the kernel: commits batches and asks for what there is.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use crate::attr::{Attributes, Encoder, Message, Messages, text};
use crate::batch::{Batch, describe};
use crate::error::{Error, Refusal, Result};
use crate::sys;

/// Room beyond a message's own bytes that the kernel wants in the send buffer.
const SEND_SLACK: usize = 4096;
const RECEIVE_BUFFER: usize = 1 << 20;
const RECEIVE: usize = 1 << 16;

/// A netfilter socket in the network namespace that the thread was in when it was opened.
///
/// Its calls block, but not on anything outside the kernel: answers are ready when a request has been sent.
pub struct Connection {
    socket: Socket,
    buf: Vec<u8>,
    send_buffer: usize,
    seq: u32,
    port: u32,
}

impl Connection {
    /// Opens a socket.
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(sys::NETLINK_NETFILTER)?;
            let bound = socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok((socket, bound.port_number()))
        };
        let (socket, port) = open().map_err(Error::Open)?;
        // Without the privilege the default buffer stays, and an answer too big for it is an error when it comes.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, buf: Vec::with_capacity(RECEIVE), send_buffer: 0, seq: 0, port })
    }

    /// The socket's netlink port, by which a [`crate::Monitor`] knows the changes made through it.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Applies a batch: all of it, or on an error nothing.
    pub fn commit(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, ack) = batch.finish();
        self.reserve(bytes.len());
        self.send(&bytes)?;
        // The kernel runs a batch while it is sent, so that every answer is there now.
        let mut acknowledged = false;
        let mut refusal = None;
        while self.receive(libc::MSG_DONTWAIT)? {
            for message in Messages(&self.buf).filter(|message| message.kind == sys::NLMSG_ERROR) {
                match refused(&message) {
                    None => acknowledged |= message.seq == ack,
                    Some((errno, explanation)) if refusal.is_none() => {
                        refusal = Some(Refusal { errno, operation: describe(&bytes, message.seq), explanation });
                    }
                    Some(_) => {}
                }
            }
        }
        match refusal {
            Some(refusal) => Err(Error::Refused(refusal)),
            None if acknowledged => Ok(()),
            None => Err(Error::Protocol("a transaction was not acknowledged")),
        }
    }

    /// Makes the send buffer big enough for a batch, which must go in one piece.
    fn reserve(&mut self, len: usize) {
        let wanted = len + SEND_SLACK;
        if wanted > self.send_buffer && setsockopt(&self.socket, sockopt::SndBufForce, &wanted).is_ok() {
            self.send_buffer = wanted;
        }
    }

    /// Sends one request that is not part of a batch, and waits for its acknowledgement.
    pub(crate) fn request(&mut self, what: &str, kind: u16, family: u8, fill: impl FnOnce(&mut Encoder)) -> Result<()> {
        let seq = self.ask(kind, sys::NLM_F_ACK, family, fill)?;
        while self.receive(0)? {
            for message in Messages(&self.buf).filter(|message| message.seq == seq) {
                if message.kind == sys::NLMSG_ERROR {
                    return answer(what, &message);
                }
            }
        }
        Err(Error::Protocol("a request was not acknowledged"))
    }

    /// Asks for objects, and hands each message to `take`.
    pub(crate) fn dump(
        &mut self,
        what: &str,
        kind: u16,
        family: u8,
        fill: impl FnOnce(&mut Encoder),
        mut take: impl FnMut(&Message<'_>),
    ) -> Result<()> {
        let seq = self.ask(kind, sys::NLM_F_DUMP, family, fill)?;
        let mut interrupted = false;
        while self.receive(0)? {
            for message in Messages(&self.buf).filter(|message| message.seq == seq) {
                interrupted |= message.flags & sys::NLM_F_DUMP_INTR != 0;
                match message.kind {
                    sys::NLMSG_DONE if interrupted => return Err(Error::Interrupted),
                    sys::NLMSG_DONE => return Ok(()),
                    sys::NLMSG_ERROR => return answer(what, &message),
                    _ => take(&message),
                }
            }
        }
        Err(Error::Protocol("a listing did not end"))
    }

    fn ask(&mut self, kind: u16, flags: u16, family: u8, fill: impl FnOnce(&mut Encoder)) -> Result<u32> {
        self.seq += 1;
        let mut out = Encoder::default();
        let start = out.message(kind, sys::NLM_F_REQUEST | flags, self.seq, family, 0);
        fill(&mut out);
        out.end(start);
        self.send(&out.buf)?;
        Ok(self.seq)
    }

    /// Asks for one object; hands the answer to `take`.
    pub(crate) fn get<T>(
        &mut self,
        what: &str,
        kind: u16,
        family: u8,
        take: impl FnOnce(&Message<'_>) -> Option<T>,
    ) -> Result<T> {
        let seq = self.ask(kind, 0, family, |_| {})?;
        while self.receive(0)? {
            let Some(message) = Messages(&self.buf).find(|message| message.seq == seq) else {
                continue;
            };
            if message.kind == sys::NLMSG_ERROR {
                answer(what, &message)?;
            }
            return take(&message).ok_or(Error::Protocol("an answer lacks what was asked for"));
        }
        Err(Error::Protocol("a request was not answered"))
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Io { action: "send to", source });
                }
            }
        }
    }

    /// Receives one datagram into the buffer; false when none is waiting.
    fn receive(&mut self, flags: libc::c_int) -> Result<bool> {
        loop {
            self.buf.clear();
            match self.socket.recv(&mut self.buf, flags) {
                Ok(len) => return Ok(len > 0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Some answers of a batch did not fit; the others are still to be read.
                Err(error) if flags != 0 && error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(source) => {
                    return Err(Error::Io { action: "receive from", source });
                }
            }
        }
    }
}

/// The error number and explanation in an error message; none in an acknowledgement.
fn refused(message: &Message<'_>) -> Option<(i32, Option<String>)> {
    let code = i32::from_ne_bytes(message.body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    // After the code comes the header of the refused message, then attributes; the payload is left out (CAP_ACK).
    let attributes = Attributes(message.body.get(20..).unwrap_or_default());
    let told = message.flags & sys::NLM_F_ACK_TLVS != 0;
    let explanation = attributes.get(sys::NLMSGERR_ATTR_MSG).filter(|_| told).and_then(text).map(str::to_owned);
    Some((-code, explanation))
}

fn answer(what: &str, message: &Message<'_>) -> Result<()> {
    match refused(message) {
        None => Ok(()),
        Some((errno, explanation)) => Err(Error::Refused(Refusal { errno, operation: what.to_owned(), explanation })),
    }
}
