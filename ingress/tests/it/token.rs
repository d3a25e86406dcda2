//! PSPs that sign nothing: a token in the path lets their webhooks in; without it there is no such path, and it leaves no trace.

use crate::support::{Answer, BODY, BODY_BYTES_MAX, NOW_S, Rig, SECRET, request, signature};

const TOKEN: &str = "hush-klarna-0123456789abcdef";
const OLD_TOKEN: &str = "hush-klarna-of-yesterday-9876";
const PAST_TOKEN: &str = "hush-klarna-of-last-year-1234";
const MOLLIE_TOKEN: &str = "hush.mollie_0123456789abcdef";
const HINT: &str = r#"{"order_id":"f3392f8b-6116-4073-ab96-e330819e2c07"}"#;

fn rig() -> Rig {
    let text = format!(
        "[[psp]]\nid = 'klarna'\nmode = 'test'\nclient_id = 'K1'\napi_key = 'hush_key'\n\
         secrets = ['{TOKEN}', '{OLD_TOKEN}', {{ value = '{PAST_TOKEN}', until = '2026-01-01T00:00:00Z' }}]\n\
         [[psp]]\nid = 'mollie'\naccount = 'shop'\nscheme = 'mollie-classic-unsigned'\nmode = 'test'\napi_key = 'test_hush'\n\
         secrets = ['{MOLLIE_TOKEN}']\nallow_from = ['10.0.0.0/8']\n"
    );
    Rig::start_with(&text, |config| config.ingress.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()])
}

/// All that a sender sees, but for the time.
fn shown(answer: &Answer) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let headers = answer.headers.iter().filter(|(name, _)| name != "date").cloned().collect();
    (answer.status, headers, answer.body.clone())
}

#[tokio::test]
async fn a_token_lets_a_hint_in_and_leaves_no_trace() {
    let rig = rig();
    let klarna = request(&format!("/webhooks/klarna/default/{TOKEN}"), "content-type: application/json\r\n", HINT);
    let old = request(&format!("/webhooks/klarna/default/{OLD_TOKEN}"), "", HINT);
    let push = request(&format!("/webhooks/klarna/default/{TOKEN}?klarna_order_id=o-7"), "", "");
    let from = "x-forwarded-for: 10.1.2.3\r\n";
    let mollie = request(&format!("/webhooks/mollie/shop/{MOLLIE_TOKEN}"), from, "id=tr_7UhSN1zuXS");
    for call in [klarna, old, push, mollie] {
        let answer = rig.exchange(call).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]));
    }
    let published = rig.publisher.published();
    let bodies: Vec<&[u8]> = published.iter().map(|message| &message.body[..]).collect();
    assert_eq!(bodies, [HINT.as_bytes(), HINT.as_bytes(), b"", b"id=tr_7UhSN1zuXS"]);
    assert!(published.iter().all(|message| message.header("x-paybell-proof") == Some("hint")), "{published:?}");
    assert_eq!(published[2].header("ce-subject"), Some("o-7"), "the only thing of a query that is kept");

    let metrics = rig.metrics();
    for secret in ["secret=\"psp[2].secrets[0]\"", "secret=\"psp[2].secrets[1]\"", "secret=\"psp[3].secrets[0]\""] {
        assert!(
            rig.metric("paybell_webhooks_verified_total", &[secret]) >= 1.0,
            "an operator sees which token is in use: {secret}"
        );
    }
    let wrong = rig.exchange(request(&format!("/webhooks/klarna/default/{TOKEN}hush"), "", HINT)).await;
    assert_eq!(wrong.status, 404);
    for (place, text) in [("log", rig.log.text()), ("metrics", metrics), ("messages", format!("{published:?}"))] {
        assert!(!text.is_empty() && !text.contains("hush"), "a token is in the {place}: {text}");
    }
}

#[tokio::test]
async fn without_the_token_there_is_no_such_path() {
    let rig = rig();
    let paths = [
        // None, or not the whole, or not it alone.
        "/webhooks/klarna".to_owned(),
        "/webhooks/klarna/default".to_owned(),
        "/webhooks/klarna/default/".to_owned(),
        format!("/webhooks/klarna/default/{}", &TOKEN[1..]),
        format!("/webhooks/klarna/default/{TOKEN}/"),
        format!("/webhooks/klarna/default/{TOKEN}/x"),
        format!("/webhooks/klarna/default//{TOKEN}"),
        format!("/webhooks/klarna/default/{}", TOKEN.to_uppercase()),
        format!("/webhooks/klarna/default/%68{}", &TOKEN[1..]),
        format!("/webhooks/klarna/default?token={TOKEN}"),
        // Out of its time, or another account's.
        format!("/webhooks/klarna/default/{PAST_TOKEN}"),
        format!("/webhooks/klarna/default/{MOLLIE_TOKEN}"),
        format!("/webhooks/mollie/shop/{TOKEN}"),
        "/webhooks/mollie/shop".to_owned(),
        // Where an account stands, and where nothing may stand.
        format!("/webhooks/klarna/{TOKEN}"),
        format!("/webhooks/mollie/{MOLLIE_TOKEN}"),
        format!("/webhooks/stripe/default/{TOKEN}"),
        format!("/webhooks/stripe/default/{SECRET}"),
    ];
    let calls = |path: &str| {
        let head = |method: &str, headers: &str| format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n").into_bytes();
        let signed = signature(SECRET, NOW_S, BODY.as_bytes());
        [
            request(path, "", HINT),
            request(path, &signed, BODY),
            request(path, "content-encoding: gzip\r\n", HINT),
            request(path, "", ""),
            head("GET", ""),
            head("HEAD", ""),
            head("OPTIONS", ""),
            head("PUT", "content-length: 0\r\n"),
            // Answered before a byte of the body is there, and however many are announced.
            head("POST", "content-length: 10\r\n"),
            head("POST", &format!("content-length: {}\r\n", BODY_BYTES_MAX + 1)),
            head("POST", "expect: 100-continue\r\ncontent-length: 10\r\n"),
        ]
    };
    for path in &paths {
        for (call, nowhere) in calls(path).into_iter().zip(calls("/webhooks/nobody/default/nothing")) {
            let (call_shown, answer) = (String::from_utf8_lossy(&call).into_owned(), rig.exchange(&call).await);
            assert_eq!(answer.status, 404, "{call_shown}");
            assert_eq!(shown(&answer), shown(&rig.exchange(nowhere).await), "it tells something: {call_shown}");
        }
    }
    assert_eq!(rig.publisher.published(), []);
    assert!(rig.counted("rejected", "token") > 0.5 && rig.counted("refused", "no_route") > 0.5);
    assert!(!rig.log.text().contains("hush") && !rig.metrics().contains("hush"), "a token is in the log or a label");
}

#[tokio::test]
async fn who_has_the_token_learns_what_is_wrong() {
    let rig = rig();
    let path = format!("/webhooks/mollie/shop/{MOLLIE_TOKEN}");
    let from = "x-forwarded-for: 10.1.2.3\r\n";
    for (headers, body, status) in [
        ("x-forwarded-for: 11.1.2.3\r\n".to_owned(), "id=tr_1", 403),
        (format!("{from}content-encoding: gzip\r\n"), "id=tr_1", 415),
        (from.to_owned(), "", 401),
    ] {
        assert_eq!(rig.exchange(request(&path, &headers, body)).await.status, status, "{headers}");
    }
    let get = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{from}\r\n");
    assert_eq!(rig.exchange(get).await.status, 405);
    assert!(!rig.log.text().contains("hush"));
}
