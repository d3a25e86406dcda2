//! Klarna: orders, their captures and refunds. Its callbacks only hint at an order; what is true of it is asked for.
//!
//! Sources: docs.klarna.com (order management API, hosted payment page: status callbacks, pending orders, checkout push).
//!
//! **Nothing is signed.** Each session of Klarna's has its own URLs (`merchant_urls`), so each can carry a token in its path.
//! Which order a callback is about stands in
//! - `session.order_id` of the hosted payment page's `status_update`, as soon as there is an order;
//! - `order_id` of the `notification` that a pending order was decided;
//! - the query of the checkout's `push`, whose body is empty: register it as `…/<token>?klarna_order_id={checkout.order.id}`.
//!
//! The callback `authorization` brings a token for an order that the shop has yet to place: nothing to ask about.
//!
//! **Payments** are Klarna's orders. Captured and refunded are told as totals, in minor units; refunds singly, too, if they
//! have ids. An order whose fraud check is pending is pending, whatever is reserved.
//!
//! **Versions.** The order carries none: a fact has the time of the answer that told it.
//!
//! **The order reference** is `merchant_reference1`, which is what Klarna shows as the order number.
//!
//! **Hosts**: Europe's, live or playground by the account's mode; `api_url` names another (`api-na`, `api-oc`).

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Answer, AskError, Asked, Keys, LateChanges, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Verified, WebhookRequest, answer, ask, signature,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState};
use crate::money::{Currency, Money};

/// The adapter.
pub struct Klarna;

const LIVE_API: &str = "https://api.klarna.com";
const TEST_API: &str = "https://api.playground.klarna.com";
/// The parameter of the URL of `push`; Klarna's examples call it so.
const ORDER_PARAMETER: &str = "klarna_order_id=";

static PROFILE: Profile = Profile {
    name: "Klarna",
    translate_headers: &[],
    // Of the status callbacks; of the others it is not published.
    timeout: Duration::from_secs(3),
    // Three times, "after a few seconds" each.
    retry_window: Duration::from_mins(1),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme { name: "klarna-unsigned", proof: Proof::Hint, token_in_path: true }],
    can: Abilities { payment_status: true, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for Klarna {
    fn id(&self) -> &'static str {
        "klarna"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "nowhere: each order that is made names it, as `merchant_urls.push` and `merchant_urls.notification`"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        ask::check(account)?;
        let client_id = account.api.client_id.as_deref();
        if account.api.key.is_some() && client_id.is_none() {
            let problem = "is missing: it is the user name that goes with api_key".to_owned();
            return Err(SettingError { setting: "client_id", problem });
        }
        // The colon ends the name.
        if client_id.is_some_and(|id| !id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')) {
            let problem = "has characters that no user name has".to_owned();
            return Err(SettingError { setting: "client_id", problem });
        }
        Ok(())
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let secret_name = signature::matching_token(keys, now, request.token)?;
        let order_id = order_in_query(request.query);
        if request.body.is_empty() && order_id.is_none() {
            return Err(Rejection::EmptyBody);
        }
        Ok(Verified {
            webhook_id: signature::body_id(if request.body.is_empty() { request.query.as_bytes() } else { request.body }),
            event_type: None,
            subject: order_id.map(str::to_owned),
            secret_name,
            proof: Proof::Hint,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn hinted(&self, envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        if let Some(order_id) = envelope.subject.as_deref().filter(|id| is_order_id(id)) {
            return Ok(vec![order_id.to_owned()]);
        }
        let value = json::read(&envelope.body)?;
        let callback = Node::root(&value);
        let session = callback.optional("session");
        let named = callback.optional("order_id").or_else(|| session.as_ref()?.optional("order_id"));
        match named {
            Some(id) if id.as_text().is_some_and(is_order_id) => Ok(vec![id.as_text().unwrap_or_default().to_owned()]),
            Some(id) => Err(id.problem("not an order's id").into()),
            None if session.is_some() || callback.optional("session_id").is_some() => {
                Err(TranslateError::Ignored("a session that has no order yet".to_owned()))
            }
            None => Err(callback.problem("names no order").into()),
        }
    }

    /// Of what the payer does; not of what the shop does with the order, which is to capture it, or to cancel it.
    fn announces(&self, _fact: &Fact) -> bool {
        false
    }

    fn translate(&self, _envelope: &Envelope, _account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        Err(TranslateError::Ignored("Klarna's callbacks are hints: what is true is asked for".to_owned()))
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_order_id(payment_id) || cursor.is_some() {
            return Err(AskError::MalformedId(cursor.unwrap_or(payment_id).to_owned()));
        }
        let key = account.api.key.as_ref().ok_or(AskError::Missing("api_key"))?;
        let name = account.api.client_id.as_ref().ok_or(AskError::Missing("client_id"))?;
        let credentials = ask::basic(name, key).ok_or(AskError::Missing("api_key"))?;
        let host = if account.mode == Mode::Live { LIVE_API } else { TEST_API };
        ask::finish(ask::get(account, host, &format!("/ordermanagement/v1/orders/{payment_id}"), credentials))
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let order = Node::root(&value);
        if order.name("order_id")? != asked.payment_id {
            return Err(order.required("order_id")?.problem("another order than was asked for").into());
        }
        let look = Look { asked, account, order: &order, at: answer::date(response).unwrap_or(asked.at) };
        let mut events = vec![look.event(asked.payment_id, "poll:order", Fact::Payment(payment_fact(&order)?))];
        let refunds = order.optional("refunds").map(|_| order.array("refunds")).transpose()?.unwrap_or_default();
        for refund in &refunds {
            // Refunds of long ago have no ids; the total has them.
            if let Some(id) = refund.optional_name("refund_id")? {
                events.push(look.event(id, "poll:refund", refund_fact(id, refund, &order)?));
            }
        }
        let total = money(&order, "refunded_amount", &order)?;
        if total.minor > 0 {
            let event_id = format!("{}:refunded", asked.payment_id);
            events.push(look.event(&event_id, "poll:order", Fact::RefundTotal { amount: total }));
        }
        Ok(Answer { events, unread: Vec::new(), next: None })
    }
}

/// What Klarna calls an id of an order: a UUID, and letters and digits before that.
fn is_order_id(text: &str) -> bool {
    ask::is_id(text, b"-")
}

/// The order that the query names, once.
fn order_in_query(query: &str) -> Option<&str> {
    let mut named = query.split('&').filter_map(|field| field.strip_prefix(ORDER_PARAMETER));
    named.next().filter(|id| is_order_id(id) && named.next().is_none())
}

/// One answer about one order.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    order: &'a Node<'a>,
    /// When the answer was true.
    at: Timestamp,
}

impl Look<'_> {
    fn event(&self, event_id: &str, event_type: &str, fact: Fact) -> PaymentEvent {
        let telling = Telling {
            event_id: event_id.to_owned(),
            event_type,
            at: self.at,
            mode: None,
            order: telling::order(self.order, self.account, &[&["merchant_reference1"]]),
            payment_id: self.asked.payment_id,
            others: Vec::new(),
            version: FactVersion::Time(self.at.millis()),
            fact,
        };
        telling.answer(self.account, self.asked)
    }
}

/// What was captured is captured, whatever became of the rest. An unknown status is pending.
fn payment_fact(order: &Node<'_>) -> Result<PaymentFact, Problem> {
    let captured = Some(money(order, "captured_amount", order)?).filter(|captured| captured.minor > 0);
    let remaining = order.optional("remaining_authorized_amount");
    let remaining = remaining.map(|_| money(order, "remaining_authorized_amount", order)).transpose()?;
    let status = order.name("status")?;
    if let Some(captured) = captured {
        let ended = matches!(status, "CAPTURED" | "CANCELLED" | "EXPIRED" | "CLOSED");
        let rest = remaining.map_or(0, |remaining| remaining.minor);
        let is_final = ended || (status == "PART_CAPTURED" && remaining.is_some() && rest == 0);
        return Ok(PaymentFact {
            authorized: (!is_final).then(|| Money::new(captured.minor.saturating_add(rest), captured.currency)),
            captured: Some(captured),
            capture_final: is_final,
            ..PaymentFact::new(PaymentState::Captured)
        });
    }
    let state = match (status, order.text("fraud_status")) {
        ("CANCELLED" | "CLOSED", _) | ("AUTHORIZED", Some("REJECTED")) => PaymentState::Canceled,
        ("EXPIRED", _) => PaymentState::AuthorizationExpired,
        ("AUTHORIZED", Some("ACCEPTED") | None) => PaymentState::Authorized,
        _ => PaymentState::Pending,
    };
    let authorized = (state == PaymentState::Authorized).then(|| money(order, "order_amount", order)).transpose()?;
    Ok(PaymentFact { authorized, ..PaymentFact::new(state) })
}

/// Klarna lists what went back, not what is on its way.
fn refund_fact(id: &str, refund: &Node<'_>, order: &Node<'_>) -> Result<Fact, Problem> {
    let created = refund.optional("refunded_at").map(|_| telling::time(refund, "refunded_at")).transpose()?;
    let amount = money(refund, "refunded_amount", order)?;
    Ok(Fact::Refund { id: id.to_owned(), state: RefundState::Succeeded, amount, created })
}

/// An amount of the order or of something in it: all have the order's currency.
fn money(object: &Node<'_>, key: &str, order: &Node<'_>) -> Result<Money, Problem> {
    let currency = order.required("purchase_currency")?;
    let parsed = currency.as_text().and_then(|code| Currency::parse(code).ok());
    object.minor_money(key, parsed.ok_or_else(|| currency.problem("not a currency"))?)
}

#[cfg(test)]
pub(super) mod tests {
    use http::HeaderMap;
    use serde_json::json;

    use super::super::tests::{NOW_S, Specimen};
    use super::*;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Klarna,
            scheme: "klarna-unsigned",
            secret: TOKEN,
            other_secret: "another-token-0123456789abcdef",
            settings: |account| account.api.client_id = Some("PK12345_invented".to_owned()),
            sign: |_, _, body| (HeaderMap::new(), body.to_vec()),
            body: br#"{"order_id":"f3392f8b-6116-4073-ab96-e330819e2c07"}"#,
            event_type: None,
            timed: false,
            any_body: false,
            unsigned_headers: &[],
        }
    }

    const TOKEN: &str = "token-in-the-path-0123456789abcdef";
    const ORDER: &str = "f3392f8b-6116-4073-ab96-e330819e2c07";
    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn account() -> Account {
        specimen().account(&[TOKEN])
    }

    fn verify(token: Option<&str>, query: &str, body: &[u8]) -> Result<Verified, Rejection> {
        let request = WebhookRequest { headers: &HeaderMap::new(), body, token, query, certificate: None };
        Klarna.verify(&request, &account().keys, Timestamp::from_seconds(NOW_S))
    }

    #[test]
    fn a_push_names_its_order_in_the_query() {
        let hinted = |query: &str, body: &'static [u8]| {
            let verified = verify(Some(TOKEN), query, body)?;
            let envelope = Envelope::new(&account(), verified, Timestamp::default(), Bytes::from_static(body), None);
            Ok(Klarna.hinted(&envelope, &account()).unwrap())
        };
        let query = format!("klarna_order_id={ORDER}");
        assert_eq!(hinted(&query, b""), Ok(vec![ORDER.to_owned()]));
        assert_eq!(hinted(&format!("a=b&{query}"), b"{}"), Ok(vec![ORDER.to_owned()]));
        assert_eq!(hinted("order_id=1", br#"{"order_id":"o-2"}"#), Ok(vec!["o-2".to_owned()]));
        for query in ["", "klarna_order_id=", "klarna_order_id=a/b", &format!("{query}&{query}"), "Klarna_order_id=1"] {
            assert_eq!(hinted(query, b""), Err(Rejection::EmptyBody), "{query}");
        }
        let ids = ["1", "2"].map(|id| verify(Some(TOKEN), &format!("klarna_order_id={id}"), b"").unwrap().webhook_id);
        assert_ne!(ids[0], ids[1], "two orders, two webhooks");
    }

    #[test]
    fn without_the_token_nothing_is_said() {
        let body = specimen().body;
        for token in [None, Some(""), Some("token"), Some("token-in-the-path-0123456789abcdeF")] {
            for (query, body) in [("", body), ("", &b""[..]), ("klarna_order_id=1", b"")] {
                assert_eq!(verify(token, query, body), Err(Rejection::Token), "{token:?}");
            }
        }
    }

    #[test]
    fn a_key_without_a_name_is_refused_at_start() {
        let setting = |client_id: Option<&str>| {
            let mut account = account();
            account.api.client_id = client_id.map(str::to_owned);
            Klarna.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(setting(Some("PK12345_invented")), Ok(()));
        for bad in [None, Some("a:b"), Some("a b"), Some("é")] {
            assert_eq!(setting(bad), Err("client_id"), "{bad:?}");
        }
    }

    #[test]
    fn questions_are_asked_as_klarna_reads_them() {
        let mut account = account();
        let request = Klarna.status_request(ORDER, None, &account).unwrap();
        assert_eq!(request.uri(), &*format!("https://api.playground.klarna.com/ordermanagement/v1/orders/{ORDER}"));
        assert_eq!(request.headers()["authorization"], "Basic UEsxMjM0NV9pbnZlbnRlZDpza190ZXN0X2ludmVudGVk");
        assert!(request.headers()["authorization"].is_sensitive(), "the key shows in a log");
        account.mode = Mode::Live;
        let request = Klarna.status_request("A1", None, &account).unwrap();
        assert_eq!(request.uri(), "https://api.klarna.com/ordermanagement/v1/orders/A1");
        for id in ["", "-", "a/b", "a_b", "a.b", "a b", "é", "a?b"] {
            assert_eq!(Klarna.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        assert!(Klarna.status_request("A1", Some("x"), &account).is_err());
        account.api.client_id = None;
        assert_eq!(Klarna.status_request("A1", None, &account).unwrap_err(), AskError::Missing("client_id"));
        account.api.key = None;
        assert_eq!(Klarna.status_request("A1", None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    fn read_status(body: &[u8]) -> Result<Answer, ReadError> {
        let response = Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap();
        let asked = Asked { payment_id: ORDER, cursor: None, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" };
        Klarna.read_status(&asked, &response, &account())
    }

    #[test]
    fn answers_read_as_recorded() {
        for (name, body) in [
            ("authorized", &include_bytes!("fixtures/klarna/answers/authorized.json")[..]),
            ("part_captured", include_bytes!("fixtures/klarna/answers/part_captured.json")),
            ("captured", include_bytes!("fixtures/klarna/answers/captured.json")),
        ] {
            insta::assert_json_snapshot!(format!("klarna-answer-{name}"), read_status(body).unwrap().events);
        }
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, fraud, captured, remaining, state, is_final) in [
            ("AUTHORIZED", "ACCEPTED", 0, 4999, PaymentState::Authorized, false),
            ("AUTHORIZED", "PENDING", 0, 4999, PaymentState::Pending, false),
            ("AUTHORIZED", "REJECTED", 0, 4999, PaymentState::Canceled, false),
            ("AUTHORIZED", "PONDERED", 0, 4999, PaymentState::Pending, false),
            ("PART_CAPTURED", "ACCEPTED", 2000, 2999, PaymentState::Captured, false),
            ("PART_CAPTURED", "ACCEPTED", 2000, 0, PaymentState::Captured, true),
            ("CAPTURED", "ACCEPTED", 4999, 0, PaymentState::Captured, true),
            ("CANCELLED", "ACCEPTED", 0, 0, PaymentState::Canceled, false),
            ("EXPIRED", "ACCEPTED", 0, 0, PaymentState::AuthorizationExpired, false),
            ("EXPIRED", "ACCEPTED", 2000, 0, PaymentState::Captured, true),
            ("CLOSED", "ACCEPTED", 2000, 0, PaymentState::Captured, true),
            ("CLOSED", "ACCEPTED", 0, 0, PaymentState::Canceled, false),
            ("DREAMING", "ACCEPTED", 0, 4999, PaymentState::Pending, false),
            ("DREAMING", "ACCEPTED", 2000, 2999, PaymentState::Captured, false),
        ] {
            let order = json!({"order_id": ORDER, "status": status, "fraud_status": fraud, "captured_amount": captured,
                "remaining_authorized_amount": remaining, "order_amount": 4999, "refunded_amount": 0, "purchase_currency": "eur"});
            let answer = read_status(order.to_string().as_bytes()).unwrap();
            let [event] = &answer.events[..] else { panic!("{:?}", answer.events) };
            let Fact::Payment(fact) = &event.fact else { panic!("{:?}", event.fact) };
            assert_eq!((fact.state, fact.capture_final), (state, is_final), "{order}");
            assert_eq!(fact.captured.map_or(0, |money| money.minor), captured, "{order}");
            assert!(is_final || fact.authorized.is_none_or(|held| held.minor == 4999), "{order}");
            assert_eq!(event.version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
        }
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let read = |more: serde_json::Value| {
            let mut order = json!({"order_id": ORDER, "status": "CAPTURED", "captured_amount": 1, "refunded_amount": 0,
                "purchase_currency": "EUR"});
            order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read_status(order.to_string().as_bytes())
        };
        assert!(read(json!({})).is_ok());
        for more in [
            json!({ "order_id": "another" }),
            json!({ "captured_amount": -1 }),
            json!({ "captured_amount": 1.5 }),
            json!({ "captured_amount": "1" }),
            json!({ "captured_amount": 9_007_199_254_740_993_i64 }),
            json!({ "refunded_amount": null }),
            json!({ "purchase_currency": "EURO" }),
            json!({ "refunds": {} }),
            json!({ "refunds": [{ "refund_id": "r", "refunded_amount": "1" }] }),
        ] {
            assert!(matches!(read(more.clone()), Err(ReadError::Unintelligible(_))), "{more}");
        }
    }
}
