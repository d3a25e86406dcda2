//! `with-servers COMMAND…`: starts the servers that tests share, runs the command with their URLs in its environment, and
//! ends with its exit status. The servers end with it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use paybell_tests::servers;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: with-servers COMMAND…")?;
    let (rabbitmq, postgres, redis) = tokio::join!(servers::rabbitmq(), servers::postgres(), servers::redis());
    let status = Command::new(&program)
        .args(arguments)
        .env(servers::AMQP_URL, rabbitmq.url())
        .env(servers::AMQP_MANAGEMENT_URL, rabbitmq.management_url().as_str())
        .env(servers::POSTGRES_URL, postgres.url())
        .env(servers::REDIS_URL, redis.url())
        .status()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    // A signal leaves no code.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
