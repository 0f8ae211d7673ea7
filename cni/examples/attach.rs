//! Measures ADD and DEL of bridge with host-local against the reference plugins, in turns, in one run.
//!
//! `cargo run --release -p bosun-cni --example attach [ROUNDS]`, as root, with `containernetworking-plugins` installed;
//! the plugin is the `bosun-cni` beside this program's folder. Everything happens in namespaces made for it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on fails, and prints")]

use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

struct Contender {
    name: &'static str,
    plugins: PathBuf,
    data: PathBuf,
    host: String,
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn ip(args: &str) {
    assert!(Command::new("ip").args(args.split_whitespace()).status().unwrap().success(), "ip {args}");
}

impl Contender {
    fn new(name: &'static str, plugins: PathBuf, data: &Path) -> Self {
        let host = format!("bench-{name}-{}", std::process::id());
        ip(&format!("netns add {host}"));
        Self { name, plugins, data: data.join(name), host, add: Vec::new(), del: Vec::new() }
    }

    fn run(&self, command: &str, id: &str, netns: &str) -> Duration {
        let conf = format!(
            r#"{{"cniVersion":"1.0.0","name":"bench","type":"bridge","bridge":"cni0","isDefaultGateway":true,"hairpinMode":true,
            "ipam":{{"type":"host-local","dataDir":{:?},"ranges":[[{{"subnet":"10.99.0.0/16"}}]]}}}}"#,
            self.data
        );
        let host: OwnedFd = File::open(format!("/run/netns/{}", self.host)).unwrap().into();
        let mut plugin = Command::new(self.plugins.join("bridge"));
        plugin
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let fd = host.as_raw_fd();
        #[expect(unsafe_code, reason = "the plugin starts in the host's namespace without another program's time")]
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe; the descriptor is open.
        unsafe {
            plugin.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                Ok(nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWNET)?)
            });
        }
        let start = Instant::now();
        let mut child = plugin.spawn().unwrap();
        child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{} {command}", self.name);
        start.elapsed()
    }

    fn round(&mut self, number: usize) {
        let name = format!("{}-c{number}", self.host);
        ip(&format!("netns add {name}"));
        let netns = format!("/run/netns/{name}");
        let add = self.run("ADD", &format!("c{number}"), &netns);
        let del = self.run("DEL", &format!("c{number}"), &netns);
        ip(&format!("netns del {name}"));
        self.add.push(add);
        self.del.push(del);
    }
}

/// The median in milliseconds.
fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(100, |text| text.parse().unwrap());
    let binary = std::env::current_exe().unwrap().parent().unwrap().with_file_name("bosun-cni");
    let data = std::env::temp_dir().join(format!("bosun-cni-bench-{}", std::process::id()));
    let plugins = data.join("bin");
    bosun_cni::install(&binary, &plugins).unwrap();
    let mut ours = Contender::new("bosun", plugins, &data);
    let mut reference = Contender::new("reference", "/usr/lib/cni".into(), &data);
    for number in 0..rounds {
        ours.round(number);
        reference.round(number);
    }
    for (what, ours, theirs) in [("ADD", &mut ours.add, &mut reference.add), ("DEL", &mut ours.del, &mut reference.del)]
    {
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{what} ours {ours:.2} ms, reference {theirs:.2} ms, ratio {:.2} (median of {rounds})", ours / theirs);
    }
    for host in [&ours.host, &reference.host] {
        ip(&format!("netns del {host}"));
    }
    std::fs::remove_dir_all(data).unwrap();
}
