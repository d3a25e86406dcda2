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
//! a webhook says `Captured` of no amount (the order stays pending), [`Psp::asks`] says that its payment is to be asked
//! about, and the answer brings the figures. The same holds for refunds and chargebacks, of which an event says nothing
//! that could be added up.
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

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Acknowledgement, Answer, AskError, Asked, Keys, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Unread, Verified, WebhookRequest, answer, ask, signature,
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
    mapping_version: 1,
    schemes: &[Scheme::signed("gocardless-hex")],
    // `GET /webhooks` lists deliveries; endpoints are seen in the dashboard only.
    can: Abilities { payment_status: true, event_list: true, endpoint_list: false },
    sources: &[],
};

impl Psp for GoCardless {
    fn id(&self) -> &'static str {
        "gocardless"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
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

    fn asks(&self, event: &PaymentEvent) -> bool {
        let Fact::Payment(fact) = &event.fact else { return false };
        // A failure may come after a confirmation, and then it takes money back.
        !event.is_answer() && fact.captured.is_none() && matches!(fact.state, PaymentState::Captured | PaymentState::Failed)
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

    /// The events of payments, then those of refunds; newest first, which is all that the API can do. Those older than
    /// 18 months are gone.
    fn events_request(&self, since: Timestamp, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let (list, after) = list_of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))?;
        let since = since.max(Timestamp::default());
        get(account, &format!("/events?resource_type={list}&created_at[gte]={since}&limit={PAGE}{}", after_id(after)))
    }

    fn read_events(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let (list, after) = list_of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let page = Page::read(&Node::root(&value), EVENTS, after)?;
        let next = match page.next {
            Some(after) => Some(format!("{list}:{after}")),
            None => (list == PAYMENTS).then(|| REFUNDS.to_owned()),
        };
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next };
        for (event, id) in page.items.iter().zip(&page.ids) {
            match translate_event(event, account, Source::Reconciliation) {
                Ok(event) => found.events.push(event),
                Err(TranslateError::Ignored(_)) => {}
                Err(error) => found.unread.push(Unread { event_id: (*id).to_owned(), error }),
            }
        }
        Ok(found)
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
    let failure = (state == PaymentState::Failed).then(|| failure(event));
    let telling = Telling {
        event_id: id(event, "id", "EV")?.to_owned(),
        event_type: &event_type,
        at,
        mode: None,
        order: order_of_event(event, account),
        payment_id: id(&links, "payment", "PM")?,
        others: refund.map(|refund| Reference::new(ReferenceKind::Refund, refund)).into_iter().collect(),
        version: FactVersion::Time(at.millis()),
        fact: Fact::Payment(PaymentFact {
            capture_final: state == PaymentState::Captured,
            failure,
            ..PaymentFact::new(state)
        }),
    };
    Ok(telling.event(account, source))
}

/// What an event says of its payment's state; `None` for what is none of our business.
fn state_told(resource: &str, action: &str) -> Option<PaymentState> {
    let state = match (resource, action) {
        (PAYMENTS, "created" | "customer_approval_granted" | "submitted" | "resubmission_requested") => PaymentState::Pending,
        (PAYMENTS, "confirmed" | "paid_out") => PaymentState::Captured,
        (PAYMENTS, "failed" | "late_failure_settled") => PaymentState::Failed,
        (PAYMENTS, "customer_approval_denied" | "cancelled") => PaymentState::Canceled,
        // Only what was collected can be charged back or refunded.
        (PAYMENTS, "charged_back" | "chargeback_cancelled" | "chargeback_settled")
        | (REFUNDS, "created" | "paid" | "failed" | "refund_settled" | "funds_returned" | "bounced") => PaymentState::Captured,
        _ => return None,
    };
    Some(state)
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
