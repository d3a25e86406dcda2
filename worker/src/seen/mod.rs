//! What was committed before: a shortcut that may be empty, stale or down (invariant I3).
//!
//! A marker is written only after the commit of all that its delivery says, so a hit is safe to acknowledge; a miss costs
//! one look at the database. [`connect`] chooses by URL: `redis://` and `rediss://` ([`redis`]) or `memory:` ([`memory`]).

pub mod memory;
pub mod redis;

use std::sync::Arc;

use async_trait::async_trait;
use paybell_shared::envelope::Envelope;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Remembers deliveries whose effects are committed. Never fails: what it cannot tell, it does not know.
#[async_trait]
pub trait SeenEvents: Send + Sync {
    /// For each marker, whether it is known; all `false` if that cannot be told within the budget.
    async fn known(&self, markers: &[Marker]) -> Vec<bool>;

    /// Remembers, if that can be done within the budget.
    async fn mark(&self, markers: &[Marker]);
}

/// The first 128 bits of the SHA-256 of everything that decides what a delivery says. With 64 bits, 10^8 markers would
/// collide with a probability of 3·10⁻⁴; a collision would be a lost event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marker(pub [u8; 16]);

impl Marker {
    /// The marker of a delivery in the history `epoch` of the database.
    #[must_use]
    pub fn of(epoch: Uuid, envelope: &Envelope) -> Self {
        let mut hash = Sha256::new();
        hash.update(epoch.as_bytes());
        // Each part with its length before it, so that no two lists of parts read the same.
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(envelope.psp.as_bytes());
        part(envelope.account.as_bytes());
        part(envelope.webhook_id.as_bytes());
        for (name, value) in &envelope.headers {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(&envelope.body);
        let digest = hash.finalize();
        let mut marker = [0; 16];
        marker.copy_from_slice(&digest[..16]);
        Self(marker)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("[seen] url: {0:?} is none of redis://, rediss://, memory:")]
    Scheme(String),
    #[error("[seen] url")]
    Redis(#[from] ::redis::RedisError),
}

/// Chooses the backend by the URL's scheme. A Redis that is down is no error: it is connected to when it is up.
///
/// # Errors
/// The URL is of no backend.
pub fn connect(url: &str) -> Result<Arc<dyn SeenEvents>, ConnectError> {
    let scheme = url.split(':').next().unwrap_or_default();
    match scheme {
        "redis" | "rediss" => Ok(Arc::new(redis::Redis::new(url)?)),
        "memory" => Ok(Arc::new(memory::Memory::default())),
        _ => Err(ConnectError::Scheme(scheme.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paybell_shared::clock::Timestamp;
    use paybell_shared::psp::Proof;

    fn envelope() -> Envelope {
        Envelope {
            psp: "stripe".into(),
            account: "default".into(),
            webhook_id: "evt_1".into(),
            event_type: None,
            subject: None,
            received_at: Timestamp::from_seconds(1),
            secret_name: "s".into(),
            proof: Proof::Proven,
            content_type: None,
            headers: vec![("a".into(), "b".into())],
            traceparent: None,
            body: bytes::Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn a_marker_depends_on_what_decides_and_on_nothing_else() {
        let epoch = Uuid::from_u128(1);
        let base = Marker::of(epoch, &envelope());
        let same = Envelope { received_at: Timestamp::from_seconds(9), secret_name: "t".into(), ..envelope() };
        assert_eq!(base, Marker::of(epoch, &same));
        let others = [
            Envelope { psp: "adyen".into(), ..envelope() },
            Envelope { account: "other".into(), ..envelope() },
            Envelope { webhook_id: "evt_2".into(), ..envelope() },
            Envelope { body: bytes::Bytes::from_static(b"{ }"), ..envelope() },
            Envelope { headers: vec![("ab".into(), String::new())], ..envelope() },
            Envelope { headers: vec![], ..envelope() },
        ];
        for other in others {
            assert_ne!(base, Marker::of(epoch, &other), "{other:?}");
        }
        assert_ne!(base, Marker::of(Uuid::from_u128(2), &envelope()), "another epoch");
    }
}
