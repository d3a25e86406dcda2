//! Razorpay: payments, its orders, refunds, disputes.
//!
//! Sources: razorpay.com/docs (webhooks, api, payments/late-authorisation, security/whitelists) as of 2026-04, and what the
//! SDKs do (razorpay-python 2.0.1, npm razorpay 2.9.8).
//!
//! **Signature.** `X-Razorpay-Signature`: lowercase hex of HMAC-SHA256 over the raw body; the key is the webhook's secret, any
//! text that its owner typed, and not the API's. Razorpay allows a webhook without a secret, which then is not signed: here it
//! does not exist. After a change of the secret, events from before it are still signed with the old one. No time is signed.
//!
//! **The event's id** stands in the header `x-razorpay-event-id` only, which the signature does not cover: whoever has seen one
//! webhook could send it again under any other id. So it is not read at all. The key of an event is made of what is signed:
//! the event's name, the id of what it is about, and its `created_at`, which retries repeat.
//!
//! **Payments** are `pay_…`. One payment fails and may be authorised or captured later (late authorisation, up to three days;
//! UPI tries again in the app), so that a failure is an attempt's. It is captured once and whole. `order.paid` tells the same
//! capture as `payment.captured`. The event's name decides, not the snapshot: one of `payment.authorized` may say `captured`.
//!
//! **An authorisation that nobody captures** is given back after three days as a "refund" of a payment whose `captured` is
//! false: no money came in, so none goes out.
//!
//! **Refunds** are told twice: singly, and as `amount_refunded` of the payment beside them, as it stood at that moment.
//! `refund.processed` gives both. The other refund events give the single one alone: whether Razorpay counts a pending or a
//! failed refund in the figure it does not say. `refund.created` is pending whatever its status: `processed` stands there before
//! any bank confirmed it.
//!
//! **Disputes** of the phases `fraud` and `retrieval` are inquiries. `closed` says of a dispute neither won nor lost: what was
//! deducted decides.
//!
//! **Versions.** Objects have none: a fact from an event has the event's `created_at`, in seconds, a fact from an answer the
//! answer's `Date`. Test or live is not said: the two have other secrets and other keys.
//!
//! **The order** is `notes.order_id` of the payment, then of Razorpay's order, then that order's `receipt`. `notes` is `[]` if
//! there are none. Razorpay's order id (`order_…`) links what belongs together where notes are missing.
//!
//! **Lists** are by time of creation: a later change of an old payment, refund or dispute is in none of them. They are read until
//! a page is empty, since a short one need not be the last. Only partners can list webhooks.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::Telling;
use super::{
    Abilities, Account, Answer, AskError, Asked, Keys, LateChanges, Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Unread, Verified, WebhookRequest, Window, answer, ask, signature, telling,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, Reference, ReferenceKind, RefundState, Source,
};

/// The adapter.
pub struct Razorpay;

const SIGNATURE: &str = "x-razorpay-signature";
const API: &str = "https://api.razorpay.com";
/// Razorpay's largest page.
const PAGE: usize = 100;
/// The longest id that is read, in bytes; Razorpay's have 14 characters after their prefix.
const ID_BYTES_MAX: usize = 64;
/// How far a list may be followed, in items: more than anybody has, and few enough digits for a cursor.
const SKIP_MAX: usize = 1_000_000;

static PROFILE: Profile = Profile {
    name: "Razorpay",
    translate_headers: &[],
    timeout: Duration::from_secs(5),
    // From the event's creation; then Razorpay disables the webhook until somebody enables it again.
    retry_window: Duration::from_hours(24),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("razorpay-hex")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::Begun, endpoint_list: false },
    list: Some(Listing::USUAL),
    // razorpay.com/docs/security/whitelists as of 2026-04.
    sources: &[
        "52.66.75.174/32",
        "52.66.76.63/32",
        "52.66.151.218/32",
        "35.154.217.40/32",
        "35.154.22.73/32",
        "35.154.143.15/32",
        "13.126.199.247/32",
        "13.126.238.192/32",
        "13.232.194.134/32",
        "18.96.225.0/26",
        "18.99.161.0/26",
    ],
};

impl Psp for Razorpay {
    fn id(&self) -> &'static str {
        "razorpay"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Account & Settings, Webhooks"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        check_secrets(account)?;
        let refuse = |problem: &str| Err(SettingError { setting: "client_id", problem: problem.to_owned() });
        match account.api.client_id.as_deref() {
            None if account.api.key.is_some() => {
                return refuse("is missing: the API wants the key id (rzp_…) beside its secret, api_key");
            }
            Some(id) if !is_id(id) => return refuse("is no key id"),
            Some(id) if id.starts_with("rzp_live_") && account.mode == Mode::Test => {
                return refuse("is a live key, the mode is test");
            }
            Some(id) if id.starts_with("rzp_test_") && account.mode == Mode::Live => {
                return refuse("is a test key, the mode is live");
            }
            _ => {}
        }
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
        Ok(Verified {
            webhook_id: signature::body_id(request.body),
            event_type: Head::read(request.body).event_type(),
            subject: None,
            secret_name,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
        let event_type = event.name("event")?;
        let Some(family) = Family::of(event_type) else {
            return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
        };
        let at = telling::unix_time(&event, "created_at")?;
        Webhook { event_type, at, payload: event.object("payload")?, account }.events(family)
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_payment_id(payment_id) {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        match StatusStep::of(cursor).ok_or_else(|| malformed_cursor(cursor))? {
            StatusStep::Payment => get(account, &format!("/v1/payments/{payment_id}")),
            StatusStep::Refunds { skip } => get(account, &format!("/v1/payments/{payment_id}/refunds?count={PAGE}&skip={skip}")),
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(unknown_cursor)?;
        let value = read_answer(response, asked)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        match step {
            StatusStep::Payment => look.asked_payment(&Node::root(&value)),
            StatusStep::Refunds { skip } => look.asked_refunds(&Node::root(&value), skip),
        }
    }

    /// Payments, then refunds, then disputes, by their creation. What is made meanwhile is beyond the window, and so moves no
    /// page.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let ListStep { list, skip } = ListStep::of(cursor).ok_or_else(|| malformed_cursor(cursor))?;
        let (since_s, until_s) = window.seconds();
        get(account, &format!("/v1/{}?from={since_s}&to={until_s}&count={PAGE}&skip={skip}", list.path()))
    }

    fn read_events(
        &self,
        _window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let step = ListStep::of(asked.cursor).ok_or_else(unknown_cursor)?;
        let value = read_answer(response, asked)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        look.listed(&Node::root(&value), &step)
    }
}

// ---------------------------------------------------------------------------------------------------- verification

/// What the ingress needs of the body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads an authentic body. What is no such JSON is still authentic: it is kept, and the worker quarantines it.
    fn read(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    fn event_type(&self) -> Option<String> {
        Some(self.event.as_ref()).filter(|event| json::is_name(event)).map(str::to_owned)
    }
}

/// A secret is what its owner typed into the dashboard: words with spaces and umlauts are genuine.
fn check_secrets(account: &Account) -> Result<(), SettingError> {
    let refuse = |problem| Err(SettingError { setting: "secrets", problem });
    if account.keys.secrets.is_empty() {
        return refuse("is empty: Razorpay signs nothing for a webhook without a secret".to_owned());
    }
    for secret in &account.keys.secrets {
        let text = secret.expose();
        if text.trim().is_empty() || text.trim() != text || text.chars().any(char::is_control) {
            return refuse(format!("{} is empty, or has control characters or spaces at its ends", secret.name()));
        }
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------------ translation

/// What an event speaks of.
#[derive(Clone, Copy)]
enum Family {
    Authorized,
    /// `payment.captured` and `order.paid`.
    Captured,
    Failed,
    Refund(RefundState),
    Dispute,
}

impl Family {
    /// `None` for what is none of our business.
    fn of(event_type: &str) -> Option<Self> {
        let family = match event_type {
            "payment.authorized" => Self::Authorized,
            "payment.captured" | "order.paid" => Self::Captured,
            "payment.failed" => Self::Failed,
            "refund.created" => Self::Refund(RefundState::Pending),
            "refund.processed" => Self::Refund(RefundState::Succeeded),
            "refund.failed" => Self::Refund(RefundState::Failed),
            "payment.dispute.created"
            | "payment.dispute.under_review"
            | "payment.dispute.action_required"
            | "payment.dispute.won"
            | "payment.dispute.lost"
            | "payment.dispute.closed" => Self::Dispute,
            _ => return None,
        };
        Some(family)
    }
}

/// An event's body.
struct Webhook<'a> {
    event_type: &'a str,
    at: Timestamp,
    payload: Node<'a>,
    account: &'a Account,
}

impl<'a> Webhook<'a> {
    fn events(&self, family: Family) -> Result<Vec<PaymentEvent>, TranslateError> {
        match family {
            Family::Authorized => self.of_payment(|payment| {
                let authorized = Some(payment.money("amount")?);
                Ok(PaymentFact { authorized, ..PaymentFact::new(PaymentState::Authorized) })
            }),
            Family::Captured => self.of_payment(|payment| {
                must_be(payment, &["captured", "refunded"])?;
                captured(payment)
            }),
            Family::Failed => self.of_payment(|payment| {
                must_be(payment, &["failed"])?;
                Ok(failed(payment))
            }),
            Family::Refund(state) => self.of_refund(state),
            Family::Dispute => self.of_dispute(),
        }
    }

    fn of_payment(&self, fact: impl Fn(&Node<'a>) -> Result<PaymentFact, Problem>) -> Result<Vec<PaymentEvent>, TranslateError> {
        let payment = self.entity("payment")?.ok_or_else(|| self.payload.problem("names no payment"))?;
        let payment_id = id(&payment, "id")?;
        let order = self.entity("order")?;
        let about = order.as_ref().map(|order| id(order, "id")).transpose()?.unwrap_or(payment_id);
        Ok(vec![self.event(about, "", payment_id, Fact::Payment(fact(&payment)?))?])
    }

    fn of_refund(&self, state: RefundState) -> Result<Vec<PaymentEvent>, TranslateError> {
        let refund = self.entity("refund")?.ok_or_else(|| self.payload.problem("names no refund"))?;
        let (refund_id, payment_id) = (id(&refund, "id")?, id(&refund, "payment_id")?);
        let payment = self.entity("payment")?;
        if let Some(payment) = &payment {
            if id(payment, "id")? != payment_id {
                return Err(payment.required("id")?.problem("another payment than the refund's").into());
            }
            if payment.optional_bool("captured")? == Some(false) {
                if state != RefundState::Succeeded {
                    return Err(TranslateError::Ignored("the release of an authorisation is on its way".to_owned()));
                }
                let lapsed = Fact::Payment(PaymentFact::new(PaymentState::AuthorizationExpired));
                return Ok(vec![self.event(refund_id, "", payment_id, lapsed)?]);
            }
        }
        let mut events = vec![self.event(refund_id, "", payment_id, refund_fact(&refund, state)?)?];
        let total = payment.filter(|payment| state == RefundState::Succeeded && payment.optional("amount_refunded").is_some());
        if let Some(payment) = total {
            events.push(self.event(refund_id, ":total", payment_id, refund_total(&payment)?)?);
        }
        Ok(events)
    }

    fn of_dispute(&self) -> Result<Vec<PaymentEvent>, TranslateError> {
        let dispute = self.entity("dispute")?.ok_or_else(|| self.payload.problem("names no dispute"))?;
        let word = self.event_type.rsplit('.').next().unwrap_or_default();
        Ok(vec![self.event(id(&dispute, "id")?, "", id(&dispute, "payment_id")?, dispute_fact(&dispute, word)?)?])
    }

    /// `payload.<name>.entity`, if there is such a thing.
    fn entity(&self, name: &str) -> Result<Option<Node<'a>>, Problem> {
        self.payload.optional(name).map(|_| self.payload.object(name)?.object("entity")).transpose()
    }

    /// The fact, under a key of what is signed; `about` is the id of what the event is named after.
    fn event(&self, about: &str, part: &str, payment_id: &'a str, fact: Fact) -> Result<PaymentEvent, Problem> {
        let (payment, order) = (self.entity("payment")?, self.entity("order")?);
        let telling = Telling {
            event_id: format!("{}:{about}:{}{part}", self.event_type, self.at.seconds()),
            event_type: self.event_type,
            at: self.at,
            mode: None,
            order: order_of(payment.as_ref(), order.as_ref(), self.account),
            payment_id,
            others: session(payment.as_ref())?,
            version: FactVersion::Time(self.at.millis()),
            fact,
        };
        Ok(telling.event(self.account, Source::Webhook))
    }
}

/// Where both speak of an end, the status must not contradict the event's name.
fn must_be(payment: &Node<'_>, statuses: &[&str]) -> Result<(), Problem> {
    match payment.optional("status") {
        Some(status) if !status.as_text().is_some_and(|status| statuses.contains(&status)) => {
            Err(status.problem("contradicts the event's name"))
        }
        _ => Ok(()),
    }
}

/// A payment is captured once and whole.
fn captured(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    let captured = Some(payment.money("amount")?);
    Ok(PaymentFact { captured, capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
}

/// The reason says more than the code, which is `BAD_REQUEST_ERROR` for nearly everything.
fn failed(payment: &Node<'_>) -> PaymentFact {
    let code = payment.text("error_reason").or_else(|| payment.text("error_code"));
    let failure = Some(telling::failure(code, payment.text("error_description")));
    PaymentFact { failure, ..PaymentFact::new(PaymentState::Failed) }
}

/// Of a payment as it stands. An unknown status is pending: it is never a failure and never money.
fn payment_by_status(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    match payment.name("status")? {
        "authorized" => {
            let authorized = Some(payment.money("amount")?);
            Ok(PaymentFact { authorized, ..PaymentFact::new(PaymentState::Authorized) })
        }
        "refunded" if payment.optional_bool("captured")? == Some(false) => {
            Ok(PaymentFact::new(PaymentState::AuthorizationExpired))
        }
        "captured" | "refunded" => captured(payment),
        "failed" => Ok(failed(payment)),
        _ => Ok(PaymentFact::new(PaymentState::Pending)),
    }
}

fn refund_fact(refund: &Node<'_>, state: RefundState) -> Result<Fact, Problem> {
    let created = refund.optional("created_at").map(|_| telling::unix_time(refund, "created_at")).transpose()?;
    Ok(Fact::Refund { id: id(refund, "id")?.to_owned(), state, amount: refund.money("amount")?, created })
}

fn refund_by_status(refund: &Node<'_>) -> Result<Fact, Problem> {
    let state = match refund.text("status") {
        Some("processed") => RefundState::Succeeded,
        Some("failed") => RefundState::Failed,
        _ => RefundState::Pending,
    };
    refund_fact(refund, state)
}

fn refund_total(payment: &Node<'_>) -> Result<Fact, Problem> {
    Ok(Fact::RefundTotal { amount: payment.money("amount_refunded")? })
}

/// `word`: a status, or the last word of an event's name. Unknown ones are undecided.
fn dispute_fact(dispute: &Node<'_>, word: &str) -> Result<Fact, Problem> {
    let is_inquiry = matches!(dispute.text("phase"), Some("fraud" | "retrieval"));
    let is_deducted = dispute.optional_integer("amount_deducted")?.is_some_and(|deducted| deducted > 0);
    let state = match word {
        "lost" => DisputeState::Lost,
        "won" | "closed" if is_inquiry => DisputeState::InquiryClosed,
        "closed" if is_deducted => DisputeState::Lost,
        "won" | "closed" => DisputeState::Won,
        _ if is_inquiry => DisputeState::Inquiry,
        _ => DisputeState::Open,
    };
    Ok(Fact::Dispute { id: id(dispute, "id")?.to_owned(), state, amount: dispute.money("amount")? })
}

/// By the payment; `order` is Razorpay's, where the event has it.
fn order_of<'a>(payment: Option<&Node<'a>>, order: Option<&Node<'a>>, account: &Account) -> Option<&'a str> {
    let by_payment = payment.and_then(|payment| telling::order(payment, account, &[&["notes", "order_id"]]));
    by_payment.or_else(|| telling::order(order?, account, &[&["notes", "order_id"], &["receipt"]]))
}

/// Razorpay's order, in which the payment is made.
fn session(payment: Option<&Node<'_>>) -> Result<Vec<Reference>, Problem> {
    let order_id = payment.map(|payment| payment.optional_name("order_id")).transpose()?.flatten();
    Ok(order_id.map(|order_id| Reference::new(ReferenceKind::Session, order_id)).into_iter().collect())
}

/// An id, which may become part of a key or a URL.
fn id<'a>(object: &Node<'a>, key: &str) -> Result<&'a str, Problem> {
    let text = object.name(key)?;
    if is_id(text) { Ok(text) } else { Err(object.required(key)?.problem("not an id")) }
}

fn is_id(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX && ask::is_id(text, b"_")
}

fn is_payment_id(text: &str) -> bool {
    is_id(text) && text.strip_prefix("pay_").is_some_and(|rest| !rest.is_empty())
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a look at a payment stands: the payment, then its refunds, page by page.
enum StatusStep {
    Payment,
    Refunds { skip: usize },
}

const PAYMENTS: &str = "payments";
const REFUNDS: &str = "refunds";
const DISPUTES: &str = "disputes";

impl StatusStep {
    /// Reads a cursor: none, or `refunds:<skip>`.
    fn of(cursor: Option<&str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Payment) };
        let skip = cursor.strip_prefix(REFUNDS)?.strip_prefix(':')?;
        Some(Self::Refunds { skip: skip_of(skip)? })
    }
}

/// Where a sweep stands.
struct ListStep {
    list: List,
    skip: usize,
}

#[derive(Clone, Copy)]
enum List {
    Payments,
    Refunds,
    Disputes,
}

impl List {
    const fn path(self) -> &'static str {
        match self {
            Self::Payments => PAYMENTS,
            Self::Refunds => REFUNDS,
            Self::Disputes => DISPUTES,
        }
    }

    const fn after(self) -> Option<Self> {
        match self {
            Self::Payments => Some(Self::Refunds),
            Self::Refunds => Some(Self::Disputes),
            Self::Disputes => None,
        }
    }
}

impl ListStep {
    /// Reads a cursor: none, or `<list>:<skip>`.
    fn of(cursor: Option<&str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self { list: List::Payments, skip: 0 }) };
        let (list, skip) = cursor.split_once(':')?;
        let list = match list {
            PAYMENTS => List::Payments,
            REFUNDS => List::Refunds,
            DISPUTES => List::Disputes,
            _ => return None,
        };
        Some(Self { list, skip: skip_of(skip)? })
    }

    /// The cursor after a page of so many items.
    fn next(&self, items: usize) -> Option<String> {
        let (list, skip) = if items > 0 { (self.list, self.skip + items) } else { (self.list.after()?, 0) };
        Some(format!("{}:{skip}", list.path()))
    }
}

fn skip_of(text: &str) -> Option<usize> {
    let skip = usize::try_from(signature::seconds(text)?).ok()?;
    (skip <= SKIP_MAX).then_some(skip)
}

/// One answer to one question.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    /// When the answer was true.
    at: Timestamp,
}

impl Look<'_> {
    fn asked_payment(&self, payment: &Node<'_>) -> Result<Answer, ReadError> {
        if payment.name("id")? != self.asked.payment_id {
            return Err(payment.required("id")?.problem("another payment than was asked for").into());
        }
        let events = self.payment(payment)?;
        // Only what was captured can be refunded: the open and the failed cost one request.
        let next = (events.len() > 1).then(|| format!("{REFUNDS}:0"));
        Ok(Answer { events, unread: Vec::new(), next })
    }

    fn asked_refunds(&self, page: &Node<'_>, skip: usize) -> Result<Answer, ReadError> {
        let refunds = items(page)?;
        let mut events = Vec::new();
        for refund in &refunds {
            if refund.name("payment_id")? != self.asked.payment_id {
                return Err(refund.problem("of another payment than was asked for").into());
            }
            events.push(self.refund(refund)?);
        }
        let next = (refunds.len() == PAGE).then(|| format!("{REFUNDS}:{}", skip + PAGE));
        Ok(Answer { events, unread: Vec::new(), next })
    }

    fn listed(&self, page: &Node<'_>, step: &ListStep) -> Result<Answer, ReadError> {
        let items = items(page)?;
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: step.next(items.len()) };
        for item in &items {
            let events = match step.list {
                List::Payments => self.payment(item),
                List::Refunds => self.refund(item).map(|event| vec![event]),
                List::Disputes => self.dispute(item).map(|event| vec![event]),
            };
            match events {
                Ok(events) => found.events.extend(events.into_iter().filter(|event| !telling::is_no_refund(event))),
                Err(problem) => {
                    found.unread.push(Unread { event_id: id(item, "id")?.to_owned(), error: problem.into() });
                }
            }
        }
        Ok(found)
    }

    /// The payment, and of a captured one what is refunded of it in all.
    fn payment(&self, payment: &Node<'_>) -> Result<Vec<PaymentEvent>, Problem> {
        let payment_id = id(payment, "id")?;
        let fact = payment_by_status(payment)?;
        let is_captured = fact.captured.is_some();
        let mut events = vec![self.event(payment_id.to_owned(), Some(payment), payment_id, Fact::Payment(fact))?];
        if is_captured {
            events.push(self.event(format!("{payment_id}:total"), Some(payment), payment_id, refund_total(payment)?)?);
        }
        Ok(events)
    }

    fn refund(&self, refund: &Node<'_>) -> Result<PaymentEvent, Problem> {
        self.event(id(refund, "id")?.to_owned(), None, id(refund, "payment_id")?, refund_by_status(refund)?)
    }

    fn dispute(&self, dispute: &Node<'_>) -> Result<PaymentEvent, Problem> {
        let fact = dispute_fact(dispute, dispute.name("status")?)?;
        self.event(id(dispute, "id")?.to_owned(), None, id(dispute, "payment_id")?, fact)
    }

    fn event(&self, event_id: String, payment: Option<&Node<'_>>, payment_id: &str, fact: Fact) -> Result<PaymentEvent, Problem> {
        let event_type = match &fact {
            Fact::Refund { .. } => "poll:refund",
            Fact::Dispute { .. } => "poll:dispute",
            _ => "poll:payment",
        };
        let telling = Telling {
            event_id,
            event_type,
            at: self.at,
            mode: None,
            order: order_of(payment, None, self.account),
            payment_id,
            others: session(payment)?,
            version: FactVersion::Time(self.at.millis()),
            fact,
        };
        Ok(telling.answer(self.account, self.asked))
    }
}

/// The body of an answer that answers. For an id that it does not know the API has 400, and says so in words alone.
fn read_answer<'a>(response: &'a Response<Bytes>, asked: &Asked<'_>) -> Result<json::Value<'a>, ReadError> {
    if response.status() == StatusCode::BAD_REQUEST {
        let value = json::read(response.body())?;
        let said = Node::root(&value).name_at(&["error", "description"]);
        let is_unknown = said == Some("The id provided does not exist");
        return Err(if is_unknown { ReadError::NotFound } else { ReadError::Unintelligible("status 400".to_owned()) });
    }
    Ok(json::read(answer::body(response, Some(asked.at))?)?)
}

/// The items of a collection, as many as were asked for at most.
fn items<'a>(page: &Node<'a>) -> Result<Vec<Node<'a>>, Problem> {
    let items = page.array("items")?;
    if items.len() > PAGE {
        return Err(page.problem("a page larger than was asked for"));
    }
    Ok(items)
}

fn malformed_cursor(cursor: Option<&str>) -> AskError {
    AskError::MalformedId(cursor.unwrap_or_default().to_owned())
}

fn unknown_cursor() -> ReadError {
    ReadError::Unintelligible("an unknown cursor".to_owned())
}

/// The API wants the key's id and its secret, as Basic credentials.
fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    let key_id = account.api.client_id.as_deref().filter(|id| is_id(id)).ok_or(AskError::Missing("client_id"))?;
    let secret = account.api.key.as_ref().ok_or(AskError::Missing("api_key"))?;
    let credentials = ask::basic(key_id, secret).ok_or(AskError::Missing("api_key"))?;
    ask::finish(ask::get(account, API, path_and_query, credentials))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen};
    use super::*;
    use crate::secret::Secret;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Razorpay,
            scheme: "razorpay-hex",
            secret: SECRET,
            other_secret: "rzp_wh_secret_OLD",
            settings: |account| account.api.client_id = Some("rzp_test_invented".to_owned()),
            sign: |secret, _, body| {
                let mac = hex::encode(signature::hmac_sha256(secret.as_bytes(), &[body]));
                (tests::headers([(SIGNATURE, mac), (EVENT_ID, "TestEvtId000001".to_owned())]), body.to_vec())
            },
            body: br#"{"entity":"event","event":"payment.captured"}"#,
            event_type: Some("payment.captured"),
            timed: false,
            any_body: true,
            unsigned_headers: &[EVENT_ID],
        }
    }

    const SECRET: &str = "rzp_wh_secret_Test#1 äöü";
    /// Of this the adapter reads nothing.
    const EVENT_ID: &str = "x-razorpay-event-id";
    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn account() -> Account {
        specimen().account(&[SECRET])
    }

    fn fixture(name: &str) -> Vec<u8> {
        let fixtures = tests::fixtures(&Razorpay);
        fixtures.into_iter().find(|(known, _)| known == name).unwrap().1
    }

    fn translated(body: &[u8]) -> Vec<PaymentEvent> {
        Razorpay.translate(&specimen().envelope(body), &account()).unwrap()
    }

    fn keys(events: &[PaymentEvent]) -> Vec<&str> {
        events.iter().map(|event| event.key.event_id.as_str()).collect()
    }

    #[test]
    fn the_header_is_64_lowercase_hex_digits() {
        let body = specimen().body;
        let mac = hex::encode(signature::hmac_sha256(SECRET.as_bytes(), &[body]));
        let reason = |header: &str| {
            let headers = tests::headers([(SIGNATURE, header.to_owned())]);
            tests::verify(&Razorpay, &[SECRET], &headers, body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        assert_eq!(reason(&mac), "accepted");
        for bad in [mac.to_uppercase(), format!("{mac}0"), mac[1..].to_owned(), format!("sha256={mac}"), format!(" {mac}")] {
            assert_eq!(reason(&bad), "malformed_header", "{bad}");
        }
        assert_eq!(reason(&"0".repeat(64)), "signature_mismatch");
    }

    /// Vector `razorpay-event-id-header-tampered`: the signature holds whatever that header says.
    #[test]
    fn a_replay_under_another_event_id_is_the_same_event() {
        let body = fixture("refund.processed");
        let event_under = |event_id: Option<&str>| {
            let (mut headers, body) = (specimen().sign)(SECRET, NOW_S, &body);
            headers.remove(EVENT_ID);
            if let Some(event_id) = event_id {
                headers.insert(EVENT_ID, event_id.parse().unwrap());
            }
            let verified = specimen().verify(&[SECRET], &headers, &body).unwrap();
            let webhook_id = verified.webhook_id().to_owned();
            assert!(verified.headers.is_empty(), "nothing unsigned travels");
            let envelope = Envelope::new(&account(), verified, Timestamp::from_seconds(NOW_S), body.into(), None);
            (webhook_id, Razorpay.translate(&envelope, &account()).unwrap())
        };
        let genuine = event_under(Some("TestEvtId000001"));
        assert_eq!(genuine, event_under(Some("AttackerChosenId")));
        assert_eq!(genuine, event_under(None));
        assert_eq!(keys(&genuine.1), ["refund.processed:rfnd_T1:1790000101", "refund.processed:rfnd_T1:1790000101:total"]);
    }

    #[test]
    fn events_that_differ_have_keys_that_differ() {
        let fixtures = tests::fixtures(&Razorpay);
        let all: Vec<_> = fixtures.iter().filter(|(name, _)| !name.starts_with("bad.")).collect();
        let mut known = std::collections::BTreeMap::new();
        for (name, body) in all {
            for event in Razorpay.translate(&specimen().envelope(body), &account()).unwrap_or_default() {
                let kind = name.split('.').take(2).collect::<Vec<_>>().join(".");
                let before = known.insert(event.key.event_id.clone(), kind.clone());
                assert!(before.is_none_or(|before| before == kind), "{} is of two events", event.key);
            }
        }
    }

    #[test]
    fn a_failure_is_an_attempts_and_a_later_success_of_the_same_payment_outranks_it() {
        let state = |name: &str| {
            let events = translated(&fixture(name));
            let Fact::Payment(fact) = &events[0].fact else { panic!("{:?}", events[0].fact) };
            (events[0].payment_id.clone(), fact.attempt.clone(), fact.state)
        };
        let (failed, authorized, captured) = (state("payment.failed"), state("payment.authorized"), state("payment.captured"));
        assert_eq!((&failed.0, &failed.1), (&captured.0, &captured.1), "one attempt, of which the higher rank counts");
        assert_eq!(failed.2, PaymentState::Failed);
        assert!(failed.2 < authorized.2 && authorized.2 < captured.2);
        assert_eq!(state("payment.authorized.says_captured").2, PaymentState::Authorized, "the snapshot is not believed");
        assert_eq!(state("order.paid").2, PaymentState::Captured);
    }

    #[test]
    fn the_order_stands_in_the_notes_or_in_razorpays_order() {
        let orders = |path: Option<&str>, body: serde_json::Value| {
            let order_reference = path.map(|path| path.split('.').map(str::to_owned).collect());
            let account = Account { order_reference, ..account() };
            let events = Razorpay.translate(&specimen().envelope(body.to_string().as_bytes()), &account).unwrap();
            let orders = events[0].references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
            orders.map(|reference| reference.value.clone()).collect::<Vec<_>>()
        };
        let event = |notes: serde_json::Value| {
            json!({"event": "order.paid", "created_at": 1, "payload": {
                "payment": {"entity": {"id": "pay_1", "amount": 1, "currency": "INR", "notes": notes}},
                "order": {"entity": {"id": "order_1", "receipt": "C", "notes": {"shop": {"ref": "B"}}}}}})
        };
        assert_eq!(orders(None, event(json!({"order_id": "A"}))), ["A"]);
        assert_eq!(orders(None, event(json!([]))), ["C"], "notes are [] when there are none");
        assert_eq!(orders(Some("notes.shop.ref"), event(json!({"shop": {"ref": "D"}}))), ["D"]);
        assert_eq!(orders(Some("notes.shop.ref"), event(json!([]))), ["B"]);
        assert_eq!(orders(Some("nowhere"), event(json!({"order_id": "A"}))), [""; 0]);
    }

    #[test]
    fn what_makes_an_account_useless_is_refused_at_start() {
        let setting = |change: fn(&mut Account)| {
            let mut account = account();
            change(&mut account);
            Razorpay.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(setting(|_| ()), Ok(()));
        assert_eq!(setting(|account| account.api.key = None), Ok(()));
        assert_eq!(setting(|account| account.api.client_id = None), Err("client_id"));
        assert_eq!(setting(|account| account.api.client_id = Some("rzp:x".to_owned())), Err("client_id"));
        assert_eq!(setting(|account| account.api.client_id = Some("rzp_live_1".to_owned())), Err("client_id"));
        assert_eq!(setting(|account| account.mode = Mode::Live), Err("client_id"));
        assert_eq!(setting(|account| account.keys.secrets.push(Secret::new("x", " padded"))), Err("secrets"));
        assert_eq!(setting(|account| account.keys.secrets.push(Secret::new("x", "two words"))), Ok(()));
    }

    // ------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_razorpay_reads_them() {
        let account = account();
        let status = |cursor| Razorpay.status_request("pay_T1", cursor, &account).unwrap().uri().to_string();
        assert_eq!(status(None), "https://api.razorpay.com/v1/payments/pay_T1");
        assert_eq!(status(Some("refunds:100")), "https://api.razorpay.com/v1/payments/pay_T1/refunds?count=100&skip=100");
        let since = Timestamp::from_millis(1_789_999_999_999);
        let list = |cursor| Razorpay.events_request(tests::since(since), cursor, &account).unwrap().uri().to_string();
        let window = "from=1789999999&to=1790000000";
        assert_eq!(list(None), format!("https://api.razorpay.com/v1/payments?{window}&count=100&skip=0"));
        assert_eq!(list(Some("disputes:200")), format!("https://api.razorpay.com/v1/disputes?{window}&count=100&skip=200"));
        let request = Razorpay.status_request("pay_T1", None, &account).unwrap();
        // rzp_test_invented:sk_test_invented
        assert_eq!(request.headers()["authorization"], "Basic cnpwX3Rlc3RfaW52ZW50ZWQ6c2tfdGVzdF9pbnZlbnRlZA==");
        assert!(!format!("{request:?}").contains("cnpw"), "the key shows in a log");
        for (missing, change) in [
            ("client_id", (|account| account.api.client_id = None) as fn(&mut Account)),
            ("api_key", |account| account.api.key = None),
        ] {
            let mut account = account.clone();
            change(&mut account);
            assert_eq!(Razorpay.status_request("pay_T1", None, &account).unwrap_err(), AskError::Missing(missing));
        }
        assert_eq!(Razorpay.endpoints_request(None, &account).unwrap_err(), AskError::Unsupported, "partners only");
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        let account = account();
        let long = format!("pay_{}", "a".repeat(61));
        for id in ["", "pay_", "order_1", "pay_1/../x", "pay_1?x", "pay_1%2e", "pay_é", "pay_1 ", "pay_1-2", &long] {
            assert_eq!(Razorpay.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in ["", "refunds", "refunds:", "refunds:x", "refunds:-1", "refunds:1&x=y", "refunds:1000001", "disputes:0:1"] {
            assert!(Razorpay.status_request("pay_1", Some(cursor), &account).is_err(), "{cursor}");
        }
        for cursor in ["", "payments", "payments:", "payments:x", "payments:0:1", "settlements:0", "payments:01"] {
            assert!(Razorpay.events_request(tests::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
        }
    }

    // -------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "pay_T1", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        Razorpay.read_status(&asked(cursor), &response(body), &account())
    }

    fn read_events(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        Razorpay.read_events(tests::WHOLE, &asked(cursor), &response(body), &account())
    }

    #[test]
    fn answers_read_as_recorded() {
        for (name, body, cursor, next) in [
            ("payment", &include_bytes!("fixtures/razorpay/answers/payment.json")[..], None, Some("refunds:0")),
            ("payment.failed", include_bytes!("fixtures/razorpay/answers/payment.failed.json"), None, None),
            ("payment.release", include_bytes!("fixtures/razorpay/answers/payment.release.json"), None, None),
            ("refunds", include_bytes!("fixtures/razorpay/answers/refunds.json"), Some("refunds:0"), None),
        ] {
            let answer = read_status(cursor, body).unwrap();
            assert_eq!(answer.next.as_deref(), next, "{name}");
            insta::assert_json_snapshot!(format!("razorpay-answer-{name}"), answer.events);
        }
        let disputes = read_events(Some("disputes:0"), include_bytes!("fixtures/razorpay/answers/disputes.json")).unwrap();
        assert_eq!(disputes.next.as_deref(), Some("disputes:2"));
        insta::assert_json_snapshot!("razorpay-answer-disputes", disputes.events);
    }

    #[test]
    fn not_found_is_a_400_and_no_failure() {
        let read = |status, body: &'static str| {
            let response = Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap();
            Razorpay.read_status(&asked(None), &response, &account()).unwrap_err()
        };
        let unknown = r#"{"error":{"code":"BAD_REQUEST_ERROR","description":"The id provided does not exist"}}"#;
        assert_eq!((read(400, unknown), read(404, "")), (ReadError::NotFound, ReadError::NotFound));
        let other = r#"{"error":{"code":"BAD_REQUEST_ERROR","description":"The count may not be greater than 100."}}"#;
        assert!(matches!(read(400, other), ReadError::Unintelligible(_)));
        assert!(matches!(read(400, "<html>"), ReadError::Unintelligible(_)));
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, is_captured, state) in [
            ("created", false, PaymentState::Pending),
            ("authorized", false, PaymentState::Authorized),
            ("captured", true, PaymentState::Captured),
            ("refunded", true, PaymentState::Captured),
            ("refunded", false, PaymentState::AuthorizationExpired),
            ("failed", false, PaymentState::Failed),
            ("dreaming", true, PaymentState::Pending),
        ] {
            let payment = json!({"id": "pay_T1", "status": status, "captured": is_captured, "amount": 7, "currency": "INR",
                "amount_refunded": 0});
            let answer = read_status(None, payment.to_string().as_bytes()).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, answer.next.is_some()), (state, state == PaymentState::Captured), "{status}");
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
        }
    }

    #[test]
    fn a_dispute_is_what_its_status_and_phase_say() {
        for (word, phase, deducted, state) in [
            ("open", "chargeback", 0, DisputeState::Open),
            ("under_review", "arbitration", 5, DisputeState::Open),
            ("new_to_us", "pre_arbitration", 0, DisputeState::Open),
            ("open", "fraud", 0, DisputeState::Inquiry),
            ("open", "retrieval", 0, DisputeState::Inquiry),
            ("won", "chargeback", 0, DisputeState::Won),
            ("won", "retrieval", 0, DisputeState::InquiryClosed),
            ("lost", "chargeback", 5, DisputeState::Lost),
            ("lost", "fraud", 5, DisputeState::Lost),
            ("closed", "chargeback", 0, DisputeState::Won),
            ("closed", "chargeback", 5, DisputeState::Lost),
            ("closed", "fraud", 0, DisputeState::InquiryClosed),
        ] {
            let dispute = json!({"id": "disp_1", "payment_id": "pay_1", "amount": 5, "currency": "INR", "phase": phase,
                "amount_deducted": deducted, "status": word});
            let page = json!({"items": [dispute]}).to_string();
            let answer = read_events(Some("disputes:0"), page.as_bytes()).unwrap();
            let Fact::Dispute { state: told, .. } = answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!(told, state, "{word} {phase} {deducted}");
        }
    }

    #[test]
    fn lists_are_followed_to_their_end() {
        let refund = |number: usize| json!({"id": format!("rfnd_{number}"), "payment_id": "pay_T1", "amount": 1, "currency": "INR", "status": "processed"});
        let page = |items: usize| json!({ "items": (0..items).map(refund).collect::<Vec<_>>() }).to_string();
        let next = |cursor: &str, items: usize| read_status(Some(cursor), page(items).as_bytes()).unwrap().next;
        assert_eq!(next("refunds:0", PAGE).as_deref(), Some("refunds:100"));
        assert_eq!(next("refunds:100", PAGE - 1), None);

        let next = |cursor: Option<&str>, items: usize| read_events(cursor, page(items).as_bytes()).unwrap().next;
        assert_eq!(next(Some("refunds:100"), PAGE).as_deref(), Some("refunds:200"));
        assert_eq!(next(Some("refunds:100"), 1).as_deref(), Some("refunds:101"), "a short page need not be the last");
        assert_eq!(next(Some("refunds:101"), 0).as_deref(), Some("disputes:0"));
        assert_eq!(next(Some("disputes:0"), 0), None);
        assert_eq!(next(None, 0).as_deref(), Some("refunds:0"));

        let payments = read_events(None, include_bytes!("fixtures/razorpay/answers/payments.json")).unwrap();
        assert_eq!(keys(&payments.events), ["poll:pay_T3:look-7", "poll:pay_T1:look-7"]);
        assert_eq!(payments.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");
        assert_eq!(payments.unread[0].event_id, "pay_T2");
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let refund = json!({"id": "rfnd_1", "payment_id": "pay_other", "amount": 1, "currency": "INR", "status": "processed"});
        for (cursor, body) in [
            (None, json!({"id": "pay_other", "status": "captured", "amount": 1, "currency": "INR", "amount_refunded": 0})),
            (None, json!({"id": "pay_T1", "status": "captured"})),
            (None, json!([])),
            (Some("refunds:0"), json!({ "items": [refund] })),
            (Some("refunds:0"), json!({ "items": {} })),
            (Some("refunds:0"), json!({ "items": vec![refund.clone(); PAGE + 1] })),
            (Some("refunds:x"), json!({ "items": [] })),
        ] {
            let read = read_status(cursor, body.to_string().as_bytes());
            assert!(matches!(read, Err(ReadError::Unintelligible(_))), "{cursor:?} {body}");
        }
    }
}
