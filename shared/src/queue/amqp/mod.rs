//! RabbitMQ, 3.10 and later, over AMQP 0-9-1.
//!
//! [`topology`] says what is declared and why, [`publisher`] owns its channels one task each, [`consumer`] takes, moves
//! and acknowledges, [`link`] is one connection with everything that bounds it. A connection lives as long as
//! everything on it is well; at the first fault it is dropped whole and a new one built, so nothing of an older one
//! (a tag, a confirm) can be taken for the newer's.
//!
//! What lapin 4.12 does that this is built around: on a channel shared by tasks publishes get each other's confirms;
//! a returned message is attached to the wrong confirm; a dropped confirm is kept for ever; automatic recovery leaves
//! confirms hanging; while the broker blocks the connection, a publish never returns.

mod consumer;
mod link;
mod message;
mod publisher;
mod topology;

use std::sync::Arc;

use lapin::uri::{AMQPScheme, AMQPUri};

use self::consumer::{AmqpConsumer, Source};
use self::topology::Topology;
use super::{ConnectError, Consumer, Publisher, QueueSettings};
use crate::shutdown::Shutdown;

pub use self::publisher::{AmqpPublisher, Route};

/// A queue on a broker; it connects when its halves are used.
#[derive(Clone)]
pub struct Amqp(Arc<Broker>);

/// Where the broker is and what is on it.
struct Broker {
    uri: AMQPUri,
    settings: QueueSettings,
    topology: Topology,
}

impl Amqp {
    /// # Errors
    /// The URL is none of AMQP.
    pub fn new(settings: QueueSettings) -> Result<Self, ConnectError> {
        // Some of the parser's errors repeat the URL, and the URL may hold a password.
        let unreadable = |error: String| ConnectError::Url(error.replace(&settings.url, "…"));
        let mut uri: AMQPUri = settings.url.parse().map_err(unreadable)?;
        uri.query.heartbeat.get_or_insert(link::HEARTBEAT_S);
        if uri.scheme == AMQPScheme::AMQPS {
            // TLS asks for the process' provider. Somebody else's installation of one is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let topology = Topology::new(&settings.retry_steps);
        Ok(Self(Arc::new(Broker { uri, settings, topology })))
    }

    #[must_use]
    pub fn publisher(&self, shutdown: &Shutdown) -> Arc<dyn Publisher> {
        Arc::new(self.routing_publisher(shutdown))
    }

    /// A publisher that may also choose where to.
    #[must_use]
    pub fn routing_publisher(&self, shutdown: &Shutdown) -> AmqpPublisher {
        AmqpPublisher::start(&self.0, "publish", publisher::WEBHOOK_LANES, shutdown)
    }

    /// A publisher for what is told of orders ([`Route::orders`]), on a connection of its own.
    #[must_use]
    pub fn orders_publisher(&self, shutdown: &Shutdown) -> AmqpPublisher {
        AmqpPublisher::start(&self.0, "orders", publisher::ORDER_LANES, shutdown)
    }

    #[must_use]
    pub fn consumer(&self) -> Box<dyn Consumer> {
        Box::new(AmqpConsumer::new(Arc::clone(&self.0), Source::Webhooks))
    }

    #[must_use]
    pub fn dead_letters(&self) -> Box<dyn Consumer> {
        Box::new(AmqpConsumer::new(Arc::clone(&self.0), Source::DeadLetters))
    }
}
