//! Webhooks signed by the PSPs' official SDKs are accepted, and refused once anything of them is altered; and the official
//! SDK accepts what Paybell signs.
//!
//! `tests/run` installs the SDKs (`tests/sdk/requirements.txt`) for Python under the target folder.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell::simulator::adyen::Adyen;
use paybell::simulator::standard_webhooks::StandardWebhooks;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::svix::Svix;
use paybell::simulator::{Dialect, Situation, Webhook};
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_tests::receiver::Receiver;
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{http_client, temporary_folder};
use paybell_tests::shop::{STRIPE_SECRET, Shop, configuration};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// By name, in lower case.
type Headers = BTreeMap<String, String>;

/// The base64 of 24 bytes: the shortest key that Standard Webhooks has.
const STANDARD_SECRET: &str = "whsec_dGhlLXRlc3RzLW93bi1zZWNyZXQtMDEy";
/// Beyond the tolerance of 300 s, however slow the test.
const STALE_S: i64 = 400;

const SDKS: [(&dyn Dialect, &str, &str, &str); 2] = [
    (&Stripe, "stripe", STRIPE_SECRET, "payment_intent.succeeded"),
    (&StandardWebhooks, "standardwebhooks", STANDARD_SECRET, "payment.captured"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_official_sdks_sign_is_accepted_and_what_was_altered_is_refused() {
    let folder = temporary_folder("sdks").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let standard = format!("[[psp]]\nid = \"standard-webhooks\"\nmode = \"test\"\nsecrets = [{STANDARD_SECRET:?}]\n");
    let serve = Service::serve(&(configuration(&file("queue.db"), &file("store.db"), "memory:") + &standard)).await;
    let shop = Shop::of(&serve, &serve);
    let (accepted, refused) = (StatusCode::OK, StatusCode::UNAUTHORIZED);
    for (psp, sdk, secret, event_type) in SDKS {
        let now = SystemClock.now().seconds();
        // Not ASCII, so that bytes and characters differ.
        let order_id = format!("ord-{sdk}-é€☃");
        let webhook = webhook(psp, event_type, &order_id, now);
        let send = async |headers: &Headers, body: &[u8]| {
            let url = format!("{}/webhooks/{}", serve.webhooks_url(), psp.id());
            let request = http_client().post(url).header("content-type", "application/json").body(body.to_vec());
            let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
            request.send().await.unwrap().status()
        };
        let signed = sign(sdk, secret, &webhook, now);

        for position in [0, webhook.body.len() / 2, webhook.body.len() - 1] {
            let mut body = webhook.body.to_vec();
            body[position] ^= 1;
            assert_eq!(send(&signed, &body).await, refused, "{sdk}: byte {position} was altered");
        }
        assert_eq!(send(&with_other_signature(&signed), &webhook.body).await, refused, "{sdk}: the signature was altered");
        assert_eq!(send(&with_other_time(&signed, now), &webhook.body).await, refused, "{sdk}: the time was altered");
        for at in [now - STALE_S, now + STALE_S] {
            assert_eq!(send(&sign(sdk, secret, &webhook, at), &webhook.body).await, refused, "{sdk}: signed at {at}, not {now}");
        }
        let foreign = sign(sdk, "whsec_c29tZWJvZHktZWxzZXMtc2VjcmV0LTAx", &webhook, now);
        assert_eq!(send(&foreign, &webhook.body).await, refused, "{sdk}: somebody else's secret");

        assert_eq!(send(&signed, &webhook.body).await, accepted, "{sdk}: as it was signed");
        let path = url::form_urlencoded::byte_serialize(order_id.as_bytes()).collect::<String>();
        assert_eq!(shop.until(&path, "paid").await["id"], order_id);
    }
    // Of all that was sent, one webhook of each.
    shop.until_counted("applied", i64::try_from(SDKS.len()).unwrap()).await;
    drop(serve);
    std::fs::remove_dir_all(folder).unwrap();
}

/// What the SDKs of PSPs sign that put the signature, or what is signed, into the body, and Svix.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_sdks_of_adyen_braintree_and_svix_sign_is_accepted_and_what_was_altered_is_refused() {
    const ADYEN_KEY: &str = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
    const PRIVATE_KEY: &str = "the-tests-own-private-key";
    const PUBLIC_KEY: &str = "the_tests_own_public_key";
    let folder = temporary_folder("more-sdks").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let accounts = format!(
        "[[psp]]\nid = \"adyen\"\nmode = \"test\"\nsecrets = [{ADYEN_KEY:?}]\n\
         [[psp]]\nid = \"svix\"\nmode = \"test\"\nsecrets = [{STANDARD_SECRET:?}]\n\
         [[psp]]\nid = \"braintree\"\nmode = \"test\"\nsecrets = [{PRIVATE_KEY:?}]\npublic_key = {PUBLIC_KEY:?}\n"
    );
    let serve = Service::serve(&(configuration(&file("queue.db"), &file("store.db"), "memory:") + &accounts)).await;
    let shop = Shop::of(&serve, &serve);
    let now = SystemClock.now().seconds();
    let text = |webhook: &Webhook| String::from_utf8(webhook.body.to_vec()).unwrap();
    let authorisation = text(&webhook(&Adyen, "AUTHORISATION", "ord-adyen", now));
    let captured = text(&webhook(&Svix, "payment.captured", "ord-svix", now));
    for (psp, secret, other_secret, body, from, to) in [
        ("adyen", ADYEN_KEY, &ADYEN_KEY.replace('4', "5"), &authorisation[..], "4999", "4998"),
        ("svix", STANDARD_SECRET, &"whsec_c29tZWJvZHktZWxzZXMtc2VjcmV0LTAx".to_owned(), &captured, "4999", "4998"),
        ("braintree", PRIVATE_KEY, &"another-private-key".to_owned(), "transaction_settled", "bt_payload=C", "bt_payload=D"),
    ] {
        let send = async |secret: &str, altered: bool| {
            let call = json!({
                "sdk": psp, "secret": secret, "public_key": PUBLIC_KEY, "id": "msg_1", "timestamp": now, "body": body,
            });
            let signed = ask("sign.py", &call);
            let mut body = signed["body"].as_str().unwrap().to_owned();
            if altered {
                assert!(body.contains(from), "{psp}: {body}");
                body = body.replacen(from, to, 1);
            }
            let headers: Headers = serde_json::from_value(signed["headers"].clone()).unwrap();
            let request = http_client().post(format!("{}/webhooks/{psp}", serve.webhooks_url())).body(body);
            let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
            request.send().await.unwrap().status()
        };
        assert_eq!(send(secret, true).await, StatusCode::UNAUTHORIZED, "{psp}: altered");
        assert_eq!(send(other_secret, false).await, StatusCode::UNAUTHORIZED, "{psp}: somebody else's secret");
        assert_eq!(send(secret, false).await, StatusCode::OK, "{psp}: as it was signed");
    }
    assert_eq!(shop.until("ord-adyen", "authorized").await["authorized"], 4999);
    assert_eq!(shop.until("ord-svix", "paid").await["captured"], 4999);
    // Braintree's sample names no order.
    shop.until_counted("parked", 1).await;
    drop(serve);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_sdk_accepts_a_notification_by_each_secret_and_nothing_altered() {
    const NEXT: &str = "whsec_bmV4dC1zZWNyZXQtb2YtdGhlLXRlc3RzLTM0NTY3ODkwMTIzNDU2";
    let folder = temporary_folder("notified").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let receiver = Receiver::willing().await;
    let (url, secrets) = (receiver.url(), [STANDARD_SECRET, NEXT]);
    let subscriber = format!("[[subscriber]]\nurl = {url:?}\nsecrets = {secrets:?}\nallow_private = true\n");
    let serve = Service::serve(&(configuration(&file("queue.db"), &file("store.db"), "memory:") + &subscriber)).await;
    Shop::of(&serve, &serve).register("ord-1", 4999).await;
    let notification = receiver.until(1).await.remove(0);
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: Headers = names.map(|name| (name.to_owned(), notification.header(name).to_owned())).into();
    let body = std::str::from_utf8(&notification.body).unwrap();
    for secret in secrets {
        let read = verified(secret, &headers, body);
        assert_eq!((&read["type"], &read["data"]["id"]), (&json!("order.pending"), &json!("ord-1")), "{secret}");
        assert_eq!(verified(secret, &headers, &body.replace("4999", "4998")), json!(null), "another body");
        let mut other = headers.clone();
        other.insert("webhook-id".to_owned(), "another".to_owned());
        assert_eq!(verified(secret, &other, body), json!(null), "another id");
    }
    assert_eq!(verified("whsec_c29tZWJvZHktZWxzZXMtc2VjcmV0LTAx", &headers, body), json!(null), "somebody else's secret");
    drop(serve);
    std::fs::remove_dir_all(folder).unwrap();
}

fn webhook(psp: &dyn Dialect, event_type: &str, order_id: &str, at: i64) -> Webhook {
    let situation = Situation { order_id, amount: 4999, currency: "EUR", part: None, ending: None, live: false, at, salt: 1 };
    psp.staged(event_type, &situation).unwrap()
}

fn with_other_signature(signed: &Headers) -> Headers {
    let mut altered = signed.clone();
    if let Some(signature) = altered.get_mut("webhook-signature") {
        let mut mac = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
        mac[0] ^= 1;
        *signature = format!("v1,{}", STANDARD.encode(mac));
    } else {
        let signature = altered.get_mut("stripe-signature").unwrap();
        let last = signature.pop().unwrap();
        signature.push(if last == '0' { '1' } else { '0' });
    }
    altered
}

fn with_other_time(signed: &Headers, now: i64) -> Headers {
    let (from, to) = (now.to_string(), (now - 1).to_string());
    signed
        .iter()
        .map(|(name, value)| {
            let bears_time = name == "stripe-signature" || name == "webhook-timestamp";
            (name.clone(), if bears_time { value.replace(&from, &to) } else { value.clone() })
        })
        .collect()
}

/// The headers that the SDK makes.
fn sign(sdk: &str, secret: &str, webhook: &Webhook, at: i64) -> Headers {
    let body = std::str::from_utf8(&webhook.body).unwrap();
    let call = json!({ "sdk": sdk, "secret": secret, "id": webhook.id, "timestamp": at, "body": body });
    let signed = ask("sign.py", &call);
    assert_eq!(signed["body"], body, "{sdk} signs the body as it is");
    serde_json::from_value(signed["headers"].clone()).unwrap()
}

/// What the SDK reads in a notification; null: it does not accept it.
fn verified(secret: &str, headers: &Headers, body: &str) -> Value {
    ask("verify.py", &json!({ "secret": secret, "headers": headers, "body": body }))
}

/// One call of a script beside this one.
fn ask(script: &str, call: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(script);
    let command = &mut Command::new(python());
    let mut process = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The process reads one line before it writes one: neither waits for the other.
    writeln!(process.stdin.take().unwrap(), "{call}").unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "the SDK failed: see its error above");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The Python that has the SDKs: beside the folder of the profile, wherever the target folder is.
fn python() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let candidates = executable.ancestors().skip(1).take(4).map(|folder| folder.join("sdk/bin/python"));
    let found = candidates.into_iter().find(|python| python.is_file());
    found.expect("the official SDKs are not installed under the target folder (sdk/bin/python): run tests/run, which does that")
}
