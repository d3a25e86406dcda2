//! Where the time of a batch goes, stage by stage: a histogram for operators, and the shares that `tests/bench apply` prints.

use std::time::Instant;

use paybell_shared::telemetry::{APPLY_SECONDS, STAGE};

/// Measures one stage after the other.
pub struct Pace(Instant);

impl Pace {
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Ends a stage and begins the next one.
    pub fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        metrics::histogram!(APPLY_SECONDS, STAGE => stage).record(now.duration_since(self.0));
        self.0 = now;
    }
}
