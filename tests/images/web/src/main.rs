//! A small web server for tests and the demo: it tells who answered, shows its environment and the files mounted
//! into it, and can be told to fail, so that probes, restarts and balancing can be seen from outside.
//!
#![doc = concat!("```text\n", include_str!("usage.txt"), "```")]
//!
//! `--echo` answers TCP and UDP on one more port with what was sent. SIGTERM ends the process after the requests
//! under way.

#![expect(clippy::print_stdout, reason = "what a container prints is its log")]

mod http;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::{Component, Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, Response};
use nix::sys::signal::{SigSet, Signal};

/// How long requests under way may take once the process was told to end.
const DRAIN: Duration = Duration::from_secs(5);

struct Options {
    port: u16,
    root: PathBuf,
    echo: Option<u16>,
    ready_after: Duration,
    exit_after: Option<(Duration, i32)>,
}

struct Server {
    options: Options,
    hostname: String,
    started: Instant,
    failing: AtomicBool,
    draining: AtomicBool,
    under_way: AtomicUsize,
}

fn main() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    // As busybox's, which crash in Debian's static build. wget's options are taken and of no effect.
    let stand_in = match name.rsplit('/').next() {
        Some("wget") => Some(get(&arguments.next_back().unwrap_or_default())),
        Some("ttysize") => Some(terminal_size()),
        _ => None,
    };
    match stand_in {
        Some(Ok(())) => return,
        Some(Err(message)) => fail(&message),
        None => {}
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => fail(&message),
    };
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    if let Err(error) = ending.thread_block() {
        fail(&format!("cannot block signals: {error}"));
    }
    let server = Arc::new(Server {
        hostname: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        started: Instant::now(),
        failing: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        under_way: AtomicUsize::new(0),
        options,
    });
    if let Some((after, code)) = server.options.exit_after {
        thread::spawn(move || {
            thread::sleep(after);
            eprintln!("web: ending with code {code} as told");
            exit(code);
        });
    }
    if let Some(port) = server.options.echo {
        start_echo(port);
    }
    let listener = listen(server.options.port);
    println!("web: {} listens on port {}", server.hostname, server.options.port);
    let accepting = Arc::clone(&server);
    thread::spawn(move || accept(&accepting, &listener));
    while ending.wait().is_err() {}
    server.drain();
}

impl Server {
    fn answer(&self, request: &Request, peer: SocketAddr) -> Response {
        let path = request.path.split('?').next().unwrap_or_default();
        let (head, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        match (head, rest) {
            ("", _) => {
                let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned());
                Response::text(200, format!("{greeting} from {}\n", self.hostname))
            }
            ("hostname", _) => Response::text(200, format!("{}\n", self.hostname)),
            ("client", _) => Response::text(200, format!("{peer}\n")),
            ("env", "") => {
                let lines: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect();
                Response::text(200, lines.concat())
            }
            ("env", name) => match std::env::var(name) {
                Ok(value) => Response::text(200, format!("{value}\n")),
                Err(_) => Response::text(404, format!("{name} is not set\n")),
            },
            ("files", name) => self.file(name),
            ("healthz", _) if self.failing.load(Ordering::Relaxed) => Response::text(503, "failing, as told\n"),
            ("healthz", _) => Response::text(200, "ok\n"),
            ("readyz", _) if self.started.elapsed() < self.options.ready_after => {
                Response::text(503, "not ready yet\n")
            }
            ("readyz", _) => Response::text(200, "ok\n"),
            ("fail" | "heal", _) => {
                self.failing.store(head == "fail", Ordering::Relaxed);
                Response::text(200, "ok\n")
            }
            ("exit", code) => {
                println!("web: told to end with code {code}");
                exit(code.parse().unwrap_or(0));
            }
            ("slow", milliseconds) => {
                thread::sleep(Duration::from_millis(milliseconds.parse().unwrap_or(0)));
                Response::text(200, "ok\n")
            }
            _ => Response::text(404, format!("{path} is not served here\n")),
        }
    }

    fn file(&self, name: &str) -> Response {
        let inside = Path::new(name);
        if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
            return Response::text(400, "the path must stay below the root\n");
        }
        let path = self.options.root.join(inside);
        match fs::read(&path) {
            Ok(bytes) => Response { status: 200, body: bytes },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Response::text(404, format!("{} does not exist\n", path.display()))
            }
            Err(error) => Response::text(500, format!("{}: {error}\n", path.display())),
        }
    }

    /// Waits for the requests under way, and no longer than [`DRAIN`].
    fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + DRAIN;
        while self.under_way.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        println!("web: {} ends", self.hostname);
    }
}

fn accept(server: &Arc<Server>, listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if server.draining.load(Ordering::SeqCst) {
            return;
        }
        server.under_way.fetch_add(1, Ordering::SeqCst);
        let serving = Arc::clone(server);
        thread::spawn(move || {
            if let Err(error) = serve(&serving, stream) {
                eprintln!("web: {error}");
            }
            serving.under_way.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn serve(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let response = match http::read(&mut stream)? {
        None => return Ok(()),
        Some(Err(reason)) => Response::text(400, format!("{reason}\n")),
        Some(Ok(request)) => {
            let response = server.answer(&request, peer);
            println!("{peer} {} {} {}", request.method, request.path, response.status);
            response
        }
    };
    http::write(&mut stream, &response)
}

/// Both families where the kernel has them.
fn listen(port: u16) -> TcpListener {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let only_v4 = SocketAddr::from(([0, 0, 0, 0], port));
    match TcpListener::bind(both).or_else(|_| TcpListener::bind(only_v4)) {
        Ok(listener) => listener,
        Err(error) => fail(&format!("cannot listen on port {port}: {error}")),
    }
}

fn start_echo(port: u16) {
    let listener = listen(port);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let Ok(mut reading) = stream.try_clone() else {
                    return;
                };
                let mut writing = stream;
                // The other side's end of the conversation is ours too.
                let _ = io::copy(&mut reading, &mut writing).and_then(|_| writing.flush());
            });
        }
    });
    let socket = match UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], port))) {
        Ok(socket) => socket,
        Err(error) => fail(&format!("cannot listen on UDP port {port}: {error}")),
    };
    thread::spawn(move || {
        let mut datagram = vec![0; 65536];
        loop {
            if let Ok((length, peer)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..length], peer);
            }
        }
    });
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options =
        Options { port: 8080, root: PathBuf::from("/data"), echo: None, ready_after: Duration::ZERO, exit_after: None };
    while let Some(argument) = arguments.next() {
        if argument == "--get" {
            get(&arguments.next().ok_or("--get wants a URL")?)?;
            exit(0);
        }
        if argument == "--help" {
            print!("{}", include_str!("usage.txt"));
            exit(0);
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, arguments.next()),
        };
        let value = value.ok_or_else(|| format!("{name} wants a value"))?;
        let bad = || format!("{name}: {value:?} is not understood");
        match name.as_str() {
            "--port" => options.port = value.parse().map_err(|_| bad())?,
            "--root" => options.root = PathBuf::from(&value),
            "--echo" => options.echo = Some(value.parse().map_err(|_| bad())?),
            "--ready-after" => options.ready_after = seconds(&value).ok_or_else(bad)?,
            "--exit-after" => {
                let (after, code) = value.split_once(':').unwrap_or((&value, "0"));
                let after = seconds(after).ok_or_else(bad)?;
                options.exit_after = Some((after, code.parse().map_err(|_| bad())?));
            }
            _ => {
                return Err(format!(
                    "{name} is not an option; there are --port, --root, --echo, --ready-after, --exit-after"
                ));
            }
        }
    }
    Ok(options)
}

/// Fetches `http://ADDRESS:PORT/PATH` and prints the body; the client for places that have none.
fn get(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} does not start with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut addresses = address.to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
    let address = addresses.next().ok_or_else(|| format!("{host} has no address"))?;
    let body = http::get(address, path).map_err(|error| format!("{url}: {error}"))?;
    print!("{body}");
    Ok(())
}

/// Prints the terminal's columns and rows once it has any: the size comes after the terminal.
fn terminal_size() -> Result<(), String> {
    for _ in 0..50 {
        let size = rustix::termios::tcgetwinsize(io::stdin()).map_err(|error| format!("standard input: {error}"))?;
        if size.ws_row > 0 {
            println!("{} {}", size.ws_col, size.ws_row);
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err("the terminal has no size".to_owned())
}

fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

fn fail(message: &str) -> ! {
    eprintln!("web: {message}");
    exit(2);
}
