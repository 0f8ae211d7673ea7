//! `/containerLogs`: container logs in CRI format, read, cut, followed.
//!
//! [`LogQuery`] is what the client asks for, [`LogFilter`] turns file bytes into answer bytes without any I/O, and
//! [`read`] joins both to the file, its rotation and its container's end.

mod filter;
mod query;
mod reader;
mod status;
mod tail;

pub use filter::{Flow, LogFilter};
pub use query::{LogQuery, QueryError, StreamChoice};
pub use reader::read;
pub use status::{container_id, has_container};
