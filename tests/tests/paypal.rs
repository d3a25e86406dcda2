//! PayPal end to end: its signature proves nothing about a body, so nothing that a body says changes an order.

use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{http_client, temporary_folder};
use paybell_tests::shop::{Shop, TOKEN, configuration};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

const PAYMENT: &str = "5O190127TN364715T";
const CAPTURE: &str = "42311647XV020574X";
/// A test that hangs fails here; nothing is measured by it.
const PATIENCE: Duration = Duration::from_mins(1);

/// The vector of this id.
fn vector(id: &str) -> Value {
    let text = include_str!("../../shared/src/psp/fixtures/vectors.json");
    let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
    vectors.into_iter().find(|vector| vector["id"] == id).unwrap()
}

fn body(vector: &Value) -> Vec<u8> {
    STANDARD.decode(vector["body_base64"].as_str().unwrap()).unwrap()
}

/// What PayPal knows: one order, whose status and captures the test says, and the certificate.
struct PayPal {
    certificate: String,
    order: Mutex<(&'static str, Value)>,
    asked: Mutex<usize>,
}

impl PayPal {
    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }

    fn says(&self, status: &'static str, captures: Value) {
        *self.order.lock().unwrap() = (status, captures);
    }

    fn router(self: &Arc<Self>) -> Router {
        let token = || async { Json(json!({ "access_token": "t", "token_type": "Bearer", "expires_in": 32_400 })) };
        Router::new()
            .route("/v1/oauth2/token", post(token))
            .route(
                "/v1/notifications/certs/{id}",
                get(|State(paypal): State<Arc<Self>>| async move { paypal.certificate.clone() }),
            )
            .route("/v1/customer/disputes", get(|| async { Json(json!({ "items": [] })) }))
            .route("/v2/checkout/orders/{id}", get(order))
            .with_state(Arc::clone(self))
    }
}

async fn order(State(paypal): State<Arc<PayPal>>, Path(id): Path<String>) -> Response {
    *paypal.asked.lock().unwrap() += 1;
    if id != PAYMENT {
        return StatusCode::NOT_FOUND.into_response();
    }
    let (status, captures) = paypal.order.lock().unwrap().clone();
    let units = json!([{ "custom_id": "ORD-1001", "payments": { "captures": captures } }]);
    Json(json!({ "id": PAYMENT, "status": status, "purchase_units": units })).into_response()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: waited in vain");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_forged_to_the_same_checksum_changes_no_order() {
    // Both have the same signature, and it holds for both; the one says 49.99 EUR for ORD-1001, the other 0.01 for ORD-9999.
    let (forgery, genuine) = (vector("paypal-crc32-collision-forgery"), vector("paypal-transmission-id-changed"));
    let paypal = Arc::new(PayPal {
        certificate: forgery["cert_pem"].as_str().unwrap().to_owned(),
        order: Mutex::new(("APPROVED", json!([]))),
        asked: Mutex::default(),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("http://{}", listener.local_addr().unwrap());
    let _server = AbortOnDropHandle::new(tokio::spawn(axum::serve(listener, paypal.router()).into_future()));

    let folder = temporary_folder("paypal").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let account = format!(
        "[[psp]]\nid = \"paypal\"\nmode = \"test\"\nwebhook_id = {}\nclient_id = \"c\"\napi_key = \"k\"\napi_url = \"{host}\"\n\
         trusted_root = '''{}'''\n",
        forgery["webhook_id"],
        forgery["trusted_root_pem"].as_str().unwrap(),
    );
    let serve = Service::serve(&(configuration(&file("queue.db"), &file("store.db"), "memory:") + &account)).await;
    let (shop, http) = (Shop::of(&serve, &serve), http_client());
    let registration = json!({ "psp": "paypal", "payment_id": PAYMENT, "amount": 4999, "currency": "EUR" });
    let put = http.put(format!("{}/v1/orders/ORD-1001", serve.api_url())).bearer_auth(TOKEN).json(&registration);
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);

    // Anyone who has seen the headers of one delivery.
    let send = async |body: Vec<u8>| {
        let mut request = http.post(format!("{}/webhooks/paypal", serve.webhooks_url())).body(body);
        for (name, value) in forgery["headers"].as_object().unwrap() {
            let place = format!("{host}/v1/notifications/certs/CERT-1");
            let value = if name == "PAYPAL-CERT-URL" { &place } else { value.as_str().unwrap() };
            request = request.header(name, value);
        }
        request.send().await.unwrap().status()
    };
    let stands = async |status: &str, captured: i64| {
        let (_, order) = shop.get("/v1/orders/ORD-1001").await;
        assert_eq!((&order["status"], &order["captured"]), (&json!(status), &json!(captured)), "{order}");
        assert_eq!(shop.get("/v1/orders/ORD-9999").await.0, StatusCode::NOT_FOUND);
    };

    assert_eq!(send(body(&forgery)).await, StatusCode::SERVICE_UNAVAILABLE, "the certificate is not here yet");
    until("the certificate", async || send(body(&forgery)).await == StatusCode::OK).await;
    until("the question that it causes", async || paypal.asked() > 0).await;
    until("the answer", async || shop.get("/v1/balance").await.1["events"] != json!([])).await;
    stands("pending", 0).await;

    // Now it is paid, and the forged webhook is as good a hint as PayPal's own: what it says is not read.
    paypal.says(
        "COMPLETED",
        json!([{ "id": CAPTURE, "status": "COMPLETED", "amount": { "currency_code": "EUR", "value": "49.99" } }]),
    );
    assert_eq!(send(body(&forgery)).await, StatusCode::OK);
    shop.until("ORD-1001", "paid").await;
    stands("paid", 4999).await;
    let asked = paypal.asked();
    assert_eq!(send(body(&genuine)).await, StatusCode::OK);
    until("the question about the genuine one", async || paypal.asked() > asked).await;
    stands("paid", 4999).await;

    // What is no body of this checksum is nobody's.
    let other = String::from_utf8(body(&forgery)).unwrap().replace("0.01", "0.02");
    assert_eq!(send(other.into_bytes()).await, StatusCode::UNAUTHORIZED);
    std::fs::remove_dir_all(folder).unwrap();
}
