use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde_json::{Value, json};

use super::*;
use crate::event::ReferenceKind;
use crate::psp::tests::{self as common, NOW_S, Specimen};

const SECRET: &str = "asdfQ1testSigKey-7Xw2LmN4";
const URL: &str = "https://pay.example.com/webhooks/square?tenant=acme";

pub(in crate::psp) fn specimen() -> Specimen {
    Specimen {
        psp: &Square,
        scheme: "square-url-body",
        secret: SECRET,
        other_secret: "oldQ0testSigKey-9Zk3",
        settings: |account| account.keys.url = Some(URL.to_owned()),
        sign: |secret, _, body| {
            let mac = signature::hmac_sha256(secret.as_bytes(), &[URL.as_bytes(), body]);
            (common::headers([(SIGNATURE, STANDARD.encode(mac))]), body.to_vec())
        },
        body: include_bytes!("../fixtures/square/payment.updated.completed.json"),
        event_type: Some("payment.updated"),
        timed: false,
        any_body: true,
        unsigned_headers: &[],
    }
}

fn account() -> Account {
    specimen().account(&[SECRET])
}

#[test]
fn the_url_is_signed_byte_for_byte() {
    let specimen = specimen();
    let (headers, body) = (specimen.sign)(SECRET, NOW_S, specimen.body);
    let reason = |url: Option<&str>| {
        let mut keys = account().keys;
        keys.url = url.map(str::to_owned);
        let request = WebhookRequest { headers: &headers, body: &body, token: None, query: "", certificate: None };
        Square.verify(&request, &keys, Timestamp::from_seconds(NOW_S)).map_or_else(|rejection| rejection.reason(), |_| "accepted")
    };
    assert_eq!(reason(Some(URL)), "accepted");
    for other in
        [&URL.replace("https", "http"), &URL.replace("square?", "square/?"), &URL.replace("pay.", "PAY."), &format!("{URL}&")]
    {
        assert_eq!(reason(Some(other)), "signature_mismatch", "{other}");
    }
    assert_eq!(reason(None), "setting");
    let without = Account { keys: Keys { url: None, ..account().keys }, ..account() };
    assert_eq!(Square.check(&without).map_err(|error| error.setting), Err("url"));
}

#[test]
fn the_signature_is_one_base64_of_32_bytes() {
    let good = (specimen().sign)(SECRET, NOW_S, specimen().body).0[SIGNATURE].to_str().unwrap().to_owned();
    let mut reasons = Vec::new();
    for bad in [
        good.trim_end_matches('=').to_owned(),
        format!("{good}="),
        format!("{good} "),
        good.replace('=', "-"),
        hex::encode([7; 32]),
    ] {
        let headers: HeaderMap = common::headers([(SIGNATURE, bad)]);
        reasons.push(specimen().verify(&[SECRET], &headers, specimen().body).unwrap_err().reason());
    }
    assert_eq!(reasons, ["malformed_header"; 5]);
}

#[test]
fn an_event_is_of_our_merchant_if_it_is_named() {
    let envelope = specimen().envelope(specimen().body);
    let mut account = account();
    account.api.merchant_id = Some("ML1".to_owned());
    assert!(Square.translate(&envelope, &account).is_ok());
    account.api.merchant_id = Some("ML2".to_owned());
    let Err(TranslateError::Unintelligible { pointer, .. }) = Square.translate(&envelope, &account) else { panic!("translated") };
    assert_eq!(pointer, "/merchant_id");
}

#[test]
fn only_a_payment_names_the_order() {
    let orders = |fixture: &str, path: Option<&str>| {
        let fixtures = common::fixtures(&Square);
        let (_, body) = fixtures.iter().find(|(name, _)| name == fixture).unwrap();
        let account = Account { order_reference: path.map(|path| vec![path.to_owned()]), ..account() };
        let events = Square.translate(&specimen().envelope(body), &account).unwrap();
        let orders = events[0].references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
        orders.map(|reference| reference.value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(orders("payment.updated.completed", None), ["ORD-1001"]);
    assert_eq!(orders("payment.updated.completed", Some("order_id")), ["03O3"]);
    assert_eq!(orders("payment.updated.completed.no_reference", None), [""; 0]);
    for fixture in ["refund.updated.completed", "dispute.won"] {
        assert_eq!(orders(fixture, Some("order_id")), [""; 0], "its payment leads to the order");
    }
}

// -------------------------------------------------------------------------------------------------------- questions

#[test]
fn questions_are_asked_as_square_reads_them() {
    let mut account = account();
    let uri = |request: Result<Request<Bytes>, AskError>| request.unwrap().uri().to_string();
    let status = |cursor| uri(Square.status_request("hYy9A", cursor, &account));
    assert_eq!(status(None), "https://connect.squareupsandbox.com/v2/payments/hYy9A");
    assert_eq!(status(Some("refunds:hYy9A_a,hYy9A_b")), "https://connect.squareupsandbox.com/v2/refunds/hYy9A_a");
    let since = Timestamp::from_millis(1_789_999_999_999);
    let events = |cursor| uri(Square.events_request(common::since(since), cursor, &account));
    let end = "updated_at_end_time=2026-09-21T14:13:20Z&sort_field=UPDATED_AT&sort_order=ASC&limit=100";
    let changed = format!("updated_at_begin_time=2026-09-21T14:13:19.999Z&{end}");
    assert_eq!(events(None), format!("https://connect.squareupsandbox.com/v2/payments?{changed}"));
    assert_eq!(
        events(Some("refunds:a+/=:b")),
        format!("https://connect.squareupsandbox.com/v2/refunds?{changed}&cursor=a%2B%2F%3D%3Ab")
    );
    let place = format!("https://connect.squareupsandbox.com/v2/payments?updated_at_begin_time=2026-09-21T14:13:20.001Z&{end}");
    assert_eq!(events(Some("payments@1790000000001")), place);
    assert_eq!(events(Some("payments@1790000000001:x")), format!("{place}&cursor=x"));
    assert!(events(Some("disputes")).starts_with("https://connect.squareupsandbox.com/v2/disputes"));
    assert_eq!(events(Some("disputes:x")), "https://connect.squareupsandbox.com/v2/disputes?cursor=x");

    account.mode = Mode::Live;
    let request = Square.endpoints_request(None, &account).unwrap();
    assert_eq!(request.uri(), "https://connect.squareup.com/v2/webhooks/subscriptions?include_disabled=true&limit=100");
    assert_eq!(request.headers()["square-version"], API_VERSION);
    assert_eq!(request.headers()["authorization"], "Bearer sk_test_invented");
    account.api.key = None;
    assert_eq!(Square.status_request("hYy9A", None, &account).unwrap_err(), AskError::Missing("api_key"));
}

#[test]
fn nothing_but_an_id_enters_a_url() {
    let account = account();
    for id in ["", "a/../b", "a?x", "a%2e", "é", "a b", "_", &"a".repeat(256)] {
        assert_eq!(Square.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
    }
    let many = format!("refunds:{}", vec!["a"; REFUNDS_MAX + 1].join(","));
    for cursor in ["", "refunds", "refunds:", "refunds:a,", "refunds:a/b", "disputes:a", &many] {
        assert_eq!(Square.status_request("hYy9A", Some(cursor), &account).unwrap_err(), AskError::MalformedId(cursor.to_owned()));
    }
    for cursor in [
        "",
        "payments:",
        "orders",
        "payments:a b",
        "payments@",
        "payments@x",
        "payments@-1",
        &format!("payments:{}", "a".repeat(CURSOR_BYTES_MAX + 1)),
    ] {
        assert!(Square.events_request(common::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
    }
    assert!(Square.endpoints_request(Some("a b"), &account).is_err());
}

// ---------------------------------------------------------------------------------------------------------- answers

fn response(body: &[u8]) -> Response<Bytes> {
    Response::new(Bytes::copy_from_slice(body))
}

fn asked(cursor: Option<&str>) -> Asked<'_> {
    Asked { payment_id: "hYy9A", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
}

fn read_status(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
    Square.read_status(&asked(cursor), &response(body), &account())
}

fn read_events(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
    Square.read_events(common::WHOLE, &asked(cursor), &response(body), &account())
}

#[test]
fn answers_read_as_recorded() {
    let payment = read_status(None, include_bytes!("../fixtures/square/answers/payment.json")).unwrap();
    assert_eq!(payment.next.as_deref(), Some("refunds:hYy9A_qrST,hYy9A_ptNB"), "the latest first");
    insta::assert_json_snapshot!("square-answer-payment", payment.events);
    let refund = read_status(Some("refunds:hYy9A_ptNB"), include_bytes!("../fixtures/square/answers/refund.json")).unwrap();
    assert_eq!(refund.next, None);
    insta::assert_json_snapshot!("square-answer-refund", refund.events);
    let endpoints = Square.read_endpoints(&response(include_bytes!("../fixtures/square/answers/endpoints.json"))).unwrap();
    assert_eq!(endpoints.next, None);
    insta::assert_json_snapshot!("square-answer-endpoints", endpoints.endpoints);
}

#[test]
fn the_sweep_goes_through_all_lists() {
    let payments = read_events(None, include_bytes!("../fixtures/square/answers/payments.json")).unwrap();
    assert_eq!(payments.next.as_deref(), Some("payments:EkA+/=next"));
    assert_eq!(payments.events.iter().map(|event| &*event.payment_id).collect::<Vec<_>>(), ["hYy9A", "iZz8B"]);
    assert_eq!(payments.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");
    assert_eq!(payments.unread[0].event_id, "bad");
    let refunds = read_events(Some("refunds"), include_bytes!("../fixtures/square/answers/refunds.json")).unwrap();
    assert_eq!((refunds.next.as_deref(), refunds.events.len()), (Some("disputes"), 1));
    let disputes = read_events(Some("disputes"), include_bytes!("../fixtures/square/answers/disputes.json")).unwrap();
    assert_eq!((disputes.next, disputes.events.len()), (None, 1));
    let empty = |cursor| read_events(cursor, b"{}").unwrap().next;
    assert_eq!(
        (empty(None).as_deref(), empty(Some("refunds:x")).as_deref(), empty(Some("disputes"))),
        (Some("refunds"), Some("disputes"), None)
    );
}

/// What changes meanwhile moves to the end, and all behind it up by one: a place in time loses none of them.
#[test]
fn a_page_is_followed_by_the_time_of_its_last_item() {
    let read = |cursor: Option<&str>, times: &[&str], more: bool| {
        let payment = |(number, at): (usize, &&str)| {
            json!({"id": format!("p{number}"), "status": "PENDING", "updated_at": format!("2026-09-21T13:33:{at}Z"),
                "total_money": {"amount": 5, "currency": "usd"}})
        };
        let payments: Vec<Value> = times.iter().enumerate().map(payment).collect();
        let body = json!({"payments": payments, "cursor": if more { "after" } else { "" }}).to_string();
        let answer = read_events(cursor, body.as_bytes()).unwrap();
        (answer.events.len(), answer.next.unwrap())
    };
    let place = |at: &str| Timestamp::parse_rfc3339(&format!("2026-09-21T13:33:{at}Z")).unwrap().millis();
    let (first, last) = (place("10"), place("11.5"));
    assert_eq!(read(None, &["10", "11", "11.5", "11.5"], true), (2, format!("payments@{last}")), "those left are told next");
    assert_eq!(read(Some(&format!("payments@{last}")), &["11.5", "11.5"], false), (2, "refunds".to_owned()));
    // More of one time than a page holds: only Square's own cursor leads on.
    let (at, further) = (format!("payments@{first}"), format!("payments@{first}:after"));
    assert_eq!(read(Some(&at), &["10", "10"], true), (2, further.clone()));
    let before = format!("payments@{first}:before");
    assert_eq!(read(Some(&before), &["10", "11.5"], true), (1, format!("payments@{last}")));
    assert_eq!(read(None, &["11", "10"], true), (2, "payments:after".to_owned()), "in no order");
}

#[test]
fn only_disputes_that_changed_are_told_and_nothing_older_than_was_asked_for() {
    let since = |at: &str| common::since(Timestamp::parse_rfc3339(at).unwrap());
    let disputes = include_bytes!("../fixtures/square/answers/disputes.json");
    let told =
        |at| Square.read_events(since(at), &asked(Some("disputes")), &response(disputes), &account()).unwrap().events.len();
    assert_eq!((told("2026-10-01T10:34:41Z"), told("2026-10-01T10:34:42Z")), (1, 0));
    let refunds = include_bytes!("../fixtures/square/answers/refunds.json");
    let refunds = |at| Square.read_events(since(at), &asked(Some("refunds")), &response(refunds), &account());
    assert!(refunds("2026-09-01T00:00:00Z").is_ok());
    assert!(matches!(refunds("2026-12-01T00:00:00Z"), Err(ReadError::Unintelligible(_))));
}

#[test]
fn an_answer_says_the_same_as_the_webhook() {
    let fixtures = common::fixtures(&Square);
    let (_, body) = fixtures.iter().find(|(name, _)| name == "refund.updated.completed").unwrap();
    let sent = Square.translate(&specimen().envelope(body), &account()).unwrap().remove(0);
    let answered = read_status(Some("refunds:hYy9A_ptNB"), include_bytes!("../fixtures/square/answers/refund.json")).unwrap();
    let answered = &answered.events[0];
    assert_eq!((&sent.version, &sent.fact, sent.occurred_at), (&answered.version, &answered.fact, answered.occurred_at));
    assert_eq!((sent.is_answer(), answered.is_answer()), (false, true));
}

#[test]
fn a_status_is_a_state_and_an_unknown_one_is_pending() {
    for (status, state) in [
        ("PENDING", PaymentState::Pending),
        ("APPROVED", PaymentState::Authorized),
        ("COMPLETED", PaymentState::Captured),
        ("CANCELED", PaymentState::Canceled),
        ("FAILED", PaymentState::Failed),
        ("DREAMING", PaymentState::Pending),
    ] {
        let payment = json!({"payment": {"id": "hYy9A", "status": status, "updated_at": "2026-09-21T13:33:09.831Z",
            "total_money": {"amount": 5, "currency": "usd"}}});
        let answer = read_status(None, payment.to_string().as_bytes()).unwrap();
        let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
        assert_eq!((fact.state, answer.next), (state, None), "{status}");
        assert_eq!(answer.events[0].key.event_id, "poll:hYy9A:look-7");
    }
}

#[test]
fn an_answer_about_something_else_is_no_answer() {
    let payment = |id: &str, more: Value| {
        let mut payment = json!({"id": id, "status": "PENDING", "updated_at": "2026-09-21T13:33:09Z"});
        payment.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        payment
    };
    let refund = |id: &str, of: &str| {
        json!({"refund": {"id": id, "payment_id": of, "status": "PENDING", "updated_at": "2026-09-21T13:33:09Z",
            "amount_money": {"amount": 1, "currency": "USD"}}})
    };
    assert!(read_status(Some("refunds:r_1,r_2"), refund("r_1", "hYy9A").to_string().as_bytes()).is_ok());
    for (cursor, body) in [
        (None, json!({"payment": payment("other", json!({}))})),
        (None, json!({"payment": payment("hYy9A", json!({"refund_ids": ["a/b"]}))})),
        (None, json!({"payment": payment("hYy9A", json!({"refund_ids": [7]}))})),
        (None, json!({"errors": []})),
        (Some("refunds:r_1"), refund("r_1", "other")),
        (Some("refunds:r_1"), refund("r_2", "hYy9A")),
        (Some("charges"), json!({})),
    ] {
        let read = read_status(cursor, body.to_string().as_bytes());
        assert!(matches!(read, Err(ReadError::Unintelligible(_))), "{body} {read:?}");
    }
    let list = |count: usize, cursor: &str| json!({"payments": vec![payment("hYy9A", json!({})); count], "cursor": cursor});
    assert_eq!(read_events(None, list(1, "").to_string().as_bytes()).unwrap().next.as_deref(), Some("refunds"));
    for (asked, body) in [
        (None, list(0, "next")),
        (None, list(PAGE + 1, "")),
        (None, list(1, "a b")),
        (Some("payments:same"), list(1, "same")),
        (None, json!({"payments": {}})),
    ] {
        assert!(matches!(read_events(asked, body.to_string().as_bytes()), Err(ReadError::Unintelligible(_))), "{body}");
    }
    assert!(matches!(read_status(None, b"<html>"), Err(ReadError::Unintelligible(_))));
}
