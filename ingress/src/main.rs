//! The ingress as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use paybell_shared::clock::SystemClock;
use paybell_shared::config::Config;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::{ops, queue, serve, telemetry};

/// A worker's time is a fifth allocation: of the many small texts that JSON is made of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Receives payment webhooks, verifies them, puts them on the queue and acknowledges them.
///
/// PSPs call `POST /webhooks/{psp}[/{account}]`. A 2xx means that the webhook is durable; 503 means: send it again.
/// Operators find /livez, /readyz and /metrics at the address that `ops_listen` in `[ingress]` names.
/// SIGTERM finishes what is in flight, then exits 0.
#[derive(Parser)]
#[command(
    version,
    after_help = "Any setting can also be given as PAYBELL_<TABLE>_<KEY>, for example PAYBELL_QUEUE_URL.\n\
    RUST_LOG sets what is logged, for example RUST_LOG=debug.\n\
    Exit status: 0 done (or, with --health, ready), 1 failed (or not ready), 2 wrong usage or configuration."
)]
struct Arguments {
    /// The TOML file with the settings
    #[arg(long, env = "PAYBELL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the ingress that runs here with these settings whether it is ready, and exit: for health checks of containers
    #[arg(long)]
    health: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("paybell-ingress: {:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    if arguments.health {
        let ready = ops::ask_ready(config.ingress.ops_listen).unwrap_or(false);
        return if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    run(&config).await.unwrap_or_else(|error| {
        eprintln!("paybell-ingress: {error:#}");
        let is_of_setting = error.downcast_ref().is_some_and(queue::ConnectError::is_of_setting);
        if is_of_setting { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let metrics = telemetry::init()?;
    config.warn();
    let shutdown = Shutdown::new();
    let queue = queue::connect(config.queue_settings("paybell-ingress")).await?;
    let started = paybell_ingress::start(config, &queue, Arc::new(SystemClock), &shutdown).await?;
    ops::serve(serve::bind(config.ingress.ops_listen)?, vec![started.check], metrics, &shutdown);
    Ok(shutdown.run().await?)
}
