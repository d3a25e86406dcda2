//! Certificates that webhooks are signed by: fetched once, from one place, and for nobody's sake too often.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_shared::envelope::Envelope;
use paybell_shared::psp::Proof;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Answer, Rig, request, until};

const BODY: &str = r#"{"id":"WH-1","event_type":"PAYMENT.CAPTURE.COMPLETED","resource":{"id":"42311647XV020574X"}}"#;
const WEBHOOK_ID: &str = "4JH86294D6297924G";
const PATH: &str = "/v1/notifications/certs";

macro_rules! certificate {
    ($name:literal) => {
        include_str!(concat!("../../../shared/src/psp/fixtures/paypal/certificates/", $name, ".pem"))
    };
}

/// PayPal's host, so far as it has certificates: one answer for all, held back until it is let go.
struct Host {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
}

impl Host {
    async fn with(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked, gate) =
            (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default(), Arc::new(Semaphore::new(0)));
        let host = Self { address, asked: Arc::clone(&asked), gate: Arc::clone(&gate) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, asked, gate) = (answer.clone(), Arc::clone(&asked), Arc::clone(&gate));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    asked.lock().unwrap().push(line.split(' ').nth(1).unwrap_or_default().to_owned());
                    gate.acquire().await.unwrap().forget();
                    // Who asked may have gone.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        host
    }

    async fn that_says(status: &str, body: &str) -> Self {
        let host =
            Self::with(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())).await;
        host.gate.add_permits(1_000);
        host
    }

    async fn that_has(certificate: &str) -> Self {
        Self::that_says("200 OK", certificate).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn place(&self, id: &str) -> String {
        format!("http://{}{PATH}/{id}", self.address)
    }

    fn rig(&self) -> Rig {
        let root = certificate!("root");
        let account = format!(
            "[[psp]]\nid = 'paypal'\nmode = 'test'\nwebhook_id = '{WEBHOOK_ID}'\nclient_id = 'c'\napi_key = 'k'\n\
             api_url = 'http://{}'\ntrusted_root = '''{root}'''\n",
            self.address
        );
        Rig::start_with(&account, |_| {})
    }
}

/// A webhook that is signed by the certificate at `place`.
fn signed_at(place: &str) -> Vec<u8> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(certificate!("leaf.key").as_bytes()).unwrap();
    let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap();
    let message = format!("dfb3be50-fd74|2026-09-21T13:33:10Z|{WEBHOOK_ID}|{}", crc32fast::hash(BODY.as_bytes()));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    let headers = format!(
        "paypal-transmission-id: dfb3be50-fd74\r\npaypal-transmission-time: 2026-09-21T13:33:10Z\r\n\
         paypal-transmission-sig: {}\r\npaypal-cert-url: {place}\r\npaypal-auth-algo: SHA256withRSA\r\n",
        STANDARD.encode(signature)
    );
    request("/webhooks/paypal", &headers, BODY)
}

fn fetches(rig: &Rig, outcome: &str) -> f64 {
    rig.metric("paybell_certificate_fetches_total", &[r#"psp="paypal""#, &format!(r#"outcome="{outcome}""#)])
}

fn assert_is_not_yet(answer: &Answer) {
    assert_eq!((answer.status, answer.header("retry-after"), &answer.body[..]), (503, Some("5"), &b""[..]));
}

#[tokio::test]
async fn many_calls_cause_one_fetch_and_wait_for_none() {
    let host = Host::with(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", certificate!("good"))).await;
    let rig = host.rig();
    let webhook = signed_at(&host.place("CERT-1"));
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let (mut client, webhook) = (rig.client().await, webhook.clone());
        calls.spawn(async move {
            client.send(webhook).await;
            client.answer().await
        });
    }
    // The host has not answered: none of them waited for it.
    while let Some(answer) = calls.join_next().await {
        assert_is_not_yet(&answer.unwrap());
    }
    assert!(rig.publisher.published().is_empty());
    until("the host is asked", || !host.asked().is_empty()).await;
    host.gate.add_permits(1);
    until("the certificate is here", || fetches(&rig, "fetched") > 0.0).await;
    for _ in 0..3 {
        assert_eq!(rig.exchange(&webhook).await.status, 200);
    }
    assert_eq!(host.asked(), [format!("{PATH}/CERT-1")], "once, for all");
    let published = rig.publisher.published();
    assert_eq!(published.len(), 3);
    let envelope = Envelope::try_from(published[0].clone()).unwrap();
    assert_eq!((envelope.proof, &*envelope.secret_name, envelope.webhook_id.as_str()), (Proof::Hint, "webhook_id", "WH-1"));
    assert!((rig.counted("unavailable", "no_certificate") - 20.0).abs() < f64::EPSILON);
    let by = [r#"psp="paypal""#, r#"secret="webhook_id""#];
    assert!((rig.metric("paybell_webhooks_verified_total", &by) - 3.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn no_other_host_ever_hears_of_us() {
    let (host, other) = (Host::that_has(certificate!("good")).await, Host::that_has(certificate!("good")).await);
    let rig = host.rig();
    for place in [
        other.place("CERT-1"),
        format!("http://{}@{}{PATH}/CERT-1", host.address, other.address),
        format!("http://{}/{}{PATH}/CERT-1", other.address, host.address),
        format!("{}?x", host.place("CERT-1")),
        format!("{}/../../x", host.place("CERT-1")),
        format!("http://{}/CERT-1", host.address),
        "https://api.paypal.com/v1/notifications/certs/CERT-1".to_owned(),
        "file:///etc/passwd".to_owned(),
        "http://169.254.169.254/v1/notifications/certs/CERT-1".to_owned(),
    ] {
        assert_eq!(rig.exchange(signed_at(&place)).await.status, 401, "{place}");
    }
    // What would have been sent before is there before this one.
    rig.exchange(signed_at(&host.place("CERT-2"))).await;
    until("the one fetch", || fetches(&rig, "fetched") > 0.0).await;
    assert_eq!((host.asked(), other.asked()), (vec![format!("{PATH}/CERT-2")], vec![]));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Host::that_has(certificate!("good")).await;
    let host = Host::that_says(&format!("302 Found\r\nlocation: {}", other.place("CERT-1")), "").await;
    let rig = host.rig();
    assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
    until("the fetch failed", || fetches(&rig, "failed") > 0.0).await;
    assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
    assert_eq!((host.asked().len(), other.asked().len()), (1, 0));
}

#[tokio::test]
async fn a_flood_of_places_is_bounded_and_harms_no_one_who_is_known() {
    let host = Host::that_has(certificate!("good")).await;
    let rig = host.rig();
    rig.exchange(signed_at(&host.place("CERT-genuine"))).await;
    until("the certificate is here", || fetches(&rig, "fetched") > 0.0).await;
    let mut client = rig.client().await;
    for number in 0..50 {
        client.send(signed_at(&host.place(&format!("CERT-{number}")))).await;
        assert_is_not_yet(&client.answer().await);
    }
    assert!((fetches(&rig, "over_limit") - 45.0).abs() < f64::EPSILON, "five of the fifty, beside the first");
    until("all that were begun", || fetches(&rig, "fetched") > 5.0).await;
    assert_eq!(host.asked().len(), 6);
    assert_eq!(rig.exchange(signed_at(&host.place("CERT-genuine"))).await.status, 200);
    // Anyone can cause these: they fill no disk.
    assert!(rig.log.webhooks().iter().filter(|line| line.contains("no_certificate")).all(|line| line.contains("DEBUG")));
}

#[tokio::test]
async fn a_failure_is_not_repeated_at_once() {
    let big = format!("{}{}", certificate!("good"), "#".repeat(64 * 1024));
    for (status, body) in [("500 Oops", ""), ("404 Not Found", certificate!("good")), ("200 OK", "<html>"), ("200 OK", &big)] {
        let host = Host::that_says(status, body).await;
        let rig = host.rig();
        assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
        until("the fetch failed", || fetches(&rig, "failed") > 0.0).await;
        for _ in 0..5 {
            assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
        }
        assert_eq!(host.asked().len(), 1, "{status}");
        assert!(rig.log.text().contains("no certificate"), "{status}");
    }
}

#[tokio::test]
async fn what_is_no_certificate_of_paypals_verifies_nothing() {
    for (certificate, reason) in [
        (certificate!("expired"), "certificate"),
        (certificate!("other-common-name"), "certificate"),
        (certificate!("leaf-alone"), "certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate"),
    ] {
        let host = Host::that_has(certificate).await;
        let rig = host.rig();
        assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
        until("the certificate is here", || fetches(&rig, "fetched") > 0.0).await;
        assert_eq!(rig.exchange(signed_at(&host.place("CERT-1"))).await.status, 401);
        assert!((rig.counted("rejected", reason) - 1.0).abs() < f64::EPSILON);
        assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
        assert_eq!(host.asked().len(), 1, "it is tried again, but not at once");
        assert!(rig.publisher.published().is_empty());
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_host_that_never_answers() {
    let host = Host::with(String::new()).await;
    let rig = host.rig();
    assert_is_not_yet(&rig.exchange(signed_at(&host.place("CERT-1"))).await);
    until("the host is asked", || !host.asked().is_empty()).await;
    rig.shutdown.stop();
    // Without the cut it would take the exchange's time-out.
    assert!(rig.shutdown.finish().await);
    assert!(fetches(&rig, "failed") < 1.0);
}
