//! Simulated PSPs: they sign and send webhooks over real HTTP, and answer status questions from their own books.
//!
//! Part of the product, for `paybell demo` and `paybell send`: [`ledger`] (the truth) → [`stripe`] and
//! [`standard_webhooks`] (bodies and signatures) → [`Sender`] (HTTP, with retries); [`stripe_api`] answers what
//! reconciliation asks. The signatures are made by this module's own code: it shares test vectors with the adapters
//! that verify them, so that an error of one side cannot hide behind the same error of the other.

pub mod ledger;
pub mod standard_webhooks;
pub mod stripe;
pub mod stripe_api;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use paybell_shared::clock::Clock;
use reqwest::StatusCode;

pub use ledger::Event;

/// How long a webhook may take in all, as PSPs have it (Standard Webhooks: 15 to 30 s).
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is shown to a person; more of it is not read.
const ANSWER_BYTES_MAX: usize = 2_048;

/// The PSPs that can be simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimulatedPsp {
    Stripe,
    StandardWebhooks,
}

/// A webhook before its signature; each sending signs anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    pub id: String,
    pub event_type: String,
    pub body: Bytes,
}

impl From<&Event> for Webhook {
    fn from(event: &Event) -> Self {
        Self { id: event.id.clone(), event_type: event.event_type.to_owned(), body: event.body.clone() }
    }
}

/// The headers that a signed webhook carries.
pub type Headers = Vec<(&'static str, String)>;

impl SimulatedPsp {
    pub const ALL: [Self; 2] = [Self::Stripe, Self::StandardWebhooks];

    #[must_use]
    pub fn find(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|psp| psp.id() == id)
    }

    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::StandardWebhooks => "standard-webhooks",
        }
    }

    /// What it can send.
    #[must_use]
    pub const fn event_types(self) -> &'static [&'static str] {
        match self {
            Self::Stripe => &stripe::EVENT_TYPES,
            Self::StandardWebhooks => &standard_webhooks::EVENT_TYPES,
        }
    }

    /// A webhook about an order; `None`: the PSP has no such event.
    #[must_use]
    pub fn staged(self, event_type: &str, situation: &stripe::Situation<'_>) -> Option<Webhook> {
        match self {
            Self::Stripe => stripe::staged(event_type, situation),
            Self::StandardWebhooks => standard_webhooks::staged(event_type, situation),
        }
    }

    /// The headers of a webhook that is sent at `at` (Unix seconds).
    ///
    /// # Errors
    /// The secret cannot sign.
    pub fn sign(self, secret: &str, webhook: &Webhook, at: i64) -> Result<Headers, standard_webhooks::SignError> {
        Ok(match self {
            Self::Stripe => vec![
                ("content-type", "application/json; charset=utf-8".to_owned()),
                ("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)".to_owned()),
                ("stripe-signature", stripe::signature(secret, at, &webhook.body)),
            ],
            Self::StandardWebhooks => vec![
                ("content-type", "application/json".to_owned()),
                ("webhook-id", webhook.id.clone()),
                ("webhook-timestamp", at.to_string()),
                ("webhook-signature", standard_webhooks::signature(secret, &webhook.id, at, &webhook.body)?),
            ],
        })
    }
}

/// Sends webhooks as a PSP does.
#[derive(Clone)]
pub struct Sender {
    http: reqwest::Client,
    psp: SimulatedPsp,
    url: String,
    secret: String,
    clock: Arc<dyn Clock>,
}

/// How one sending ended.
#[derive(Clone, Debug)]
pub struct Answered {
    pub status: StatusCode,
    /// From the first byte sent to the last byte of the answer.
    pub took: Duration,
    /// The beginning of the answer's body.
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("{0}")]
    Sign(#[from] standard_webhooks::SignError),
    #[error("the connection could not be made")]
    Connect(#[source] reqwest::Error),
    #[error("no answer within {} s", SEND_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the connection broke before the answer was there")]
    Broken(#[source] reqwest::Error),
    #[error("the address cannot be used")]
    Address(#[source] reqwest::Error),
}

/// What is wrong with a forged webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forgery {
    /// Signed with a secret that is not ours.
    WrongSecret,
    /// One byte is another than the one that was signed.
    AlteredByte,
    /// A genuine signature, but of an hour ago.
    Stale,
}

/// How far a stale signature lies back: far beyond any tolerance that a configuration sets for comfort.
const STALE_S: i64 = 3_600;

impl Sender {
    #[must_use]
    pub fn new(http: reqwest::Client, psp: SimulatedPsp, url: String, secret: String, clock: Arc<dyn Clock>) -> Self {
        Self { http, psp, url, secret, clock }
    }

    /// Sends once, freshly signed.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, webhook: &Webhook) -> Result<Answered, SendError> {
        let headers = self.psp.sign(&self.secret, webhook, self.clock.now().seconds())?;
        self.post(headers, webhook.body.clone()).await
    }

    /// Sends once as somebody who is not the PSP.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn forge(&self, webhook: &Webhook, forgery: Forgery) -> Result<Answered, SendError> {
        let now = self.clock.now().seconds();
        let (headers, body) = match forgery {
            Forgery::WrongSecret => {
                (self.psp.sign("whsec_bm90LXRoZS1zZWNyZXQtb2YtdGhpcy1lbmRwb2ludC4u", webhook, now)?, webhook.body.clone())
            }
            Forgery::AlteredByte => {
                let headers = self.psp.sign(&self.secret, webhook, now)?;
                let mut body = webhook.body.to_vec();
                // The last digit of the body, so that it stays what the PSP might have sent.
                if let Some(digit) = body.iter_mut().rfind(|byte| byte.is_ascii_digit()) {
                    *digit = if *digit == b'9' { b'1' } else { b'9' };
                }
                (headers, body.into())
            }
            Forgery::Stale => (self.psp.sign(&self.secret, webhook, now - STALE_S)?, webhook.body.clone()),
        };
        self.post(headers, body).await
    }

    /// Sends until a 2xx, waiting longer each time, as PSPs do but in milliseconds; freshly signed each time.
    ///
    /// # Errors
    /// The last try had no answer.
    pub async fn deliver(&self, webhook: &Webhook, retries: &[Duration]) -> (Result<Answered, SendError>, u32) {
        let mut sent = 1;
        let mut result = self.send(webhook).await;
        for wait in retries {
            if result.as_ref().is_ok_and(|answered| answered.status.is_success()) {
                break;
            }
            tokio::time::sleep(*wait).await;
            sent += 1;
            result = self.send(webhook).await;
        }
        (result, sent)
    }

    async fn post(&self, headers: Headers, body: Bytes) -> Result<Answered, SendError> {
        let request = headers.into_iter().fold(self.http.post(&self.url), |request, (name, value)| request.header(name, value));
        let started = Instant::now();
        let mut response = request.body(body).send().await.map_err(send_error)?;
        let status = response.status();
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(send_error)? {
            text.extend_from_slice(&chunk);
            if text.len() > ANSWER_BYTES_MAX {
                text.truncate(ANSWER_BYTES_MAX);
                break;
            }
        }
        Ok(Answered { status, took: started.elapsed(), text: String::from_utf8_lossy(&text).trim().to_owned() })
    }
}

fn send_error(error: reqwest::Error) -> SendError {
    if error.is_builder() {
        SendError::Address(error)
    } else if error.is_connect() {
        SendError::Connect(error)
    } else if error.is_timeout() {
        SendError::TimedOut
    } else {
        SendError::Broken(error)
    }
}

/// A client with time-outs, for one machine's own talk: no proxies, no redirects (PSPs follow none).
///
/// # Errors
/// TLS cannot be set up.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    // Somebody else may have chosen a provider before; theirs serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(SEND_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}
