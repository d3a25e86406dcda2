//! `ack`: how many webhooks the ingress acknowledges, each confirmed by RabbitMQ, beside what a bare lapin publisher gets
//! confirmed by the same broker in the same run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::load::{self, Webhooks};
use super::{Measured, median, publisher};
use crate::servers::RabbitMq;
use crate::servers::process::Service;

/// The size of a usual Stripe event.
const BODY_BYTES: usize = 1200;
const BARE_IN_FLIGHT: usize = 128;
const CONNECTIONS: usize = 64;
const SECRET: &str = "whsec_bench";
const WARM_UP: Duration = Duration::from_secs(2);
const RUN: Duration = Duration::from_secs(8);
/// Odd, for the median; yardstick and subject take turns, so that a slow minute of the machine meets both.
const RUNS: usize = 3;

/// The result, and its ratio to the yardstick.
#[derive(Debug, Serialize)]
pub struct Report {
    pub bare_publisher: Measured,
    pub ingress: Measured,
    /// Acknowledged per second over confirmed per second.
    pub ratio: f64,
}

/// Runs the benchmark on a broker of its own.
///
/// # Errors
/// Something cannot be started or reached.
pub async fn run() -> anyhow::Result<Report> {
    let rabbitmq = RabbitMq::start_private().await;
    let url = rabbitmq.vhost().await;
    let configuration = format!("[queue]\nurl = {url:?}\n[[psp]]\nid = \"stripe\"\nmode = \"test\"\nsecrets = [{SECRET:?}]\n");
    let ingress = Service::start("paybell-ingress", &[], &configuration, &[("RUST_LOG", "warn")]).await;
    let address: SocketAddr = ingress.webhooks_url().trim_start_matches("http://").parse()?;
    let webhooks = Arc::new(Webhooks::new(SECRET, BODY_BYTES));
    load::measure(address, &webhooks, CONNECTIONS, WARM_UP).await?;
    publisher::measure(&url, BODY_BYTES, BARE_IN_FLIGHT, WARM_UP).await?;
    let (mut bare, mut subject) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bare.push(publisher::measure(&url, BODY_BYTES, BARE_IN_FLIGHT, RUN).await?);
        subject.push(load::measure(address, &webhooks, CONNECTIONS, RUN).await?);
    }
    let (bare_publisher, ingress) = (median(bare), median(subject));
    let ratio = ingress.per_second / bare_publisher.per_second;
    Ok(Report { bare_publisher, ingress, ratio })
}

impl Report {
    /// The report as lines for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let line = |name: &str, measured: &Measured| {
            format!(
                "{name:<44} {:>9.0} {:>8.2} {:>8.2} {:>7}\n",
                measured.per_second, measured.p50_ms, measured.p99_ms, measured.failed
            )
        };
        let mut table = format!("{:<44} {:>9} {:>8} {:>8} {:>7}\n", "ack", "per s", "p50 ms", "p99 ms", "failed");
        table += &line(&format!("bare lapin publisher, {BARE_IN_FLIGHT} in flight"), &self.bare_publisher);
        table += &line(&format!("ingress, {CONNECTIONS} connections, closed loop"), &self.ingress);
        table + &format!("ratio {:.2}\n", self.ratio)
    }
}
