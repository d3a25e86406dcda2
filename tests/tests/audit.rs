//! `paybell audit`: a database with every kind of row balances, whatever happens to it meanwhile; and whichever row is
//! altered or gone is named.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use paybell_shared::event::{EventKey, PaymentEvent, PaymentState, Source};
use paybell_tests::conformance::store::{
    Bench, Database, FIRST_LOOK, HABITS, NOW, account, arrival, captured, ignored, refund, registration, row, state,
};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, free_port};
use paybell_worker::ids::Ids;
use paybell_worker::inbox::{Arrival, Body, Content, InboxRow};
use paybell_worker::order::Verdict;
use paybell_worker::store::{AuditReport, Expiry, Policy, Registration, Review, Scope, Store, StoreError, Work};

const TABLES: [&str; 13] = [
    "meta",
    "events",
    "bodies",
    "orders",
    "refs",
    "parkings",
    "transitions",
    "checks",
    "books",
    "outbox",
    "notices",
    "actions",
    "unasked",
];

#[tokio::test]
async fn sqlite_names_whatever_is_altered() {
    names_whatever_is_altered(&Bench::sqlite().await).await;
}

#[tokio::test]
async fn postgres_names_whatever_is_altered() {
    names_whatever_is_altered(&Bench::new(servers::postgres().await.database().await).await).await;
}

/// A statement that alters, and what must be said of it: the check, and a part of the key.
type Alteration = (&'static str, &'static str, &'static str);

const ALTERATIONS: &[Alteration] = &[
    // Events. One that is gone is missing from the books, and from its order.
    ("DELETE FROM events WHERE event_id = 'evt_1'", "books", "stripe/default 2026-09-21T14:00:00Z applied"),
    ("DELETE FROM events WHERE event_id = 'evt_answer'", "order", "order-1"),
    ("DELETE FROM events WHERE event_id = 'evt_2'", "books", "stripe/default 2026-09-21T14:00:00Z superseded"),
    ("DELETE FROM events WHERE event_id = 'evt_parked'", "books", "parked"),
    ("DELETE FROM events WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_parked"),
    ("DELETE FROM events WHERE event_id = 'evt_ignored'", "books", "ignored"),
    ("DELETE FROM events WHERE event_id = 'evt_ignored'", "body", "body "),
    ("DELETE FROM events WHERE event_id = 'evt_odd'", "books", "quarantined"),
    ("UPDATE events SET psp = 'adyen' WHERE event_id = 'evt_1'", "facts", "adyen/default/evt_1"),
    ("UPDATE events SET account = 'other' WHERE event_id = 'evt_1'", "facts", "stripe/other/evt_1"),
    ("UPDATE events SET account = 'other' WHERE event_id = 'evt_ignored'", "books", "stripe/other"),
    ("UPDATE events SET event_id = 'evt_x' WHERE event_id = 'evt_1'", "facts", "stripe/default/evt_x"),
    ("UPDATE events SET event_type = 'x' WHERE event_id = 'evt_1'", "facts", "stripe/default/evt_1"),
    ("UPDATE events SET source = 'reconciliation' WHERE event_id = 'evt_1'", "facts", "stripe/default/evt_1"),
    ("UPDATE events SET facts = {facts without money} WHERE event_id = 'evt_1'", "facts", "stripe/default/evt_1"),
    ("UPDATE events SET facts = {facts without money} WHERE event_id = 'evt_2'", "facts", "stripe/default/evt_2"),
    ("UPDATE events SET facts = {facts without money} WHERE event_id = 'evt_parked'", "facts", "stripe/default/evt_parked"),
    ("UPDATE events SET facts = '{}' WHERE event_id = 'evt_1'", "facts", "stripe/default/evt_1"),
    ("UPDATE events SET facts = NULL WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET facts = NULL WHERE event_id = 'evt_parked'", "outcome", "stripe/default/evt_parked"),
    ("UPDATE events SET foreign_mode = {true} WHERE event_id = 'evt_1'", "order", "order-1"),
    ("UPDATE events SET facts_sha256 = {hash} WHERE event_id = 'evt_1'", "facts", "stripe/default/evt_1"),
    ("UPDATE events SET facts_sha256 = {hash} WHERE event_id = 'evt_parked'", "facts", "stripe/default/evt_parked"),
    ("UPDATE events SET outcome = 'superseded' WHERE event_id = 'evt_1'", "books", "applied"),
    ("UPDATE events SET outcome = 'applied' WHERE event_id = 'evt_parked'", "outcome", "stripe/default/evt_parked"),
    ("UPDATE events SET outcome = 'ignored' WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET outcome = 'quarantined' WHERE event_id = 'evt_ignored'", "outcome", "stripe/default/evt_ignored"),
    ("UPDATE events SET outcome = 'lost' WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET reason = NULL WHERE event_id = 'evt_ignored'", "outcome", "stripe/default/evt_ignored"),
    ("UPDATE events SET reason = 'x' WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET fingerprint = NULL WHERE event_id = 'evt_odd'", "outcome", "stripe/default/evt_odd"),
    ("UPDATE events SET order_id = 'order-2' WHERE event_id = 'evt_1'", "names", "stripe/default/evt_1"),
    ("UPDATE events SET order_id = 'order-2' WHERE event_id = 'evt_1'", "order", "order-2"),
    ("UPDATE events SET order_id = 'ghost' WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET order_id = NULL WHERE event_id = 'evt_2'", "outcome", "stripe/default/evt_2"),
    ("UPDATE events SET order_id = 'order-1' WHERE event_id = 'evt_ignored'", "outcome", "stripe/default/evt_ignored"),
    ("UPDATE events SET body_id = {id} WHERE event_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE events SET body_id = NULL WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET received_at = received_at + {hour} WHERE event_id = 'evt_answer'", "books", "T15:00:00Z applied"),
    ("UPDATE events SET received_at = received_at + {hour} WHERE event_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE events SET taken_at = NULL WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET parked_at = NULL WHERE event_id = 'evt_parked'", "outcome", "stripe/default/evt_parked"),
    ("UPDATE events SET secret_name = NULL WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET secret_name = 'x' WHERE event_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE events SET order_version = NULL WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET order_version = 0 WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET order_version = 99 WHERE event_id = 'evt_1'", "outcome", "stripe/default/evt_1"),
    ("UPDATE events SET order_version = 1 WHERE event_id = 'evt_parked'", "outcome", "stripe/default/evt_parked"),
    // Bodies.
    ("DELETE FROM bodies WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("DELETE FROM bodies WHERE webhook_id = 'evt_ignored'", "body", "stripe/default/evt_ignored"),
    ("UPDATE bodies SET id = {id} WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE bodies SET received_at = received_at + {hour} WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE bodies SET psp = 'adyen' WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE bodies SET account = 'other' WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE bodies SET webhook_id = 'evt_x' WHERE webhook_id = 'evt_1'", "body", "body "),
    ("UPDATE bodies SET secret_name = 'x' WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    ("UPDATE bodies SET content_type = NULL WHERE webhook_id = 'evt_1'", "body", "body "),
    ("UPDATE bodies SET headers = '[]' WHERE webhook_id = 'evt_1'", "body", "body "),
    ("UPDATE bodies SET bytes = {one byte more} WHERE webhook_id = 'evt_1'", "body", "body "),
    ("UPDATE bodies SET sha256 = {hash} WHERE webhook_id = 'evt_1'", "body", "body "),
    ("UPDATE bodies SET sha256 = NULL WHERE webhook_id = 'evt_1'", "body", "stripe/default/evt_1"),
    // Orders.
    ("DELETE FROM orders WHERE id = 'order-1'", "outcome", "stripe/default/evt_1"),
    ("DELETE FROM orders WHERE id = 'order-1'", "names", "stripe/default payment pi_1"),
    ("DELETE FROM orders WHERE id = 'order-1'", "transitions", "order-1"),
    ("DELETE FROM orders WHERE id = 'order-1'", "said", "order-1: action "),
    ("UPDATE orders SET id = 'order-x' WHERE id = 'order-1'", "transitions", "order-x v3"),
    ("UPDATE orders SET status = 'paid' WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET view = {view of order-2} WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET view = '{}' WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET registers = {registers of order-2} WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET registers = '{}' WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET registers = '[]' WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET registers = {other expected} WHERE id = 'order-1'", "said", "order-1"),
    ("UPDATE orders SET version = version + 1 WHERE id = 'order-1'", "transitions", "order-1 v4"),
    ("UPDATE orders SET version = version - 1 WHERE id = 'order-1'", "transitions", "order-1 v2"),
    ("UPDATE orders SET review_since = NULL WHERE id = 'order-2'", "order", "order-2"),
    ("UPDATE orders SET review_since = updated_at WHERE id = 'order-1'", "order", "order-1"),
    ("UPDATE orders SET review_since = review_since + {hour} WHERE id = 'order-2'", "transitions", "order-2 v2"),
    ("UPDATE orders SET updated_at = updated_at + {hour} WHERE id = 'order-1'", "transitions", "order-1 v3"),
    // Names.
    ("DELETE FROM refs WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    ("DELETE FROM refs WHERE value = 'order-1'", "names", "stripe/default/evt_1"),
    ("DELETE FROM refs WHERE value = 'pi_only_registered'", "names", "order-4: action "),
    ("DELETE FROM refs WHERE value = 'order-4'", "names", "order-4: action "),
    ("UPDATE refs SET order_id = 'order-2' WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    ("UPDATE refs SET order_id = 'order-2' WHERE value = 'order-4'", "names", "order order-4"),
    ("UPDATE refs SET order_id = 'ghost' WHERE value = 'pi_1'", "names", "stripe/default payment pi_1"),
    ("UPDATE refs SET order_id = NULL WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    ("UPDATE refs SET psp = 'adyen' WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    ("UPDATE refs SET account = 'other' WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    ("UPDATE refs SET kind = 'charge' WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    ("UPDATE refs SET kind = 'x' WHERE value = 'pi_1'", "names", "stripe/default x pi_1"),
    ("UPDATE refs SET value = 'pi_x' WHERE value = 'pi_1'", "names", "stripe/default/evt_1"),
    // Parkings.
    ("DELETE FROM parkings WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_parked"),
    ("UPDATE parkings SET psp = 'adyen' WHERE event_id = 'evt_parked'", "parking", "adyen/default/evt_parked"),
    ("UPDATE parkings SET account = 'other' WHERE event_id = 'evt_parked'", "parking", "stripe/other/evt_parked"),
    ("UPDATE parkings SET event_id = 'evt_1' WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_1"),
    ("UPDATE parkings SET event_id = 'evt_x' WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_x"),
    ("UPDATE parkings SET ref_psp = 'adyen' WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_parked"),
    ("UPDATE parkings SET ref_account = 'other' WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_parked"),
    ("UPDATE parkings SET ref_kind = 'charge' WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_parked"),
    ("UPDATE parkings SET ref_value = 'pi_x' WHERE event_id = 'evt_parked'", "parking", "stripe/default/evt_parked"),
    // Transitions.
    ("DELETE FROM transitions WHERE order_id = 'order-1' AND version = 1", "transitions", "order-1 v1"),
    ("DELETE FROM transitions WHERE order_id = 'order-1' AND version = 2", "transitions", "order-1 v2"),
    ("DELETE FROM transitions WHERE order_id = 'order-1' AND version = 3", "transitions", "order-1 v3"),
    ("DELETE FROM transitions WHERE order_id = 'order-1' AND version = 2", "told", "order-1 v2 → shop"),
    ("UPDATE transitions SET order_id = 'ghost' WHERE order_id = 'order-1' AND version = 3", "transitions", "ghost"),
    ("UPDATE transitions SET version = 4 WHERE order_id = 'order-1' AND version = 3", "transitions", "order-1 v3"),
    ("UPDATE transitions SET id = {id of order-2} WHERE order_id = 'order-1' AND version = 1", "transitions", "order-1 v1"),
    ("UPDATE transitions SET from_status = 'failed' WHERE order_id = 'order-1' AND version = 2", "transitions", "order-1 v2"),
    ("UPDATE transitions SET from_status = 'paid' WHERE order_id = 'order-1' AND version = 1", "transitions", "order-1 v1"),
    ("UPDATE transitions SET from_status = NULL WHERE order_id = 'order-1' AND version = 2", "transitions", "order-1 v2"),
    ("UPDATE transitions SET to_status = 'failed' WHERE order_id = 'order-1' AND version = 1", "transitions", "order-1 v1"),
    ("UPDATE transitions SET at = at + {hour} WHERE order_id = 'order-1' AND version = 3", "transitions", "order-1 v3"),
    ("UPDATE transitions SET view = {view of order-2} WHERE order_id = 'order-1' AND version = 3", "transitions", "order-1 v3"),
    ("UPDATE transitions SET view = {view of order-2} WHERE order_id = 'order-1' AND version = 1", "transitions", "order-1 v1"),
    ("UPDATE transitions SET view = '{}' WHERE order_id = 'order-1' AND version = 1", "order", "order-1"),
    ("UPDATE transitions SET review_since = NULL WHERE order_id = 'order-2' AND version = 2", "transitions", "order-2 v2"),
    ("UPDATE transitions SET review_since = at WHERE order_id = 'order-1' AND version = 1", "transitions", "order-1 v1"),
    ("UPDATE transitions SET destinations = {none} WHERE order_id = 'order-1' AND version = 2", "told", "order-1 v2 → shop"),
    // What is told.
    ("DELETE FROM outbox WHERE order_id = 'order-1' AND version = 2 AND destination = 'shop'", "told", "order-1 v2 → shop"),
    ("UPDATE outbox SET destination = 'x' WHERE order_id = 'order-1' AND version = 2", "told", "order-1 v2 → x"),
    ("UPDATE outbox SET order_id = 'ghost' WHERE order_id = 'order-1' AND version = 2", "told", "ghost v2 → shop"),
    ("UPDATE outbox SET version = 7 WHERE order_id = 'order-1' AND version = 2", "told", "order-1 v7 → shop"),
    ("DELETE FROM notices WHERE order_id = 'order-1' AND version = 1 AND destination = 'shop'", "told", "order-1 v1 → shop"),
    ("UPDATE notices SET destination = 'x' WHERE order_id = 'order-1' AND version = 1", "told", "order-1 v1 → x"),
    ("UPDATE notices SET order_id = 'ghost' WHERE order_id = 'order-1' AND version = 1", "told", "ghost v1 → shop"),
    ("UPDATE notices SET version = 2 WHERE order_id = 'order-1' AND version = 1", "told", "order-1 v2 → shop"),
    // What the shop and operators said.
    ("DELETE FROM actions WHERE order_id = 'order-1'", "said", "order-1"),
    ("DELETE FROM actions WHERE order_id = 'order-5' AND kind = 'reviewed'", "said", "order-5"),
    ("UPDATE actions SET order_id = 'ghost' WHERE order_id = 'order-1'", "said", "ghost: action "),
    ("UPDATE actions SET kind = 'replayed' WHERE order_id = 'order-1'", "said", "order-1"),
    ("UPDATE actions SET kind = 'x' WHERE order_id = 'order-1'", "said", "order-1: action "),
    ("UPDATE actions SET detail = {other amount} WHERE order_id = 'order-1'", "said", "order-1: action "),
    ("UPDATE actions SET detail = '{}' WHERE order_id = 'order-1'", "said", "order-1: action "),
    ("UPDATE actions SET operator = 'x' WHERE kind = 'reviewed'", "said", "order-5"),
    ("UPDATE actions SET reason = 'x' WHERE kind = 'reviewed'", "said", "order-5"),
    ("UPDATE actions SET at = at + {hour} WHERE kind = 'reviewed'", "said", "order-5"),
    // Its time.
    ("DELETE FROM actions WHERE kind = 'expired'", "said", "order-6"),
    ("UPDATE actions SET kind = 'replayed' WHERE kind = 'expired'", "said", "order-6"),
    ("UPDATE actions SET order_id = 'order-7' WHERE kind = 'expired'", "said", "order-7"),
    ("UPDATE actions SET detail = '{}' WHERE kind = 'expired'", "said", "order-6: action "),
    ("UPDATE actions SET detail = {expired before its end} WHERE kind = 'expired'", "said", "order-6: action "),
    ("UPDATE orders SET registers = {expired a year later} WHERE id = 'order-6'", "said", "order-6"),
    ("UPDATE orders SET due_at = NULL WHERE id = 'order-8'", "due", "order-8"),
    ("DELETE FROM unasked WHERE order_id = 'order-7'", "unasked", "order-7"),
    ("UPDATE unasked SET order_id = 'order-1' WHERE order_id = 'order-7'", "unasked", "order-1"),
    ("UPDATE unasked SET order_id = 'ghost' WHERE order_id = 'order-7'", "unasked", "ghost"),
    // Checks, books, epoch.
    ("DELETE FROM checks WHERE payment_id = 'pi_1'", "checks", "stripe/default/pi_1"),
    ("DELETE FROM checks WHERE payment_id = 'pi_only_registered'", "checks", "stripe/default/pi_only_registered"),
    ("UPDATE checks SET payment_id = 'pi_x' WHERE payment_id = 'pi_1'", "checks", "stripe/default/pi_1"),
    ("UPDATE checks SET psp = 'adyen' WHERE payment_id = 'pi_1'", "checks", "stripe/default/pi_1"),
    ("UPDATE checks SET account = 'other' WHERE payment_id = 'pi_1'", "checks", "stripe/default/pi_1"),
    ("DELETE FROM books WHERE outcome = 'applied'", "books", "stripe/default 2026-09-21T14:00:00Z applied"),
    ("UPDATE books SET count = count + 1 WHERE outcome = 'parked'", "books", "stripe/default 2026-09-21T14:00:00Z parked"),
    ("UPDATE books SET psp = 'adyen' WHERE outcome = 'applied'", "books", "adyen/default 2026-09-21T14:00:00Z applied"),
    ("UPDATE books SET account = 'other' WHERE outcome = 'applied'", "books", "stripe/other 2026-09-21T14:00:00Z applied"),
    ("UPDATE books SET hour = hour + {hour} WHERE outcome = 'applied'", "books", "stripe/default 2026-09-21T15:00:00Z applied"),
    ("UPDATE books SET outcome = 'lost' WHERE outcome = 'applied'", "books", "stripe/default 2026-09-21T14:00:00Z lost"),
    ("DELETE FROM meta", "epoch", "meta"),
];

async fn names_whatever_is_altered(bench: &Bench) {
    populate(bench).await;
    let audited = audit(&*bench.store).await.unwrap();
    assert!(audited.is_balanced(), "{:#?}", audited.findings);
    assert!(audited.looked_at.iter().all(|(_, rows)| *rows > 0), "a table has no row to alter: {:?}", audited.looked_at);
    for table in TABLES {
        bench.execute(&format!("CREATE TABLE whole_{table} AS SELECT * FROM {table}")).await;
    }
    let mut missed = Vec::new();
    for (sql, check, key) in ALTERATIONS {
        bench.execute(&in_words_of(bench, sql)).await;
        let report = audit(&*bench.store).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let is_named = report.findings.iter().any(|finding| finding.check == *check && finding.key.contains(key));
        if !is_named {
            missed.push(format!("{sql}: nothing says {check:?} of {key:?}: {:#?}", report.findings));
        }
        let table = sql.split_whitespace().nth(if sql.starts_with("DELETE") { 2 } else { 1 }).unwrap();
        restore(bench, table).await;
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    let restored = audit(&*bench.store).await.unwrap();
    assert_eq!(restored, audited);
    bench.store.close().await;
}

/// Puts a table back as it was.
async fn restore(bench: &Bench, table: &str) {
    let over =
        if table == "transitions" && matches!(bench.database, Database::Postgres(_)) { "OVERRIDING SYSTEM VALUE" } else { "" };
    bench.execute(&format!("DELETE FROM {table}; INSERT INTO {table} {over} SELECT * FROM whole_{table}")).await;
}

/// What the two backends write differently.
fn in_words_of(bench: &Bench, sql: &str) -> String {
    let is_postgres = matches!(bench.database, Database::Postgres(_));
    let json = |expression: &str| if is_postgres { format!("CAST({expression} AS json)") } else { expression.to_owned() };
    let of_order_2 = |column: &str| format!("(SELECT {column} FROM orders WHERE id = 'order-2')");
    let either = |postgres: &str, sqlite: &str| if is_postgres { postgres.to_owned() } else { sqlite.to_owned() };
    let replaced = |column: &str, from: &str, to: &str| json(&format!("replace(CAST({column} AS text), '{from}', '{to}')"));
    [
        ("{facts without money}", replaced("facts", "4999", "1")),
        ("{other amount}", replaced("detail", "4999", "1")),
        ("{expired before its end}", replaced("detail", r#""by":"2026"#, r#""by":"2025"#)),
        ("{expired a year later}", replaced("registers", r#""expired":"2026"#, r#""expired":"2027"#)),
        ("{other expected}", replaced("registers", r#""expected":{"amount":4999"#, r#""expected":{"amount":4998"#)),
        ("{view of order-2}", of_order_2("view")),
        ("{registers of order-2}", of_order_2("registers")),
        ("{id of order-2}", "(SELECT id FROM transitions WHERE order_id = 'order-2' AND version = 1)".to_owned()),
        ("{hour}", either("interval '1 hour'", "3600000")),
        ("{true}", either("true", "1")),
        ("{hash}", either("sha256('x')", "zeroblob(32)")),
        ("{id}", either("gen_random_uuid()", "randomblob(16)")),
        ("{none}", either("'{}'", "'[]'")),
        ("{one byte more}", either(r"bytes || '\x00'", "CAST(bytes || 'x' AS BLOB)")),
    ]
    .into_iter()
    .fold(sql.to_owned(), |sql, (name, words)| sql.replace(name, &words))
}

/// Every kind of row: applied, superseded, parked, woken, ignored, quarantined and answered events; orders that are
/// registered, under review, decided, expired, about to expire, out of reach; changes told, given up and still to be told.
async fn populate(bench: &Bench) {
    let work = Populating::new(bench);
    work.register(registration("order-1", Some("pi_1"), 4999)).await;
    let mut both = with_body(&captured("evt_1", "pi_1", Some("order-1"), 4999));
    both.rows.push(row(&captured("evt_2", "pi_1", Some("order-1"), 4999)));
    work.apply(&[both]).await;
    let answer = PaymentEvent { source: Source::Reconciliation, ..refund("evt_answer", "pi_1", "re_1", 999) };
    work.apply(&[arrival(&answer)]).await;

    work.apply(&[with_body(&captured("evt_3", "pi_2", Some("order-2"), 100))]).await;
    work.register(registration("order-2", Some("pi_2"), 5000)).await;

    work.apply(&[with_body(&captured("evt_parked", "pi_9", None, 4999))]).await;
    work.apply(&[with_body(&refund("evt_woken", "pi_3", "re_3", 1)), with_body(&captured("evt_woken_2", "pi_3", None, 4999))])
        .await;
    work.register(Registration { expires_at: Some(NOW.plus(FIRST_LOOK)), ..registration("order-3", Some("pi_3"), 4999) }).await;
    work.register(registration("order-4", Some("pi_only_registered"), 1)).await;

    work.register(registration("order-5", Some("pi_5"), 5000)).await;
    work.apply(&[with_body(&captured("evt_5", "pi_5", None, 4999))]).await;
    work.decide("order-5").await;

    let end = NOW.plus(FIRST_LOOK);
    work.register(Registration { expires_at: Some(end), ..registration("order-6", None, 1) }).await;
    work.expire(Expiry { order_id: "order-6".to_owned(), ends_at: end, by: end, asked: Vec::new() }).await;
    work.register(registration("order-7", None, 1)).await;
    work.register(Registration { expires_at: Some(end), ..registration("order-8", Some("pi_8"), 1) }).await;

    work.apply(&[Arrival { body: Some(body("evt_ignored")), ..ignored("evt_ignored") }]).await;
    let odd = Content::Quarantined { reason: "odd".to_owned(), fingerprint: "stripe:odd".to_owned() };
    let bare = row(&captured("evt_odd", "pi_1", None, 1));
    work.apply(&[Arrival {
        body: Some(body("evt_odd")),
        rows: vec![InboxRow { content: odd, ..bare }],
        asks: Vec::new(),
        heard_at: None,
    }])
    .await;
    work.apply(&[with_body(&captured("evt_1", "pi_1", Some("order-1"), 1))]).await;

    for (outcome, version) in [("told", 1), ("given_up", 3)] {
        let of = format!("order_id = 'order-1' AND version = {version} AND destination = 'shop'");
        bench
            .execute(&format!(
                "INSERT INTO notices (order_id, version, destination, outcome, at, attempts)
                 SELECT order_id, version, destination, '{outcome}', next_attempt_at, 1 FROM outbox WHERE {of};
                 DELETE FROM outbox WHERE {of}"
            ))
            .await;
    }
}

/// Writes as a worker does that tells one destination, and can ask the PSP.
struct Populating<'a> {
    store: &'a dyn Store,
    ids: &'a Ids,
    policy: Policy,
}

impl<'a> Populating<'a> {
    fn new(bench: &'a Bench) -> Self {
        Self { store: &*bench.store, ids: &bench.ids, policy: policy() }
    }

    async fn apply(&self, arrivals: &[Arrival]) {
        self.store.apply(&Work { arrivals, ..self.work() }).await.unwrap();
    }

    async fn register(&self, registration: Registration) {
        self.store.apply(&Work { registrations: &[registration], ..self.work() }).await.unwrap();
    }

    async fn expire(&self, expiry: Expiry) {
        let applied = self.store.apply(&Work { expiries: &[expiry], ..self.work() }).await.unwrap();
        assert_eq!(applied.expired.len(), 1);
    }

    async fn decide(&self, order_id: &str) {
        let (order_id, reason, operator) = (order_id.to_owned(), "near enough".to_owned(), "anna".to_owned());
        let review = Review { order_id, verdict: Verdict::Accept, reason, operator };
        self.store.apply(&Work { reviews: &[review], ..self.work() }).await.unwrap();
    }

    fn work(&self) -> Work<'_> {
        Work::new(&self.policy, self.ids, NOW)
    }
}

fn policy() -> Policy {
    Policy {
        events_create_orders: true,
        asking: HashMap::from([(account(), HABITS)]),
        destinations: vec![Arc::from("shop")],
        ..Policy::default()
    }
}

fn with_body(event: &PaymentEvent) -> Arrival {
    Arrival { body: Some(body(&event.key.event_id)), ..arrival(event) }
}

fn body(webhook_id: &str) -> Body {
    let EventKey { psp, account, .. } = captured(webhook_id, "", None, 1).key;
    Body {
        psp,
        account,
        webhook_id: webhook_id.to_owned(),
        received_at: NOW,
        secret_name: Arc::from("first"),
        content_type: Some("application/json".to_owned()),
        headers: vec![("x-one".to_owned(), "a \0 \" b".to_owned())],
        bytes: Bytes::from(format!("{{\"id\": \"{webhook_id}\"}}")),
    }
}

async fn audit(store: &dyn Store) -> Result<AuditReport, StoreError> {
    store.audit(Scope { policy: &policy(), bodies_kept_since: Some(NOW) }, &|done, total| assert!(done <= total)).await
}

#[tokio::test]
async fn bodies_that_are_no_longer_kept_are_not_missed() {
    let bench = Bench::sqlite().await;
    populate(&bench).await;
    bench.execute("DELETE FROM bodies").await;
    let report = audit(&*bench.store).await.unwrap();
    assert!(report.findings.iter().all(|finding| finding.check == "body") && !report.is_balanced(), "{report:#?}");
    let policy = policy();
    for bodies_kept_since in [None, Some(NOW.plus(FIRST_LOOK))] {
        let report = bench.store.audit(Scope { policy: &policy, bodies_kept_since }, &|_, _| ()).await.unwrap();
        assert!(report.is_balanced(), "{report:#?}");
    }
    bench.store.close().await;
}

#[tokio::test]
async fn a_check_lists_its_first_findings_and_counts_the_rest() {
    let bench = Bench::sqlite().await;
    let events: Vec<_> = (0..50).map(|n| arrival(&captured(&format!("evt_{n:02}"), "pi_1", Some("order-1"), 1))).collect();
    Populating::new(&bench).apply(&events).await;
    bench.execute("UPDATE events SET facts_sha256 = zeroblob(32)").await;
    let report = audit(&*bench.store).await.unwrap();
    let keys: Vec<_> = report.findings.iter().map(|finding| finding.key.clone()).collect();
    assert_eq!(keys, (0..20).map(|n| format!("stripe/default/evt_{n:02}")).collect::<Vec<_>>());
    assert_eq!(report.unlisted, 30);
    bench.store.close().await;
}

/// What version 1 wrote has no destinations, versions, hashes or actions, and is no difference.
#[tokio::test]
async fn rows_of_the_first_version_balance() {
    let bench = Bench::sqlite().await;
    populate(&bench).await;
    bench
        .execute(
            "UPDATE events SET taken_at = NULL, parked_at = NULL, secret_name = NULL, order_version = NULL;
             UPDATE bodies SET sha256 = NULL;
             UPDATE transitions SET destinations = NULL, review_since = NULL;
             DELETE FROM outbox; DELETE FROM notices; DELETE FROM actions;",
        )
        .await;
    let report = audit(&*bench.store).await.unwrap();
    assert!(report.is_balanced(), "{:#?}", report.findings);
    bench.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_balances_while_workers_apply() {
    balances_while_workers_apply(Bench::new(servers::postgres().await.database().await).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_balances_while_workers_apply() {
    balances_while_workers_apply(Bench::sqlite().await).await;
}

async fn balances_while_workers_apply(bench: Bench) {
    const WORKERS: usize = 4;
    const BATCHES: usize = 40;
    const AUDITS_MIN: usize = 5;
    let done = AtomicUsize::new(0);
    let worker = async |number: usize| {
        let work = Populating::new(&bench);
        // Goes on until it was looked at often enough, whoever is faster.
        for batch in 0.. {
            let (order, payment) = (format!("order-{}", batch % 7), format!("pi_{number}_{batch}"));
            let id = |name: &str| format!("evt_{name}_{number}_{batch}");
            let parked = refund(&id("r"), &payment, "re", 1);
            work.apply(&[with_body(&parked), with_body(&state(&id("p"), &payment, None, PaymentState::Pending))]).await;
            work.apply(&[with_body(&captured(&id("c"), &payment, Some(&order), 100))]).await;
            work.register(registration(&format!("order-{number}-{batch}"), Some(&format!("pi_r{payment}")), 100)).await;
            if batch >= BATCHES && done.load(Ordering::SeqCst) >= AUDITS_MIN {
                return;
            }
        }
    };
    let workers = join_all((0..WORKERS).map(worker));
    let auditor = async {
        let mut seen = Vec::new();
        while done.load(Ordering::SeqCst) < AUDITS_MIN {
            let report = audit(&*bench.store).await.unwrap();
            assert!(report.is_balanced(), "{:#?}", report.findings);
            seen.push(report.looked_at[0].1);
            done.fetch_add(1, Ordering::SeqCst);
        }
        seen
    };
    let (_, seen) = tokio::join!(workers, auditor);
    assert!(seen.is_sorted() && seen.first() < seen.last(), "nothing happened meanwhile: {seen:?}");
    assert!(audit(&*bench.store).await.unwrap().is_balanced());
    bench.store.close().await;
}

#[tokio::test]
async fn the_command_tells_by_its_exit_code() {
    for bench in [Bench::sqlite().await, Bench::new(servers::postgres().await.database().await).await] {
        populate(&bench).await;
        // Whom the test's own policy lets be asked, this configuration does too.
        let (code, said) = command(&bench.url, &["--json"]).await;
        assert_eq!(code, 0, "{said}");
        let report: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!((&report["balanced"], &report["looked_at"]["orders"]), (&true.into(), &8.into()));
        let (code, said) = command(&bench.url, &[]).await;
        assert!(code == 0 && said.contains("The books balance"), "{code}: {said}");

        bench.execute("DELETE FROM refs WHERE value = 'pi_1'").await;
        let (code, said) = command(&bench.url, &[]).await;
        assert!(code == 1 && said.contains("stripe/default/evt_1"), "{code}: {said}");
        let (code, said) = command(&bench.url, &["--json"]).await;
        let report: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!((code, &report["balanced"], &report["findings"][0]["check"]), (1, &false.into(), &"names".into()));

        bench
            .execute(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (999999, 'of a newer version', true, '', 0)",
            )
            .await;
        let (code, said) = command(&bench.url, &[]).await;
        assert!(code == 2 && said.contains("use the program of that version"), "{code}: {said}");
        bench.execute("DELETE FROM _sqlx_migrations WHERE version > 1").await;
        let (code, said) = command(&bench.url, &[]).await;
        assert!(code == 2 && said.contains("schema is version 1"), "{code}: {said}");
        assert_eq!(bench.count("SELECT max(version) FROM _sqlx_migrations").await, 1, "it was migrated");
        bench.execute("DROP TABLE _sqlx_migrations").await;
        let (code, said) = command(&bench.url, &[]).await;
        assert!(code == 2 && said.contains("no database of Paybell's"), "{code}: {said}");
        bench.store.close().await;
    }
    let absent = std::env::temp_dir().join(format!("paybell-absent-{:016x}.db", rand::random::<u64>()));
    let (code, said) = command(&format!("sqlite:{}", absent.display()), &[]).await;
    assert_eq!((code, absent.exists()), (2, false), "{said}");
    let (code, said) = command(&format!("postgres://paybell@127.0.0.1:{}/x", free_port()), &[]).await;
    assert_eq!(code, 3, "{said}");
    let (code, said) = command("mysql://x", &[]).await;
    assert!(code == 2 && said.contains("[store] url"), "{code}: {said}");
}

/// A file that nobody has open, without its log beside it, can be read as well.
#[tokio::test]
async fn the_command_reads_a_file_that_is_at_rest() {
    let bench = Bench::sqlite().await;
    populate(&bench).await;
    bench.execute("UPDATE bodies SET received_at = received_at").await;
    bench.store.close().await;
    let Database::Sqlite(pool) = &bench.database else { unreachable!("it was made as SQLite") };
    pool.close().await;
    let (code, said) = command(&bench.url, &[]).await;
    assert_eq!(code, 0, "{said}");
}

/// Its exit code, and all that it wrote.
async fn command(url: &str, arguments: &[&str]) -> (i32, String) {
    let configuration = format!(
        "[store]\nurl = \"{url}\"\n[retention]\nbodies_days = 3650\n[[psp]]\nid = \"stripe\"\nmode = \"test\"\nsecrets = [\"whsec_TestOnlyTestOnlyTestOnlyTestOnly\"]\n\
         api_key = \"sk_test_x\"\n"
    );
    let arguments = [&["audit"], arguments].concat();
    let command = Service::start_unready("paybell", &arguments, &configuration, &[]);
    (command.exit_status().await, command.log())
}
