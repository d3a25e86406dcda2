//! Runs the benchmarks. Started by `tests/bench`, which builds the services first.

use clap::{Parser, ValueEnum};
use paybell_shared::telemetry;
use paybell_tests::bench::{Size, ack, apply, push_vs_poll, seen};

/// A worker's time is a fifth allocation: of the many small texts that JSON is made of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Paybell beside yardsticks, on this machine, with servers of its own.
#[derive(Parser)]
#[command(name = "tests/bench", version)]
struct Arguments {
    /// Only this one; all, if none is named
    #[arg(value_enum)]
    name: Option<Name>,
    /// The same as NAME
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "name")]
    only: Option<Name>,
    /// Events of `apply`; `seen` takes a fifth of them. A tenth as many orders
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Payments of `push-vs-poll`
    #[arg(long, default_value_t = 2_000)]
    payments: usize,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Webhooks acknowledged by the ingress
    Ack,
    /// Events translated and applied to orders
    Apply,
    /// Deliveries that were seen before; the worker's memory
    Seen,
    /// The same payments by polling, by webhooks, and by webhooks with reconciliation
    PushVsPoll,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let metrics = telemetry::init_metrics()?;
    let only = arguments.name.or(arguments.only);
    let wanted = |name| only.is_none_or(|only| only == name);
    let size = |messages: usize| Size { orders: messages / 10, messages };
    let mut reports = serde_json::Map::new();
    let mut show = |name: &str, table: String, report: serde_json::Result<serde_json::Value>| -> anyhow::Result<()> {
        if arguments.json {
            reports.insert(name.to_owned(), report?);
        } else {
            print!("{table}");
        }
        Ok(())
    };
    if wanted(Name::Ack) {
        let report = ack::run().await?;
        show("ack", report.table(), serde_json::to_value(&report))?;
    }
    if wanted(Name::Apply) {
        let report = apply::run(size(arguments.events), &metrics).await?;
        show("apply", report.table(), serde_json::to_value(&report))?;
    }
    if wanted(Name::Seen) {
        let report = seen::run(size(arguments.events / 5)).await?;
        show("seen", report.table(), serde_json::to_value(&report))?;
    }
    if wanted(Name::PushVsPoll) {
        let report = push_vs_poll::run(arguments.payments).await?;
        show("push_vs_poll", report.table(), serde_json::to_value(&report))?;
    }
    if arguments.json {
        println!("{}", serde_json::Value::Object(reports));
    }
    Ok(())
}
