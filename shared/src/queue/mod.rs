//! The queue between ingress and worker: one port, two backends.
//!
//! [`connect`] chooses by URL: `amqp://` and `amqps://` (RabbitMQ, [`amqp`]) or `sqlite:` (embedded, [`sqlite`]).
//! [`cloudevents`] maps an [`Envelope`](crate::envelope::Envelope) to a [`Message`] and back.

pub mod amqp;
pub mod cloudevents;
pub mod sqlite;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::shutdown::Shutdown;

/// What travels: exact bytes and a few short headers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Message {
    /// Source and id, so that a returned or logged message can be told apart.
    pub id: String,
    pub content_type: Option<String>,
    pub headers: Vec<(Cow<'static, str>, String)>,
    pub body: Bytes,
}

impl Message {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Why a message is a dead letter; only [`Queue::dead_letters`] shows it.
pub const REASON_HEADER: &str = "x-paybell-reason";

/// Puts webhooks on the queue.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Resolves with `Ok` only once the message is durable (invariant I1). Safe to call from any number of tasks.
    ///
    /// # Errors
    /// It may or may not be on the queue; the sender must send again.
    async fn publish(&self, message: Message) -> Result<(), PublishError>;

    /// What the publisher knows of its queue, as it changes.
    fn health(&self) -> watch::Receiver<Health>;
}

/// The state of the way to the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// No connection yet since the start.
    Starting,
    Up,
    /// Connected, but the broker takes nothing (memory or disk alarm).
    Blocked(String),
    Down(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the queue refused the message")]
    Nacked,
    #[error("no queue took the message")]
    Unroutable,
    #[error("there is no connection to the queue: {0}")]
    Closed(String),
    #[error("the broker blocks publishers: {0}")]
    Blocked(String),
    #[error("too many messages wait to be published")]
    Full,
    #[error("no confirmation within the budget of {} ms", .0.as_millis())]
    Late(Duration),
}

impl PublishError {
    /// The reason as a metric label: a closed set.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Nacked => "nacked",
            Self::Unroutable => "unroutable",
            Self::Closed(_) => "closed",
            Self::Blocked(_) => "blocked",
            Self::Full => "full",
            Self::Late(_) => "late",
        }
    }
}

/// Takes webhooks off the queue. One task owns it.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for a delivery, then takes what else is there, at most `max`, waiting at most `linger` for more.
    /// Cancel-safe: what was received and not returned is returned by the next call. Heals by itself: it comes back with
    /// an error once per lost connection and connects anew, with back-off, when called again.
    ///
    /// # Errors
    /// The queue is not reachable. Deliveries that were not settled come again.
    async fn next_batch(&mut self, max: usize, linger: Duration) -> Result<Vec<Delivery>, ConsumeError>;

    /// Carries out what was decided, after what it decides on is committed (invariant I2). A move to the retry or
    /// dead-letter queue is confirmed before the delivery is acknowledged.
    ///
    /// # Errors
    /// What could not be settled comes again.
    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError>;

    /// Gives back what is not settled and disconnects.
    async fn close(&mut self);
}

/// Names a delivery to the consumer that it came from, within one connection: a tag of an older one settles nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    pub generation: u64,
    pub number: u64,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub tag: Tag,
    /// 1 at first; raised by each [`Disposition::Retry`], not by release or redelivery.
    pub attempt: u32,
    /// It was delivered before and not settled: its consumer released it, or died.
    pub redelivered: bool,
    pub message: Message,
}

/// What becomes of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Its effect is committed.
    Done,
    /// It failed for its own reason and comes again later, one attempt older; after the last one, a dead letter.
    Retry {
        reason: String,
    },
    DeadLetter {
        reason: String,
    },
    /// Not processed, by no fault of its own: it comes again as it was.
    Release,
}

impl Disposition {
    /// The disposition as a metric label: a closed set.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry { .. } => "retry",
            Self::DeadLetter { .. } => "dead",
            Self::Release => "release",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    #[error("there is no connection to the queue: {0}")]
    Closed(String),
    #[error("the queue failed")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Everything about a queue that is set from outside.
#[derive(Clone)]
pub struct QueueSettings {
    pub url: String,
    /// How long a publish may take before its caller is told [`PublishError::Late`].
    pub publish_budget: Duration,
    /// Delay of each retry, in order; after the last one a delivery is dead.
    pub retry_steps: Vec<Duration>,
    /// Names this process to the broker's operators.
    pub connection_name: String,
}

impl std::fmt::Debug for QueueSettings {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueSettings")
            .field("publish_budget", &self.publish_budget)
            .field("retry_steps", &self.retry_steps)
            .field("connection_name", &self.connection_name)
            .finish_non_exhaustive()
    }
}

impl QueueSettings {
    /// What follows when the attempt numbered `attempt` failed: the retry step to wait in (an index into
    /// `retry_steps`), or the reason of the dead letter.
    fn after_failure(&self, attempt: u32, reason: &str) -> Result<usize, String> {
        let step = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        if step < self.retry_steps.len() { Ok(step) } else { Err(bounded(&format!("attempts spent: {reason}"))) }
    }
}

/// The most of a reason that travels or is stored, in bytes: room for an error and its causes, not for a body.
const REASON_BYTES_MAX: usize = 512;

/// Cuts a reason to [`REASON_BYTES_MAX`].
fn bounded(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("[queue] url: {0:?} is none of amqp://, amqps://, sqlite:")]
    Scheme(String),
    #[error("[queue] url: {0}")]
    Url(String),
    #[error("[queue] url: the embedded queue cannot be opened")]
    Sqlite(#[from] sqlx::Error),
    #[error("the embedded queue cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("[queue] url: the file {path} cannot be made")]
    File { path: String, source: std::io::Error },
    #[error("[queue] url: {0} is open in another process")]
    InUse(String),
    /// Invariant I1 would not hold.
    #[error("the embedded queue runs with {pragma} = {found}, which is not durable")]
    NotDurable { pragma: &'static str, found: String },
}

impl ConnectError {
    /// Only another setting helps.
    #[must_use]
    pub const fn is_of_setting(&self) -> bool {
        matches!(self, Self::Scheme(_) | Self::Url(_))
    }
}

/// A queue, chosen by its URL. Both halves connect when first used, and each on its own connection.
#[derive(Clone)]
pub enum Queue {
    Amqp(amqp::Amqp),
    Sqlite(sqlite::Sqlite),
}

/// Chooses the backend. A broker that is down is no error here: its publisher answers [`PublishError::Closed`] until it
/// heals.
///
/// # Errors
/// The URL is of no backend, or the embedded queue's file cannot be opened.
pub async fn connect(settings: QueueSettings) -> Result<Queue, ConnectError> {
    let scheme = settings.url.split(':').next().unwrap_or_default();
    match scheme {
        "amqp" | "amqps" => Ok(Queue::Amqp(amqp::Amqp::new(settings)?)),
        "sqlite" => Ok(Queue::Sqlite(sqlite::Sqlite::open(settings).await?)),
        _ => Err(ConnectError::Scheme(scheme.to_owned())),
    }
}

impl Queue {
    /// The publishing half. Its tasks end with `shutdown`, after what was accepted is confirmed.
    #[must_use]
    pub fn publisher(&self, shutdown: &Shutdown) -> Arc<dyn Publisher> {
        match self {
            Self::Amqp(queue) => queue.publisher(shutdown),
            Self::Sqlite(queue) => queue.publisher(shutdown),
        }
    }

    /// The consuming half.
    #[must_use]
    pub fn consumer(&self) -> Box<dyn Consumer> {
        match self {
            Self::Amqp(queue) => queue.consumer(),
            Self::Sqlite(queue) => queue.consumer(),
        }
    }

    /// Where there is an exchange that others may listen to; an embedded queue has none.
    #[must_use]
    pub const fn exchange(&self) -> Option<&amqp::Amqp> {
        match self {
            Self::Amqp(queue) => Some(queue),
            Self::Sqlite(_) => None,
        }
    }

    /// Takes dead letters, with their reason in the header [`REASON_HEADER`]. Nothing comes after death: here only
    /// [`Disposition::Done`] takes a delivery off, everything else releases it.
    #[must_use]
    pub fn dead_letters(&self) -> Box<dyn Consumer> {
        match self {
            Self::Amqp(queue) => queue.dead_letters(),
            Self::Sqlite(queue) => queue.dead_letters(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_ends_in_a_dead_letter() {
        let settings = QueueSettings {
            url: "sqlite:x".to_owned(),
            publish_budget: Duration::from_secs(2),
            retry_steps: vec![Duration::from_secs(5), Duration::from_secs(30)],
            connection_name: "test".to_owned(),
        };
        assert_eq!(settings.after_failure(1, "no"), Ok(0));
        assert_eq!(settings.after_failure(2, "no"), Ok(1));
        assert_eq!(settings.after_failure(3, "no"), Err("attempts spent: no".to_owned()));
        assert_eq!(settings.after_failure(u32::MAX, "no"), Err("attempts spent: no".to_owned()));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(bounded("short"), "short");
        let long = "é".repeat(REASON_BYTES_MAX);
        let cut = bounded(&format!("x{long}"));
        assert!(cut.len() <= REASON_BYTES_MAX && cut.len() > REASON_BYTES_MAX - 2 && long.starts_with(&cut[1..]));
    }
}
