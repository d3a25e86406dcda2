//! The command `paybell`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paybell::commands::{
    audit, completeness, config, dead_letters, demo, endpoints, explain, psps, replay, send, serve, sweep, unsettled, verify,
};
use paybell::output::Outcome;

/// A worker's time is a fifth allocation: of the many small texts that JSON is made of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Receives payment webhooks, and brings each order to the payment provider's truth exactly once.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process: nothing else needs to be installed
    Serve(serve::Args),
    /// Run the whole system against simulated PSPs, and check every order against their books
    Demo(demo::Args),
    /// Send a signed webhook, as the PSP would
    Send(send::Args),
    /// Verify a webhook: the verdict, or exactly why not
    Verify(verify::Args),
    /// Say what became of an order or an event, and why
    Explain(explain::Args),
    /// Hold every row of the database against the others: do the books balance?
    Audit(audit::Args),
    /// Say how many webhooks were late or missed, by account
    Completeness(completeness::Args),
    /// List the open orders that will not be settled by themselves, with the reason and what to do
    Unsettled(unsettled::Args),
    /// Translate kept webhooks again: after a mapping was mended, or an account's settings
    Replay(replay::Args),
    /// Is our URL registered at the PSPs as it must be, and alive? And making it so
    #[command(subcommand)]
    Endpoints(endpoints::EndpointsCommand),
    /// Read a time of a PSP's list of events or payments again
    Sweep(sweep::Args),
    /// Messages that nobody could apply: list, try again, discard
    #[command(subcommand)]
    DeadLetters(dead_letters::LettersCommand),
    /// Print what each PSP's adapter can do
    Psps(psps::Args),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration that counts, with secrets named only, or the setting that is wrong
    Check(config::CheckArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Send(args) => exit(send::run(args).await),
        Command::Replay(args) => exit(replay::run(args).await),
        Command::Sweep(args) => exit(sweep::run(args).await),
        Command::Verify(args) => exit(verify::run(&args)),
        Command::Explain(args) => exit(explain::run(args).await),
        Command::Audit(args) => exit(audit::run(args).await),
        Command::Completeness(args) => exit(completeness::run(args).await),
        Command::Unsettled(args) => exit(unsettled::run(args).await),
        Command::DeadLetters(command) => exit(dead_letters::run(command).await),
        Command::Endpoints(command) => exit(endpoints::run(command).await),
        Command::Psps(args) => exit(psps::run(&args)),
        Command::Config(ConfigCommand::Check(args)) => exit(config::check(args)),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("error: {:#}", failure.error);
        failure.exit.into()
    })
}

fn exit(outcome: Outcome) -> Result<ExitCode, paybell::output::Failure> {
    outcome.map(ExitCode::from)
}
