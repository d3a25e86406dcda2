//! Changes of orders as they are committed, as server-sent events (WHATWG HTML, section 9.2).
//!
//! A client catches up from the database, page by page, then follows the [`Tail`]. Each event's id says where the stream goes
//! on after it, at any worker. A client that takes too long is let go, and so is everybody at the stop: both resume.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use paybell_shared::serve::Counted;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{STREAM_CLIENTS, STREAM_EVENTS_TOTAL};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use utoipa::IntoParams;

use super::problem::Problem;
use crate::consume::Context;
use crate::store::{Position, StoreError};
use crate::tail::{PAGE, Page, StreamId, Tail, Told};

/// Clients that may read the past at once: the connections to the database are there for the consumers first.
const CATCHING_UP_MAX: usize = 2;
/// Silence after which a comment shows client and proxies that the stream lives: below the 30 s of impatient ones.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Keeps nginx from collecting events before it passes them on.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What all streams of this process share.
pub(super) struct Streams {
    tail: Arc<Tail>,
    clients: Arc<Semaphore>,
    catching_up: Semaphore,
    kept: Duration,
    shutdown: Shutdown,
}

impl Streams {
    pub fn new(tail: Arc<Tail>, clients_max: usize, kept: Duration, shutdown: Shutdown) -> Self {
        let clients = Arc::new(Semaphore::new(clients_max));
        Self { tail, clients, catching_up: Semaphore::new(CATCHING_UP_MAX), kept, shutdown }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// The id of the last event that the client has, where it cannot set the header `Last-Event-ID`, which stands above.
    last_event_id: Option<String>,
}

/// Every change of an order, as server-sent events.
///
/// Begins with the order as it is, or behind the event that `Last-Event-ID` names. Each event is called `order.<status>`; its
/// data is the order as `GET /v1/orders/{id}` shows it.
#[utoipa::path(
    get, path = "/v1/orders/{id}/stream", tag = "stream",
    params(
        ("id" = String, Path, description = "The shop's order id, percent-encoded", min_length = 1, max_length = 255),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client has"),
        StreamQuery,
    ),
    responses(
        (status = 200, description = "Events until the client or the server ends", body = String, content_type = "text/event-stream"),
        (status = 400, description = "The id of the event is none that was given out", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such order", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The event is too old, or of a database that was restored: begin anew, without an id", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available, or there are too many clients", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stream_order(
    Extension(context): Extension<Arc<Context>>,
    Extension(streams): Extension<Arc<Streams>>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<StreamQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let last = last_event_id(&headers, query)?.map(|id| resumed(&context, &streams, id)).transpose()?;
    let place = Place::take(&streams)?;
    let latest = context.store.latest_change(&id).await?;
    let latest = latest.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such order"))?;
    let (position, first) = if let Some(position) = last {
        (position, None)
    } else {
        count(1);
        (latest.position, Some(Told::of(latest, context.epoch).frame))
    };
    Ok(answer(Client::new(context, streams, place, Some(id), position, first)))
}

/// Every change of every order, as server-sent events.
///
/// Begins now, or behind the event that `Last-Event-ID` names. Each event is called `order.<status>`; its data is the order as
/// `GET /v1/orders/{id}` shows it. An order's changes come in the order of its versions.
#[utoipa::path(
    get, path = "/v1/stream", tag = "stream",
    params(
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client has"),
        StreamQuery,
    ),
    responses(
        (status = 200, description = "Events until the client or the server ends", body = String, content_type = "text/event-stream"),
        (status = 400, description = "The id of the event is none that was given out", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The event is too old, or of a database that was restored: begin anew, without an id", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available, or there are too many clients", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stream_all(
    Extension(context): Extension<Arc<Context>>,
    Extension(streams): Extension<Arc<Streams>>,
    query: Result<Query<StreamQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last = last_event_id(&headers, query)?.map(|id| resumed(&context, &streams, id)).transpose()?;
    let place = Place::take(&streams)?;
    let (position, first) = if let Some(position) = last {
        (position, None)
    } else {
        // Told at once where it begins, so that a client that loses its connection before the first event misses nothing.
        let now = context.clock.now();
        let position = context.store.position().await?;
        (position, Some(silence(StreamId::new(context.epoch, position, now))))
    };
    Ok(answer(Client::new(context, streams, place, None, position, first)))
}

/// The header stands above the query: a browser repeats the query of the first request with the header of the last event.
fn last_event_id(headers: &HeaderMap, query: Result<Query<StreamQuery>, QueryRejection>) -> Result<Option<StreamId>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(StreamQuery { last_event_id }) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let unknown = || bad("Last-Event-ID: is not the id of an event of this stream".to_owned());
    let header = headers.get(LAST_EVENT_ID).map(|value| value.to_str().map_err(|_| unknown())).transpose()?;
    let given = [header, last_event_id.as_deref()].into_iter().flatten().find(|id| !id.is_empty());
    given.map(|id| StreamId::parse(id).ok_or_else(unknown)).transpose()
}

/// Where the stream goes on, unless what came after the id may be gone.
fn resumed(context: &Context, streams: &Streams, id: StreamId) -> Result<Position, Problem> {
    let gone = |detail: &str| Err(Problem::new(StatusCode::GONE, detail));
    if !id.is_of(context.epoch) {
        return gone("the event is of another history: the database was restored; read the orders, and begin without an id");
    }
    if id.at < context.clock.now().minus(streams.kept) {
        return gone("the event is older than [retention] stream_days; read the orders, and begin without an id");
    }
    Ok(id.position)
}

/// A client's place among those that are served at once.
struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Place {
    fn take(streams: &Streams) -> Result<Self, Problem> {
        let full =
            |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open here: try another worker, or later");
        let permit = Arc::clone(&streams.clients).try_acquire_owned().map_err(full)?;
        Ok(Self { _permit: permit, _counted: Counted::new(metrics::gauge!(STREAM_CLIENTS)) })
    }
}

fn answer(client: Client) -> Response {
    let frames = stream::unfold(client, |mut client| async {
        let frame = client.next().await?;
        Some((Ok::<_, Infallible>(frame), client))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

/// A comment that also says where the client stands: the id counts, nothing else is told.
fn silence(id: StreamId) -> Bytes {
    Bytes::from(format!(":\nid: {id}\n\n"))
}

/// One client's stream.
struct Client {
    context: Arc<Context>,
    streams: Arc<Streams>,
    _place: Place,
    /// `None`: all orders.
    order_id: Option<String>,
    /// Of what was taken last.
    position: Position,
    ready: VecDeque<Bytes>,
    /// When it last got something.
    told_at: Instant,
    phase: Phase,
}

enum Phase {
    CatchingUp,
    /// Joined: what is read once more from the database, and what the tail hands out, meet.
    Joining(Receiver<Page>),
    Following(Receiver<Page>),
}

impl Client {
    fn new(
        context: Arc<Context>,
        streams: Arc<Streams>,
        place: Place,
        order_id: Option<String>,
        position: Position,
        first: Option<Bytes>,
    ) -> Self {
        let ready = first.into_iter().collect();
        Self { context, streams, _place: place, order_id, position, ready, told_at: Instant::now(), phase: Phase::CatchingUp }
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let streams = Arc::clone(&self.streams);
        tokio::select! {
            biased;
            () = streams.shutdown.stopping() => None,
            frame = self.frame() => frame,
        }
    }

    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.told_at = Instant::now();
                return Some(frame);
            }
            match &mut self.phase {
                Phase::CatchingUp => {
                    if self.is_at_the_end().await? {
                        self.phase = Phase::Joining(self.streams.tail.join().await?);
                    }
                }
                Phase::Joining(_) => {
                    if self.is_at_the_end().await?
                        && let Phase::Joining(pages) = std::mem::replace(&mut self.phase, Phase::CatchingUp)
                    {
                        self.phase = Phase::Following(pages);
                    }
                }
                Phase::Following(pages) => tokio::select! {
                    page = pages.recv() => {
                        // Lagged: let go. Closed: the process ends.
                        let page = page.ok()?;
                        self.take(&page);
                    }
                    () = sleep_until(self.told_at + KEEP_ALIVE) => {
                        let now = self.context.clock.now();
                        self.ready.push_back(silence(StreamId::new(self.context.epoch, self.position, now)));
                    }
                },
            }
        }
    }

    /// What of a page is news to this client.
    fn take(&mut self, page: &[Told]) {
        for told in page {
            if told.position > self.position && self.order_id.as_ref().is_none_or(|id| *id == told.order_id) {
                self.position = told.position;
                self.ready.push_back(told.frame.clone());
                count(1);
            }
        }
    }

    /// Reads a page; whether there is no more. `None`: the database is away.
    async fn is_at_the_end(&mut self) -> Option<bool> {
        let page = {
            // Never closed, so that a permit always comes.
            let _permit = self.streams.catching_up.acquire().await;
            self.context.store.changes_after(self.order_id.as_deref(), self.position, PAGE).await
        };
        let page = page.map_err(|error: StoreError| {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(error, "a stream ends: what came before cannot be read");
        });
        let page = page.ok()?;
        let is_last = page.len() < PAGE as usize;
        count(page.len() as u64);
        for change in page {
            self.position = change.position;
            self.ready.push_back(Told::of(change, self.context.epoch).frame);
        }
        Some(is_last)
    }
}

fn count(events: u64) {
    metrics::counter!(STREAM_EVENTS_TOTAL).increment(events);
}
