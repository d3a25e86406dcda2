//! GoCardless: payments by bank debit, refunds, chargebacks.
//!
//! Sources: developer.gocardless.com (webhooks, API 2015-07-06), and what its SDKs do (gocardless-pro 3.22 for Python,
//! gocardless-nodejs 10.1).
//!
//! **Signature.** `Webhook-Signature: <64 lowercase hex>`, HMAC-SHA256 over the raw body; the key is the endpoint's secret as
//! text. No time is signed, so that an old webhook cannot be told from a retry. Stricter than the Node SDK, which takes
//! upper case and anything behind the digits. A wrong signature is answered with 498.
//!
//! **Batches.** A body carries up to 250 events, each with a key of its own (`EV…`). One that cannot be understood
//! quarantines the body, and with it its neighbours: nothing of it is lost, and the payments' looks tell the same.
//!
//! **Events carry no amount.** They say that something happened to a payment: enough for its state, not for its money. So
//! a webhook says `Captured` of no amount (the order stays pending), [`Psp::hinted`] names its payment as one to ask about,
//! and the answer brings the figures. The same holds for refunds and chargebacks, of which an event says nothing that
//! could be added up.
//!
//! **An answer** is three: the payment (state, amount), its events, its refunds. What went back and forth stands in the
//! events alone: a bank debit may fail after it was confirmed ("late failure"), be tried again and be confirmed again.
//! Each confirmation that failed later is a capture that failed, named by the event that confirmed it; what was confirmed
//! after such a failure is a capture of its own. A chargeback has no id and no amount: it is the payment's, of all of it.
//!
//! **Versions.** Objects carry none. What an event tells has the event's `created_at` (milliseconds), also in an answer;
//! what the payment or a refund says of itself has the answer's `Date`.
//!
//! **Order.** A payment's `metadata.order_id`, in events `resource_metadata.order_id`; a setting that begins with
//! `metadata.` is read in both places.
//!
//! **Uncertain**, and so stated here: the retry schedule (taken: 24 h; eight retries at growing intervals are said), the
//! time-out (10 s, second hand), the source addresses (published, not at hand: none are listed).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Acknowledgement, Answer, AskError, Asked, Hinted, Keys, LateChanges, Listing, Profile, Proof, Psp,
    ReadError, Rejection, Scheme, SettingError, TranslateError, Unread, Verified, WebhookRequest, Window, answer, ask, signature,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, Reference, ReferenceKind,
    RefundState, Source,
};
use crate::money::{Currency, Money};

/// The adapter.
pub struct GoCardless;

const SIGNATURE: &str = "webhook-signature";
const LIVE_API: &str = "https://api.gocardless.com";
const TEST_API: &str = "https://api-sandbox.gocardless.com";
/// The one version there is; a request without it is refused.
const API_VERSION: &str = "2015-07-06";
/// GoCardless's largest page.
const PAGE: usize = 500;
/// Events in one webhook, as documented.
const EVENTS_MAX: usize = 250;
/// "498 Token Invalid", as its documentation and SDKs ask for.
const TOKEN_INVALID: u16 = 498;

const PAYMENTS: &str = "payments";
const REFUNDS: &str = "refunds";
const EVENTS: &str = "events";

static PROFILE: Profile = Profile {
    name: "GoCardless",
    translate_headers: &[],
    timeout: Duration::from_secs(10),
    retry_window: Duration::from_hours(24),
    // Events are made some time after the change that they tell.
    usual_delay: Duration::from_mins(5),
    // Of 1,000 a minute.
    asks_per_second: 10,
    mapping_version: 1,
    schemes: &[Scheme::signed("gocardless-hex")],
    // `GET /webhooks` lists deliveries; endpoints are seen in the dashboard only.
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::All, endpoint_list: false },
    // Events older than 18 months are gone (from 2026-10 on).
    list: Some(Listing { reach: Some(Duration::from_hours(18 * 30 * 24)), is_log: true, ..Listing::USUAL }),
    sources: &[],
};

impl Psp for GoCardless {
    fn id(&self) -> &'static str {
        "gocardless"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Developers, Create, Webhook endpoint"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let offered = signature::lower_hex::<32>(signature::exactly_one(request.headers, SIGNATURE)?)
            .ok_or(Rejection::MalformedHeader { header: SIGNATURE, problem: "it is not 64 lowercase hex digits" })?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let secret_name = signature::matching_secret(keys, now, |secret| {
            signature::hmac_sha256(secret.expose().as_bytes(), &[request.body]).ct_eq(&offered)
        })?;
        Ok(Verified {
            // A retry may carry the same events under the same `meta.webhook_id`, or in another batch: the bytes name the call.
            webhook_id: signature::body_id(request.body),
            event_type: None,
            subject: None,
            secret_name,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn acknowledgement(&self) -> Acknowledgement {
        Acknowledgement { status: StatusCode::NO_CONTENT, content_type: None, body: "" }
    }

    fn rejection_status(&self) -> StatusCode {
        // Within 100 to 999, which is all that can fail.
        StatusCode::from_u16(TOKEN_INVALID).unwrap_or(StatusCode::UNAUTHORIZED)
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let root = Node::root(&value);
        let told = root.array("events")?;
        if told.len() > EVENTS_MAX {
            return Err(root.required("events")?.problem("more events than a webhook carries").into());
        }
        let mut events: Vec<PaymentEvent> = Vec::with_capacity(told.len());
        let mut ignored = None;
        for event in &told {
            match translate_event(event, account, Source::Webhook) {
                Ok(event) if events.iter().any(|known| known.key == event.key) => {
                    return Err(root.required("events")?.problem("an event that is there twice").into());
                }
                Ok(event) => events.push(event),
                Err(TranslateError::Ignored(reason)) => ignored = ignored.or(Some(reason)),
                Err(error) => return Err(error),
            }
        }
        if events.is_empty() {
            return Err(TranslateError::Ignored(ignored.unwrap_or_else(|| "a webhook without events".to_owned())));
        }
        Ok(events)
    }

    /// The payments whose money moved, each once. Each event is read by itself: one that cannot be understood quarantines
    /// the body, but its neighbours' payments are asked about all the same.
    fn hinted(&self, envelope: &Envelope, account: &Account) -> Result<Vec<String>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let told = Node::root(&value).array("events")?;
        let events = told.iter().take(EVENTS_MAX).filter_map(|event| translate_event(event, account, Source::Webhook).ok());
        let payments: BTreeSet<String> = events.filter(moves_money).map(|event| event.payment_id).collect();
        Ok(payments.into_iter().collect())
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_id(payment_id, "PM") {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        match StatusStep::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))? {
            StatusStep::Payment => get(account, &format!("/payments/{payment_id}")),
            // One page: a payment has a dozen events in its life.
            StatusStep::Events { .. } => {
                get(account, &format!("/events?resource_type={PAYMENTS}&payment={payment_id}&limit={PAGE}"))
            }
            StatusStep::Refunds { after } => {
                get(account, &format!("/refunds?payment={payment_id}&limit={PAGE}{}", after_id(after)))
            }
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let root = Node::root(&value);
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        match step {
            StatusStep::Payment => look.payment(&root.object(PAYMENTS)?),
            StatusStep::Events { amount, phase } => look.events(&Page::read(&root, EVENTS, None)?, amount, phase),
            StatusStep::Refunds { after } => look.refunds(&Page::read(&root, REFUNDS, after)?),
        }
    }

    /// The events of payments, then those of refunds; newest first, which is all that the API can do.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let (list, after) = list_of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))?;
        let (since, until) = (window.since.max(Timestamp::default()), window.until);
        let time = format!("created_at[gte]={since}&created_at[lte]={until}");
        get(account, &format!("/events?resource_type={list}&{time}&limit={PAGE}{}", after_id(after)))
    }

    fn read_events(
        &self,
        window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let (list, after) = list_of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let page = Page::read(&Node::root(&value), EVENTS, after)?;
        let next = match page.next {
            Some(after) => Some(format!("{list}:{after}")),
            None => (list == PAYMENTS).then(|| REFUNDS.to_owned()),
        };
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next };
        for (event, id) in page.items.iter().zip(&page.ids) {
            telling::not_before(window, &telling::time(event, "created_at"), event)?;
            match translate_event(event, account, Source::Reconciliation) {
                Ok(event) => found.events.push(event),
                Err(TranslateError::Ignored(_)) => {}
                Err(error) => found.unread.push(Unread { event_id: (*id).to_owned(), error }),
            }
        }
        Ok(found)
    }

    /// As [`Psp::hinted`] for webhooks.
    fn read_hints(&self, response: &Response<Bytes>, account: &Account) -> Result<Vec<Hinted>, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let listed = Node::root(&value).array(EVENTS)?;
        let events = listed.iter().filter_map(|event| translate_event(event, account, Source::Reconciliation).ok());
        let hints = events.filter(moves_money).map(|event| Hinted { at: event.occurred_at, payment_id: event.payment_id });
        Ok(hints.collect())
    }
}

// ------------------------------------------------------------------------------------------------------ translation

/// One event, from a webhook or from the list of events: the same event gives the same facts.
fn translate_event(event: &Node<'_>, account: &Account, source: Source) -> Result<PaymentEvent, TranslateError> {
    let (resource, action) = (event.name("resource_type")?, event.name("action")?);
    let event_type = format!("{resource}.{action}");
    let Some(state) = state_told(resource, action) else {
        return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
    };
    let links = event.object("links")?;
    if resource == REFUNDS && links.optional("payment").is_none() {
        return Err(TranslateError::Ignored("a refund of no payment (it goes to a mandate)".to_owned()));
    }
    let at = telling::time(event, "created_at")?;
    let refund = links.optional("refund").map(|_| id(&links, "refund", "RF")).transpose()?;
    // Only this one says why; `late_failure_settled` is about a payout.
    let failure = (action == "failed").then(|| failure(event));
    let telling = Telling {
        event_id: id(event, "id", "EV")?.to_owned(),
        event_type: &event_type,
        at,
        mode: None,
        order: order_of_event(event, account),
        payment_id: id(&links, "payment", "PM")?,
        others: refund.map(|refund| Reference::new(ReferenceKind::Refund, refund)).into_iter().collect(),
        version: FactVersion::Time(at.millis()),
        fact: Fact::Payment(PaymentFact { capture_final: state == PaymentState::Captured, failure, ..PaymentFact::new(state) }),
    };
    Ok(telling.event(account, source))
}

/// What an event says of its payment's state; `None` for what is none of our business.
fn state_told(resource: &str, action: &str) -> Option<PaymentState> {
    let state = match (resource, action) {
        (PAYMENTS, "created" | "customer_approval_granted" | "submitted" | "resubmission_requested") => PaymentState::Pending,
        (PAYMENTS, "failed" | "late_failure_settled") => PaymentState::Failed,
        (PAYMENTS, "customer_approval_denied" | "cancelled") => PaymentState::Canceled,
        // Only what was collected can be charged back or refunded.
        (PAYMENTS, "confirmed" | "paid_out" | "charged_back" | "chargeback_cancelled" | "chargeback_settled")
        | (REFUNDS, "created" | "paid" | "failed" | "refund_settled" | "funds_returned" | "bounced") => PaymentState::Captured,
        _ => return None,
    };
    Some(state)
}

/// Whether the event says that money came or went, and so not how much. A failure may come after a confirmation: then it
/// takes money back.
fn moves_money(event: &PaymentEvent) -> bool {
    matches!(&event.fact, Fact::Payment(fact) if matches!(fact.state, PaymentState::Captured | PaymentState::Failed))
}

/// The cause is one of a documented set; the description is GoCardless's, about the cause.
fn failure(event: &Node<'_>) -> crate::event::Failure {
    let details = event.optional("details");
    let text = |key| details.as_ref().and_then(|details| details.text(key));
    telling::failure(text("cause"), text("description"))
}

fn order_of_event<'a>(event: &Node<'a>, account: &Account) -> Option<&'a str> {
    match account.order_reference.as_deref() {
        None => event.name_at(&["resource_metadata", "order_id"]),
        Some([first, rest @ ..]) if first == "metadata" => {
            let path: Vec<&str> = std::iter::once("resource_metadata").chain(rest.iter().map(String::as_str)).collect();
            event.name_at(&path)
        }
        Some(path) => event.name_at(path),
    }
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a look at a payment stands: the payment, its events, then, once there was money, its refunds page by page.
enum StatusStep<'a> {
    Payment,
    Events { amount: Money, phase: Phase },
    Refunds { after: Option<&'a str> },
}

/// What the payment's status means for the rest of the look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing to refund yet.
    Open,
    Collected,
    ChargedBack,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Open, Self::Collected, Self::ChargedBack];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Collected => "collected",
            Self::ChargedBack => "charged_back",
        }
    }
}

impl<'a> StatusStep<'a> {
    /// Reads a cursor: none, `events:<minor units>:<currency>:<phase>`, `refunds`, `refunds:<id>`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Payment) };
        let parts: Vec<&str> = cursor.split(':').collect();
        match *parts.as_slice() {
            [EVENTS, minor, currency, phase] => {
                let plain = !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit());
                let minor = minor.parse().ok().filter(|_| plain)?;
                let phase = Phase::ALL.into_iter().find(|known| known.as_str() == phase)?;
                Some(Self::Events { amount: Money::new(minor, Currency::parse(currency).ok()?), phase })
            }
            [REFUNDS] => Some(Self::Refunds { after: None }),
            [REFUNDS, after] if is_id(after, "RF") => Some(Self::Refunds { after: Some(after) }),
            _ => None,
        }
    }
}

/// One answer to one question about one payment.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    /// When the answer was true.
    at: Timestamp,
}

impl Look<'_> {
    fn payment(&self, payment: &Node<'_>) -> Result<Answer, ReadError> {
        if payment.name("id")? != self.asked.payment_id {
            return Err(payment.required("id")?.problem("another payment than was asked for").into());
        }
        let amount = payment.money("amount")?;
        let (state, phase) = match payment.name("status")? {
            "confirmed" | "paid_out" => (PaymentState::Captured, Phase::Collected),
            "charged_back" => (PaymentState::Captured, Phase::ChargedBack),
            // It may have been collected before, and refunded.
            "failed" => (PaymentState::Failed, Phase::Collected),
            "cancelled" | "customer_approval_denied" => (PaymentState::Canceled, Phase::Open),
            // pending_customer_approval, pending_submission, submitted, and what is new to us
            _ => (PaymentState::Pending, Phase::Open),
        };
        let captured = (state == PaymentState::Captured).then_some(amount);
        let fact = PaymentFact { captured, capture_final: captured.is_some(), ..PaymentFact::new(state) };
        let told = Telling {
            order: telling::order(payment, self.account, &[&["metadata", "order_id"]]),
            ..self.telling(self.asked.payment_id, "poll:payment", self.at, Fact::Payment(fact))
        };
        let next = format!("{EVENTS}:{}:{}:{}", amount.minor, amount.currency, phase.as_str());
        Ok(Answer { events: vec![told.answer(self.account, self.asked)], unread: Vec::new(), next: Some(next) })
    }

    /// What went back and forth, oldest first.
    fn events(&self, page: &Page<'_>, amount: Money, phase: Phase) -> Result<Answer, ReadError> {
        let mut told = Vec::new();
        for (event, event_id) in page.items.iter().zip(&page.ids) {
            let links = event.object("links")?;
            if links.name("payment")? != self.asked.payment_id {
                return Err(links.required("payment")?.problem("of another payment than was asked for").into());
            }
            told.push((telling::time(event, "created_at")?, *event_id, event.name("action")?, event));
        }
        // The list has the newest first; equal times keep its order.
        told.reverse();
        told.sort_by_key(|(at, ..)| *at);

        let mut events = Vec::new();
        let mut tell = |event_id: &str, event_type, at, fact| {
            events.push(self.telling(event_id, event_type, at, fact).answer(self.account, self.asked));
        };
        let capture = |id: &str, state| Fact::Capture { id: id.to_owned(), state, amount };
        let dispute = |state| Fact::Dispute { id: self.asked.payment_id.to_owned(), state, amount };
        let (mut confirmed, mut was_undone, mut was_charged_back) = (None, false, false);
        for (at, event_id, action, event) in told {
            match action {
                "confirmed" => {
                    confirmed = Some(event_id);
                    if was_undone {
                        tell(event_id, "poll:capture", at, capture(event_id, CaptureState::Succeeded));
                    }
                }
                "failed" => {
                    let fact = PaymentFact { failure: Some(failure(event)), ..PaymentFact::new(PaymentState::Failed) };
                    tell(event_id, "poll:failure", at, Fact::Payment(fact));
                    if let Some(capture_id) = confirmed.take() {
                        was_undone = true;
                        let fact = capture(capture_id, CaptureState::Failed);
                        tell(&format!("{event_id}:late"), "poll:capture", at, fact);
                    }
                }
                "charged_back" | "chargeback_cancelled" | "chargeback_settled" => {
                    was_charged_back = true;
                    let state = match action {
                        "chargeback_cancelled" => DisputeState::Won,
                        "chargeback_settled" => DisputeState::Lost,
                        _ => DisputeState::Open,
                    };
                    tell(event_id, "poll:chargeback", at, dispute(state));
                }
                _ => {}
            }
        }
        if phase == Phase::ChargedBack && !was_charged_back {
            // The event is not there yet (it is made after the change), or no more: the status stands alone.
            tell(&format!("{}:chargeback", self.asked.payment_id), "poll:chargeback", self.at, dispute(DisputeState::Lost));
        }
        Ok(Answer { events, unread: Vec::new(), next: (phase != Phase::Open).then(|| REFUNDS.to_owned()) })
    }

    fn refunds(&self, page: &Page<'_>) -> Result<Answer, ReadError> {
        let read = |(refund, refund_id): (&Node<'_>, &&str)| -> Result<PaymentEvent, Problem> {
            let links = refund.object("links")?;
            if links.name("payment")? != self.asked.payment_id {
                return Err(links.required("payment")?.problem("of another payment than was asked for"));
            }
            let state = match refund.name("status")? {
                "paid" => RefundState::Succeeded,
                "cancelled" | "bounced" | "funds_returned" => RefundState::Failed,
                // created, pending_submission, submitted, and what is new to us
                _ => RefundState::Pending,
            };
            let created = refund.optional("created_at").map(|_| telling::time(refund, "created_at")).transpose()?;
            let fact = Fact::Refund { id: (*refund_id).to_owned(), state, amount: refund.money("amount")?, created };
            Ok(self.telling(refund_id, "poll:refund", self.at, fact).answer(self.account, self.asked))
        };
        let events = page.items.iter().zip(&page.ids).map(read).collect::<Result<_, _>>()?;
        Ok(Answer { events, unread: Vec::new(), next: page.next.map(|after| format!("{REFUNDS}:{after}")) })
    }

    fn telling<'t>(&'t self, event_id: &str, event_type: &'t str, at: Timestamp, fact: Fact) -> Telling<'t> {
        Telling {
            event_id: event_id.to_owned(),
            event_type,
            at,
            mode: None,
            order: None,
            payment_id: self.asked.payment_id,
            others: Vec::new(),
            version: FactVersion::Time(at.millis()),
            fact,
        }
    }
}

/// A page of any of GoCardless's lists.
struct Page<'a> {
    items: Vec<Node<'a>>,
    /// The items' ids.
    ids: Vec<&'a str>,
    /// There is more after this id.
    next: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// Refuses a page that would lead nowhere: empty with more to come, or beginning before where it was asked to.
    fn read(root: &Node<'a>, list: &str, after: Option<&str>) -> Result<Self, Problem> {
        let items = root.array(list)?;
        if items.len() > PAGE {
            return Err(root.problem("a page larger than was asked for"));
        }
        let prefix = if list == REFUNDS { "RF" } else { "EV" };
        let ids = items.iter().map(|item| id(item, "id", prefix)).collect::<Result<Vec<_>, _>>()?;
        if after.is_some_and(|after| ids.contains(&after)) {
            return Err(root.problem("a page that repeats its cursor"));
        }
        let cursors = root.object("meta")?.object("cursors")?;
        let next = cursors.optional("after").map(|_| id(&cursors, "after", prefix)).transpose()?;
        match next {
            Some(next) if !ids.contains(&next) => Err(root.problem("a page whose cursor is not on it")),
            next => Ok(Self { items, ids, next }),
        }
    }
}

/// Which list of events a cursor goes on in: none, `payments:<id>`, `refunds`, `refunds:<id>`.
fn list_of(cursor: Option<&str>) -> Option<(&'static str, Option<&str>)> {
    let Some(cursor) = cursor else { return Some((PAYMENTS, None)) };
    let (list, after) = cursor.split_once(':').map_or((cursor, None), |(list, after)| (list, Some(after)));
    if after.is_some_and(|after| !is_id(after, "EV")) {
        return None;
    }
    match (list, after) {
        (PAYMENTS, Some(_)) => Some((PAYMENTS, after)),
        (REFUNDS, _) => Some((REFUNDS, after)),
        _ => None,
    }
}

/// GoCardless's ids are two letters of a kind, then letters and digits.
fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()) && ask::is_id(text, b"")
}

/// The member `key`, which must be an id of this kind.
fn id<'a>(object: &Node<'a>, key: &str, prefix: &str) -> Result<&'a str, Problem> {
    let text = object.name(key)?;
    if is_id(text, prefix) { Ok(text) } else { Err(object.required(key)?.problem("not an id of its kind")) }
}

fn after_id(id: Option<&str>) -> String {
    id.map(|id| format!("&after={id}")).unwrap_or_default()
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    let host = if account.mode == Mode::Live { LIVE_API } else { TEST_API };
    ask::finish(ask::get(account, host, path_and_query, ask::bearer(account)?).header("gocardless-version", API_VERSION))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen, account, envelope};
    use super::*;
    use crate::event::EventKey;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &GoCardless,
            scheme: "gocardless-hex",
            secret: SECRET,
            other_secret: "gc-wh-secret-Test-Other",
            settings: |_| {},
            sign: |secret, _, body| (tests::headers([(SIGNATURE, mac(secret, body))]), body.to_vec()),
            body: br#"{"events":[],"meta":{"webhook_id":"WB001"}}"#,
            event_type: None,
            timed: false,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    const SECRET: &str = "gc-wh-secret-Test-8hJk2";
    const BODY: &[u8] = br#"{"events":[]}"#;

    fn mac(secret: &str, body: &[u8]) -> String {
        hex::encode(signature::hmac_sha256(secret.as_bytes(), &[body]))
    }

    #[test]
    fn the_header_has_one_grammar() {
        let verify = |signature: &str| {
            let headers = tests::headers([(SIGNATURE, signature.to_owned())]);
            tests::verify(&GoCardless, &[SECRET], &headers, BODY).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        let good = mac(SECRET, BODY);
        assert_eq!(verify(&good), "accepted");
        for bad in [
            good.to_uppercase(),
            format!("{good}garbage"),
            format!("{good}00"),
            format!("{good} "),
            format!(" {good}"),
            format!("sha256={good}"),
            good[..62].to_owned(),
        ] {
            assert_eq!(verify(&bad), "malformed_header", "{bad}");
        }
        assert_eq!(verify(&"0".repeat(64)), "signature_mismatch");
    }

    #[test]
    fn a_refusal_is_498_and_an_acknowledgement_has_no_body() {
        assert_eq!(GoCardless.rejection_status().as_u16(), 498);
        assert_eq!(GoCardless.acknowledgement().status, StatusCode::NO_CONTENT);
    }

    fn event(number: usize, resource: &str, action: &str, payment: &str) -> serde_json::Value {
        json!({"id": format!("EV{number:03}"), "created_at": "2026-09-21T13:33:10.123Z", "resource_type": resource,
            "action": action, "links": {"payment": payment, "refund": "RF1"}})
    }

    fn body(events: &[serde_json::Value]) -> Vec<u8> {
        json!({"events": events, "meta": {"webhook_id": "WB1"}}).to_string().into_bytes()
    }

    fn translate(events: &[serde_json::Value]) -> Result<Vec<PaymentEvent>, TranslateError> {
        GoCardless.translate(&envelope(&GoCardless, &body(events)), &account(&GoCardless, &[SECRET]))
    }

    fn hinted(events: &[serde_json::Value]) -> Vec<String> {
        GoCardless.hinted(&envelope(&GoCardless, &body(events)), &account(&GoCardless, &[SECRET])).unwrap()
    }

    #[test]
    fn a_batch_is_as_many_events_as_it_carries() {
        let full: Vec<_> = (0..EVENTS_MAX).map(|number| event(number, PAYMENTS, "confirmed", &format!("PM{number}"))).collect();
        let translated = translate(&full).unwrap();
        assert_eq!(translated.len(), EVENTS_MAX);
        assert_eq!(hinted(&full).len(), EVENTS_MAX);
        assert_eq!(translated[249].key.event_id, "EV249");
        let over = [full.clone(), vec![event(999, PAYMENTS, "confirmed", "PM1")]].concat();
        assert!(matches!(translate(&over), Err(TranslateError::Unintelligible { .. })));
        let twice = [full[0].clone(), full[0].clone()];
        assert!(matches!(translate(&twice), Err(TranslateError::Unintelligible { reason: "an event that is there twice", .. })));
    }

    #[test]
    fn what_is_none_of_our_business_hides_nothing_beside_it() {
        let mandate = event(1, "mandates", "cancelled", "PM1");
        let surcharge = event(2, PAYMENTS, "surcharge_fee_debited", "PM1");
        assert!(matches!(translate(&[mandate.clone(), surcharge.clone()]), Err(TranslateError::Ignored(_))));
        assert!(matches!(translate(&[]), Err(TranslateError::Ignored(_))));
        let events = translate(&[mandate, surcharge, event(3, PAYMENTS, "submitted", "PM1")]).unwrap();
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn what_moves_money_is_asked_about_once_a_payment() {
        let asked = |resource: &str, action: &str| hinted(&[event(1, resource, action, "PM1")]).len();
        for (resource, action, asks) in [
            (PAYMENTS, "created", 0),
            (PAYMENTS, "submitted", 0),
            (PAYMENTS, "resubmission_requested", 0),
            (PAYMENTS, "cancelled", 0),
            (PAYMENTS, "confirmed", 1),
            (PAYMENTS, "paid_out", 1),
            (PAYMENTS, "failed", 1),
            (PAYMENTS, "late_failure_settled", 1),
            (PAYMENTS, "charged_back", 1),
            (PAYMENTS, "chargeback_cancelled", 1),
            (PAYMENTS, "chargeback_settled", 1),
            (PAYMENTS, "surcharge_fee_debited", 0),
            (REFUNDS, "created", 1),
            (REFUNDS, "paid", 1),
            (REFUNDS, "failed", 1),
            (REFUNDS, "funds_returned", 1),
            ("payouts", "paid", 0),
        ] {
            assert_eq!(asked(resource, action), asks, "{resource}.{action}");
        }
        let both = [event(1, PAYMENTS, "confirmed", "PM1"), event(2, PAYMENTS, "paid_out", "PM1")];
        assert_eq!(hinted(&both), ["PM1"]);
    }

    #[test]
    fn one_that_is_not_understood_keeps_no_neighbour_from_being_asked_about() {
        let mut broken = event(1, PAYMENTS, "confirmed", "PM1");
        broken["created_at"] = json!("yesterday");
        let batch = [broken, event(2, PAYMENTS, "confirmed", "PM2")];
        assert!(matches!(translate(&batch), Err(TranslateError::Unintelligible { .. })));
        assert_eq!(hinted(&batch), ["PM2"]);
    }

    #[test]
    fn nothing_but_an_id_becomes_one() {
        for (place, bad) in [
            ("/id", json!("poll:EV1")),
            ("/id", json!("EV")),
            ("/links/payment", json!("PM1/../x")),
            ("/links/payment", json!("MD1")),
            ("/links/refund", json!("")),
        ] {
            let mut odd = event(1, REFUNDS, "paid", "PM1");
            *odd.pointer_mut(place).unwrap() = bad;
            assert!(matches!(translate(&[odd.clone()]), Err(TranslateError::Unintelligible { .. })), "{odd}");
        }
        let mut of_mandate = event(1, REFUNDS, "paid", "PM1");
        of_mandate["links"] = json!({"refund": "RF1", "mandate": "MD1"});
        assert!(matches!(translate(&[of_mandate]), Err(TranslateError::Ignored(_))));
    }

    #[test]
    fn the_order_stands_in_the_metadata_of_the_payment() {
        let mut told = event(1, PAYMENTS, "confirmed", "PM1");
        told["resource_metadata"] = json!({"order_id": "A", "shop_ref": "B"});
        told["metadata"] = json!({"order_id": "not this", "shop_ref": "nor this"});
        let payment = json!({PAYMENTS: {"id": "PM1", "status": "confirmed", "amount": 1, "currency": "EUR",
            "reference": "C", "metadata": {"order_id": "A", "shop_ref": "B"}}});
        for (path, in_event, in_answer) in [
            (None, Some("A"), Some("A")),
            (Some("metadata.shop_ref"), Some("B"), Some("B")),
            (Some("reference"), None, Some("C")),
            (Some("nowhere"), None, None),
        ] {
            let path = path.map(|path| path.split('.').map(str::to_owned).collect());
            let account = Account { order_reference: path, ..account(&GoCardless, &[SECRET]) };
            let order = |event: &PaymentEvent| {
                let order = event.references.iter().find(|reference| reference.kind == ReferenceKind::Order);
                order.map(|reference| reference.value.clone())
            };
            let events = GoCardless.translate(&envelope(&GoCardless, &body(&[told.clone()])), &account).unwrap();
            assert_eq!(order(&events[0]).as_deref(), in_event);
            let answer = GoCardless.read_status(&asked(None), &response(payment.to_string().as_bytes()), &account).unwrap();
            assert_eq!(order(&answer.events[0]).as_deref(), in_answer);
        }
    }

    // ------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_gocardless_reads_them() {
        let mut account = account(&GoCardless, &[SECRET]);
        let asked = |request: Result<Request<Bytes>, AskError>| request.unwrap().uri().to_string();
        let status = |cursor| asked(GoCardless.status_request("PM1", cursor, &account));
        assert_eq!(status(None), "https://api-sandbox.gocardless.com/payments/PM1");
        assert_eq!(
            status(Some("events:4999:EUR:open")),
            "https://api-sandbox.gocardless.com/events?resource_type=payments&payment=PM1&limit=500"
        );
        assert_eq!(status(Some("refunds")), "https://api-sandbox.gocardless.com/refunds?payment=PM1&limit=500");
        assert_eq!(status(Some("refunds:RF9")), "https://api-sandbox.gocardless.com/refunds?payment=PM1&limit=500&after=RF9");
        let since = Timestamp::from_millis(1_789_999_999_999);
        assert_eq!(
            asked(GoCardless.events_request(tests::since(since), Some("refunds:EV9"), &account)),
            "https://api-sandbox.gocardless.com/events?resource_type=refunds&created_at[gte]=2026-09-21T14:13:19.999Z\
             &created_at[lte]=2026-09-21T14:13:20Z&limit=500&after=EV9"
        );
        assert_eq!(GoCardless.endpoints_request(None, &account).unwrap_err(), AskError::Unsupported);

        account.mode = Mode::Live;
        let request = GoCardless.status_request("PM1", None, &account).unwrap();
        assert_eq!(request.uri(), "https://api.gocardless.com/payments/PM1");
        assert_eq!(request.headers()["gocardless-version"], "2015-07-06");
        assert_eq!(request.headers()["authorization"], "Bearer sk_test_invented");
        account.api.key = None;
        assert_eq!(GoCardless.status_request("PM1", None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        let account = account(&GoCardless, &[SECRET]);
        for id in ["", "PM", "RF1", "PM1/../x", "PM1?x", "PM1%2e", "PMé", "PM1 ", &format!("PM{}", "1".repeat(254))] {
            assert_eq!(GoCardless.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in [
            "",
            "payments",
            "events",
            "events:1:EUR",
            "events:-1:EUR:open",
            "events:+1:EUR:open",
            "events::EUR:open",
            "events:1:EURO:open",
            "events:1:EUR:else",
            "events:99999999999999999999:EUR:open",
            "refunds:",
            "refunds:EV1",
            "refunds:RF1&x=y",
        ] {
            assert_eq!(
                GoCardless.status_request("PM1", Some(cursor), &account).unwrap_err(),
                AskError::MalformedId(cursor.to_owned())
            );
        }
        for cursor in ["", "payments", "payments:", "payments:RF1", "refunds:", "mandates:EV1", "refunds:EV1&x"] {
            assert!(GoCardless.events_request(tests::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
        }
    }

    // -------------------------------------------------------------------------------------------------- answers

    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "PM1", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        GoCardless.read_status(&asked(cursor), &response(body), &account(&GoCardless, &[SECRET]))
    }

    #[test]
    fn answers_read_as_recorded() {
        let payment = read_status(None, include_bytes!("fixtures/gocardless/answers/payment.json")).unwrap();
        let cursor = payment.next.clone().unwrap();
        assert_eq!(cursor, "events:4999:EUR:charged_back");
        let events = read_status(Some(&cursor), include_bytes!("fixtures/gocardless/answers/events.json")).unwrap();
        let refunds = read_status(Some("refunds"), include_bytes!("fixtures/gocardless/answers/refunds.json")).unwrap();
        for (name, answer, next) in
            [("payment", payment, Some(&*cursor)), ("events", events, Some("refunds")), ("refunds", refunds, None)]
        {
            assert_eq!(answer.next.as_deref(), next, "{name}");
            let keys: BTreeSet<&EventKey> = answer.events.iter().map(|event| &event.key).collect();
            assert_eq!(keys.len(), answer.events.len(), "{name}: each event has a key of its own");
            insta::assert_json_snapshot!(format!("gocardless-answer-{name}"), answer.events);
        }
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, state, phase) in [
            ("pending_customer_approval", PaymentState::Pending, "open"),
            ("pending_submission", PaymentState::Pending, "open"),
            ("submitted", PaymentState::Pending, "open"),
            ("confirmed", PaymentState::Captured, "collected"),
            ("paid_out", PaymentState::Captured, "collected"),
            ("cancelled", PaymentState::Canceled, "open"),
            ("customer_approval_denied", PaymentState::Canceled, "open"),
            ("failed", PaymentState::Failed, "collected"),
            ("charged_back", PaymentState::Captured, "charged_back"),
            ("dreaming", PaymentState::Pending, "open"),
        ] {
            let payment = json!({PAYMENTS: {"id": "PM1", "status": status, "amount": 4999, "currency": "EUR"}});
            let answer = read_status(None, payment.to_string().as_bytes()).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, answer.next), (state, Some(format!("events:4999:EUR:{phase}"))), "{status}");
            assert_eq!(fact.captured.map(|money| money.minor), (state == PaymentState::Captured).then_some(4999), "{status}");
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
        }
    }

    fn events_page(told: &[(usize, &str)], after: Option<&str>) -> Vec<u8> {
        let event = |(number, action): &(usize, &str)| {
            json!({"id": format!("EV{number}"), "created_at": format!("2026-09-{number:02}T09:00:00.000Z"), "action": action,
                "resource_type": PAYMENTS, "links": {"payment": "PM1"}})
        };
        let events: Vec<_> = told.iter().rev().map(event).collect();
        json!({"events": events, "meta": {"cursors": {"before": null, "after": after}, "limit": 500}}).to_string().into_bytes()
    }

    /// Captures and disputes that the payment's events tell, each with its day.
    fn history(told: &[(usize, &str)], phase: &str) -> Vec<String> {
        let answer = read_status(Some(&format!("events:4999:EUR:{phase}")), &events_page(told, None)).unwrap();
        let shown = answer.events.iter().filter_map(|event| match &event.fact {
            Fact::Capture { id, state, .. } => Some(format!("{} {id} {state:?}", event.occurred_at.to_string().split_at(10).0)),
            Fact::Dispute { id, state, .. } => Some(format!("{} {id} {state:?}", event.occurred_at.to_string().split_at(10).0)),
            _ => None,
        });
        shown.collect()
    }

    #[test]
    fn a_late_failure_takes_back_what_was_confirmed_and_a_retry_brings_it_again() {
        assert_eq!(history(&[(1, "created"), (2, "submitted"), (5, "confirmed"), (8, "paid_out")], "collected"), [""; 0]);
        assert_eq!(
            history(&[(2, "submitted"), (3, "failed"), (4, "resubmission_requested"), (9, "confirmed")], "collected"),
            [""; 0]
        );
        let mut told = vec![(5, "confirmed"), (6, "paid_out"), (9, "failed"), (10, "late_failure_settled")];
        assert_eq!(history(&told, "collected"), ["2026-09-09 EV5 Failed"]);
        told.extend([(11, "resubmission_requested"), (15, "confirmed")]);
        assert_eq!(history(&told, "collected"), ["2026-09-09 EV5 Failed", "2026-09-15 EV15 Succeeded"]);
        told.push((20, "failed"));
        assert_eq!(history(&told, "collected"), ["2026-09-09 EV5 Failed", "2026-09-15 EV15 Succeeded", "2026-09-20 EV15 Failed"]);
    }

    #[test]
    fn a_chargeback_goes_as_its_events_say_and_stands_without_them() {
        let mut told = vec![(5, "confirmed"), (9, "charged_back")];
        assert_eq!(history(&told, "charged_back"), ["2026-09-09 PM1 Open"]);
        told.push((12, "chargeback_cancelled"));
        assert_eq!(history(&told, "collected"), ["2026-09-09 PM1 Open", "2026-09-12 PM1 Won"]);
        told.push((15, "chargeback_settled"));
        assert_eq!(history(&told, "charged_back").last().unwrap(), "2026-09-15 PM1 Lost");
        assert_eq!(history(&[(5, "confirmed")], "charged_back"), ["2026-09-21 PM1 Lost"]);
    }

    #[test]
    fn only_what_was_collected_has_refunds_to_look_for() {
        let next = |phase: &str| read_status(Some(&format!("events:1:EUR:{phase}")), &events_page(&[], None)).unwrap().next;
        assert_eq!(next("open"), None);
        assert_eq!(next("collected").as_deref(), Some("refunds"));
        assert_eq!(next("charged_back").as_deref(), Some("refunds"));
    }

    #[test]
    fn a_refund_is_as_its_status_says_and_an_unknown_one_is_pending() {
        for (status, state) in [
            ("created", RefundState::Pending),
            ("pending_submission", RefundState::Pending),
            ("submitted", RefundState::Pending),
            ("paid", RefundState::Succeeded),
            ("cancelled", RefundState::Failed),
            ("bounced", RefundState::Failed),
            ("funds_returned", RefundState::Failed),
            ("dreaming", RefundState::Pending),
        ] {
            let page = json!({REFUNDS: [{"id": "RF1", "status": status, "amount": 500, "currency": "EUR", "links": {"payment": "PM1"}}],
                "meta": {"cursors": {}}});
            let answer = read_status(Some("refunds"), page.to_string().as_bytes()).unwrap();
            assert!(matches!(&answer.events[0].fact, Fact::Refund { state: told, .. } if *told == state), "{status}");
        }
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let refund = |id: &str, payment: &str| json!({"id": id, "status": "paid", "amount": 1, "currency": "EUR", "links": {"payment": payment}});
        let page = |refunds: serde_json::Value, after: serde_json::Value| json!({REFUNDS: refunds, "meta": {"cursors": {"after": after}}});
        for (cursor, body) in [
            (None, json!({PAYMENTS: {"id": "PM2", "status": "confirmed", "amount": 1, "currency": "EUR"}})),
            (None, json!({PAYMENTS: {"id": "PM1", "status": "confirmed", "amount": -1, "currency": "EUR"}})),
            (None, json!({PAYMENTS: {"id": "PM1", "status": "confirmed", "amount": 1.5, "currency": "EUR"}})),
            (None, json!({PAYMENTS: []})),
            (Some("charges"), json!({})),
            (Some("refunds"), page(json!([refund("RF1", "PM2")]), json!(null))),
            (Some("refunds"), page(json!([]), json!("RF1"))),
            (Some("refunds"), page(json!([refund("RF1", "PM1")]), json!("RF2"))),
            (Some("refunds:RF1"), page(json!([refund("RF1", "PM1")]), json!("RF1"))),
            (Some("refunds"), page(json!([refund("EV1", "PM1")]), json!(null))),
            (Some("refunds"), page(json!(vec![refund("RF1", "PM1"); PAGE + 1]), json!(null))),
            (Some("refunds"), json!({REFUNDS: [refund("RF1", "PM1")]})),
            (Some("events:1:EUR:open"), json!({"events": [event(1, PAYMENTS, "confirmed", "PM2")], "meta": {"cursors": {}}})),
        ] {
            let answer = read_status(cursor, body.to_string().as_bytes());
            assert!(matches!(answer, Err(ReadError::Unintelligible(_))), "{cursor:?} {body}: {answer:?}");
        }
        assert!(matches!(read_status(None, b"<html>"), Err(ReadError::Unintelligible(_))));
    }

    #[test]
    fn the_list_of_events_is_followed_through_payments_and_refunds() {
        let account = account(&GoCardless, &[SECRET]);
        let read = |cursor, body: &[u8]| GoCardless.read_events(tests::WHOLE, &asked(cursor), &response(body), &account);
        let first = read(None, &events_page(&[(1, "submitted"), (2, "confirmed")], Some("EV1"))).unwrap();
        assert_eq!((first.events.len(), first.next.as_deref()), (2, Some("payments:EV1")));
        let last = read(Some("payments:EV1"), &events_page(&[(3, "surcharge_fee_debited")], None)).unwrap();
        assert_eq!((last.events.len(), last.next.as_deref()), (0, Some("refunds")));
        let refunds = read(Some("refunds"), &body_of_list(&[event(7, REFUNDS, "paid", "PM1")])).unwrap();
        assert_eq!((refunds.events.len(), refunds.next.as_deref()), (1, None));
        // Of what moved money the amount is to be asked for.
        let hints = |page: &[u8]| GoCardless.read_hints(&response(page), &account).unwrap();
        let page = events_page(&[(1, "submitted"), (2, "confirmed")], Some("EV1"));
        let at = read(None, &page).unwrap().events[0].occurred_at;
        assert_eq!(hints(&page), [Hinted { payment_id: "PM1".to_owned(), at }]);
        assert_eq!(hints(&body_of_list(&[event(7, REFUNDS, "paid", "PM1")])).len(), 1);
        let later = tests::since(at.plus(Duration::from_hours(24)));
        let read_later = GoCardless.read_events(later, &asked(None), &response(&page), &account);
        assert!(matches!(read_later, Err(ReadError::Unintelligible(_))), "older than was asked for");
        for (cursor, page) in [
            (Some("payments:EV1"), events_page(&[(1, "confirmed")], Some("EV1"))),
            (None, events_page(&[], Some("EV1"))),
            (None, events_page(&[(1, "confirmed")], Some("EV9"))),
        ] {
            assert!(matches!(read(cursor, &page), Err(ReadError::Unintelligible(_))), "{cursor:?}");
        }
    }

    fn body_of_list(events: &[serde_json::Value]) -> Vec<u8> {
        json!({"events": events, "meta": {"cursors": {"before": null, "after": null}}}).to_string().into_bytes()
    }

    #[test]
    fn listed_events_are_the_webhooks_events() {
        let account = account(&GoCardless, &[SECRET]);
        let mut broken = event(2, PAYMENTS, "confirmed", "PM1");
        broken["created_at"] = json!("yesterday");
        let told = event(1, PAYMENTS, "failed", "PM1");
        let listed = body_of_list(&[told.clone(), broken]);
        let answer = GoCardless.read_events(tests::WHOLE, &asked(None), &response(&listed), &account).unwrap();
        let sent = &translate(&[told]).unwrap()[0];
        let listed = &answer.events[0];
        assert_eq!((&sent.key, sent.facts_sha256()), (&listed.key, listed.facts_sha256()));
        assert_eq!((sent.source, listed.source), (Source::Webhook, Source::Reconciliation));
        assert_eq!(answer.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");
        assert_eq!(answer.unread[0].event_id, "EV002");
    }
}
