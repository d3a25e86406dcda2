//! A client of server-sent events, as the WHATWG's HTML has them (section 9.2).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

/// How long an event may take. Not a promise about speed: a bound on a test that would hang.
const EVENT_LIMIT: Duration = Duration::from_secs(30);

/// An event that was dispatched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub name: String,
    pub data: String,
}

/// The body of an answer, read as events.
pub struct Events {
    body: axum::body::Body,
    unread: String,
    /// What the client would resume by.
    pub last_id: String,
    /// Comments so far.
    pub comments: usize,
}

impl Events {
    #[must_use]
    pub fn of(body: axum::body::Body) -> Self {
        Self { body, unread: String::new(), last_id: String::new(), comments: 0 }
    }

    /// The next event; `None` at the end.
    ///
    /// # Panics
    /// Nothing comes for half a minute, or what comes is no event stream.
    pub async fn next(&mut self) -> Option<Event> {
        // Of the event: comments in between do not count.
        let deadline = Instant::now() + EVENT_LIMIT;
        loop {
            while let Some(end) = self.unread.find("\n\n") {
                let block: String = self.unread.drain(..end + 2).collect();
                if let Some(event) = self.read(&block) {
                    return Some(event);
                }
            }
            let bytes = timeout_at(deadline, self.bytes()).await.expect("nothing is told")?;
            self.unread.push_str(std::str::from_utf8(&bytes).expect("an event is UTF-8"));
        }
    }

    /// Reads until a comment comes, without an event.
    ///
    /// # Panics
    /// As [`Events::next`], or the stream ends.
    pub async fn commented(&mut self) {
        let deadline = Instant::now() + EVENT_LIMIT;
        let comments = self.comments;
        while self.comments == comments {
            let bytes = timeout_at(deadline, self.bytes()).await.expect("nothing is told").expect("the stream has ended");
            self.unread.push_str(std::str::from_utf8(&bytes).expect("an event is UTF-8"));
            if let Some(end) = self.unread.find("\n\n") {
                let block: String = self.unread.drain(..end + 2).collect();
                assert_eq!(self.read(&block), None, "an event, and no comment");
            }
        }
    }

    async fn bytes(&mut self) -> Option<Bytes> {
        // A connection that was cut is an end too.
        self.body.frame().await?.ok()?.into_data().ok()
    }

    fn read(&mut self, block: &str) -> Option<Event> {
        let (mut name, mut data) = (String::new(), Vec::new());
        for line in block.lines() {
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
                Some(("", _)) => self.comments += 1,
                Some(("id", id)) => id.clone_into(&mut self.last_id),
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => data.push(value.to_owned()),
                _ => assert!(line.is_empty(), "{line:?} is of no event stream"),
            }
        }
        (!data.is_empty()).then(|| Event { name, data: data.join("\n") })
    }
}

impl Event {
    /// Its data.
    ///
    /// # Panics
    /// It is not JSON.
    #[must_use]
    pub fn order(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).expect("the data is JSON")
    }
}
