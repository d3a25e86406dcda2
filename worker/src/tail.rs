//! The end of the stream of changes, read once for all clients of this process.
//!
//! [`run`] reads what was committed since it last looked and hands it to everybody who has joined; it reads only while there
//! is somebody. A client first reads the past itself, joins, reads once more, and then takes what the tail hands out: what
//! was committed before the last of these reads it has read, and what was committed later comes after it has joined.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use paybell_shared::clock::Timestamp;
use paybell_shared::shutdown::Shutdown;
use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::api::Order;
use crate::consume::Context;
use crate::store::{Position, Positioned, StoreError};

/// Between looks for changes: doubled from the shortest, after there were some, to the longest.
const LOOK_MIN: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// After the database did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Changes read at once: usually less than 200 KB.
pub const PAGE: u32 = 128;
/// Pages that a client may be behind before it is let go, to resume by the last id that it has: some seconds. At the most
/// 16,384 changes, held once for all clients.
pub const PAGES_KEPT: usize = 128;
/// How long a client waits until the tail is being read. More than a look at a database that answers.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// One change as clients get it.
#[derive(Debug)]
pub struct Told {
    pub position: Position,
    pub order_id: String,
    /// The event in the form of `text/event-stream`.
    pub frame: Bytes,
}

/// Where a client of the stream stands, as the id of an event: any process of the same database understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    /// The first 32 bits of the database's epoch: one chance in four thousand million to take one history for another.
    epoch: u32,
    pub position: Position,
    /// When all changes up to the position had happened.
    pub at: Timestamp,
}

impl StreamId {
    #[must_use]
    pub fn new(epoch: Uuid, position: Position, at: Timestamp) -> Self {
        Self { epoch: epoch.as_fields().0, position, at }
    }

    /// It is of this history of the database.
    #[must_use]
    pub fn is_of(&self, epoch: Uuid) -> bool {
        self.epoch == epoch.as_fields().0
    }

    /// Reads what [`Display`](std::fmt::Display) wrote; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut number = |digits_max: usize| {
            let part = parts.next()?;
            let is_hex = !part.is_empty() && part.len() <= digits_max && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_hex { u64::from_str_radix(part, 16).ok() } else { None }
        };
        let (epoch, xid, place, at) = (number(8)?, number(16)?, number(16)?, number(16)?);
        let (place, at) = (i64::try_from(place).ok()?, i64::try_from(at).ok()?);
        let id = Self { epoch: u32::try_from(epoch).ok()?, position: Position { xid, place }, at: Timestamp::from_millis(at) };
        parts.next().is_none().then_some(id)
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch, position, at } = self;
        // Neither is ever negative: identities begin at 1, and no worker's clock stands before 1970.
        let (place, at) = (position.place.max(0), at.millis().max(0));
        write!(f, "{epoch:08x}-{:x}-{place:x}-{at:x}", position.xid)
    }
}

impl Told {
    /// A change with its id, `event: order.<status>`, and the order as `GET` shows it, on one line.
    #[must_use]
    pub fn of(positioned: Positioned, epoch: Uuid) -> Self {
        let Positioned { position, change } = positioned;
        let (order_id, status, at) = (change.order.id.clone(), change.order.view.status.as_str(), change.order.updated_at);
        let id = StreamId::new(epoch, position, at);
        let data = json(&Order::from(change.order));
        Self { position, order_id, frame: Bytes::from(format!("id: {id}\nevent: order.{status}\ndata: {data}\n\n")) }
    }
}

fn json(value: &impl Serialize) -> String {
    // Numbers, texts and lists of these: nothing of an order can fail to be JSON, and JSON escapes line breaks.
    serde_json::to_string(value).unwrap_or_default()
}

/// What one look found. Handed out as a whole: one wake of each client, however much there is.
pub type Page = Arc<Vec<Told>>;

/// Hands out changes to whoever has joined.
#[derive(Debug)]
pub struct Tail {
    pages: broadcast::Sender<Page>,
    /// What is committed from now on will be handed out. Whoever joins holds it while it subscribes, and it is taken back only
    /// while nobody is subscribed, so nobody joins a tail that has just ended.
    is_read: watch::Sender<bool>,
    joined: Notify,
}

impl Tail {
    /// With room for so many pages that a client has not taken yet, usually [`PAGES_KEPT`].
    #[must_use]
    pub fn new(pages_kept: usize) -> Self {
        Self { pages: broadcast::Sender::new(pages_kept), is_read: watch::Sender::new(false), joined: Notify::new() }
    }

    /// All changes that are committed after this returns, and some from before; `None` if the database cannot be read now.
    pub async fn join(&self) -> Option<broadcast::Receiver<Page>> {
        let mut is_read = self.is_read.subscribe();
        let pages = {
            let _held = is_read.borrow();
            self.pages.subscribe()
        };
        self.joined.notify_one();
        timeout(JOIN_MAX, is_read.wait_for(|is_read| *is_read)).await.ok()?.ok()?;
        Some(pages)
    }

    /// Nobody has joined; if so, whoever joins next waits for [`Tail::begins`].
    fn ends(&self) -> bool {
        self.is_read.send_if_modified(|is_read| {
            let ends = *is_read && self.pages.receiver_count() == 0;
            *is_read &= !ends;
            ends
        })
    }

    fn begins(&self) {
        self.is_read.send_replace(true);
    }
}

/// Reads the tail until the stop, while somebody has joined.
///
/// # Errors
/// None: a database that is away is waited for.
pub async fn run(context: Arc<Context>, tail: Arc<Tail>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.stopping() => return Ok(()),
            () = tail.joined.notified() => {}
        }
        tokio::select! {
            () = shutdown.stopping() => return Ok(()),
            () = follow(&context, &tail) => {}
        }
    }
}

/// Reads from now on, until nobody is there any more.
async fn follow(context: &Context, tail: &Tail) {
    let mut answers = true;
    let mut position = loop {
        match context.store.position().await {
            Ok(position) => break position,
            Err(error) => away(&mut answers, error).await,
        }
        if tail.pages.receiver_count() == 0 {
            return;
        }
    };
    tail.begins();
    let mut pause = LOOK_MIN;
    while !tail.ends() {
        match context.store.changes_after(None, position, PAGE).await {
            Ok(changes) => {
                answers = true;
                let count = changes.len();
                if let Some(last) = changes.last() {
                    position = last.position;
                    let page = changes.into_iter().map(|change| Told::of(change, context.epoch)).collect();
                    // Nobody may be there any more; then this is the last round.
                    let _ = tail.pages.send(Arc::new(page));
                }
                if count < PAGE as usize {
                    pause = if count > 0 { LOOK_MIN } else { (pause * 2).min(LOOK_MAX) };
                    sleep(pause).await;
                }
            }
            Err(error) => away(&mut answers, error).await,
        }
    }
}

/// Says once that the database is away, and waits.
async fn away(answers: &mut bool, error: StoreError) {
    if std::mem::replace(answers, false) {
        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the stream of changes pauses");
    }
    sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_is_read_as_it_was_written(epoch: u128, xid: u64, place in 0..i64::MAX, at in 0..i64::MAX) {
            let epoch = Uuid::from_u128(epoch);
            let id = StreamId::new(epoch, Position { xid, place }, Timestamp::from_millis(at));
            prop_assert_eq!(StreamId::parse(&id.to_string()), Some(id));
            prop_assert!(id.is_of(epoch) && !id.is_of(Uuid::from_u128(!epoch.as_u128())));
        }

        #[test]
        fn nothing_else_is_an_id(text in "[0-9a-f-]{0,8}|\\PC*") {
            if let Some(id) = StreamId::parse(&text) {
                prop_assert_eq!(text.split('-').count(), 4, "{} is no id, and was read as {}", &text, id);
            }
        }
    }

    #[test]
    fn a_number_too_many_or_too_large_is_no_id() {
        let id = "12345678-1-2-3";
        assert!(StreamId::parse(id).is_some());
        for wrong in [
            "",
            "-",
            "---",
            "12345678-1-2",
            "12345678-1-2-3-4",
            "123456789-1-2-3",
            "12345678-1-8000000000000000-3",
            "12345678-+1-2-3",
        ] {
            assert_eq!(StreamId::parse(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn who_joins_an_ended_tail_waits_for_the_next() {
        let tail = Arc::new(Tail::new(PAGES_KEPT));
        tail.begins();
        let one = tail.join().await.unwrap();
        assert!(!tail.ends(), "somebody is there");
        drop(one);
        assert!(tail.ends());
        let waiting = tokio::spawn({
            let tail = Arc::clone(&tail);
            async move { tail.join().await.is_some() }
        });
        tail.joined.notified().await;
        assert!(!waiting.is_finished());
        tail.begins();
        assert!(waiting.await.unwrap());
    }
}
