//! The worker as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use paybell_shared::clock::SystemClock;
use paybell_shared::config::{Config, ConfigError};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::{ops, queue, serve, telemetry};
use paybell_worker::{seen, store};

/// A worker's time is a fifth allocation: of the many small texts that JSON is made of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes verified webhooks off the queue and brings each order to the truth; asks PSPs about payments that heard nothing.
///
/// Run as many as needed. The internal API answers at [api] listen; with [worker] consume = false it is all that this
/// process does. Operators find /livez, /readyz and /metrics at [worker] ops_listen. SIGTERM finishes the batch in hand,
/// then exits 0.
#[derive(Parser)]
#[expect(clippy::doc_markdown, reason = "what a terminal shows, not what rustdoc does")]
#[command(
    version,
    after_help = "Any setting can also be given as PAYBELL_<TABLE>_<KEY>, for example PAYBELL_STORE_URL.\n\
    RUST_LOG sets what is logged, for example RUST_LOG=debug.\n\
    Exit status: 0 done (or, with --health, ready), 1 failed (or not ready), 2 wrong usage or configuration."
)]
struct Arguments {
    /// The TOML file with the settings
    #[arg(long, env = "PAYBELL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the worker that runs here with these settings whether it is ready, and exit: for health checks of containers
    #[arg(long)]
    health: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("paybell-worker: {:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    if arguments.health {
        let ready = ops::ask_ready(config.worker.ops_listen).unwrap_or(false);
        return if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    run(&config).await.unwrap_or_else(|error| {
        eprintln!("paybell-worker: {error:#}");
        if is_of_setting(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// Only another setting helps.
fn is_of_setting(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<seen::ConnectError>()
        || error.downcast_ref().is_some_and(store::ConnectError::is_of_setting)
        || error.downcast_ref().is_some_and(queue::ConnectError::is_of_setting)
}

async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let metrics = telemetry::init()?;
    config.warn();
    let shutdown = Shutdown::new();
    let ops_listener = serve::bind(config.worker.ops_listen)?;
    let queue = queue::connect(config.queue_settings("paybell-worker")).await?;
    let started = paybell_worker::start(config, &queue, Arc::new(SystemClock), &shutdown).await?;
    drop(queue);
    ops::serve(ops_listener, vec![started.check], metrics, &shutdown);
    Ok(shutdown.run().await?)
}
