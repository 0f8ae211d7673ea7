//! Logs: text or JSON lines on standard error, with stock's `-v` levels.

use clap::Args;
use tracing_subscriber::EnvFilter;

/// The flags that every daemon has for its logs.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Log level verbosity: 0 errors and notices, 2 what is done, 4 and up every decision.
    #[arg(long = "v", short = 'v', default_value_t = 2, value_name = "LEVEL", global = true)]
    pub verbosity: u8,
    /// Format of log lines.
    #[arg(long, default_value = "text", value_parser = ["text", "json"], global = true)]
    pub logging_format: String,
}

/// Starts logging. A second call in one process changes nothing.
pub fn init(args: &LogArgs) {
    let level = match args.verbosity {
        0 => "warn",
        1..=3 => "info",
        4..=5 => "debug",
        _ => "trace",
    };
    // What our dependencies say about their own workings helps only whoever asks for much.
    let quiet = if args.verbosity >= 8 { "trace" } else { "warn" };
    let ours = format!(
        "{level},hyper={quiet},h2={quiet},tower={quiet},rustls={quiet},kube_client={quiet},kube_runtime={quiet},hickory_server={quiet},hickory_proto={quiet},netlink_proto={quiet}"
    );
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(ours));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match args.logging_format.as_str() {
        "json" => builder.json().try_init(),
        _ => builder.with_ansi(false).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was already started");
    }
}
