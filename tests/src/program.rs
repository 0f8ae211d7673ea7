//! Running other programs, with errors that say which, how it ended, and what it said.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

/// Longest part of a program's own words that goes into an error, counted from the end.
const LAST_WORDS: usize = 2000;

/// Runs a program to its end and returns what it printed. Anything but exit code 0 is an error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, whichever end that is.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    command.output().with_context(|| format!("{} cannot be run; is it installed?", command.get_program().display()))
}

/// As [`run`], with `input` on its standard input.
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let output = output_of(command, input)?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`output`], with `input` on its standard input.
pub fn output_of(command: &mut Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("{} cannot be run; is it installed?", command.get_program().display()))?;
    let pipe = child.stdin.take();
    thread::scope(|scope| {
        // A program that does not read what it is given ends with the pipe broken: its own words tell why.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output().with_context(|| format!("cannot wait for {}", command.get_program().display()))
    })
}

/// Shorthand for [`run`] with a program and its arguments.
pub fn call(program: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// Whether a program ended with exit code 0.
pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    output(Command::new(program).args(arguments)).is_ok_and(|output| output.status.success())
}

/// The sentence for a program that failed: its command line, its status and its last words.
pub fn failure(command: &Command, output: &Output) -> String {
    let mut sentence = format!("`{}` failed ({})", line(command), output.status);
    for words in [&output.stdout, &output.stderr] {
        let words = String::from_utf8_lossy(words);
        let words = words.trim();
        if !words.is_empty() {
            let from = words.len().saturating_sub(LAST_WORDS);
            let from = (from..words.len()).find(|at| words.is_char_boundary(*at)).unwrap_or(0);
            let _ = write!(sentence, "\n{}", &words[from..]);
        }
    }
    sentence
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_program_and_carries_its_words() {
        let error = call("sh", &["-c", "echo out; echo err >&2; exit 3"]).unwrap_err().to_string();
        assert_eq!(error, "`sh -c echo out; echo err >&2; exit 3` failed (exit status: 3)\nout\nerr");
        let error = call("no-such-program", &[]).unwrap_err().to_string();
        assert_eq!(error, "no-such-program cannot be run; is it installed?");
    }
}
