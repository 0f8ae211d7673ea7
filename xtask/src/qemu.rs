//! `qemu`: tests on a machine with version 2 cgroups alone and systemd as process 1, emulated.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bosun_tests::guest::Guest;
use bosun_tests::tools::Scope;
use bosun_tests::{Layout, Tools};
use clap::Args;

use crate::build::cargo;
use crate::progress::Progress;

/// Test programs that run there: package, test, and what of it. Tests that need such a machine are marked as ignored, so
/// that they are left out where it is not one.
const TESTS: &[Test] = &[
    Test { package: "bosun-kubelet", name: "cgroups", arguments: &["--include-ignored", "--test-threads=1"] },
    Test {
        package: "bosun-kubelet",
        name: "upkeep",
        arguments: &["with_a_real_runtime", "--include-ignored", "--test-threads=1"],
    },
    // The last one shuts the machine down.
    Test { package: "bosun-kubelet", name: "shutdown", arguments: &["--include-ignored"] },
];
/// Before each line of ours among those of the tests.
const MARK: &str = "@@";

struct Test {
    package: &'static str,
    name: &'static str,
    arguments: &'static [&'static str],
}

#[derive(Args)]
pub(crate) struct Options {
    /// Only this test program: cgroups, upkeep or shutdown.
    #[arg(long)]
    test: Option<String>,
    /// Only tests with this in their name.
    filter: Option<String>,
    /// The longest that one test program may take, in seconds.
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// Builds the test programs, boots a guest with them, and shows what they say. Fails unless every one of them passed.
pub(crate) fn run(layout: &Layout, options: &Options) -> Result<ExitCode> {
    let progress = Progress::new();
    let tools = Tools::fetch(layout, Scope::Cluster, &|line| progress.say(line))?;
    let fetched = tools.fetch_guest(&|line| progress.say(line))?;
    progress.done("the guest's parts are there");
    drop(progress);
    let tests: Vec<&Test> =
        TESTS.iter().filter(|test| options.test.as_ref().is_none_or(|name| test.name == name)).collect();
    if tests.is_empty() {
        bail!("there is no test program {:?} for the guest", options.test.as_deref().unwrap_or_default());
    }
    let programs: Vec<PathBuf> = tests.iter().map(|test| build(layout, test)).collect::<Result<_>>()?;
    let progress = Progress::new();
    progress.say("making the guest's disk");
    let guest = Guest::new(layout.target.join("qemu"), &fetched, &tools)?;
    programs.iter().try_for_each(|program| guest.put(program))?;
    guest.put(&layout.binaries("debug").join("kubelet"))?;
    let filter = options.filter.as_deref();
    let running = guest.boot(&script(&tests, &programs, filter, options.limit))?;
    progress.done("the guest is starting");
    drop(progress);
    let console = running.console().to_owned();
    let mut results = Results::default();
    let limit = Duration::from_secs(60 + options.limit * tests.len() as u64);
    let ended = running.follow(limit, |line| results.take(line));
    results.report(&tests, &console, ended)
}

/// Builds a test program and returns where it is.
fn build(layout: &Layout, test: &Test) -> Result<PathBuf> {
    let mut command = cargo(layout);
    command.args([
        "test",
        "--no-run",
        "--package",
        test.package,
        "--test",
        test.name,
        "--message-format=json-render-diagnostics",
    ]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the build failed; cargo's words are above");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let wanted = format!("\"name\":\"{}\"", test.name);
    let line = messages.lines().filter(|line| line.contains(&wanted)).find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    line.with_context(|| format!("cargo does not say where the test {} is", test.name))
}

/// What the guest runs.
fn script(tests: &[&Test], programs: &[PathBuf], filter: Option<&str>, limit: u64) -> String {
    // A shutdown that a test asks for must not keep us from telling how it ended.
    let mut script = "trap '' TERM\nmodprobe -a overlay veth\nip link set lo up\nmount -o remount,rw /\n".to_owned();
    for (test, program) in tests.iter().zip(programs) {
        let arguments = test.arguments.iter().copied().chain(filter).collect::<Vec<_>>().join(" ");
        let _ = writeln!(script, "echo '{MARK} begin {}'", test.name);
        let _ = writeln!(script, "timeout -k 5 {limit} {} {arguments}", program.display());
        let _ = writeln!(script, "printf '\\n{MARK} end {} %s\\n' $?", test.name);
    }
    script
}

/// How the programs ended.
#[derive(Default)]
struct Results {
    ended: Vec<(String, String)>,
}

impl Results {
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [MARK, "begin", name] => println!("\n== {name}, in the guest"),
            [MARK, "end", name, code] => self.ended.push(((*name).to_owned(), (*code).to_owned())),
            _ => println!("{line}"),
        }
    }

    fn report(&self, tests: &[&Test], console: &Path, ended: Result<()>) -> Result<ExitCode> {
        let mut failed = Vec::new();
        for test in tests {
            match self.ended.iter().find(|(name, _)| name == test.name) {
                Some((_, code)) if code == "0" => {}
                Some((_, code)) if code == "124" => failed.push(format!("{} took too long", test.name)),
                Some((_, code)) => failed.push(format!("{} failed ({code})", test.name)),
                None => failed.push(format!("{} did not end", test.name)),
            }
        }
        if failed.is_empty() {
            ended?;
            println!("{} test programs passed in the guest", tests.len());
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("\nerror: {}; the guest's console is in {}", failed.join(", "), console.display());
        if let Err(error) = ended {
            eprintln!("error: {error:#}");
        }
        Ok(ExitCode::FAILURE)
    }
}
