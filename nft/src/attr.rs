//! Netlink messages and attributes: written into one growing buffer, read as borrowed slices.

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Appends messages and attributes to a buffer. Lengths are filled in when a message or a nest is closed.
#[derive(Default)]
pub(crate) struct Encoder {
    pub(crate) buf: Vec<u8>,
}

impl Encoder {
    /// Starts a message with its nfnetlink header and returns its offset, for [`Encoder::end`].
    pub(crate) fn message(&mut self, kind: u16, flags: u16, seq: u32, family: u8, resource: u16) -> usize {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&[family, 0]);
        self.buf.extend_from_slice(&resource.to_be_bytes());
        start
    }

    /// Closes the message that starts at `start`.
    pub(crate) fn end(&mut self, start: usize) {
        let len = (self.buf.len() - start) as u32;
        self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Starts a nested attribute and returns its offset, for [`Encoder::end_nest`].
    pub(crate) fn begin_nest(&mut self, kind: u16) -> usize {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        start
    }

    /// Closes the nest that starts at `start`. It must hold less than 64 KiB.
    pub(crate) fn end_nest(&mut self, start: usize) {
        let len = self.buf.len() - start;
        debug_assert!(len <= usize::from(u16::MAX), "nest too long: {len}");
        self.buf[start..start + 2].copy_from_slice(&(len as u16).to_ne_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.begin_nest(kind);
        fill(self);
        self.end_nest(start);
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.buf.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// A string with its terminating NUL.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        self.buf.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.pad();
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn pad(&mut self) {
        let aligned = self.buf.len().next_multiple_of(4);
        self.buf.resize(aligned, 0);
    }
}

/// One message as received.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// The netlink port of who asked for it.
    pub(crate) port: u32,
    /// Everything after the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind the nfnetlink header.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(4..).unwrap_or_default())
    }

    /// The address family in the nfnetlink header.
    pub(crate) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }
}

/// Walks the messages in a buffer; stops at the first malformed one.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let whole = self.0.get(..len).filter(|whole| whole.len() >= HEADER)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(whole, 4)?,
            flags: u16_at(whole, 6)?,
            seq: u32_at(whole, 8)?,
            port: u32_at(whole, 12)?,
            body: &whole[HEADER..],
        })
    }
}

/// Walks attributes as (type, value); stops at the first malformed one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of a type.
    pub(crate) fn get(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    pub(crate) fn text(self, wanted: u16) -> Option<&'a str> {
        self.get(wanted).and_then(text)
    }

    pub(crate) fn be32(self, wanted: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(wanted)?.try_into().ok()?))
    }

    pub(crate) fn be64(self, wanted: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(wanted)?.try_into().ok()?))
    }

    pub(crate) fn nested(self, wanted: u16) -> Attributes<'a> {
        Attributes(self.get(wanted).unwrap_or_default())
    }
}

/// A NUL-terminated string.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Encoder::default();
        let start = out.message(0xa06, 5, 7, 2, 0);
        out.string(1, "abc");
        out.nest(2, |out| out.be32(3, 9));
        out.end(start);
        let message = Messages(&out.buf).next().unwrap();
        assert_eq!((message.kind, message.flags, message.seq, message.family()), (0xa06, 5, 7, 2));
        assert_eq!(message.attributes().text(1), Some("abc"));
        assert_eq!(message.attributes().nested(2).be32(3), Some(9));
        assert_eq!(Messages(&out.buf).count(), 1);
    }

    #[test]
    fn malformed_input_ends_the_walk() {
        assert_eq!(Messages(&[1, 2, 3]).count(), 0);
        assert_eq!(Messages(&[255; 64]).count(), 0);
        assert_eq!(Messages(&[0; 64]).count(), 0);
        assert_eq!(Attributes(&[3, 0, 0, 0]).count(), 0);
        assert_eq!(Attributes(&[200, 0, 1, 0, 9]).count(), 0);
    }
}
