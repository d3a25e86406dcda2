//! Sends webhooks over HTTP as a PSP does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use paybell_shared::clock::Clock;
use reqwest::StatusCode;
use url::Url;

use super::dialect::{Dialect, Forgery, Settings, SignError, SignedCall, Webhook};

/// How long a webhook may take in all, as PSPs have it (Standard Webhooks: 15 to 30 s).
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is shown to a person; more of it is not read.
const ANSWER_BYTES_MAX: usize = 2_048;

/// Sends the webhooks of one account.
#[derive(Clone)]
pub struct Sender {
    http: reqwest::Client,
    dialect: &'static dyn Dialect,
    url: String,
    settings: Arc<Settings>,
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

/// None of them names the URL, whose path may hold a token.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("{0}")]
    Sign(#[from] SignError),
    #[error("the connection could not be made")]
    Connect(#[source] reqwest::Error),
    #[error("no answer within {} s", SEND_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the connection broke before the answer was there")]
    Broken(#[source] reqwest::Error),
    #[error("the address cannot be used")]
    Address,
}

impl Sender {
    /// `url` is the webhook's, without the token that may follow.
    #[must_use]
    pub fn new(
        http: reqwest::Client,
        dialect: &'static dyn Dialect,
        url: String,
        settings: Arc<Settings>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { http, dialect, url, settings, clock }
    }

    /// Sends once, freshly signed.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, webhook: &Webhook) -> Result<Answered, SendError> {
        let call = self.dialect.sign(&self.settings, webhook, self.clock.now().seconds())?;
        self.post(call).await
    }

    /// Sends once as somebody who is not the PSP; `None`: with this PSP, nobody could tell.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn forge(&self, webhook: &Webhook, forgery: Forgery) -> Result<Option<Answered>, SendError> {
        match self.dialect.forge(&self.settings, webhook, forgery, self.clock.now().seconds())? {
            Some(call) => self.post(call).await.map(Some),
            None => Ok(None),
        }
    }

    /// Sends until a 2xx, waiting so long each time; freshly signed each time. Says how often it was sent, too.
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

    async fn post(&self, call: SignedCall) -> Result<Answered, SendError> {
        let mut url = Url::parse(&self.url).map_err(|_| SendError::Address)?;
        if let Some(token) = &call.token {
            url.path_segments_mut().map_err(|()| SendError::Address)?.pop_if_empty().push(token);
        }
        let request = self.http.post(url).body(call.body);
        let request = call.headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let started = Instant::now();
        let mut response = request.send().await.map_err(send_error)?;
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
        SendError::Address
    } else if error.is_connect() {
        SendError::Connect(error.without_url())
    } else if error.is_timeout() {
        SendError::TimedOut
    } else {
        SendError::Broken(error.without_url())
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
