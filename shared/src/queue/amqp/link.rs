//! One connection to the broker, everything about it bounded in time, and the pause between two of them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::Shutdown as Ends;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::timeout;

use super::Broker;

/// Heartbeat, in seconds. A broker that is frozen or cut off is noticed after two of them at the latest; below five,
/// RabbitMQ's documentation warns of false alarms.
pub const HEARTBEAT_S: u16 = 5;

/// From the name's look-up to the end of the AMQP handshake. A broker within reach takes milliseconds, one that boots
/// a few seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For all declarations together: a broker that has lost its majority answers none.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(10);

/// For an orderly goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after the first failure and after the twelfth. Short enough that healing is not noticed, long enough that
/// a broker that boots is not hammered by every replica.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A connection on which the topology stands. Dropping it cuts it, at once and whatever the broker does; what it left
/// unsettled comes again.
pub struct Link {
    pub connection: Connection,
    _cut: Arc<OnceLock<Socket>>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(lapin::Error),
    #[error("{0} takes too long")]
    Slow(Step),
    /// Connected; what is there is not what this version declares, or may not be declared.
    #[error("{object} cannot be declared: {source}")]
    Topology { object: String, source: lapin::Error },
    #[error("the connection failed: {0}")]
    Broken(#[from] lapin::Error),
}

/// A step that has a time limit.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Connecting,
    Declaring,
    Channel,
    Consuming,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Declaring => "declaring the topology",
            Self::Channel => "opening a channel",
            Self::Consuming => "beginning to consume",
        })
    }
}

impl LinkError {
    /// There was a broker; what is on it is the problem.
    pub const fn was_connected(&self) -> bool {
        !matches!(self, Self::Connect(_) | Self::Slow(Step::Connecting))
    }
}

impl Link {
    /// Connects and declares the topology.
    pub async fn open(broker: &Broker, half: &str) -> Result<Self, LinkError> {
        let cut = Arc::default();
        let name = format!("{} {half}", broker.settings.connection_name);
        let connecting = connect(broker.uri.clone(), name, Arc::downgrade(&cut));
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connection) => connection.map_err(LinkError::Connect)?,
            Err(_) => return Err(LinkError::Slow(Step::Connecting)),
        };
        let link = Self { connection, _cut: cut };
        match timeout(DECLARE_TIMEOUT, broker.topology.declare(&link.connection)).await {
            Ok(declared) => declared?,
            Err(_) => return Err(LinkError::Slow(Step::Declaring)),
        }
        Ok(link)
    }

    /// A new channel.
    pub async fn channel(&self) -> Result<Channel, LinkError> {
        match timeout(CONNECT_TIMEOUT, self.connection.create_channel()).await {
            Ok(channel) => Ok(channel?),
            Err(_) => Err(LinkError::Slow(Step::Channel)),
        }
    }

    /// Says goodbye, if the broker listens.
    pub async fn close(self) {
        // A failure is no news: dropping cuts.
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "OK".into())).await;
    }
}

/// Cuts its connection when dropped.
///
/// Lapin runs each connection on a thread that ends with its socket. A handshake that nobody waits for any more, and a
/// close that a frozen broker never answers, have no time limit of their own: without this each would leave a thread
/// and 8 MiB of buffers behind.
struct Socket(TcpStream);

impl Drop for Socket {
    fn drop(&mut self) {
        // It fails only if the socket is closed already.
        let _ = self.0.shutdown(Ends::Both);
    }
}

async fn connect(uri: AMQPUri, name: String, cut: Weak<OnceLock<Socket>>) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime()?;
    Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let addresses = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                let socket = Socket(plain.get_ref().as_fd().try_clone_to_owned()?.into());
                // If nobody waits for this connection any more, the socket is cut right here.
                let waiting = cut.upgrade().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
                let _ = waiting.set(socket);
            }
            Ok(match uri.scheme {
                AMQPScheme::AMQP => stream,
                AMQPScheme::AMQPS => stream.into_tls(&uri.authority.host, OwnedTLSConfig::default().as_ref()).await?,
            })
        },
        properties,
    )
    .await
}

/// The pause before the next try: doubling, with jitter, so that replicas do not come back in step.
#[derive(Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a connection that stood for so long. One that breaks at once has not healed anything.
    pub fn stood(&mut self, time: Duration) {
        if time > BACKOFF_MAX {
            self.failures = 0;
        }
    }

    /// Between half and the whole of the doubled pause.
    pub fn next(&mut self) -> Duration {
        let whole = BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(self.failures.min(16))).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        // Each `RandomState` has its own random keys: all the randomness that a pause needs.
        let random = u32::try_from(RandomState::new().hash_one(self.failures) >> 32).unwrap_or(0);
        whole / 2 + whole.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_start_anew() {
        let mut backoff = Backoff::default();
        let mut whole = BACKOFF_MIN;
        for _ in 0..100 {
            let pause = backoff.next();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
            whole = (whole * 2).min(BACKOFF_MAX);
        }
        backoff.stood(Duration::from_millis(1));
        assert!(backoff.next() > BACKOFF_MIN);
        backoff.stood(2 * BACKOFF_MAX);
        assert!(backoff.next() <= BACKOFF_MIN);
    }
}
