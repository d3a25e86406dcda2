//! Random ids: the one place that makes them.

use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::{Builder, Uuid};

/// A source of random ids; from a seed, the same ones again.
#[derive(Debug)]
pub struct Ids(Mutex<StdRng>);

impl Ids {
    /// Seeded by the operating system.
    #[must_use]
    pub fn random() -> Self {
        Self(Mutex::new(rand::make_rng()))
    }

    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// A version 4 UUID.
    pub fn next(&self) -> Uuid {
        // Held for a few nanoseconds, never across an await; a poisoned generator still generates.
        let mut bytes = [0; 16];
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        Builder::from_random_bytes(bytes).into_uuid()
    }
}
