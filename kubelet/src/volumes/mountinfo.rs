//! The kernel's table of mounts (proc_pid_mountinfo(5)), as far as clean-up has to know it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What this thread sees; a thread may have a mount namespace of its own.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// The mount points below `folder`, relative to it, in the order in which they were mounted. One that is covered by
/// another mount on the same place is there twice.
///
/// # Errors
/// The table or the folder cannot be read: then nothing is known, and nothing may be deleted.
pub(super) fn below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    // The kernel tells paths without links in them.
    let folder = fs::canonicalize(folder)?;
    let points = parse(&fs::read(TABLE)?);
    let inside = points.iter().filter_map(|point| point.strip_prefix(&folder).ok());
    Ok(inside.filter(|point| !point.as_os_str().is_empty()).map(Path::to_path_buf).collect())
}

/// The mount points of a table, in its order.
fn parse(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(|point| PathBuf::from(OsString::from_vec(unescape(point)))).collect()
}

/// The kernel writes blanks and their kin as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| byte == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) => {
                out.push(digits.iter().fold(0, |sum: u8, d| sum.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_with_their_escapes() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:5 / /a\\040b\\134040 rw shared:1 - tmpfs tmpfs rw\n\n";
        assert_eq!(parse(table), [PathBuf::from("/"), PathBuf::from("/a b\\040")]);
    }
}
