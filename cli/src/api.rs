//! A client of the internal API: what the order service of a shop would write.

use std::time::Duration;

use paybell_shared::event::EventKey;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The API answers from its database; what takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A page of a replay is one transaction; a check, or a page of a PSP's list, asks a PSP. The API gives up after 30 s: this is
/// above it.
const LONG_TIMEOUT: Duration = Duration::from_secs(45);
/// A path segment keeps only what RFC 3986 calls unreserved.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The internal API of a running Paybell.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// The body of a registration; amounts in minor units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    pub psp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    pub amount: i64,
    pub currency: String,
}

/// What of an order is read here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Order {
    pub id: String,
    pub status: String,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
}

/// One page of orders.
#[derive(Debug, Deserialize)]
pub struct OrderPage {
    pub items: Vec<Order>,
    pub next_cursor: Option<String>,
}

/// One page of a timeline.
#[derive(Debug, Deserialize)]
pub struct TimelinePage {
    pub items: Vec<Value>,
    pub next_cursor: Option<String>,
}

/// One page of the operator's list.
#[derive(Debug, Deserialize)]
pub struct UnsettledPage {
    pub items: Vec<Value>,
    pub next_cursor: Option<String>,
}

/// One page of dead letters.
#[derive(Debug, Deserialize)]
pub struct LetterPage {
    pub items: Vec<Value>,
    pub next_cursor: Option<String>,
}

/// One page of a replay.
#[derive(Debug, Deserialize)]
pub struct ReplayPage {
    pub items: Vec<Value>,
    pub next_cursor: Option<String>,
    pub totals: Value,
}

/// One page of a PSP's list.
#[derive(Debug, Deserialize)]
pub struct SweepPage {
    pub totals: SweepTotals,
    pub window: SweepWindow,
    pub next_cursor: Option<String>,
    pub retry_after_s: Option<u64>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct SweepTotals {
    pub events: u64,
    pub new: u64,
    pub known: u64,
    pub hints: u64,
    pub quarantined: u64,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct SweepWindow {
    pub since: String,
    pub until: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the internal API at {url} cannot be reached")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the internal API answered {status}: {detail}")]
    Refused { status: StatusCode, detail: String },
    #[error("the internal API's answer is not understood")]
    Unintelligible(#[source] serde_json::Error),
}

impl Api {
    #[must_use]
    pub fn new(http: reqwest::Client, url: &str, token: &str) -> Self {
        Self { http, url: url.trim_end_matches('/').to_owned(), token: token.to_owned() }
    }

    /// Registers an order's payment; repeating it changes nothing.
    ///
    /// # Errors
    /// No answer, or a refusal with its problem's words.
    pub async fn register(&self, order_id: &str, registration: &Registration) -> Result<(), ApiError> {
        let path = format!("/v1/orders/{}", utf8_percent_encode(order_id, SEGMENT));
        let body = serde_json::to_value(registration).map_err(ApiError::Unintelligible)?;
        self.ask(Method::PUT, &path, Some(body)).await.map(drop)
    }

    /// An order; `None`: not known, or not registered yet.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn order(&self, order_id: &str) -> Result<Option<Order>, ApiError> {
        let path = format!("/v1/orders/{}", utf8_percent_encode(order_id, SEGMENT));
        match self.ask(Method::GET, &path, None).await {
            Ok(order) => serde_json::from_value(order).map(Some).map_err(ApiError::Unintelligible),
            Err(ApiError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One page of all orders.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn orders(&self, cursor: Option<&str>, limit: usize) -> Result<OrderPage, ApiError> {
        let cursor = cursor.map(|cursor| format!("&cursor={}", utf8_percent_encode(cursor, SEGMENT))).unwrap_or_default();
        let page = self.ask(Method::GET, &format!("/v1/orders?limit={limit}{cursor}"), None).await?;
        serde_json::from_value(page).map_err(ApiError::Unintelligible)
    }

    /// An order as it is told, whole.
    ///
    /// # Errors
    /// As [`Api::register`]; that there is none is a refusal too.
    pub async fn order_as_told(&self, order_id: &str) -> Result<Option<Value>, ApiError> {
        self.ask(Method::GET, &format!("/v1/orders/{}", utf8_percent_encode(order_id, SEGMENT)), None).await.map(Some)
    }

    /// One page of an order's timeline.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn timeline(&self, order_id: &str, cursor: Option<&str>, limit: u32) -> Result<TimelinePage, ApiError> {
        let id = utf8_percent_encode(order_id, SEGMENT);
        let cursor = cursor.map(|cursor| format!("&cursor={}", utf8_percent_encode(cursor, SEGMENT))).unwrap_or_default();
        let page = self.ask(Method::GET, &format!("/v1/orders/{id}/timeline?limit={limit}{cursor}"), None).await?;
        serde_json::from_value(page).map_err(ApiError::Unintelligible)
    }

    /// An event as it is told, whole.
    ///
    /// # Errors
    /// As [`Api::register`]; that there is none is a refusal too.
    pub async fn event(&self, key: &EventKey) -> Result<Option<Value>, ApiError> {
        let parts = [&*key.psp, &*key.account, &*key.event_id].map(|part| utf8_percent_encode(part, SEGMENT).to_string());
        self.ask(Method::GET, &format!("/v1/events/{}", parts.join("/")), None).await.map(Some)
    }

    /// The books.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn balance(&self) -> Result<Value, ApiError> {
        self.ask(Method::GET, "/v1/balance", None).await
    }

    /// How complete webhooks are, of the payments that were decided since then; a week, if absent.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn completeness(&self, since: Option<&str>) -> Result<Value, ApiError> {
        let since = since.map(|since| format!("?since={}", utf8_percent_encode(since, SEGMENT))).unwrap_or_default();
        self.ask(Method::GET, &format!("/v1/completeness{since}"), None).await
    }

    /// One page of the open orders that will not be settled by themselves.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn unsettled(&self, reason: Option<&str>, cursor: Option<&str>, limit: u32) -> Result<UnsettledPage, ApiError> {
        let more = [("reason", reason), ("cursor", cursor)]
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| format!("&{name}={}", utf8_percent_encode(value, SEGMENT))));
        let page = self.ask(Method::GET, &format!("/v1/unsettled?limit={limit}{}", more.collect::<String>()), None).await?;
        serde_json::from_value(page).map_err(ApiError::Unintelligible)
    }

    /// Replays one page of webhooks, or says what that would change.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn replay(&self, request: &Value) -> Result<ReplayPage, ApiError> {
        let page = self.ask_within(LONG_TIMEOUT, Method::POST, "/v1/replays", Some(request.clone())).await?;
        serde_json::from_value(page).map_err(ApiError::Unintelligible)
    }

    /// What was seen of every account's endpoint last.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn endpoints(&self) -> Result<Vec<Value>, ApiError> {
        let page = self.ask(Method::GET, "/v1/endpoints", None).await?;
        Ok(page["items"].as_array().cloned().unwrap_or_default())
    }

    /// Has the worker look at an account's endpoint now.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn check_endpoint(&self, psp: &str, account: &str) -> Result<Value, ApiError> {
        let [psp, account] = [psp, account].map(|part| utf8_percent_encode(part, SEGMENT).to_string());
        self.ask_within(LONG_TIMEOUT, Method::POST, &format!("/v1/endpoints/{psp}/{account}/check"), None).await
    }

    /// Has one page of a PSP's list read again.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn sweep(&self, request: &Value) -> Result<SweepPage, ApiError> {
        let page = self.ask_within(LONG_TIMEOUT, Method::POST, "/v1/sweeps", Some(request.clone())).await?;
        serde_json::from_value(page).map_err(ApiError::Unintelligible)
    }

    /// One page of the dead letters that wait.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn dead_letters(&self, cursor: Option<&str>, limit: u32) -> Result<LetterPage, ApiError> {
        let cursor = cursor.map_or_else(String::new, |cursor| format!("&cursor={}", utf8_percent_encode(cursor, SEGMENT)));
        let page = self.ask(Method::GET, &format!("/v1/dead-letters?limit={limit}{cursor}"), None).await?;
        serde_json::from_value(page).map_err(ApiError::Unintelligible)
    }

    /// A dead letter, decided on or not.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn dead_letter(&self, id: &str) -> Result<Value, ApiError> {
        self.ask(Method::GET, &letter_path(id, ""), None).await
    }

    /// Has a dead letter tried again.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn replay_dead_letter(&self, id: &str) -> Result<Value, ApiError> {
        self.ask_within(LONG_TIMEOUT, Method::POST, &letter_path(id, "/replay"), None).await
    }

    /// Discards a dead letter.
    ///
    /// # Errors
    /// As [`Api::register`].
    pub async fn discard_dead_letter(&self, id: &str, reason: &str) -> Result<Value, ApiError> {
        self.ask(Method::POST, &letter_path(id, "/discard"), Some(serde_json::json!({ "reason": reason }))).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, ApiError> {
        self.ask_within(TIMEOUT, method, path, body).await
    }

    async fn ask_within(&self, timeout: Duration, method: Method, path: &str, body: Option<Value>) -> Result<Value, ApiError> {
        let unreachable = |source| ApiError::Unreachable { url: self.url.clone(), source };
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token).timeout(timeout);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        if !status.is_success() {
            // `application/problem+json` says it in `detail` or, shorter, in `title`.
            let problem: Value = serde_json::from_str(&text).unwrap_or_default();
            let detail = problem["detail"].as_str().or_else(|| problem["title"].as_str()).unwrap_or("(no detail)").to_owned();
            return Err(ApiError::Refused { status, detail });
        }
        if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).map_err(ApiError::Unintelligible) }
    }
}

fn letter_path(id: &str, rest: &str) -> String {
    format!("/v1/dead-letters/{}{rest}", utf8_percent_encode(id, SEGMENT))
}
