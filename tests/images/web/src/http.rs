//! As much of HTTP/1.1 as one request and one answer need; the connection closes after them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// More than this before the empty line is refused.
const LONGEST_HEAD: usize = 16 * 1024;

/// The request line; headers and body are of no interest here.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into().into_bytes() }
    }
}

/// Reads a request's head. None when the caller left without a word, an inner error when it is no request.
pub(crate) fn read(stream: &mut impl Read) -> io::Result<Option<Result<Request, &'static str>>> {
    let mut head = Vec::new();
    let mut part = [0; 2048];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut part)?;
        if length == 0 {
            return Ok(if head.is_empty() { None } else { Some(Err("the request ended early")) });
        }
        head.extend_from_slice(&part[..length]);
        if head.len() > LONGEST_HEAD {
            return Ok(Some(Err("the request's head is too long")));
        }
    }
    Ok(Some(parse(&head)))
}

pub(crate) fn write(stream: &mut impl Write, response: &Response) -> io::Result<()> {
    let reason = match response.status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        response.status,
        response.body.len()
    );
    stream.write_all(&[head.as_bytes(), &response.body].concat())?;
    stream.flush()
}

/// The body of an answer with status 200; any other is an error.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default().to_owned();
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if status.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(status)),
    }
}

fn parse(head: &[u8]) -> Result<Request, &'static str> {
    let text = std::str::from_utf8(head).map_err(|_| "the request's head is not text")?;
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some(method), Some(path), Some(version)) if path.starts_with('/') && version.starts_with("HTTP/1.") => {
            Ok(Request { method: method.to_owned(), path: path.to_owned() })
        }
        _ => Err("the request line is not understood"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_and_answered() {
        let mut sent = &b"GET /hostname?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"[..];
        let request = read(&mut sent).unwrap().unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/hostname?x=1"));
        let mut answer = Vec::new();
        write(&mut answer, &Response::text(200, "ok\n")).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"\r\n\r\nok\n"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(read(&mut &b""[..]).unwrap().is_none());
        for bad in [&b"hello\r\n\r\n"[..], b"GET x HTTP/1.1\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"GET / HT"] {
            assert!(read(&mut &*bad).unwrap().unwrap().is_err());
        }
        assert!(read(&mut vec![b'a'; LONGEST_HEAD + 1].as_slice()).unwrap().unwrap().is_err());
    }
}
