//! Events that have waited too long for their order: counted for operators, who find them in the API's list.

use std::sync::Arc;
use std::time::Duration;

use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::PARKED_OVERDUE;

use crate::consume::Context;

const PERIOD: Duration = Duration::from_secs(30);

/// Counts until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, the last count stands.
pub async fn run(context: Arc<Context>, parked_max: Duration, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        let before = context.clock.now().minus(parked_max);
        match context.store.overdue(before).await {
            Ok(count) => metrics::gauge!(PARKED_OVERDUE).set(f64::from(count)),
            // The pulse says so.
            Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "overdue events are not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}
