//! What anyone changes in the rule set, as it happens.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use crate::attr::Message;
use crate::error::{Error, Result};
use crate::object::Family;
use crate::{list, sys};

const RECEIVE_BUFFER: usize = 1 << 20;

/// A change to the rule set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something in a table was added or changed.
    Added {
        /// The table's family.
        family: Option<Family>,
        /// The table's name.
        table: String,
        /// The netlink port of who did it, see [`crate::Connection::port`].
        port: u32,
    },
    /// Something in a table, or the table itself, was deleted.
    Deleted {
        /// The table's family.
        family: Option<Family>,
        /// The table's name.
        table: String,
        /// The netlink port of who did it, see [`crate::Connection::port`].
        port: u32,
    },
    /// A transaction ended; its changes came before this.
    Committed {
        /// The rule set's new generation.
        generation: u32,
        /// The thread (not the process) that made it.
        pid: u32,
    },
    /// There were more changes than could be kept: anything may have changed.
    Lost,
}

impl Event {
    /// The event in a message.
    pub(crate) fn of(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let kind = message.kind & 0xff;
        if message.kind >> 8 != sys::NFNL_SUBSYS_NFTABLES {
            return None;
        }
        if kind == sys::NFT_MSG_NEWGEN {
            return Some(Self::Committed { generation: attributes.be32(sys::NFTA_GEN_ID)?, pid: attributes.be32(2)? });
        }
        let port = message.port;
        // Every object names its table in the first attribute.
        let (family, table) =
            (Family::from_number(message.family()), attributes.text(sys::NFTA_TABLE_NAME)?.to_owned());
        let deleted = [
            sys::NFT_MSG_DELTABLE,
            sys::NFT_MSG_DELCHAIN,
            sys::NFT_MSG_DELRULE,
            sys::NFT_MSG_DELSET,
            sys::NFT_MSG_DELSETELEM,
        ];
        let event = if deleted.contains(&kind) {
            Self::Deleted { family, table, port }
        } else {
            Self::Added { family, table, port }
        };
        Some(event)
    }
}

/// Receives changes. Readable when there are some; the socket does not block.
pub struct Monitor {
    socket: Socket,
    buf: Vec<u8>,
}

impl Monitor {
    /// Starts listening to changes in the thread's network namespace.
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(sys::NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(sys::NFNLGRP_NFTABLES)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(Error::Open)?;
        // Without the privilege the default buffer stays; then more changes are lost, which is told.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, buf: Vec::with_capacity(1 << 16) })
    }

    /// Hands every waiting change to `take`; returns when none is left.
    pub fn read(&mut self, mut take: impl FnMut(Event)) -> Result<()> {
        loop {
            self.buf.clear();
            match self.socket.recv(&mut self.buf, libc::MSG_DONTWAIT) {
                Ok(_) => list::events(&self.buf).for_each(&mut take),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => take(Event::Lost),
                Err(source) => {
                    return Err(Error::Io { action: "receive from", source });
                }
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
