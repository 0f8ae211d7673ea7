//! SPDY/3.1 as far as a client of a container runtime's streaming server needs it: streams are opened and written to,
//! and what comes back is told frame by frame.
//!
//! Header blocks are compressed in one zlib stream a direction. Ours is made without SPDY's preset dictionary, which
//! the receiving side takes (the zlib header says which it is); of the blocks that come back nothing is of use, so they
//! are passed over. Windows are not kept, as the library of every runtime keeps none: the connection's own flow control
//! holds a fast sender back.

use std::io;

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// The largest frame that its length field allows is not worth the memory.
const MOST: usize = 4 * 1024 * 1024;

/// What came from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Bytes of a stream; `last` when none follow.
    Data {
        /// Which stream.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// The stream ends with these.
        last: bool,
    },
    /// A stream was broken off.
    Reset(u32),
    /// An echo is asked for.
    Ping(u32),
    /// The server takes no more streams.
    GoAway,
    /// Nothing that matters here.
    Other,
}

/// Reads one frame; `None` at the end of the connection.
pub(super) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 8];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [a, b, c, d, flags, rest @ ..] = head;
    let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
    if length > MOST {
        return Err(io::Error::other(format!("a SPDY frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    let first = u32::from_be_bytes([a & 0x7f, b, c, d]);
    if a & 0x80 == 0 {
        return Ok(Some(Frame::Data { stream: first, bytes: payload, last: flags & FIN != 0 }));
    }
    let id = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    Ok(Some(match ((first & 0xffff) as u16, id) {
        (RST_STREAM, Some(id)) => Frame::Reset(id & 0x7fff_ffff),
        (PING, Some(id)) => Frame::Ping(id),
        (GOAWAY, _) => Frame::GoAway,
        _ => Frame::Other,
    }))
}

/// The writing half of a connection.
pub(super) struct Writer<W> {
    to: W,
    headers: Compress,
    next: u32,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes to `to`.
    pub(super) fn new(to: W) -> Self {
        Self { to, headers: Compress::new(Compression::default(), true), next: 1 }
    }

    /// Opens a stream with these headers, whose names are in lower case; returns its number.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let stream = self.next;
        self.next += 2;
        let mut payload = Vec::new();
        payload.extend(stream.to_be_bytes());
        payload.extend([0; 6]);
        payload.extend(self.compress(&block(headers))?);
        self.control(SYN_STREAM, &payload).await?;
        Ok(stream)
    }

    /// Sends bytes of a stream.
    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        // A frame's length has 24 bits; smaller ones let streams take turns.
        for chunk in bytes.chunks(64 * 1024) {
            self.frame(stream, 0, chunk).await?;
        }
        self.to.flush().await
    }

    /// Says that a stream gets no more bytes from us.
    pub(super) async fn end(&mut self, stream: u32) -> io::Result<()> {
        self.frame(stream, FIN, &[]).await?;
        self.to.flush().await
    }

    /// Echoes a ping.
    pub(super) async fn pong(&mut self, id: u32) -> io::Result<()> {
        self.control(PING, &id.to_be_bytes()).await
    }

    async fn control(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        let first = 0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind);
        self.frame(first, 0, payload).await?;
        self.to.flush().await
    }

    async fn frame(&mut self, first: u32, flags: u8, payload: &[u8]) -> io::Result<()> {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&first.to_be_bytes());
        head[4..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
        head[4] = flags;
        self.to.write_all(&head).await?;
        self.to.write_all(payload).await
    }

    fn compress(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        // More than a sync flush of so little can need.
        let mut out = Vec::with_capacity(block.len() * 2 + 128);
        self.headers.compress_vec(block, &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
        Ok(out)
    }
}

/// A header block before compression.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((headers.len() as u32).to_be_bytes());
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};

    use super::*;

    #[tokio::test]
    async fn opens_streams_with_one_compression_for_all() {
        let mut writer = Writer::new(Vec::new());
        assert_eq!(writer.open(&[("streamtype", "error")]).await.unwrap(), 1);
        assert_eq!(writer.open(&[("streamtype", "stdin")]).await.unwrap(), 3);
        let mut inflate = Decompress::new(true);
        let mut sent = writer.to.as_slice();
        for (id, kind) in [(1, "error"), (3, "stdin")] {
            assert_eq!(sent[..4], [0x80, 3, 0, 1]);
            let length = u32::from_be_bytes([0, sent[5], sent[6], sent[7]]) as usize;
            assert_eq!(u32::from_be_bytes(sent[8..12].try_into().unwrap()), id);
            let mut headers = Vec::with_capacity(1024);
            inflate.decompress_vec(&sent[18..8 + length], &mut headers, FlushDecompress::Sync).unwrap();
            assert_eq!(headers, block(&[("streamtype", kind)]));
            sent = &sent[8 + length..];
        }
        assert!(sent.is_empty());
    }

    #[tokio::test]
    async fn reads_what_it_writes() {
        let mut writer = Writer::new(Vec::new());
        writer.data(3, b"hello").await.unwrap();
        writer.end(3).await.unwrap();
        writer.pong(7).await.unwrap();
        let mut sent = writer.to.as_slice();
        let data = |bytes: &[u8], last| Frame::Data { stream: 3, bytes: bytes.to_vec(), last };
        assert_eq!(read_frame(&mut sent).await.unwrap(), Some(data(b"hello", false)));
        assert_eq!(read_frame(&mut sent).await.unwrap(), Some(data(b"", true)));
        assert_eq!(read_frame(&mut sent).await.unwrap(), Some(Frame::Ping(7)));
        assert_eq!(read_frame(&mut sent).await.unwrap(), None);
        let too_long: &[u8] = &[0, 0, 0, 1, 0, 0xff, 0xff, 0xff];
        assert!(read_frame(&mut &too_long[..]).await.is_err());
    }
}
