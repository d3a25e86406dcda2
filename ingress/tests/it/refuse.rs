//! What is not genuine, not well formed or not bearable: the right status, no detail, nothing published, one line each.

use std::time::Duration;

use paybell_shared::queue::PublishError;

use crate::support::{
    BODY, BODY_BYTES_MAX, NOW_S, Rig, SECRET, SHOP_SECRET, Verdict, genuine, request, signature, signed, until,
};

/// Refused with this status and without a detail; counted under this reason.
async fn check(rig: &Rig, request: impl AsRef<[u8]>, status: u16, reason: &str) {
    let shown = String::from_utf8_lossy(request.as_ref()).chars().take(120).collect::<String>();
    let (before, lines) = (reasons(rig, reason), rig.log.webhooks().len());
    let answer = rig.exchange(request).await;
    assert_eq!(answer.status, status, "{shown}");
    assert!(answer.body.is_empty(), "{shown}: tells {:?}", String::from_utf8_lossy(&answer.body));
    assert!((reasons(rig, reason) - before - 1.0).abs() < f64::EPSILON, "{shown}: not counted as {reason}");
    assert_eq!(rig.log.webhooks().len(), lines + 1, "{shown}: not one line");
    assert_eq!(rig.publisher.published(), [], "{shown}");
}

/// As [`check`], for what HTTP refuses before there is a webhook.
async fn check_http(rig: &Rig, request: impl AsRef<[u8]>, status: u16) {
    let shown = String::from_utf8_lossy(request.as_ref()).chars().take(120).collect::<String>();
    let before = rig.metric("paybell_http_refusals_total", &["server=\"webhooks\""]);
    let mut client = rig.client().await;
    client.send(request).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.body.as_slice()), (status, &b""[..]), "{shown}");
    assert!(client.next_answer().await.is_none(), "{shown}: the connection stays open");
    assert_eq!(rig.publisher.published(), [], "{shown}");
    // The connection's last word is counted when it is said.
    let counted = || rig.metric("paybell_http_refusals_total", &["server=\"webhooks\""]) - before;
    until("the refusal is counted", || counted() > 0.5).await;
    assert!((counted() - 1.0).abs() < f64::EPSILON, "{shown}");
}

fn reasons(rig: &Rig, reason: &str) -> f64 {
    ["rejected", "refused", "unavailable"].iter().map(|outcome| rig.counted(outcome, reason)).sum()
}

#[tokio::test]
async fn forgeries_are_rejected() {
    let rig = Rig::start();
    let path = "/webhooks/stripe";
    let good = signature(SECRET, NOW_S, BODY.as_bytes());
    check(&rig, request(path, &signature("whsec_other", NOW_S, BODY.as_bytes()), BODY), 401, "signature_mismatch").await;
    check(&rig, request(path, &signature(SHOP_SECRET, NOW_S, BODY.as_bytes()), BODY), 401, "signature_mismatch").await;
    check(&rig, request(path, &good, BODY.replace('1', "2")), 401, "signature_mismatch").await;
    check(&rig, request(path, &signature(SECRET, NOW_S - 301, BODY.as_bytes()), BODY), 401, "too_old").await;
    check(&rig, request(path, &signature(SECRET, NOW_S + 301, BODY.as_bytes()), BODY), 401, "too_new").await;
    check(&rig, request(path, "", BODY), 401, "missing_header").await;
    check(&rig, request(path, &good.repeat(2), BODY), 401, "duplicate_header").await;
    check(&rig, request(path, "stripe-signature: v1\r\n", BODY), 401, "malformed_header").await;
    check(&rig, signed(""), 401, "empty_body").await;
}

#[tokio::test]
async fn only_exact_paths_lead_somewhere() {
    let rig = Rig::start();
    for path in [
        "/",
        "*",
        "/webhooks",
        "/webhooks/",
        "/webhooks//stripe",
        "//webhooks/stripe",
        "/webhooks/stripe/",
        "/webhooks/stripe//",
        "/webhooks/stripe/default/",
        "/webhooks/stripe/default/a-token",
        "/webhooks/stripe/shop/../default",
        "/webhooks/./stripe",
        "/webhooks/%73tripe",
        "/webhooks/stripe%2fdefault",
        "/webhooks/stripe%00",
        "/webhooks/%2e%2e/webhooks/stripe",
        "/webhooks\\stripe",
        "/webhooks/Stripe",
        "/webhooks/stripe;x",
        "/webhooks/adyen",
        "/webhooks/standard-webhooks",
        "/webhooks/stripe/unknown",
        "/webhooks/default",
        "/metrics",
        "/livez",
    ] {
        check(&rig, request(path, &signature(SECRET, NOW_S, BODY.as_bytes()), BODY), 404, "no_route").await;
    }
    assert!(!rig.log.text().contains("a-token"), "a token is in the log");
}

#[tokio::test]
async fn only_post_is_answered() {
    let rig = Rig::start();
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POSTX", "post"] {
        let with_override = format!("{method} /webhooks/stripe HTTP/1.1\r\nhost: x\r\nx-http-method-override: POST\r\n\r\n");
        check(&rig, &with_override, 405, "method").await;
        let answer = rig.exchange(with_override).await;
        assert_eq!(answer.header("allow"), Some("POST"));
    }
}

#[tokio::test]
async fn compressed_bodies_are_not_expanded() {
    let rig = Rig::start();
    let good = signature(SECRET, NOW_S, BODY.as_bytes());
    for coding in ["gzip", "br", "deflate, gzip", "zstd"] {
        let headers = format!("{good}content-encoding: {coding}\r\n");
        check(&rig, request("/webhooks/stripe", &headers, BODY), 415, "encoding").await;
    }
    let answer = rig.exchange(request("/webhooks/stripe", &format!("{good}content-encoding: identity\r\n"), BODY)).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_as_soon_as_it_shows() {
    let rig = Rig::start();
    let one_too_many = vec![b'x'; BODY_BYTES_MAX + 1];
    check(&rig, signed(&one_too_many), 413, "too_large").await;
    // Promised only: not a byte of it is sent.
    check(&rig, "POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\ncontent-length: 1099511627776\r\n\r\n", 413, "too_large").await;
    // Without a length, and without an end.
    let endless = [
        b"POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".as_slice(),
        &b"400\r\n".iter().chain(&[b'x'; 0x400]).chain(b"\r\n").copied().collect::<Vec<u8>>().repeat(200),
    ];
    check(&rig, endless.concat(), 413, "too_large").await;
    // One byte above the limit, and an end.
    let head = "POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let last_byte = [format!("{head}{BODY_BYTES_MAX:x}\r\n").as_bytes(), &one_too_many[1..], b"\r\n1\r\nx\r\n0\r\n\r\n"].concat();
    check(&rig, last_byte, 413, "too_large").await;

    // What comes after the answer is read and thrown away, so that no reset overtakes the answer.
    let mut client = rig.client().await;
    client.send(signed(vec![b'x'; 64 * BODY_BYTES_MAX])).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    assert!(client.next_answer().await.is_none());
}

#[tokio::test]
async fn header_bombs_are_refused() {
    let rig = Rig::start_with("", |config| {
        config.limits.headers_max = 64;
        config.limits.header_bytes_max = 8 * 1024;
    });
    let numbered = |count: usize| (0..count).map(|number| format!("x-{number}: y")).collect::<Vec<_>>().join("\r\n") + "\r\n";
    let good = signature(SECRET, NOW_S, BODY.as_bytes());
    for headers in [numbered(62), numbered(150), numbered(10_000), format!("x-long: {}\r\n", "y".repeat(8 * 1024))] {
        check_http(&rig, request("/webhooks/stripe", &format!("{good}{headers}"), BODY), 431).await;
    }
    check_http(&rig, request(&format!("/webhooks/{}", "x".repeat(9_000)), "", BODY), 431).await;
    // Host, signature and length are three more: the limit itself is granted.
    assert_eq!(rig.exchange(request("/webhooks/stripe", &format!("{good}{}", numbered(61)), BODY)).await.status, 200);
}

#[tokio::test]
async fn ambiguous_framing_is_refused_or_cannot_smuggle() {
    let rig = Rig::start();
    let head = "POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\n";
    for bad in [
        format!("{head}content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
        format!("{head}content-length: +5\r\n\r\nhello"),
        format!("{head}content-length: 5, 5\r\n\r\nhello"),
        format!("{head}content-length: -1\r\n\r\nhello"),
        format!("{head}transfer-encoding: gzip\r\n\r\nhello"),
        format!("{head}transfer-encoding: chunked, gzip\r\n\r\nhello"),
        format!("{head} folded: x\r\n\r\n"),
        format!("{head}name : x\r\n\r\n"),
        "POST /webhooks/stripe HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "POST /webhooks/stripe HTTP/9.9\r\n\r\n".to_owned(),
        "not http at all\r\n\r\n".to_owned(),
    ] {
        check_http(&rig, bad, 400).await;
    }
    check(&rig, format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n"), 400, "broken_body").await;

    // Both framings: the chunked one counts, and what a proxy might take for a second request is never read.
    let smuggled = String::from_utf8(genuine()).unwrap();
    for headers in ["content-length: 5\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 5\r\n"]
    {
        let mut client = rig.client().await;
        client.send(format!("{head}{headers}\r\n0\r\n\r\n{smuggled}")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
        assert!(client.next_answer().await.is_none(), "the smuggled request was answered");
    }
    assert_eq!(rig.publisher.published(), []);
}

#[tokio::test]
async fn the_same_length_twice_is_no_ambiguity() {
    let rig = Rig::start();
    let twice = format!("{}content-length: {}\r\n", signature(SECRET, NOW_S, BODY.as_bytes()), BODY.len());
    assert_eq!(rig.exchange(request("/webhooks/stripe", &twice, BODY)).await.status, 200);
}

#[tokio::test]
async fn http_2_is_not_spoken() {
    let rig = Rig::start();
    let mut client = rig.client().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(client.next_answer().await.is_none_or(|answer| answer.status == 400));
}

#[tokio::test]
async fn a_head_has_a_deadline() {
    let rig = Rig::start_with("", |config| config.limits.header_timeout_s = 1);
    let (mut slow, mut idle, mut silent) = (rig.client().await, rig.client().await, rig.client().await);
    slow.send("POST /webhooks/stripe HTTP/1.1\r\nhost:").await;
    idle.send(genuine()).await;
    assert_eq!(idle.answer().await.status, 200);

    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert!(slow.next_answer().await.is_none());
    // Nothing was asked there, so nothing is answered: an answer could be taken for that of a request just under way.
    assert!(idle.next_answer().await.is_none());
    assert!(silent.next_answer().await.is_none());
}

#[tokio::test]
async fn a_body_has_a_deadline() {
    let rig = Rig::start_with("", |config| config.limits.body_timeout_s = 1);
    check(&rig, "POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nslow", 408, "slow_body").await;
    let endless = "POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
    check(&rig, endless, 408, "slow_body").await;
}

#[tokio::test]
async fn only_allowed_sources_are_heard() {
    let rig = Rig::start_with("", |config| {
        config.accounts[0].allow_from = vec!["198.51.100.0/24".parse().unwrap()];
        config.ingress.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    });
    let good = signature(SECRET, NOW_S, BODY.as_bytes());
    for forwarded in
        ["", "x-forwarded-for: 203.0.113.1\r\n", "x-forwarded-for: 198.51.100.1, 203.0.113.1\r\n", "x-forwarded-for: x\r\n"]
    {
        check(&rig, request("/webhooks/stripe", &format!("{good}{forwarded}"), BODY), 403, "source").await;
    }
    let through_proxy = format!("{good}x-forwarded-for: 203.0.113.1, 198.51.100.1\r\n");
    assert_eq!(rig.exchange(request("/webhooks/stripe", &through_proxy, BODY)).await.status, 200);

    let rig = Rig::start_with("", |config| config.accounts[0].allow_from = vec!["198.51.100.0/24".parse().unwrap()]);
    check(&rig, request("/webhooks/stripe", &through_proxy, BODY), 403, "source").await;
}

#[tokio::test]
async fn what_is_not_durable_is_not_acknowledged() {
    let rig = Rig::start();
    for (error, reason) in [
        (PublishError::Nacked, "nacked"),
        (PublishError::Unroutable, "unroutable"),
        (PublishError::Closed("by the test".to_owned()), "closed"),
        (PublishError::Blocked("low on memory".to_owned()), "blocked"),
        (PublishError::Full, "full"),
        (PublishError::Late(Duration::from_secs(2)), "late"),
    ] {
        rig.publisher.will(Verdict::Fail(error));
        check(&rig, genuine(), 503, reason).await;
        assert!(rig.exchange(genuine()).await.header("retry-after").is_some());
    }
    assert!(rig.log.webhooks().iter().all(|line| line.contains("WARN") && line.contains("evt_1")), "{}", rig.log.text());
    rig.publisher.will(Verdict::Confirm);
    assert_eq!(rig.exchange(genuine()).await.status, 200);
}

#[tokio::test]
async fn a_publisher_that_hangs_is_late() {
    let rig = Rig::start_with("", |config| config.limits.publish_budget_ms = 50);
    rig.publisher.will(Verdict::Hang);
    check(&rig, genuine(), 503, "late").await;
}

#[tokio::test]
async fn a_flood_beyond_the_limit_is_turned_away_and_the_rest_is_served() {
    let rig = Rig::start_with("", |config| config.limits.in_flight_max = 2);
    rig.publisher.will(Verdict::Wait);
    let (mut first, mut second) = (rig.client().await, rig.client().await);
    for client in [&mut first, &mut second] {
        client.send(genuine()).await;
        rig.publisher.began().await;
    }
    assert!((rig.metric("paybell_webhooks_in_flight", &[]) - 2.0).abs() < f64::EPSILON);
    for _ in 0..20 {
        check(&rig, genuine(), 503, "busy").await;
    }
    rig.publisher.release();
    rig.publisher.release();
    assert_eq!((first.answer().await.status, second.answer().await.status), (200, 200));
    rig.publisher.will(Verdict::Confirm);
    assert_eq!(rig.exchange(genuine()).await.status, 200);
}

#[tokio::test]
async fn who_hangs_up_is_counted_and_leaves_no_trace_in_flight() {
    let rig = Rig::start();
    rig.publisher.will(Verdict::Wait);
    let mut client = rig.client().await;
    client.send(genuine()).await;
    rig.publisher.began().await;
    drop(client);
    until("the webhook is given up", || rig.counted("aborted", "hung_up") > 0.0).await;
    assert!(rig.metric("paybell_webhooks_in_flight", &[]).abs() < f64::EPSILON);
    let [line] = &rig.log.webhooks()[..] else { panic!("not one line") };
    assert!(line.contains("WARN") && line.contains("evt_1"), "a genuine webhook was given up: {line}");
}

#[tokio::test]
async fn nothing_that_a_stranger_chooses_is_logged_or_a_label() {
    let rig = Rig::start();
    let good = signature(SECRET, NOW_S, BODY.as_bytes());
    let marked = "mark\u{1b}[31m%0d%0aforged-line";
    for request in [
        request(&format!("/webhooks/{}", marked.replace('\u{1b}', "%1b")), &good, BODY),
        request("/webhooks/stripe", &format!("user-agent: {marked}\r\nstripe-signature: {marked}\r\n"), BODY),
        request("/webhooks/stripe", "stripe-signature: t=1,v1=mark\r\n", marked),
        request("/webhooks/stripe", &format!("{good}traceparent: 00-mark\r\nx-request-id: mark\r\nhost: mark\r\n"), BODY),
        b"MARK /webhooks/mark\x1b HTTP/1.1\r\nhost: mark\r\n\r\n".to_vec(),
        b"POST /webhooks/stripe HTTP/1.1\r\nmark\x1b[31m: \x00\r\n\r\n".to_vec(),
    ] {
        rig.exchange(request).await;
    }
    // Even the PSP's own id, which is signed, is written so that it cannot break its line.
    let signed_id = "{\"id\":\"evt_\\u001b[31m\\r\\nforged-line\"}";
    assert_eq!(rig.exchange(signed(signed_id)).await.status, 200);
    let text = rig.log.text();
    assert!(!text.to_lowercase().contains("mark"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("forged-line")), "{text}");
    assert!(!text.contains(SECRET));
    assert!(rig.metric("paybell_webhooks_total", &["mark"]).abs() < f64::EPSILON);
}
