//! Benchmarks: each prints ratios against a yardstick that is measured in the same run, on the same machine.

pub mod ack;
pub mod apply;
mod load;
mod one_by_one;
mod publisher;
pub mod push_vs_poll;
pub mod seen;
mod stories;

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What one measurement saw.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// What was refused or failed; anything but 0 makes the figures worthless.
    pub failed: u64,
}

impl Measured {
    /// `latencies` in microseconds.
    fn new(latencies_us: &Histogram<u64>, failed: u64, elapsed: Duration) -> Self {
        // Exact up to 2^53 of anything that is counted here.
        #[expect(clippy::cast_precision_loss, reason = "a benchmark's counts stay far below 2^52")]
        let (count, at) = (latencies_us.len() as f64, |quantile| latencies_us.value_at_quantile(quantile) as f64 / 1000.0);
        Self { per_second: count / elapsed.as_secs_f64(), p50_ms: at(0.5), p99_ms: at(0.99), failed }
    }
}

/// So many in so long, by the second.
fn rate(count: usize, elapsed: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a benchmark's counts stay far below 2^52")]
    let count = count as f64;
    count / elapsed.as_secs_f64()
}

/// A rate as a line of a table.
fn line(name: &str, per_second: f64) -> String {
    format!("{name:<60} {per_second:>9.0}\n")
}

/// How much `apply` and `seen` are given to do.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub orders: usize,
    pub messages: usize,
}

/// The middle one by rate, of an odd number of runs.
fn median(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    runs.swap_remove(runs.len() / 2)
}

/// The middle one, of an odd number of rates.
fn median_rate(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
