//! A PSP that lies by script: each request is answered as the script says, by the test's clock, and noted with its time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use paybell_shared::clock::{Clock, Timestamp};
use paybell_worker::transport::{PspTransport, TransportError};
use serde_json::{Value, json};

use crate::scene::http_date;

/// One request, as the script sees it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Among all, from 0.
    pub number: usize,
    pub at: Timestamp,
    pub path: String,
    pub query: String,
    /// `Authorization`, as far as it is text.
    pub authorization: String,
}

impl Question {
    /// The last part of the path: of most PSPs' APIs the object's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// What the PSP does.
#[derive(Clone, Debug)]
pub enum Line {
    Says(Value),
    /// A status, and `Retry-After`.
    Refuses(u16, Option<String>),
    /// No answer, ever.
    Silence,
}

/// What the PSP does with each question.
type Script = Box<dyn FnMut(&Question) -> Line + Send>;

/// The PSP, in place of HTTP.
pub struct Liar {
    clock: Arc<dyn Clock>,
    script: Mutex<Script>,
    asked: Mutex<Vec<Question>>,
}

impl Liar {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, script: impl FnMut(&Question) -> Line + Send + 'static) -> Arc<Self> {
        Arc::new(Self { clock, script: Mutex::new(Box::new(script)), asked: Mutex::default() })
    }

    /// From now on it does this.
    ///
    /// # Panics
    /// The script before it panicked.
    pub fn turns_to(&self, script: impl FnMut(&Question) -> Line + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// All requests so far, in order.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }

    /// The most requests that fell into any time of this length, both ends included.
    #[must_use]
    pub fn most_within(&self, length: Duration) -> usize {
        let times: Vec<Timestamp> = self.asked().iter().map(|question| question.at).collect();
        let within =
            |(first, at): (usize, &Timestamp)| times[first..].iter().take_while(|later| **later <= at.plus(length)).count();
        times.iter().enumerate().map(within).max().unwrap_or_default()
    }
}

#[async_trait]
impl PspTransport for Liar {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let mut question = Question {
            number: 0,
            at: self.clock.now(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            authorization: authorization.unwrap_or_default().to_owned(),
        };
        {
            let mut asked = self.asked.lock().unwrap();
            question.number = asked.len();
            asked.push(question.clone());
        }
        let line = (self.script.lock().unwrap())(&question);
        // As a network does: whoever asks at the same time has asked by now, too.
        tokio::task::yield_now().await;
        let response = Response::builder().header(header::DATE, http_date(self.clock.now()));
        let response = match line {
            Line::Says(body) => response.body(body.to_string().into()),
            Line::Refuses(status, retry_after) => {
                let response = response.status(StatusCode::from_u16(status).unwrap());
                let response = match retry_after {
                    Some(retry_after) => response.header(header::RETRY_AFTER, retry_after),
                    None => response,
                };
                response.body(Bytes::from_static(b"{}"))
            }
            Line::Silence => std::future::pending().await,
        };
        Ok(response.unwrap())
    }
}

/// A payment intent of Stripe's, open.
#[must_use]
pub fn open_intent(id: &str) -> Value {
    json!({ "id": id, "object": "payment_intent", "status": "processing", "livemode": false })
}

/// A payment intent that is paid; its lists of refunds and disputes are asked for next.
#[must_use]
pub fn paid_intent(id: &str, amount: i64) -> Value {
    json!({ "id": id, "object": "payment_intent", "status": "succeeded", "livemode": false, "currency": "eur", "amount": amount,
        "amount_received": amount, "amount_capturable": 0, "latest_charge": format!("ch_of_{id}") })
}

/// A page of a list of Stripe's.
#[must_use]
pub fn page(items: &[Value], has_more: bool) -> Value {
    json!({ "object": "list", "has_more": has_more, "data": items })
}
