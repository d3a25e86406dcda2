//! A clock that runs as the machine's does, and leaps over the time in which nothing happens.

use std::sync::atomic::{AtomicI64, Ordering};

use paybell_shared::clock::{Clock, SystemClock, Timestamp};

/// The machine's clock, ahead of it by all that was leapt over.
#[derive(Debug, Default)]
pub struct LeapingClock {
    ahead_ms: AtomicI64,
}

impl LeapingClock {
    /// Never back: what is late stays late.
    pub fn leap_to(&self, at: Timestamp) {
        let by = i64::try_from(at.since(self.now()).as_millis()).unwrap_or_default();
        self.ahead_ms.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for LeapingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(SystemClock.now().millis() + self.ahead_ms.load(Ordering::Relaxed))
    }
}
