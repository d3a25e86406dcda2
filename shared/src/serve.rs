//! The accept loop: connections under named limits, and a stop that finishes what is in flight.
//!
//! Ours and not `axum::serve`, which has no deadline for a request's head. HTTP/1.1 only (and 1.0, answered as such).
//! What HTTP itself refuses here, before a handler sees it:
//!
//! | what | answer |
//! |---|---|
//! | a head that is not HTTP, contradicting `Content-Length`s, an unknown transfer coding | 400, closed |
//! | a head that does not end within the time-out | 408 if it had begun, closed |
//! | a target above 64 KiB | 414, closed |
//! | too many headers, or too many bytes of them | 431, closed |
//! | more connections than allowed | not accepted until one ends |
//! | a handler that panics | 503, counted |
//!
//! Of `Transfer-Encoding` with `Content-Length`, the parser heeds the former and closes after the answer: what a proxy that
//! heeded the length may take for a second request is never read.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::shutdown::Shutdown;
use crate::telemetry::{HTTP_CONNECTIONS, HTTP_PANICS_TOTAL, HTTP_REFUSALS_TOTAL, REASON, SERVER};

/// Connections that the kernel holds until they are accepted; Linux cuts it to `net.core.somaxconn` (4096).
const BACKLOG: i32 = 4096;

/// Most of a connection's bytes that are buffered before a handler takes them: four times the usual head and body.
const READ_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How long accepting rests after an error that is not the connection's own (no file descriptors, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long answers that a client does not take may lie in the kernel, before the connection is cut.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// After our last byte, how long we read and discard what the client still sends. Without it the kernel answers such
/// bytes with a reset, which may destroy our answer (a 413, above all) before the client has read it.
const LINGER: Duration = Duration::from_secs(1);

/// How long after the stop a connection still takes requests: those that are on their way already. Closed at once, an idle
/// connection would cross with its client's next webhook.
const LAST_CALL: Duration = Duration::from_millis(200);

/// How long connections may take to finish after the stop; below the stop's own deadline, above a body's time-out and
/// the publish budget together ([`config::FINISH_MAX`]).
const DRAIN_MAX: Duration = Duration::from_secs(40);
const _: () = assert!(config::FINISH_MAX.as_secs() < DRAIN_MAX.as_secs());

/// The parser's own table of headers, which needs no allocation; [`Limits::headers_max`] is not above it.
pub const HEADERS_MAX: usize = 100;

const SLOW_HEAD: &str = "slow_head";
const HEAD_TOO_LARGE: &str = "head_too_large";

const HEAD_TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What a server grants to those who connect.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections_max: usize,
    /// At most [`HEADERS_MAX`].
    pub headers_max: usize,
    pub header_bytes_max: usize,
    /// For the head of a request; also how long a kept connection may be idle.
    pub header_timeout: Duration,
}

impl From<&config::Limits> for Limits {
    fn from(limits: &config::Limits) -> Self {
        Self {
            connections_max: limits.connections_max,
            headers_max: limits.headers_max,
            header_bytes_max: limits.header_bytes_max,
            header_timeout: Duration::from_secs(limits.header_timeout_s),
        }
    }
}

/// Listens on an address; port 0 takes a free one.
///
/// # Errors
/// The address cannot be had.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart need not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves a router until the stop, as a task that the process cannot live without. `server` names it in metrics.
pub fn run(server: &'static str, listener: TcpListener, limits: Limits, router: axum::Router, shutdown: &Shutdown) {
    run_with(server, listener, limits, routed(router), shutdown);
}

/// Serves what `service` makes for each peer until the stop, as a task that the process cannot live without.
pub fn run_with<M, S, B>(server: &'static str, listener: TcpListener, limits: Limits, service: M, shutdown: &Shutdown)
where
    M: Fn(SocketAddr) -> S + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Default + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    shutdown.spawn(server, accept(server, listener, limits, service, shutdown.stopping_token()));
}

/// A router as a service for each peer.
pub(crate) fn routed(router: axum::Router) -> impl Fn(SocketAddr) -> TowerToHyperService<axum::Router> {
    move |_peer| TowerToHyperService::new(router.clone())
}

/// Accepts until the stop, then lets the connections finish.
pub(crate) async fn accept<M, S, B>(
    server: &'static str,
    listener: TcpListener,
    limits: Limits,
    service: M,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    M: Fn(SocketAddr) -> S + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Default + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(READ_BUFFER_BYTES_MAX.max(limits.header_bytes_max));
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    let mut open = |stream: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit| {
        while connections.try_join_next().is_some() {}
        let service = guarded(server, limits.headers_max, service(peer));
        // A token of its own: its lock is shared with nobody, and is taken at every wake of the connection.
        connections.spawn(serve_connection(server, http.clone(), stream, service, stop.child_token(), slot));
    };
    loop {
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot?,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => open(stream, peer, slot),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(server, %error, "connections cannot be accepted");
                let _ = tokio::time::timeout(ACCEPT_PAUSE, stop.cancelled()).await;
            }
        }
    }
    // Whoever is connected already, and only not accepted yet, is served too: closing the listener would reset them.
    let waiting = listener.into_std()?;
    while let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
        let Ok((stream, peer)) = waiting.accept() else { break };
        stream.set_nonblocking(true)?;
        open(TcpStream::from_std(stream)?, peer, slot);
    }
    drop(waiting);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_MAX, all_ended).await.is_err() {
        tracing::warn!(server, connections = connections.len(), "connections did not finish in time and are cut");
        connections.shutdown().await;
    }
    Ok(())
}

/// The client went away between its handshake and our accept: the next one may be well.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

async fn serve_connection<S, B>(
    server: &'static str,
    http: http1::Builder,
    stream: TcpStream,
    service: S,
    stop: CancellationToken,
    slot: OwnedSemaphorePermit,
) where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _counted = Counted::new(metrics::gauge!(HTTP_CONNECTIONS, SERVER => server));
    // Without these a connection works all the same, only slower, or for longer.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));

    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        // The connection first, without a draw at every wake.
        biased;
        ended = &mut connection => ended,
        () = last_call(&stop) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    let refusal = ended.err().and_then(|error| refusal(&error, !parts.read_buf.is_empty()));
    if let Some(reason) = refusal {
        refused(server, reason);
    }
    // The client may be gone; then there is nobody to be polite to.
    let _ = tokio::time::timeout(LINGER, linger(&mut stream, refusal == Some(SLOW_HEAD))).await;
    drop(slot);
}

/// Resolves when the stop has begun and what was on its way then has come.
async fn last_call(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_CALL).await;
}

/// Why HTTP ended a connection, as a metric label: a closed set. `None` where the client did, or was merely idle.
fn refusal(error: &hyper::Error, head_began: bool) -> Option<&'static str> {
    if error.is_timeout() {
        head_began.then_some(SLOW_HEAD)
    } else if error.is_parse_too_large() {
        Some(HEAD_TOO_LARGE)
    } else {
        error.is_parse().then_some("malformed_head")
    }
}

fn refused(server: &'static str, reason: &'static str) {
    metrics::counter!(HTTP_REFUSALS_TOTAL, SERVER => server, REASON => reason).increment(1);
    tracing::debug!(server, reason, "http.refused");
}

/// Ends a connection so that its last answer arrives.
async fn linger(stream: &mut TcpStream, head_timed_out: bool) -> io::Result<()> {
    if head_timed_out {
        stream.write_all(HEAD_TIMED_OUT).await?;
    }
    stream.shutdown().await?;
    let mut discarded = [0; 4096];
    while stream.read(&mut discarded).await? > 0 {}
    Ok(())
}

/// The service with what holds for every server: not too many headers, and no panic that takes its connection along.
fn guarded<S, B>(
    server: &'static str,
    headers_max: usize,
    service: S,
) -> impl HttpService<Incoming, ResBody = B, Error = Infallible, Future: Send> + Send
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send,
    S::Future: Send,
    B: Body + Default + Send,
{
    service_fn(move |request: Request<Incoming>| {
        let call = (request.headers().len() <= headers_max).then(|| service.call(request));
        async move {
            Ok::<_, Infallible>(match call {
                None => {
                    refused(server, HEAD_TOO_LARGE);
                    closing(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                }
                Some(call) => match AssertUnwindSafe(call).catch_unwind().await {
                    Ok(Ok(response)) => response,
                    Err(_) => {
                        metrics::counter!(HTTP_PANICS_TOTAL, SERVER => server).increment(1);
                        closing(StatusCode::SERVICE_UNAVAILABLE)
                    }
                },
            })
        }
    })
}

/// An empty answer, after which the connection is closed.
fn closing<B: Default>(status: StatusCode) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// One more in a gauge, for as long as it lives.
pub struct Counted(metrics::Gauge);

impl Counted {
    #[must_use]
    pub fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
