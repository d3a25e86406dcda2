//! Keeping the house: old bodies go, and room is made for new ones.
//!
//! [`step`] does all that is to be done; [`run`] only waits and steps. Keys, facts and changes are kept for ever.

use std::sync::Arc;
use std::time::Duration;

use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{BODIES_DELETED_TOTAL, BODY_PARTITIONS_TOTAL, OUTCOME};

use crate::consume::Context;
use crate::store::StoreError;

/// Between two rounds; up to a quarter less by chance, so that workers which started together do not meet.
const PERIOD: Duration = Duration::from_hours(1);
/// Portions of one round. What is left is done by the next.
const PORTIONS_MAX: usize = 1_000;
/// Between two portions: webhooks come first.
const BREATH: Duration = Duration::from_millis(20);

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    pub bodies_deleted: u64,
    pub partitions_made: u64,
    pub partitions_dropped: u64,
}

/// Does all that is to be done now, in small portions. Bodies received longer than `keep` ago go.
///
/// # Errors
/// The database is away.
pub async fn step(context: &Context, keep: Duration) -> Result<StepReport, StoreError> {
    let mut report = StepReport::default();
    for _ in 0..PORTIONS_MAX {
        let kept = context.store.retain(context.clock.now(), keep).await?;
        report.bodies_deleted += kept.bodies_deleted;
        report.partitions_made += kept.partitions_made;
        report.partitions_dropped += kept.partitions_dropped;
        if !kept.more {
            break;
        }
        tokio::time::sleep(BREATH).await;
    }
    metrics::counter!(BODIES_DELETED_TOTAL).increment(report.bodies_deleted);
    metrics::counter!(BODY_PARTITIONS_TOTAL, OUTCOME => "made").increment(report.partitions_made);
    metrics::counter!(BODY_PARTITIONS_TOTAL, OUTCOME => "dropped").increment(report.partitions_dropped);
    Ok(report)
}

/// Steps at the start and then every hour, until the stop.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(context: Arc<Context>, keep: Duration, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        let stepped = tokio::select! {
            // A portion that is cut off is rolled back.
            () = shutdown.stopping() => return Ok(()),
            stepped = step(&context, keep) => stepped,
        };
        match stepped {
            Ok(report) if report == StepReport::default() => {}
            Ok(StepReport { bodies_deleted, partitions_made, partitions_dropped }) => {
                tracing::info!(bodies_deleted, partitions_made, partitions_dropped, "the house is kept");
            }
            Err(error) => tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the house is kept later"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause(&context)) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

fn pause(context: &Context) -> Duration {
    let random = f64::from(context.ids.next().as_fields().0) / f64::from(u32::MAX);
    PERIOD.mul_f64(0.75 + random / 4.0)
}
