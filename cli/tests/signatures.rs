//! The simulator signs, the adapters verify: two separate codes, one law.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use paybell::simulator::ledger::{Event, Ledger};
use paybell::simulator::story::Story;
use paybell::simulator::{self, Dialect, Forgery, Seed, Settings, SignedCall, Situation, Webhook};
use paybell_shared::clock::Timestamp;
use paybell_shared::envelope::Envelope;
use paybell_shared::event::{Mode, PaymentEvent};
use paybell_shared::money::{Currency, Money};
use paybell_shared::psp::{self, Account, Api, Asked, Keys, Proof, Rejection, TranslateError, Verified, WebhookRequest, generic};
use paybell_shared::secret::Secret;
use paybell_worker::order::{Registers, Rules};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use tower::ServiceExt as _;

const TOLERANCE_S: u32 = 300;
const NOW: i64 = 1_790_000_000;

/// The account at the merchant whose other side the settings are.
fn account(dialect: &dyn Dialect, settings: &Settings) -> Account {
    let adapter = psp::find(dialect.psp()).unwrap();
    let scheme = match settings.scheme {
        None => adapter.profile().schemes.first(),
        Some(name) => adapter.profile().scheme(name),
    };
    let secrets = if settings.secret.is_empty() { vec![] } else { vec![Secret::new("theirs", &settings.secret)] };
    Account {
        psp: adapter,
        psp_id: adapter.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys {
            secrets,
            tolerance_s: TOLERANCE_S,
            scheme: scheme.expect("a scheme of the adapter's").name,
            url: settings.url.clone(),
            webhook_id: settings.webhook_id.clone(),
            public_key: settings.public_key.clone(),
            trusted_root: settings.trusted_root.clone(),
            generic: settings.generic.map(|rules| Arc::new(generic::Rules::new(rules.clone()).unwrap())),
        },
        api: Api {
            key: settings.api_key.as_ref().map(|key| Secret::new("api_key", key)),
            url: Some("http://127.0.0.1:1".to_owned()),
            client_id: settings.client_id.clone(),
            merchant_id: settings.merchant_id.clone(),
        },
        order_reference: None,
        capture: psp::Capture::default(),
    }
}

/// An account for which the simulator serves an API, as [`account`] has it.
fn settings(dialect: &dyn Dialect) -> Settings {
    Settings { api_url: Some("http://127.0.0.1:1".to_owned()), ..dialect.settings() }
}

fn verify(dialect: &dyn Dialect, settings: &Settings, call: &SignedCall, now: i64) -> Result<Verified, Rejection> {
    let account = account(dialect, settings);
    let mut map = HeaderMap::new();
    for (name, value) in &call.headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    let request = WebhookRequest { headers: &map, body: &call.body, token: call.token.as_deref(), query: "", certificate: None };
    // The ingress fetches it from where the call says; the adapter says whether it is the PSP's place.
    let certificate = account.psp.certificate_url(&request, &account)?.map(|_| dialect.certificate().unwrap());
    let request = WebhookRequest { certificate: certificate.map(str::as_bytes), ..request };
    account.psp.verify(&request, &account.keys, Timestamp::from_seconds(now))
}

/// The account with another secret.
fn rekeyed(dialect: &dyn Dialect, key: &str) -> Settings {
    Settings { secret: dialect.secret(&Seed::new("secret", key, 0)), ..settings(dialect) }
}

fn situation(order_id: &str) -> Situation<'_> {
    Situation { order_id, amount: 4999, currency: "EUR", part: None, ending: None, live: false, at: NOW, salt: 1 }
}

/// Any event that the PSP has, about any order.
fn webhooks() -> impl Strategy<Value = (&'static dyn Dialect, Webhook)> {
    webhooks_of(|_| true)
}

/// The same, of those dialects alone.
fn webhooks_of(wanted: fn(&dyn Dialect) -> bool) -> impl Strategy<Value = (&'static dyn Dialect, Webhook)> {
    let dialects: Vec<&'static dyn Dialect> = simulator::ALL.iter().copied().filter(|dialect| wanted(*dialect)).collect();
    (
        prop::sample::select(dialects),
        any::<prop::sample::Index>(),
        "[ -~]{1,40}",
        1i64..1_000_000_000,
        any::<u64>(),
        any::<bool>(),
    )
        .prop_map(|(dialect, event, order, amount, salt, live)| {
            let situation = Situation { amount, salt, live, ..situation(&order) };
            let event = dialect.event_types()[event.index(dialect.event_types().len())];
            (dialect, dialect.staged(event.name, &situation).unwrap())
        })
}

proptest! {
    #[test]
    fn what_is_signed_verifies_and_a_repetition_is_known_as_one(
        (dialect, webhook) in webhooks(), key in "[a-z]{1,9}", at in 1_789_000_000i64..1_800_000_000, skew in -300i64..=300,
    ) {
        let settings = rekeyed(dialect, &key);
        let verified = verify(dialect, &settings, &dialect.sign(&settings, &webhook, at).unwrap(), at + skew).unwrap();
        let again = verify(dialect, &settings, &dialect.sign(&settings, &webhook, at + 60).unwrap(), at + 60).unwrap();
        prop_assert_eq!(verified.webhook_id(), again.webhook_id());
        let signs_nothing = dialect.token_in_path() || !dialect.signs_body();
        prop_assert!(!signs_nothing || verified.proof() == Proof::Hint);
    }

    #[test]
    fn beyond_the_tolerance_it_does_not_where_a_time_is_signed(
        (dialect, webhook) in webhooks_of(|dialect| dialect.signs_time()), at in 1_789_000_000i64..1_800_000_000, beyond in 301i64..100_000,
    ) {
        let settings = settings(dialect);
        let call = dialect.sign(&settings, &webhook, at).unwrap();
        let is_old = matches!(verify(dialect, &settings, &call, at + beyond), Err(Rejection::TooOld { .. }));
        prop_assert!(is_old);
        let is_new = matches!(verify(dialect, &settings, &call, at - beyond), Err(Rejection::TooNew { .. }));
        prop_assert!(is_new);
    }

    #[test]
    fn any_other_secret_is_found((dialect, webhook) in webhooks(), key in "[a-z]{1,9}", other in "[a-z]{1,9}") {
        prop_assume!(key != other && !settings(dialect).secret.is_empty());
        let call = dialect.sign(&rekeyed(dialect, &other), &webhook, NOW).unwrap();
        let result = verify(dialect, &rekeyed(dialect, &key), &call, NOW);
        let is_found = matches!(result, Err(Rejection::SignatureMismatch { .. } | Rejection::Token));
        prop_assert!(is_found, "{}: {:?}", dialect.id(), result);
    }

    #[test]
    fn any_forgery_is_found((dialect, webhook) in webhooks(), forgery in prop::sample::select(Forgery::ALL.to_vec())) {
        let settings = settings(dialect);
        if let Some(call) = dialect.forge(&settings, &webhook, forgery, NOW).unwrap() {
            let result = verify(dialect, &settings, &call, NOW);
            prop_assert!(result.is_err(), "{} takes {forgery:?} for its own", dialect.id());
        }
    }
}

/// PSPs that sign the body as it stands find any byte.
#[test]
fn any_altered_byte_is_found_where_the_body_is_signed_as_it_stands() {
    for id in [
        "stripe",
        "razorpay",
        "mollie",
        "checkoutcom",
        "paystack",
        "flutterwave-v4",
        "coinbase-commerce",
        "standard-webhooks",
        "svix",
        "shopify",
        "github",
        "generic",
    ] {
        let dialect = simulator::find(id).unwrap();
        let settings = settings(dialect);
        let event = dialect.event_types()[0].name;
        let webhook = dialect.staged(event, &situation("ORD-1001")).unwrap();
        let call = dialect.sign(&settings, &webhook, NOW).unwrap();
        for place in 0..call.body.len() {
            let mut body = call.body.to_vec();
            body[place] ^= 1;
            let result = verify(dialect, &settings, &SignedCall { body: body.into(), ..call.clone() }, NOW);
            assert!(matches!(result, Err(Rejection::SignatureMismatch { .. })), "{id}, {place}: {result:?}");
        }
    }
}

#[test]
fn every_event_that_can_be_sent_is_understood() {
    for dialect in simulator::ALL.iter().copied() {
        let settings = settings(dialect);
        let account = account(dialect, &settings);
        let mut understood = 0;
        for event in dialect.event_types() {
            for ending in [None].into_iter().chain(event.endings.iter().map(|(ending, _)| Some(*ending))) {
                let webhook = dialect.staged(event.name, &Situation { ending, ..situation("ORD-1001") }).unwrap();
                let call = dialect.sign(&settings, &webhook, NOW).unwrap();
                let verified = verify(dialect, &settings, &call, NOW).unwrap();
                let proof = verified.proof();
                let envelope = Envelope::new(&account, verified, Timestamp::from_seconds(NOW), call.body, None);
                let count = match proof {
                    Proof::Proven => account.psp.translate(&envelope, &account).map(|events| events.len()),
                    Proof::Hint => account.psp.hinted(&envelope, &account).map(|payments| payments.len()),
                };
                match count {
                    Ok(count) => understood += count,
                    Err(TranslateError::Ignored(_)) => {}
                    Err(error) => panic!("{}, {} {ending:?}: {error}", dialect.id(), event.name),
                }
            }
        }
        assert!(understood > 0, "{}", dialect.id());
    }
}

/// In any order of arrival. Hints say nothing by themselves.
#[test]
fn every_story_that_webhooks_tell_comes_to_its_end() {
    for dialect in simulator::ALL.iter().copied().filter(|dialect| !dialect.hints()) {
        let settings = settings(dialect);
        let account = account(dialect, &settings);
        for story in Story::ALL.into_iter().filter(|story| dialect.plays(*story) && dialect.tells(*story)) {
            let mut rng = StdRng::seed_from_u64(7);
            let mut ledger = Ledger::new(dialect, false, 1);
            story.play(&mut ledger, "ORD-1001", 4999, dialect.currencies()[0], &mut rng, NOW);
            let truth = ledger.truth("ORD-1001").unwrap();
            let told: Option<Vec<Vec<_>>> =
                ledger.events().iter().map(|event| events(&account, dialect, &settings, event)).collect();
            // What must be asked about is played in `every_story_comes_to_its_end_by_each_way_that_leads_there`.
            let Some(mut told) = told.map(|told| told.concat()) else { continue };
            for _ in 0..20 {
                told.shuffle(&mut rng);
                let currency = Currency::parse(dialect.currencies()[0]).unwrap();
                let mut order = Registers::default();
                order.expected = Some(Money::new(4999, currency));
                for event in &told {
                    order.join(event, event.mode.is_some_and(|mode| mode != account.mode));
                }
                let view = order.view(&Rules::default());
                assert_eq!(
                    (view.status.as_str(), view.captured, view.refunded, view.disputed),
                    (truth.status, truth.captured, truth.refunded, truth.disputed),
                    "{} {story:?}",
                    dialect.id()
                );
            }
        }
    }
}

/// What the adapter makes of an event that the simulator sends; `None`: it gives reason to ask.
fn events(account: &Account, dialect: &dyn Dialect, settings: &Settings, event: &Event) -> Option<Vec<PaymentEvent>> {
    let call = dialect.sign(settings, &event.into(), NOW).unwrap();
    let verified = verify(dialect, settings, &call, NOW).unwrap();
    let envelope = Envelope::new(account, verified, Timestamp::from_seconds(NOW), call.body, None);
    if !account.psp.hinted(&envelope, account).unwrap_or_default().is_empty() {
        return None;
    }
    let events = match account.psp.translate(&envelope, account) {
        Ok(events) => events,
        Err(TranslateError::Ignored(_)) => Vec::new(),
        Err(error) => panic!("{}, {}: {error}", dialect.id(), event.event_type),
    };
    Some(events)
}

#[test]
fn what_the_simulator_can_be_asked_is_what_the_adapter_asks() {
    for dialect in simulator::ALL.iter().copied() {
        let ledger = Ledger::new(dialect, false, 1);
        let account = simulator::Account::new(dialect, settings(dialect), ledger);
        let can = psp::find(dialect.psp()).unwrap().profile().can;
        assert_eq!(account.api().is_some(), can.payment_status || can.event_list, "{}", dialect.id());
    }
}

#[test]
fn a_made_up_account_is_one_that_the_adapter_takes() {
    for dialect in simulator::ALL.iter().copied() {
        let account = account(dialect, &settings(dialect));
        assert_eq!(account.psp.check(&account), Ok(()), "{}", dialect.id());
        let scheme = account.psp.profile().scheme(account.keys.scheme).unwrap();
        assert_eq!(scheme.token_in_path, dialect.token_in_path(), "{}", dialect.id());
    }
}

#[test]
fn a_private_key_of_standard_webhooks_signs_for_its_public_one() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let private = format!("whsk_{}", STANDARD.encode([9; 32]));
    let public = format!("whpk_{}", STANDARD.encode(pair.public_key()));
    let body = Bytes::from_static(br#"{"type":"payment.captured","timestamp":"2026-09-21T13:33:10Z","data":{}}"#);
    let webhook = Webhook { id: "msg_1".to_owned(), event_type: "payment.captured".to_owned(), body };
    let dialect = simulator::find("standard-webhooks").unwrap();
    let call = dialect.sign(&Settings { secret: private, ..dialect.settings() }, &webhook, NOW).unwrap();
    let theirs = Settings { secret: public, ..dialect.settings() };
    assert_eq!(verify(dialect, &theirs, &call, NOW).unwrap().webhook_id(), "msg_1");
}

/// What of an order reaches Paybell.
#[derive(Clone, Copy, Debug)]
enum Heard {
    /// Every webhook, and of its payments those answers that they, or doubts, give reason to ask for.
    Webhooks,
    /// That, and the answer about the payment that the shop named.
    WebhooksAndName,
    /// The answer about the payment that the shop named.
    Name,
}

/// Status, captured, refunded and disputed, as the shop would see them.
async fn seen(dialect: &'static dyn Dialect, ledger: Ledger, amount: Money, heard: Heard) -> (&'static str, i64, i64, i64) {
    let settings = settings(dialect);
    let account = account(dialect, &settings);
    let mut registers = Registers::default();
    registers.expected = Some(amount);
    let mut asks = BTreeSet::new();
    if !matches!(heard, Heard::Webhooks) {
        asks.extend(ledger.payments().map(|payment| payment.id.clone()));
    }
    for event in ledger.events().iter().filter(|_| !matches!(heard, Heard::Name)) {
        let call = dialect.sign(&settings, &Webhook::from(event), NOW).unwrap();
        let verified = verify(dialect, &settings, &call, NOW).unwrap();
        let proof = verified.proof();
        let envelope = Envelope::new(&account, verified, Timestamp::from_seconds(NOW), call.body, None);
        asks.extend(account.psp.hinted(&envelope, &account).unwrap_or_default());
        if proof == Proof::Proven {
            for event in account.psp.translate(&envelope, &account).unwrap_or_default() {
                registers.join(&event, false);
            }
        }
    }
    asks.extend(registers.in_doubt().into_iter().map(|(_, payment_id)| payment_id));
    if let Some(api) = simulator::Account::new(dialect, settings, ledger).api() {
        for payment_id in &asks {
            for event in asked(&account, &api, payment_id).await {
                registers.join(&event, false);
            }
        }
    }
    let view = registers.view(&Rules::default());
    (view.status.as_str(), view.captured, view.refunded, view.disputed)
}

/// All pages of the answer about a payment.
async fn asked(account: &Account, api: &axum::Router, payment_id: &str) -> Vec<PaymentEvent> {
    let (mut events, mut cursor) = (Vec::new(), None);
    loop {
        let mut request = account.psp.status_request(payment_id, cursor.as_deref(), account).unwrap();
        if let Some(asking) = account.psp.token_request(account) {
            let token = account.psp.read_token(&answer(api, asking.unwrap()).await).unwrap();
            let credentials = format!("Bearer {}", token.secret.expose());
            request.headers_mut().insert("authorization", HeaderValue::try_from(credentials).unwrap());
        }
        let at = Timestamp::from_seconds(NOW);
        let asked = Asked { payment_id, cursor: cursor.as_deref(), at, look_id: "look" };
        let answered = account.psp.read_status(&asked, &answer(api, request).await, account).unwrap();
        assert_eq!(answered.unread, []);
        events.extend(answered.events);
        match answered.next {
            Some(next) => cursor = Some(next),
            None => return events,
        }
    }
}

async fn answer(api: &axum::Router, request: http::Request<Bytes>) -> http::Response<Bytes> {
    let (head, body) = api.clone().oneshot(request.map(Body::from)).await.unwrap().into_parts();
    http::Response::from_parts(head, axum::body::to_bytes(body, usize::MAX).await.unwrap())
}

#[tokio::test]
async fn every_story_comes_to_its_end_by_each_way_that_leads_there() {
    for dialect in simulator::ALL.iter().copied() {
        for (number, story) in Story::ALL.into_iter().filter(|story| dialect.plays(*story)).enumerate() {
            let currency = dialect.currencies()[number % dialect.currencies().len()];
            let amount = Money::new(4999, Currency::parse(currency).unwrap());
            let has_api = simulator::Account::new(dialect, settings(dialect), Ledger::new(dialect, false, 1)).api().is_some();
            let by_webhooks = if dialect.tells(story) { Heard::Webhooks } else { Heard::WebhooksAndName };
            let by_name = (has_api && dialect.tells_when_asked(story)).then_some(Heard::Name);
            for heard in [by_webhooks].into_iter().chain(by_name) {
                let mut ledger = Ledger::new(dialect, false, 1);
                story.play(&mut ledger, "ORD-1001", 4999, currency, &mut StdRng::seed_from_u64(number as u64), NOW);
                let truth = ledger.truth("ORD-1001").unwrap();
                let expected = (truth.status, truth.captured, truth.refunded, truth.disputed);
                let seen = seen(dialect, ledger, amount, heard).await;
                assert_eq!(seen, expected, "{}, {story:?} in {currency} by {heard:?}", dialect.id());
            }
        }
    }
}
