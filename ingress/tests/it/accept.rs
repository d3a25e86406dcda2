//! What is genuine is published, byte for byte, and then acknowledged.

use std::sync::Arc;

use http::StatusCode;
use paybell_shared::clock::Timestamp;
use paybell_shared::config::{ConfiguredAccount, OnQueueDown};
use paybell_shared::envelope::Envelope;
use paybell_shared::event::PaymentEvent;
use paybell_shared::psp::stripe::Stripe;
use paybell_shared::psp::{
    Account, Acknowledgement, Keys, Profile, Psp, Rejection, SettingError, TranslateError, Verified, WebhookRequest,
};

use crate::support::{BODY, BODY_BYTES_MAX, NOW_S, Rig, SECRET, SHOP_SECRET, genuine, request, signature, signed};

#[tokio::test]
async fn a_genuine_webhook_is_published_then_acknowledged() {
    let rig = Rig::start();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = format!("{}traceparent: {trace}\r\nauthorization: Bearer hush\r\n", signature(SECRET, NOW_S, BODY.as_bytes()));
    let answer = rig.exchange(request("/webhooks/stripe", &headers, BODY)).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]));

    let [message] = &rig.publisher.published()[..] else { panic!("not one message") };
    assert_eq!(&message.body[..], BODY.as_bytes());
    assert_eq!(message.header("traceparent"), Some(trace));
    assert_eq!(message.header("ce-id"), Some("evt_1"));
    assert!(!format!("{:?}", message.headers).contains("hush"), "a header that nobody asked for is on the queue");
    assert!(!format!("{message:?}").contains(SECRET));

    assert!((rig.counted("accepted", "") - 1.0).abs() < f64::EPSILON);
    assert!((rig.metric("paybell_webhooks_verified_total", &["secret=\"psp[0].secrets[0]\""]) - 1.0).abs() < f64::EPSILON);
    assert!((rig.metric("paybell_webhook_acknowledge_seconds_count", &["psp=\"stripe\""]) - 1.0).abs() < f64::EPSILON);
    assert!(rig.metric("paybell_webhooks_in_flight", &[]).abs() < f64::EPSILON);
    let [line] = &rig.log.webhooks()[..] else { panic!("not one line") };
    for field in ["INFO", "psp=\"stripe\"", "account=\"default\"", "outcome=\"accepted\"", "event_id=\"evt_1\"", "duration_ms="] {
        assert!(line.contains(field), "{field} is not in {line}");
    }
}

#[tokio::test]
async fn accounts_have_their_routes_and_secrets() {
    let rig = Rig::start();
    let genuine = |path, secret| request(path, &signature(secret, NOW_S, BODY.as_bytes()), BODY);
    for (path, secret, expected) in [
        ("/webhooks/stripe", SECRET, 200),
        ("/webhooks/stripe/default", SECRET, 200),
        ("/webhooks/stripe/default?from=stripe", SECRET, 200),
        ("/webhooks/stripe/shop", SHOP_SECRET, 200),
        ("/webhooks/stripe/shop", "whsec_old", 200),
        ("/webhooks/stripe/shop", SECRET, 401),
        ("/webhooks/stripe", SHOP_SECRET, 401),
    ] {
        assert_eq!(rig.exchange(genuine(path, secret)).await.status, expected, "{path} {secret}");
    }
    assert!((rig.metric("paybell_webhooks_verified_total", &["secret=\"psp[1].secrets[1]\""]) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn the_bytes_on_the_wire_are_the_bytes_on_the_queue() {
    let rig = Rig::start();
    let largest = vec![b' '; BODY_BYTES_MAX];
    let bodies: [&[u8]; 6] =
        [b"\xef\xbb\xbf{\"id\":\"evt_bom\"}", b"\xff\xfe\x00", b"{\"id\":", b"{\"n\":1e400}", b"\r\n", &largest];
    for body in bodies {
        assert_eq!(rig.exchange(signed(body)).await.status, 200);
        let head = format!("POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\n{}", signature(SECRET, NOW_S, body));
        let second_chunk = format!("\r\n{:x}\r\n", body.len() - 1);
        let chunked: [&[u8]; 6] = [
            head.as_bytes(),
            b"transfer-encoding: chunked\r\n\r\n1\r\n",
            &body[..1],
            second_chunk.as_bytes(),
            &body[1..],
            b"\r\n0\r\n\r\n",
        ];
        assert_eq!(rig.exchange(chunked.concat()).await.status, 200);
    }
    let published: Vec<_> = rig.publisher.published().into_iter().map(|message| message.body.to_vec()).collect();
    let expected: Vec<_> = bodies.iter().flat_map(|body| [body.to_vec(), body.to_vec()]).collect();
    assert_eq!(published, expected);
}

#[tokio::test]
async fn a_connection_serves_many_webhooks_also_pipelined() {
    let rig = Rig::start();
    let mut client = rig.client().await;
    client.send([genuine(), request("/webhooks/stripe", "", "forged"), genuine()].concat()).await;
    for expected in [200, 401, 200] {
        assert_eq!(client.answer().await.status, expected);
    }
    client.send(genuine()).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.publisher.published().len(), 3);
}

#[tokio::test]
async fn a_body_comes_when_it_is_asked_for() {
    let rig = Rig::start();
    let mut client = rig.client().await;
    let headers = format!("{}expect: 100-continue\r\n", signature(SECRET, NOW_S, BODY.as_bytes()));
    let whole = request("/webhooks/stripe", &headers, BODY);
    let (head, body) = whole.split_at(whole.len() - BODY.len());
    client.send(head).await;
    assert_eq!(client.answer().await.status, 100);
    client.send(body).await;
    assert_eq!(client.answer().await.status, 200);
}

fn with_peculiar(allow_from: &[&str]) -> Rig {
    Rig::start_with("", |config| {
        let account = (*config.accounts[0].account).clone();
        let account = Account { psp: &PeculiarPsp, psp_id: "peculiar".into(), ..account };
        let allow_from = allow_from.iter().map(|network| network.parse().unwrap()).collect();
        let account = Arc::new(account);
        let on_queue_down = OnQueueDown::Refuse;
        config.accounts.push(ConfiguredAccount { account, over_capture_percent: 0, on_queue_down, allow_from });
    })
}

#[tokio::test]
async fn a_psp_that_tries_an_endpoint_by_get_is_answered() {
    let rig = with_peculiar(&[]);
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = rig.exchange(get("/webhooks/peculiar?question=who")).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"answer to who"[..]));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(rig.exchange(get("/webhooks/peculiar/default?question=")).await.body, b"answer to ");
    assert!((rig.counted("challenged", "") - 2.0).abs() < f64::EPSILON);
    let longest = "a".repeat(1024 - "question=".len());
    assert_eq!(rig.exchange(get(&format!("/webhooks/peculiar?question={longest}"))).await.status, 200);
    for (target, status) in [
        (format!("/webhooks/peculiar?question=a{longest}"), 405),
        ("/webhooks/peculiar".to_owned(), 405),
        ("/webhooks/peculiar?answer=".to_owned(), 405),
        ("/webhooks/stripe?question=who".to_owned(), 405),
        ("/webhooks/peculiar/other?question=who".to_owned(), 404),
        ("/webhooks/peculiar/default/x?question=who".to_owned(), 404),
    ] {
        let answer = rig.exchange(get(&target)).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{target}");
    }
    let answer = rig.exchange("HEAD /webhooks/peculiar?question=who HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(answer.status, 405);
    assert_eq!(rig.publisher.published(), []);
    assert_eq!(with_peculiar(&["10.0.0.0/8"]).exchange(get("/webhooks/peculiar?question=who")).await.status, 403);
}

#[tokio::test]
async fn the_adapter_chooses_what_its_psp_hears() {
    let rig = with_peculiar(&[]);
    let answer = rig.exchange(request("/webhooks/peculiar", &signature(SECRET, NOW_S, BODY.as_bytes()), BODY)).await;
    assert_eq!((answer.status, answer.body.as_slice()), (202, &b"[accepted]"[..]));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    let answer = rig.exchange(request("/webhooks/peculiar", "", BODY)).await;
    assert_eq!((answer.status, answer.body.as_slice()), (498, &b""[..]));

    let answer = rig.exchange(request("/webhooks/peculiar", "", PANIC)).await;
    assert_eq!((answer.status, answer.body.as_slice()), (503, &b""[..]));
    assert!((rig.counted("aborted", "panic") - 1.0).abs() < f64::EPSILON);
    assert!((rig.metric("paybell_http_panics_total", &[]) - 1.0).abs() < f64::EPSILON);
    assert!(rig.metric("paybell_webhooks_in_flight", &[]).abs() < f64::EPSILON);
    assert_eq!(rig.exchange(genuine()).await.status, 200);
    assert_eq!(rig.log.webhooks().len(), 4);
}

const PANIC: &str = "panic, please";

/// Verifies as Stripe does, and wants other answers.
struct PeculiarPsp;

impl Psp for PeculiarPsp {
    fn id(&self) -> &'static str {
        "peculiar"
    }

    fn profile(&self) -> &'static Profile {
        Stripe.profile()
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        Stripe.check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        assert!(request.body != PANIC.as_bytes(), "a planted panic");
        Stripe.verify(request, keys, now)
    }

    fn acknowledgement(&self) -> Acknowledgement {
        Acknowledgement { status: StatusCode::ACCEPTED, content_type: Some("text/plain"), body: "[accepted]" }
    }

    fn rejection_status(&self) -> StatusCode {
        StatusCode::from_u16(498).unwrap()
    }

    fn challenge(&self, query: &str, _: &Keys) -> Option<String> {
        query.strip_prefix("question=").map(|question| format!("answer to {question}"))
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        Stripe.translate(envelope, account)
    }
}
