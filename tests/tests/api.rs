//! The internal API over HTTP: a worker in this process, on `SQLite` and on a `PostgreSQL` that goes away.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::SystemClock;
use paybell_shared::queue::{self, Queue};
use paybell_shared::shutdown::Shutdown;
use paybell_tests::servers::{Postgres, free_port, http_client, temporary_folder};
use paybell_tests::shop::{STRIPE_SECRET, Shop, TOKEN, configuration, webhook};
use paybell_tests::worker::{config, message};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const READER: &str = "token-that-may-only-read";
const OPERATOR: &str = "token-that-may-only-operate";

/// A worker with its API, and the queue that it consumes.
struct Api {
    url: String,
    queue: Queue,
    shutdown: Shutdown,
    folder: PathBuf,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.shutdown.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Starts a worker on `SQLite`, or on the store of this URL.
async fn start(store: Option<&str>, consume: bool) -> Api {
    let folder = temporary_folder("api").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let store = store.map_or_else(|| file("store.db"), str::to_owned);
    let text = configuration(&file("queue.db"), &store, "memory:")
        + &format!("[[psp]]\nid = \"stripe\"\naccount = \"second\"\nmode = \"test\"\nsecrets = [{STRIPE_SECRET:?}]\n")
        + &format!("[[api.tokens]]\nname = \"reader\"\nsecret = {READER:?}\nscopes = [\"read\"]\n")
        + &format!("[[api.tokens]]\nname = \"operator\"\nsecret = {OPERATOR:?}\nscopes = [\"operate\"]\n");
    let mut config = config(&text);
    config.api.listen.set_port(0);
    config.worker.consume = consume;
    let queue = queue::connect(config.queue_settings("tests")).await.unwrap();
    let shutdown = Shutdown::new();
    let started = paybell_worker::start(&config, &queue, Arc::new(SystemClock), &shutdown).await.unwrap();
    Api { url: format!("http://{}", started.api), queue, shutdown, folder }
}

impl Api {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        http_client().request(method, format!("{}{path}", self.url))
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).bearer_auth(TOKEN).send().await.unwrap()
    }

    async fn put(&self, path: &str, body: &Value) -> Response {
        self.request(Method::PUT, path).bearer_auth(TOKEN).json(body).send().await.unwrap()
    }

    /// Registers an order, which is not refused.
    async fn register(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.put(path, body).await;
        let status = answer.status();
        assert!(status.is_success(), "{path} {body}: {status} {:?}", answer.text().await);
        (status, answer.json().await.unwrap())
    }
}

/// A payment over 49.99 EUR with these fields set.
fn payment(fields: Value) -> Value {
    let mut payment = json!({ "psp": "stripe", "amount": 4999, "currency": "EUR" });
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    payment.as_object_mut().unwrap().extend(fields);
    payment
}

/// An error as all are: `application/problem+json` with four members, and nothing of the inside. Returns its detail.
async fn problem(answer: Response, status: StatusCode) -> String {
    assert_eq!(answer.status(), status, "{:?}", answer.text().await);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert_eq!(answer.headers().get("retry-after").is_some(), status == StatusCode::SERVICE_UNAVAILABLE);
    let problem: Value = answer.json().await.unwrap();
    let members: Vec<&str> = problem.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["detail", "status", "title", "type"]);
    assert_eq!(problem["status"], status.as_u16());
    let detail = problem["detail"].as_str().unwrap();
    for inside in ["sqlx", "SQL", "sqlite", "postgres", "SELECT", "axum", "paybell_", "src/", "panicked", TOKEN, READER] {
        assert!(!detail.contains(inside), "{detail}");
    }
    detail.to_owned()
}

#[tokio::test]
async fn only_a_token_opens_it() {
    let api = start(None, false).await;
    for path in ["/v1/orders", "/v1/orders/o", "/v1/balance", "/v1/openapi.json", "/v1/nothing", "/"] {
        let offers = ["", "Bearer", "Bearer ", "Bearer wrong", &format!("Basic {TOKEN}"), TOKEN, &format!("Bearer {TOKEN}x")];
        for offered in offers {
            let answer = api.request(Method::GET, path).header("authorization", offered).send().await.unwrap();
            assert_eq!(answer.headers()["www-authenticate"], "Bearer", "{offered:?}");
            problem(answer, StatusCode::UNAUTHORIZED).await;
        }
        let answer = api.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        problem(answer, StatusCode::UNAUTHORIZED).await;
    }
    let lower_case = format!("bearer {TOKEN}");
    let answer = api.request(Method::GET, "/v1/orders").header("authorization", lower_case).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_does_what_its_scopes_say() {
    let api = start(None, false).await;
    let put = |token: &str| api.request(Method::PUT, "/v1/orders/o").bearer_auth(token).json(&payment(json!({}))).send();
    let get = |token: &str| api.request(Method::GET, "/v1/orders/o").bearer_auth(token).send();
    assert!(problem(put(READER).await.unwrap(), StatusCode::FORBIDDEN).await.contains("operate"));
    problem(get(READER).await.unwrap(), StatusCode::NOT_FOUND).await;
    assert_eq!(put(OPERATOR).await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(get(READER).await.unwrap().status(), StatusCode::OK);
    assert!(problem(get(OPERATOR).await.unwrap(), StatusCode::FORBIDDEN).await.contains("read"));
}

#[tokio::test]
async fn what_is_no_request_of_its_is_refused() {
    let api = start(None, false).await;
    for path in ["/", "/v1", "/v1/nothing", "/v1/orders/", "/v1/orders/a/b", "/v2/orders"] {
        problem(api.get(path).await, StatusCode::NOT_FOUND).await;
    }
    problem(api.get("/v1/orders/unheard-of").await, StatusCode::NOT_FOUND).await;
    for (method, path, allowed) in [
        (Method::DELETE, "/v1/orders/o", "GET"),
        (Method::POST, "/v1/orders/o", "PUT"),
        (Method::POST, "/v1/orders", "GET"),
        (Method::PUT, "/v1/balance", "GET"),
        (Method::POST, "/v1/openapi.json", "GET"),
    ] {
        let answer = api.request(method, path).bearer_auth(TOKEN).send().await.unwrap();
        assert!(answer.headers()["allow"].to_str().unwrap().contains(allowed));
        problem(answer, StatusCode::METHOD_NOT_ALLOWED).await;
    }
    let put = |content_type: &str, body: String| {
        let request = api.request(Method::PUT, "/v1/orders/o").bearer_auth(TOKEN).header("content-type", content_type);
        request.body(body).send()
    };
    let good = payment(json!({})).to_string();
    for content_type in ["", "text/plain", "application/x-www-form-urlencoded"] {
        problem(put(content_type, good.clone()).await.unwrap(), StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
    }
    for malformed in ["", "{", "{]", "{\"psp\":\"stripe\",}", "nonsense", &format!("{good}{good}"), "\u{feff}{}"] {
        problem(put("application/json", malformed.to_owned()).await.unwrap(), StatusCode::BAD_REQUEST).await;
    }
    let large = payment(json!({ "payment_id": "x".repeat(64 * 1024) })).to_string();
    problem(put("application/json", large).await.unwrap(), StatusCode::PAYLOAD_TOO_LARGE).await;
    problem(api.get("/v1/orders/%ff").await, StatusCode::BAD_REQUEST).await;
    problem(api.put("/v1/orders/%ff", &payment(json!({}))).await, StatusCode::BAD_REQUEST).await;
    assert_eq!(put("application/json; charset=utf-8", good).await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn an_impossible_field_is_named() {
    let api = start(None, false).await;
    let fields = [
        (json!({ "amount": 0 }), "amount"),
        (json!({ "amount": -1 }), "amount"),
        (json!({ "amount": 49.99 }), "amount"),
        (json!({ "amount": "4999" }), "amount"),
        (json!({ "amount": null }), "amount"),
        (json!({ "amount": 1_000_000_000_000_001_i64 }), "amount"),
        (json!({ "amount": u64::MAX }), "amount"),
        (json!({ "amount": 1e30 }), "amount"),
        (json!({ "currency": "" }), "currency"),
        (json!({ "currency": "EURO" }), "currency"),
        (json!({ "currency": "E1R" }), "currency"),
        (json!({ "currency": "€UR" }), "currency"),
        (json!({ "currency": 978 }), "currency"),
        (json!({ "expires_at": "tomorrow" }), "expires_at"),
        (json!({ "expires_at": "2026-02-30T00:00:00Z" }), "expires_at"),
        (json!({ "expires_at": "2026-09-21T14:13:20" }), "expires_at"),
        (json!({ "expires_at": 1_790_000_000 }), "expires_at"),
        (json!({ "payment_id": "" }), "payment_id"),
        (json!({ "payment_id": "pi_\u{0}" }), "payment_id"),
        (json!({ "payment_id": "p".repeat(256) }), "payment_id"),
        (json!({ "psp": "unheard-of" }), "configured: stripe/default, stripe/second"),
        (json!({ "account": "third" }), "configured: stripe/default, stripe/second"),
        (json!({ "expected": 1 }), "expected"),
        (json!({ "Amount": 4999 }), "Amount"),
    ];
    for (field, named) in fields {
        let answer = api.put("/v1/orders/o", &payment(field.clone())).await;
        let detail = problem(answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert!(detail.contains(named), "{field}: {detail}");
    }
    // An array of the fields, in their places, is no object; neither is a field given twice one value.
    problem(api.put("/v1/orders/o", &json!(["stripe", null, null, 4999, "EUR", null])).await, StatusCode::UNPROCESSABLE_ENTITY)
        .await;
    let twice = r#"{ "psp": "stripe", "amount": 4999, "currency": "EUR", "amount": 1 }"#;
    let request = api.request(Method::PUT, "/v1/orders/o").bearer_auth(TOKEN).header("content-type", "application/json");
    let detail = problem(request.body(twice).send().await.unwrap(), StatusCode::UNPROCESSABLE_ENTITY).await;
    assert!(detail.contains("amount"), "{detail}");
    let detail = problem(api.put("/v1/orders/o", &json!({ "psp": "stripe" })).await, StatusCode::UNPROCESSABLE_ENTITY).await;
    assert!(detail.contains("amount"), "{detail}");
    for id in ["a%00b", "%0A", "%7F", "%C2%85", &"x".repeat(256), &"%C3%A9".repeat(128)] {
        let answer = api.put(&format!("/v1/orders/{id}"), &payment(json!({}))).await;
        let detail = problem(answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert!(detail.starts_with("id:"), "{id}: {detail}");
        problem(api.get(&format!("/v1/orders/{id}")).await, StatusCode::NOT_FOUND).await;
    }
    let orders: Value = api.get("/v1/orders").await.json().await.unwrap();
    assert_eq!(orders, json!({ "items": [], "next_cursor": null }), "nothing of all this was registered");
}

#[tokio::test]
async fn ids_come_back_as_they_were() {
    let api = start(None, false).await;
    let ids = [
        ("a%2Fb", "a/b"),
        ("a%20b", "a b"),
        ("%E2%98%83%C3%9C", "☃Ü"),
        ("a+b", "a+b"),
        ("%25", "%"),
        ("..%2F..", "../.."),
        ("%3Fstatus=paid%23", "?status=paid#"),
        (&"x".repeat(255), &"x".repeat(255)),
    ];
    for (encoded, id) in ids {
        let path = format!("/v1/orders/{encoded}");
        let (status, order) = api.register(&path, &payment(json!({}))).await;
        assert_eq!((status, &order["id"]), (StatusCode::CREATED, &json!(id)));
        assert_eq!(api.get(&path).await.json::<Value>().await.unwrap(), order);
    }
}

#[tokio::test]
async fn a_registration_is_repeated_extended_and_kept() {
    let api = start(None, false).await;
    let fields = json!({ "payment_id": "pi_1", "currency": "eur", "expires_at": "2026-12-01T00:00:00+01:00" });
    let (status, first) = api.register("/v1/orders/o", &payment(fields.clone())).await;
    assert_eq!((status, &first["status"], &first["version"]), (StatusCode::CREATED, &json!("pending"), &json!(1)));
    assert_eq!(first["expected"], json!({ "amount": 4999, "currency": "EUR" }));
    let (status, again) = api.register("/v1/orders/o", &payment(fields)).await;
    assert_eq!((status, &again), (StatusCode::OK, &first), "a repetition changes nothing");

    for other in [json!({ "amount": 5000 }), json!({ "currency": "USD" })] {
        let detail = problem(api.put("/v1/orders/o", &payment(other)).await, StatusCode::CONFLICT).await;
        assert!(detail.contains("49.99") || detail.contains("4999"), "what it is registered with: {detail}");
    }
    let taken = problem(api.put("/v1/orders/p", &payment(json!({ "payment_id": "pi_1" }))).await, StatusCode::CONFLICT).await;
    assert!(taken.contains('o'), "{taken}");
    problem(api.get("/v1/orders/p").await, StatusCode::NOT_FOUND).await;
    assert_eq!(api.get("/v1/orders/o").await.json::<Value>().await.unwrap(), first, "what was refused changed nothing");

    api.register("/v1/orders/o", &payment(json!({ "payment_id": "pi_2" }))).await;
    // The same id at another account is another payment.
    let (status, order) = api.register("/v1/orders/o", &payment(json!({ "account": "second", "payment_id": "pi_1" }))).await;
    assert_eq!(status, StatusCode::OK);
    let mut payments: Vec<_> = order["payments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|payment| format!("{}/{}", payment["account"], payment["payment_id"]))
        .collect();
    payments.sort();
    assert_eq!(payments, ["\"default\"/\"pi_1\"", "\"default\"/\"pi_2\"", "\"second\"/\"pi_1\""]);
}

#[tokio::test]
async fn a_new_expiry_replaces_the_old_one() {
    let api = start(None, false).await;
    let store = format!("sqlite:{}", api.folder.join("store.db").display());
    let pool = sqlx::SqlitePool::connect(&store).await.unwrap();
    let expires_at = async || {
        let registers: String = sqlx::query_scalar("SELECT registers FROM orders").fetch_one(&pool).await.unwrap();
        serde_json::from_str::<Value>(&registers).unwrap()["expires_at"].clone()
    };
    api.register("/v1/orders/o", &payment(json!({ "expires_at": "2026-12-01T00:00:00Z" }))).await;
    assert_eq!(expires_at().await, "2026-12-01T00:00:00Z");
    api.register("/v1/orders/o", &payment(json!({ "expires_at": "2026-11-30T12:00:00+02:00" }))).await;
    assert_eq!(expires_at().await, "2026-11-30T10:00:00Z");
    api.register("/v1/orders/o", &payment(json!({}))).await;
    assert_eq!(expires_at().await, "2026-11-30T10:00:00Z", "without one, the old one stays");
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_listed_to_the_end_and_the_books_count_them() {
    let api = start(None, true).await;
    let mut ids: Vec<String> = ["a b", "a/b", "ü", "☃", "%", "&cursor=x"].map(str::to_owned).into();
    ids.extend((0..17).map(|number| format!("order-{number}")));
    for id in &ids {
        let path = format!("/v1/orders/{}", url::form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>());
        api.register(&path.replace('+', "%20"), &payment(json!({}))).await;
    }
    ids.sort();
    for limit in [1, 5, 23, 24, 500] {
        let (mut listed, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let query = [("limit", Some(limit.to_string())), ("cursor", cursor)];
            let answer = api.request(Method::GET, "/v1/orders").bearer_auth(TOKEN).query(&query).send().await.unwrap();
            let page: Value = answer.json().await.unwrap();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit && (!items.is_empty() || listed.is_empty()));
            listed.extend(items.iter().map(|order| order["id"].as_str().unwrap().to_owned()));
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
            assert!(listed.len() <= ids.len(), "orders come again");
        }
        assert_eq!(listed, ids, "in pages of {limit}");
    }
    for query in ["limit=0", "limit=501", "limit=-1", "limit=x", "status=unheard-of", "cursor=%00", "page=2", "limit=1&limit=2"] {
        problem(api.get(&format!("/v1/orders?{query}")).await, StatusCode::BAD_REQUEST).await;
    }

    let account = config(&configuration("sqlite:q", "sqlite:s", "memory:")).accounts.remove(0).account;
    let publisher = api.queue.publisher(&api.shutdown);
    for id in ["order-3", "order-14"] {
        publisher.publish(message(&account, &webhook("payment_intent.succeeded", id))).await.unwrap();
    }
    let shop = Shop::at("", &api.url);
    shop.until("order-3", "paid").await;
    shop.until("order-14", "paid").await;
    let page: Value = api.get("/v1/orders?status=paid&limit=1").await.json().await.unwrap();
    assert_eq!((&page["items"][0]["id"], &page["next_cursor"]), (&json!("order-14"), &json!("order-14")));
    let page: Value = api.get("/v1/orders?status=paid&limit=1&cursor=order-14").await.json().await.unwrap();
    assert_eq!((&page["items"][0]["id"], &page["next_cursor"]), (&json!("order-3"), &json!(null)));
    let balance: Value = api.get("/v1/balance").await.json().await.unwrap();
    let events = json!([{ "psp": "stripe", "account": "default", "outcome": "applied", "count": 2 }]);
    let orders = json!([{ "status": "paid", "count": 2 }, { "status": "pending", "count": ids.len() - 2 }]);
    assert_eq!(balance, json!({ "events": events, "orders": orders }));
    let by_hour: Value = api.get("/v1/balance?by=hour").await.json().await.unwrap();
    assert_eq!((&by_hour["events"], &by_hour["orders"]), (&balance["events"], &balance["orders"]));
    let lines = by_hour["hours"].as_array().unwrap();
    // Two lines, if the hour ended between the two webhooks.
    assert_eq!(lines.iter().map(|line| line["count"].as_i64().unwrap()).sum::<i64>(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line["outcome"] == "applied" && line["psp"] == "stripe"), "{lines:?}");
    let before = "/v1/balance?by=hour&since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z";
    assert_eq!(api.get(before).await.json::<Value>().await.unwrap()["hours"], json!([]));
    for query in ["by=day", "by=hour&since=x", "since=2020-01-01T00:00:00Z", "by=hour&since=2020-01-01T00:00:00Z", "of=hour"] {
        problem(api.get(&format!("/v1/balance?{query}")).await, StatusCode::BAD_REQUEST).await;
    }
}

/// Holds when of issue C: the webhook comes before the order; with another amount than it tells, the order is under review.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_review_is_decided_by_one_who_may_and_says_why() {
    let api = start(None, true).await;
    let account = config(&configuration("sqlite:q", "sqlite:s", "memory:")).accounts.remove(0).account;
    let publisher = api.queue.publisher(&api.shutdown);
    let shop = Shop::at("", &api.url);
    for id in ["fits", "differs"] {
        publisher.publish(message(&account, &webhook("payment_intent.succeeded", id))).await.unwrap();
        shop.until(id, "paid").await;
    }
    let (status, order) = api.register("/v1/orders/fits", &payment(json!({}))).await;
    assert_eq!((status, &order["status"], &order["review"]), (StatusCode::OK, &json!("paid"), &json!(null)));
    let (_, order) = api.register("/v1/orders/differs", &payment(json!({ "amount": 4000 }))).await;
    assert_eq!((&order["status"], &order["review"]["reason"]), (&json!("under_review"), &json!("amount_mismatch")));
    assert_eq!(order["review"]["since"], order["updated_at"]);

    let review = |path: &str, token: &str, body: Value| {
        api.request(Method::POST, &format!("/v1/orders/{path}/review")).bearer_auth(token).json(&body).send()
    };
    let accept = || json!({ "decision": "accept", "reason": "the tip was agreed on" });
    problem(review("differs", READER, accept()).await.unwrap(), StatusCode::FORBIDDEN).await;
    problem(review("fits", TOKEN, accept()).await.unwrap(), StatusCode::CONFLICT).await;
    problem(review("unheard-of", TOKEN, accept()).await.unwrap(), StatusCode::NOT_FOUND).await;
    problem(review("a%00b", TOKEN, accept()).await.unwrap(), StatusCode::NOT_FOUND).await;
    for (body, named) in [
        (json!({ "decision": "accept" }), "reason"),
        (json!({ "decision": "accept", "reason": " " }), "reason"),
        (json!({ "decision": "accept", "reason": "x".repeat(1001) }), "reason"),
        (json!({ "decision": "perhaps", "reason": "x" }), "perhaps"),
        (json!({ "decision": "accept", "reason": "x", "amount": 1 }), "amount"),
        (json!(["accept", "x"]), "object"),
    ] {
        let answer = review("differs", OPERATOR, body).await.unwrap();
        let detail = problem(answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert!(detail.contains(named), "{detail}");
    }
    let decided: Value = review("differs", OPERATOR, accept()).await.unwrap().json().await.unwrap();
    assert_eq!((&decided["status"], &decided["review"], &decided["captured"]), (&json!("paid"), &json!(null), &json!(4999)));
    assert_eq!(api.get("/v1/orders/differs").await.json::<Value>().await.unwrap(), decided);
    problem(review("differs", OPERATOR, accept()).await.unwrap(), StatusCode::CONFLICT).await;
}

#[tokio::test]
async fn its_description_is_the_codes() {
    let api = start(None, false).await;
    let answer = api.request(Method::GET, "/v1/openapi.json").bearer_auth(READER).send().await.unwrap();
    let told: Value = answer.json().await.unwrap();
    assert_eq!(told, serde_json::to_value(paybell_worker::api::openapi()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consuming_it_only_answers() {
    let api = start(None, false).await;
    let account = config(&configuration("sqlite:q", "sqlite:s", "memory:")).accounts.remove(0).account;
    let publisher = api.queue.publisher(&Shutdown::new());
    publisher.publish(message(&account, &webhook("payment_intent.succeeded", "o"))).await.unwrap();
    let (_, order) = api.register("/v1/orders/o", &payment(json!({}))).await;
    assert_eq!(order["status"], "pending");
    api.shutdown.stop();
    assert!(api.shutdown.finish().await);
    // Nobody has touched it.
    let delivery = api.queue.consumer().next_batch(10, Duration::ZERO).await.unwrap().remove(0);
    assert_eq!((delivery.attempt, delivery.redelivered), (1, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_it_says_so() {
    let postgres = Postgres::start_private().await;
    let api = start(Some(&postgres.database().await), false).await;
    api.register("/v1/orders/o", &payment(json!({}))).await;
    postgres.kill9();
    for path in ["/v1/orders/o", "/v1/orders", "/v1/balance"] {
        problem(api.get(path).await, StatusCode::SERVICE_UNAVAILABLE).await;
    }
    problem(api.put("/v1/orders/o", &payment(json!({}))).await, StatusCode::SERVICE_UNAVAILABLE).await;
    postgres.start_again().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = api.get("/v1/orders/o").await;
        if answer.status() == StatusCode::OK {
            break;
        }
        problem(answer, StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(Instant::now() < deadline, "it does not come back with its database");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn before_the_database_is_there_it_says_so() {
    let nobody = format!("postgres://127.0.0.1:{}/paybell", free_port());
    let api = start(Some(&nobody), false).await;
    problem(api.get("/v1/orders/o").await, StatusCode::SERVICE_UNAVAILABLE).await;
    let answer = api.request(Method::GET, "/v1/orders/o").send().await.unwrap();
    problem(answer, StatusCode::UNAUTHORIZED).await;
}
