//! Runs the benchmarks. Started by `tests/bench`, which builds the services first.

use clap::Parser;
use paybell_tests::bench::ack;

/// Measures Paybell beside yardsticks, on this machine, with a RabbitMQ of its own.
#[derive(Parser)]
#[command(name = "tests/bench", version)]
struct Arguments {
    /// Only this one
    #[arg(long, value_parser = ["ack"])]
    only: Option<String>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = ack::run().await?;
    if arguments.json {
        println!("{}", serde_json::json!({ "ack": report }));
    } else {
        print!("{}", report.table());
    }
    Ok(())
}
