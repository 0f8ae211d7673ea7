//! A runtime's side of SPDY's fourth remote command version: takes input until it ends, gives it back in upper case, and
//! says how the command ended.

use std::collections::HashMap;

use flate2::{Decompress, FlushDecompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Serves one session on a connection that has been upgraded.
pub(super) async fn serve(mut stream: TcpStream) {
    let mut inflate = Decompress::new(true);
    let mut streams = HashMap::new();
    let mut input = Vec::new();
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if first == 0x8003_0001 {
            let id = u32::from_be_bytes(payload[..4].try_into().unwrap());
            let mut headers = Vec::with_capacity(1024);
            inflate.decompress_vec(&payload[10..], &mut headers, FlushDecompress::Sync).unwrap();
            // One pair: its number, two lengths, `streamtype` and the kind.
            let kind = String::from_utf8(headers[4 + 4 + 10 + 4..].to_vec()).unwrap();
            streams.insert(kind, id);
            continue;
        }
        if Some(&first) == streams.get("resize") {
            input.extend(&payload);
            continue;
        }
        assert_eq!(Some(&first), streams.get("stdin"), "data of {streams:?}");
        input.extend(&payload);
        if head[4] & 1 != 0 {
            break;
        }
    }
    send(&mut stream, 0x8003_0006, 0, &7u32.to_be_bytes()).await;
    send(&mut stream, streams["stdout"], 0, &input.to_ascii_uppercase()).await;
    for output in ["stdout", "stderr"] {
        if let Some(id) = streams.get(output) {
            send(&mut stream, *id, 1, b"").await;
        }
    }
    send(&mut stream, streams["error"], 1, br#"{"status":"Success"}"#).await;
    let mut echo = [0; 12];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo[..4], [0x80, 3, 0, 6], "a ping is answered");
    let _ = stream.read(&mut echo).await;
}

async fn send(stream: &mut TcpStream, first: u32, flags: u8, payload: &[u8]) {
    let mut frame = first.to_be_bytes().to_vec();
    let length = (payload.len() as u32).to_be_bytes();
    frame.extend([flags, length[1], length[2], length[3]]);
    frame.extend(payload);
    stream.write_all(&frame).await.unwrap();
}
