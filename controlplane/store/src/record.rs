//! How one version of a key looks in the file.
//!
//! Little-endian: flags (1 byte: 1 = deleted), create revision (8), version (8), key length (4), key, value, CRC-32 of
//! all that and of the record's own place in the log (4).

use std::sync::Arc;

use bytes::Bytes;

use crate::{KeyValue, Revision};

const HEADER: usize = 1 + 8 + 8 + 4;
const CHECKSUM: usize = 4;
const DELETED: u8 = 1;

/// Where a record stands in the log: the revision and the position within its transaction.
pub(crate) type Place = (Revision, u32);

/// A decoded record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kv: KeyValue,
    pub(crate) deleted: bool,
}

pub(crate) fn encode(place: Place, kv: &KeyValue, deleted: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + kv.key.len() + kv.value.len() + CHECKSUM);
    out.push(if deleted { DELETED } else { 0 });
    out.extend_from_slice(&kv.create_revision.to_le_bytes());
    out.extend_from_slice(&kv.version.to_le_bytes());
    out.extend_from_slice(&u32::try_from(kv.key.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(kv.key.as_bytes());
    out.extend_from_slice(&kv.value);
    let sum = checksum(place, &out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// `Err` says what is wrong with the bytes.
pub(crate) fn decode(place: Place, bytes: &[u8]) -> Result<Record, String> {
    let bad = |what: &str| format!("record {}.{}: {what}", place.0, place.1);
    if bytes.len() < HEADER + CHECKSUM {
        return Err(bad("too short"));
    }
    let (body, sum) = bytes.split_at(bytes.len() - CHECKSUM);
    if checksum(place, body).to_le_bytes() != sum {
        return Err(bad("checksum mismatch"));
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| body[at + i]));
    let key_len = u32::from_le_bytes(std::array::from_fn(|i| body[17 + i])) as usize;
    let rest = &body[HEADER..];
    if rest.len() < key_len {
        return Err(bad("key is cut off"));
    }
    let key = std::str::from_utf8(&rest[..key_len]).map_err(|_| bad("key is not UTF-8"))?;
    Ok(Record {
        kv: KeyValue {
            key: Arc::from(key),
            value: Bytes::copy_from_slice(&rest[key_len..]),
            create_revision: word(1),
            mod_revision: place.0,
            version: word(9),
        },
        deleted: body[0] == DELETED,
    })
}

fn checksum(place: Place, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.0.to_le_bytes());
    hasher.update(&place.1.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_one_flipped_bit_is_noticed() {
        let kv = KeyValue {
            key: "/registry/pods/default/a".into(),
            value: Bytes::from_static(b"{}"),
            create_revision: 3,
            mod_revision: 7,
            version: 2,
        };
        let bytes = encode((7, 1), &kv, false);
        assert_eq!(decode((7, 1), &bytes), Ok(Record { kv, deleted: false }));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode((7, 1), &damaged).is_err(), "bit {bit}");
        }
        assert!(decode((8, 1), &bytes).is_err(), "a record moved elsewhere is noticed");
    }
}
