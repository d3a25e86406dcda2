//! Coinbase Commerce: charges, paid in cryptocurrency.
//!
//! Sources: docs.cdp.coinbase.com/commerce, `PyPI` coinbase-commerce 1.0.1, npm coinbase-commerce-node 1.0.4 (both old). Coinbase's
//! newer "Checkout" webhooks (`checkout.payment.success` …) are another product with another signature, and are not read here.
//!
//! **Signature.** `X-CC-Webhook-Signature`: 64 lower-case hex digits, HMAC-SHA256 of the raw body by the shared secret as text. No
//! time is signed; the SDKs compare text, so upper case is refused.
//!
//! **Events.** `event.id` names an event; the outer `id` names one delivery of it, and differs on every retry. Payments are
//! charges by `data.id`; `data.code`, the short name in links, is a name of it, too (asking is by `id`, so register that). The
//! order is `data.metadata.order_id`.
//!
//! | type | |
//! |---|---|
//! | `charge:created`, `charge:pending` | pending: seen on the chain is not yet final |
//! | `charge:confirmed` | captured: the price, in the merchant's currency |
//! | `charge:resolved` | captured: what came in, since that is what the merchant settled for; the price where no final payment is listed |
//! | `charge:failed` | by the last entry of the timeline: `EXPIRED` expired, `CANCELED` canceled, else (`UNRESOLVED`: under- or overpaid …) failed |
//! | `charge:delayed` | pending: money came too late, the merchant decides at Coinbase, and `charge:resolved` says how |
//!
//! **Amounts** are decimal strings. The chain's value in the merchant's currency (`payments[].value.local`) differs from the price
//! by the rate of the moment; "confirmed" says that the price is paid, so the price is what counts.
//!
//! **Refunds and disputes** there are none: a refund is a transfer of the merchant's own. **Test mode** there is none either.
//!
//! **Versions.** None; an event's `created_at`, an answer's `Date`.
//!
//! **The list of events** (`GET /events`) runs back from now and knows no time to begin at. It is followed to the first page that
//! reaches further back than what is asked for.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Answer, AskError, Asked, Keys, LateChanges, Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Unread, Verified, WebhookRequest, Window, answer, ask, signature,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{Fact, FactVersion, PaymentEvent, PaymentFact, PaymentState, Reference, ReferenceKind, Source};
use crate::money::Money;

/// The adapter.
pub struct CoinbaseCommerce;

const SIGNATURE: &str = "x-cc-webhook-signature";
const API: &str = "https://api.commerce.coinbase.com";
/// The version that both SDKs name.
const API_VERSION: &str = "2018-03-22";
/// The largest page.
const PAGE: usize = 100;

static PROFILE: Profile = Profile {
    name: "Coinbase Commerce",
    translate_headers: &[],
    // [U]
    timeout: Duration::from_secs(5),
    // Ever more slowly, an hour apart at most.
    retry_window: Duration::from_hours(3 * 24),
    // A chain's confirmations take minutes.
    usual_delay: Duration::from_mins(15),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("hex-body")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::All, endpoint_list: false },
    list: Some(Listing { slice: None, is_log: true, ..Listing::USUAL }),
    sources: &[],
};

impl Psp for CoinbaseCommerce {
    fn id(&self) -> &'static str {
        "coinbase-commerce"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Commerce: Settings, Notifications, Webhook subscriptions"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let malformed = Rejection::MalformedHeader { header: SIGNATURE, problem: "it is not 64 lowercase hex digits" };
        let offered: [u8; 32] = signature::lower_hex(signature::exactly_one(request.headers, SIGNATURE)?).ok_or(malformed)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let secret_name = signature::matching_secret(keys, now, |secret| {
            signature::hmac_sha256(secret.expose().as_bytes(), &[request.body]).ct_eq(&offered)
        })?;
        let Head { event } = Head::read(request.body);
        let name = |text: Cow<'_, str>| Some(text).filter(|text| json::is_name(text)).map(Cow::into_owned);
        Ok(Verified {
            webhook_id: name(event.id).unwrap_or_else(|| signature::body_id(request.body)),
            event_type: name(event.event_type),
            subject: None,
            secret_name,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value).object("event")?;
        translate_event(&event, account, Source::Webhook).map(|event| vec![event])
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if cursor.is_some() || !is_id(payment_id) {
            return Err(AskError::MalformedId(cursor.unwrap_or(payment_id).to_owned()));
        }
        get(account, &format!("/charges/{payment_id}"))
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let charge = Node::root(&value).object("data")?;
        let id = charge.name("id")?;
        if id != asked.payment_id {
            return Err(charge.required("id")?.problem("another charge than was asked for").into());
        }
        let at = answer::date(response).unwrap_or(asked.at);
        let told = telling(&charge, account, id.to_owned(), "poll:charge", at, charge_by_timeline(&charge)?)?;
        Ok(Answer { events: vec![told.answer(account, asked)], unread: Vec::new(), next: None })
    }

    /// Newest first. The list cannot be asked by time.
    fn events_request(&self, _window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if let Some(cursor) = cursor.filter(|cursor| !is_id(cursor)) {
            return Err(AskError::MalformedId(cursor.to_owned()));
        }
        let after = cursor.map(|id| format!("&starting_after={id}")).unwrap_or_default();
        get(account, &format!("/events?order=desc&limit={PAGE}{after}"))
    }

    fn read_events(
        &self,
        window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let page = Page::read(&Node::root(&value), asked.cursor, window)?;
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: page.next };
        for (event, id) in page.items.iter().zip(page.ids) {
            if telling::time(event, "created_at").is_ok_and(|at| at < window.in_seconds().since) {
                continue;
            }
            match translate_event(event, account, Source::Reconciliation) {
                Ok(event) => found.events.push(event),
                Err(TranslateError::Ignored(_)) => {}
                Err(error) => found.unread.push(Unread { event_id: id.to_owned(), error }),
            }
        }
        Ok(found)
    }
}

/// What the ingress needs of the body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    event: EventHead<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EventHead<'a> {
    // Not `Option<Cow>`, which serde would copy.
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads an authentic body. What is no such JSON is still authentic: it is kept, and the worker quarantines it.
    fn read(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }
}

// ------------------------------------------------------------------------------------------------------- translation

/// An event, from a webhook or from the list of events: the same event gives the same facts.
fn translate_event(event: &Node<'_>, account: &Account, source: Source) -> Result<PaymentEvent, TranslateError> {
    let event_type = event.name("type")?;
    let fact: fn(&Node<'_>) -> Result<PaymentFact, Problem> = match event_type {
        "charge:created" | "charge:pending" | "charge:delayed" => |_| Ok(PaymentFact::new(PaymentState::Pending)),
        "charge:confirmed" => |charge| captured(price_of(charge)?),
        "charge:resolved" => |charge| captured(received_by(charge)?),
        "charge:failed" => failed_charge,
        _ => return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment"))),
    };
    let created = telling::time(event, "created_at")?;
    let charge = event.object("data")?;
    let told = telling(&charge, account, event.name("id")?.to_owned(), event_type, created, fact(&charge)?)?;
    Ok(told.event(account, source))
}

fn telling<'a>(
    charge: &Node<'a>,
    account: &Account,
    event_id: String,
    event_type: &'a str,
    at: Timestamp,
    fact: PaymentFact,
) -> Result<Telling<'a>, Problem> {
    let code = charge.optional_name("code")?.map(|code| Reference::new(ReferenceKind::Charge, code));
    Ok(Telling {
        event_id,
        event_type,
        at,
        mode: None,
        order: telling::order(charge, account, &[&["metadata", "order_id"]]),
        payment_id: charge.name("id")?,
        others: code.into_iter().collect(),
        version: FactVersion::Time(at.millis()),
        fact: Fact::Payment(fact),
    })
}

/// A charge is paid by what comes in until it is confirmed: no more is captured of it later.
#[expect(clippy::unnecessary_wraps, reason = "in the row of those that may fail")]
fn captured(amount: Money) -> Result<PaymentFact, Problem> {
    Ok(PaymentFact { captured: Some(amount), capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
}

/// The price; a charge without one (a donation) is worth what came in.
fn price_of(charge: &Node<'_>) -> Result<Money, Problem> {
    let pricing = charge.member("pricing");
    if pricing.optional("local").is_none()
        && let Some(received) = paid_into(charge)?
    {
        return Ok(received);
    }
    pricing.object("local")?.decimal_money("amount", "currency")
}

/// What came in; the price where no final payment is listed, since then the merchant settled it elsewhere.
fn received_by(charge: &Node<'_>) -> Result<Money, Problem> {
    paid_into(charge)?.map_or_else(|| price_of(charge), Ok)
}

/// The sum of the payments that are final, in the merchant's currency. `None` if none is.
fn paid_into(charge: &Node<'_>) -> Result<Option<Money>, Problem> {
    if charge.optional("payments").is_none() {
        return Ok(None);
    }
    let mut sum: Option<Money> = None;
    for payment in charge.array("payments")? {
        // The status is in capitals in the older form, in small letters in the newer.
        if !payment.text("status").is_some_and(|status| status.eq_ignore_ascii_case("confirmed")) {
            continue;
        }
        let value = payment.object("value")?.object("local")?;
        let amount = value.decimal_money("amount", "currency")?;
        sum = Some(match sum {
            None => amount,
            Some(sum) if sum.currency == amount.currency => {
                let minor = sum.minor.checked_add(amount.minor).ok_or_else(|| value.problem("an amount too large"))?;
                Money::new(minor, sum.currency)
            }
            Some(_) => return Err(value.problem("payments of one charge in two currencies")),
        });
    }
    Ok(sum)
}

/// Of a charge that ended without being paid as it should be.
fn failed_charge(charge: &Node<'_>) -> Result<PaymentFact, Problem> {
    let last = if charge.optional("timeline").is_some() { charge.array("timeline")?.pop() } else { None };
    let text = |key: &str| last.as_ref().and_then(|entry| entry.text(key));
    Ok(match text("status") {
        Some("EXPIRED") => PaymentFact::new(PaymentState::Expired),
        Some("CANCELED") => PaymentFact::new(PaymentState::Canceled),
        status => {
            let failure = telling::failure(text("context").or(status), None);
            PaymentFact { failure: Some(failure), ..PaymentFact::new(PaymentState::Failed) }
        }
    })
}

/// Of a charge as it stands. What is once completed or resolved stays so, whatever is noted after it.
fn charge_by_timeline(charge: &Node<'_>) -> Result<PaymentFact, Problem> {
    let entries = charge.array("timeline")?;
    let noted = |status: &str| entries.iter().any(|entry| entry.text("status") == Some(status));
    if noted("RESOLVED") {
        return captured(received_by(charge)?);
    }
    if noted("COMPLETED") {
        return captured(price_of(charge)?);
    }
    let last = entries.last();
    match last.and_then(|entry| entry.text("status")) {
        // Money that came too late: as `charge:delayed` says it.
        Some("UNRESOLVED") if last.and_then(|entry| entry.text("context")) == Some("DELAYED") => {
            Ok(PaymentFact::new(PaymentState::Pending))
        }
        Some("EXPIRED" | "CANCELED" | "UNRESOLVED") => failed_charge(charge),
        // NEW, SIGNED, PENDING, none yet, and what is new to us
        _ => Ok(PaymentFact::new(PaymentState::Pending)),
    }
}

// ---------------------------------------------------------------------------------------------------- reconciliation

/// A page of the list of events.
struct Page<'a> {
    items: Vec<Node<'a>>,
    /// The items' ids.
    ids: Vec<&'a str>,
    next: Option<String>,
}

impl<'a> Page<'a> {
    /// Refuses a page that would lead nowhere: empty with more to come, or beginning before where it was asked to.
    fn read(list: &Node<'a>, after: Option<&str>, window: Window) -> Result<Self, Problem> {
        let items = list.array("data")?;
        if items.len() > PAGE {
            return Err(list.problem("a page larger than was asked for"));
        }
        let ids = items.iter().map(|item| item.name("id")).collect::<Result<Vec<_>, _>>()?;
        if after.is_some_and(|after| ids.contains(&after)) {
            return Err(list.problem("a page that repeats its cursor"));
        }
        // The documentation calls the last page's empty.
        let more = list.object("pagination")?.text("next_uri").is_some_and(|uri| !uri.is_empty());
        let Some(id) = ids.last() else {
            return if more { Err(list.problem("an empty page with more to come")) } else { Ok(Self { items, ids, next: None }) };
        };
        // In another order, an old one would not say that all behind it are older.
        let times: Vec<Timestamp> = items.iter().filter_map(|item| telling::time(item, "created_at").ok()).collect();
        let far_enough = times.last().is_some_and(|oldest| *oldest < window.in_seconds().since)
            && times.is_sorted_by(|newer, older| newer >= older);
        if more && !is_id(id) {
            return Err(list.problem("an id that is no cursor"));
        }
        let next = (more && !far_enough).then(|| (*id).to_owned());
        Ok(Self { items, ids, next })
    }
}

/// A UUID, or the short code of older objects.
fn is_id(text: &str) -> bool {
    ask::is_id(text, b"-")
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    let key = ask::api_key(account)?;
    let request = ask::get_with_token(account, API, path_and_query);
    ask::finish(request.header("x-cc-api-key", key).header("x-cc-version", API_VERSION))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{self, NOW_S, Specimen};
    use super::*;

    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";
    const CHARGE: &str = "0c1f2d3e-test";

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &CoinbaseCommerce,
            scheme: "hex-body",
            secret: "cc-shared-secret-Test-01",
            other_secret: "cc-shared-secret-Test-OLD",
            settings: |_| {},
            sign: |secret, _, body| {
                let mac = signature::hmac_sha256(secret.as_bytes(), &[body]);
                (tests::headers([(SIGNATURE, hex::encode(mac))]), body.to_vec())
            },
            body: br#"{"id":"delivery-1","event":{"id":"event-1","type":"charge:created"}}"#,
            event_type: Some("charge:created"),
            timed: false,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    fn account() -> Account {
        specimen().account(&["cc-shared-secret-Test-01"])
    }

    #[test]
    fn the_event_names_a_webhook_and_not_its_delivery() {
        for (body, id) in [
            (r#"{"id":"delivery-1","event":{"id":"event-1","type":"charge:created"}}"#, Some("event-1")),
            (r#"{"id":"delivery-2","attempt_number":2,"event":{"id":"event-1","type":"charge:created"}}"#, Some("event-1")),
            (r#"{"id":"delivery-1","event":{"type":"charge:created"}}"#, None),
            (r#"{"id":"delivery-1"}"#, None),
            (r#"{"id":"delivery-1","event":{"id":7}}"#, None),
        ] {
            let envelope = specimen().envelope(body.as_bytes());
            assert_eq!(envelope.webhook_id, id.map_or_else(|| signature::body_id(body.as_bytes()), str::to_owned), "{body}");
        }
    }

    #[test]
    fn the_header_is_lower_case_hex_and_nothing_else() {
        let specimen = specimen();
        let (headers, body) = (specimen.sign)(specimen.secret, NOW_S, specimen.body);
        let good = headers[SIGNATURE].to_str().unwrap().to_owned();
        for bad in [good.to_uppercase(), format!("{good} "), format!("{good}00"), good[1..].to_owned(), format!("sha256={good}")]
        {
            let headers = tests::headers([(SIGNATURE, bad.clone())]);
            assert_eq!(specimen.verify(&[specimen.secret], &headers, &body).unwrap_err().reason(), "malformed_header", "{bad}");
        }
    }

    fn payment(status: &str, amount: &str, currency: &str) -> Value {
        json!({"status": status, "value": {"local": {"amount": amount, "currency": currency}, "crypto": {"amount": "1", "currency": "ETH"}}})
    }

    fn translated(event_type: &str, more: &Value) -> Result<PaymentFact, TranslateError> {
        let mut charge = json!({"id": CHARGE, "code": "66BEOV2A", "pricing": {"local": {"amount": "49.99", "currency": "EUR"}}});
        charge.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"event": {"id": "event-1", "type": event_type, "created_at": "2026-09-21T13:33:10Z", "data": charge}});
        let events = CoinbaseCommerce.translate(&specimen().envelope(body.to_string().as_bytes()), &account())?;
        let Fact::Payment(fact) = events[0].fact.clone() else { panic!("{:?}", events[0].fact) };
        Ok(fact)
    }

    #[test]
    fn confirmed_is_the_price_and_resolved_is_what_came_in() {
        let minor = |event_type: &str, more: Value| translated(event_type, &more).map(|fact| fact.captured.unwrap().minor);
        let paid = |payments: &[Value]| json!({ "payments": payments });
        let rounded = paid(&[payment("CONFIRMED", "49.97", "EUR")]);
        assert_eq!(minor("charge:confirmed", rounded), Ok(4999), "the rate of the moment is no underpayment");
        let less =
            paid(&[payment("CONFIRMED", "10.00", "EUR"), payment("confirmed", "5", "EUR"), payment("PENDING", "30.00", "EUR")]);
        assert_eq!(minor("charge:resolved", less.clone()), Ok(1500));
        assert_eq!(minor("charge:resolved", json!({})), Ok(4999), "settled elsewhere");
        let mut donation = less;
        donation["pricing"] = Value::Null;
        assert_eq!(minor("charge:confirmed", donation), Ok(1500));
        for (event_type, bad) in [
            ("charge:confirmed", json!({"pricing": null})),
            ("charge:confirmed", json!({"pricing": {"local": {"amount": 49.99, "currency": "EUR"}}})),
            ("charge:confirmed", json!({"pricing": {"local": {"amount": "49.999", "currency": "EUR"}}})),
            ("charge:resolved", paid(&[payment("CONFIRMED", "1", "EUR"), payment("CONFIRMED", "1", "USD")])),
            ("charge:resolved", paid(&[payment("CONFIRMED", "-1", "EUR")])),
            ("charge:resolved", json!({"payments": {}})),
        ] {
            assert!(matches!(minor(event_type, bad.clone()), Err(TranslateError::Unintelligible { .. })), "{bad}");
        }
        let yen = json!({"pricing": {"local": {"amount": "500", "currency": "JPY"}}});
        let dinar = json!({"pricing": {"local": {"amount": "1.234", "currency": "KWD"}}});
        assert_eq!((minor("charge:confirmed", yen), minor("charge:confirmed", dinar)), (Ok(500), Ok(1234)));
    }

    #[test]
    fn the_timeline_says_how_a_charge_ended() {
        let timeline = |entries: &[(&str, Option<&str>)]| {
            let entry = |(status, context): &(&str, Option<&str>)| json!({"status": status, "context": context, "time": "2026-09-21T13:33:09Z"});
            json!({ "timeline": entries.iter().map(entry).collect::<Vec<_>>() })
        };
        let polled = |entries: &[(&str, Option<&str>)]| {
            let mut charge = json!({"id": CHARGE, "pricing": {"local": {"amount": "49.99", "currency": "EUR"}}, "payments": [payment("CONFIRMED", "40", "EUR")]});
            charge.as_object_mut().unwrap().extend(timeline(entries).as_object().unwrap().clone());
            let answer = read_status(&json!({ "data": charge })).unwrap();
            let Fact::Payment(fact) = answer.events[0].fact.clone() else { panic!("{:?}", answer.events[0].fact) };
            fact
        };
        let new = ("NEW", None);
        for (entries, state, captured) in [
            (&[][..], PaymentState::Pending, None),
            (&[new], PaymentState::Pending, None),
            (&[new, ("SIGNED", None), ("PENDING", None)], PaymentState::Pending, None),
            (&[new, ("COMPLETED", None)], PaymentState::Captured, Some(4999)),
            (&[new, ("COMPLETED", None), ("REFUNDED", None)], PaymentState::Captured, Some(4999)),
            (&[new, ("UNRESOLVED", Some("UNDERPAID")), ("RESOLVED", None)], PaymentState::Captured, Some(4000)),
            (&[new, ("UNRESOLVED", Some("UNDERPAID"))], PaymentState::Failed, None),
            (&[new, ("EXPIRED", None), ("UNRESOLVED", Some("DELAYED"))], PaymentState::Pending, None),
            (&[new, ("EXPIRED", None)], PaymentState::Expired, None),
            (&[new, ("CANCELED", None)], PaymentState::Canceled, None),
            (&[new, ("DREAMING", None)], PaymentState::Pending, None),
        ] {
            let fact = polled(entries);
            assert_eq!((fact.state, fact.captured.map(|money| money.minor)), (state, captured), "{entries:?}");
        }
        for (entries, state, code) in [
            (&[new, ("EXPIRED", None)][..], PaymentState::Expired, None),
            (&[new, ("CANCELED", None)], PaymentState::Canceled, None),
            (&[new, ("UNRESOLVED", Some("OVERPAID"))], PaymentState::Failed, Some("OVERPAID")),
            (&[new, ("UNRESOLVED", None)], PaymentState::Failed, Some("UNRESOLVED")),
            (&[], PaymentState::Failed, Some("unknown")),
        ] {
            let fact = translated("charge:failed", &timeline(entries)).unwrap();
            assert_eq!((fact.state, fact.failure.as_ref().map(|failure| failure.code.as_str())), (state, code), "{entries:?}");
        }
    }

    // ------------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_coinbase_reads_them() {
        let mut account = account();
        let request = CoinbaseCommerce.status_request(CHARGE, None, &account).unwrap();
        assert_eq!(request.uri(), "https://api.commerce.coinbase.com/charges/0c1f2d3e-test");
        assert_eq!(
            (&request.headers()["x-cc-api-key"], &request.headers()["x-cc-version"]),
            (&"sk_test_invented".parse().unwrap(), &"2018-03-22".parse().unwrap())
        );
        assert!(!format!("{request:?}").contains("sk_test_invented"), "the key shows in a log");
        account.api.url = Some("http://127.0.0.1:4242".to_owned());
        let url = |cursor| CoinbaseCommerce.events_request(tests::WHOLE, cursor, &account).unwrap().uri().to_string();
        assert_eq!(url(None), "http://127.0.0.1:4242/events?order=desc&limit=100");
        assert_eq!(url(Some("event-9")), "http://127.0.0.1:4242/events?order=desc&limit=100&starting_after=event-9");
        for id in ["", "-", "a/b", "a?b", "a b", "a.b"] {
            assert_eq!(CoinbaseCommerce.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
            assert!(CoinbaseCommerce.events_request(tests::WHOLE, Some(id), &account).is_err());
        }
        assert!(CoinbaseCommerce.status_request(CHARGE, Some("x"), &account).is_err());
        account.api.key = None;
        assert_eq!(CoinbaseCommerce.status_request(CHARGE, None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    // -------------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: CHARGE, cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(body: &Value) -> Result<Answer, ReadError> {
        CoinbaseCommerce.read_status(&asked(None), &response(body.to_string().as_bytes()), &account())
    }

    #[test]
    fn answers_read_as_recorded() {
        let charge = include_bytes!("fixtures/coinbase-commerce/answers/charge.json");
        let charge = CoinbaseCommerce.read_status(&asked(None), &response(charge), &account()).unwrap();
        insta::assert_json_snapshot!("coinbase-commerce-answer-charge", charge.events);
        let events = include_bytes!("fixtures/coinbase-commerce/answers/events.json");
        let events = CoinbaseCommerce.read_events(tests::WHOLE, &asked(None), &response(events), &account()).unwrap();
        insta::assert_json_snapshot!("coinbase-commerce-answer-events", events.events);
        assert_eq!(events.unread.iter().map(|unread| unread.event_id.as_str()).collect::<Vec<_>>(), ["event-unread"]);
        assert_eq!(events.next.as_deref(), Some("event-checkout"));

        let sent = tests::fixtures(&CoinbaseCommerce);
        let (_, sent) = sent.iter().find(|(name, _)| name == "charge.confirmed").unwrap();
        let sent = &CoinbaseCommerce.translate(&specimen().envelope(sent), &account()).unwrap()[0];
        assert_eq!((&sent.key, sent.facts_sha256()), (&events.events[0].key, events.events[0].facts_sha256()));
        assert_eq!((sent.source, events.events[0].source), (Source::Webhook, Source::Reconciliation));
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let charge = json!({"id": CHARGE, "timeline": []});
        assert!(read_status(&json!({ "data": charge })).is_ok());
        for bad in [
            json!({"data": {"id": "other", "timeline": []}}),
            json!({"data": {"id": CHARGE}}),
            json!({ "data": [charge] }),
            charge,
        ] {
            assert!(matches!(read_status(&bad), Err(ReadError::Unintelligible(_))), "{bad}");
        }
    }

    #[test]
    fn the_list_is_followed_as_far_back_as_is_useful() {
        let event = |id: &str, at: &str| json!({"id": id, "type": "checkout:created", "created_at": at, "data": {}});
        let read = |cursor, next_uri: Value, items: &[Value]| {
            let body = json!({"pagination": {"next_uri": next_uri}, "data": items}).to_string();
            let window = tests::since(Timestamp::parse_rfc3339("2026-09-14T14:13:20Z").unwrap());
            let answer = CoinbaseCommerce.read_events(window, &asked(cursor), &response(body.as_bytes()), &account());
            answer.map(|answer| answer.next).map_err(|_| "refused")
        };
        let (late, early) = ("2026-09-14T14:13:21Z", "2026-09-14T14:13:19Z");
        let uri = || json!("https://api.commerce.coinbase.com/events?starting_after=x");
        assert_eq!(read(None, uri(), &[event("event-2", late)]), Ok(Some("event-2".to_owned())));
        assert_eq!(read(None, uri(), &[event("event-2", late), event("event-1", early)]), Ok(None), "far enough");
        let unordered = [event("event-3", early), event("event-2", late), event("event-1", early)];
        assert_eq!(read(None, uri(), &unordered), Ok(Some("event-1".to_owned())), "what is behind it may be younger");
        for end in [json!(null), json!("")] {
            assert_eq!(read(None, end.clone(), &[event("event-2", late)]), Ok(None));
            assert_eq!(read(None, end, &[]), Ok(None));
        }
        assert_eq!(read(None, uri(), &[]), Err("refused"));
        assert_eq!(read(Some("event-2"), uri(), &[event("event-2", late)]), Err("refused"));
        assert_eq!(read(None, uri(), &vec![event("event-2", late); PAGE + 1]), Err("refused"));
        assert_eq!(read(None, uri(), &[event("event/2", late)]), Err("refused"));
        assert_eq!(read(None, uri(), &[json!({"id": "event-2"})]), Ok(Some("event-2".to_owned())), "nobody knows how old");
    }
}
