//! Webhooks that prove nothing: they make somebody look, and what is seen counts (design decision 10).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{http_client, temporary_folder};
use paybell_tests::shop::{Shop, configuration};
use serde_json::{Value, json};

const TOKEN_IN_PATH: &str = "a-token-of-the-tests-that-nobody-guesses";
const API_KEY: &str = "test_key_of_the_tests";

/// Mollie's API, as far as it is asked; what it knows is told to it by the test.
#[derive(Clone, Default)]
struct Mollie {
    payments: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Whose state was asked for, in order.
    asked: Arc<Mutex<Vec<String>>>,
    silent: Arc<Mutex<bool>>,
}

impl Mollie {
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v2/payments/{id}", get(payment)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    /// The payment of an order, of which so much is refunded; an amount in the form that Mollie writes.
    fn stands(&self, id: &str, order: &str, status: &str, amount: &str, refunded: Option<&str>) {
        let money = |value: &str| json!({ "currency": "EUR", "value": value });
        let refunds: Vec<Value> = refunded
            .iter()
            .map(|amount| {
                json!({
                    "resource": "refund", "id": "re_1", "mode": "test", "amount": money(amount), "status": "refunded",
                    "paymentId": id, "createdAt": "2026-09-22T09:00:00+00:00",
                })
            })
            .collect();
        let payment = json!({
            "resource": "payment", "id": id, "mode": "test", "status": status, "amount": money(amount),
            "amountRefunded": money(refunded.unwrap_or("0.00")), "amountRemaining": money(amount),
            "metadata": { "order_id": order }, "createdAt": "2026-09-21T13:30:00+00:00", "paidAt": "2026-09-21T13:33:09+00:00",
            "_embedded": { "refunds": refunds, "chargebacks": [], "captures": [] },
        });
        self.payments.lock().unwrap().insert(id.to_owned(), payment);
    }

    fn asked_about(&self, id: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == id).count()
    }
}

async fn payment(State(mollie): State<Mollie>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    assert_eq!(headers["authorization"], format!("Bearer {API_KEY}"));
    mollie.asked.lock().unwrap().push(id.clone());
    if *mollie.silent.lock().unwrap() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match mollie.payments.lock().unwrap().get(&id) {
        Some(payment) => Json(payment.clone()).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({ "status": 404, "title": "Not Found" }))).into_response(),
    }
}

/// Paybell in one process, with Mollie's classic webhooks.
struct House {
    serve: Service,
    shop: Shop,
    mollie: Mollie,
    folder: PathBuf,
}

impl House {
    async fn new() -> Self {
        let (folder, mollie) = (temporary_folder("hints").unwrap(), Mollie::default());
        let url = mollie.serve().await;
        let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
        let account = format!(
            "[[psp]]\nid = \"mollie\"\nmode = \"test\"\nscheme = \"mollie-classic-unsigned\"\nsecrets = [{TOKEN_IN_PATH:?}]\n\
             api_key = {API_KEY:?}\napi_url = {url:?}\n"
        );
        let serve = Service::serve(&(configuration(&file("queue.db"), &file("store.db"), "memory:") + &account)).await;
        let shop = Shop::of(&serve, &serve);
        Self { serve, shop, mollie, folder }
    }

    async fn hint(&self, body: &'static str) -> u16 {
        let url = format!("{}/webhooks/mollie/default/{TOKEN_IN_PATH}", self.serve.webhooks_url());
        let request = http_client().post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
        request.send().await.unwrap().status().as_u16()
    }

    fn end(self) {
        drop(self.serve);
        std::fs::remove_dir_all(self.folder).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hint_of_a_payment_is_as_good_as_the_first() {
    let house = House::new().await;
    let House { shop, mollie, .. } = &house;
    mollie.stands("tr_1", "ord-1", "paid", "49.99", None);
    assert_eq!(house.hint("id=tr_1").await, 200);
    assert_eq!(shop.until("ord-1", "paid").await["captured"], 4999);
    // The same bytes again, for another reason: nothing of them may be taken for a duplicate.
    mollie.stands("tr_1", "ord-1", "paid", "49.99", Some("10.00"));
    assert_eq!(house.hint("id=tr_1").await, 200);
    assert_eq!(shop.until("ord-1", "partially_refunded").await["refunded"], 1000);
    mollie.stands("tr_1", "ord-1", "paid", "49.99", Some("49.99"));
    assert_eq!(house.hint("id=tr_1").await, 200);
    assert_eq!(shop.until("ord-1", "refunded").await["refunded"], 4999);
    // What the answer to a hint tells, the webhook told.
    let (_, report) = shop.get("/v1/completeness").await;
    let mollie = report["accounts"].as_array().unwrap().iter().find(|line| line["psp"] == "mollie").unwrap();
    let told = ["payments", "by_webhook", "late", "missed", "pending"].map(|member| mollie[member].as_u64().unwrap());
    assert_eq!(told, [1, 1, 0, 0, 0], "{mollie:#}");
    assert!(mollie["last_webhook_at"].is_string(), "{mollie:#}");
    house.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_itself_changes_nothing() {
    let house = House::new().await;
    let House { shop, mollie, .. } = &house;
    *mollie.silent.lock().unwrap() = true;
    mollie.stands("tr_1", "ord-1", "paid", "49.99", None);
    for _ in 0..5 {
        assert_eq!(house.hint("id=tr_1").await, 200, "durable, whatever Mollie's API says");
    }
    // One that Mollie does not know.
    assert_eq!(house.hint("id=tr_2").await, 200);
    let asked = async {
        while mollie.asked_about("tr_1") == 0 || mollie.asked_about("tr_2") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), asked).await.expect("Mollie is asked about each");
    assert_eq!(shop.get("/v1/orders/ord-1").await.0, 404, "what Mollie did not say is not known");
    mollie.stands("tr_3", "ord-3", "open", "1.00", None);
    *mollie.silent.lock().unwrap() = false;
    assert_eq!(house.hint("id=tr_3").await, 200);
    assert_eq!(shop.until("ord-3", "pending").await["captured"], 0);
    assert_eq!(house.hint("id=tr_1").await, 200);
    assert_eq!(shop.until("ord-1", "paid").await["captured"], 4999);
    let (_, orders) = shop.get("/v1/orders").await;
    assert_eq!(orders["items"].as_array().unwrap().len(), 2, "{orders}");
    house.end();
}
