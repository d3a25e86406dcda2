//! Markers in Redis: for any number of workers.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, IntoConnectionInfo, RedisError};

use paybell_shared::telemetry::{OUTCOME, SEEN_REQUESTS_TOTAL};

use super::{Marker, SeenEvents};

/// What a look may cost. A full batch's transaction takes some 60 ms; a shortcut that takes longer is none. (With 5 ms, on a
/// machine at its limit, a quarter of what Redis knew was looked up in the database, for lack of an answer in time.)
const BUDGET: Duration = Duration::from_millis(20);
/// Failures in a row after which Redis is left alone, so that a dead one costs nothing.
const FAILURES_MAX: u32 = 3;
/// For how long.
const PAUSE: Duration = Duration::from_secs(1);
/// Nearly all redeliveries come within three days (Stripe's retries end there); later ones are the database's.
const MARKER_TTL: Duration = Duration::from_hours(72);

/// Redis, with a budget and a circuit breaker: without them, a dead server blocks each call for seconds.
pub struct Redis {
    connection: ConnectionManager,
    started: Instant,
    failures: AtomicU32,
    /// Until when nothing is asked, in milliseconds since `started`.
    paused_until_ms: AtomicI64,
}

impl Redis {
    /// Connects when first used.
    ///
    /// # Errors
    /// The URL is not one of Redis.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        let client = Client::open(url.into_connection_info()?)?;
        // The budget bounds the caller's wait; these bound what goes on behind it.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_millis(500)));
        Ok(Self {
            connection: client.get_connection_manager_lazy(config)?,
            started: Instant::now(),
            failures: AtomicU32::new(0),
            paused_until_ms: AtomicI64::new(0),
        })
    }

    async fn ask<T>(&self, question: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        let now_ms = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        if now_ms < self.paused_until_ms.load(Ordering::Relaxed) {
            metrics::counter!(SEEN_REQUESTS_TOTAL, OUTCOME => "skipped").increment(1);
            return None;
        }
        let problem = match tokio::time::timeout(BUDGET, question).await {
            Ok(Ok(answer)) => {
                self.failures.store(0, Ordering::Relaxed);
                metrics::counter!(SEEN_REQUESTS_TOTAL, OUTCOME => "ok").increment(1);
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", BUDGET.as_millis()),
        };
        metrics::counter!(SEEN_REQUESTS_TOTAL, OUTCOME => "failed").increment(1);
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.failures.store(0, Ordering::Relaxed);
            self.paused_until_ms.store(now_ms + i64::try_from(PAUSE.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
            tracing::warn!(error = problem, pause_ms = PAUSE.as_millis(), "Redis is left alone; only speed changes");
        }
        None
    }
}

/// Markers of different installations on one Redis do not meet: the epoch is part of what is hashed.
fn key(marker: &Marker) -> [u8; 19] {
    let mut key = *b"pb:0000000000000000";
    key[3..].copy_from_slice(&marker.0);
    key
}

#[async_trait]
impl SeenEvents for Redis {
    async fn known(&self, markers: &[Marker]) -> Vec<bool> {
        if markers.is_empty() {
            return Vec::new();
        }
        let mut command = redis::cmd("MGET");
        for marker in markers {
            command.arg(&key(marker));
        }
        let mut connection = self.connection.clone();
        let answer: Option<Vec<Option<Vec<u8>>>> = self.ask(async move { command.query_async(&mut connection).await }).await;
        match answer {
            Some(values) if values.len() == markers.len() => values.iter().map(Option::is_some).collect(),
            _ => vec![false; markers.len()],
        }
    }

    async fn mark(&self, markers: &[Marker]) {
        if markers.is_empty() {
            return;
        }
        let mut pipeline = redis::pipe();
        for marker in markers {
            pipeline.cmd("SET").arg(&key(marker)).arg(b"1").arg("EX").arg(MARKER_TTL.as_secs()).ignore();
        }
        let mut connection = self.connection.clone();
        self.ask(async move { pipeline.query_async::<()>(&mut connection).await }).await;
    }
}
