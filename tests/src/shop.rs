//! A shop and its PSP, as tests play them against running services: sends signed webhooks, registers orders, asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::{Dialect as _, Settings, Situation, Webhook};
use paybell_shared::clock::{Clock, SystemClock};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::servers::http_client;
use crate::servers::process::Service;

pub const STRIPE_SECRET: &str = "whsec_of_the_tests_only";
pub const TOKEN: &str = "token-of-the-tests-only";
/// How long an order may take to get where it must. Not a promise about speed: a bound on a test that would hang.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
const ASK_EVERY: Duration = Duration::from_millis(50);

static SALT: AtomicU64 = AtomicU64::new(1);

/// A configuration with one Stripe account, over these backends.
#[must_use]
pub fn configuration(queue: &str, store: &str, seen: &str) -> String {
    format!(
        "[queue]\nurl = {queue:?}\n[store]\nurl = {store:?}\n[seen]\nurl = {seen:?}\n[api]\ntoken = {TOKEN:?}\n\
         [[psp]]\nid = \"stripe\"\nmode = \"test\"\nsecrets = [{STRIPE_SECRET:?}]\n"
    )
}

/// A webhook of Stripe's about an order over 49.99 EUR, with an id of its own.
///
/// # Panics
/// Stripe has no such event.
#[must_use]
pub fn webhook(event_type: &str, order_id: &str) -> Webhook {
    let situation = Situation {
        order_id,
        amount: 4999,
        currency: "EUR",
        part: None,
        ending: None,
        live: false,
        at: SystemClock.now().seconds(),
        salt: SALT.fetch_add(1, Ordering::Relaxed),
    };
    Stripe.staged(event_type, &situation).unwrap_or_else(|| panic!("Stripe has no event {event_type}"))
}

/// Talks to running services.
#[derive(Clone)]
pub struct Shop {
    http: Client,
    webhooks: Arc<str>,
    api: Arc<str>,
}

impl Shop {
    /// `ingress` and `worker` may be the same process.
    #[must_use]
    pub fn of(ingress: &Service, worker: &Service) -> Self {
        Self::at(&ingress.webhooks_url(), &worker.api_url())
    }

    /// By the URLs of ingress and internal API, without a path.
    #[must_use]
    pub fn at(webhooks: &str, api: &str) -> Self {
        Self { http: http_client(), webhooks: webhooks.into(), api: api.into() }
    }

    /// Sends a webhook, signed now; `None` if there was no answer.
    pub async fn send(&self, webhook: &Webhook) -> Option<StatusCode> {
        self.send_signed(webhook, STRIPE_SECRET, SystemClock.now().seconds(), webhook.body.clone()).await
    }

    /// Sends a webhook with the signature of another secret, time or body.
    ///
    /// # Panics
    /// The secret cannot sign.
    pub async fn send_signed(&self, webhook: &Webhook, secret: &str, at: i64, body: Bytes) -> Option<StatusCode> {
        let mut request = self.http.post(format!("{}/webhooks/stripe", self.webhooks)).body(body);
        let settings = Settings { secret: secret.to_owned(), ..Settings::default() };
        for (name, value) in Stripe.sign(&settings, webhook, at).expect("a Stripe secret signs").headers {
            request = request.header(name, value);
        }
        Some(request.send().await.ok()?.status())
    }

    /// Registers an order over an amount in EUR.
    ///
    /// # Panics
    /// No answer.
    pub async fn register(&self, order_id: &str, amount: i64) -> (StatusCode, Value) {
        let body = json!({ "psp": "stripe", "amount": amount, "currency": "EUR" });
        let request = self.http.put(format!("{}/v1/orders/{order_id}", self.api)).bearer_auth(TOKEN).json(&body);
        let answer = request.send().await.expect("the API answers");
        (answer.status(), answer.json().await.expect("the API answers in JSON"))
    }

    /// # Panics
    /// No answer.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.http.get(format!("{}{path}", self.api)).bearer_auth(TOKEN).send().await.expect("the API answers");
        (answer.status(), answer.json().await.expect("the API answers in JSON"))
    }

    /// Waits until the order stands so.
    ///
    /// # Panics
    /// It does not come to that.
    pub async fn until(&self, order_id: &str, status: &str) -> Value {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let (_, order) = self.get(&format!("/v1/orders/{order_id}")).await;
            if order["status"] == status {
                return order;
            }
            assert!(Instant::now() < deadline, "the order {order_id} is not {status}: {order}");
            sleep(ASK_EVERY).await;
        }
    }

    /// Waits until the books count so many events of an outcome.
    ///
    /// # Panics
    /// It does not come to that.
    pub async fn until_counted(&self, outcome: &str, count: i64) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let (_, balance) = self.get("/v1/balance").await;
            let counted = balance["events"].as_array().into_iter().flatten().filter(|line| line["outcome"] == outcome);
            let sum: i64 = counted.filter_map(|line| line["count"].as_i64()).sum();
            if sum >= count {
                assert_eq!(sum, count, "more events are {outcome} than there were: {balance}");
                return;
            }
            assert!(Instant::now() < deadline, "{count} events should be {outcome}: {balance}");
            sleep(ASK_EVERY).await;
        }
    }
}
